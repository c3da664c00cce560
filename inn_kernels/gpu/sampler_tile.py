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

# In kernels tuples grow by an element at a time.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.launch import Config, Launch, cdiv, is_channels_last, processors, target_of
from inn_kernels.gpu.specs import with_constants

SIZES = (
    "out_nodes", "out_points", "outer", "in_nodes", "in_points", "inner", "rows", "blocks", "tiles",
)  # fmt: skip
"""Run-time sizes, never specialized: not even for being 1 or a multiple of 16."""

TAP_COUNTS = ("out_taps", "in_taps")
"""Taps of a point of either axis, T, as run-time numbers: rows of weights are that long."""

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
def steps(size, inner, TAPS: tl.constexpr):
    """Distances of TAPS elements from the first; the last one again where fewer exist. TAPS of 0: of the first."""
    distances = (0,)
    for n in tl.static_range(1, TAPS):
        distances += (tl.minimum(size - 1, n) * inner,)
    return distances


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
def gather(
    p_first,  # [SUB * LANES] the first of each column's elements
    distances,  # see `steps`
    TAPS: tl.constexpr,  # how many; 0: the first alone
    ADJACENT: tl.constexpr,  # distances are 1, 2, ...: offsets inside the load instruction
):  # fmt: skip
    """Loads TAPS elements of each column, a tuple of [SUB * LANES] in their storage dtype."""
    b_x = (fetch(p_first),)
    for n in tl.static_range(1, TAPS):
        b_x += (fetch(p_first + (n if ADJACENT else distances[n])),)
    return b_x


@triton.jit
def dot(b_x, b_w, TAPS: tl.constexpr):
    """Weighted sum of what `gather` loaded. float32 [SUB * LANES]."""
    b_sum = b_w[0] * widen(b_x[0])
    for n in tl.static_range(1, TAPS):
        b_sum += b_w[n] * widen(b_x[n])
    return b_sum


@triton.jit
def load_taps(p_weight, i_point, taps, TAPS: tl.constexpr, EXACT: tl.constexpr):
    """The weights of a point (or of each point of a block), a tuple of TAPS, or of the first where TAPS is 0.

    EXACT: a point has TAPS of them. Otherwise it has `taps`, and weights of 0 follow.
    """
    p_first = p_weight + i_point * taps
    b_w = (tl.load(p_first),)
    for n in tl.static_range(1, TAPS):
        if EXACT:
            b_w += (tl.load(p_first + n),)
        else:
            b_w += (tl.load(p_first + n, mask=i_point * 0 + n < taps, other=0.0),)
    return b_w


@triton.jit
def zeros(COUNT: tl.constexpr, SIZE: tl.constexpr):
    """A window of COUNT rows (or one): a tuple of float32 [SIZE]."""
    b_window = (tl.zeros((SIZE,), tl.float32),)
    for _ in tl.static_range(1, COUNT):
        b_window += (tl.zeros((SIZE,), tl.float32),)
    return b_window


@triton.jit
def push(b_window, b_row, taps, TAPS: tl.constexpr, EXACT: tl.constexpr):
    """A window of TAPS rows moved on: the first leaves, `b_row` is the last; not EXACT, of the first `taps`."""
    b_moved = ()
    for n in tl.static_range(1, TAPS):
        b_next = b_window[n]
        if not EXACT:
            b_next = tl.where(n == taps, b_row, b_next)
        b_moved += (b_next,)
    if not EXACT:
        b_row = tl.where(taps == TAPS, b_row, b_window[TAPS - 1])
    b_moved += (b_row,)
    return b_moved


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
"""Start [K] and weight [K, T] of an axis, or Nones: the axis is discrete."""

HELD = 8
"""Most taps a kernel holds in registers, each number a compiled variant; widths use few (4, 6, 8). More are a loop."""


def flat_taps(*sides: SideTaps) -> list[Tensor | None]:
    """Starts and weights of both axes as the kernels take them: contiguous."""
    return [t if t is None or t.is_contiguous() else t.contiguous() for side in sides for t in side]


def tap_counts(*sides: SideTaps) -> list[int]:
    """T of each axis; 1 where it is discrete."""
    return [1 if weight is None else weight.shape[1] for _, weight in sides]


def held(taps: int) -> int:
    """How many of a point's taps a kernel holds in registers, its constexpr: all, or 0 for a loop over them."""
    return taps if taps <= HELD else 0


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

    def adjacent(self, elements: int, of: int) -> bool:
        """Neighbouring nodes or points of an input axis of `elements`, `of` at a time, are neighbours in memory."""
        return self.inner == 1 and elements >= of

    @property
    def node_columns(self) -> int:
        """Columns of a row of nodes."""
        return self.outer * self.in_nodes * self.inner

    @property
    def point_columns(self) -> int:
        """Columns of a row of W."""
        return self.outer * self.in_points * self.inner


def configs_for(table: Mapping[int, Sequence[Config]], *counts: int) -> Sequence[Config]:
    """Of a table by the most taps of an axis: the first that covers `counts`, else the last."""
    wanted, last = max(counts), max(table)
    return next((table[most] for most in table if wanted <= most), table[last])


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


def tap_launch(kernel: Any, sizes: Geometry, p: Plan, out_taps: int, in_taps: int, adjacent: bool) -> Launch:
    """The launch of `discretize` or its adjoint on tensors of these sizes, along axes of so many taps."""
    options = {"TAPS_OUT": held(out_taps), "TAPS_IN": held(in_taps), "ADJACENT": adjacent, "INDEX": p.index}
    numbers = (*sizes[1:], p.rows, p.blocks, p.tiles, out_taps, in_taps)
    return Launch(kernel, p.grid, numbers, {**options, **p.config.options})


TAPS = ((6, 6), (8, 8), (6, 8), (8, 6), (16, 16))
"""Taps of both axes that the samplers are compiled for ahead of time, besides (4, 4): cells of 25 to 100%, and more."""


def tap_configs(table: Mapping[int, Sequence[Config]], taps: tuple[int, int], **choices: Sequence[Any]) -> list[Config]:
    """The configurations of a table for taps of both axes, as a launcher passes them."""
    out, in_ = map(held, taps)
    return with_constants(configs_for(table, *taps), TAPS_OUT=(out,), TAPS_IN=(in_,), **choices)


def tap_label(taps: tuple[int, int]) -> str:
    """What a variant's name says of its taps."""
    return "" if taps == (4, 4) else " taps" + "-".join(str(held(n) or "any") for n in dict.fromkeys(taps))
