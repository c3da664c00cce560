"""Sweep of launch configurations, which the tables in inn_kernels/gpu are made from: python -m bench.sweep [-k TEXT].

    python -m bench.sweep                 on a GPU: time every candidate, write bench/results/sweep.csv
    python -m bench.sweep --resources     with no GPU: rank the candidates by what the ahead-of-time compile says
    TRITON_INTERPRET=1 python -m bench.sweep      a dry run of every candidate on tiny shapes in the interpreter

A case is one size class of one kernel: its shape, the table's present choice, and candidates as changes to that. Times
are the device's medians over rounds in random order with a cold second-level cache; the error is the largest difference
from the present choice's result. The tables stay the one source: a better candidate is put there by hand.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bench.gpu import device_times
from bench.harness import RESULTS
from inn_kernels.gpu import compile as aot
from inn_kernels.gpu import (
    conv,
    discretize,
    discretize_adjoint,
    discretize_tap_gradient,
    foreach,
    gemm_configs,
    gemm_tile,
    linear,
)
from inn_kernels.gpu.launch import INTERPRETED, Config, target_of
from inn_kernels.gpu.specs import KernelSpec
from inn_kernels.taps import taps_for

DRY = INTERPRETED
DEVICE = "cuda" if torch.cuda.is_available() and not DRY else "cpu"
BF16, F32 = torch.bfloat16, torch.float32
ENOUGH = 24 * 1024  # bytes in flight on a multiprocessor: its share of 3 TB/s for a microsecond, over 132 of them
SECONDS = 2.0  # of device time, on each case
CLASSES = (("wide", 4096, 3072), ("narrow", 512, 384))  # of the samplers: nodes, points
MEASURED = ("registers", "shared_bytes", "spill_bytes", "occupancy", "tensor_core")
SHOWN = ("registers", "spill_bytes", "occupancy", "in_flight", "error")
Changes = dict[str, Any]


class Case(NamedTuple):
    """One size class of one kernel."""

    name: str  # kernel and size class
    shape: str
    module: ModuleType
    table: str  # name of the module's table of configurations
    present: Config
    spec: KernelSpec  # the usual dtypes, for the ahead-of-time compile
    candidates: list[Changes]
    run: Callable[[], Any]  # the launcher
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


def runner(case: Case, config: Config) -> Callable[[], Any]:
    """The case's launch with one configuration in the table's place."""
    values = [
        (case.module, case.table, only(getattr(case.module, case.table), config)),
        (gemm_configs, "fp32_precision", lambda: case.kind),
    ]

    def run() -> Any:
        before = [(module, name, getattr(module, name)) for module, name, _ in values]
        try:
            for attribute in values:
                setattr(*attribute)
            return case.run()
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
    tables = [(linear, "FORWARD", "linear"), (linear, "BACKWARD", "linear_backward")]
    tables += [(conv, "FORWARD", "conv"), (conv, "NODE_GRADIENT", "conv_node_gradient")]
    cases = []
    for module, table, name in tables:
        m, k = ((20, 15) if DRY else (256, 192)) if module is conv else (80, 60) if DRY else (2048, 1536)
        offsets, image = ((3, 3), (2, 2)) if module is conv else ((), ())
        out, in_ = taps_for(k, m, device=DEVICE), taps_for(k, m, weighted=True, device=DEVICE)
        nodes, along = torch.randn(m, m, *offsets, device=DEVICE), (*out[:2], *in_[:2])
        for kind, classes in getattr(module, table).items():
            variant, dtype = ("bf16-fp32", BF16) if kind == "half" else (kind, F32)
            spec = next(s for s in module.KERNELS if (s.name, s.variant) == (name, variant))
            for most, present in classes:
                rows = 128 if most == gemm_configs.ANY else most
                batch, window = rows // 4 if module is conv else rows, ((1, 1), (1, 1), (1, 1))
                x, dy = (torch.randn(batch, k, *image, device=DEVICE, dtype=dtype) for _ in "xy")
                run = {
                    "linear": partial(linear.linear, x, nodes, None, *along),
                    "linear_backward": partial(linear.linear_backward, dy, x, nodes, *along, True, True, True),
                    "conv": partial(conv.conv, x, nodes, None, *along, *window),
                    "conv_node_gradient": partial(conv.conv_node_gradient, dy, x, nodes, *along, *window, True, True),
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


def resources(case: Case, config: Config, target: str) -> dict[str, Any] | None:
    """What a candidate takes; None where it does not compile."""
    constants = {**case.spec.configs[0].constants, **config.constants}
    try:
        used = aot.inspect(case.spec, config._replace(constants=constants), target)
    except Exception as error:
        print(f"{case.name} {config.name}: does not compile, {str(error).splitlines()[0][:80]}")
        return None
    programs = int(used.occupancy * 64 / config.num_warps)
    measured = {key: getattr(used, key) for key in MEASURED}
    return measured | {"resident": programs, "in_flight": programs * ahead(config, case.module)}


def measure(case: Case, few: int | None, target: str) -> list[dict[str, Any]]:
    """A row for the present choice, first, and for each candidate that spills nothing, with times where it can run."""
    rows, runs = [], {}
    for changes in [{}, *case.candidates[:few]]:
        name = " ".join(f"{key}={value}" for key, value in changes.items()) or "present"
        config = case.present.on(target)._replace(name=name, instead={"candidate": changes}).on("candidate")
        kernel, _, size_class = case.name.partition(" ")
        row: dict[str, Any] = {"kernel": kernel, "size_class": size_class, "shape": case.shape}
        row |= {"candidate": name, "target": target}
        used: dict[str, Any] | None = {} if DRY else resources(case, config, target)
        if used is not None and (name == "present" or not used.get("spill_bytes")):
            rows.append(row | used)
            runs[name] = runner(case, config._replace(resident=used.get("resident", config.resident)))
    if DRY or DEVICE == "cuda":
        times = device_times(dict(random.sample(list(runs.items()), len(runs))), SECONDS)
        truth = results(runs["present"]())
        for row in rows:
            values = results(runs[row["candidate"]]())
            row["ms_p50"] = round(1e3 * statistics.median(times[row["candidate"]]), 5)
            row["error"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(values, truth))
    return rows


def results(made: Any) -> list[Tensor]:
    """What a launch made, in float32."""
    return [t.float() for t in ([made] if isinstance(made, Tensor) else made) if t.numel()]


def merit(row: dict[str, Any]) -> tuple:
    """Order of candidates, best first: by time, or, where none was taken, by what the machine code promises."""
    if "ms_p50" in row:
        return (row["ms_p50"],)
    return (row["spill_bytes"] > 0, row["tensor_core"] == "-", -min(row["in_flight"], ENOUGH), -row["occupancy"])


def main() -> None:
    """Run the cases named on the command line and print the best candidates beside the present choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only cases whose kernel and size class hold this text")
    parser.add_argument("--resources", action="store_true", help="compile only, for --target")
    parser.add_argument("--target", choices=list(aot.TARGETS), help="default: the GPU's, or sm_90")
    parser.add_argument("--few", type=int, help="only so many candidates of each case")
    parser.add_argument("--csv", type=Path, default=RESULTS / "sweep.csv", help="where times are written")
    options = parser.parse_args()
    if DEVICE == "cpu" and not (DRY or options.resources):
        raise SystemExit("no GPU here; --resources ranks the candidates without one")
    target = options.target or target_of(torch.device(DEVICE))
    rows = []
    for case in sampler_cases() + fused_cases():
        if options.k not in case.name:
            continue
        found = measure(case, options.few, target)
        present, ranked = found[0], sorted(found, key=merit)
        rows += found
        print(f"{case.name}, {case.shape}: present choice is number {ranked.index(present) + 1} of {len(found)}")
        for row in [present, *ranked[:3]]:
            print("   ", *(f"{key} {value}" for key, value in row.items() if key in ("candidate", "ms_p50", *SHOWN)))
    if DEVICE == "cuda":
        where = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *where], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | where for row in rows)


if __name__ == "__main__":
    main()
