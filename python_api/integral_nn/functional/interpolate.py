"""Interpolation along one dimension and its adjoint, with gradients.

    interpolate   y = S x        y[k] = sum_t weight[k, t] x[start_k + t]        M nodes -> K points
    spread        y = S^T x      y[i] = sum_{k, t: start_k + t = i} weight[k, t] x[k]     K points -> M nodes

Both are linear in x and in the tap weights, and each is the other's gradient in x:

    interpolate:  dx = S^T dy    d weight[k, t] = <dy[k], x[start_k + t]>
    spread:       dx = S dy      d weight[k, t] = <x[k], dy[start_k + t]>

so backward passes are made of the same three operations, to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from inn_kernels import ops, reference, transforms
from inn_kernels.taps import Taps


class Interpolate(Function):
    """y = S x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, weight: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        ctx.size, ctx.dim, ctx.dtype = x.shape[dim], dim, x.dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, start, weight)
        return ops.interpolate(x, start, weight, dim, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, start, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = apply(Spread, "spread", grad, start, weight, ctx.size, ctx.dim, ctx.dtype)
        if ctx.needs_input_grad[2]:
            dw = apply(InterpolateTapGradient, "interpolate_tap_gradient", x, grad, start, weight.shape[1], ctx.dim)
        return dx, None, dw, None, None


class Spread(Function):
    """y = S^T x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, weight: Tensor, nodes: int, dim: int, dtype: torch.dtype) -> Tensor:
        ctx.dim, ctx.dtype = dim, x.dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, start, weight)
        return ops.spread(x, start, weight, nodes, dim, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, start, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = apply(Interpolate, "interpolate", grad, start, weight, ctx.dim, ctx.dtype)
        if ctx.needs_input_grad[2]:
            dw = apply(InterpolateTapGradient, "interpolate_tap_gradient", grad, x, start, weight.shape[1], ctx.dim)
        return dx, None, dw, None, None, None


class InterpolateTapGradient(Function):
    """g[k, t] = <grad[k], x[start_k + t]>: bilinear in x and grad."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, start: Tensor, taps: int, dim: int) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(x, grad, start)
        return ops.interpolate_tap_gradient(x, grad, start, taps, dim)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        x, grad, start = ctx.saved_tensors
        dx = dgrad = None
        if ctx.needs_input_grad[0]:
            dx = apply(Spread, "spread", grad, start, g, x.shape[ctx.dim], ctx.dim, x.dtype)
        if ctx.needs_input_grad[1]:
            dgrad = apply(Interpolate, "interpolate", x, start, g, ctx.dim, grad.dtype)
        return dx, dgrad, None, None, None


def apply(function: type[Function], name: str, *args: Any) -> Any:
    """Run an operation through its autograd Function, or directly where no gradient can be asked for.

    Functions know no transform: under one, the operation is its formula.
    """
    if torch.is_grad_enabled() and not transforms.transforming():
        return function.apply(*args)
    return getattr(kernels(), name)(*args)


def kernels() -> Any:
    """The module whose operations run now: `ops`, or under a transform `reference`."""
    return reference if transforms.transforming() else ops


def interpolate(x: Tensor, taps: Taps, dim: int, dtype: torch.dtype, backend: str) -> Tensor:
    """y = S x along `dim`. x [..., M, ...] -> [..., K, ...] of `dtype`."""
    x, narrow = _operand(x, taps, dtype)
    args = (x, taps.start, taps.weight, dim, narrow)
    y = reference.interpolate(*args) if backend == "reference" else apply(Interpolate, "interpolate", *args)
    return y.to(dtype)


def spread(x: Tensor, taps: Taps, dim: int, dtype: torch.dtype, backend: str) -> Tensor:
    """y = S^T x along `dim`. x [..., K, ...] -> [..., M, ...] of `dtype`."""
    x, narrow = _operand(x, taps, dtype)
    args = (x, taps.start, taps.weight, taps.nodes, dim, narrow)
    y = reference.spread(*args) if backend == "reference" else apply(Spread, "spread", *args)
    return y.to(dtype)


def _operand(x: Tensor, taps: Taps, dtype: torch.dtype) -> tuple[Tensor, torch.dtype]:
    """x and the dtype to compute in: one float64 operand makes the whole operation float64."""
    if taps.weight.dtype == torch.float64:
        return x.to(torch.float64), torch.float64
    return x, dtype
