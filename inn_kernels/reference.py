"""The mathematics, a few lines an operation, in plain PyTorch: any device, any dtype, differentiable by autograd.

This is the specification the kernels are tested against, and the backend where nothing faster can run. S [K, M] is
the banded matrix of a partition's taps: S[k, start[k] + t] = weight[k, t].
"""

from __future__ import annotations

import torch
from torch import Tensor


def discretize(
    nodes: Tensor,  # [M_out, M_in, *rest]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, 4]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, 4]
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
) -> tuple[Tensor, Tensor]:  # [K, 4], [L, 4]
    """Gradients of both tap weights, each from the nodes sampled along the other dimension.

    d out_weight[k, t] = <dW[k], (nodes S_in^T)[start_k + t]>
    d in_weight[l, t] = <dW[:, l], (S_out nodes)[:, start_l + t]>
    """
    wide = in_weight.dtype
    d_out, d_in = out_weight.new_empty(0, 4), in_weight.new_empty(0, 4)
    if need_out:
        d_out = interpolate_tap_gradient(interpolate(nodes, in_start, in_weight, 1, wide), grad, out_start, 0)
    if need_in:
        d_in = interpolate_tap_gradient(interpolate(nodes, out_start, out_weight, 0, wide), grad, in_start, 1)
    return d_out, d_in


def interpolate(x: Tensor, start: Tensor, weight: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """y = S x along `dim`: M nodes become K points. x [..., M, ...] -> [..., K, ...]."""
    dim = dim % x.dim()
    index, weight = _window(start, weight, x.shape[dim])
    taken = x.to(weight.dtype).index_select(dim, index.flatten())
    return _group(taken, index, dim).mul(_align(weight, x, dim)).sum(dim + 1).to(dtype)


def spread(x: Tensor, start: Tensor, weight: Tensor, nodes: int, dim: int, dtype: torch.dtype) -> Tensor:
    """y = S^T x along `dim`: K points become M nodes (the adjoint). x [..., K, ...] -> [..., M, ...]."""
    dim = dim % x.dim()
    index, weight = _window(start, weight, nodes)
    shares = x.to(weight.dtype).unsqueeze(dim + 1).mul(_align(weight, x, dim)).flatten(dim, dim + 1)
    empty = shares.new_zeros([*x.shape[:dim], nodes, *x.shape[dim + 1 :]])
    return empty.index_add(dim, index.flatten(), shares).to(dtype)


def interpolate_tap_gradient(x: Tensor, grad: Tensor, start: Tensor, dim: int) -> Tensor:
    """d weight[k, t] = <grad[k], x[start_k + t]> over all other dimensions. Shape [K, 4]."""
    dim = dim % x.dim()
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    index, _ = _window(start, start[:, None].expand(-1, 4), x.shape[dim])
    taken = _group(x.to(wide).index_select(dim, index.flatten()), index, dim)
    others = [d for d in range(taken.dim()) if d not in (dim, dim + 1)]
    product = taken * grad.to(wide).unsqueeze(dim + 1)
    gradient = product.sum(others) if others else product
    return torch.nn.functional.pad(gradient, (0, 4 - index.shape[1]))


def _window(start: Tensor, weight: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Node indices and weights [K, T] of each point, T = min(4, nodes)."""
    taps = min(4, nodes)
    return start.long()[:, None] + torch.arange(taps, device=start.device), weight[:, :taps]


def _group(taken: Tensor, index: Tensor, dim: int) -> Tensor:
    """[..., K * T, ...] -> [..., K, T, ...]."""
    return taken.reshape([*taken.shape[:dim], *index.shape, *taken.shape[dim + 1 :]])


def _align(weight: Tensor, x: Tensor, dim: int) -> Tensor:
    """Weights [K, T] shaped to multiply a tensor whose dimensions dim, dim + 1 are K and T."""
    return weight.reshape([*weight.shape, *[1] * (x.dim() - dim - 1)])
