"""Trainable points: deltas whose partition they are, and the same at another number of points (paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from inn_kernels.quadrature import is_cells, is_centred


def deltas_from(points: Tensor, quadrature: str) -> Tensor:
    """Deltas whose partition is `points` (the edges of "cells"). Shape [K]."""
    if is_cells(quadrature) or not is_centred(quadrature):
        return _deltas(points.diff(), quadrature)
    edges = torch.cat([points.new_zeros(1), (points[1:] + points[:-1]) / 2, points.new_ones(1)])
    return _deltas(edges.diff(), quadrature)


def _deltas(gaps: Tensor, quadrature: str) -> Tensor:
    """Deltas [K] of the gaps between points (K - 1) or, where nodes are centred, of the cells (K); their mean square
    is 1."""
    delta = gaps.clamp(min=1e-12).sqrt()
    if not is_centred(quadrature):
        delta = torch.cat([delta.new_zeros(1), delta])
    return delta / delta.square().mean().sqrt()


def resized(delta: Tensor, size: int, quadrature: str) -> Tensor:
    """Deltas of `size` points: the points (or the cells' edges), as a function of k, linearly interpolated."""
    gaps = delta if is_centred(quadrature) else delta[1:]
    ends = torch.nn.functional.pad(torch.cumsum(gaps.square(), 0), (1, 0))
    count = size + 1 if is_centred(quadrature) else size
    place = torch.arange(count, dtype=ends.dtype, device=ends.device) * ((ends.shape[0] - 1) / (count - 1))
    left = place.floor().clamp(max=ends.shape[0] - 2).long()
    return _deltas(torch.lerp(ends[left], ends[left + 1], place - left).diff() / ends[-1], quadrature)


def stretched(moment: Tensor, size: int, quadrature: str) -> Tensor:
    """Something known of each delta, linearly interpolated to `size` of them; what is not negative stays so."""
    first = 0 if is_centred(quadrature) else 1  # the delta that is no gap
    rest = torch.nn.functional.interpolate(moment[None, None, first:], size - first, mode="linear")[0, 0]
    return torch.cat([moment[:first], rest])
