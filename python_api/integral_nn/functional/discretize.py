"""Discretization: continuous weights sampled on two partitions and weighted by a quadrature, with gradients.

    W_q[k, l] = scale q[l] F_W(P_out[k], P_in[l])        W_q = S_out nodes S_in^T                   (Eq. 6)

The value <dW, W_q> is linear in each of nodes, S_out, S_in and dW, so every gradient of every order is one of the
same three operations (the Neural Integral Lemma: the backward pass is the same integral):

    d nodes          S_out^T dW S_in                         discretize_adjoint
    d out_weight     <dW[k], (nodes S_in^T)[start_k + t]>    discretize_tap_gradient
    d in_weight      <dW[:, l], (S_out nodes)[:, start_l + t]>
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from inn_kernels import dispatch, ops, reference
from inn_kernels.quadrature import Quadrature
from inn_kernels.taps import Basis, Partition, Taps
from integral_nn.functional import arguments
from integral_nn.functional.interpolate import apply, interpolate


class Discretize(Function):
    """W = S_out nodes S_in^T."""

    @staticmethod
    def forward(
        ctx: Any,
        nodes: Tensor,
        out_start: Tensor,
        out_weight: Tensor,
        in_start: Tensor,
        in_weight: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.sizes, ctx.dtype = nodes.shape[:2], nodes.dtype
        tuned = ctx.needs_input_grad[2] or ctx.needs_input_grad[4]
        ctx.save_for_backward(nodes if tuned else None, out_start, out_weight, in_start, in_weight)
        return ops.discretize(nodes, out_start, out_weight, in_start, in_weight, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        nodes, *taps = ctx.saved_tensors
        d_nodes = None
        if ctx.needs_input_grad[0]:
            d_nodes = apply(DiscretizeAdjoint, "discretize_adjoint", grad, *taps, *ctx.sizes, ctx.dtype)
        d_out, d_in = _tap_gradient(nodes, grad, taps, ctx.needs_input_grad[2], ctx.needs_input_grad[4])
        return d_nodes, None, d_out, None, d_in, None


class DiscretizeAdjoint(Function):
    """d_nodes = S_out^T dW S_in."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        out_start: Tensor,
        out_weight: Tensor,
        in_start: Tensor,
        in_weight: Tensor,
        out_nodes: int,
        in_nodes: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.dtype = grad.dtype
        ctx.save_for_backward(grad, out_start, out_weight, in_start, in_weight)
        return ops.discretize_adjoint(grad, out_start, out_weight, in_start, in_weight, out_nodes, in_nodes, dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        grad, *taps = ctx.saved_tensors
        d_grad = None
        if ctx.needs_input_grad[0]:
            d_grad = apply(Discretize, "discretize", g, *taps, ctx.dtype)
        d_out, d_in = _tap_gradient(g, grad, taps, ctx.needs_input_grad[2], ctx.needs_input_grad[4])
        return d_grad, None, d_out, None, d_in, None, None, None


class DiscretizeTapGradient(Function):
    """Gradients of both tap weights: linear in nodes, in dW, and each in the other's weights."""

    @staticmethod
    def forward(
        ctx: Any,
        nodes: Tensor,
        grad: Tensor,
        out_start: Tensor,
        out_weight: Tensor,
        in_start: Tensor,
        in_weight: Tensor,
        need_out: bool,
        need_in: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.need_out, ctx.need_in = need_out, need_in
        ctx.save_for_backward(nodes, grad, out_start, out_weight, in_start, in_weight)
        return ops.discretize_tap_gradient(nodes, grad, out_start, out_weight, in_start, in_weight, need_out, need_in)

    @staticmethod
    def backward(ctx: Any, g_out: Tensor, g_in: Tensor) -> tuple:
        nodes, grad, out_start, out_weight, in_start, in_weight = ctx.saved_tensors
        need_nodes, need_grad = ctx.needs_input_grad[:2]
        d_nodes = d_grad = d_out = d_in = None
        # <g_out, d_out> is the value <dW, W> with g_out in place of the output weights; likewise for g_in.
        if ctx.need_out:
            taps = (out_start, g_out, in_start, in_weight)
            d_nodes, d_grad = _form_gradients(nodes, grad, taps, need_nodes, need_grad)
            _, d_in = _tap_gradient(nodes, grad, taps, False, ctx.needs_input_grad[5])
        if ctx.need_in:
            taps = (out_start, out_weight, in_start, g_in)
            more_nodes, more_grad = _form_gradients(nodes, grad, taps, need_nodes, need_grad)
            d_nodes, d_grad = _plus(d_nodes, more_nodes), _plus(d_grad, more_grad)
            d_out, _ = _tap_gradient(nodes, grad, taps, ctx.needs_input_grad[3], False)
        return d_nodes, d_grad, None, d_out, None, d_in, None, None


def _tap_gradient(
    nodes: Tensor, grad: Tensor, taps: Sequence[Tensor], need_out: bool, need_in: bool
) -> tuple[Tensor | None, Tensor | None]:
    if not (need_out or need_in):
        return None, None
    d_out, d_in = apply(DiscretizeTapGradient, "discretize_tap_gradient", nodes, grad, *taps, need_out, need_in)
    return d_out if need_out else None, d_in if need_in else None


def _form_gradients(
    nodes: Tensor, grad: Tensor, taps: Sequence[Tensor], need_nodes: bool, need_grad: bool
) -> tuple[Tensor | None, Tensor | None]:
    d_nodes = d_grad = None
    if need_nodes:
        d_nodes = apply(
            DiscretizeAdjoint, "discretize_adjoint", grad, *taps, nodes.shape[0], nodes.shape[1], nodes.dtype
        )
    if need_grad:
        d_grad = apply(Discretize, "discretize", nodes, *taps, grad.dtype)
    return d_nodes, d_grad


def _plus(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return y if x is None else x if y is None else x + y


def sample(nodes: Tensor, taps: Sequence[Taps | None], dtype: torch.dtype, backend: str) -> Tensor:
    """Nodes sampled along every dimension that has taps: [M_out, M_in, *M] -> [K, L, *N] of `dtype`."""
    wide = arguments.working_dtype(nodes, dtype)
    if wide == torch.float64:  # one float64 operand makes the whole operation float64
        nodes = nodes.to(wide)
    narrow = dtype if wide != torch.float64 else wide
    out_taps, in_taps, *spatial = [*taps, None, None][: max(len(taps), 2)]
    # Spatial dimensions first: kernels are small there, and the last pass writes the compute dtype.
    for dim, along in enumerate(spatial, start=2):
        if along is not None:
            nodes = interpolate(nodes, along, dim, wide, backend)
    if out_taps is not None and in_taps is not None:
        in_start = in_taps.start
        if in_start is out_taps.start and torch.compiler.is_compiling():
            in_start = in_start.clone()  # a traced Function takes no tensor twice
        args = (nodes, out_taps.start, out_taps.weight, in_start, in_taps.weight, narrow)
        weight = reference.discretize(*args) if backend == "reference" else apply(Discretize, "discretize", *args)
    elif out_taps is not None:
        weight = interpolate(nodes, out_taps, 0, narrow, backend)
    elif in_taps is not None:
        weight = interpolate(nodes, in_taps, 1, narrow, backend)
    else:
        weight = nodes
    return weight if weight.dtype == dtype else weight.to(dtype)


def discretize(
    nodes: Tensor,
    out_partition: Partition | None = None,
    in_partition: Partition | None = None,
    *,
    spatial_partitions: Sequence[Partition | None] | None = None,
    quadrature: Quadrature = "trapezoid",
    scale: float = 1.0,
    kernel: str = "cubic",
    a: float = -0.75,
    boundary: str = "clamp",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Turn nodes into an ordinary weight: W_q[k, l] = scale q[l] F_W(P_out[k], P_in[l])  (Eq. 6).

    Args:
        nodes: [M_out, M_in, *kernel], or [M_out] (a bias: sampled, no quadrature).
        out_partition: [K] increasing points in [0, 1], or K (as many points as the quadrature wants them), or None:
            the dimension is discrete, neither sampled nor integrated. With "cells", [K + 1] edges of K cells.
        in_partition: [L] likewise.
        spatial_partitions: a partition or None for each kernel dimension, where kernels are continuous in space too
            (x^s of Eq. 2); they are integrated like the input (by the trapezoid if `quadrature` is not a name).
        quadrature: "trapezoid", "midpoint", "simpson", "left", "right", "gauss-legendre", a tensor of weights [L], or
            a callable partition -> weights. "midpoint" also places node i at (i + 1/2)/M instead of i/(M-1). "cells"
            does, too, and takes the mean of F_W over each output cell and its integral over each input cell, exactly:
            with fewer points than nodes, sampling at points aliases.
        scale: factor of the quadrature. 1 is the plain integral; M_in - 1 gives unit interior weights.
        kernel: how nodes become a function: "cubic" convolution, which interpolates them; "linear"; "bspline", cubic
            and smoother; "conservative", in which a node is the mean over its own cell, so that "cells" at full size
            is the identity. `nodes_from` makes the nodes of a weight for any of them.
        a: parameter of the cubic convolution kernel; -0.75 is that of `grid_sample`, -0.5 Keys' third-order kernel.
        boundary: "clamp" repeats the end node; "keys" extrapolates quadratically.
        dtype: of the result, default the nodes'.
        backend: "cpp", "triton", "reference", or None for the fastest that can run.

    Returns:
        [K, L, *kernel] (or [K]), differentiable in nodes, partitions and a tensor quadrature, twice.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, type, device or range; the message names it.
        RuntimeError: the backend asked for cannot run here, and why.

    Source: paper, Eq. 5-6 and section 3.2.

    >>> import torch, integral_nn as inn
    >>> inn.discretize(torch.ones(5, 5), 3, 3)
    tensor([[0.2500, 0.5000, 0.2500],
            [0.2500, 0.5000, 0.2500],
            [0.2500, 0.5000, 0.2500]])
    """
    arguments.check_nodes(nodes, range(1, 16), "[M_out, M_in, *kernel] or [M_out]")
    dtype = nodes.dtype if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    backend = dispatch.select_backend(backend, nodes.device, nodes.dtype)
    wide = arguments.working_dtype(nodes, dtype)
    taps = arguments.weight_taps(
        nodes, out_partition, in_partition, spatial_partitions, quadrature, scale, Basis(a, boundary, kernel), wide
    )
    return sample(nodes, taps, dtype, backend)
