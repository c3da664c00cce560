"""Sweep of launch configurations, which the tables in inn_kernels/gpu are made from: python -m bench.sweep [-k TEXT].

    python -m bench.sweep --out FOLDER    on a GPU: time every candidate, write FOLDER/sweep.csv
    python -m bench.sweep --resources     with no GPU: rank the candidates by what the ahead-of-time compile says
    TRITON_INTERPRET=1 python -m bench.sweep      a dry run of every candidate on tiny shapes in the interpreter

A case is one size class of one kernel: its shape, the table's present choice, and candidates as changes to that. Times
are the device's, medians over replays of a graph on rotated tensors (`gpu.clock`); the error is the largest difference
from the present choice's result. The tables stay the one source: a better candidate is put there by hand.
`make gpu-sweep` lets many processes compile before one measures.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bench.gpu.clock import Rotation, rotated, timing
from bench.gpu.rows import Lost, check_device, described
from bench.harness import append_csv, quantiles, read_csv
from inn_kernels.gpu import compile as aot
from inn_kernels.gpu import (
    conv,
    conv_node_gradient,
    discretize,
    discretize_adjoint,
    discretize_tap_gradient,
    foreach,
    gemm_configs,
    gemm_tile,
    linear,
    linear_backward,
)
from inn_kernels.gpu.launch import INTERPRETED, Config, target_of
from inn_kernels.gpu.specs import KernelSpec
from inn_kernels.taps import taps_for

DRY = INTERPRETED
DEVICE = "cuda" if torch.cuda.is_available() and not DRY else "cpu"
NAME = torch.cuda.get_device_name() if DEVICE == "cuda" else ""
BF16, F32 = torch.bfloat16, torch.float32
ENOUGH = 24 * 1024  # bytes in flight on a multiprocessor: its share of 3 TB/s for a microsecond, over 132 of them
SECONDS = 0.05  # of device time, on each candidate
CLASSES = (("wide", 4096, 3072), ("narrow", 512, 384))  # of the samplers: nodes, points
MEASURED = ("registers", "shared_bytes", "spill_bytes", "occupancy", "tensor_core")
SHOWN = ("ms_p50", "registers", "spill_bytes", "occupancy", "in_flight", "error", "problem")
Changes = dict[str, Any]


@dataclass
class SweepRow:
    """One candidate of one case: its time in ms, its error, and what it takes of a multiprocessor."""

    kernel: str
    size_class: str
    shape: str
    candidate: str
    target: str
    ms_p50: float | None = None
    error: float | None = None
    registers: int | None = None
    shared_bytes: int | None = None
    spill_bytes: int | None = None
    occupancy: float | None = None
    tensor_core: str = ""
    resident: int | None = None
    in_flight: int | None = None  # bytes asked for ahead of their use
    problem: str = ""
    device: str = ""
    torch: str = torch.__version__
    triton: str = triton.__version__

    @property
    def key(self) -> tuple[str, ...]:
        """What a row is a measurement of."""
        return self.kernel, self.size_class, self.candidate


class Case(NamedTuple):
    """One size class of one kernel."""

    name: str  # kernel and size class
    shape: str
    module: ModuleType
    table: str  # name of the module's table of configurations
    present: Config
    spec: KernelSpec  # the usual dtypes, for the ahead-of-time compile
    candidates: list[Changes]
    run: partial  # the launcher
    kind: str = "half"  # of multiplication


def grid(**choices: tuple) -> list[Changes]:
    """Every combination."""
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def only(table: Any, config: Config) -> Any:
    """A table of the same form whose every choice is `config`."""
    if isinstance(table, Config):
        return config
    if isinstance(table, Mapping):
        return {key: only(part, config) for key, part in table.items()}
    return (config,) if isinstance(table[0], Config) else ((gemm_configs.ANY, config),)


def runner(case: Case, config: Config, launch: Callable[[], Any]) -> Callable[[], Any]:
    """A launch of the case with one configuration in the table's place."""
    values = [
        (case.module, case.table, only(getattr(case.module, case.table), config)),
        (gemm_configs, "fp32_precision", lambda: case.kind),
    ]

    def run() -> Any:
        before = [(module, name, getattr(module, name)) for module, name, _ in values]
        try:
            for attribute in values:
                setattr(*attribute)
            return launch()
        finally:
            for attribute in before:
                setattr(*attribute)

    return run


