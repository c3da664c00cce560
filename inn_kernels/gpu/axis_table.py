"""The table of an axis: which points each of its nodes hears, as the fused kernels' prologue gathers them.

    x'[j] = sum_l x[l] S[l, j] = sum_{n<NT} coefficient[n, j] x[lo[j] + n]

S has T neighbouring taps a row and points are sorted, so node j hears the points of one contiguous range
lo[j] <= l < hi[j]. NT covers 4K/M + 1 points, whatever T: a node's function reaches over four nodes at most, where
so many evenly spread points or cells of M/K nodes lie. (Cells are wide where they are few: T grows, and padding fills
it up.) The rest of S is 0. Where points cluster, a node may hear more: those nodes lie in [crowded[0], crowded[1]), and
kernels add what the table left out in a second loop over that range alone, empty for uniform partitions.

Tables are made on the device of the taps in a few operations that do not wait for it, and kept while the taps live.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from inn_kernels.gpu.launch import stream_of
from inn_kernels.gpu.record import recorder

CONTRIBUTORS = (4, 6, 8, 12)
"""NT, by class. Each is a compiled variant: 6 at K = M, 4 for fewer points, 8 and 12 for more points than nodes."""

PAD = 64
"""Nodes a table is padded to a multiple of: the widest tile, so that kernels read it without masks."""


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


def axis_table(start: Tensor, weight: Tensor, nodes: int) -> AxisTable:
    """The table of an axis from its taps, in a few operations on their device and without waiting for it.

    Args:
        start: int32 [K], non-decreasing.
        weight: [K, T].
        nodes: M.
    """
    (points, taps), device = weight.shape, start.device
    nt = contributor_class(points, nodes)
    start, weight = start.contiguous(), weight.detach().float().contiguous()
    first = torch.searchsorted(start, torch.arange(nodes + 1, device=device, dtype=torch.int32), out_int32=True)
    node = torch.arange(-(-nodes // PAD) * PAD, device=device)  # [M']
    # Windows are pushed inside at the ends and filled up to T by weights of 0: points of weight 0 are not heard.
    point = torch.arange(points, device=device)[:, None].expand(-1, taps)  # [K, T]
    touched = start.long()[:, None] + torch.arange(taps, device=device)  # [K, T]
    skew = taps * point[:, 0] - start
    touched = torch.where(weight != 0, touched, node.numel()).clamp(max=node.numel()).flatten()
    lo, hi = (
        torch.full([node.numel() + 1], empty, device=device).scatter_reduce(0, touched, ends.flatten(), how)[:-1]
        for empty, ends, how in ((points, point, "amin"), (0, point + 1, "amax"))
    )
    lo = lo.clamp(max=max(points - nt, 0))
    point = lo + torch.arange(nt, device=device)[:, None]  # [NT, M']
    inside = point.clamp(max=points - 1)
    tap = node - start[inside]
    heard = (tap >= 0) & (tap < taps) & (point < points) & (node < nodes)
    coefficient = torch.where(heard, weight[inside, tap.clamp(0, taps - 1)], 0.0)
    more = hi > lo + nt
    crowded = torch.stack([torch.where(more, node, nodes).min(), torch.where(more, node + 1, 0).max()])
    return AxisTable(start, weight, first, skew.int(), lo.int(), hi.int(), coefficient, crowded.int())


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
        table = axis_table(start, weight, nodes)
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
