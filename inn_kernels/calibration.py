"""Measuring the cost model's constants of a machine (`cost.Machine`)."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inn_kernels import ops
from inn_kernels.cost import Machine
from inn_kernels.taps import taps_for


class Sizes(NamedTuple):
    """What `calibrate` measures with: large enough for a device's rates, and its matrices for no cache."""

    nodes: int
    points: int
    rows: int  # of a GEMM that reaches the full rate
    few: int  # of one that is still bound by products, not by memory
    image: tuple[int, int, int]  # batch, channels, pixels along a side


SIZES = {"cpu": Sizes(2048, 1536, 1024, 16, (32, 192, 8)), "cuda": Sizes(8192, 6144, 8192, 512, (64, 256, 28))}
Clock = Callable[[Callable[[], object], int, int], float]


def calibrate(device: str = "cpu", sizes: Sizes | None = None, clock: Clock | None = None) -> Machine:
    """Measure the constants of a device in a few seconds: of a CPU in float32, at PyTorch's current number of threads;
    of a GPU in bfloat16 over float32 nodes.

    Args:
        device: "cpu" or "cuda".
        sizes: default SIZES of the device.
        clock: (operation, rounds, calls a round) -> median seconds of a call; default `stopwatch` of the device.
    """
    size, points, many, few, (batch, channels, side) = sizes or SIZES[device]
    seconds = clock or stopwatch(device)
    compute = torch.bfloat16 if device == "cuda" else torch.float32
    make = functools.partial(torch.randn, device=device)
    out_taps = taps_for(points, size, device=torch.device(device))
    in_taps = taps_for(points, size, weighted=True, device=torch.device(device))
    nodes, weight = make(size, size), make(points, points, dtype=compute)
    taps = (out_taps.start, out_taps.weight, in_taps.start, in_taps.weight)
    wide, square = make(many, size, dtype=compute), nodes.to(compute)
    image = make(batch, channels, side, side, dtype=compute)
    filters = make(channels, channels, 3, 3, dtype=compute)

    launch = seconds(lambda: ops.interpolate(nodes[:1], *in_taps[:2], 1, torch.float32), 10, 20)
    sample = seconds(lambda: ops.discretize(nodes, *taps, compute), 15, 1)
    gather = seconds(lambda: ops.discretize_adjoint(weight, *taps, size, size, torch.float32), 15, 1)
    along = seconds(lambda: ops.interpolate(wide, *in_taps[:2], 1, compute), 15, 1)
    one, some, full = (seconds(functools.partial(F.linear, wide[:n], square), 15, 1) for n in (1, few, many))
    convolution = seconds(lambda: F.conv2d(image, filters, padding=1), 15, 1)
    rate = 2 * many * nodes.numel() / full
    read, written = _read_and_write_rates(nodes.nbytes, weight.nbytes, sample, gather)
    measured = Machine(
        sampler_read_bandwidth=read,
        sampler_write_bandwidth=written,
        interpolate_bandwidth=compute.itemsize * many * (size + points) / along,
        gemm_rate=rate,
        rows_half=max(some * rate / (2 * nodes.numel()) - few, 0.0),
        gemm_bandwidth=square.nbytes / one,
        convolution_rate=2 * batch * side**2 * filters.numel() / convolution,
        launch=launch,
    )
    if device != "cuda":
        return measured
    exact = seconds(lambda: F.linear(wide.float(), nodes), 5, 1) - seconds(wide.float, 5, 1)
    few_rows = make(_FEW_FUSED, points, dtype=compute)
    streamed = seconds(lambda: ops.linear(few_rows, nodes, None, *taps), 15, 1)
    rates = _fused_rates(make(min(many, 1024), points, dtype=compute), nodes, taps, seconds)
    narrow = make(batch, max(points * channels // size, 2), side, side, dtype=compute)
    rates |= _fused_convolution_rates(narrow, make(*filters.shape), seconds)
    return replace(measured, fused_bandwidth=nodes.nbytes / streamed, float32_share=full / exact, **rates)


_FEW_FUSED = 16  # rows at which the fused kernels stream nodes


def _fused_rates(x: Tensor, nodes: Tensor, taps: tuple[Tensor, ...], seconds: Clock) -> dict[str, float]:
    """Rates of the linear layer's three products. x: [B, L], as many points on both sides."""
    flops = 2 * x.shape[0] * nodes.numel()
    calls = {
        "fused_rate": lambda: ops.linear(x, nodes, None, *taps),
        "fused_input_rate": lambda: ops.linear_backward(x, x, nodes, *taps, True, False, False),
        "fused_node_rate": lambda: ops.linear_backward(x, x, nodes, *taps, False, True, False),
    }
    return {name: flops / seconds(run, 15, 1) for name, run in calls.items()}


def _fused_convolution_rates(x: Tensor, nodes: Tensor, seconds: Clock) -> dict[str, float]:
    """Rates of the convolution's three products. x: [B, K, H, W]; nodes [M, M, 3, 3]."""
    points, (channels, *_) = x.shape[1], nodes.shape
    out, in_ = (taps_for(points, channels, weighted=weighted, device=x.device) for weighted in (False, True))
    taps, window = (out.start, out.weight, in_.start, in_.weight), ([1, 1], [1, 1], [1, 1])
    flops = 2 * x.shape[0] * x.shape[2] * x.shape[3] * nodes.numel()
    calls = {
        "fused_convolution_rate": lambda: ops.conv(x, nodes, None, *taps, *window),
        "fused_convolution_input_rate": lambda: ops.conv_input_gradient(x, nodes, *taps, [*x.shape[2:]], *window),
        "fused_convolution_node_rate": lambda: ops.conv_node_gradient(x, x, nodes, *taps, *window, True, False),
    }
    return {name: flops / seconds(run, 15, 1) for name, run in calls.items()}


def _read_and_write_rates(nodes: int, weight: int, sample: float, gather: float) -> tuple[float, float]:
    """Bytes a second read and written, from the times of a pass that reads `nodes` and writes `weight` and its reverse.

    Two equations with two unknowns. A clock's noise may ask for a rate without end: it is held to eight times the mean.
    """
    mean = (sample + gather) / (2 * (nodes + weight))  # seconds a byte
    determinant = nodes**2 - weight**2
    read, written = (
        max((nodes * a - weight * b) / determinant, mean / 8) for a, b in ((sample, gather), (gather, sample))
    )
    return 1 / read, 1 / written


def stopwatch(device: str) -> Clock:
    """Median seconds of a call, by events on a GPU; several calls a round where one is too short to be timed."""

    def round_on_gpu(run: Callable[[], object], calls: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end) / calls

    def round_on_cpu(run: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    one_round = round_on_gpu if device == "cuda" else round_on_cpu

    def clock(run: Callable[[], object], rounds: int, calls: int) -> float:
        one_round(run, 3)
        return statistics.median(one_round(run, calls) for _ in range(rounds))

    return clock


def copy_bandwidth(device: str = "cpu", size: int = 2**27) -> float:
    """Bytes a second, read and written, of a copy of `size` float32 values: what samplers are held to."""
    source = torch.zeros(size, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / stopwatch(device)(lambda: target.copy_(source), 15, 1)
