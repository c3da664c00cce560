"""Integral convolution layers: `integral_conv1d/2d/3d` over two axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inn_kernels import dispatch
from integral_nn.functional import arguments, checks
from integral_nn.functional.conv import CONVOLUTIONS, Extent, chosen_dataflow, conv, each_dimension
from integral_nn.layers.axis import Axis
from integral_nn.layers.base import Dimension, IntegralLayer, describe, node_count
from integral_nn.layers.rule import Sizes
from integral_nn.layers.sampled import value_of

_PLAIN_LAYERS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


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
        kernel = each_dimension(kernel_size, self.rank)
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
        arguments.check_device(x, self.weight_nodes, "x")
        compute = arguments.compute_dtype(x)
        window = (self.stride, self.padding, self.dilation, self.groups)
        backend = dispatch.select_backend(self.backend, self.weight_nodes.device, self.weight_nodes.dtype)
        taps = self.taps(compute)
        dataflow = chosen_dataflow(x, self.weight_nodes, taps, window, self.dataflow, backend)
        if dataflow == "materialize":
            weight, bias = value_of(self, "weight", compute), value_of(self, "bias", compute)
            return CONVOLUTIONS[self.rank](x, weight, bias, *window)
        return conv(x, self.weight_nodes, self.bias_nodes, taps, window, dataflow, backend)

    @property
    def joins(self) -> bool:
        """Whether the layer may materialize its weight, so that a network does it for all layers together."""
        return self.dataflow in ("auto", "materialize")

    def discretize(self, sizes: Sizes = None) -> nn.Module:
        """The ordinary convolution of the current sizes (or of others, by axis)."""
        checks.check_optional(sizes, Mapping, "sizes")
        weight, bias = self.sampled(sizes=sizes)
        weight = weight.detach()
        groups = weight.shape[0] if self.depthwise else self._groups
        plain = _PLAIN_LAYERS[self.rank](
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            self.stride,
            self.padding,
            self.dilation,
            groups,
            bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        plain.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias.detach()})
        return plain.train(self.training)

    def extra_repr(self) -> str:
        out_nodes, in_nodes, *kernel = self.weight_nodes.shape
        text = f"in={describe(self.in_axis, in_nodes)}, out={describe(self.out_axis, out_nodes)}"
        text += f", kernel_size={tuple(kernel)}"
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
            value = getattr(self, name)
            text += f", {name}={value}" if value != default else ""
        return text + ("" if self.bias_nodes is not None else ", bias=False")


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
