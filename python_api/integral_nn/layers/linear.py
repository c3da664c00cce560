"""The fully-connected integral layer: `integral_linear` over two axes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inn_kernels import dispatch
from integral_nn.functional import again, arguments, checks
from integral_nn.functional.linear import check_features, linear
from integral_nn.layers.base import Dimension, IntegralLayer, describe, node_count
from integral_nn.layers.rule import Sizes
from integral_nn.layers.sampled import value_of


class IntegralLinear(IntegralLayer):
    """`integral_linear` as a layer: nodes [M_out, M_in] (or [M_out, M_in, T]) over two axes.

    Args:
        in_axis: the input's Axis, or an int for a discrete dimension.
        out_axis: the output's Axis, or an int for a discrete dimension.
        taps: T features ride along with each input channel (a flatten of H * W positions before this layer).
        bias: with a bias [M_out], sampled along the output axis.
        scale: factor of the quadrature; default: unit interior weights at full size.
        dataflow, backend: see `integral_linear`.
        device, dtype: of the parameters.

    >>> import torch, integral_nn as inn
    >>> width = inn.Axis(32)
    >>> net = torch.nn.Sequential(inn.IntegralLinear(8, width), torch.nn.ReLU(), inn.IntegralLinear(width, 2))
    >>> width.resize(16)
    16
    >>> net(torch.zeros(5, 8)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        in_axis: Dimension,
        out_axis: Dimension,
        *,
        taps: int = 1,
        bias: bool = True,
        scale: float | None = None,
        dataflow: str = "auto",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = [node_count(out_axis, "out_axis"), node_count(in_axis, "in_axis")]
        checks.check_count(taps, "taps")
        if taps > 1:
            shape.append(taps)
        super().__init__(in_axis, out_axis, shape, bias, scale, dataflow, backend, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        arguments.check_floating(x, "x")
        arguments.check_device(x, self.weight_nodes, "x")
        compute = arguments.compute_dtype(x)
        if self.joins or (self.dataflow == "auto" and again.at_work() and not self._rules["weight"].fixed):
            weight = value_of(self, "weight", compute)
            check_features(x, weight.shape[1], weight[0, 0].numel())
            return F.linear(x, weight.flatten(1), value_of(self, "bias", compute))
        backend = dispatch.select_backend(self.backend, self.weight_nodes.device, self.weight_nodes.dtype)
        return linear(x, self.weight_nodes, self.bias_nodes, self.taps(compute), self.dataflow, backend)

    @property
    def joins(self) -> bool:
        """Whether the layer always materializes its weight, so that a network may do it for all layers together."""
        return self.dataflow == "materialize"

    def discretize(self, sizes: Sizes = None) -> nn.Linear:
        """The ordinary layer of the current sizes (or of others, by axis)."""
        checks.check_optional(sizes, Mapping, "sizes")
        weight, bias = self.sampled(sizes=sizes)
        weight = weight.detach().flatten(1)
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
        plain.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias.detach()})
        return plain.train(self.training)

    def extra_repr(self) -> str:
        out_nodes, in_nodes, *offsets = self.weight_nodes.shape
        text = f"in={describe(self.in_axis, in_nodes)}, out={describe(self.out_axis, out_nodes)}"
        return text + f", bias={self.bias_nodes is not None}" + "".join(f", taps={t}" for t in offsets)
