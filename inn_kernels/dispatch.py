"""Which backend can run, which dataflow is cheapest, and why.

python -m inn_kernels.dispatch explain --rows 16 --points 3072 --nodes 4096     the estimate of each dataflow
python -m inn_kernels.dispatch calibrate                                        measure this machine's constants
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inn_kernels import cost, gpu, ops, transforms
from inn_kernels.cost import Machine, Shape
from inn_kernels.taps import Taps, taps_for

BACKENDS = ("cpp", "triton", "reference")
DATAFLOWS = ("auto", "materialize", "factored", "fused")
_STORAGE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def can_run(backend: str, device: torch.device, dtype: torch.dtype, *, raise_error: bool = False) -> bool:
    """Whether `backend` can run on tensors of this device and dtype; with `raise_error`, raise the reason if not.

    Raises:
        ValueError: unknown backend.
        RuntimeError: with `raise_error`, the backend cannot run here, and why.
    """
    reason = _refusal(backend, device, dtype)
    if reason is not None and raise_error:
        raise RuntimeError(f"backend {backend!r} cannot run here: {reason}")
    return reason is None


def check_backend(backend: object) -> None:
    """Raise ValueError unless `backend` is a known name or None."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)} or None, got {backend!r}")


def _refusal(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    check_backend(backend)
    if backend == "reference":
        return None
    if transforms.transforming():
        return (
            "torch.func transforms, forward-mode differentiation and torch.jit.trace follow PyTorch's own operations; "
            "use backend=None or 'reference'"
        )
    if backend == "triton":
        return gpu.refusal(device, dtype)
    if ops.compiled_missing is not None:
        return ops.compiled_missing
    if device.type != "cpu":
        return f"it runs on CPU tensors, got a tensor on {device}"
    if dtype not in _STORAGE:
        return f"it takes {', '.join(str(d) for d in _STORAGE)}, got {dtype}"
    return None


def select_backend(backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The backend asked for, or the fastest that can run. A backend asked for by name is never replaced."""
    if backend is not None:
        can_run(backend, device, dtype, raise_error=True)
        return backend
    for fast in ("cpp", "triton"):
        if _refusal(fast, device, dtype) is None:
            return fast
    if device.type == "cpu" and ops.compiled_missing is not None and not torch.compiler.is_compiling():
        _say_once(f"inn_kernels runs on plain PyTorch: {ops.compiled_missing}")
    return "reference"


@functools.cache
def _say_once(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def choose_dataflow(
    rows: int,
    nodes: Tensor,
    taps: Sequence[Taps | None],
    compute: torch.dtype,
    training: bool,
    convolution: bool = False,
    fusable: bool = False,
) -> str:
    """The cheapest dataflow of a layer by the cost model of its device.

    While a graph is traced sizes may be symbols: asking for their cost would make constants of them, so the choice is
    `materialize`, the one that is never far off.

    Args:
        rows: rows of the matrix product: batch, times output positions of a convolution.
        nodes: [M_out, M_in, *kernel].
        taps: of the output and the input dimension, None for a discrete one.
        compute: dtype of the product.
        training: count the backward pass too.
        convolution: the kernel offsets are positions of a convolution, not features of a linear layer.
        fusable: the fused kernels can run this layer.
    """
    out_taps, in_taps = taps
    if transforms.tracing() or (out_taps is None and in_taps is None):
        return "materialize"
    out_points = None if out_taps is None else out_taps.start.numel()  # the cheapest questions: a call takes 1 us
    in_points = None if in_taps is None else in_taps.start.numel()
    kind = "cpu" if nodes.is_cpu else nodes.device.type
    dtypes = (nodes.dtype, compute)
    return _cheapest(rows, nodes.shape, out_points, in_points, dtypes, convolution, training, kind, fusable)


@functools.lru_cache(maxsize=4096)
def _cheapest(
    rows: int,
    nodes: Sequence[int],
    out_points: int | None,
    in_points: int | None,
    dtypes: tuple[torch.dtype, torch.dtype],
    convolution: bool,
    training: bool,
    device: str,
    fusable: bool,
) -> str:
    out_nodes, in_nodes, *offsets = nodes
    shape = Shape(
        rows,
        out_nodes if out_points is None else out_points,
        in_nodes if in_points is None else in_points,
        out_nodes,
        in_nodes,
        math.prod(offsets),
        dtypes[0].itemsize,
        dtypes[1].itemsize,
        convolution,
        training,
    )
    costs = cost.estimate(shape, machine(device), fusable)
    return min(costs, key=lambda name: costs[name].seconds)


@functools.cache
def _machines() -> dict[str, Machine]:
    return cost.load_machines()


def machine(device: str) -> Machine:
    """The constants in force for a kind of device ("cpu", "cuda")."""
    return _machines().get(device, cost.GPU)


def explain(shape: Shape, device: str = "cpu") -> str:
    """The estimate of each dataflow and the choice, as a small table."""
    costs = cost.estimate(shape, machine(device), fusable=device == "cuda")
    best = min(costs, key=lambda name: costs[name].seconds)
    lines = [f"{'dataflow':<12} {'MB':>10} {'GFLOP':>10} {'launches':>9} {'model':>12}"]
    for name, work in costs.items():
        mark = "  <- auto" if name == best else ""
        moved, flops = work.bytes / 1e6, work.flops / 1e9
        lines.append(f"{name:<12} {moved:>10.3f} {flops:>10.3f} {work.launches:>9} {1e3 * work.seconds:>9.3f} ms{mark}")
    return "\n".join(lines)


def table(device: str = "cuda", value_bytes: int = 2) -> str:
    """The model's training steps over the dense layer's, float32 nodes under autocast, as a Markdown table."""
    all_rows = (1, 16, 128, 1024, 8192)
    lines = ["| nodes | points | " + " | ".join(f"B = {rows}" for rows in all_rows) + " |", "|---" * 7 + "|"]
    for nodes in (256, 512, 1024, 2048, 4096, 8192):
        for share in (0.5, 0.75, 1.0):
            points, cells = round(share * nodes), []
            for rows in all_rows:
                shape = Shape(rows, points, points, nodes, nodes, value_bytes=value_bytes)
                costs = cost.estimate(shape, cost.GPU if device == "cuda" else cost.CPU, fusable=device == "cuda")
                best = min(costs, key=lambda name: costs[name].seconds)
                base = cost.dense(shape, cost.GPU if device == "cuda" else cost.CPU)
                cells.append(f"{costs[best].seconds / base.seconds:.2f} {best}")
            lines.append(f"| {nodes} | {points} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    x = make(many, points, dtype=compute)
    fused = [seconds(functools.partial(ops.linear, x[:n], nodes, None, *taps), 15, 1) for n in (16, 1024)]
    exact = seconds(lambda: F.linear(wide.float(), nodes), 5, 1) - seconds(wide.float, 5, 1)
    return replace(
        measured,
        fused_bandwidth=nodes.nbytes / fused[0],
        fused_rate=2 * min(many, 1024) * nodes.numel() / fused[1],
        float32_share=full / exact,
    )


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


def main() -> None:
    """Run `explain` or `calibrate` from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("calibrate", help="measure this machine's CPU and GPU and keep their constants")
    commands.add_parser("table", help="the model's GPU training steps over the dense layer's, in Markdown")
    explaining = commands.add_parser("explain", help="print the estimate of each dataflow")
    explaining.add_argument("--rows", type=int, required=True, help="batch, times output positions of a convolution")
    explaining.add_argument("--points", type=int, required=True, help="points on both sides")
    explaining.add_argument("--nodes", type=int, required=True, help="nodes on both sides")
    explaining.add_argument("--offsets", type=int, default=1, help="kernel offsets; more than 1: a convolution")
    explaining.add_argument("--forward", action="store_true", help="inference instead of a training step")
    explaining.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.command == "calibrate":
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            measured = calibrate(device)
            print(f"{device}: {measured}\na copy moves {copy_bandwidth(device) / 1e9:.0f} GB/s, read and written")
            print(cost.save_machine(device, measured))
        return
    if options.command == "table":
        print(table())
        return
    points, nodes, offsets = options.points, options.nodes, options.offsets
    shape = Shape(
        options.rows, points, points, nodes, nodes, offsets, convolution=offsets > 1, training=not options.forward
    )
    print(explain(shape, options.device))


if __name__ == "__main__":
    main()
