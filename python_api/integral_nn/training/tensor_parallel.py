"""Tensor parallelism by slicing partitions: each rank samples, or integrates over, its own points of an axis.

Nodes stay whole on every rank; weights, activations and products are split. For `parallelize_module` of PyTorch:

    parallelize_module(model.net, mesh, {"up": ColumnwisePoints(), "down": RowwisePoints()})

    up      W_q[k of this rank, :]      x whole        y[.., k of this rank]
    down    W_q[:, l of this rank]      x[.., l of this rank]      y added up over ranks

With `sequence_dim` x and y are not whole but each rank's part of a sequence, gathered before `up` and dealt out after
`down`; what lies between such pairs, norms above all, works on parts by `SequencePart`. Tensors go in and come out as
plain ones, not as DTensors.

A resize changes how many points a rank has, and nothing else: no parameter moves. Layers built by hand always sample
their weight when they are split, whatever their dataflow was.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor.parallel.style import ParallelStyle
from torch.utils.weak import WeakIdKeyDictionary

from integral_nn.layers.axis_part import split_rule
from integral_nn.layers.base import IntegralLayer
from integral_nn.layers.conv import _IntegralConv
from integral_nn.layers.linear import IntegralLinear
from integral_nn.layers.sampled import Sampled
from integral_nn.layers.scheme import NODES, STATISTICS

_hooked: Any = WeakIdKeyDictionary()  # parameter -> its hook
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


class _Gather(torch.autograd.Function):
    """The whole sequence, of which each rank has a part; gradients are added up and dealt out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _gathered(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _dealt_out(grads[0], ctx.dim, ctx.group), None, None


class _DealOut(torch.autograd.Function):
    """The sum over ranks, of which each gets a part of the sequence; gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _dealt_out(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _gathered(grads[0], ctx.dim, ctx.group), None, None


def _gathered(x: Tensor, dim: int, group: Any) -> Tensor:
    x = x.movedim(dim, 0).contiguous()
    whole = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    dist.all_gather_into_tensor(whole, x, group=group)
    return whole.movedim(0, dim)


def _dealt_out(x: Tensor, dim: int, group: Any) -> Tensor:
    world = dist.get_world_size(group)
    if x.shape[dim] % world:
        raise ValueError(f"a sequence of {x.shape[dim]} (dimension {dim}) has no equal parts for {world} ranks")
    x = x.movedim(dim, 0).contiguous()
    part = x.new_empty(x.shape[0] // world, *x.shape[1:])
    dist.reduce_scatter_tensor(part, x, group=group)
    return part.movedim(0, dim)


def _summed(x: Tensor, group: Any) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _sum_gradients(module: nn.Module, group: Any) -> None:
    """Have gradients of parameters added up: of those there are now, which `fully_shard` makes anew."""
    for p in module.parameters(recurse=False):
        if p.requires_grad and p not in _hooked:
            _hooked[p] = p.register_hook(lambda grad: _summed(grad, group))


def _split(module: Any, along: dict[str, int | None], device_mesh: Any) -> None:
    """Have each rank sample its part along a dimension (None: all), and add up what all know of gradients."""
    group, rank, world = device_mesh.get_group(), device_mesh.get_local_rank(), device_mesh.size()

    def summed(weight: Tensor) -> Any:
        return _SumGradient.apply(weight, group)

    if isinstance(module, Sampled):
        module.__dict__["_rules"] = {n: split_rule(r, along[n], rank, world, summed) for n, r in module._rules.items()}
    module.register_forward_pre_hook(lambda layer, _: _sum_gradients(layer, group))


def _check_mesh(device_mesh: Any) -> None:
    if device_mesh.ndim != 1:
        raise ValueError(f"device_mesh must have one dimension, got {device_mesh.ndim}")


class SequencePart(ParallelStyle):
    """Each rank calls the module on its part of a sequence: a norm over channels, a head, whatever mixes no positions.

    Parameters and points are whole on every rank; their gradients are added up.
    """

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        _check_mesh(device_mesh)
        rules: dict[str, Any] = module._rules if isinstance(module, Sampled) else {}
        if any(name in STATISTICS for name in rules) or isinstance(module, nn.modules.batchnorm._NormBase):
            raise ValueError(
                "SequencePart takes modules that treat each position by itself, got a norm whose statistics are of the "
                f"whole batch: {module}"
            )
        _split(module, dict.fromkeys(rules), device_mesh)
        if isinstance(module, IntegralLayer):
            cast(Any, module).dataflow = "materialize"
        return module


class _Points(ParallelStyle):
    """What both styles share.

    Args:
        sequence_dim: the dimension of whole inputs, or whole outputs, of which each rank has a part; None: has all.
    """

    dim: int

    def __init__(self, sequence_dim: int | None = None) -> None:
        super().__init__()
        if sequence_dim is not None and (isinstance(sequence_dim, bool) or not isinstance(sequence_dim, int)):
            raise TypeError(f"sequence_dim must be an int or None, got {type(sequence_dim).__name__}")
        self.sequence_dim = sequence_dim

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        _check_mesh(device_mesh)
        rule = module._rules.get("weight") if isinstance(module, Sampled) else None
        if rule is None or not _splits(module):
            raise ValueError(
                f"{type(self).__name__} takes a linear layer or a convolution along an axis that is not depthwise, got "
                f"{type(module).__name__}"
            )
        if self.dim not in {tie.dim for tie in rule.ties}:
            side = ("outputs", "inputs")[self.dim]
            raise ValueError(f"{type(self).__name__} takes a layer whose {side} run along an axis, got {module}")
        own: Any = module
        along = {name: self.dim if self.dim == 0 or name == "weight" else None for name in own._rules}
        _split(own, along, device_mesh)
        if isinstance(module, IntegralLayer):
            own.dataflow = "materialize"  # ranks send what they send in the same order, however many points each has
        self._wrap(module, device_mesh.get_group(), device_mesh.size())
        return module

    def _wrap(self, module: nn.Module, group: Any, world: int) -> None:
        raise NotImplementedError


class ColumnwisePoints(_Points):
    """Each rank samples its points of the output axis: takes whole inputs, returns its part of the outputs."""

    dim = 0

    def _wrap(self, module: nn.Module, group: Any, world: int) -> None:
        def enter(layer: Any, inputs: Any) -> Any:
            if self.sequence_dim is None:
                return _SumGradient.apply(inputs[0], group), *inputs[1:]
            return _Gather.apply(inputs[0], self.sequence_dim, group), *inputs[1:]

        module.register_forward_pre_hook(enter)


class RowwisePoints(_Points):
    """Each rank integrates over its points of the input axis: takes its part of the inputs, returns whole outputs."""

    dim = 1

    def _wrap(self, module: nn.Module, group: Any, world: int) -> None:
        linear = isinstance(module, (IntegralLinear, nn.Linear))
        spatial = 0 if linear else getattr(module, "weight" + NODES).dim() - 2

        def add_up(layer: Any, inputs: Any, y: Tensor) -> Tensor:
            if layer.bias is not None:  # one of them is enough
                y = y - layer.bias.to(y.dtype).view(-1, *[1] * spatial) * ((world - 1) / world)
            return _Sum.apply(y, group) if self.sequence_dim is None else _DealOut.apply(y, self.sequence_dim, group)

        module.register_forward_hook(add_up)


def _splits(module: Any) -> bool:
    if isinstance(module, _IntegralConv):
        return not module.depthwise and module._groups == 1
    if isinstance(module, _CONVOLUTIONS):
        return module.__dict__["groups"] == 1
    return isinstance(module, (IntegralLinear, nn.Linear))
