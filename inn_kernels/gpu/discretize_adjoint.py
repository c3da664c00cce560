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
always in flight. Memory sees dW once (and the points of three node rows more a program) and d_nodes once: no zero
filling, no float32 copy of dW, no S_out^T dW.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.discretize import IN_TAPS, OUT_TAPS
from inn_kernels.gpu.launch import Config, KernelSpec, empty_like_layout, guard, with_constants
from inn_kernels.gpu.tiles import (
    SIZES,
    Geometry,
    columns,
    dense,
    dot_4,
    gather_4,
    load_4,
    plan,
    points_before,
    split_column,
    steps,
    weight_geometry,
)

CONFIGS = (
    Config("wide", {"SUB": 4, "LANES": 128}, num_warps=4, resident=6, max_registers=80),
    Config("narrow", {"SUB": 1, "LANES": 128}, num_warps=4, resident=10, max_registers=48),
)
"""As `discretize`: four columns a thread keep enough of dW in flight; one column where the layer is small."""


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
    return tl.max(tl.max((b_fifth | b_sixth).to(tl.int32), 1), 0) > 0


@triton.jit
def adjoint_tile(
    p_grad,  # [out_points, outer, in_points, inner]
    p_out,  # the tile's first element: row i_begin of d_nodes, first column
    p_out_start, p_out_weight,  # [out_points], [out_points, 4]
    p_in_start, p_in_weight,  # [in_points], [in_points, 4]
    out_points, in_nodes, in_points, inner, stride, width,
    i_begin, i_end,  # node rows of this tile
    b_col, b_inside, b_lane,  # [SUB, LANES] see `columns`
    b_l, most,  # [SUB, LANES] first contributing point; with CROWDED, the most that touch a column
    SAMPLE_OUT: tl.constexpr,
    SAMPLE_IN: tl.constexpr,
    CROWDED: tl.constexpr,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Streams the rows of dW under a tile of d_nodes. A discrete axis has its nodes for points."""
    b_first = b_col  # [SUB, LANES] column of the first contributing point
    b_c0, b_c1, b_c2, b_c3 = 1.0, 0.0, 0.0, 0.0
    step_1, step_2, step_3 = 0, 0, 0
    if SAMPLE_IN:
        b_outer, b_j, b_inner = split_column(b_col, in_nodes, inner)  # [SUB, LANES]
        b_first = (b_outer * in_points + b_l) * inner + b_inner
        b_c0 = point_weight(p_in_start, p_in_weight, in_points, b_l, b_j)
        b_c1 = point_weight(p_in_start, p_in_weight, in_points, b_l + 1, b_j)
        b_c2 = point_weight(p_in_start, p_in_weight, in_points, b_l + 2, b_j)
        b_c3 = point_weight(p_in_start, p_in_weight, in_points, b_l + 3, b_j)
        step_1, step_2, step_3 = steps(in_points, inner)
    i_row, i_k, i_start = i_begin, i_begin, i_begin  # node row; row of dW in flight, and the node row it starts at
    if SAMPLE_OUT:
        i_row = tl.maximum(i_begin - 3, 0)
        i_k = points_before(p_out_start, out_points, i_row)
        i_start = tl.load(p_out_start + i_k, mask=i_k < out_points, other=2147483647)
    p_row = p_grad + tl.minimum(i_k, out_points - 1) * stride + b_first  # [SUB, LANES]
    b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, SAMPLE_IN, ADJACENT)
    b_a0 = tl.zeros((SUB, LANES), tl.float32)  # the window: sums of node rows i_row .. i_row + 3
    b_a1 = tl.zeros((SUB, LANES), tl.float32)
    b_a2 = tl.zeros((SUB, LANES), tl.float32)
    b_a3 = tl.zeros((SUB, LANES), tl.float32)
    while i_row < i_end:
        while i_start <= i_row:
            b_g = dot_4(b_x0, b_x1, b_x2, b_x3, b_c0, b_c1, b_c2, b_c3, SAMPLE_IN)  # [SUB, LANES] row k of G
            if CROWDED:
                for i_c in range(4, most):
                    b_w = point_weight(p_in_start, p_in_weight, in_points, b_l + i_c, b_j)  # [SUB, LANES]
                    b_g += b_w * tl.load(p_row + i_c * inner, mask=b_w != 0.0, other=0.0).to(tl.float32)
            if SAMPLE_OUT:
                w0, w1, w2, w3 = load_4(p_out_weight, i_k)
                b_a0 += w0 * b_g
                b_a1 += w1 * b_g
                b_a2 += w2 * b_g
                b_a3 += w3 * b_g
                i_start = tl.load(p_out_start + i_k + 1, mask=i_k + 1 < out_points, other=2147483647)
            else:
                b_a0 = b_g
                i_start += 1
            i_k += 1
            p_row = p_grad + tl.minimum(i_k, out_points - 1) * stride + b_first  # [SUB, LANES]
            b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, SAMPLE_IN, ADJACENT)
        if i_row >= i_begin:
            tl.store(p_out + b_lane, b_a0.to(p_out.dtype.element_ty), mask=b_inside)
            p_out += width
        i_row += 1
        b_a0 = b_a1
        b_a1 = b_a2
        b_a2 = b_a3
        b_a3 = tl.zeros((SUB, LANES), tl.float32)


@triton.jit(do_not_specialize=SIZES)
def discretize_adjoint_kernel(
    p_grad,  # [batch, out_points, outer, in_points, inner]
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
    b_col, b_inside, b_lane = columns(i_tile, width, SUB, LANES, INDEX)  # [SUB, LANES]
    p_tile = p_out + i_tile.to(tl.int64) * (SUB * LANES)
    if SAMPLE_IN:
        b_j = (b_col // inner % in_nodes).to(tl.int32)  # [SUB, LANES]
        b_l = first_contributor(p_in_start, p_in_weight, in_points, b_j)
        if any_beyond(p_in_start, p_in_weight, in_points, b_l, b_j):
            # Clustered points. One sub-tile after the other: the loop over further points takes registers.
            most = tl.max(tl.max(points_before(p_in_start, in_points, b_j + 1) - b_l, 1), 0)
            for i_sub in range(SUB):
                i_line = i_tile * SUB + i_sub
                b_one, b_one_inside, b_one_lane = columns(i_line, width, 1, LANES, INDEX)  # [1, LANES]
                b_one_j = (b_one // inner % in_nodes).to(tl.int32)
                b_one_l = first_contributor(p_in_start, p_in_weight, in_points, b_one_j)
                adjoint_tile(
                    p_grad, p_tile + i_sub * LANES, p_out_start, p_out_weight, p_in_start, p_in_weight,
                    out_points, in_nodes, in_points, inner, stride, width, i_begin, i_end,
                    b_one, b_one_inside, b_one_lane, b_one_l, most, SAMPLE_OUT, True, True, ADJACENT, 1, LANES,
                )  # fmt: skip
        else:
            adjoint_tile(
                p_grad, p_tile, p_out_start, p_out_weight, p_in_start, p_in_weight,
                out_points, in_nodes, in_points, inner, stride, width, i_begin, i_end,
                b_col, b_inside, b_lane, b_l, 4, SAMPLE_OUT, True, False, ADJACENT, SUB, LANES,
            )  # fmt: skip
    else:
        adjoint_tile(
            p_grad, p_tile, p_out_start, p_out_weight, p_in_start, p_in_weight,
            out_points, in_nodes, in_points, inner, stride, width, i_begin, i_end,
            b_col, b_inside, b_lane, b_col, 4, SAMPLE_OUT, False, False, ADJACENT, SUB, LANES,
        )  # fmt: skip


def gather_adjoint(
    grad: Tensor,
    out: Tensor,
    sizes: Geometry,
    out_taps: tuple[Tensor, Tensor] | tuple[None, None],
    in_taps: tuple[Tensor, Tensor] | tuple[None, None],
) -> Tensor:
    """Fill `out` with what the points of each axis that has taps (start, weight) give back to its nodes."""
    if out.numel():
        p = plan(sizes, sizes.out_nodes, sizes.node_columns, CONFIGS, out.device)
        with guard(out):
            discretize_adjoint_kernel[p.grid](
                grad, out, *out_taps, *in_taps, *sizes[1:], p.rows, p.blocks, p.tiles,
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
        {"p_grad": f"*{grad}", "p_out": f"*{out}", **OUT_TAPS, **IN_TAPS, **dict.fromkeys(SIZES, "i32")},
        with_constants(CONFIGS, ADJACENT=(True, False), INDEX=(tl.int32,)),
        f"{grad}-{out}",
        barrier_free_loops=True,
    )
    for grad, out in (("bf16", "fp32"), ("fp16", "fp32"), ("fp32", "fp32"), ("bf16", "bf16"))
]
