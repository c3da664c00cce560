"""Quadratures: weights q with  sum_l q[l] f(P[l]) ~ integral of f over [0, 1].

Every rule works on any partition (increasing points in [0, 1]), is written in differentiable
PyTorch, and is evaluated in float64, whatever dtype the points have. `h` is the vector of gaps between
neighbouring points.

    left         q[l] = P[l+1] - P[l]             order 1   (the last cell ends at 1)
    right        q[l] = P[l] - P[l-1]             order 1   (the first cell starts at 0)
    trapezoid    q[l] = (h[l-1] + h[l]) / 2       order 2   (paper, Fig. 2c)
    midpoint     cell edges halfway between neighbours; equal weights on cell-centred points; order 2
    simpson      a parabola through each three points; order 4, even and odd counts alike
    gauss-legendre  the interpolatory rule of the points; on Legendre's points, exact to degree 2n - 1

One is none: "cells" integrates the weight function itself over the cells between n + 1 edges (`cells`). Its weights are
the widths of the cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import numpy as np
import torch
from torch import Tensor

from inn_kernels import transforms
from inn_kernels.tensors import FLOATING, check_real, describe, is_checked, is_constant, is_readable

Quadrature = Union[str, Tensor, Callable[[Tensor], Tensor]]


def uniform_partition(n: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """The n points k/(n-1): both ends of [0, 1] included. One point sits at 0. Shape [n]."""
    n, dtype = _point_count(n), _point_dtype(dtype)
    return torch.arange(n, dtype=torch.float64, device=device).div(max(n - 1, 1)).to(dtype)


def midpoint_partition(n: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """The centres (k + 1/2)/n of n equal cells of [0, 1]. Shape [n]."""
    n, dtype = _point_count(n), _point_dtype(dtype)
    return ((torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n).to(dtype)


def gauss_legendre_partition(
    n: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """The n zeros of Legendre's polynomial of degree n, moved from [-1, 1] to [0, 1]. Shape [n]."""
    n, dtype = _point_count(n), _point_dtype(dtype)
    return _legendre_rule(n, device)[0].to(dtype)


