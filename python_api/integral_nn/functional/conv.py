"""The integral convolutions.

    F_O(x_out, s') = integral of F_W(x_out, x_in, s) F_I(x_in, s + s') dx_in          (Eq. 2)     y = W_q * x + b

Kernel offsets s are kept as they are (paper, section 3.2), or sampled too where `spatial_partitions` say so.

    materialize   W_q = S_out nodes S_in^T,   y = W_q * x
    factored      x' = S_in^T x,   y' = nodes * x',   y = S_out y'          (along channels; W_q never exists)
    fused         the same algebra as an implicit GEMM in one launch (1-D and 2-D)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inn_kernels import dispatch
from inn_kernels.quadrature import Quadrature
from inn_kernels.taps import Basis, Partition, Taps
from integral_nn.functional import arguments, checks, fused
from integral_nn.functional.discretize import sample
from integral_nn.functional.interpolate import interpolate, spread

Extent = Union[int, Sequence[int]]
CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_PLAIN_LAYERS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def integral_conv1d(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None = None,
    out_partition: Partition | None = None,
    in_partition: Partition | None = None,
    *,
    quadrature: Quadrature = "trapezoid",
    scale: float = 1.0,
    kernel: str = "cubic",
    a: float = -0.75,
    boundary: str = "clamp",
    stride: Extent = 1,
    padding: str | Extent = 0,
    dilation: Extent = 1,
    groups: int = 1,
    spatial_partitions: Sequence[Partition | None] | None = None,
    dataflow: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Integral convolution over one spatial dimension: x [N, L, W], nodes [M_out, M_in, k]. See `integral_conv2d`."""
    partitions = (out_partition, in_partition, spatial_partitions)
    rule = (quadrature, scale, Basis(a, boundary, kernel))
    window = (stride, padding, dilation, groups)
    return _integral_conv(1, x, nodes, bias, partitions, rule, window, dataflow, backend)


def integral_conv2d(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None = None,
    out_partition: Partition | None = None,
    in_partition: Partition | None = None,
    *,
    quadrature: Quadrature = "trapezoid",
    scale: float = 1.0,
    kernel: str = "cubic",
    a: float = -0.75,
    boundary: str = "clamp",
    stride: Extent = 1,
    padding: str | Extent = 0,
    dilation: Extent = 1,
    groups: int = 1,
    spatial_partitions: Sequence[Partition | None] | None = None,
    dataflow: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Integral convolution: y = W_q * x + b with W_q sampled from continuous weights  (Eq. 2 and 6).

    Args:
        x: [N, L, H, W] or [L, H, W]; with groups, L is points of the input partition times groups.
        nodes: [M_out, M_in, kh, kw]. For a depthwise layer [M_out, 1, kh, kw] with groups = K: only the output axis is
            continuous.
        bias: [M_out] nodes of the bias, sampled along the output axis; or None.
        out_partition: [K] increasing points in [0, 1] ("cells": [K + 1] edges), or K, or None for a discrete dimension.
        in_partition: [L] likewise, the points of one group.
        quadrature, scale, kernel, a, boundary: see `discretize`.
        stride, padding, dilation, groups: see `torch.nn.functional.conv2d`.
        spatial_partitions: a partition or None for each kernel dimension, for kernels continuous in space too.
        dataflow: "materialize", "factored" (groups = 1, discrete kernels), "fused" (GPU, besides), or "auto".
        backend: "cpp", "triton", "reference", or None for the fastest that can run.

    Returns:
        [N, K, H', W'] in x's dtype (autocast's under autocast), differentiable in x, nodes, bias, partitions and a
        tensor quadrature, twice.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, type, device or range; the message names it.
        RuntimeError: the backend asked for cannot run here, and why.

    >>> import torch, integral_nn as inn
    >>> inn.integral_conv2d(torch.ones(1, 6, 8, 8), torch.ones(5, 5, 3, 3), None, 4, 6, padding=1).shape
    torch.Size([1, 4, 8, 8])
    """
    partitions = (out_partition, in_partition, spatial_partitions)
    rule = (quadrature, scale, Basis(a, boundary, kernel))
    window = (stride, padding, dilation, groups)
    return _integral_conv(2, x, nodes, bias, partitions, rule, window, dataflow, backend)


def integral_conv3d(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None = None,
    out_partition: Partition | None = None,
    in_partition: Partition | None = None,
    *,
    quadrature: Quadrature = "trapezoid",
    scale: float = 1.0,
    kernel: str = "cubic",
    a: float = -0.75,
    boundary: str = "clamp",
    stride: Extent = 1,
    padding: str | Extent = 0,
    dilation: Extent = 1,
    groups: int = 1,
    spatial_partitions: Sequence[Partition | None] | None = None,
    dataflow: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Integral convolution over three spatial dimensions: x [N, L, D, H, W], nodes [M_out, M_in, kd, kh, kw].

    See `integral_conv2d`.
    """
    partitions = (out_partition, in_partition, spatial_partitions)
    rule = (quadrature, scale, Basis(a, boundary, kernel))
    window = (stride, padding, dilation, groups)
    return _integral_conv(3, x, nodes, bias, partitions, rule, window, dataflow, backend)


