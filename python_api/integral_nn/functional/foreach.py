"""Every weight of a network sampled by one operation, and all gradients of nodes returned by one.

    W_n = S_out_n nodes_n S_in_n^T          for all tensors n, along the dimensions that have taps
    d nodes_n = S_out_n^T dW_n S_in_n

Each is the other's gradient, so backward passes of any order are made of the same two. Taps are constants here: tensors
along trainable partitions are sampled one by one (`discretize`). Nothing is saved for backward but taps, which belong
to the axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Union

import torch
from torch import Tensor
from torch.autograd import Function

from inn_kernels.taps import Taps
from integral_nn.functional import arguments
from integral_nn.functional.interpolate import kernels

Along = Sequence[Union[Taps, None]]
"""Taps of the first and (where there is one) the second dimension, None for a discrete one."""


class Plan(NamedTuple):
    """Which taps each tensor has: taps once, and for each tensor the position of those of its first two dimensions."""

    start: tuple[Tensor, ...]
    weight: tuple[Tensor, ...]
    nodes: tuple[int, ...]
    out: tuple[int, ...]  # -1: not sampled
    in_: tuple[int, ...]

    def of(self, members: Sequence[int]) -> Plan:
        """The plan of some of the tensors."""
        return self._replace(out=tuple(self.out[n] for n in members), in_=tuple(self.in_[n] for n in members))


def make_plan(taps: Sequence[Along]) -> Plan:
    """The plan of tensors whose dimensions have these taps; each has some."""
    found: dict[int, int] = {}
    kept: list[Taps] = []

    def position(side: Taps | None) -> int:
        if side is None:
            return -1
        at = found.setdefault(id(side), len(kept))
        if at == len(kept):
            kept.append(side)
        return at

    sides = [tuple(position(side) for side in (*along, None)[:2]) for along in taps]
    out, in_ = zip(*sides)
    return Plan(tuple(t.start for t in kept), tuple(t.weight for t in kept), tuple(t.nodes for t in kept), out, in_)


class DiscretizeForeach(Function):
    """W_n = S_out_n nodes_n S_in_n^T."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, dtype: torch.dtype, *nodes: Tensor) -> tuple[Tensor, ...]:
        ctx.plan, ctx.dtype = plan, nodes[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(_forward(plan, dtype, *nodes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return None, None, *_where_wanted(DiscretizeForeachAdjoint, _adjoint, ctx, grads)


class DiscretizeForeachAdjoint(Function):
    """d nodes_n = S_out_n^T dW_n S_in_n."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, dtype: torch.dtype, *grads: Tensor) -> tuple[Tensor, ...]:
        ctx.plan, ctx.dtype = plan, grads[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(_adjoint(plan, dtype, *grads))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return None, None, *_where_wanted(DiscretizeForeach, _forward, ctx, grads)


def _forward(plan: Plan, dtype: torch.dtype, *nodes: Tensor) -> Sequence[Tensor]:
    return kernels().discretize_foreach(nodes, plan.start, plan.weight, plan.out, plan.in_, dtype)


def _adjoint(plan: Plan, dtype: torch.dtype, *grads: Tensor) -> Sequence[Tensor]:
    return kernels().discretize_foreach_adjoint(grads, plan.start, plan.weight, plan.nodes, plan.out, plan.in_, dtype)


def _where_wanted(function: type[Function], run: Any, ctx: Any, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """`function` of the gradients that came, for the inputs that want theirs."""
    need = ctx.needs_input_grad[2:]
    apply = function.apply if torch.is_grad_enabled() else run
    members = [n for n, grad in enumerate(grads) if grad is not None and need[n]]
    if len(members) == len(grads):
        return list(apply(ctx.plan, ctx.dtype, *grads))
    found: list[Tensor | None] = [None] * len(grads)
    if members:
        made = apply(ctx.plan.of(members), ctx.dtype, *(grads[n] for n in members))
        for n, value in zip(members, made):
            found[n] = value
    return found


def discretize_foreach(nodes: Sequence[Tensor], plan: Plan, dtype: torch.dtype) -> Sequence[Tensor]:
    """Tensors of one device and dtype, sampled as `plan` says, as tensors of `dtype`."""
    if arguments.records_gradient(*nodes):
        return DiscretizeForeach.apply(plan, dtype, *nodes)
    return _forward(plan, dtype, *nodes)
