"""Which backend can run, which dataflow is cheapest, and why.

A training or inference step of an integral layer is counted, for each dataflow, in bytes moved, floating-point
operations and launches; a few measured constants of the machine turn the counts into time:

    time = sum over phases of max(flops / gemm_rate, bytes / bandwidth) + launches * launch_time

    materialize   nodes -> W_q (memory-bound), then the vendor GEMM or convolution on W_q
    factored      x' = (x q) S_in, y' = x' nodes^T by the vendor GEMM, y = y' S_out^T; W_q never exists
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inn_kernels import gpu, ops
from inn_kernels.taps import Taps

BACKENDS = ("cpp", "triton", "reference")
DATAFLOWS = ("auto", "materialize", "factored")
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


def _refusal(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)} or None, got {backend!r}")
    if backend == "reference":
        return None
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
    if _refusal("triton", device, dtype) is None:
        return "triton"
    return "cpp" if _refusal("cpp", device, dtype) is None else "reference"


@dataclass(frozen=True)
class Machine:
    """Constants of a machine, measured by a benchmark: bytes/s, flop/s, seconds."""

    bandwidth: float  # plain copy, read + written
    sampler_bandwidth: float  # discretize and its adjoint, read + written
    gemm_rate: float  # a large vendor GEMM
    gemm_bandwidth: float  # weight bytes streamed by a GEMM of few rows
    launch: float  # one operation, dispatch included


CPU = Machine(bandwidth=30e9, sampler_bandwidth=20e9, gemm_rate=300e9, gemm_bandwidth=15e9, launch=10e-6)
GPU = Machine(bandwidth=3.0e12, sampler_bandwidth=2.4e12, gemm_rate=640e12, gemm_bandwidth=2.4e12, launch=4e-6)


@dataclass(frozen=True)
class Shape:
    """Sizes of one integral layer call. A convolution's rows are batch times output positions."""

    rows: int
    out_points: int
    in_points: int
    out_nodes: int
    in_nodes: int
    taps: int = 1  # kernel offsets that ride along
    node_bytes: int = 4
    bytes: int = 4  # an element of the compute dtype
    convolution: bool = False
    training: bool = True


def estimate(shape: Shape, machine: Machine) -> dict[str, float]:
    """Modelled seconds of each dataflow for one step (forward, and backward when training)."""
    weights = shape.out_points * shape.in_points * shape.taps
    nodes = shape.out_nodes * shape.in_nodes * shape.taps
    gemms = 3 if shape.training else 1
    passes = 2 if shape.training else 1

    def gemm(size: int, channels: int) -> float:
        traffic = size * shape.bytes + shape.rows * channels * shape.bytes
        return gemms * (
            max(2 * shape.rows * size / machine.gemm_rate, traffic / machine.gemm_bandwidth) + machine.launch
        )

    sampling = (nodes * shape.node_bytes + weights * shape.bytes) / machine.sampler_bandwidth + machine.launch
    materialize = passes * sampling + gemm(weights, shape.in_points + shape.out_points)

    taps_in = 1 if shape.convolution else shape.taps  # a convolution's offsets do not multiply its channels
    activations = shape.rows * ((shape.in_points + shape.in_nodes) * taps_in + shape.out_points + shape.out_nodes)
    interpolation = activations * shape.bytes / machine.sampler_bandwidth + 2 * machine.launch
    factored = passes * interpolation + gemm(nodes, shape.in_nodes + shape.out_nodes)
    return {"materialize": materialize, "factored": factored}


def choose_dataflow(
    rows: int,
    nodes: Tensor,
    taps: Sequence[Taps | None],
    compute: torch.dtype,
    training: bool,
    convolution: bool = False,
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
    """
    if torch.compiler.is_compiling() or all(along is None for along in taps):
        return "materialize"
    points = [size if along is None else along.points for along, size in zip(taps, nodes.shape)]
    shape = Shape(
        rows=rows,
        out_points=points[0],
        in_points=points[1],
        out_nodes=nodes.shape[0],
        in_nodes=nodes.shape[1],
        taps=nodes[0, 0].numel(),
        node_bytes=nodes.element_size(),
        bytes=compute.itemsize,
        convolution=convolution,
        training=training,
    )
    costs = estimate(shape, GPU if nodes.device.type == "cuda" else CPU)
    return min(costs, key=lambda name: costs[name])