def partition_for(
    quadrature: Quadrature, n: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """The n points a quadrature wants: Legendre's, the cell centres, or (every other rule) uniform ones.

    "cells" wants the n + 1 edges of equal cells.
    """
    rule = _PARTITIONS.get(quadrature, uniform_partition) if isinstance(quadrature, str) else uniform_partition
    return rule(n, dtype=dtype, device=device)


def is_cells(quadrature: Quadrature) -> bool:
    """Whether the weight function is integrated over cells, and a partition is their edges."""
    return isinstance(quadrature, str) and quadrature == "cells"


def is_centred(quadrature: Quadrature) -> bool:
    """Whether node i sits at the centre of the i-th of M equal cells, (i + 1/2)/M, instead of at i/(M-1)."""
    return isinstance(quadrature, str) and quadrature in ("cells", "midpoint")


def wants_uniform_points(quadrature: Quadrature) -> bool:
    """Whether an int stands for uniform points, or, with "midpoint", for the centres of equal cells."""
    return not isinstance(quadrature, str) or quadrature != "gauss-legendre"


def rule_for(quadrature: Quadrature, n: int, *, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """The n points a quadrature wants and its weights on them, float64. Shapes [n], [n]."""
    if isinstance(quadrature, str) and quadrature == "gauss-legendre":
        return _legendre_rule(_point_count(n), device)
    points = partition_for(quadrature, n, dtype=torch.float64, device=device)
    return points, weights(quadrature, points)


def partition_from_deltas(delta: Tensor) -> Tensor:
    """Trainable partition P = cumsum(delta^2 / sum delta^2) with P[0] = 0 (paper, section 3.2).

    Args:
        delta: [n] latent gaps of any sign; gap k is proportional to delta[k]^2. The paper fixes delta[0] = 0;
            its value is ignored here, so that P[0] = 0 holds whatever an optimizer does to it.

    Returns:
        [n] points from 0 to 1 in delta's dtype, computed in float64, non-decreasing, differentiable in `delta`. A zero
        delta makes two points coincide.

    Raises:
        ValueError, TypeError: another shape or dtype, deltas that are NaN, infinite or all zero.
    """
    if not isinstance(delta, Tensor):
        raise TypeError(f"delta must be a floating-point tensor, got {describe(delta)}")
    check_real(delta, "delta")
    if delta.dim() != 1 or delta.shape[0] < 2:
        raise ValueError(f"delta must have shape [n] with n >= 2, got {list(delta.shape)}")
    gaps = delta[1:].double()
    largest = gaps.detach().abs().amax()
    if is_checked(delta):
        if not bool(torch.isfinite(largest)):
            raise ValueError("delta must be finite, got NaN or infinite values")
        if not bool(largest > 0):
            raise ValueError("delta must not be zero throughout, got no gap between any two points")
    ends = torch.cumsum((gaps / largest).square(), 0)  # no square overflows, and not all underflow
    points = torch.nn.functional.pad(ends / ends[-1], (1, 0))  # the last point is 1, never a rounding above it
    return points.to(delta.dtype)


def minimum_points(quadrature: Quadrature) -> int:
    """The fewest points a quadrature can work with: 2 for the closed rules (trapezoid, simpson), else 1."""
    return 2 if isinstance(quadrature, str) and quadrature in ("trapezoid", "simpson") else 1


def check_quadrature(quadrature: Quadrature, name: str = "quadrature") -> None:
    """Raise unless `quadrature` is a known name, a floating-point tensor [n], or a callable."""
    if isinstance(quadrature, str):
        if quadrature not in _RULES:
            raise ValueError(f"{name} must be one of {sorted(_RULES)}, a tensor or a callable, got {quadrature!r}")
    elif isinstance(quadrature, Tensor):
        check_real(quadrature, name)
        if quadrature.dim() != 1:
            raise ValueError(f"{name} must be a tensor of shape [n], got shape {list(quadrature.shape)}")
    elif not callable(quadrature):
        raise TypeError(f"{name} must be a name, a tensor or a callable, got {describe(quadrature)}")


def weights(quadrature: Quadrature, partition: Tensor) -> Tensor:
    """The weights q of a quadrature on a partition.

    Args:
        quadrature: a name (weights in float64), a tensor of weights [n] (returned as it is), or a callable
            points -> weights, called with the points in float64.
        partition: [n] increasing points in [0, 1]; for "cells", the n + 1 edges.

    Returns:
        [n] weights, differentiable in `partition` (and in a tensor or callable quadrature).

    Raises:
        ValueError: unknown name, too few points for a closed rule, weights whose shape is not [n], and, on a CPU,
            weights that are NaN or infinite.
        TypeError: a quadrature of any other type.
    """
    check_quadrature(quadrature)
    n = partition.shape[0]
    if isinstance(quadrature, str):
        if n < minimum_points(quadrature):
            raise ValueError(f"partition must have at least 2 points for the closed rule {quadrature!r}, got {n}")
        return _RULES[quadrature](partition.double())
    q = quadrature if isinstance(quadrature, Tensor) else quadrature(partition.double())
    if not isinstance(q, Tensor):
        raise TypeError(f"quadrature must return a tensor, got {describe(q)}")
    check_real(q, "quadrature's weights")
    if q.shape != partition.shape:
        raise ValueError(f"quadrature must have one weight a point, shape {[n]}, got shape {list(q.shape)}")
    if q.device != partition.device:
        raise ValueError(f"quadrature must be on the partition's device {partition.device}, got {q.device}")
    if is_checked(q) and not bool(torch.isfinite(q.detach()).all()):
        raise ValueError("quadrature must have finite weights, got NaN or infinite ones")
    return q


def _left(p: Tensor) -> Tensor:
    return torch.cat([p[1:], p.new_ones(1)]) - p


def _right(p: Tensor) -> Tensor:
    return p - torch.cat([p.new_zeros(1), p[:-1]])


def _trapezoid(p: Tensor) -> Tensor:
    half = (p[1:] - p[:-1]) / 2
    return torch.nn.functional.pad(half, (0, 1)) + torch.nn.functional.pad(half, (1, 0))


def _midpoint(p: Tensor) -> Tensor:
    edges = torch.cat([p.new_zeros(1), (p[1:] + p[:-1]) / 2, p.new_ones(1)])
    return edges[1:] - edges[:-1]


def _cells(edges: Tensor) -> Tensor:
    return edges[1:] - edges[:-1]


def _edges(n: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    return uniform_partition(_point_count(n) + 1, dtype=dtype, device=device)


def _simpson(p: Tensor) -> Tensor:
    """Each interval takes a share of the parabola through its ends and the next point to the right, the rest of the
    one to the left. An even number of intervals pairs them up: shares 1, 0, 1, 0, .. An odd number leaves one over; the
    average of pairing up from either end, which keeps the rule symmetric, has shares 1, 1/2, .., 1/2, 0.

    Written without a branch on the parity, so that a compiled graph serves every count.
    """
    h = p[1:] - p[:-1]
    if h.shape[0] == 1:
        return _trapezoid(p)
    if is_checked(h) and bool((h.detach() < _SMALLEST_GAP).any()):
        raise ValueError(
            f"partition must have gaps of at least {_SMALLEST_GAP:g} for the rule 'simpson', "
            f"got {float(h.detach().min()):g}: its weights go with the ratios of neighbouring gaps"
        )
    i = torch.arange(h.shape[0], device=p.device)
    paired = i[-1] % 2 == 1
    share = torch.where(paired, (i % 2 == 0).to(p.dtype), 0.5)
    share = torch.where(i == 0, 1.0, torch.where(i == i[-1], 0.0, share))
    right = share[:-1] * _parabola(h[:-1], h[1:])  # of points i, i + 1, i + 2
    left = (1 - share[1:]) * _parabola(h[1:], h[:-1])  # of points i + 1, i, i - 1
    pad = torch.nn.functional.pad
    return pad(right[0] + left[2], (0, 2)) + pad(right[1] + left[1], (1, 1)) + pad(right[2] + left[0], (2, 0))


_SMALLEST_GAP = 1e-30  # bounds the ratio of two gaps: weights stay finite in float32, gradients in float64


def _parabola(h: Tensor, h_next: Tensor) -> Tensor:
    """Weights of the integral over an interval of length h of the parabola through its outer end, the end it shares
    with the next interval, and the far end of that one. Shape [3, n]."""
    ratio, part = h / h_next, h / (h + h_next)
    return torch.stack([3 - part, 3 + ratio, -ratio * part]) * h / 6


def _gauss_legendre(p: Tensor) -> Tensor:
    n = p.shape[0]
    if is_readable(p) and is_constant(p):
        points, q = _legendre_rule(n, p.device)
        if torch.allclose(p, points, rtol=0, atol=2.0**-50):  # but for round-off
            return q
    # Any other points: the weights that integrate Legendre's polynomials 0 .. n-1 exactly.
    x = 2 * p - 1
    rows = [torch.ones_like(x), x]
    for k in range(1, n - 1):
        rows.append(((2 * k + 1) * x * rows[k] - k * rows[k - 1]) / (k + 1))
    moments = torch.zeros_like(p)
    moments[0] = 1
    q = torch.linalg.solve(torch.stack(rows[:n]), moments)
    if is_readable(q) and float(q.detach().abs().sum()) > 1e3:
        raise ValueError(
            f"partition admits no stable gauss-legendre rule ({n} points far from Legendre's); "
            "pass an int, or points from gauss_legendre_partition"
        )
    return q


def _legendre_rule(n: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Points and weights on [0, 1]. In a traced graph n may be a symbol: there, eigenvalues of Legendre's Jacobi matrix
    and first components of its eigenvectors, which are as exact but for the smallest weights of hundreds of points."""
    if not transforms.tracing():
        points, q = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(n))
        return ((points + 1) / 2).to(device), (q / 2).to(device)
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k * k - 1).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    q = vectors[0].square()
    points, q = (2 + points - points.flip(0)) / 4, (q + q.flip(0)) / 2
    return points.to(device), q.to(device)


def _point_count(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, (int, np.integer, torch.SymInt)):
        raise TypeError(f"n must be an int, got {describe(n)}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return n


def _point_dtype(dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.get_default_dtype()
    if dtype not in FLOATING:
        raise TypeError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype!r}")
    return dtype


_PARTITIONS: dict[str, Callable[..., Tensor]] = {
    "cells": _edges,
    "midpoint": midpoint_partition,
    "gauss-legendre": gauss_legendre_partition,
}
_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "left": _left,
    "right": _right,
    "trapezoid": _trapezoid,
    "midpoint": _midpoint,
    "simpson": _simpson,
    "gauss-legendre": _gauss_legendre,
    "cells": _cells,
}
