"""A tile of the adjoint: rows of dW streamed under rows of d_nodes (`discretize_adjoint`, `foreach_adjoint`).

    row k of dW    . . . . . .     up to NEAR points a node column in registers, a loop for clustered points
                    \\ | | /        G[k], times out_weight[k], added to the window
    window         i, i+1 .. i+T-1 = out_start[k] ..       node row i is complete once out_start passes it: stored once

`start` is non-decreasing, so the points that touch a node are neighbours: each program finds its first ones by binary
search and gathers.
"""

# In kernels tuples grow by an element at a time.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from inn_kernels.gpu.sampler_tile import (
    columns,
    dot,
    gather,
    load_taps,
    points_before,
    push,
    split_columns,
    steps,
    widen,
    zeros,
)

MOST_NEAR = 5
"""Most points gathered for a column in one go. A node hears four points where there are no more points than nodes, and
(each node's function is four nodes wide) at most five cells of a node and more, which have up to six taps; four where
they are wider."""


@triton.jit
def point_weight(p_start, p_weight, points, b_point, b_node, taps):
    """Weight of a point at a node; 0 where the point does not touch it or does not exist. Blocks like b_point."""
    b_exists = b_point < points
    b_tap = b_node - tl.load(p_start + b_point, mask=b_exists, other=2147483647)
    return tl.load(p_weight + b_point * taps + b_tap, mask=b_exists & (b_tap >= 0) & (b_tap < taps), other=0.0)


@triton.jit
def first_contributor(p_start, p_weight, points, b_node, taps, NEAR: tl.constexpr, SLACK: tl.constexpr):
    """First of NEAR neighbouring points that hold every point touching a node, if NEAR do. int32 like b_node.

    Where the window of a point was moved inside at an end of the axis, or has more taps than it needs, further points
    touch the node with weight zero. SLACK of them are dropped, so that uniform partitions with no more points than
    nodes never need more than NEAR.
    """
    b_point = points_before(p_start, points, b_node - (taps - 1))
    for _ in tl.static_range(SLACK):
        b_point += (point_weight(p_start, p_weight, points, b_point, b_node, taps) == 0.0).to(tl.int32)
    return tl.maximum(tl.minimum(b_point, points - NEAR), 0)


@triton.jit
def any_beyond(p_start, p_weight, points, b_point, b_node, taps, NEAR: tl.constexpr, SLACK: tl.constexpr):
    """Whether a node of the tile is touched by a point after the NEAR from its b_point on (the next with weight)."""
    b_next = b_point + NEAR + SLACK
    b_beyond = tl.load(p_start + b_next, mask=b_next < points, other=2147483647) <= b_node
    for n in tl.static_range(SLACK):
        b_beyond |= point_weight(p_start, p_weight, points, b_point + NEAR + n, b_node, taps) != 0.0
    return tl.max(b_beyond.to(tl.int32), 0) > 0


@triton.jit
def point_row(
    b_x,  # [SUB * LANES] each: dW at the first NEAR points of each column
    b_c,  # [SUB * LANES] their weights
    p_row,  # [SUB * LANES] the first of them
    p_in_start, p_in_weight, in_points, inner, in_taps,
    b_l, b_j, most,  # first point and node of each column, the most points that touch one
    NEAR: tl.constexpr,
    CROWDED: tl.constexpr,
):  # fmt: skip
    """G[k]: one row of dW gathered along the input axis. float32 [SUB * LANES]."""
    b_g = dot(b_x, b_c, NEAR)
    if CROWDED:
        for n in range(NEAR, most):
            b_w = point_weight(p_in_start, p_in_weight, in_points, b_l + n, b_j, in_taps)  # [SUB * LANES]
            b_g += b_w * widen(tl.load(p_row + n * inner, mask=b_w != 0.0, other=0))
    return b_g


@triton.jit
def add_scaled(b_window, w, b_g, TAPS: tl.constexpr):
    """Each row of a window plus its weight times one row of G."""
    b_sums = ()
    for n in tl.static_range(TAPS):
        b_sums += (b_window[n] + w[n] * b_g,)
    return b_sums


