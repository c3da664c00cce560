"""Taps: everything a kernel needs to know of a partition, its basis, boundary and quadrature.

A point x of a partition sees four consecutive nodes:

    F(x) = sum_i nodes[i] u(s - i) = sum_{t<4} weight[t] nodes[start + t],     s: x in units of nodes   (Eq. 5)

`u` is the cubic convolution kernel (parameter a) or the hat function. Nodes that a tap would take from outside
are replaced by the boundary, and that is folded into the four weights, as are quadrature and scale (Eq. 6). So a
kernel sees `start` and `weight` alone:

    start   int32 [K]      first of the four nodes, non-decreasing, 0 <= start <= max(0, M - 4)
    weight  [K, 4]         computed in float64, kept in the dtype that accumulates; 0 where start + t >= M

`weight` is plain differentiable PyTorch in the points and in the quadrature: a trainable partition needs from
each kernel only the gradient of `weight`. The points of a partition are taken as exact numbers, whatever their dtype;
the gradient they get is in that dtype.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple, Union

import torch
from torch import Tensor

from inn_kernels import quadrature as rules
from inn_kernels import transforms
from inn_kernels.quadrature import Quadrature
from inn_kernels.tensors import check_real, is_constant, is_readable, without_gradient

Partition = Union[Tensor, int]

BOUNDARIES = ("clamp", "keys")


class Basis(NamedTuple):
    """How nodes become a function: cubic kernel parameter, boundary rule, kernel family."""

    a: float = -0.75
    boundary: str = "clamp"
    kernel: str = "cubic"


DEFAULT_BASIS = Basis()


class Taps(NamedTuple):
    """Four consecutive nodes and their weights for each of K points on M nodes."""

    start: Tensor  # int32 [K]
    weight: Tensor  # [K, 4]
    nodes: int  # M

    @property
    def points(self) -> int:
        """K, the number of points."""
        return self.start.shape[0]

    def times(self, multiplier: Tensor | None, dtype: torch.dtype) -> Taps:
        """With the weights of each point multiplied, and of another dtype."""
        weight = self.weight if multiplier is None else self.weight * multiplier.to(self.weight.dtype)[:, None]
        return Taps(self.start, weight.to(dtype), self.nodes)


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
        cell, t = _locate(partition, nodes, centred)
    else:
        cell, t = _locate_uniform(partition, nodes, centred, device)
    u = _kernel_weights(t, basis)  # [K, 4], nodes cell - 1 .. cell + 2
    start = (cell - 1).clamp(0, max(nodes - 4, 0)).to(torch.int32)
    touched = cell[:, None] + torch.arange(-1, 3, device=cell.device)  # [K, 4], may lie outside
    fold = _boundary_matrix(touched, start, nodes, basis.boundary)  # [K, 4 touched, 4 kept]
    return Taps(start, (u.unsqueeze(-1) * fold).sum(1), nodes).times(multiplier, dtype)


def node_position(partition: Tensor, nodes: int, centred: bool) -> Tensor:
    """Points in units of nodes. Node i sits at i/(M-1), or, `centred`, at the cell centre (i + 1/2)/M."""
    return partition * nodes - 0.5 if centred else partition * (nodes - 1)


def _locate(points: Tensor, nodes: int, centred: bool) -> tuple[Tensor, Tensor]:
    """The cell of each point, which is the index of the node at or left of it (int64 [K]), and how far into the cell
    it lies, differentiable in the points (float64 [K], in [0, 1])."""
    s = node_position(points.double(), nodes, centred)
    to_node = s.detach().round() - s.detach()
    s = s + torch.where(to_node.abs() <= nodes * 2.0**-52, to_node, 0.0)  # within s's own round-off of a node: on it
    last = nodes - 1 if centred else max(nodes - 2, 0)  # the point at 1 ends the last cell
    cell = s.detach().floor().clamp(-1 if centred else 0, last)
    return cell.to(torch.int64), s - cell


def _locate_uniform(points: int, nodes: int, centred: bool, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """The same for uniform points, whose positions are fractions: k (M-1) / (K-1), or ((2k+1) M - K) / 2K."""
    k = torch.arange(points, device=device)
    if centred:
        numerator, denominator = (2 * k + 1) * nodes - points, 2 * points
    else:
        numerator, denominator = k * (nodes - 1), max(points - 1, 1)
    cell = numerator.div(denominator, rounding_mode="floor")
    return cell, (numerator - cell * denominator).double() / denominator


def _kernel_weights(t: Tensor, basis: Basis) -> Tensor:
    """u at distances t + 1, t, 1 - t, 2 - t: the weights of the four nodes around a point, for t in [0, 1]."""
    if basis.kernel == "linear":
        return torch.stack([torch.zeros_like(t), 1 - t, t, torch.zeros_like(t)], -1)
    a, t = basis.a, t[:, None]
    coefficients = [
        [0, 1, 0, 0],
        [a, 0, -a, 0],
        [-2 * a, -a - 3, 2 * a + 3, a],
        [a, a + 2, -a - 2, -a],
    ]  # of 1, t, t^2, t^3
    one, first, second, third = torch.tensor(coefficients, dtype=t.dtype, device=t.device)
    return torch.addcmul(one, t, torch.addcmul(first, t, torch.addcmul(second, t, third)))


def _boundary_matrix(touched: Tensor, start: Tensor, nodes: int, boundary: str) -> Tensor:
    """E with  node value touched[k, j] = sum_t E[k, j, t] nodes[start[k] + t]. Shape [K, 4, 4]."""
    kept = start[:, None] + torch.arange(4, device=start.device)  # [K, 4]
    order = min(nodes, 3)
    if boundary == "clamp" or order == 1:
        return (touched.clamp(0, nodes - 1)[:, :, None] == kept[:, None, :]).double()
    matrix = (touched[:, :, None] == kept[:, None, :]).double()
    inside = ((touched >= 0) & (touched < nodes))[:, :, None]
    matrix = torch.where(inside, matrix, 0.0)
    # Extrapolate the polynomial through the `order` nodes at an end: c[-d] = sum_i lagrange_i(-d) c[i].
    for distance, first, step in ((-touched, 0, 1), (touched - (nodes - 1), nodes - 1, -1)):
        d = distance.clamp(min=0).double()
        lagrange = ((d + 1) * (d + 2) / 2, -d * (d + 2), d * (d + 1) / 2) if order == 3 else (d + 1, -d)
        for i, coefficient in enumerate(lagrange):
            here = (kept == first + step * i)[:, None, :] & (distance > 0)[:, :, None]
            matrix = matrix + torch.where(here, coefficient[:, :, None], 0.0)
    return matrix


def check_basis(basis: Basis) -> None:
    """Raise unless `basis` names a known kernel and boundary and a finite `a`."""
    if basis.kernel not in ("cubic", "linear"):
        raise ValueError(f"kernel must be 'cubic' or 'linear', got {basis.kernel!r}")
    if basis.boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {list(BOUNDARIES)}, got {basis.boundary!r}")
    if isinstance(basis.a, bool) or not isinstance(basis.a, (int, float)):
        raise TypeError(f"a must be a float, got {type(basis.a).__name__} {basis.a!r}")
    if not -1e6 < basis.a < 1e6:
        raise ValueError(f"a must be finite, got {basis.a!r}")


def check_partition(partition: Partition, name: str) -> None:
    """Raise unless `partition` is a positive int or strictly increasing finite points in [0, 1], shape [K]."""
    if isinstance(partition, bool) or not isinstance(partition, (int, Tensor, torch.SymInt)):
        raise TypeError(f"{name} must be a tensor of points, an int or None, got {type(partition).__name__}")
    if not isinstance(partition, Tensor):
        if partition < 1:
            raise ValueError(f"{name} must have at least 1 point, got {partition}")
        return
    check_real(partition, name)
    if partition.dim() != 1:
        raise ValueError(f"{name} must have shape [K], got shape {list(partition.shape)}")
    if partition.shape[0] == 0:
        raise ValueError(f"{name} must have at least 1 point, got an empty tensor")
    if not is_readable(partition):
        return
    points = partition.detach()
    if not bool(torch.isfinite(points).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite points")
    low, high = float(points[0]), float(points[-1])
    falls = points[1:] <= points[:-1]
    if bool(falls.any()):
        k = int(falls.int().argmax())
        raise ValueError(
            f"{name} must be strictly increasing, got {float(points[k])} before {float(points[k + 1])} at point {k}"
        )
    if low < 0 or high > 1:
        raise ValueError(f"{name} must lie in [0, 1], got points from {low} to {high}")


def taps_for(
    partition: Partition,
    nodes: int,
    basis: Basis = DEFAULT_BASIS,
    *,
    quadrature: Quadrature = "trapezoid",
    weighted: bool = False,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    name: str = "partition",
) -> Taps:
    """Checked taps of an int or tensor partition; those of fixed partitions are computed once and kept.

    Args:
        partition: [K] points, or K, which asks for the points the quadrature wants.
        nodes: M.
        basis: cubic parameter, boundary and kernel.
        quadrature: decides where nodes sit and where an int's points lie; with `weighted`, also their weights.
        weighted: fold quadrature and `scale` into the weights (the input axis); otherwise sample alone.
        scale: factor of the quadrature.
        dtype: of the weights.
        device: where an int's taps are made. A tensor partition must be there already.
        name: the argument's name, for errors.

    Raises:
        ValueError, TypeError: see `check_partition`, `check_basis`, `quadrature.weights`.
    """
    device = torch.device(device)
    if isinstance(partition, Tensor) and partition.dim() == 0 and torch.jit.is_tracing():
        partition = int(partition)  # the size of a tensor, which this tracer gives as another
    if isinstance(partition, Tensor) and partition.device != device:
        raise ValueError(f"{name} must be on the nodes' device {device}, got {partition.device}")
    kept: dict[tuple, Taps] | None = None
    key: tuple = ()
    if not transforms.tracing() and (isinstance(quadrature, str) or not weighted):
        kept = _kept_for(partition)
    if kept is not None:
        named = quadrature if isinstance(quadrature, str) else None
        source = None if isinstance(partition, Tensor) else partition
        key = (source, nodes, basis, named, weighted, scale if weighted else None, dtype, device)
        found = kept.get(key)
        if found is not None:
            return found
        if isinstance(kept, _TapsOfTensor):
            partition = kept.points  # which nobody else can write to
    check_basis(basis)
    rules.check_quadrature(quadrature)
    check_partition(partition, name)
    if weighted:
        fewest = rules.minimum_points(quadrature)
        count = partition.shape[0] if isinstance(partition, Tensor) else partition
        if count < fewest:
            raise ValueError(
                f"{name} must have at least {fewest} points for the closed rule {quadrature!r}, got {count}"
            )
    if kept is None:
        return _compute(partition, nodes, basis, quadrature, weighted, scale, dtype, device)
    with torch.inference_mode(False), torch.no_grad(), torch._C._DisableFuncTorch():
        if isinstance(partition, int) and (weighted or dtype != torch.float64):  # all of a size are made of one
            plain = taps_for(partition, nodes, basis, quadrature=quadrature, dtype=torch.float64, device=device)
            taps = plain.times(_multiplier(quadrature, partition, scale, device) if weighted else None, dtype)
        else:
            taps = _compute(partition, nodes, basis, quadrature, weighted, scale, dtype, device)
    if type(taps.weight) is Tensor:  # never a tracer's fake
        _keep(kept, key, taps)
    return taps


def _compute(
    partition: Partition,
    nodes: int,
    basis: Basis,
    quadrature: Quadrature,
    weighted: bool,
    scale: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Taps:
    multiplier = _multiplier(quadrature, partition, scale, device) if weighted else None
    if not isinstance(partition, Tensor) and not rules.wants_uniform_points(quadrature):
        partition = rules.partition_for(quadrature, partition, dtype=torch.float64, device=device)
    centred = isinstance(quadrature, str) and quadrature == "midpoint"
    return make_taps(partition, nodes, basis, centred=centred, multiplier=multiplier, dtype=dtype, device=device)


def _multiplier(quadrature: Quadrature, partition: Partition, scale: float, device: torch.device) -> Tensor:
    """Quadrature weights times scale. Shape [K]."""
    if isinstance(partition, Tensor):
        return rules.weights(quadrature, partition).double() * scale
    return rules.rule_for(quadrature, partition, device=device)[1].double() * scale


class _TapsOfTensor(dict[tuple, Taps]):
    """Taps of one tensor by all else they depend on: valid while it holds the points they were made of."""

    def __init__(self, partition: Tensor) -> None:
        super().__init__()
        name = id(partition)
        self.tensor = weakref.ref(partition, lambda _: _of_tensors.pop(name, None))
        self.version = partition._version
        self.points = without_gradient(partition.detach().clone())

    def serve(self, partition: Tensor) -> bool:
        """Whether `partition` is the tensor and unchanged."""
        if self.tensor() is not partition or self.version != partition._version:
            return False
        # Writing through `.data` leaves no other trace. To compare elsewhere would be to wait for the device.
        return not partition.is_cpu or torch.equal(partition, self.points)


# Taps of fixed partitions, the oldest first: those of ints in one table, and a table for each tensor, by its id, that
# goes when the tensor goes or is written to. What changes a table is one operation of a dict: threads need no lock.
_of_ints: dict[tuple, Taps] = {}
_of_tensors: dict[int, _TapsOfTensor] = {}
_KEPT = 4096


def _kept_for(partition: Partition) -> dict[tuple, Taps] | None:
    """The table that has a partition's taps or, once made, will; None where they may differ from call to call."""
    if type(partition) is int:
        return _of_ints
    if not isinstance(partition, Tensor) or type(partition) not in (Tensor, torch.nn.Parameter):
        return None
    if partition.requires_grad:  # which may be switched on at any time
        return None
    table = _of_tensors.get(id(partition))
    if table is not None and table.serve(partition):
        return table
    return _TapsOfTensor(partition) if is_constant(partition) and not partition.is_inference() else None


def _keep(table: dict[tuple, Taps], key: tuple, taps: Taps) -> None:
    _put(table, key, taps)
    if isinstance(table, _TapsOfTensor):
        tensor = table.tensor()
        if tensor is not None:
            _put(_of_tensors, id(tensor), table)


def _put(table: dict, key: object, value: object) -> None:
    """Add to a table; a full one first loses its older half."""
    if len(table) >= _KEPT:
        for old in list(table)[: _KEPT // 2]:
            table.pop(old, None)
    table[key] = value


def neighbours(taps: Taps) -> Tensor:
    """The offsets [M, 2] of each node's contributing points: those k in [lo, hi) have node i among their taps."""
    node = torch.arange(taps.nodes, device=taps.start.device, dtype=torch.int32)
    return torch.stack([torch.searchsorted(taps.start, node - 3), torch.searchsorted(taps.start, node, right=True)], 1)


__all__ = [
    "Basis",
    "Partition",
    "Taps",
    "accumulate_dtype",
    "check_basis",
    "check_partition",
    "make_taps",
    "neighbours",
    "node_position",
    "taps_for",
]
