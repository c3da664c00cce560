"""Ahead-of-time harness: compiles every kernel and configuration for each target, with no GPU, and reads what it costs.

    python -m inn_kernels.gpu.compile --csv bench/results/resources.csv     one row a kernel, configuration, target
    python -m inn_kernels.gpu.compile --check                               exit code 1 if a rule below is broken
    python -m inn_kernels.gpu.compile --summary bench/results/resources.csv     the table of docs/gpu.md, from that file

Every module of `inn_kernels.gpu` with a list `KERNELS` of `launch.KernelSpec` takes part; `--module` picks some.
Columns: registers a thread, shared (LDS) bytes a block, spill_bytes (stack and local memory a thread), occupancy
(resident warps over the most a multiprocessor holds), tensor_core (the matrix instructions found).

Rules: on sm_90 no stack, no local memory and no spills, and as many programs a multiprocessor as the configuration's
`resident` says; a spec with `tensor_cores` has matrix instructions on every target; a spec with `barrier_free_loops`
has no barrier within any loop on NVIDIA targets. A layout conversion inside a loop goes through shared memory and is
seen as that barrier.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from inn_kernels import gpu
from inn_kernels.gpu.launch import Config
from inn_kernels.gpu.specs import KernelSpec

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_SHARED_PER_SM = {"sm_80": 164 * 1024, "sm_90": 228 * 1024, "sm_100": 228 * 1024}
_MATRIX = re.compile(r"\b(HGMMA|QGMMA|IGMMA|HMMA|QMMA|UTC\w*MMA|v_mfma\w*)\b")
_BARRIER = re.compile(r"\bBAR\b")
COLUMNS = ("kernel", "config", "target", "registers", "shared_bytes", "spill_bytes", "occupancy", "tensor_core")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses."""

    kernel: str
    config: str
    target: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    occupancy: float
    tensor_core: str  # matrix instructions, "-" for none
    loop_barriers: int  # barriers inside loops
    complaints: tuple[str, ...]  # rules broken

    def row(self) -> list[object]:
        """The CSV row."""
        return [getattr(self, column) for column in COLUMNS]


def registry(modules: Sequence[str] = ()) -> list[KernelSpec]:
    """Every kernel of the package, in the order of module names; `modules` picks some."""
    specs: list[KernelSpec] = []
    for info in sorted(pkgutil.iter_modules(gpu.__path__), key=lambda info: info.name):
        if info.name != "compile" and (not modules or info.name in modules):
            specs += getattr(importlib.import_module(f"inn_kernels.gpu.{info.name}"), "KERNELS", [])
    return specs


def compile_one(spec: KernelSpec, config: Config, target: str) -> triton.compiler.CompiledKernel:
    """Compile one configuration of a kernel for one target."""
    order, config = spec.kernel.arg_names, config.on(target)
    types = {name: "constexpr" if name in config.constants else spec.signature[name] for name in order}
    unknown = (set(spec.signature) | set(config.constants)) - set(order)
    if unknown:
        raise ValueError(f"{spec.name} has no arguments {sorted(unknown)}")
    attributes = {(order.index(name),): [["tt.divisibility", 16]] for name in spec.divisible}
    source = ASTSource(spec.kernel, types, dict(config.constants), attributes)
    options = {key: value for key, value in config.options.items() if key not in config.constants}
    if target == "gfx942":
        options.pop("maxnreg", None)
    return triton.compile(source, target=TARGETS[target], options=options)


def inspect(spec: KernelSpec, config: Config, target: str) -> Resources:
    """Compile one configuration and read its resources from the machine code."""
    config = config.on(target)
    compiled = compile_one(spec, config, target)
    read = _read_amd if target == "gfx942" else _read_nvidia
    registers, shared, spills, occupancy, code = read(compiled, target, config.num_warps)
    matrix = "+".join(sorted(set(_MATRIX.findall(code)))) or "-"
    barriers = _loop_barriers(code)
    complaints = []
    if target == "sm_90" and spills:
        complaints.append(f"{spills} bytes of stack or local memory")
    if target == "sm_90" and occupancy * 64 < config.resident * config.num_warps:
        complaints.append(f"fewer than the {config.resident} programs a multiprocessor that launchers count on")
    if spec.tensor_cores and matrix == "-":
        complaints.append("no matrix instructions")
    if spec.barrier_free_loops and barriers:
        complaints.append(f"{barriers} barriers inside loops")
    return Resources(
        spec.name,
        label(spec, config),
        target,
        registers,
        shared,
        spills,
        round(occupancy, 3),
        matrix,
        barriers,
        tuple(complaints),
    )


