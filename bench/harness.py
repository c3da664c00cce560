"""Paired timing, rows and records.

Providers of one case run in turn, round after round, so that a drift of the machine's speed hits all alike; times are
medians over rounds, ratios medians of the ratios within a round.
"""

from __future__ import annotations

import csv
import gc
import platform
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
Runs = dict[str, Callable[[], object]]
Times = dict[str, list[float]]
R = TypeVar("R")


@dataclass
class Row:
    """One provider in one mode on one shape. Times in ms, memory in MiB, error relative to float64."""

    op: str
    provider: str
    mode: str
    shape: str
    dtype: str
    ms_p50: float
    ms_p20: float
    ms_p80: float
    ratio_to_dense: float | None = None
    bytes: int | None = None
    flops: int | None = None
    launches: int | None = None
    bandwidth_share: float | None = None
    peak_mib: float | None = None
    error: float | None = None
    device: str = ""
    torch: str = ""
    triton: str = ""
    commit: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What a row is a measurement of."""
        return self.op, self.provider, self.mode, self.shape, self.dtype


@dataclass
class HostRow:
    """What one call costs the host, least and median of the rounds in microseconds of the thread's CPU time."""

    group: str
    call: str
    us: float
    us_p50: float
    launches: int  # of our kernels
    operators: int  # that PyTorch dispatches, views and allocations too; not what is within one of ours
    dense: str = ""  # the call it is compared with
    ratio: float | None = None
    device: str = ""
    torch: str = ""
    triton: str = ""
    commit: str = ""


def paired_times(providers: Runs, seconds: float, least: int = 11, warm: int = 2) -> Times:
    """Seconds of each provider in each round; rounds go on until `seconds` are spent, at least `least` of them."""
    for run in providers.values():  # warm up: caches, allocator, lazily created primitives
        for _ in range(warm):
            run()
    times: Times = {name: [] for name in providers}
    names = list(providers)
    order = random.Random(0)
    gc.disable()
    try:
        begin = time.perf_counter()
        while min(map(len, times.values())) < least or time.perf_counter() - begin < seconds:
            order.shuffle(names)  # nobody always runs after the same neighbour, in its caches
            for name in names:
                start = time.perf_counter()
                providers[name]()
                times[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return times


def cpu_times(providers: Runs, base: str, slow: Sequence[str], seconds: float) -> tuple[Times, Times]:
    """Times of each provider, and those of the base in the same rounds.

    The slow ones take far longer than the others and turn the memory of the allocator over: they get rounds of their
    own with the base, few of them, so that the others see the memory they would see without.
    """
    apart = {name: run for name, run in providers.items() if name in slow}
    near = {name: run for name, run in providers.items() if name not in slow}
    times = paired_times(near, seconds, warm=1)
    others = paired_times({base: providers[base], **apart}, seconds / 4, least=3, warm=0) if apart else {}
    bases = {name: (others if name in apart else times)[base] for name in providers}
    return {name: others[name] if name in apart else times[name] for name in providers}, bases


def median_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of times / base."""
    return statistics.median(t / b for t, b in zip(times, base))


def quantiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile in milliseconds."""
    ordered = sorted(times)
    pick = [ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.8)]
    return 1e3 * statistics.median(ordered), 1e3 * pick[0], 1e3 * pick[1]


def device_name() -> str:
    """The processor's name and the number of threads."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def environment(device: str = "cpu") -> dict[str, str]:
    """What every row says of where it was measured."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    drawn = ("bench/results", "README.md", "docs/bench.md", "docs/scaling.md", "docs/figures")
    dirty = any(not line[3:].startswith(drawn) for line in _git("status", "--porcelain", "-uno").splitlines())
    return {
        "device": device_name() if device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": _git("rev-parse", "--short", "HEAD").strip() + ("+changes" if dirty else ""),
    }


def _git(*arguments: str) -> str:
    """What git says of the repository; nothing where there is no git, or no repository."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout


def read_csv(path: Path, kind: type[R] = Row) -> list[R]:  # type: ignore[assignment]
    """The rows of one CSV: `Row`s, or of another such dataclass."""
    with path.open(newline="") as file:
        return [_parsed(record, kind) for record in csv.DictReader(file)]


def _parsed(record: dict[str, str], kind: type[R]) -> R:
    values: dict[str, object] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        text, of = record[field.name], str(field.type)
        number = float if "float" in of else int if "int" in of else str
        values[field.name] = None if text == "" and "None" in of else number(text)
    return kind(**values)


def write_csv(rows: Sequence[Any], path: Path, kind: type = Row) -> None:
    """One tidy CSV, a row a provider, mode and shape."""
    path.unlink(missing_ok=True)
    append_csv(rows, path, kind)


def append_csv(rows: Sequence[Any], path: Path, kind: type = Row) -> None:
    """Rows after those the file has, if it is there. They are on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(kind)], lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()})


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Old rows, those measured anew replaced in place, the rest of the new ones at the end.

    Raises:
        ValueError: the rows come from different devices or versions, whose times do not belong in one table.
    """
    for name in ("device", "torch", "triton"):
        kinds = {getattr(row, name) for row in (*old, *new)}
        if len(kinds) > 1:
            raise ValueError(f"rows of one file must share their {name}, got {sorted(kinds)}; write another --csv")
    fresh = {row.key: row for row in new}
    kept = [fresh.pop(row.key, row) for row in old]
    return [*kept, *fresh.values()]