def sampler_cases() -> list[Case]:
    """The samplers' wide and narrow tiles, and foreach over layers of the narrow shape."""
    tiles = [
        {"SUB": sub, "LANES": 32 * warps, "num_warps": warps, "max_registers": bound}
        for sub, least in ((1, 40), (2, 56), (4, 72), (8, 128))
        for warps in (2, 4, 8)
        for bound in (None, least)
    ]
    lines = grid(SUB=(1, 2, 4, 8), max_registers=(None, 72, 128, 168))
    cases = []
    for i, (size_class, m, k) in enumerate((("wide", 40, 30), ("narrow", 12, 9)) if DRY else CLASSES):
        nodes, grad = torch.randn(m, m, device=DEVICE), torch.randn(k, k, device=DEVICE, dtype=BF16)
        out, in_ = taps_for(k, m, device=DEVICE), taps_for(k, m, weighted=True, device=DEVICE)
        along, layers = (*out[:2], *in_[:2]), 2 if DRY else 32
        adjoint, gradient = discretize_adjoint.discretize_adjoint, discretize_tap_gradient.discretize_tap_gradient
        launches = [
            (discretize, discretize.CONFIGS[4], tiles, partial(discretize.discretize, nodes, *along, BF16)),
            (discretize_adjoint, discretize_adjoint.CONFIGS[2][4], tiles, partial(adjoint, grad, *along, m, m, F32)),
            (
                discretize_tap_gradient, discretize_tap_gradient.CONFIGS[4], lines,
                partial(gradient, nodes, grad, *along, True, True),
            ),
        ]  # fmt: skip
        if size_class == "narrow":
            every = partial(foreach.discretize_layers, [nodes] * layers, [(out, in_)] * layers, BF16)
            launches.append((foreach, (None, foreach.CONFIGS[4]), tiles, every))
        for module, configs, candidates, run in launches:
            name, shape = f"{module.__name__.rpartition('.')[2]} {size_class}", f"{m} nodes at {k}"
            more = f", {layers} layers" if module is foreach else ""
            cases.append(Case(name, shape + more, module, "CONFIGS", configs[i], module.KERNELS[0], candidates, run))
    return cases


def fused_cases() -> list[Case]:
    """The fused kernels: every kind of multiplication and class of rows in their tables."""
    tiles = grid(DEPTH=(16, 32, 64), num_stages=(2, 3, 4), num_warps=(4, 8), max_registers=(None, 128))
    tiles += grid(programs=(1, 4))
    squares = grid(SIDE=(32, 64), ROW_DEPTH=(16, 32), num_warps=(4, 8))
    tables = [(linear, "FORWARD", "linear"), (linear_backward, "BACKWARD", "linear_backward")]
    tables += [(conv, "FORWARD", "conv"), (conv_node_gradient, "NODE_GRADIENT", "conv_node_gradient")]
    cases = []
    for module, table, name in tables:
        m, k = ((20, 15) if DRY else (256, 192)) if name.startswith("conv") else (80, 60) if DRY else (2048, 1536)
        offsets, image = ((3, 3), (2, 2)) if name.startswith("conv") else ((), ())
        out, in_ = taps_for(k, m, device=DEVICE), taps_for(k, m, weighted=True, device=DEVICE)
        nodes, along = torch.randn(m, m, *offsets, device=DEVICE), (*out[:2], *in_[:2])
        for kind, classes in getattr(module, table).items():
            variant, dtype = ("bf16-fp32", BF16) if kind == "half" else (kind, F32)
            spec = next(s for s in module.KERNELS if (s.name, s.variant) == (name, variant))
            for most, present in classes:
                rows = 128 if most == gemm_configs.ANY else most
                batch, window = rows // 4 if name.startswith("conv") else rows, ((1, 1), (1, 1), (1, 1))
                x, dy = (torch.randn(batch, k, *image, device=DEVICE, dtype=dtype) for _ in "xy")
                run = {
                    "linear": partial(linear.linear, x, nodes, None, *along),
                    "linear_backward": partial(linear_backward.linear_backward, dy, x, nodes, *along, True, True, True),
                    "conv": partial(conv.conv, x, nodes, None, *along, *window),
                    "conv_node_gradient": partial(
                        conv_node_gradient.conv_node_gradient, dy, x, nodes, *along, *window, True, True
                    ),
                }[name]
                shape = f"{m} nodes at {k}" + (" 3x3" if offsets else "") + f", {rows} rows"
                candidates, label = squares if table == "NODE_GRADIENT" else tiles, f"{name} {kind} {present.name}"
                cases.append(Case(label, shape, module, table, present, spec, candidates, run, kind))
    return cases


def ahead(config: Config, module: ModuleType) -> int:
    """Bytes a program asks for ahead of their use."""
    c = config.constants
    if "SUB" in c:
        return c["SUB"] * c["LANES"] * (4 if module in (discretize, foreach) else 2)
    if "DEPTH" in c:
        return 4 * gemm_tile.NODES.value * c["DEPTH"] * (config.num_stages - 1)
    return 2 * 2 * c["SIDE"] * c["ROW_DEPTH"]


def resources(case: Case, config: Config, target: str) -> dict[str, Any]:
    """What a candidate takes, or why it does not compile."""
    constants = {**case.spec.configs[0].constants, **config.constants}
    try:
        used = aot.inspect(case.spec, config._replace(constants=constants), target)
    except Exception as error:
        print(f"{case.name} {config.name}: does not compile, {described(error)}")
        return {"problem": described(error)}
    programs = int(used.occupancy * 64 / config.num_warps)
    measured = {key: getattr(used, key) for key in MEASURED}
    return measured | {"resident": programs, "in_flight": programs * ahead(config, case.module)}


