"""Columns, runs of rows, and searches: what the row-streaming kernels share.

Both sides of a sampled weight are seen as rows of columns, whatever the layout,

    nodes   [batch, out_nodes,  outer, in_nodes,  inner]         W   [batch, out_points, outer, in_points, inner]

with kernel offsets in `inner` (contiguous) or in `outer` (channels_last), so that one kernel serves every layout. A
program owns SUB x LANES columns, one a thread and sub-tile, and a run of rows. Column numbers past the end are clamped,
not masked: loads need no mask, and the compiler cannot see neighbours to pack into one thread, which would put a layout
conversion (shared memory and a barrier) into the loop. So would blocks of two dimensions: releases of Triton differ in
which one they call the fast one of a gather. Stores are masked.

Sizes are run-time arguments: widths change at every training step, and a compiled kernel serves them all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.launch import Config, cdiv, is_channels_last, processors, target_of

SIZES = (
    "out_nodes", "out_points", "outer", "in_nodes", "in_points", "inner", "rows", "blocks", "tiles",
)  # fmt: skip
"""Run-time sizes, never specialized: not even for being 1 or a multiple of 16."""

MIN_ROWS = 8
"""Fewest rows a program streams: below, the three rows it shares with its neighbour cost more than idle processors."""


@triton.jit
def columns(i_tile, width, SUB: tl.constexpr, LANES: tl.constexpr, INDEX: tl.constexpr):
    """Of a tile: its first column; offsets from it, [SUB * LANES]; the same, clamped to the last one; which exist."""
    i_first = i_tile.to(INDEX) * (SUB * LANES)
    b_lane = tl.arange(0, SUB * LANES)  # [SUB * LANES]
    left = tl.minimum(width - i_first, SUB * LANES).to(tl.int32)
    return i_first, b_lane, tl.minimum(b_lane, left - 1), b_lane < left


@triton.jit
def split_columns(i_first, b_near, size, inner):
    """Columns of an [outer, size, inner] row -> (outer, position along size, inner), [SUB * LANES] each.

    Only the first column is divided with its own width: column numbers may be int64, and a block of those would call
    a division routine for each.
    """
    i_line = i_first // inner
    i_outer = i_line // size
    b_inner = (i_first - i_line * inner).to(tl.int32) + b_near
    b_size = (i_line - i_outer * size).to(tl.int32) + b_inner // inner
    return i_outer + b_size // size, b_size % size, b_inner % inner


@triton.jit
def steps(size, inner):
    """Distances of elements 1, 2, 3 from the first of four; the last one again where fewer exist."""
    return tl.minimum(size - 1, 1) * inner, tl.minimum(size - 1, 2) * inner, tl.minimum(size - 1, 3) * inner


@triton.jit
def fetch(p_x):
    """Values as they are stored, or the bits of a bfloat16 (given as uint16), for `widen`.

    Bits fill a register each. Values of two bytes the compiler packs in pairs, and waits for them there.
    """
    if p_x.dtype.element_ty == tl.uint16:
        return tl.load(p_x).to(tl.uint32)
    else:
        return tl.load(p_x)


@triton.jit
def widen(b_x):
    """Values, or the bits of a bfloat16, in float32."""
    if b_x.dtype == tl.uint16 or b_x.dtype == tl.uint32:
        return (b_x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return b_x.to(tl.float32)


@triton.jit
def gather_4(
    p_first,  # [SUB * LANES] the first of each column's four elements
    step_1, step_2, step_3,
    SAMPLE: tl.constexpr,  # False: the axis is discrete, one element
    ADJACENT: tl.constexpr,  # steps are 1, 2, 3: offsets inside the load instruction
):  # fmt: skip
    """Loads the four elements of each column, [SUB * LANES] each, in their storage dtype."""
    b_x0 = fetch(p_first)
    if SAMPLE:
        if ADJACENT:
            return b_x0, fetch(p_first + 1), fetch(p_first + 2), fetch(p_first + 3)
        else:
            return b_x0, fetch(p_first + step_1), fetch(p_first + step_2), fetch(p_first + step_3)
    else:
        return b_x0, b_x0, b_x0, b_x0


@triton.jit
def dot_4(b_x0, b_x1, b_x2, b_x3, b_w0, b_w1, b_w2, b_w3, SAMPLE: tl.constexpr):
    """Weighted sum of what `gather_4` loaded. float32 [SUB * LANES]."""
    if SAMPLE:
        return b_w0 * widen(b_x0) + b_w1 * widen(b_x1) + b_w2 * widen(b_x2) + b_w3 * widen(b_x3)
    else:
        return widen(b_x0)


@triton.jit
def load_4(p_weight, i_point):
    """The four weights of a point (or of each point of a block)."""
    p_first = p_weight + i_point * 4
    return tl.load(p_first), tl.load(p_first + 1), tl.load(p_first + 2), tl.load(p_first + 3)


@triton.jit
def points_before(p_start, points, b_node):
    """How many points have start < node: a binary search of the non-decreasing `start`. int32 like b_node."""
    step = 1
    while step * 2 <= points:
        step *= 2
    b_count = b_node * 0
    while step > 0:
        b_probe = b_count + step  # all of these below? then they count
        b_start = tl.load(p_start + b_probe - 1, mask=b_probe <= points, other=2147483647)
        b_count = tl.where(b_start < b_node, b_probe, b_count)
        step = step // 2
    return b_count


SideTaps = tuple[Tensor, Tensor] | tuple[None, None]
"""Start [K] and weight [K, 4] of an axis, or Nones: the axis is discrete."""


def flat_taps(*sides: SideTaps) -> list[Tensor | None]:
    """Starts and weights of both axes as the kernels take them: contiguous."""
    return [t if t is None else t.contiguous() for side in sides for t in side]


class Geometry(NamedTuple):
    """Sizes of the two sides, in the order the kernels take them."""

    batch: int
    out_nodes: int
    out_points: int
    outer: int
    in_nodes: int
    in_points: int
    inner: int

    @property
    def index(self) -> tl.dtype:
        """Of column numbers. Offsets of rows are int64 always."""
        return tl.int32 if max(self.node_columns, self.point_columns) < 2**31 - 2**16 else tl.int64

    @property
    def adjacent_nodes(self) -> bool:
        """The four nodes of an input tap are neighbours in memory."""
        return self.inner == 1 and self.in_nodes >= 4

    @property
    def adjacent_points(self) -> bool:
        """Four neighbouring input points are neighbours in memory."""
        return self.inner == 1 and self.in_points >= 4

    @property
    def node_columns(self) -> int:
        """Columns of a row of nodes."""
        return self.outer * self.in_nodes * self.inner

    @property
    def point_columns(self) -> int:
        """Columns of a row of W."""
        return self.outer * self.in_points * self.inner


class Plan(NamedTuple):
    """How a launch divides the work: rows a program, runs of rows, tiles of columns."""

    config: Config
    rows: int
    blocks: int
    tiles: int
    grid: tuple[int]
    index: tl.dtype  # of column numbers


def weight_geometry(x: Tensor, out_nodes: int, out_points: int, in_nodes: int, in_points: int) -> Geometry:
    """Geometry of a weight-shaped x [*, *, *rest] that is contiguous or channels_last."""
    offsets = math.prod(x.shape[2:])
    outer, inner = (offsets, 1) if is_channels_last(x) else (1, offsets)
    return Geometry(1, out_nodes, out_points, outer, in_nodes, in_points, inner)


def dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels_last, else a contiguous copy."""
    return x if is_channels_last(x) else x.contiguous()


@functools.lru_cache(4096)
def plan(sizes: Geometry, length: int, width: int, configs: Sequence[Config], device: torch.device) -> Plan:
    """Tile a batch of matrices of `length` rows and `width` columns: one wave of programs, all resident at once.

    `configs` go from wide to narrow. A wide tile keeps more loads in flight; it is used once MIN_ROWS rows a program
    still fill the chip. Rows then grow until the programs just fit: no last, half-empty wave, and least halo.
    """
    batch = sizes.batch
    for config in [c.on(target_of(device)) for c in configs]:
        tiles = cdiv(width, config.constants["SUB"] * config.constants["LANES"])
        wave = config.resident * processors(device)
        if batch * tiles * cdiv(length, MIN_ROWS) >= wave:
            break
    rows = max(MIN_ROWS, cdiv(length, max(1, wave // (batch * tiles))))
    blocks = cdiv(length, rows)
    return Plan(config, rows, blocks, tiles, (batch * blocks * tiles,), sizes.index)
