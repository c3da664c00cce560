"""Paired timing, rows and records.

Providers of one case run in turn, round after round, so that a drift of the machine's speed hits all alike; times are
medians over rounds, ratios medians of the ratios within a round.
"""

from __future__ import annotations

import csv
import gc
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"


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


def paired_times(providers: dict[str, Callable[[], object]], seconds: float, least: int = 7) -> dict[str, list[float]]:
    """Seconds of each provider in each round; rounds go on until `seconds` are spent, at least `least` of them."""
    for run in providers.values():  # warm up: caches, allocator, lazily created primitives
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in providers}
    names = list(providers)
    order = random.Random(0)
    gc.collect()
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


def median_ratio(times: list[float], base: list[float]) -> float:
    """Median over rounds of times / base."""
    return statistics.median(t / b for t, b in zip(times, base))


def quantiles(times: list[float]) -> tuple[float, float, float]:
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


def environment() -> dict[str, str]:
    """What every row says of where it was measured."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    git = ["git", "-C", str(README.parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    dirty = any(not line[3:].startswith(("bench/results", "README.md")) for line in changed.splitlines())
    return {
        "device": device_name(),
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": commit + ("+changes" if dirty else ""),
    }


def write_csv(rows: list[Row], path: Path) -> None:
    """One tidy CSV, a row a provider, mode and shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            record = asdict(row)
            writer.writerow(
                {k: f"{v:.4g}" if isinstance(v, float) else "" if v is None else v for k, v in record.items()}
            )
