"""What a call costs besides time: operators launched, memory, and the machine's limits to measure both against."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from bench.harness import Row, Runs, Times, quantiles


class _Operators(TorchDispatchMode):
    """Counts operators: every one, and those that compute (not views of a tensor, not allocations alone)."""

    def __init__(self) -> None:
        super().__init__()
        self.every = self.computing = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.every += 1
        self.computing += not func.is_view and not func.name().startswith("aten::empty")
        return func(*args, **(kwargs or {}))


def launches(runs: Runs, device: str) -> dict[str, int | None]:
    """Operators that each call runs on a CPU, kernels it launches on a GPU. A compiled graph is not seen through."""
    if device == "cpu":
        return {name: None if "compiled" in name else operators(run).computing for name, run in runs.items()}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:  # starting it takes long: once
        for name, run in runs.items():
            with record_function(name):
                run()
                torch.cuda.synchronize()
    events = profiler.events()
    kernels = [e.time_range.start for e in events if e.device_type == DeviceType.CUDA and e.name not in runs]
    spans = {e.name: e.time_range for e in events if e.name in runs and e.device_type == DeviceType.CPU}
    return {name: sum(spans[name].start <= begin <= spans[name].end for begin in kernels) for name in runs}


def operators(run: Callable[[], object]) -> _Operators:
    """The operators that PyTorch dispatches in one call."""
    with _Operators() as counted:
        run()
    return counted


def peak_mib(runs: Runs, device: str) -> dict[str, float]:
    """MiB that PyTorch's allocator holds at most during each call, beyond what it holds before.

    What libraries keep for themselves (packed weights of a matrix product, say) is not seen. Each call runs once.
    """
    if device != "cpu":
        return {name: _peak_on_gpu(run) for name, run in runs.items()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:  # starting it takes long: once
        for name, run in runs.items():
            with record_function(f"peak of {name}"):
                run()
    events = profiler.profiler.kineto_results.events()
    sizes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    spans = {e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name().startswith("peak of ")}
    peaks = {}
    for name in runs:
        begin, end = spans[f"peak of {name}"]
        held = itertools.accumulate(size for at, size in sizes if begin <= at <= end)
        peaks[name] = max(0, *held, 0) / 2**20
    return peaks


def _peak_on_gpu(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@dataclass(frozen=True)
class Limits:
    """Bytes/s of a large copy within memory and flop/s of the fastest product, in one dtype, measured."""

    bandwidth: float
    peak: float

    def share(self, seconds: float, moved: int, flops: int) -> float:
        """The time these limits allow over the time taken."""
        return max(moved / self.bandwidth, flops / self.peak) / seconds


def measure_limits(
    dtype: torch.dtype, device: str, clock: Callable[[Runs, float], Times], where: dict[str, str], size: int
) -> tuple[Limits, list[Row]]:
    """A copy and a square product of this size and a convolution: the machine's limits in a dtype, and their rows."""
    source = torch.ones(16 * size**2, device=device)
    there = torch.empty_like(source)
    weight, x = torch.randn(2, size, size).to(device, dtype)
    channels = size // 8
    image = torch.randn(32, channels, 14, 14).to(device, dtype)
    filters = torch.randn(channels, channels, 3, 3).to(device, dtype)
    runs: Runs = {
        "copy in place": lambda: there.copy_(source),
        "matrix product": lambda: F.linear(x, weight),
        "convolution": lambda: F.conv2d(image, filters, padding=1),
    }
    shapes = {
        "copy in place": (f"{4 * source.numel() / 2**20:g} MiB", 2 * 4 * source.numel(), 0),
        "matrix product": (f"{size} x {size} x {size}", 3 * dtype.itemsize * size**2, 2 * size**3),
        "convolution": (
            f"{channels} to {channels} 3x3 on 14x14, batch 32",
            dtype.itemsize * (2 * image.numel() + filters.numel()),
            2 * 32 * 196 * filters.numel(),
        ),
    }
    with torch.no_grad():
        times = clock(runs, 1.0)
    best = {name: quantiles(times[name])[1] / 1e3 for name in runs}  # the 20th percentile: a limit, not a habit
    limits = Limits(
        shapes["copy in place"][1] / best["copy in place"],
        max(shapes[name][2] / best[name] for name in ("matrix product", "convolution")),
    )
    name = str(dtype).removeprefix("torch.")
    rows = []
    for provider, (shape, moved, flops) in shapes.items():
        share = limits.share(quantiles(times[provider])[0] / 1e3, moved, flops)
        row = Row("machine", provider, "forward", shape, name, *quantiles(times[provider]), bytes=moved, flops=flops)
        row.bandwidth_share = share
        rows.append(Row(**{**row.__dict__, **where}))
    return limits, rows
