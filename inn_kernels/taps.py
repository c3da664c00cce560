"""Taps: everything a kernel needs to know of a partition, its basis, boundary and quadrature.

A point x of a partition sees four consecutive nodes, a cell a few more, T of them:

    F(x) = sum_i nodes[i] u(s - i) = sum_{t<T} weight[t] nodes[start + t],     s: x in units of nodes   (Eq. 5)

`u` is the kernel of the basis (`basis`), or its mean over a cell (`cells`). Nodes that a tap would take from outside
are replaced by the boundary, and that is folded into the weights, as are quadrature and scale (Eq. 6). So a
kernel sees `start` and `weight` alone:

    start   int32 [K]      first of the T nodes, non-decreasing, 0 <= start <= max(0, M - T)
    weight  [K, T]         computed in float64, kept in the dtype that accumulates; 0 where start + t >= M

`weight` is plain differentiable PyTorch in the points and in the quadrature: a trainable partition needs from
each kernel only the gradient of `weight`. The points of a partition are taken as exact numbers, whatever their dtype;
the gradient they get is in that dtype.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from inn_kernels import quadrature as rules
from inn_kernels import transforms, uniform_taps
from inn_kernels.basis import Basis, check_basis
from inn_kernels.quadrature import Quadrature
from inn_kernels.tap_makers import (
    DEFAULT_BASIS,
    IdentityTaps,
    Partition,
    Taps,
    accumulate_dtype,
    compute,
    make_cell_taps,
    make_taps,
    multiplier,
    tap_class,
)
from inn_kernels.tensors import check_real, is_constant, is_readable, without_gradient


def check_partition(partition: Partition, name: str, edges: bool = False) -> None:
    """Raise unless `partition` is a positive int or strictly increasing finite points in [0, 1], shape [K]; or, if it
    is `edges` of cells, [K + 1]."""
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
    if edges and partition.shape[0] == 1:
        raise ValueError(f"{name} must hold the edges of cells, at least 2, got 1")
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
    if not transforms.tracing() and not transforms.faking() and (isinstance(quadrature, str) or not weighted):
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
    in_cells = rules.is_cells(quadrature)
    check_partition(partition, name, edges=in_cells)
    if weighted:
        fewest = rules.minimum_points(quadrature)
        count = partition.shape[0] - int(in_cells) if isinstance(partition, Tensor) else partition
        if count < fewest:
            raise ValueError(
                f"{name} must have at least {fewest} points for the closed rule {quadrature!r}, got {count}"
            )
    settings = (partition, nodes, basis, quadrature, weighted, scale, dtype, device)
    if kept is None:
        return compute(*settings)
    in_library = type(partition) is int and uniform_taps.serves(quadrature, weighted, dtype, device)
    if in_library and not torch.is_inference_mode_enabled() and not torch._C._are_functorch_transforms_active():
        taps = _made(*settings, in_library)
    else:
        with torch.inference_mode(False), torch.no_grad(), torch._C._DisableFuncTorch():
            taps = _made(*settings, in_library)
    taps = _told(taps)
    if type(taps.weight) is Tensor and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        _keep(kept, key, taps)  # neither a tracer's fake nor what a graph's replays will fill in
    return taps


def _made(
    partition: Partition,
    nodes: int,
    basis: Basis,
    quadrature: Quadrature,
    weighted: bool,
    scale: float,
    dtype: torch.dtype,
    device: torch.device,
    in_library: bool,
) -> Taps:
    """Taps to keep: of an int by the library, if it has them."""
    if in_library:
        assert isinstance(partition, int)
        return uniform_taps.made(_wanted(partition, nodes, basis, quadrature, weighted, scale, dtype), device)
    if isinstance(partition, int) and (weighted or dtype != torch.float64):  # all of a size are made of one
        plain = taps_for(partition, nodes, basis, quadrature=quadrature, dtype=torch.float64, device=device)
        return plain.times(multiplier(quadrature, partition, scale, device) if weighted else None, dtype)
    return compute(partition, nodes, basis, quadrature, weighted, scale, dtype, device)


def taps_ahead(settings: Iterable[tuple[int, int, Basis, str, bool, float, torch.dtype, torch.device]]) -> None:
    """Make and keep what `taps_for` will be asked for on GPUs: taps of many axes by one copy a device.

    Where nothing is to be copied, or is being captured or traced, nothing is done: `taps_for` makes them one by one.

    Args:
        settings: points, nodes, basis, quadrature, weighted, scale, dtype and device of each, as `taps_for` takes them.
    """
    missing: dict[torch.device, dict[tuple, uniform_taps.Wanted]] = {}
    for points, nodes, basis, quadrature, weighted, scale, dtype, device in settings:
        if not uniform_taps.copies(device):
            continue
        key = (points, nodes, basis, quadrature, weighted, scale if weighted else None, dtype, device)
        if key in _of_ints or not uniform_taps.has(quadrature, weighted, dtype):
            continue
        axes = missing.setdefault(device, {})
        if key not in axes:
            axes[key] = _wanted(points, nodes, basis, quadrature, weighted, scale, dtype)
    missing = {device: axes for device, axes in missing.items() if uniform_taps.at_hand(device)}
    if not missing:
        return
    with torch.inference_mode(False), torch.no_grad(), torch._C._DisableFuncTorch():
        for device, axes in missing.items():
            for key, taps in zip(axes, uniform_taps.made_together(list(axes.values()), device)):
                _put(_of_ints, key, _told(taps))


def _told(taps: Taps) -> Taps:
    """As `IdentityTaps`, where taps are that and it can be seen without waiting for a device."""
    host = uniform_taps.on_host(taps.start, taps.weight) if taps.points == taps.nodes else None
    if host is None or not is_readable(taps.weight):
        return taps
    start, weight = host
    own = (torch.arange(taps.points) - start)[:, None]  # which of a point's taps is the node of its number
    alone = torch.arange(weight.shape[1]) == own  # [K, T]
    return IdentityTaps(*taps) if torch.equal(weight, alone.to(weight.dtype)) else taps


def _wanted(
    points: int, nodes: int, basis: Basis, quadrature: Quadrature, weighted: bool, scale: float, dtype: torch.dtype
) -> uniform_taps.Wanted:
    rule = quadrature if isinstance(quadrature, str) else "trapezoid"  # any that has uniform points
    return uniform_taps.Wanted(points, nodes, basis, rule, scale if weighted else None, dtype)


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
    first = node - (taps.weight.shape[1] - 1)
    return torch.stack([torch.searchsorted(taps.start, first), torch.searchsorted(taps.start, node, right=True)], 1)


__all__ = [
    "Basis",
    "Partition",
    "Taps",
    "accumulate_dtype",
    "check_basis",
    "check_partition",
    "make_cell_taps",
    "make_taps",
    "neighbours",
    "tap_class",
    "taps_ahead",
    "taps_for",
]
