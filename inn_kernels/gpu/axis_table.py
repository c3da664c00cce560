"""The table of an axis: which points each of its nodes hears, as the fused kernels' prologue gathers them.

    x'[j] = sum_l x[l] S[l, j] = sum_{n<NT} coefficient[n, j] x[lo[j] + n]

S has T neighbouring taps a row and points are sorted, so node j hears the points of one contiguous range
lo[j] <= l < hi[j]. NT covers 4K/M + 1 points, whatever T: a node's function reaches over four nodes at most, where
so many evenly spread points or cells of M/K nodes lie. (Cells are wide where they are few: T grows, and padding fills
it up.) The rest of S is 0. Where points cluster, a node may hear more: those nodes lie in [crowded[0], crowded[1]), and
kernels add what the table left out in a second loop over that range alone, empty for uniform partitions.

Tables are kept while the taps live. Those of taps that were made of an int are made on the host, in one pass over them,
and brought to the device by one copy; others on the device, in some twenty operations. Neither waits for the device.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from inn_kernels import ops, reference, uniform_taps
from inn_kernels.gpu.launch import stream_of
from inn_kernels.gpu.record import recorder
from inn_kernels.operands import aligned, table_parts

CONTRIBUTORS = (4, 6, 8, 12)
"""NT, by class. Each is a compiled variant: 6 at K = M, 4 for fewer points, 8 and 12 for more points than nodes."""


class AxisTable(NamedTuple):
    """K points of T taps and M nodes of one axis; M' = M rounded up to a multiple of PAD."""

    start: Tensor  # int32 [K]
    weight: Tensor  # float32 [K, T]
    first: Tensor  # int32 [M + 1]         points whose taps start before node i
    skew: Tensor  # int32 [K]              T k - start[k]: S[k, j] is element skew[k] + j of weight
    lo: Tensor  # int32 [M']               first point of node j's NT; lo + NT <= max(K, NT)
    hi: Tensor  # int32 [M']               after the last point node j hears
    coefficient: Tensor  # float32 [NT, M']
    crowded: Tensor  # int32 [2]           nodes with hi > lo + NT lie in this range

    @property
    def points(self) -> tuple[Tensor, Tensor, Tensor]:
        """What an epilogue reads, which turns nodes into points."""
        return self.start, self.weight, self.first

    @property
    def nodes(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a prologue reads, which turns points into nodes."""
        return self.skew, self.weight, self.lo, self.hi, self.coefficient, self.crowded

    @property
    def taps(self) -> int:
        """T."""
        return self.weight.shape[1]

    @property
    def contributors(self) -> int:
        """NT."""
        return self.coefficient.shape[0]


def contributor_class(points: int, nodes: int) -> int:
    """NT of K evenly spread points on M nodes: the smallest class of at least 4K/M + 1, else the largest."""
    wanted = -(-4 * points // nodes) + 1
    return next((nt for nt in CONTRIBUTORS if nt >= wanted), CONTRIBUTORS[-1])


def axis_table(start: Tensor, weight: Tensor, nodes: int, *, capturing: bool = False) -> AxisTable:
    """The table of an axis from its taps, without waiting for a device.

    Args:
        start: int32 [K], non-decreasing.
        weight: [K, T].
        nodes: M.
        capturing: into a CUDA graph, which takes no copy from the host.
    """
    points = weight.shape[0]
    nt = contributor_class(points, nodes)
    host = uniform_taps.on_host(start, weight) if uniform_taps.AVAILABLE and not capturing else None
    start, weight = start.contiguous(), weight.detach().float().contiguous()
    if host is None:
        first, skew, lo, hi, crowded, coefficient = reference.axis_parts(start, weight, nodes, nt)
        return AxisTable(start, weight, first, skew, lo, hi, coefficient, crowded)
    sizes = table_parts(points, nodes, nt)
    steps = [aligned(size) for size in sizes]
    table = uniform_taps.host_memory(sum(steps), start.device)
    ops.axis_table(table, host[0], host[1].detach().float(), nodes, nt)
    parts = uniform_taps.brought(table, start.device).split_with_sizes(steps)
    first, skew, lo, hi, crowded, coefficient = [
        part if size == step else part[:size] for part, size, step in zip(parts, sizes, steps)
    ]
    coefficient = coefficient.view(torch.float32).view(nt, -1)
    return AxisTable(start, weight, first, skew, lo, hi, coefficient, crowded)


# By taps and then by stream: a table is only read on the stream that made it, so that none is read half made. Graphs
# replay at any time: what they captured is kept for good.
_tables: dict[tuple, dict[int, AxisTable]] = {}
_captured: list[AxisTable] = []
_TABLES_KEPT = 1024


def cached_table(start: Tensor, weight: Tensor, nodes: int) -> AxisTable:
    """`axis_table`, made once while the same two tensors come back unchanged, as those of fixed partitions do."""
    recording = recorder()
    if recording is None:
        return _kept_table(start, weight, nodes)
    table = recording.aside(lambda: _kept_table(start, weight, nodes))
    recording.kept(table, start, weight)
    return table


def _kept_table(start: Tensor, weight: Tensor, nodes: int) -> AxisTable:
    if weight.requires_grad or start.is_inference() or weight.is_inference():
        return axis_table(start, weight, nodes)
    stream, capturing = stream_of(start.device)
    key = (id(start), id(weight), start._version, weight._version, nodes)
    found = _tables.get(key, {})
    table = next(iter(found.values()), None) if capturing else found.get(stream)
    if table is None:
        table = axis_table(start, weight, nodes, capturing=capturing)
        if not capturing:
            if key not in _tables:
                while len(_tables) >= _TABLES_KEPT:
                    _tables.pop(next(iter(_tables)))
                for tensor in (start, weight):  # another tensor may then have its id
                    weakref.finalize(tensor, _tables.pop, key, None)
            _tables.setdefault(key, {})[stream] = table
    elif capturing:
        _captured.append(table)
    return table


def pad_points(x: Tensor, table: AxisTable) -> Tensor:
    """x [B, L, ...], contiguous, and with points of zeros up to NT where there are fewer: a table always reads NT."""
    missing = table.contributors - x.shape[1]
    if missing > 0:  # keeps channels_last
        x = torch.nn.functional.pad(x, [0, 0] * (x.dim() - 2) + [0, missing])
    return x.contiguous()
