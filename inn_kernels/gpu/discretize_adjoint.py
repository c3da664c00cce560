"""Adjoint of discretize: the gradient of the nodes, gathered over the sorted partitions (the Neural Integral Lemma).

    d_nodes[i, j, t] = sum over k with out_start[k] in (i - T, i]    out_weight[k, i - out_start[k]] G[k, j, t]
    G[k, j, t]       = sum over l with in_start[l]  in (j - T, j]    in_weight[l, j - in_start[l]] dW[k, l, t]

`start` is non-decreasing, so the points that touch a node are neighbours: each program finds its first ones by binary
search and gathers. No atomics, sums in a fixed order: results are bitwise repeatable. The adjoint's own gradients are
`discretize` (for dW) and `discretize_tap_gradient` (for the tap weights).

    row k of dW    . . . . . .     up to NEAR points a node column in registers, a loop for clustered points
                    \\ | | /        G[k], times out_weight[k], added to the window
    window         i, i+1 .. i+T-1 = out_start[k] ..       node row i is complete once out_start passes it: stored once

A program owns SUB x LANES columns and a run of rows of d_nodes and streams the rows of dW that touch them, the next row
in flight. Memory sees dW once (and the points of T - 1 node rows more a program) and d_nodes once: no zero
filling, no float32 copy of dW, no S_out^T dW.
"""

# In kernels tuples grow by an element at a time.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.discretize import TAPS_TYPES
from inn_kernels.gpu.launch import Config, empty_like_layout, guard, launch
from inn_kernels.gpu.sampler_tile import (
    SIZES,
    TAP_COUNTS,
    TAPS,
    Geometry,
    SideTaps,
    columns,
    configs_for,
    dense,
    dot,
    flat_taps,
    gather,
    held,
    load_taps,
    plan,
    points_before,
    push,
    split_columns,
    steps,
    tap_configs,
    tap_counts,
    tap_label,
    weight_geometry,
    widen,
    zeros,
)
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec

NARROW = Config("narrow", {"SUB": 1, "LANES": 128}, num_warps=4, resident=10, max_registers=48)
WIDE = Config(
    "wide",
    {"SUB": 4, "LANES": 128},
    num_warps=4,
    resident=7,
    max_registers=72,
    instead={"sm_80": {"max_registers": 80, "resident": 6}},  # 72 spill there
)
MORE = (
    Config("wide", {"SUB": 2, "LANES": 128}, num_warps=4, resident=6, max_registers=80),
    NARROW._replace(resident=8, max_registers=64),
)
CONFIGS = {
    2: {4: (WIDE, NARROW), 8: MORE},
    4: {4: (WIDE._replace(resident=5, max_registers=96, instead={}), NARROW), 8: MORE},
}
"""By bytes an element of dW and the most taps of an axis; the last also where it has more.

As `discretize`: four columns a thread keep enough of dW in flight, one column where the layer is small. The bounds are
what the compiler needs to spill nothing; int64 column numbers take the larger one. A bfloat16 dW is read as bits, a
register each: values of two bytes the compiler packs in pairs in the middle of an iteration, and waits for them there.
From models and machine code, not yet measured."""

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
                w = load_taps(p_out_weight, i_k, TAPS_OUT, TAPS_OUT, True)
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


