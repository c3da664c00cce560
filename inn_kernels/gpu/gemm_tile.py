"""The GEMM tile of the fused kernels `linear` and `conv`: sampling in its prologue and its epilogue (Eq. 5, 6).

A fused kernel never forms W_q = S_out nodes S_in^T. It multiplies by the nodes and interpolates activations:

    prologue   x'[c, b] = sum_l S[l, c] x[l, b]                       points -> nodes, on an operand of the tensor core
    product    y'[i, b] = sum_c nodes[i, c] x'[c, b] + bias[i]
    epilogue   y[k, b]  = sum_{t<T} weight[k, t] y'[start[k] + t, b]  nodes -> points, on its accumulator

Rows b are rows of x or pixels of an image. Columns c are nodes j, or (j, t) where kernel offsets t ride along. The same
tile makes the gradient of x, with the nodes transposed. Windows of T nodes straddle tiles, so tiles overlap:

          L points             columns, DEPTH a step                       windows that start in the tile's first nodes
    x [ROWS, L] --gather NT--> x' [ROWS, DEPTH] --\
                                                   tensor core -> y' [NODES, ROWS] --gather T--> y [ROWS, points]
    nodes [NODES, DEPTH] --cast in registers------/

S has T neighbouring taps a row and points are sorted, so node j hears the points of one contiguous range
lo[j] <= l < hi[j] and the prologue is a gather without masks or searches (`axis_table`):

    x'[j, b] = sum_{n<NT} coefficient[n, j] x[lo[j] + n, b]

Where points cluster, nodes hear more than NT points. What the table leaves out is added in a second loop over those
nodes alone, empty for uniform partitions. (A loop of varying length inside the main one would keep it from being
pipelined.) Few rows leave few tiles: several programs then share the columns of a tile (`split_sum`).

How `linear` and `conv` differ is in what they pass: where nodes and rows lie, as two functions and their arguments.
Two flags say which way blocks lie, so that neighbours in memory are neighbours in a block: x' is [ROWS, DEPTH] where
X_ROWS_FIRST, else [DEPTH, ROWS]; the accumulator is [NODES, ROWS] where NODES_FIRST, else [ROWS, NODES].
"""

from __future__ import annotations

import triton
import triton.language as tl

from inn_kernels import operands
from inn_kernels.gpu.launch import cdiv
from inn_kernels.gpu.split_sum import sum_splits

PAD = tl.constexpr(operands.PAD)
"""A kernel hands on the table of an axis as the tuple (p_skew, p_weight, p_lo, p_hi, p_coefficient, padded(M))."""

NODES = tl.constexpr(64)
"""Nodes of an accumulator along the axis that its epilogue leaves."""


def tile_count(nodes: int, taps: int, advance: int | None = None) -> int:
    """Tiles along M nodes: NODES + 1 - T windows of T start in a tile, or `advance` of them."""
    return cdiv(max(nodes + 1 - taps, 1), advance or NODES.value + 1 - taps)


@triton.jit
def padded(n_node):
    """Length of a table's rows."""
    return tl.cdiv(n_node, PAD) * PAD


@triton.jit
def crowd(table, b_node, NT: tl.constexpr):
    """The most points beyond NT that one of the nodes b_node [N] hears; 0 or less where none is crowded."""
    _skew, _weight, p_lo, p_hi, _coefficient, _n_padded = table
    return tl.max(tl.load(p_hi + b_node) - tl.load(p_lo + b_node), axis=0) - NT


@triton.jit
def gather(p_x, b_inside, table, b_node, channel, ROWS_FIRST: tl.constexpr, NT: tl.constexpr):
    """x' of nodes b_node [N] from the table, float32 [R, N] where ROWS_FIRST, else [N, R].

    p_x points at point 0 of each row (and node), b_inside says which exist; points are `channel` apart.
    """
    ROW: tl.constexpr = 0 if ROWS_FIRST else 1  # dimension
    _skew, _weight, p_lo, _hi, p_coefficient, n_padded = table
    p_point = p_x + tl.expand_dims(tl.load(p_lo + b_node) * tl.cast(channel, tl.int64), ROW)
    b_coefficient = tl.load(p_coefficient + b_node)
    b_sum = tl.expand_dims(b_coefficient, ROW) * tl.load(p_point, mask=b_inside, other=0.0).to(tl.float32)
    for n in tl.static_range(1, NT):
        p_point += channel
        b_coefficient = tl.load(p_coefficient + n * n_padded + b_node)
        b_sum += tl.expand_dims(b_coefficient, ROW) * tl.load(p_point, mask=b_inside, other=0.0).to(tl.float32)
    return b_sum


@triton.jit
def gather_rest(b_sum, p_x, b_inside, table, b_node, channel, n_more, ROWS_FIRST: tl.constexpr, NT: tl.constexpr):
    """b_sum and what `gather` leaves out: up to n_more = crowd(...) points a node."""
    ROW: tl.constexpr = 0 if ROWS_FIRST else 1  # dimension
    p_skew, p_weight, p_lo, p_hi, _coefficient, _n_padded = table
    for n in range(NT, NT + n_more):
        b_point = tl.load(p_lo + b_node) + n  # [N]
        b_heard = b_point < tl.load(p_hi + b_node)
        b_skew = tl.load(p_skew + b_point, mask=b_heard, other=0)
        b_weight = tl.load(p_weight + b_skew + b_node, mask=b_heard, other=0.0)
        p_point = p_x + tl.expand_dims(b_point * tl.cast(channel, tl.int64), ROW)
        b_x = tl.load(p_point, mask=tl.expand_dims(b_heard, ROW) & b_inside, other=0.0)
        b_sum += tl.expand_dims(b_weight, ROW) * b_x.to(tl.float32)
    return b_sum