@triton.jit
def adjoint_tile(
    p_grad,  # [out_points, outer, in_points, inner]
    p_out,  # the tile's first element: row i_begin of d_nodes, first column
    p_out_start, p_out_weight,  # [out_points], [out_points, out_taps]
    p_in_start, p_in_weight,  # [in_points], [in_points, in_taps]
    out_points, in_nodes, in_points, inner, out_taps, in_taps, stride, width,
    i_begin, i_end,  # node rows of this tile
    i_first, b_lane, b_near, b_inside,  # see `columns`
    b_l, most,  # [SUB * LANES] first contributing point; with CROWDED, the most that touch a column
    SAMPLE_OUT: tl.constexpr,
    SAMPLE_IN: tl.constexpr,
    TAPS_OUT: tl.constexpr,  # rows of the window, 0: rows of dW are read again for each node row
    EXACT: tl.constexpr,  # these are the taps of a point; else the most of them
    NEAR: tl.constexpr,  # points gathered for a column, 1 along a discrete axis
    CROWDED: tl.constexpr,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Streams the rows of dW under a tile of d_nodes. A discrete axis has its nodes for points."""
    b_first, b_j = i_first + b_near, b_near  # [SUB * LANES] column of the first contributing point, node
    b_c, distances = (1.0,), (0,)
    if SAMPLE_IN:
        b_outer, b_j, b_inner = split_columns(i_first, b_near, in_nodes, inner)
        b_first = (b_outer * in_points + b_l) * inner + b_inner
        b_c = (point_weight(p_in_start, p_in_weight, in_points, b_l, b_j, in_taps),)
        for n in tl.static_range(1, NEAR):
            b_c += (point_weight(p_in_start, p_in_weight, in_points, b_l + n, b_j, in_taps),)
        distances = steps(in_points, inner, NEAR)
    i_row, i_k = i_begin, i_begin  # node row, row of dW in flight
    if SAMPLE_OUT:
        if TAPS_OUT > 0:
            i_row = tl.maximum(i_begin - (TAPS_OUT - 1), 0)
            i_k = points_before(p_out_start, out_points, i_row)
        else:
            i_k = points_before(p_out_start, out_points, i_begin - (out_taps - 1))
        i_start = tl.load(p_out_start + i_k, mask=i_k < out_points, other=2147483647)  # node row it starts at
    p_row = p_grad + tl.minimum(i_k, out_points - 1) * stride + b_first  # [SUB * LANES]
    b_x = gather(p_row, distances, NEAR, ADJACENT)  # [SUB * LANES] each
    b_window = zeros(TAPS_OUT, SUB * LANES)  # sums of node rows from i_row on
    while i_row < i_end:
        if not SAMPLE_OUT:
            b_g = point_row(
                b_x, b_c, p_row, p_in_start, p_in_weight, in_points, inner, in_taps, b_l, b_j, most, NEAR, CROWDED
            )
            b_window = (b_g,)
            p_row = p_grad + tl.minimum(i_row + 1, out_points - 1) * stride + b_first  # [SUB * LANES]
            b_x = gather(p_row, distances, NEAR, ADJACENT)
        elif TAPS_OUT > 0:
            while i_start <= i_row:
                b_g = point_row(
                    b_x, b_c, p_row, p_in_start, p_in_weight, in_points, inner, in_taps, b_l, b_j, most, NEAR, CROWDED
                )
                w = load_taps(p_out_weight, i_k, out_taps, TAPS_OUT, EXACT)
                b_window = add_scaled(b_window, w, b_g, TAPS_OUT)
                i_k += 1
                i_start = tl.load(p_out_start + i_k, mask=i_k < out_points, other=2147483647)
                p_row = p_grad + tl.minimum(i_k, out_points - 1) * stride + b_first  # [SUB * LANES]
                b_x = gather(p_row, distances, NEAR, ADJACENT)
        else:
            while i_start <= i_row - out_taps:  # of no use to later node rows
                i_k += 1
                i_start = tl.load(p_out_start + i_k, mask=i_k < out_points, other=2147483647)
            b_sum = tl.zeros((SUB * LANES,), tl.float32)
            i_at, i_from = i_k, i_start
            while i_from <= i_row:
                w = tl.load(p_out_weight + i_at * out_taps + (i_row - i_from))
                if w != 0.0:
                    p_at = p_grad + i_at * stride + b_first  # [SUB * LANES]
                    b_g = point_row(
                        gather(p_at, distances, NEAR, ADJACENT), b_c, p_at,
                        p_in_start, p_in_weight, in_points, inner, in_taps, b_l, b_j, most, NEAR, CROWDED,
                    )  # fmt: skip
                    b_sum += w * b_g
                i_at += 1
                i_from = tl.load(p_out_start + i_at, mask=i_at < out_points, other=2147483647)
            b_window = (b_sum,)
        if i_row >= i_begin:
            tl.store(p_out + b_lane, b_window[0].to(p_out.dtype.element_ty), mask=b_inside)
            p_out += width
        i_row += 1
        b_window = push(b_window, tl.zeros((SUB * LANES,), tl.float32), TAPS_OUT, TAPS_OUT, True)


@triton.jit
def adjoint_program(
    p_grad,  # [out_points, outer, in_points, inner]; bits of bfloat16
    p_out,  # [out_nodes, outer, in_nodes, inner]
    p_out_start, p_out_weight,  # [out_points], [out_points, out_taps]
    p_in_start, p_in_weight,  # [in_points], [in_points, in_taps]
    out_nodes, out_points, outer, in_nodes, in_points, inner, out_taps, in_taps,
    i_block, i_tile, rows,  # which run of rows, which tile of columns, rows a run
    SAMPLE_OUT: tl.constexpr,
    SAMPLE_IN: tl.constexpr,
    TAPS_OUT: tl.constexpr,
    TAPS_IN: tl.constexpr,
    EXACT: tl.constexpr,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """One program's tile of d_nodes. An axis that is not sampled is discrete: its nodes are its points."""
    NEAR: tl.constexpr = 5 if TAPS_IN == 5 or TAPS_IN == 6 or (TAPS_IN == 8 and not EXACT) else 4
    SLACK: tl.constexpr = 1 if TAPS_IN == 4 else 3
    i_begin = i_block * rows
    i_end = tl.minimum(i_begin + rows, out_nodes)
    width = outer.to(INDEX) * in_nodes * inner
    stride = outer.to(tl.int64) * in_points * inner
    p_out += i_begin.to(tl.int64) * width
    i_first, b_lane, b_near, b_inside = columns(i_tile, width, SUB, LANES, INDEX)  # scalar, [SUB * LANES] each
    if SAMPLE_IN:
        _outer, b_j, _inner = split_columns(i_first, b_near, in_nodes, inner)  # [SUB * LANES]
        b_l = first_contributor(p_in_start, p_in_weight, in_points, b_j, in_taps, NEAR, SLACK)
        if any_beyond(p_in_start, p_in_weight, in_points, b_l, b_j, in_taps, NEAR, SLACK):
            # Clustered points. One sub-tile after the other: the loop over further points takes registers.
            most = tl.max(points_before(p_in_start, in_points, b_j + 1) - b_l, 0)
            for i_sub in range(tl.minimum(tl.cdiv(width - i_first, LANES), SUB)):
                i_c, b_c_lane, b_c_near, b_c_inside = columns(i_tile * SUB + i_sub, width, 1, LANES, INDEX)
                _c_outer, b_c_j, _c_inner = split_columns(i_c, b_c_near, in_nodes, inner)  # [1, LANES]
                b_c_l = first_contributor(p_in_start, p_in_weight, in_points, b_c_j, in_taps, NEAR, SLACK)
                adjoint_tile(
                    p_grad, p_out + i_c, p_out_start, p_out_weight, p_in_start, p_in_weight,
                    out_points, in_nodes, in_points, inner, out_taps, in_taps, stride, width, i_begin, i_end,
                    i_c, b_c_lane, b_c_near, b_c_inside, b_c_l, most,
                    SAMPLE_OUT, True, TAPS_OUT, EXACT, NEAR, True, ADJACENT, 1, LANES,
                )  # fmt: skip
        else:
            adjoint_tile(
                p_grad, p_out + i_first, p_out_start, p_out_weight, p_in_start, p_in_weight,
                out_points, in_nodes, in_points, inner, out_taps, in_taps, stride, width, i_begin, i_end,
                i_first, b_lane, b_near, b_inside, b_l, NEAR,
                SAMPLE_OUT, True, TAPS_OUT, EXACT, NEAR, False, ADJACENT, SUB, LANES,
            )  # fmt: skip
    else:
        adjoint_tile(
            p_grad, p_out + i_first, p_out_start, p_out_weight, p_in_start, p_in_weight,
            out_points, in_nodes, in_points, inner, out_taps, in_taps, stride, width, i_begin, i_end,
            i_first, b_lane, b_near, b_inside, b_near, 1,
            SAMPLE_OUT, False, TAPS_OUT, EXACT, 1, False, ADJACENT, SUB, LANES,
        )  # fmt: skip
