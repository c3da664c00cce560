"""Tensor parallelism by slicing partitions: each rank samples, or integrates over, its own points of an axis.

Nodes stay whole on every rank; weights, activations and products are split. For `parallelize_module` of PyTorch:

    parallelize_module(model.net, mesh, {"up": ColumnwisePoints(), "down": RowwisePoints()})

    up      W_q[k of this rank, :]      x whole        y[.., k of this rank]
    down    W_q[:, l of this rank]      x[.., l of this rank]      y added up over ranks

A resize changes how many points a rank has, and nothing else: no parameter moves. Layers built by hand always sample
their weight when they are split, whatever their dataflow was.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor.parallel.style import ParallelStyle

from integral_nn.layers.axis_part import split_rule
from integral_nn.layers.base import IntegralLayer
from integral_nn.layers.conv import _IntegralConv
from integral_nn.layers.linear import IntegralLinear
from integral_nn.layers.sampled import Sampled
from integral_nn.layers.scheme import NODES

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Sum(torch.autograd.Function):
    """The sum over ranks, whose gradient every rank has already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


class _SumGradient(torch.autograd.Function):
    """The identity, whose gradient is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _summed(grads[0], ctx.group), None


def _summed(x: Tensor, group: Any) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _Points(ParallelStyle):
    """What both styles share."""

    dim: int

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        if device_mesh.ndim != 1:
            raise ValueError(f"device_mesh must have one dimension, got {device_mesh.ndim}")
        rule = module._rules.get("weight") if isinstance(module, Sampled) else None
        if rule is None or not _splits(module):
            raise ValueError(
                f"{type(self).__name__} takes a linear layer or a convolution along an axis that is not depthwise, got "
                f"{type(module).__name__}"
            )
        if self.dim not in {tie.dim for tie in rule.ties}:
            side = ("outputs", "inputs")[self.dim]
            raise ValueError(f"{type(self).__name__} takes a layer whose {side} run along an axis, got {module}")
        group, rank, world = device_mesh.get_group(), device_mesh.get_local_rank(), device_mesh.size()

        def summed(weight: Tensor) -> Any:
            return _SumGradient.apply(weight, group)

        own: Any = module
        along = {name: self.dim if self.dim == 0 or name == "weight" else None for name in own._rules}
        own.__dict__["_rules"] = {n: split_rule(r, along[n], rank, world, summed) for n, r in own._rules.items()}
        for name in own._rules:
            nodes = getattr(own, name + NODES)
            if nodes is not None and nodes.requires_grad:
                nodes.register_hook(lambda grad: _summed(grad, group))
        if isinstance(module, IntegralLayer):
            own.dataflow = "materialize"  # ranks send what they send in the same order, however many points each has
        self._wrap(module, group, world)
        return module

    def _wrap(self, module: nn.Module, group: Any, world: int) -> None:
        raise NotImplementedError


class ColumnwisePoints(_Points):
    """Each rank samples its points of the output axis: takes whole inputs, returns its part of the outputs."""

    dim = 0

    def _wrap(self, module: nn.Module, group: Any, world: int) -> None:
        module.register_forward_pre_hook(lambda _, inputs: (_SumGradient.apply(inputs[0], group), *inputs[1:]))


class RowwisePoints(_Points):
    """Each rank integrates over its points of the input axis: takes its part of the inputs, returns whole outputs."""

    dim = 1

    def _wrap(self, module: nn.Module, group: Any, world: int) -> None:
        linear = isinstance(module, (IntegralLinear, nn.Linear))
        spatial = 0 if linear else getattr(module, "weight" + NODES).dim() - 2

        def add_up(layer: Any, inputs: Any, y: Tensor) -> Tensor:
            if layer.bias is not None:  # one of them is enough
                y = y - layer.bias.to(y.dtype).view(-1, *[1] * spatial) * ((world - 1) / world)
            return _Sum.apply(y, group)

        module.register_forward_hook(add_up)


def _splits(module: Any) -> bool:
    if isinstance(module, _IntegralConv):
        return not module.depthwise and module._groups == 1
    if isinstance(module, _CONVOLUTIONS):
        return module.__dict__["groups"] == 1
    return isinstance(module, (IntegralLinear, nn.Linear))
