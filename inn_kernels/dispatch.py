"""Which backend can run, which dataflow is cheapest, and why.

python -m inn_kernels.dispatch explain --rows 16 --points 3072 --nodes 4096     the estimate of each dataflow
python -m inn_kernels.dispatch calibrate                                        measure this machine's constants
"""

from __future__ import annotations

import argparse
import functools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from inn_kernels import cost, gpu, ops, transforms
from inn_kernels.calibration import calibrate, copy_bandwidth
from inn_kernels.cost import Machine, Shape
from inn_kernels.taps import Taps

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
