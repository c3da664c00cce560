"""What every integral layer shares: nodes, axes, the sampled weight and when it may be reused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Union

import torch
from torch import Tensor, nn

from inn_kernels import dispatch, transforms
from inn_kernels.taps import Taps
from integral_nn import _arguments as arguments
from integral_nn import _checks as checks
from integral_nn.axis import Axis
from integral_nn.discretize import sample

Dimension = Union[Axis, int]


class IntegralLayer(nn.Module):
    """Nodes [M_out, M_in, *kernel] over two axes. An int in place of an axis is a discrete dimension of that size.

    The nodes have the layout of the discrete weight they replace, so `state_dict`, optimizers, DistributedDataParallel
    and checkpointing need to know nothing. `scale` defaults to the one that gives the quadrature unit interior weights
    at full size, so that nodes are initialised like the discrete weight.
    """

    bias: nn.Parameter | None

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
        self.nodes = nn.Parameter(torch.empty(tuple(node_shape), device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(node_shape[0], device=device, dtype=dtype)) if bias else None
        )
        self._sampled: tuple[tuple, Tensor, Tensor | None] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise nodes and bias as torch.nn initialises the weight and bias they stand for."""
        nn.init.kaiming_uniform_(self.nodes, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(max(self.nodes[0].numel(), 1))
            nn.init.uniform_(self.bias, -bound, bound)

    def axes(self) -> list[Axis]:
        """The continuous axes of this layer, output first."""
        return [axis for axis in (self.out_axis, self.in_axis) if axis is not None]

    def taps(self, dtype: torch.dtype) -> list[Taps | None]:
        """Taps of the output and input dimension, in the dtype that accumulates for a result of `dtype`."""
        checks.check_dtype(dtype)
        wide = arguments.working_dtype(self.nodes, dtype)
        device = self.nodes.device
        out_taps = in_taps = None
        if self.out_axis is not None:
            out_taps = self.out_axis.taps(weighted=False, dtype=wide, device=device)
        if self.in_axis is not None:
            in_taps = self.in_axis.taps(weighted=True, scale=self.scale, dtype=wide, device=device)
        return [out_taps, in_taps]

    def sampled(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """The discrete weight [K, L, *kernel] and bias [K] of the current sizes, differentiable."""
        dtype = dtype or self.nodes.dtype
        taps = self.taps(dtype)
        backend = dispatch.select_backend(self.backend, self.nodes.device, self.nodes.dtype)
        weight = sample(self.nodes, taps, dtype, backend)
        return weight, None if self.bias is None else sample(self.bias, taps[:1], dtype, backend)

    def reusable(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None] | None:
        """The sampled weight kept from the last call, sampled anew if nodes or axes changed; None while gradients flow.

        Only in eval mode with gradients off. Changes are seen by version counters. Fused optimizers and writing through
        `.data` escape them; a call with gradients on and `train()` forget the weight.
        """
        if transforms.tracing() or transforms.transforming():
            return None
        if self.training or torch.is_grad_enabled() or self.nodes.is_inference():
            self._sampled = None
            return None
        parts: list[Any] = [dtype, torch.is_inference_mode_enabled(), self.scale]
        for parameter in (self.nodes, self.bias):
            parts += [] if parameter is None else [parameter.data_ptr(), parameter._version, parameter.device]
        key = (*parts, *(axis.version for axis in self.axes()))
        if self._sampled is None or self._sampled[0] != key:
            self._sampled = (key, *self.sampled(dtype))
        return self._sampled[1:]

    def train(self, mode: bool = True) -> IntegralLayer:
        """Set training mode, and forget the weight kept for eval calls."""
        self._sampled = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_sampled": None}


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
