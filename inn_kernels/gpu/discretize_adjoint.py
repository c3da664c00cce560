"""Adjoint of discretize: the gradient of the nodes, gathered over the sorted partitions (the Neural Integral Lemma).

    d_nodes[i, j, t] = sum over k with out_start[k] in [i - 3, i]    out_weight[k, i - out_start[k]] G[k, j, t]
    G[k, j, t]       = sum over l with in_start[l]  in [j - 3, j]    in_weight[l, j - in_start[l]] dW[k, l, t]

`start` is non-decreasing, so the points that touch a node are neighbours: each program finds its first ones by binary
search and gathers. No atomics, sums in a fixed order: results are bitwise repeatable. The adjoint's own gradients are
`discretize` (for dW) and `discretize_tap_gradient` (for the tap weights).

    row k of dW    . . . . . .     up to four points a node column in registers, a loop for clustered points
                    \\ | | /        G[k], times out_weight[k], added to the window
    window         i, i+1, i+2, i+3 = out_start[k] ..      node row i is complete once out_start passes it: stored once

A program owns SUB x LANES columns and a run of rows of d_nodes and streams the rows of dW that touch them, the next row
in flight. Memory sees dW once (and the points of three node rows more a program) and d_nodes once: no zero
filling, no float32 copy of dW, no S_out^T dW.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.discretize import IN_TAPS, OUT_TAPS
from inn_kernels.gpu.launch import Config, empty_like_layout, guard, launch
from inn_kernels.gpu.sampler_tile import (
    SIZES,
    Geometry,
    SideTaps,
    columns,
    dense,
    dot_4,
    flat_taps,
    gather_4,
    load_4,
    plan,
    points_before,
    split_columns,
    steps,
    weight_geometry,
    widen,
)
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec, with_constants

NARROW = Config("narrow", {"SUB": 1, "LANES": 128}, num_warps=4, resident=10, max_registers=48)
WIDE = Config(
    "wide",
    {"SUB": 4, "LANES": 128},
    num_warps=4,
    resident=7,
    max_registers=72,
    instead={"sm_80": {"max_registers": 80, "resident": 6}},  # 72 spill there
)
CONFIGS = {
    2: (WIDE, NARROW),
    4: (WIDE._replace(resident=5, max_registers=96, instead={}), NARROW),
}
"""By bytes an element of dW. As `discretize`: four columns a thread keep enough of dW in flight, one column where the
layer is small. The bounds are what the compiler needs to spill nothing; int64 column numbers take the larger one. A
bfloat16 dW is read as bits, a register each: values of two bytes the compiler packs in pairs in the middle of an
iteration, and waits for them there. From models and machine code, not yet measured."""


@triton.jit
def point_weight(p_start, p_weight, points, b_point, b_node):
    """Weight of a point at a node; 0 where the point does not touch it or does not exist. Blocks like b_point."""
    b_exists = b_point < points
    b_tap = b_node - tl.load(p_start + b_point, mask=b_exists, other=2147483647)
    return tl.load(p_weight + b_point * 4 + b_tap, mask=b_exists & (b_tap >= 0) & (b_tap < 4), other=0.0)


@triton.jit
def first_contributor(p_start, p_weight, points, b_node):
    """First of four neighbouring points that hold every point touching a node, if four do. int32 like b_node.

    Where the window of a point was moved inside at an end of the axis, a fifth point touches the node with weight
    zero. It is dropped, so that uniform partitions with no more points than nodes never need more than four.
    """
    b_point = points_before(p_start, points, b_node - 3)
    b_point += (point_weight(p_start, p_weight, points, b_point, b_node) == 0.0).to(tl.int32)
    return tl.maximum(tl.minimum(b_point, points - 4), 0)


@triton.jit
def any_beyond(p_start, p_weight, points, b_point, b_node):
    """Whether a node of the tile is touched by a point after the four from its b_point on (the next with weight)."""
    b_fifth = point_weight(p_start, p_weight, points, b_point + 4, b_node) != 0.0
    b_sixth = tl.load(p_start + b_point + 5, mask=b_point + 5 < points, other=2147483647) <= b_node
    return tl.max((b_fifth | b_sixth).to(tl.int32), 0) > 0


@triton.jit
def point_row(
    b_x0, b_x1, b_x2, b_x3,  # [SUB * LANES] dW at the first four points of each column
    b_c0, b_c1, b_c2, b_c3,  # [SUB * LANES] their weights
    p_row,  # [SUB * LANES] the first of them
    p_in_start, p_in_weight, in_points, inner,
    b_l, b_j, most,  # first point and node of each column, the most points that touch one
    SAMPLE_IN: tl.constexpr,
    CROWDED: tl.constexpr,
):  # fmt: skip
    """G[k]: one row of dW gathered along the input axis. float32 [SUB * LANES]."""
    b_g = dot_4(b_x0, b_x1, b_x2, b_x3, b_c0, b_c1, b_c2, b_c3, SAMPLE_IN)
    if CROWDED:
        for i_c in range(4, most):
            b_w = point_weight(p_in_start, p_in_weight, in_points, b_l + i_c, b_j)  # [SUB * LANES]
            b_g += b_w * widen(tl.load(p_row + i_c * inner, mask=b_w != 0.0, other=0))
    return b_g


@triton.jit
def adjoint_tile(
    p_grad,  # [out_points, outer, in_points, inner]
    p_out,  # the tile's first element: row i_begin of d_nodes, first column
    p_out_start, p_out_weight,  # [out_points], [out_points, 4]
    p_in_start, p_in_weight,  # [in_points], [in_points, 4]
    out_points, in_nodes, in_points, inner, stride, width,
    i_begin, i_end,  # node rows of this tile
    i_first, b_lane, b_near, b_inside,  # see `columns`
    b_l, most,  # [SUB * LANES] first contributing point; with CROWDED, the most that touch a column
    SAMPLE_OUT: tl.constexpr,
    SAMPLE_IN: tl.constexpr,
    CROWDED: tl.constexpr,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Streams the rows of dW under a tile of d_nodes. A discrete axis has its nodes for points."""
    b_first, b_j = i_first + b_near, b_near  # [SUB * LANES] column of the first contributing point, node
    b_c0, b_c1, b_c2, b_c3 = 1.0, 0.0, 0.0, 0.0
    step_1, step_2, step_3 = 0, 0, 0
    if SAMPLE_IN:
        b_outer, b_j, b_inner = split_columns(i_first, b_near, in_nodes, inner)
        b_first = (b_outer * in_points + b_l) * inner + b_inner
        b_c0 = point_weight(p_in_start, p_in_weight, in_points, b_l, b_j)
        b_c1 = point_weight(p_in_start, p_in_weight, in_points, b_l + 1, b_j)
        b_c2 = point_weight(p_in_start, p_in_weight, in_points, b_l + 2, b_j)
        b_c3 = point_weight(p_in_start, p_in_weight, in_points, b_l + 3, b_j)
        step_1, step_2, step_3 = steps(in_points, inner)
    i_row, i_k = i_begin, i_begin  # node row, row of dW in flight
    if SAMPLE_OUT:
        i_row = tl.maximum(i_begin - 3, 0)
        i_k = points_before(p_out_start, out_points, i_row)
        i_start = tl.load(p_out_start + i_k, mask=i_k < out_points, other=2147483647)  # node row it starts at
    p_row = p_grad + tl.minimum(i_k, out_points - 1) * stride + b_first  # [SUB * LANES]
    b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, SAMPLE_IN, ADJACENT)
    b_a0 = tl.zeros((SUB * LANES,), tl.float32)  # the window: sums of node rows i_row .. i_row + 3
    b_a1 = tl.zeros((SUB * LANES,), tl.float32)
    b_a2 = tl.zeros((SUB * LANES,), tl.float32)
    b_a3 = tl.zeros((SUB * LANES,), tl.float32)
    while i_row < i_end:
        if SAMPLE_OUT:
            while i_start <= i_row:
                b_g = point_row(
                    b_x0, b_x1, b_x2, b_x3, b_c0, b_c1, b_c2, b_c3, p_row, p_in_start, p_in_weight,
                    in_points, inner, b_l, b_j, most, SAMPLE_IN, CROWDED,
                )  # fmt: skip
                w0, w1, w2, w3 = load_4(p_out_weight, i_k)
                b_a0 += w0 * b_g
                b_a1 += w1 * b_g
                b_a2 += w2 * b_g
                b_a3 += w3 * b_g
                i_k += 1
                i_start = tl.load(p_out_start + i_k, mask=i_k < out_points, other=2147483647)
                p_row = p_grad + tl.minimum(i_k, out_points - 1) * stride + b_first  # [SUB * LANES]
                b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, SAMPLE_IN, ADJACENT)
        else:
            b_a0 = point_row(
                b_x0, b_x1, b_x2, b_x3, b_c0, b_c1, b_c2, b_c3, p_row, p_in_start, p_in_weight,
                in_points, inner, b_l, b_j, most, SAMPLE_IN, CROWDED,
            )  # fmt: skip
            p_row = p_grad + tl.minimum(i_row + 1, out_points - 1) * stride + b_first  # [SUB * LANES]
            b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, SAMPLE_IN, ADJACENT)
        if i_row >= i_begin:
            tl.store(p_out + b_lane, b_a0.to(p_out.dtype.element_ty), mask=b_inside)
            p_out += width
        i_row += 1
        b_a0 = b_a1
        b_a1 = b_a2
        b_a2 = b_a3
        b_a3 = tl.zeros((SUB * LANES,), tl.float32)


