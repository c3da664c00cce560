"""Points: in which piece of a basis each point of a partition lies, and how far into it."""

from __future__ import annotations

import torch
from torch import Tensor

from inn_kernels.basis import Basis


def node_position(partition: Tensor, nodes: int, centred: bool) -> Tensor:
    """Points in units of nodes. Node i sits at i/(M-1), or, `centred`, at the cell centre (i + 1/2)/M."""
    return partition * nodes - 0.5 if centred else partition * (nodes - 1)


def locate(points: Tensor, nodes: int, basis: Basis, centred: bool) -> tuple[Tensor, Tensor]:
    """The piece of each point (int64 [K]; see `basis`) and how far into it the point lies, differentiable in the points
    (float64 [K], in [0, 1])."""
    s = node_position(points.double(), nodes, centred)
    s = s + 0.5 if basis.knots_between_nodes else s
    to_knot = s.detach().round() - s.detach()
    s = s + torch.where(to_knot.abs() <= nodes * 2.0**-52, to_knot, 0.0)  # within s's own round-off of a knot: on it
    between = basis.knots_between_nodes
    last = nodes - 1 if centred or between else max(nodes - 2, 0)  # the point at 1 ends the last piece
    piece = s.detach().floor().clamp(-1 if centred and not between else 0, last)
    return piece.to(torch.int64), s - piece


def locate_uniform(
    points: int, nodes: int, basis: Basis, centred: bool, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """The same for uniform points, whose positions are fractions: k (M-1) / (K-1), or ((2k+1) M - K) / 2K."""
    k = torch.arange(points, device=device)
    if centred:
        numerator, denominator = (2 * k + 1) * nodes - points, 2 * points
    else:
        numerator, denominator = 2 * k * (nodes - 1), 2 * max(points - 1, 1)
    if basis.knots_between_nodes:
        numerator = numerator + denominator // 2
    piece = numerator.div(denominator, rounding_mode="floor")
    return piece, (numerator - piece * denominator).double() / denominator
