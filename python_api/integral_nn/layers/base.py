"""What every integral layer shares: nodes over two axes, and the weight and bias sampled from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch
from torch import Tensor, nn

from inn_kernels import dispatch
from inn_kernels.taps import Taps
from integral_nn.functional import arguments, checks
from integral_nn.layers.axis import Axis
from integral_nn.layers.axis_state import packed_scale, scale_difference
from integral_nn.layers.channels import Layout, Segment, Tie
from integral_nn.layers.rule import Rule, Sizes
from integral_nn.layers.sampled import Sampled, sampled_property

Dimension = Union[Axis, int]


class IntegralLayer(Sampled):
    """Nodes [M_out, M_in, *kernel] over two axes. An int in place of an axis is a discrete dimension of that size.

    The nodes, `weight_nodes` and `bias_nodes`, have the layout of the discrete weight and bias they replace; `weight`
    and `bias` are those of the current sizes. `scale` defaults to the one that gives the quadrature unit interior
    weights at full size, so that nodes are initialised like the discrete weight.
    """

    weight_nodes: nn.Parameter
    bias_nodes: nn.Parameter | None
    weight = sampled_property("weight")
    bias = sampled_property("bias")

    def __init__(
        self,
        in_axis: Dimension,
        out_axis: Dimension,
        node_shape: Sequence[int],
        bias: bool,
        scale: float | None,
        dataflow: str,
        backend: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        arguments.check_dataflow(dataflow)
        dispatch.check_backend(backend)
        checks.check_dtype(dtype)
        self.in_axis = in_axis if isinstance(in_axis, Axis) else None
        self.out_axis = out_axis if isinstance(out_axis, Axis) else None
        self.dataflow = dataflow
        self.backend = backend
        if scale is None:
            scale = self.in_axis.unit_scale() if self.in_axis is not None else 1.0
        arguments.check_scale(scale)
        self.scale = float(scale)
        self.weight_nodes = nn.Parameter(torch.empty(tuple(node_shape), device=device, dtype=dtype))
        own = nn.Parameter(torch.empty(node_shape[0], device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias_nodes", own)
        self._rules, self._held = self._make_rules(), None
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("in_axis", "out_axis", "scale", "backend") and "_rules" in self.__dict__:
            self._rules = self._make_rules()

    def _make_rules(self) -> dict[str, Rule]:
        axes = {name: axis for name, axis in (("out", self.out_axis), ("in", self.in_axis)) if axis is not None}
        ties = {
            name: Tie(name, dim, Layout((Segment(name, axes[name].nodes),)), integrated=dim == 1)
            for dim, name in enumerate(("out", "in"))
            if name in axes
        }
        scales = {"out": 1.0, "in": self.scale}
        rules = {"weight": Rule(list(ties.values()), axes, scales, backend=self.backend)}
        if self.bias_nodes is not None:
            rules["bias"] = Rule([ties["out"]] if "out" in ties else [], axes, scales, backend=self.backend)
        return rules

    def reset_parameters(self) -> None:
        """Initialise the nodes so that weight and bias vary at full size as torch.nn initialises them.

        A basis in which neighbouring nodes share a weight would make it smaller: its nodes are larger for that.
        """
        bound = 1 / math.sqrt(max(self.weight_nodes[0].numel(), 1))
        outputs = 1.0 if self.out_axis is None else self.out_axis.spread()
        inputs = 1.0 if self.in_axis is None else self.in_axis.spread()
        nn.init.uniform_(self.weight_nodes, -bound * outputs * inputs, bound * outputs * inputs)
        if self.bias_nodes is not None:
            nn.init.uniform_(self.bias_nodes, -bound * outputs, bound * outputs)

    def axes(self) -> list[Axis]:
        """The continuous axes of this layer, output first."""
        return [axis for axis in (self.out_axis, self.in_axis) if axis is not None]

    def taps(self, dtype: torch.dtype) -> list[Taps | None]:
        """Taps of the output and input dimension, in the dtype that accumulates for a result of `dtype`."""
        checks.check_dtype(dtype)
        return self._rules["weight"].along(self.weight_nodes, dtype)

    def sampled(self, dtype: torch.dtype | None = None, sizes: Sizes = None) -> tuple[Tensor, Tensor | None]:
        """The discrete weight [K, L, *kernel] and bias [K] of the current sizes (or of others), differentiable."""
        checks.check_dtype(dtype)
        checks.check_optional(sizes, Mapping, "sizes")
        dtype = dtype or self.weight_nodes.dtype
        weight = self._rules["weight"].value(self.weight_nodes, dtype, sizes)
        if self.bias_nodes is None:
            return weight, None
        return weight, self._rules["bias"].value(self.bias_nodes, dtype, sizes)

    def discretize(self, sizes: Sizes = None) -> nn.Module:
        """The ordinary layer of the current sizes (or of others, by axis)."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        """The scale, for `state_dict`."""
        return packed_scale(self.scale)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: the scale is compared before nodes are loaded."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())  # of a state without: this one
        difference = scale_difference(saved, self.scale)
        if difference:
            args[-1].append(f"{prefix}{difference}: build the layer with the scale it was saved with")
            return
        for old, new in (("nodes", "weight_nodes"), ("bias", "bias_nodes")):  # names of version 0.0
            if prefix + old in state_dict:
                state_dict.setdefault(prefix + new, state_dict.pop(prefix + old))
        super()._load_from_state_dict(state_dict, prefix, *args)


def node_count(dimension: Dimension, name: str) -> int:
    """Nodes of an axis, or the size of a discrete dimension."""
    if isinstance(dimension, Axis):
        return dimension.nodes
    if isinstance(dimension, bool) or not isinstance(dimension, int):
        raise TypeError(f"{name} must be an Axis or an int, got {type(dimension).__name__}")
    checks.check_count(dimension, name)
    return dimension


def describe(dimension: Axis | None, size: int) -> str:
    """A dimension in a module's printed form: `24/32` points of nodes, or the size of a discrete one."""
    return f"{dimension.size}/{dimension.nodes}" if dimension is not None else str(size)
