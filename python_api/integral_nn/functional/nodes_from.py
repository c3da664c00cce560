"""Nodes whose sample is a given weight: the banded solve that makes full size exact for every basis and rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inn_kernels.quadrature import Quadrature
from inn_kernels.taps import Basis, Partition, Taps
from integral_nn.functional import arguments


def nodes_from(
    weight: Tensor,
    out_partition: Partition | None = None,
    in_partition: Partition | None = None,
    *,
    spatial_partitions: Sequence[Partition | None] | None = None,
    quadrature: Quadrature = "trapezoid",
    scale: float = 1.0,
    kernel: str = "cubic",
    a: float = -0.75,
    boundary: str = "clamp",
) -> Tensor:
    """The nodes of which `discretize`, called with the same arguments, makes `weight`.

    As many nodes as points along every dimension that has a partition. (Image processing calls it the prefilter.)

    Args:
        weight: [K, L, *kernel], or [K].
        out_partition, in_partition, spatial_partitions: as of `discretize`, with as many points as `weight` has there.
        quadrature, scale, kernel, a, boundary: see `discretize`.

    Returns:
        Nodes of the weight's shape, dtype and device, solved for in float64. They carry no gradient.

    Raises:
        ValueError, TypeError: bad arguments, another number of points, or points that leave a node undetermined.

    >>> import torch, integral_nn as inn
    >>> weight, rule = torch.rand(8, 8), {"quadrature": "cells", "kernel": "bspline", "scale": 8.0}
    >>> nodes = inn.nodes_from(weight, 8, 8, **rule)
    >>> bool(torch.allclose(inn.discretize(nodes, 8, 8, **rule), weight, atol=1e-6))
    True
    """
    arguments.check_nodes(weight, range(1, 16), "[K, L, *kernel] or [K]", "weight")
    taps = arguments.weight_taps(
        weight,
        out_partition,
        in_partition,
        spatial_partitions,
        quadrature,
        scale,
        Basis(a, boundary, kernel),
        torch.float64,
    )
    for dim, along in enumerate(taps):
        if along is not None and along.points != along.nodes:
            name = ("out_partition", "in_partition")[dim] if dim < 2 else f"spatial_partitions[{dim - 2}]"
            raise ValueError(f"{name} must have as many points as weight, {along.nodes}, got {along.points}")
    nodes = weight.detach().double()
    for dim, along in enumerate(taps):
        if along is not None:
            nodes = solve_along(nodes, dim, along)
    return nodes.to(weight.dtype)


@torch.no_grad()
def solve_along(values: Tensor, dim: int, taps: Taps) -> Tensor:
    """x with S x = values along `dim`, of as many nodes as points. float64.

    Raises:
        ValueError: S has no inverse.
    """
    size = taps.nodes
    weight = taps.weight.detach().cpu().double()
    column = taps.start.cpu().long()[:, None] + torch.arange(weight.shape[1])  # [K, T]
    above = column - torch.arange(size)[:, None]  # of the diagonal
    heard = weight != 0
    weight, column, above = weight[heard], column[heard], above[heard]
    rows = values.movedim(dim, 0)
    if weight.numel() == size and not bool(above.any()):  # S scales nodes
        return (rows / weight.to(rows).view([-1] + [1] * (rows.dim() - 1))).movedim(0, dim)
    try:
        from scipy.linalg import LinAlgError, solve_banded
    except ImportError as error:
        raise ImportError("nodes of this basis and rule are solved for with scipy: pip install scipy") from error
    most, least = max(int(above.max()), 0), min(int(above.min()), 0)
    band = torch.zeros(most - least + 1, size, dtype=torch.float64)
    band[most - above, column] = weight
    flat = rows.reshape(size, -1).cpu().double()
    try:
        solved = solve_banded((-least, most), band.numpy(), flat.numpy())
    except LinAlgError as error:
        raise ValueError(f"out_partition or in_partition leaves a node undetermined: {error}") from error
    return torch.from_numpy(solved).to(values.device).reshape(rows.shape).movedim(0, dim)
