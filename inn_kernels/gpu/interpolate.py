"""Interpolate and spread: one axis of any tensor sampled, or its adjoint, for activations and one-axis weights (Eq. 5).

    interpolate   y = S x      y[., k, .] = sum_{t<T} weight[k, t] x[., start[k] + t, .]
    spread        x = S^T y    x[., i, .] = sum over k with start[k] in (i - T, i]  weight[k, i - start[k]] y[., k, .]
    gradients     of either in its tensor: the other; of interpolate in the weights (of spread with x and y swapped):
                  d weight[k, t] = <dy[., k, .], x[., start[k] + t, .]>

These are `discretize`, its adjoint and its tap gradient with one axis discrete, and run the same kernels, compiled
without the discrete axis's taps. A tensor [before, M, after] is seen in one of two ways:

    after >= LINE   `before` matrices of M rows and `after` columns: rows are sampled, a window of T in registers
    after <  LINE   one matrix of `before` rows and M * after columns: columns are sampled, T gathers from cache

Memory sees x once and y once; never the index or the [., T, .] expansion that eager indexing writes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from inn_kernels.gpu import discretize as discretize_file
from inn_kernels.gpu import discretize_adjoint as adjoint_file
from inn_kernels.gpu import discretize_tap_gradient as tap_file
from inn_kernels.gpu.launch import empty
from inn_kernels.gpu.sampler_tile import TAPS, Geometry, tap_label
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, with_constants

LINE = 128
"""Elements after the axis from which rows are sampled: a row then fills the threads of a program."""

NONE = (None, None)


def interpolate(
    x: Tensor,  # [..., M, ...]
    start: Tensor,  # [K]
    weight: Tensor,  # [K, T]
    dim: int,
    dtype: torch.dtype,
) -> Tensor:  # [..., K, ...]
    """y = S x along `dim`: M nodes become K points."""
    out, sizes, by_row = _along(x, dim, x.shape[dim], start.shape[0], start.shape[0], dtype)
    taps = (start, weight)
    return discretize_file.sample(x.contiguous(), out, sizes, *((taps, NONE) if by_row else (NONE, taps)))


def spread(
    x: Tensor,  # [..., K, ...]
    start: Tensor,  # [K]
    weight: Tensor,  # [K, T]
    nodes: int,
    dim: int,
    dtype: torch.dtype,
) -> Tensor:  # [..., M, ...]
    """y = S^T x along `dim`: K points become M nodes, the adjoint of `interpolate`."""
    out, sizes, by_row = _along(x, dim, nodes, start.shape[0], nodes, dtype)
    taps = (start, weight)
    return adjoint_file.gather_adjoint(x.contiguous(), out, sizes, *((taps, NONE) if by_row else (NONE, taps)))


def interpolate_tap_gradient(
    x: Tensor,  # [..., M, ...]
    grad: Tensor,  # [..., K, ...]
    start: Tensor,  # [K]
    taps: int,
    dim: int,
) -> Tensor:  # [K, taps]
    """d weight[k, t] = <grad[k], x[start_k + t]> over all other dimensions."""
    sizes, by_row = _geometry(x, dim, x.shape[dim], start.shape[0])
    own = (start, empty([start.shape[0], taps], torch.float32, x.device))  # its own weights are not in its gradient
    out_taps, in_taps = (own, NONE) if by_row else (NONE, own)
    sums = tap_file.tap_gradient(x.contiguous(), grad.contiguous(), sizes, out_taps, in_taps, by_row, not by_row)
    return sums[0] if by_row else sums[1]


def _geometry(x: Tensor, dim: int, nodes: int, points: int) -> tuple[Geometry, bool]:
    """How the kernels see x sampled along `dim`, and whether rows are sampled rather than columns."""
    dim = dim % x.dim()
    before, after = math.prod(x.shape[:dim]), math.prod(x.shape[dim + 1 :])
    if after >= LINE:
        return Geometry(before, nodes, points, 1, after, after, 1), True
    return Geometry(1, before, before, 1, nodes, points, after), False


def _along(
    x: Tensor, dim: int, nodes: int, points: int, size: int, dtype: torch.dtype
) -> tuple[Tensor, Geometry, bool]:
    """An empty result like x with `size` elements along `dim`, the geometry, and whether rows are sampled."""
    shape = list(x.shape)
    shape[dim] = size
    return empty(shape, dtype, x.device), *_geometry(x, dim, nodes, points)


_ABSENT = {
    "rows": ("TAPS_IN", "p_in_start", "p_in_weight", "p_d_in"),
    "columns": ("TAPS_OUT", "p_out_start", "p_out_weight", "p_d_out"),
}
VARIANTS = ("fp32-fp32", "bf16-bf16", *("bf16-bf16" + tap_label(taps) for taps in TAPS if taps[0] == taps[1]))
KERNELS = [
    replace(
        spec,
        configs=with_constants(
            [c for c in spec.configs if sampled == "columns" or c.constants["ADJACENT"]],  # rows are lines
            **{name: (None,) for name in absent if name in spec.signature},
            **{discrete: (1,)},
        ),
        variant=f"{spec.variant} {sampled}",
        targets=ALL_TARGETS if spec.variant == "bf16-bf16" else ONE_TARGET,
    )
    for operation in (discretize_file, adjoint_file, tap_file)
    for spec in operation.KERNELS
    for sampled, (discrete, *absent) in _ABSENT.items()
    if spec.variant in VARIANTS
]