def _integral_conv(
    rank: int,
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None,
    partitions: tuple[Any, Any, Any],  # output, input, spatial
    rule: tuple[Quadrature, float, Basis],  # quadrature, scale, basis
    window: tuple,  # stride, padding, dilation, groups
    dataflow: str,
    backend: str | None,
) -> Tensor:
    arguments.check_floating(x, "x")
    arguments.check_nodes(nodes, (rank + 2,), "[M_out, M_in" + ", k" * rank + "]")
    arguments.check_device(x, nodes, "x")
    arguments.check_bias(bias, nodes)
    arguments.check_dataflow(dataflow)
    checks.check_window(rank, *window[:3])
    wide = arguments.working_dtype(nodes, arguments.compute_dtype(x))
    backend = dispatch.select_backend(backend, nodes.device, nodes.dtype)
    taps = arguments.weight_taps(nodes, *partitions, *rule, wide)
    return conv(x, nodes, bias, taps, window, dataflow, backend)


def conv(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None,
    taps: Sequence[Taps | None],
    window: tuple,
    dataflow: str,
    backend: str,
) -> Tensor:
    """An integral convolution on taps [out, in, *spatial] that were made and checked before.

    `window` is (stride, padding, dilation, groups).
    """
    out_taps, in_taps, *_ = taps
    rank = nodes.dim() - 2
    dataflow = chosen_dataflow(x, nodes, taps, window, dataflow, backend)
    compute = arguments.compute_dtype(x)
    if dataflow == "fused":
        pairs = [each_dimension(value, rank) for value in window[:3]]
        return fused.conv(x.to(compute), nodes, bias, out_taps, in_taps, pairs)
    sampled_bias = None if bias is None else sample(bias, [out_taps], compute, backend)
    convolve = CONVOLUTIONS[rank]
    if dataflow == "materialize":
        return convolve(x, sample(nodes, taps, compute, backend), sampled_bias, *window)
    channels = -rank - 1
    if in_taps is not None:
        x = spread(x, in_taps, channels, compute, backend)
    y = convolve(x, nodes.to(compute), None, *window)
    if out_taps is not None:
        y = interpolate(y, out_taps, channels, compute, backend)
    return y if sampled_bias is None else y + sampled_bias.reshape([-1] + [1] * rank)


def chosen_dataflow(
    x: Tensor, nodes: Tensor, taps: Sequence[Taps | None], window: tuple, dataflow: str, backend: str
) -> str:
    """The dataflow that runs a convolution: the one asked for, or for "auto" the cheapest.

    Raises:
        ValueError: x does not fit the points, or the dataflow cannot run this convolution.
        RuntimeError: "fused" cannot, and why.
    """
    _, _, *spatial = taps
    rank, groups = nodes.dim() - 2, window[3]
    out_points, in_points = (m if t is None else t.points for t, m in zip(taps[:2], nodes.shape))
    check_channels(x, rank, in_points, out_points, groups)
    compute = arguments.compute_dtype(x)
    splits = groups == 1 and all(along is None for along in spatial)
    if dataflow == "factored" and not splits:
        raise ValueError(f"dataflow 'factored' needs groups=1 and no spatial_partitions, got groups={groups}")
    refusal: str | None = "groups or spatial_partitions"
    if splits:
        refusal = _fused_refusal(rank, window) or fused.refusal(nodes, taps[:2], compute, backend)
    if dataflow == "auto":
        dataflow = "materialize"
        if splits:
            rows, training = _output_rows(x, nodes, window), arguments.records_gradient(x, nodes)
            dataflow = dispatch.choose_dataflow(rows, nodes, taps[:2], compute, training, True, refusal is None)
    if dataflow == "fused":
        fused.check(refusal)
    return dataflow


def check_channels(x: Tensor, rank: int, in_points: int, out_points: int, groups: int) -> None:
    """Raise unless x [N, C, *space] or [C, *space] has C = in_points * groups and groups divide the outputs."""
    if isinstance(groups, bool) or not isinstance(groups, (int, torch.SymInt)):
        raise TypeError(f"groups must be an int, got {type(groups).__name__}")
    if groups < 1 or out_points % groups:
        raise ValueError(f"groups must divide the {out_points} output points, got {groups}")
    if x.dim() not in (rank + 1, rank + 2):
        raise ValueError(f"x must have {rank + 2} dimensions [N, C, *space] (or no N), got shape {list(x.shape)}")
    if x.shape[-rank - 1] != in_points * groups:
        each = f" times {groups} groups" if groups > 1 else ""
        raise ValueError(f"x must have {in_points} input points{each} as its channels, got shape {list(x.shape)}")


def _fused_refusal(rank: int, window: tuple) -> str | None:
    if rank == 3:
        return "three spatial dimensions"
    return "padding by name" if isinstance(window[1], str) else None


def _output_rows(x: Tensor, nodes: Tensor, window: tuple) -> int:
    """Batch times output positions, for the cost model."""
    rank = nodes.dim() - 2
    stride, padding, dilation, _ = window
    rows = x.shape[0] if x.dim() == rank + 2 else 1
    for size, kernel, s, p, d in zip(
        x.shape[-rank:], nodes.shape[2:], *(each_dimension(value, rank) for value in (stride, padding, dilation))
    ):
        rows *= size if p == "same" else max((size + 2 * (0 if p == "valid" else p) - d * (kernel - 1) - 1) // s + 1, 0)
    return rows


def each_dimension(value: Any, rank: int) -> list:
    """A stride, a padding or the like as one value a dimension."""
    if isinstance(value, (int, str)):
        return [value] * rank
    return list(value) * (rank if len(value) == 1 else 1)