def _read_nvidia(compiled: triton.compiler.CompiledKernel, target: str, warps: int) -> tuple[int, int, int, float, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    shared = compiled.metadata.shared
    # Registers come in units of 8 a thread; each block also takes 1 KiB of shared memory for the system.
    by_registers = 65536 // (-(-used["REG"] // 8) * 8 * 32) // warps
    blocks = min(by_registers, 64 // warps, 32, _SHARED_PER_SM[target] // (shared + 1024))
    return used["REG"], shared, max(used["STACK"], used["LOCAL"]), blocks * warps / 64, code


def _read_amd(compiled: triton.compiler.CompiledKernel, target: str, warps: int) -> tuple[int, int, int, float, str]:
    code = compiled.asm["amdgcn"]

    def metadata(key: str) -> int:
        return int(re.findall(rf"\.{key}:\s+(\d+)", code)[0])

    registers = metadata("vgpr_count")  # vector and accumulation registers share one file
    shared = max(compiled.metadata.shared, metadata("group_segment_fixed_size"))
    # 512 registers a lane, 8 waves a SIMD at most, 4 SIMDs and 64 KiB of LDS a compute unit.
    waves = min(8, 512 // max(8, -(-registers // 8) * 8))
    blocks = min(4 * waves // warps, 65536 // shared if shared else 32)
    return registers, shared, metadata("private_segment_fixed_size"), blocks * warps / 32, code


def _loop_barriers(sass: str) -> int:
    """Barriers between a label and a later branch back to it."""
    labels: dict[str, int] = {}
    barriers: list[int] = []
    inside: set[int] = set()
    for at, line in enumerate(sass.splitlines()):
        label = re.match(r"\s*(\.L_\w+):", line)
        if label:
            labels[label.group(1)] = at
        if _BARRIER.search(line):
            barriers.append(at)
        branch = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
        if branch and branch.group(1) in labels:
            inside.update(at for at in barriers if at > labels[branch.group(1)])
    return len(inside)


def _tool(name: str, *arguments: str) -> str:
    path = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", name)
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _job(modules: Sequence[str], i_spec: int, i_config: int, target: str) -> Resources:
    spec = registry(modules)[i_spec]
    config = spec.configs[i_config]
    try:
        return inspect(spec, config, target)
    except Exception as error:
        note = "\n".join(getattr(error, "__notes__", []))
        raise RuntimeError(f"{spec.name} {spec.variant}/{config.name} on {target}: {error}\n{note}") from error


def compile_all(
    modules: Sequence[str] = (), targets: Sequence[str] = tuple(TARGETS), jobs: int = 2, skip: str | None = None
) -> list[Resources]:
    """Resources of every kernel, configuration and target, compiled in `jobs` processes.

    Without the configurations whose label holds the text `skip`.
    """
    work = [
        (modules, i_spec, i_config, target)
        for i_spec, spec in enumerate(registry(modules))
        for i_config, config in enumerate(spec.configs)
        for target in targets
        if target in spec.targets and (skip is None or skip not in label(spec, config))
    ]
    if jobs == 1:
        return [_job(*item) for item in work]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(_job, *zip(*work), chunksize=4)) if work else []


def write_csv(path: str, resources: Sequence[Resources]) -> None:
    """Write the table, one row a kernel, configuration and target."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *(r.row() for r in resources)])


def label(spec: KernelSpec, config: Config) -> str:
    """A configuration of a spec, as the column `config` names it."""
    return f"{spec.variant}/{config.name}" if spec.variant else config.name


def summary(path: str) -> str:
    """The CSV as a short Markdown table: of each kernel and target, what its configurations take."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| kernel | " + " | ".join(TARGETS) + " |", "|---" * (1 + len(TARGETS)) + "|"]
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        cells = []
        for target in TARGETS:
            found = [row for row in rows if (row["kernel"], row["target"]) == (kernel, target)]
            registers = sorted(int(row["registers"]) for row in found)
            spilled = [int(row["spill_bytes"]) for row in found if row["spill_bytes"] != "0"]
            spills = f", {len(spilled)} of {len(found)} spill up to {max(spilled)} B" if spilled else ""
            cells.append("-".join(str(n) for n in dict.fromkeys((registers[0], registers[-1]))) + spills)
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m inn_kernels.gpu.compile", description=__doc__.split("\n")[0])
    parser.add_argument("--csv", help="write the table here")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a rule is broken")
    parser.add_argument("--summary", help="print this table in Markdown, a line a kernel, and compile nothing")
    parser.add_argument("--module", action="append", default=[], help="only this module (repeatable)")
    parser.add_argument("--target", action="append", default=[], choices=list(TARGETS), help="only this target")
    parser.add_argument("--skip", help="not the configurations whose label holds this text")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="compiler processes")
    args = parser.parse_args(arguments)
    if args.summary:
        print(summary(args.summary))
        return 0
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    resources = compile_all(args.module, args.target or tuple(TARGETS), args.jobs, args.skip)
    print(("{:30} {:26} " + "{:>12} " * 6).format(*COLUMNS))
    for r in resources:
        print(("{:30} {:26} " + "{:>12} " * 6).format(*r.row()), *r.complaints)
    if args.csv:
        write_csv(args.csv, resources)
    return int(args.check and any(r.complaints for r in resources))


if __name__ == "__main__":
    sys.exit(main())
