"""The linear layer's dataflows `materialize` and `factored` as one autograd node each, for a training step.

    materialize   W = S_out nodes S_in^T,  y = x W^T + S_out b      factored   x' = x S_in,  y' = x' nodes^T + b
                                                                               y = y' S_out^T
                  dx = dy W                                                    dy' = dy S_out,  dx = (dy' nodes) S_in^T
                  d_nodes = S_out^T (dy^T x) S_in                              d_nodes = dy'^T x'
                  d_bias = S_out^T sum dy                                      d_bias = sum dy'

The dataflows composed of autograd's own nodes compute the same. What is saved is the time of those nodes, for which a
small layer pays more than for its kernels, and that of fresh memory (`_product`), for which a large one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from inn_kernels import ops
from inn_kernels.taps import Taps
from integral_nn.functional import again
from integral_nn.functional.discretize import sample
from integral_nn.functional.interpolate import interpolate, kernels, spread

Along = tuple[Tensor, Tensor, Tensor, Tensor]
"""Start and weight of the output's taps and of the input's. They belong to the axes: no node saves them."""

_FRESH = 32 << 20  # bytes from which glibc's allocator takes fresh pages from the system every time


def takes(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None,
    taps: Sequence[Taps | None],
    compute: torch.dtype,
    dataflow: str,
    backend: str,
) -> bool:
    """Whether these nodes run a layer: a training step with both dimensions continuous and fixed.

    On a CPU in one dtype; on a GPU `materialize`, of nodes in any dtype.
    """
    if backend == "cpp":
        fits = x.dtype == nodes.dtype == compute and (bias is None or bias.dtype == compute)
    else:
        fits = backend == "triton" and dataflow == "materialize" and compute != torch.float64
    return (
        fits
        and torch.is_grad_enabled()
        and nodes.dim() == 2
        and not torch.compiler.is_compiling()
        and all(along is not None and not along.weight.requires_grad for along in taps)
        and taps[0].weight.dtype == taps[1].weight.dtype  # type: ignore[union-attr]
    )


class Materialized(Function):
    """y = x W^T + S_out b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, nodes: Tensor, bias: Tensor | None, taps: Along
    ) -> Tensor:  # x [B, L], nodes [M_out, M_in], bias [M_out]
        dtype = x.dtype
        weight = again.sampled(lambda nodes: ops.discretize(nodes, *taps, dtype), nodes)
        sampled = None if bias is None else ops.interpolate(bias, taps[0], taps[1], 0, dtype)
        ctx.taps = taps
        ctx.save_for_backward(weight, x, nodes, bias)
        return F.linear(x, weight, sampled)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        weight, x, nodes, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _through_autograd(ctx, dy, _materialize)
        need_x, need_nodes, need_bias, _ = ctx.needs_input_grad
        run, taps = kernels(), ctx.taps
        dx = dy @ weight if need_x else None
        d_nodes = d_bias = None
        if need_nodes:
            d_nodes = run.discretize_adjoint(_product(dy, x), *taps, *nodes.shape, nodes.dtype)
        if need_bias:
            d_bias = run.spread(dy.sum(0), taps[0], taps[1], nodes.shape[0], 0, bias.dtype)
        return dx, d_nodes, d_bias, None


class Factored(Function):
    """y = (x S_in nodes^T + b) S_out^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, nodes: Tensor, bias: Tensor | None, taps: Along) -> Tensor:
        wide = ops.spread(x, taps[2], taps[3], nodes.shape[1], 1, x.dtype)
        ctx.taps = taps
        ctx.save_for_backward(wide, x, nodes, bias)
        return ops.interpolate(F.linear(wide, nodes, bias), taps[0], taps[1], 1, x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        wide, _, nodes, _ = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _through_autograd(ctx, dy, _factor)
        need_x, need_nodes, need_bias, _ = ctx.needs_input_grad
        run, taps = kernels(), ctx.taps
        d_wide = run.spread(dy, taps[0], taps[1], nodes.shape[0], 1, dy.dtype)
        dx = run.interpolate(d_wide @ nodes, taps[2], taps[3], 1, dy.dtype) if need_x else None
        d_nodes = _product(d_wide, wide) if need_nodes else None
        return dx, d_nodes, d_wide.sum(0) if need_bias else None, None


def _product(dy: Tensor, x: Tensor) -> Tensor:
    """dy^T x, [B, K] and [B, L] -> [K, L]. A CPU's large one goes into huge pages: 512 times fewer faults."""
    small = not dy.is_cpu or dy.shape[1] * x.shape[1] * dy.element_size() < _FRESH
    return dy.t() @ x if small else kernels().weight_gradient(dy, x)


def _through_autograd(ctx: Any, dy: Tensor, run: Callable[..., Tensor]) -> tuple:
    """Gradients that are differentiable themselves: by autograd through the composed dataflow."""
    _, *inputs = ctx.saved_tensors
    with torch.enable_grad():
        y = run(*inputs, ctx.taps)
        wanted = [t for t, need in zip(inputs, ctx.needs_input_grad) if need]
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return tuple(next(found) if need else None for need in ctx.needs_input_grad)


def _taps(nodes: Tensor, taps: Along) -> tuple[Taps, Taps]:
    return Taps(taps[0], taps[1], nodes.shape[0]), Taps(taps[2], taps[3], nodes.shape[1])


def _materialize(x: Tensor, nodes: Tensor, bias: Tensor | None, taps: Along) -> Tensor:
    along = _taps(nodes, taps)
    return F.linear(
        x, sample(nodes, along, x.dtype, ""), None if bias is None else sample(bias, along[:1], x.dtype, "")
    )


def _factor(x: Tensor, nodes: Tensor, bias: Tensor | None, taps: Along) -> Tensor:
    out_taps, in_taps = _taps(nodes, taps)
    return interpolate(F.linear(spread(x, in_taps, 1, x.dtype, ""), nodes, bias), out_taps, 1, x.dtype, "")


def linear(
    x: Tensor, nodes: Tensor, bias: Tensor | None, out_taps: Taps | None, in_taps: Taps | None, dataflow: str
) -> Tensor:
    """The layer through the node of a dataflow. x [..., L] -> [..., K]."""
    assert out_taps is not None and in_taps is not None
    node = Materialized if dataflow == "materialize" else Factored
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    y = node.apply(rows, nodes, bias, (*out_taps[:2], *in_taps[:2]))
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], y.shape[-1])