def candidates(case: Case, few: int | None, target: str) -> Iterator[tuple[SweepRow, Config]]:
    """The present choice, and each candidate that compiles and spills nothing."""
    for changes in [{}, *case.candidates[:few]]:
        name = " ".join(f"{key}={value}" for key, value in changes.items()) or "present"
        config = case.present.on(target)._replace(name=name, instead={"candidate": changes}).on("candidate")
        kernel, _, size_class = case.name.partition(" ")
        used: dict[str, Any] = {} if DRY else resources(case, config, target)
        row = SweepRow(kernel, size_class, case.shape, name, target, device=NAME, **used)
        if name == "present" or not (row.problem or row.spill_bytes):
            yield row, config._replace(resident=row.resident or config.resident)


def measure(
    case: Case, few: int | None, target: str, seconds: float | None, known: Container[tuple[str, ...]] = ()
) -> Iterator[SweepRow]:
    """A row of each candidate not yet known, and of the present choice, first. `seconds` of device time each.

    With None, nothing is run.

    Raises:
        Lost: behind the row of a candidate that ended this process's use of the device.
    """
    launches = rotated(case.run).calls if seconds is not None else []
    truth: list[Tensor] = []
    for row, config in candidates(case, few, target):
        if row.candidate != "present" and row.key in known:
            continue
        if seconds is not None:
            try:
                runs = [runner(case, config, launch) for launch in launches]
                values = results(runs[0]())
                truth = truth or values
                row.error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(values, truth))
                row.ms_p50 = quantiles(timing(Rotation(runs), DEVICE, seconds).seconds)[0]
            except Exception as error:
                row.problem = described(error)
        yield row
        check_device(DEVICE if seconds is not None else "cpu")


def results(made: Any) -> list[Tensor]:
    """What a launch made, in float32."""
    return [t.float() for t in ([made] if isinstance(made, Tensor) else made) if t.numel()]


def merit(row: SweepRow) -> tuple:
    """Order of candidates, best first: by time, or, where none was taken, by what the machine code promises."""
    if row.problem:
        return (2,)
    if row.ms_p50 is not None:
        return (0, row.ms_p50)
    assert row.spill_bytes is not None and row.in_flight is not None and row.occupancy is not None
    return (1, row.spill_bytes > 0, row.tensor_core == "-", -min(row.in_flight, ENOUGH), -row.occupancy)


def report(case: Case, found: list[SweepRow]) -> None:
    """Print the best candidates beside the present choice."""
    ranked = sorted(found, key=merit)
    present = next(row for row in found if row.candidate == "present")
    place = f"present choice is number {ranked.index(present) + 1} of {len(found)}"
    print(f"{case.name}, {case.shape}: {place}", flush=True)
    for row in [present, *ranked[:3]]:
        shown = {name: getattr(row, name) for name in SHOWN}
        numbers = (f"{name} {value}" for name, value in shown.items() if value not in (None, ""))
        print("    candidate", row.candidate, *numbers, flush=True)


def main() -> int:
    """Run the cases named on the command line; a row on disk as soon as there is one. 1: the device was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only cases whose kernel and size class hold this text")
    parser.add_argument("--resources", action="store_true", help="compile only, for --target")
    parser.add_argument("--target", choices=list(aot.TARGETS), help="default: the GPU's, or sm_90")
    parser.add_argument("--few", type=int, help="only so many candidates of each case")
    parser.add_argument("--out", type=Path, help="folder of sweep.csv; candidates it has are not run again")
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds after which no candidate is begun")
    parser.add_argument("--warm", default="", metavar="N/OF", help="a share of the cases, once; nothing written")
    options = parser.parse_args()
    ends = time.monotonic() + options.deadline
    if DEVICE == "cpu" and not (DRY or options.resources):
        raise SystemExit("no GPU here; --resources ranks the candidates without one")
    target = options.target or target_of(torch.device(DEVICE))
    seconds = None if options.resources else 0.0 if options.warm else SECONDS
    part, of = map(int, options.warm.split("/")) if options.warm else (0, 1)
    path = options.out / "sweep.csv" if options.out and not options.warm else None
    known = {row.key for row in read_csv(path, SweepRow)} if path and path.exists() else set()
    cases = [case for case in sampler_cases() + fused_cases() if options.k in case.name]
    try:
        for case in cases[part::of]:
            found: list[SweepRow] = []
            for row in measure(case, options.few, target, seconds, known):
                found.append(row)
                if path and row.key not in known:
                    append_csv([row], path, SweepRow)
                if time.monotonic() >= ends:
                    break
            report(case, found)
            if time.monotonic() >= ends:
                break
    except Lost as error:
        print(f"the device is lost to this process: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
