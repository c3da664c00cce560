"""The mathematics, a few lines an operation, in plain PyTorch: any device, any dtype, differentiable by autograd.

This is the specification the kernels are tested against, and the backend where nothing faster can run. S [K, M] is
the banded matrix of a partition's taps: S[k, start[k] + t] = weight[k, t].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from inn_kernels import tap_makers
from inn_kernels.basis import Basis
from inn_kernels.operands import PAD, aligned, table_parts


def discretize(
    nodes: Tensor,  # [M_out, M_in, *rest]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, T_out]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, T_in]
    dtype: torch.dtype,
) -> Tensor:  # [K, L, *rest]
    """W = S_out nodes S_in^T (Eq. 6; the quadrature is in `in_weight`)."""
    wide = in_weight.dtype
    return interpolate(interpolate(nodes, in_start, in_weight, 1, wide), out_start, out_weight, 0, dtype)


def discretize_adjoint(
    grad: Tensor,  # [K, L, *rest]
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    out_nodes: int,
    in_nodes: int,
    dtype: torch.dtype,
) -> Tensor:  # [M_out, M_in, *rest]
    """d_nodes = S_out^T dW S_in (the Neural Integral Lemma)."""
    wide = in_weight.dtype
    return spread(spread(grad, out_start, out_weight, out_nodes, 0, wide), in_start, in_weight, in_nodes, 1, dtype)


def discretize_tap_gradient(
    nodes: Tensor,  # [M_out, M_in, *rest]
    grad: Tensor,  # [K, L, *rest]
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    need_out: bool,
    need_in: bool,
) -> tuple[Tensor, Tensor]:  # [K, T_out], [L, T_in]
    """Gradients of both tap weights, each from the nodes sampled along the other dimension.

    d out_weight[k, t] = <dW[k], (nodes S_in^T)[start_k + t]>
    d in_weight[l, t] = <dW[:, l], (S_out nodes)[:, start_l + t]>
    """
    wide = in_weight.dtype
    out_taps, in_taps = out_weight.shape[1], in_weight.shape[1]
    d_out, d_in = out_weight.new_empty(0, out_taps), in_weight.new_empty(0, in_taps)
    if need_out:
        x = interpolate(nodes, in_start, in_weight, 1, wide)
        d_out = interpolate_tap_gradient(x, grad, out_start, out_taps, 0)
    if need_in:
        x = interpolate(nodes, out_start, out_weight, 0, wide)
        d_in = interpolate_tap_gradient(x, grad, in_start, in_taps, 1)
    return d_out, d_in


def interpolate(x: Tensor, start: Tensor, weight: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = S x along `dim`: M nodes become K points. x [..., M, ...] -> [..., K, ...]."""
    dim = dim % x.dim()
    index, weight = _window(start, weight.shape[1], x.shape[dim]), weight[:, : x.shape[dim]]
    taken = x.to(weight.dtype).index_select(dim, index.flatten())
    return _group(taken, index, dim).mul(_align(weight, x, dim)).sum(dim + 1).to(dtype)


def spread(x: Tensor, start: Tensor, weight: Tensor, nodes: int, dim: int, dtype: torch.dtype) -> Tensor:
    """y = S^T x along `dim`: K points become M nodes (the adjoint). x [..., K, ...] -> [..., M, ...]."""
    dim = dim % x.dim()
    index, weight = _window(start, weight.shape[1], nodes), weight[:, :nodes]
    shares = x.to(weight.dtype).unsqueeze(dim + 1).mul(_align(weight, x, dim)).flatten(dim, dim + 1)
    empty = shares.new_zeros([*x.shape[:dim], nodes, *x.shape[dim + 1 :]])
    return empty.index_add(dim, index.flatten(), shares).to(dtype)


def interpolate_tap_gradient(x: Tensor, grad: Tensor, start: Tensor, taps: int, dim: int) -> Tensor:
    """d weight[k, t] = <grad[k], x[start_k + t]> over all other dimensions. Shape [K, taps]."""
    dim = dim % x.dim()
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    index = _window(start, taps, x.shape[dim])
    taken = _group(x.to(wide).index_select(dim, index.flatten()), index, dim)
    others = [d for d in range(taken.dim()) if d not in (dim, dim + 1)]
    product = taken * grad.to(wide).unsqueeze(dim + 1)
    gradient = product.sum(others) if others else product
    return F.pad(gradient, (0, taps - index.shape[1]))