@triton.jit(do_not_specialize=SIZES + TAP_COUNTS)
def discretize_adjoint_kernel(
    p_grad,  # [batch, out_points, outer, in_points, inner]; bits of bfloat16
    p_out,  # [batch, out_nodes, outer, in_nodes, inner]
    p_out_start, p_out_weight,  # [out_points], [out_points, out_taps]; None: the output axis is discrete
    p_in_start, p_in_weight,  # [in_points], [in_points, in_taps]; None: the input axis is discrete
    out_nodes, out_points, outer, in_nodes, in_points, inner, rows, blocks, tiles, out_taps, in_taps,
    TAPS_OUT: tl.constexpr,
    TAPS_IN: tl.constexpr,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """d_nodes = S_out^T dW S_in, a tile of columns and a run of rows a program."""
    SAMPLE_OUT: tl.constexpr = p_out_start is not None
    SAMPLE_IN: tl.constexpr = p_in_start is not None
    NEAR: tl.constexpr = 5 if TAPS_IN == 5 or TAPS_IN == 6 else 4
    SLACK: tl.constexpr = 1 if TAPS_IN == 4 else 3
    in_taps = in_taps if TAPS_IN == 0 else TAPS_IN
    i_program = tl.program_id(0)
    i_batch = (i_program // tiles // blocks).to(tl.int64)
    i_tile = i_program % tiles
    i_begin = i_program // tiles % blocks * rows
    i_end = tl.minimum(i_begin + rows, out_nodes)
    width = outer.to(INDEX) * in_nodes * inner
    stride = outer.to(tl.int64) * in_points * inner
    p_grad += i_batch * out_points * stride
    p_out += (i_batch * out_nodes + i_begin) * width
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
                    SAMPLE_OUT, True, TAPS_OUT, NEAR, True, ADJACENT, 1, LANES,
                )  # fmt: skip
        else:
            adjoint_tile(
                p_grad, p_out + i_first, p_out_start, p_out_weight, p_in_start, p_in_weight,
                out_points, in_nodes, in_points, inner, out_taps, in_taps, stride, width, i_begin, i_end,
                i_first, b_lane, b_near, b_inside, b_l, NEAR,
                SAMPLE_OUT, True, TAPS_OUT, NEAR, False, ADJACENT, SUB, LANES,
            )  # fmt: skip
    else:
        adjoint_tile(
            p_grad, p_out + i_first, p_out_start, p_out_weight, p_in_start, p_in_weight,
            out_points, in_nodes, in_points, inner, out_taps, in_taps, stride, width, i_begin, i_end,
            i_first, b_lane, b_near, b_inside, b_near, 1,
            SAMPLE_OUT, False, TAPS_OUT, 1, False, ADJACENT, SUB, LANES,
        )  # fmt: skip


def gather_adjoint(
    grad: Tensor,
    out: Tensor,
    sizes: Geometry,
    out_taps: SideTaps,
    in_taps: SideTaps,
) -> Tensor:
    """Fill `out` with what the points of each axis that has taps (start, weight) give back to its nodes."""
    if not grad.numel():
        return out.zero_()
    if out.numel():
        counts = tap_counts(out_taps, in_taps)
        configs = configs_for(CONFIGS[grad.element_size() if sizes.index is tl.int32 else 4], *counts)
        p = plan(sizes, sizes.out_nodes, sizes.node_columns, configs, out.device)
        bits = grad.view(torch.uint16) if grad.dtype == torch.bfloat16 else grad
        with guard(out):
            launch(
                discretize_adjoint_kernel, p.grid,
                bits, out, *flat_taps(out_taps, in_taps), *sizes[1:], p.rows, p.blocks, p.tiles, *counts,
                TAPS_OUT=held(counts[0]), TAPS_IN=held(counts[1]),
                ADJACENT=sizes.adjacent(sizes.in_points, MOST_NEAR), INDEX=p.index, **p.config.options,
            )  # fmt: skip
    return out


def discretize_adjoint(
    grad: Tensor,  # [K, L, *rest]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, T_out]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, T_in]
    out_nodes: int,
    in_nodes: int,
    dtype: torch.dtype,
) -> Tensor:  # [M_out, M_in, *rest]
    """d_nodes = S_out^T dW S_in, in the layout of `grad`."""
    grad = dense(grad)
    sizes = weight_geometry(grad, out_nodes, grad.shape[0], in_nodes, grad.shape[1])
    out = empty_like_layout(grad, [out_nodes, in_nodes, *grad.shape[2:]], dtype)
    return gather_adjoint(grad, out, sizes, (out_start, out_weight), (in_start, in_weight))


KERNELS = [
    KernelSpec(
        discretize_adjoint_kernel,
        {"p_grad": "*u16" if grad == "bf16" else f"*{grad}", "p_out": f"*{out}", **TAPS_TYPES},
        tap_configs(CONFIGS[size], taps, ADJACENT=(True, False), INDEX=(index,)),
        f"{grad}-{out}" + tap_label(taps) + (" int64" if index is tl.int64 else ""),
        barrier_free_loops=True,
        targets=targets,
    )
    for grad, out, size, taps, index, targets in (
        ("bf16", "fp32", 2, (4, 4), tl.int32, ALL_TARGETS),
        ("bf16", "fp32", 4, (4, 4), tl.int64, ONE_TARGET),
        ("fp16", "fp32", 2, (4, 4), tl.int32, ONE_TARGET),
        ("fp32", "fp32", 4, (4, 4), tl.int32, ONE_TARGET),
        ("bf16", "bf16", 2, (4, 4), tl.int32, ONE_TARGET),
        *(("bf16", "fp32", 2, taps, tl.int32, ONE_TARGET) for taps in TAPS),
        *(("bf16", "bf16", 2, taps, tl.int32, ONE_TARGET) for taps in TAPS),
        *(("fp32", "fp32", 4, taps, tl.int32, ONE_TARGET) for taps in TAPS[:2]),
    )
]