@triton.jit
def assign(i_program, n_row_tile, n_column, n_split, DEPTH: tl.constexpr):
    """Tile of rows, tile of nodes and split of a program, and the columns it sums: (row, node, split, begin, end)."""
    i_row = i_program % n_row_tile
    i_split = i_program // n_row_tile % n_split
    i_node = i_program // n_row_tile // n_split
    n_share = tl.cdiv(tl.cdiv(n_column, DEPTH), n_split) * DEPTH
    begin = i_split * n_share
    return i_row, i_node, i_split, begin, tl.minimum(begin + n_share, n_column)


@triton.jit
def multiply(
    load_nodes: tl.constexpr, nodes,  # load_nodes(nodes, c0, DEPTH): a step's nodes, as the accumulator lies
    locate: tl.constexpr, x,  # locate(x, c0, DEPTH): a step's p_x and b_inside, as x' lies, and b_node [DEPTH]
    table, p_crowded, channel, n_offset,  # columns a node
    begin, end,
    X: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,  # storage dtype of x; of operands; of products
    X_ROWS_FIRST: tl.constexpr, NODES_FIRST: tl.constexpr, NT: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """nodes times x', summed over columns begin .. end. float32 [NODES, ROWS] where NODES_FIRST, else [ROWS, NODES]."""
    b_acc = tl.zeros([NODES, ROWS] if NODES_FIRST else [ROWS, NODES], tl.float32)
    for crowded in tl.static_range(2):  # all columns from the table, then what it leaves out of the crowded ones
        if crowded:
            begin = tl.maximum(tl.load(p_crowded) * n_offset // DEPTH * DEPTH, begin)
            end = tl.minimum(tl.load(p_crowded + 1) * n_offset, end)
        for c0 in range(begin, end, DEPTH):
            b_nodes = load_nodes(nodes, c0, DEPTH)
            p_x, b_inside, b_node = locate(x, c0, DEPTH)
            if crowded:
                b_x = tl.zeros([ROWS, DEPTH] if X_ROWS_FIRST else [DEPTH, ROWS], tl.float32)
                n_more = crowd(table, b_node, NT)
                b_x = gather_rest(b_x, p_x, b_inside, table, b_node, channel, n_more, X_ROWS_FIRST, NT)
            else:
                b_x = gather(p_x, b_inside, table, b_node, channel, X_ROWS_FIRST, NT)
            b_x = b_x.to(X).to(COMPUTE)
            if X_ROWS_FIRST == NODES_FIRST:
                b_x = tl.trans(b_x)
            if NODES_FIRST:
                b_acc = tl.dot(b_nodes.to(COMPUTE), b_x, b_acc, input_precision=PRECISION)
            else:
                b_acc = tl.dot(b_x, b_nodes.to(COMPUTE), b_acc, input_precision=PRECISION)
    return b_acc


@triton.jit
def finish(
    b_acc, p_bias,  # None: no bias
    p_partial, p_ticket, i_tile, i_split, n_split,  # see `sum_splits`
    i0, i_end, n_node,  # first node of the tile; windows of the tile start before i_end; nodes of the axis
    points,  # (p_start, p_weight, p_first) of the axis
    p_y, b_exists, channel,  # [ROWS] point 0 of each row; which rows exist; distance of points
    TAPS: tl.constexpr, NODES_FIRST: tl.constexpr,
):  # fmt: skip
    """Sum the splits, add the bias, interpolate at the points whose windows start in the tile, and store."""
    NODE: tl.constexpr = 0 if NODES_FIRST else 1  # dimensions of the accumulator
    ROW: tl.constexpr = 1 if NODES_FIRST else 0
    b_acc, done = sum_splits(b_acc, p_partial, p_ticket, i_tile, i_split, n_split)
    if done:
        if p_bias is not None:
            b_i = tl.minimum(tl.arange(0, NODES), n_node - 1 - i0)  # [NODES]
            b_acc += tl.expand_dims(tl.load(p_bias + i0 + b_i).to(tl.float32), ROW)
        p_start, p_weight, p_first = points
        k_end = tl.load(p_first + i_end)
        for k0 in range(tl.load(p_first + i0), k_end, NODES):
            b_k = k0 + tl.arange(0, NODES)  # [NODES] points
            b_here = b_k < k_end
            b_tap = tl.maximum(tl.load(p_start + b_k, mask=b_here, other=0) - i0, 0)
            b_y = tl.zeros_like(b_acc)
            for t in tl.static_range(TAPS):
                b_weight = tl.load(p_weight + TAPS * b_k + t, mask=b_here, other=0.0)  # [NODES]
                b_from = tl.broadcast_to(tl.expand_dims(b_tap + t, ROW), b_acc.shape)
                b_y += tl.expand_dims(b_weight, ROW) * tl.gather(b_acc, b_from, NODE)
            p_out = tl.expand_dims(p_y, NODE) + tl.expand_dims(b_k * tl.cast(channel, tl.int64), ROW)
            b_mask = tl.expand_dims(b_here, ROW) & tl.expand_dims(b_exists, NODE)
            tl.store(p_out, b_y.to(p_y.dtype.element_ty), mask=b_mask)