def discretize_foreach(
    nodes: Sequence[Tensor],  # of each tensor, [M_out, M_in, *rest] or [M_out]
    start: Sequence[Tensor],  # of each of the taps
    weight: Sequence[Tensor],
    out: Sequence[int],  # of each tensor, which taps its first dimension has; -1 for none
    in_: Sequence[int],  # and its second
    dtype: torch.dtype,
) -> list[Tensor]:
    """Every tensor sampled along the dimensions that have taps."""
    made = []
    for x, o, i in zip(nodes, out, in_):
        if o >= 0 and i >= 0:
            made.append(discretize(x, start[o], weight[o], start[i], weight[i], dtype))
        else:
            made.append(interpolate(x, start[max(o, i)], weight[max(o, i)], 0 if o >= 0 else 1, dtype))
    return made


def discretize_foreach_adjoint(
    grads: Sequence[Tensor],
    start: Sequence[Tensor],
    weight: Sequence[Tensor],
    nodes: Sequence[int],  # of each of the taps
    out: Sequence[int],
    in_: Sequence[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Every gradient brought back to nodes."""
    made = []
    for x, o, i in zip(grads, out, in_):
        either = max(o, i)
        if o >= 0 and i >= 0:
            made.append(discretize_adjoint(x, start[o], weight[o], start[i], weight[i], nodes[o], nodes[i], dtype))
        else:
            made.append(spread(x, start[either], weight[either], nodes[either], 0 if o >= 0 else 1, dtype))
    return made


def weight_gradient(
    grad: Tensor,  # [B, K]
    x: Tensor,  # [B, L]
) -> Tensor:  # [K, L]
    """dW = dy^T x of a linear layer."""
    return grad.T @ x


def uniform_taps(
    start: Tensor,  # [K], written
    weight: Tensor,  # [K, T], written
    nodes: int,
    a: float,
    kernel: str,
    boundary: str,
    quadrature: str,
    scale: float | None,  # of the quadrature; None: sampled alone
) -> None:
    """The taps of K uniform points, or equal cells (`tap_makers`)."""
    basis, factor = Basis(a, boundary, kernel), 1.0 if scale is None else scale
    taps = tap_makers.compute(
        start.shape[0], nodes, basis, quadrature, scale is not None, factor, weight.dtype, start.device
    )
    start.copy_(taps.start)
    weight.copy_(taps.weight)


def axis_table(
    table: Tensor,  # int32, written: its parts behind each other
    start: Tensor,  # [K]
    weight: Tensor,  # [K, T]
    nodes: int,
    contributors: int,  # NT
) -> None:
    """The table of an axis: which points each node hears (`gpu.axis_table`)."""
    table.zero_()
    at = 0
    for part, size in zip(
        axis_parts(start, weight, nodes, contributors), table_parts(start.shape[0], nodes, contributors)
    ):
        table[at : at + size] = part.contiguous().view(torch.int32).flatten()
        at += aligned(size)


def axis_parts(start: Tensor, weight: Tensor, nodes: int, contributors: int) -> tuple[Tensor, ...]:
    """first, skew, lo, hi, crowded and coefficient, on the device of the taps and without waiting for it."""
    (points, taps), device, nt = weight.shape, start.device, contributors
    first = torch.searchsorted(start, torch.arange(nodes + 1, device=device, dtype=torch.int32), out_int32=True)
    node = torch.arange(-(-nodes // PAD) * PAD, device=device)  # [M']
    # Windows are pushed inside at the ends and filled up to T by weights of 0: points of weight 0 are not heard.
    point = torch.arange(points, device=device)[:, None].expand(-1, taps)  # [K, T]
    touched = start.long()[:, None] + torch.arange(taps, device=device)  # [K, T]
    skew = taps * point[:, 0] - start
    touched = torch.where(weight != 0, touched, node.numel()).clamp(max=node.numel()).flatten()
    lo, hi = (
        torch.full([node.numel() + 1], empty, device=device).scatter_reduce(0, touched, ends.flatten(), how)[:-1]
        for empty, ends, how in ((points, point, "amin"), (0, point + 1, "amax"))
    )
    lo = lo.clamp(max=max(points - nt, 0))
    point = lo + torch.arange(nt, device=device)[:, None]  # [NT, M']
    inside = point.clamp(max=points - 1)
    tap = node - start[inside]
    heard = (tap >= 0) & (tap < taps) & (point < points) & (node < nodes)
    coefficient = torch.where(heard, weight[inside, tap.clamp(0, taps - 1)], 0.0)
    more = hi > lo + nt
    crowded = torch.stack([torch.where(more, node, nodes).min(), torch.where(more, node + 1, 0).max()])
    return first, skew.int(), lo.int(), hi.int(), crowded.int(), coefficient


def linear(
    x: Tensor,  # [B, L]
    nodes: Tensor,  # [M_out, M_in]
    bias: Tensor | None,  # [M_out]
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
) -> Tensor:  # [B, K]
    """y = (x S_in nodes^T + bias) S_out^T."""
    wide = in_weight.dtype
    y = spread(x, in_start, in_weight, nodes.shape[1], -1, wide) @ nodes.to(wide).T
    return interpolate(y if bias is None else y + bias.to(wide), out_start, out_weight, -1, x.dtype)


def linear_backward(
    grad: Tensor,  # [B, K]
    x: Tensor,  # [B, L]
    nodes: Tensor,  # [M_out, M_in]
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    need_x: bool,
    need_nodes: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [B, L], [M_out, M_in], [M_out]
    """dx = dy' nodes S_in^T, d_nodes = dy'^T x', d_bias = sum dy', with dy' = dy S_out and x' = x S_in."""
    wide = in_weight.dtype
    dx, d_nodes, d_bias = x.new_empty(0), nodes.new_empty(0), nodes.new_empty(0)
    grad = spread(grad, out_start, out_weight, nodes.shape[0], -1, wide)
    if need_x:
        dx = interpolate(grad @ nodes.to(wide), in_start, in_weight, -1, x.dtype)
    if need_nodes:
        d_nodes = (grad.T @ spread(x, in_start, in_weight, nodes.shape[1], -1, wide)).to(nodes.dtype)
    if need_bias:
        d_bias = grad.sum(0).to(nodes.dtype)
    return dx, d_nodes, d_bias


def conv(
    x: Tensor,  # [B, L, H, W]
    nodes: Tensor,  # [M_out, M_in, R, S]
    bias: Tensor | None,  # [M_out]
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # [B, K, P, Q]
    """y = S_out (nodes * (S_in^T x) + bias)."""
    wide = in_weight.dtype
    x_nodes = spread(x, in_start, in_weight, nodes.shape[1], 1, wide)
    y = F.conv2d(x_nodes, nodes.to(wide), bias if bias is None else bias.to(wide), stride, padding, dilation)
    return interpolate(y, out_start, out_weight, 1, x.dtype)


def conv_input_gradient(
    grad: Tensor,  # [B, K, P, Q]
    nodes: Tensor,  # [M_out, M_in, R, S]
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # [B, L, H, W]
    """dx = S_in (the convolution's gradient at S_out^T dy); `size` is x's H and W."""
    wide = in_weight.dtype
    grad_nodes = spread(grad, out_start, out_weight, nodes.shape[0], 1, wide)
    shape = [grad.shape[0], nodes.shape[1], *size]
    dx = conv2d_input(shape, nodes.to(wide), grad_nodes, stride, padding, dilation)
    return interpolate(dx, in_start, in_weight, 1, grad.dtype)


def conv_node_gradient(
    grad: Tensor,  # [B, K, P, Q]
    x: Tensor,  # [B, L, H, W]
    nodes: Tensor,  # [M_out, M_in, R, S]
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_nodes: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:  # [M_out, M_in, R, S], [M_out]
    """d_nodes and d_bias of the convolution between S_in^T x and S_out^T dy."""
    wide = in_weight.dtype
    d_nodes, d_bias = nodes.new_empty(0), nodes.new_empty(0)
    grad = spread(grad, out_start, out_weight, nodes.shape[0], 1, wide)
    if need_nodes:
        x_nodes = spread(x, in_start, in_weight, nodes.shape[1], 1, wide)
        d_nodes = conv2d_weight(x_nodes, nodes.shape, grad, stride, padding, dilation).to(nodes.dtype)
    if need_bias:
        d_bias = grad.sum((0, 2, 3)).to(nodes.dtype)
    return d_nodes, d_bias


def _window(start: Tensor, taps: int, nodes: int) -> Tensor:
    """Indices [K, min(taps, nodes)] of the nodes each point sees."""
    return start.long()[:, None] + torch.arange(min(taps, nodes), device=start.device)


def _group(taken: Tensor, index: Tensor, dim: int) -> Tensor:
    """[..., K * T, ...] -> [..., K, T, ...]."""
    return taken.reshape([*taken.shape[:dim], *index.shape, *taken.shape[dim + 1 :]])


def _align(weight: Tensor, x: Tensor, dim: int) -> Tensor:
    """Weights [K, T] shaped to multiply a tensor whose dimensions dim, dim + 1 are K and T."""
    return weight.reshape([*weight.shape, *[1] * (x.dim() - dim - 1)])
