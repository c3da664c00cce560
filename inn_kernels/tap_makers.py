"""How taps are made of points or cells, in plain differentiable PyTorch: what `taps` keeps, and the specification of
what the compiled library makes of ints."""

from __future__ import annotations

from typing import Any, NamedTuple, Union

import torch
from torch import Tensor

from inn_kernels import cells, transforms
from inn_kernels import quadrature as rules
from inn_kernels.basis import Basis, windows
from inn_kernels.points import locate, locate_uniform
from inn_kernels.quadrature import Quadrature

Partition = Union[Tensor, int]

DEFAULT_BASIS = Basis()


class Taps(NamedTuple):
    """T consecutive nodes and their weights for each of K points, or cells, on M nodes."""

    start: Tensor  # int32 [K]
    weight: Tensor  # [K, T]
    nodes: int  # M

    @property
    def identity(self) -> bool:
        """Whether S is known to be the identity."""
        return isinstance(self, IdentityTaps)

    @property
    def points(self) -> int:
        """K, the number of points."""
        return self.start.shape[0]

    def times(self, multiplier: Tensor | None, dtype: torch.dtype) -> Taps:
        """With the weights of each point multiplied, and of another dtype."""
        weight = self.weight if multiplier is None else self.weight * multiplier.to(self.weight.dtype)[:, None]
        return Taps(self.start, weight.to(dtype), self.nodes)


class IdentityTaps(Taps):
    """As many points as nodes, each of weight 1 on its own: nodes pass through. What is made of them is Taps again."""

    __slots__ = ()

    def _replace(self, **changes: Any) -> Taps:  # type: ignore[override]
        return Taps(*self)._replace(**changes)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_taps(
    partition: Partition,
    nodes: int,
    basis: Basis = DEFAULT_BASIS,
    *,
    centred: bool = False,
    multiplier: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Taps:
    """Taps of a partition on `nodes` nodes, differentiable in `partition` and `multiplier`.

    Args:
        partition: [K] non-decreasing points in [0, 1], or K, which means uniform points: k/(K-1), or, `centred`, the
            cell centres (k + 1/2)/K.
        nodes: M, the number of nodes along the axis, at least 1.
        basis: cubic parameter, boundary and kernel.
        centred: nodes at cell centres (the midpoint quadrature's placement) instead of at i/(M-1).
        multiplier: [K] factor of each point's weights: quadrature times scale.
        dtype: of the weights: what the kernel accumulates in.
        device: where the taps of an int are made.
    """
    if isinstance(partition, Tensor):
        piece, t = locate(partition, nodes, basis, centred)
    else:
        piece, t = locate_uniform(partition, nodes, basis, centred, device)
    return Taps(*windows(piece, basis.at(t), nodes, basis.boundary, 4), nodes).times(multiplier, dtype)


def make_cell_taps(
    edges: Partition,
    nodes: int,
    basis: Basis = DEFAULT_BASIS,
    *,
    multiplier: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Taps:
    """Taps of cells on `nodes` nodes, differentiable in `edges` and `multiplier`: the mean of F over each cell.

    Args:
        edges: [K + 1] increasing edges in [0, 1], or K, which means equal cells.
        nodes: M, the number of nodes along the axis, at least 1. Node i sits at (i + 1/2)/M.
        basis: cubic parameter, boundary and kernel.
        multiplier: [K] factor of each cell's weights: its width and scale, where the axis is integrated.
        dtype: of the weights: what the kernel accumulates in.
        device: where the taps of an int are made.
    """
    if isinstance(edges, Tensor):
        parts = cells.parts_of(edges, nodes, basis)
    else:
        parts = cells.parts_of_equal(edges, nodes, basis, device)
    count = parts.share.shape[1] + basis.heard - 1
    # Of symbols a class would be a branch, and its graph for a few sizes.
    width = torch.sym_max(count + count % 2, 4) if transforms.tracing() else tap_class(count)
    return Taps(*cells.mean_windows(parts, nodes, basis, width), nodes).times(multiplier, dtype)


def tap_class(count: int) -> int:
    """T for so many taps: 4, 6, 8, 12, 16, 24, .., of which kernels are compiled for a few."""
    size = 4
    while count > size:
        size = size * 4 // 3 if size % 3 == 0 else size * 3 // 2
    return size


def tap_count(points: int, nodes: int, basis: Basis, in_cells: bool) -> int:
    """T of an int's points or cells."""
    return tap_class(cells.most_parts(points, nodes, basis) + basis.heard - 1) if in_cells else 4


def compute(
    partition: Partition,
    nodes: int,
    basis: Basis,
    quadrature: Quadrature,
    weighted: bool,
    scale: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Taps:
    """Taps of a partition or of an int's points: with quadrature and scale in them, if `weighted`."""
    factor = multiplier(quadrature, partition, scale, device) if weighted else None
    if rules.is_cells(quadrature):
        return make_cell_taps(partition, nodes, basis, multiplier=factor, dtype=dtype, device=device)
    if not isinstance(partition, Tensor) and not rules.wants_uniform_points(quadrature):
        partition = rules.partition_for(quadrature, partition, dtype=torch.float64, device=device)
    centred = rules.is_centred(quadrature)
    return make_taps(partition, nodes, basis, centred=centred, multiplier=factor, dtype=dtype, device=device)


def multiplier(quadrature: Quadrature, partition: Partition, scale: float, device: torch.device) -> Tensor:
    """Quadrature weights times scale. Shape [K]."""
    if rules.is_cells(quadrature) and not isinstance(partition, Tensor):
        return torch.full((partition,), scale / partition, dtype=torch.float64, device=device)
    if isinstance(partition, Tensor):
        return rules.weights(quadrature, partition).double() * scale
    return rules.rule_for(quadrature, partition, device=device)[1].double() * scale
