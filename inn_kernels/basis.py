"""Bases: how nodes become a function, as polynomials on pieces.

Between two knots the weight function is a polynomial in which a few neighbouring nodes count:

    F = sum_j u_j(t) nodes[piece - 1 + j]        t in [0, 1]: how far into the piece        (Eq. 5)

    kernel          u_j                                   knots            continuous
    "cubic"         cubic convolution, parameter a        at nodes         slopes
    "linear"        the hat                               at nodes         values
    "bspline"       cubic B-spline (1/6, 4/6, 1/6)        at nodes         curvatures
    "conservative"  quadratic: the mean of F over the     between nodes    values
                    cell around a node is that node

The conservative basis is the derivative of the running integral of F, known at the edges between the cells of nodes
and interpolated there by Keys' kernel (a = -1/2). Nodes that a piece would take from outside are replaced by the
boundary: "clamp" repeats the end node, "keys" extrapolates quadratically.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BOUNDARIES = ("clamp", "keys")
KERNELS = ("cubic", "linear", "bspline", "conservative")


class Basis(NamedTuple):
    """How nodes become a function: cubic kernel parameter, boundary rule, kernel family."""

    a: float = -0.75
    boundary: str = "clamp"
    kernel: str = "cubic"

    @property
    def knots_between_nodes(self) -> bool:
        """Whether piece i is the cell of node i, not what lies between nodes i and i + 1."""
        return self.kernel == "conservative"

    @property
    def heard(self) -> int:
        """Nodes that count in a piece, from the one before it on."""
        return len(self.coefficients[0])

    @property
    def coefficients(self) -> Sequence[Sequence[float]]:
        """Of 1, t, t^2 and t^3 in u_j: four rows, a column for each node that counts."""
        if self.kernel != "cubic":
            return _COEFFICIENTS[self.kernel]
        a = self.a
        return [[0, 1, 0, 0], [a, 0, -a, 0], [-2 * a, -a - 3, 2 * a + 3, a], [a, a + 2, -a - 2, -a]]

    def at(self, t: Tensor) -> Tensor:
        """u_j(t) of the nodes that count. t [...] in [0, 1] -> [..., heard]."""
        one, first, second, third = self._rows(t)
        t = t[..., None]
        return torch.addcmul(one, t, torch.addcmul(first, t, torch.addcmul(second, t, third)))

    def mean(self, middle: Tensor, half: Tensor) -> Tensor:
        """The means of u_j over [middle - half, middle + half], which lies in [0, 1]. [...] -> [..., heard].

        That of a cubic p is p(m) + h^2 p''(m) / 6: no difference of integrals cancels, however short the interval.
        """
        _, _, second, third = self._rows(middle)
        bend = torch.addcmul(second / 3, middle[..., None], third)
        return self.at(middle) + half.square()[..., None] * bend

    def _rows(self, t: Tensor) -> Tensor:
        return torch.tensor(self.coefficients, dtype=t.dtype, device=t.device)


_COEFFICIENTS: dict[str, Sequence[Sequence[float]]] = {
    "linear": [[0, 1, 0, 0], [0, -1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    "bspline": [[1 / 6, 4 / 6, 1 / 6, 0], [-1 / 2, 0, 1 / 2, 0], [1 / 2, -1, 1 / 2, 0], [-1 / 6, 1 / 2, -1 / 2, 1 / 6]],
    "conservative": [[1 / 2, 1 / 2, 0], [-2, 3, -1], [3 / 2, -3, 3 / 2], [0, 0, 0]],
}


def windows(piece: Tensor, values: Tensor, nodes: int, boundary: str, width: int) -> tuple[Tensor, Tensor]:
    """Weights of nodes piece - 1, piece, .., some of which may lie outside, as windows of nodes that there are.

    Args:
        piece: int64 [K].
        values: [K, J] weights of J consecutive nodes from piece - 1 on, those outside at most two beyond an end.
        nodes: M.
        boundary: "clamp" or "keys".
        width: T >= J.

    Returns:
        start int32 [K] and weight [K, T], differentiable in `values`; 0 where start + t >= M.
    """
    first, count = piece - 1, values.shape[1]
    start = first.clamp(0, max(nodes - width, 0))
    column = torch.arange(width, device=piece.device)
    source = (start - first)[:, None] + column  # which of the values each kept node has
    kept = (source >= 0) & (source < count) & (start[:, None] + column < nodes)
    weight = torch.where(kept, values.gather(1, source.clamp(0, count - 1)), 0.0)
    touched = first[:, None] + torch.arange(count, device=piece.device)
    end = min(width, nodes) - 1  # where a window that reaches beyond the last node has it
    before, after = (_from_inside(values, beyond, nodes, boundary) for beyond in (-touched, touched - (nodes - 1)))
    order = before.shape[1]
    pad = torch.nn.functional.pad
    weight = weight + pad(before, (0, width - order)) + pad(after.flip(1), (end + 1 - order, width - 1 - end))
    return start.to(torch.int32), weight


def _from_inside(values: Tensor, beyond: Tensor, nodes: int, boundary: str) -> Tensor:
    """What nodes beyond an end (at a distance > 0) add to the end node, the one before it and so on. [K, order]"""
    order = 1 if boundary == "clamp" else min(nodes, 3)
    outside = torch.where(beyond > 0, values, 0.0)
    if order == 1:
        return outside.sum(1, keepdim=True)
    d = beyond.clamp(0, 2).double()  # the polynomial through the nodes at the end, at -d
    polynomials = ((d + 1) * (d + 2) / 2, -d * (d + 2), d * (d + 1) / 2) if order == 3 else (d + 1, -d)
    return torch.stack([(outside * p).sum(1) for p in polynomials], 1)


def check_basis(basis: Basis) -> None:
    """Raise unless `basis` names a known kernel and boundary and a finite `a`."""
    if basis.kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {list(KERNELS)}, got {basis.kernel!r}")
    if basis.boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {list(BOUNDARIES)}, got {basis.boundary!r}")
    if isinstance(basis.a, bool) or not isinstance(basis.a, (int, float)):
        raise TypeError(f"a must be a float, got {type(basis.a).__name__} {basis.a!r}")
    if not -1e6 < basis.a < 1e6:
        raise ValueError(f"a must be finite, got {basis.a!r}")
