"""Every weight of a network sampled by one launch, each with a gradient of its own.

    W_n = S_out_n nodes_n S_in_n^T        for all tensors n in one launch, no graph recorded
    d nodes_n = S_out_n^T dW_n S_in_n     one launch a tensor, when dW_n arrives

A network's forward pass wants all its weights, and small layers do not fill a GPU: one launch makes them. Its backward
pass makes the dW_n one after the other, and whoever overlaps communication with it wants each d nodes_n at once. So the
value of each autograd Function is made ahead, by the common launch, and handed to its forward, which only remembers
what its backward needs; that is `Discretize`'s or, where one dimension is sampled, `Interpolate`'s. Results share one
allocation, which lives as long as any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from inn_kernels import dispatch
from inn_kernels.taps import Taps
from integral_nn import _arguments as arguments
from integral_nn.discretize import Discretize
from integral_nn.interpolate import Interpolate

Along = Sequence[Taps | None]
"""Taps of the first and (where there is one) the second dimension, None for a discrete one."""


class DiscretizeMade(Discretize):
    """`Discretize` of a value that is there already; in place of the dtype, a tuple that holds it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        nodes: Tensor,
        out_start: Tensor,
        out_weight: Tensor,
        in_start: Tensor,
        in_weight: Tensor,
        made: tuple[Tensor],
    ) -> Tensor:
        ctx.sizes, ctx.dtype = nodes.shape[:2], nodes.dtype
        tuned = ctx.needs_input_grad[2] or ctx.needs_input_grad[4]
        ctx.save_for_backward(nodes if tuned else None, out_start, out_weight, in_start, in_weight)
        return made[0]


class InterpolateMade(Interpolate):
    """`Interpolate` likewise."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, start: Tensor, weight: Tensor, dim: int, made: tuple[Tensor]
    ) -> Tensor:
        ctx.size, ctx.dim, ctx.dtype = x.shape[dim], dim, x.dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, start, weight)
        return made[0]


def can_share(nodes: Tensor, backend: str | None) -> bool:
    """Whether a tensor takes part in the common launch: Triton's kernels would run it, now and on real data."""
    return (
        nodes.device.type == "cuda"
        and type(nodes) in (Tensor, Parameter)  # not a fake or a distributed one
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and dispatch.select_backend(backend, nodes.device, nodes.dtype) == "triton"
    )


def sample_all(nodes: Sequence[Tensor], taps: Sequence[Along]) -> list[Tensor]:
    """Each tensor sampled along the dimensions that have taps, in its own dtype: one launch a device and dtype.

    Args:
        nodes: [M_out, M_in, *kernel] or [M_out] each, none float64.
        taps: of each tensor, float32.
    """
    from inn_kernels.gpu.foreach import discretize_foreach

    kinds: dict[tuple, list[int]] = {}
    for n, x in enumerate(nodes):
        kinds.setdefault((x.device, x.dtype), []).append(n)
    values: dict[int, Tensor] = {}
    for (_, dtype), members in kinds.items():
        pairs = [((*taps[n], None, None)[0], (*taps[n], None, None)[1]) for n in members]
        made = discretize_foreach([nodes[n].detach() for n in members], pairs, dtype)
        values |= {n: _recorded(nodes[n], pair, value) for n, pair, value in zip(members, pairs, made)}
    return [values[n] for n in range(len(nodes))]


def _recorded(nodes: Tensor, taps: tuple[Taps | None, Taps | None], value: Tensor) -> Tensor:
    """The value with its gradient."""
    out, in_ = taps
    sides = [side for side in taps if side is not None]
    if not arguments.records_gradient(nodes, *(side.weight for side in sides)):
        return value
    if out is not None and in_ is not None:
        return DiscretizeMade.apply(nodes, *out[:2], *in_[:2], (value,))
    if not sides:
        return nodes
    return InterpolateMade.apply(nodes, *sides[0][:2], 0 if in_ is None else 1, (value,))
