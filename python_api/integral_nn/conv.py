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
from integral_nn import _arguments as arguments
from integral_nn import _checks as checks
from integral_nn import fused
from integral_nn.axis import Axis
from integral_nn.discretize import sample
from integral_nn.interpolate import interpolate, spread
from integral_nn.layer import Dimension, IntegralLayer, describe, node_count

Extent = Union[int, Sequence[int]]
_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
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
    rule = (quadrature, scale, Basis(a, boundary))
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
        out_partition: [K] increasing points in [0, 1], or K, or None for a discrete dimension.
        in_partition: [L] likewise, the points of one group.
        quadrature, scale, a, boundary: see `discretize`.
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
    rule = (quadrature, scale, Basis(a, boundary))
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
    rule = (quadrature, scale, Basis(a, boundary))
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
    out_taps, in_taps, *spatial = taps
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
        pairs = [_spread_out(value, rank) for value in window[:3]]
        return fused.conv(x.to(compute), nodes, bias, out_taps, in_taps, pairs)
    sampled_bias = None if bias is None else sample(bias, [out_taps], compute, backend)
    convolve = _CONVOLUTIONS[rank]
    if dataflow == "materialize":
        return convolve(x, sample(nodes, taps, compute, backend), sampled_bias, *window)
    channels = -rank - 1
    if in_taps is not None:
        x = spread(x, in_taps, channels, compute, backend)
    y = convolve(x, nodes.to(compute), None, *window)
    if out_taps is not None:
        y = interpolate(y, out_taps, channels, compute, backend)
    return y if sampled_bias is None else y + sampled_bias.reshape([-1] + [1] * rank)


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
        x.shape[-rank:], nodes.shape[2:], *(_spread_out(value, rank) for value in (stride, padding, dilation))
    ):
        rows *= size if p == "same" else max((size + 2 * (0 if p == "valid" else p) - d * (kernel - 1) - 1) // s + 1, 0)
    return rows


def _spread_out(value: Any, rank: int) -> list:
    if isinstance(value, (int, str)):
        return [value] * rank
    return list(value) * (rank if len(value) == 1 else 1)


class _IntegralConv(IntegralLayer):
    rank: int

    def __init__(
        self,
        in_axis: Dimension,
        out_axis: Dimension,
        kernel_size: Extent,
        *,
        stride: Extent = 1,
        padding: str | Extent = 0,
        dilation: Extent = 1,
        groups: int = 1,
        bias: bool = True,
        scale: float | None = None,
        dataflow: str = "auto",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        out_nodes, in_nodes = node_count(out_axis, "out_axis"), node_count(in_axis, "in_axis")
        checks.check_count(groups, "groups")
        checks.check_extent(kernel_size, self.rank, "kernel_size", 1)
        checks.check_window(self.rank, stride, padding, dilation)
        kernel = _spread_out(kernel_size, self.rank)
        depthwise = groups > 1 and groups == in_nodes and in_axis is out_axis
        if groups > 1 and not depthwise and (isinstance(in_axis, Axis) or isinstance(out_axis, Axis)):
            raise ValueError(
                f"groups must be 1 on continuous axes, or the {in_nodes} nodes of one axis that is both input and "
                f"output (depthwise), got {groups}"
            )
        if in_nodes % groups or out_nodes % groups:
            raise ValueError(f"groups must divide {in_nodes} inputs and {out_nodes} outputs, got {groups}")
        shape = [out_nodes, in_nodes // groups, *kernel]
        super().__init__(1 if depthwise else in_axis, out_axis, shape, bias, scale, dataflow, backend, device, dtype)
        self.depthwise = depthwise
        self._groups = groups
        self.stride, self.padding, self.dilation = stride, padding, dilation

    @property
    def groups(self) -> int:
        """Groups at the current size: a depthwise layer has one for each output point."""
        return self.out_axis.size if self.depthwise and self.out_axis is not None else self._groups

    def forward(self, x: Tensor) -> Tensor:
        arguments.check_floating(x, "x")
        arguments.check_device(x, self.nodes, "x")
        compute = arguments.compute_dtype(x)
        window = (self.stride, self.padding, self.dilation, self.groups)
        kept = self.reusable(compute) if self.dataflow in ("auto", "materialize") else None
        if kept is not None:
            weight, bias = kept
            check_channels(x, self.rank, weight.shape[1], weight.shape[0], self.groups)
            return _CONVOLUTIONS[self.rank](x, weight, bias, *window)
        backend = dispatch.select_backend(self.backend, self.nodes.device, self.nodes.dtype)
        return conv(x, self.nodes, self.bias, self.taps(compute), window, self.dataflow, backend)

    def discretize(self) -> nn.Module:
        """The ordinary convolution of the current sizes."""
        weight, bias = self.sampled()
        weight = weight.detach()
        plain = _PLAIN_LAYERS[self.rank](
            weight.shape[1] * self.groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        plain.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias.detach()})
        return plain.train(self.training)

    def extra_repr(self) -> str:
        out_nodes, in_nodes, *kernel = self.nodes.shape
        text = f"in={describe(self.in_axis, in_nodes)}, out={describe(self.out_axis, out_nodes)}"
        text += f", kernel_size={tuple(kernel)}"
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
            value = getattr(self, name)
            text += f", {name}={value}" if value != default else ""
        return text + ("" if self.bias is not None else ", bias=False")


class IntegralConv1d(_IntegralConv):
    """`integral_conv1d` as a layer. See `IntegralConv2d`."""

    rank = 1


class IntegralConv2d(_IntegralConv):
    """`integral_conv2d` as a layer: nodes [M_out, M_in, kh, kw] over two axes.

    Args:
        in_axis: the input's Axis, or an int for a discrete dimension (an image's channels).
        out_axis: the output's Axis, or an int.
        kernel_size, stride, padding, dilation: see `torch.nn.Conv2d`.
        groups: 1; or the nodes of `in_axis` when both axes are the same one: a depthwise layer.
        bias: with a bias [M_out], sampled along the output axis.
        scale: factor of the quadrature; default: unit interior weights at full size.
        dataflow, backend: see `integral_conv2d`.
        device, dtype: of the parameters.

    >>> import torch, integral_nn as inn
    >>> width = inn.Axis(32, size=24)
    >>> inn.IntegralConv2d(3, width, 3, padding=1)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 24, 8, 8])
    """

    rank = 2


class IntegralConv3d(_IntegralConv):
    """`integral_conv3d` as a layer. See `IntegralConv2d`."""

    rank = 3