@triton.jit(do_not_specialize=SIZES)
def discretize_adjoint_kernel(
    p_grad,  # [batch, out_points, outer, in_points, inner]; bits of bfloat16
    p_out,  # [batch, out_nodes, outer, in_nodes, inner]
    p_out_start, p_out_weight,  # [out_points], [out_points, 4]; None: the output axis is discrete
    p_in_start, p_in_weight,  # [in_points], [in_points, 4]; None: the input axis is discrete
    out_nodes, out_points, outer, in_nodes, in_points, inner, rows, blocks, tiles,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """d_nodes = S_out^T dW S_in, a tile of columns and a run of rows a program."""
    SAMPLE_OUT: tl.constexpr = p_out_start is not None
    SAMPLE_IN: tl.constexpr = p_in_start is not None
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
        b_l = first_contributor(p_in_start, p_in_weight, in_points, b_j)
        if any_beyond(p_in_start, p_in_weight, in_points, b_l, b_j):
            # Clustered points. One sub-tile after the other: the loop over further points takes registers.
            most = tl.max(points_before(p_in_start, in_points, b_j + 1) - b_l, 0)
            for i_sub in range(tl.minimum(tl.cdiv(width - i_first, LANES), SUB)):
                i_c, b_c_lane, b_c_near, b_c_inside = columns(i_tile * SUB + i_sub, width, 1, LANES, INDEX)
                _c_outer, b_c_j, _c_inner = split_columns(i_c, b_c_near, in_nodes, inner)  # [1, LANES]
                b_c_l = first_contributor(p_in_start, p_in_weight, in_points, b_c_j)
                adjoint_tile(
                    p_grad, p_out + i_c, p_out_start, p_out_weight, p_in_start, p_in_weight,
                    out_points, in_nodes, in_points, inner, stride, width, i_begin, i_end,
                    i_c, b_c_lane, b_c_near, b_c_inside, b_c_l, most,
                    SAMPLE_OUT, True, True, ADJACENT, 1, LANES,
                )  # fmt: skip
        else:
            adjoint_tile(
                p_grad, p_out + i_first, p_out_start, p_out_weight, p_in_start, p_in_weight,
                out_points, in_nodes, in_points, inner, stride, width, i_begin, i_end,
                i_first, b_lane, b_near, b_inside, b_l, 4,
                SAMPLE_OUT, True, False, ADJACENT, SUB, LANES,
            )  # fmt: skip
    else:
        adjoint_tile(
            p_grad, p_out + i_first, p_out_start, p_out_weight, p_in_start, p_in_weight,
            out_points, in_nodes, in_points, inner, stride, width, i_begin, i_end,
            i_first, b_lane, b_near, b_inside, b_near, 4,
            SAMPLE_OUT, False, False, ADJACENT, SUB, LANES,
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
        configs = CONFIGS[grad.element_size() if sizes.index is tl.int32 else 4]
        p = plan(sizes, sizes.out_nodes, sizes.node_columns, configs, out.device)
        bits = grad.view(torch.uint16) if grad.dtype == torch.bfloat16 else grad
        with guard(out):
            launch(
                discretize_adjoint_kernel, p.grid,
                bits, out, *flat_taps(out_taps, in_taps), *sizes[1:], p.rows, p.blocks, p.tiles,
                ADJACENT=sizes.adjacent_points, INDEX=p.index, **p.config.options,
            )  # fmt: skip
    return out


def discretize_adjoint(
    grad: Tensor,  # [K, L, *rest]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, 4]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, 4]
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
        {
            "p_grad": "*u16" if grad == "bf16" else f"*{grad}",
            "p_out": f"*{out}",
            **OUT_TAPS,
            **IN_TAPS,
            **dict.fromkeys(SIZES, "i32"),
        },
        with_constants(configs, ADJACENT=(True, False), INDEX=(index,)),
        f"{grad}-{out}" + (" int64" if index is tl.int64 else ""),
        barrier_free_loops=True,
        targets=targets,
    )
    for grad, out, configs, index, targets in (
        ("bf16", "fp32", CONFIGS[2], tl.int32, ALL_TARGETS),
        ("bf16", "fp32", CONFIGS[4], tl.int64, ONE_TARGET),
        ("fp16", "fp32", CONFIGS[2], tl.int32, ONE_TARGET),
        ("fp32", "fp32", CONFIGS[4], tl.int32, ONE_TARGET),
        ("bf16", "bf16", CONFIGS[2], tl.int32, ONE_TARGET),
    )
]
