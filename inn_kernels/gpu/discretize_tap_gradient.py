"""Gradients of both axes' tap weights in one pass over nodes and dW: for trainable partitions and quadratures.

    d_out_weight[k, r] = sum_{l, t} dW[k, l, t] V[out_start[k] + r, l, t]        V = nodes S_in^T
    d_in_weight[l, c]  = sum_{k, t} dW[k, l, t] sum_r out_weight[k, r] nodes[out_start[k] + r, in_start[l] + c, t]
                       = sum_{i, t} D[i, l, t] nodes[i, in_start[l] + c, t]      D = S_out^T dW

(the derivatives of <dW, W_q>, Eq. 6, in the weights that a partition and its quadrature become). A program owns
columns (l, t) and a run of rows k of dW and streams the node rows under them:

    row k of dW  . . . .  x  window V[start .. start + 3]    summed over the columns  -> d_out_weight[k]  (partial)
                          x  out_weight[k]  -> window D[start .. start + 3]
    complete row D[i]     x  nodes[i] gathered again (L1)    summed over the rows     -> d_in_weight[l]   (partial)

Programs write partial sums, one line a tile or a run of rows, added afterwards in a fixed order: no atomics, bitwise
repeatable. A program is one warp, so sums over columns are shuffles without barriers. Memory sees nodes and dW once;
it never sees V, D, S_out nodes or a product of their size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.discretize import IN_TAPS, OUT_TAPS
from inn_kernels.gpu.launch import Config, empty, guard, is_channels_last, launch
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
    split_columns,
    steps,
    weight_geometry,
)
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec, with_constants

CONFIGS = (
    Config("wide", {"SUB": 4, "LANES": 32}, num_warps=1, resident=16, max_registers=128),
    Config("narrow", {"SUB": 1, "LANES": 32}, num_warps=1, resident=28, max_registers=72),
)
"""One warp a program: sums over columns need no barrier. Several columns a thread share the shuffles of a sum."""


@triton.jit
def dot_columns(b_x, b_y):
    """Sum of x y over the columns of a tile: sub-tiles within a thread, then lanes by shuffles. Scalar."""
    return tl.sum(b_x * b_y, 0)


@triton.jit
def add_node_row(
    p_row,  # [SUB * LANES] first node of each column in one node row
    b_d,  # [SUB * LANES] that row of D
    b_d0, b_d1, b_d2, b_d3,  # [SUB * LANES] sums
    step_1, step_2, step_3,
    ADJACENT: tl.constexpr,
):  # fmt: skip
    """d_in_weight sums plus one row of D times the four nodes of each column."""
    b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, True, ADJACENT)
    b_d0 += b_d * b_x0.to(tl.float32)
    b_d1 += b_d * b_x1.to(tl.float32)
    b_d2 += b_d * b_x2.to(tl.float32)
    b_d3 += b_d * b_x3.to(tl.float32)
    return b_d0, b_d1, b_d2, b_d3


@triton.jit(do_not_specialize=SIZES)
def discretize_tap_gradient_kernel(
    p_nodes,  # [batch, out_nodes, outer, in_nodes, inner]
    p_grad,  # [batch, out_points, outer, in_points, inner]
    p_out_start, p_out_weight,  # [out_points], [out_points, 4]; None: the output axis is discrete
    p_in_start, p_in_weight,  # [in_points], [in_points, 4]; None: the input axis is discrete
    p_d_out,  # [batch, tiles, out_points, 4] partial sums, None: not needed
    p_d_in,  # [batch, blocks, outer, in_points, inner, 4] partial sums, None: not needed
    out_nodes, out_points, outer, in_nodes, in_points, inner, rows, blocks, tiles,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """Partial sums of d_out_weight over a tile of columns and of d_in_weight over a run of rows."""
    SAMPLE_OUT: tl.constexpr = p_out_start is not None
    SAMPLE_IN: tl.constexpr = p_in_start is not None
    NEED_OUT: tl.constexpr = p_d_out is not None
    NEED_IN: tl.constexpr = p_d_in is not None
    i_program = tl.program_id(0)
    i_batch = (i_program // tiles // blocks).to(tl.int64)
    i_tile = i_program % tiles
    i_block = i_program // tiles % blocks
    width = outer.to(INDEX) * in_points * inner
    stride = outer.to(tl.int64) * in_nodes * inner
    p_nodes += i_batch * out_nodes * stride
    i_first, b_lane, b_near, b_inside = columns(i_tile, width, SUB, LANES, INDEX)  # scalar, [SUB * LANES] each
    b_first = i_first + b_near  # [SUB * LANES] column of the first node
    b_c0, b_c1, b_c2, b_c3 = 1.0, 0.0, 0.0, 0.0
    step_1, step_2, step_3 = 0, 0, 0
    if SAMPLE_IN:
        b_outer, b_l, b_inner = split_columns(i_first, b_near, in_points, inner)  # [SUB * LANES]
        b_first = (b_outer * in_nodes + tl.load(p_in_start + b_l)) * inner + b_inner
        step_1, step_2, step_3 = steps(in_nodes, inner)
        if NEED_OUT:
            b_c0, b_c1, b_c2, b_c3 = load_4(p_in_weight, b_l)  # [SUB * LANES]
    b_zero = tl.zeros((SUB * LANES,), tl.float32)
    b_v0, b_v1, b_v2, b_v3 = b_zero, b_zero, b_zero, b_zero  # window of V, node rows i_start .. i_start + 3
    b_a0, b_a1, b_a2, b_a3 = b_zero, b_zero, b_zero, b_zero  # window of D, the same rows
    b_d0, b_d1, b_d2, b_d3 = b_zero, b_zero, b_zero, b_zero  # d_in_weight
    i_begin = i_block * rows
    i_end = tl.minimum(i_begin + rows, out_points)
    p_g = p_grad + (i_batch * out_points + i_begin) * width + i_first
    p_sum = p_d_out
    if NEED_OUT:
        p_sum += ((i_batch * tiles + i_tile) * out_points + i_begin) * 4
    i_next = 0  # first node row not yet in the window of V
    i_start = i_begin  # node row at the head of the window of D
    if SAMPLE_OUT:
        i_start = tl.load(p_out_start + i_begin)
    b_g = tl.load(p_g + b_lane, mask=b_inside, other=0.0)  # [SUB * LANES] the row of dW in flight
    for i_k in range(i_begin, i_end):
        b_now = b_g.to(tl.float32)
        p_g += tl.where(i_k + 1 < i_end, width, 0)
        b_g = tl.load(p_g + b_lane, mask=b_inside, other=0.0)
        if SAMPLE_OUT:
            i_head = tl.load(p_out_start + i_k)
            if NEED_IN:
                for i_row in range(i_start, tl.minimum(i_head, i_start + 4)):  # rows of D no later point touches
                    p_row = p_nodes + tl.minimum(i_row, out_nodes - 1) * stride + b_first
                    b_d0, b_d1, b_d2, b_d3 = add_node_row(
                        p_row, b_a0, b_d0, b_d1, b_d2, b_d3, step_1, step_2, step_3, ADJACENT
                    )
                    b_a0 = b_a1
                    b_a1 = b_a2
                    b_a2 = b_a3
                    b_a3 = b_zero
                w0, w1, w2, w3 = load_4(p_out_weight, i_k)
                b_a0 += w0 * b_now
                b_a1 += w1 * b_now
                b_a2 += w2 * b_now
                b_a3 += w3 * b_now
            i_start = i_head
            if NEED_OUT:
                for i_row in range(tl.maximum(i_next, i_start), i_start + 4):
                    b_v0 = b_v1
                    b_v1 = b_v2
                    b_v2 = b_v3
                    p_row = p_nodes + tl.minimum(i_row, out_nodes - 1) * stride + b_first  # [SUB * LANES]
                    b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, SAMPLE_IN, ADJACENT)
                    b_v3 = dot_4(b_x0, b_x1, b_x2, b_x3, b_c0, b_c1, b_c2, b_c3, SAMPLE_IN)
                i_next = i_start + 4
                # Fewer than four nodes: the last row stands in for those that do not exist, whose taps have no
                # weight and take no gradient.
                tl.store(p_sum, dot_columns(b_now, b_v0))
                tl.store(p_sum + 1, tl.where(out_nodes > 1, dot_columns(b_now, b_v1), 0.0))
                tl.store(p_sum + 2, tl.where(out_nodes > 2, dot_columns(b_now, b_v2), 0.0))
                tl.store(p_sum + 3, tl.where(out_nodes > 3, dot_columns(b_now, b_v3), 0.0))
                p_sum += 4
        else:
            b_d0, b_d1, b_d2, b_d3 = add_node_row(
                p_nodes + i_k * stride + b_first, b_now, b_d0, b_d1, b_d2, b_d3, step_1, step_2, step_3, ADJACENT
            )
    if NEED_IN:
        if SAMPLE_OUT:
            for i_row in range(i_start, i_start + 4):
                p_row = p_nodes + tl.minimum(i_row, out_nodes - 1) * stride + b_first
                b_d0, b_d1, b_d2, b_d3 = add_node_row(
                    p_row, b_a0, b_d0, b_d1, b_d2, b_d3, step_1, step_2, step_3, ADJACENT
                )
                b_a0 = b_a1
                b_a1 = b_a2
                b_a2 = b_a3
                b_a3 = b_zero
        p_line = p_d_in + ((i_batch * blocks + i_block) * width + i_first) * 4
        p_line += b_lane * 4  # [SUB * LANES]
        tl.store(p_line, b_d0, mask=b_inside)
        tl.store(p_line + 1, tl.where(in_nodes > 1, b_d1, 0.0), mask=b_inside)
        tl.store(p_line + 2, tl.where(in_nodes > 2, b_d2, 0.0), mask=b_inside)
        tl.store(p_line + 3, tl.where(in_nodes > 3, b_d3, 0.0), mask=b_inside)


def tap_gradient(
    nodes: Tensor,
    grad: Tensor,
    sizes: Geometry,
    out_taps: SideTaps,
    in_taps: SideTaps,
    need_out: bool,
    need_in: bool,
) -> tuple[Tensor, Tensor]:  # [out_points, 4] or [0, 4], [in_points, 4] or [0, 4]
    """Gradients of the weights of each axis that needs them."""
    device = nodes.device
    if not (need_out or need_in) or not grad.numel():
        k, n = sizes.out_points if need_out else 0, sizes.in_points if need_in else 0
        return torch.zeros(k, 4, dtype=torch.float32, device=device), torch.zeros(
            n, 4, dtype=torch.float32, device=device
        )
    p = plan(sizes, sizes.out_points, sizes.point_columns, CONFIGS, device)
    batch, _, _, outer, _, in_points, inner = sizes
    d_out = empty([batch * p.tiles, sizes.out_points, 4], torch.float32, device) if need_out else None
    d_in = empty([batch * p.blocks, outer, in_points, inner, 4], torch.float32, device) if need_in else None
    with guard(nodes):
        launch(
                discretize_tap_gradient_kernel, p.grid,
            nodes, grad, *flat_taps(out_taps, in_taps), d_out, d_in, *sizes[1:], p.rows, p.blocks, p.tiles,
            ADJACENT=sizes.adjacent_nodes, INDEX=p.index, **p.config.options,
        )  # fmt: skip
    nothing = torch.empty(0, 4, dtype=torch.float32, device=device)
    return nothing if d_out is None else d_out.sum(0), nothing if d_in is None else d_in.sum((0, 1, 3))


def discretize_tap_gradient(
    nodes: Tensor,  # [M_out, M_in, *rest]
    grad: Tensor,  # [K, L, *rest]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, 4]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, 4]
    need_out: bool,
    need_in: bool,
) -> tuple[Tensor, Tensor]:  # [K, 4], [L, 4]
    """d out_weight and d in_weight, empty where not needed."""
    nodes = dense(nodes)
    last = torch.channels_last if is_channels_last(nodes) else torch.contiguous_format
    grad = grad.contiguous(memory_format=last)
    sizes = weight_geometry(nodes, nodes.shape[0], grad.shape[0], nodes.shape[1], grad.shape[1])
    taps = (out_start, out_weight), (in_start, in_weight)
    return tap_gradient(nodes, grad, sizes, *taps, need_out, need_in)


SUMS = {"p_d_out": "*fp32", "p_d_in": "*fp32"}
KERNELS = [
    KernelSpec(
        discretize_tap_gradient_kernel,
        {"p_nodes": f"*{nodes}", "p_grad": f"*{grad}", **OUT_TAPS, **IN_TAPS, **SUMS, **dict.fromkeys(SIZES, "i32")},
        with_constants(CONFIGS, ADJACENT=(True, False), INDEX=(index,), **unneeded),
        f"{nodes}-{grad}" + "".join(f" no {name[2:]}" for name in unneeded) + (" int64" if index is tl.int64 else ""),
        barrier_free_loops=True,
        targets=targets,
    )
    for nodes, grad, unneeded, index, targets in (
        ("fp32", "bf16", {}, tl.int32, ALL_TARGETS),
        ("fp32", "bf16", {}, tl.int64, ONE_TARGET),
        ("fp32", "bf16", {"p_d_out": (None,)}, tl.int32, ONE_TARGET),
        ("fp32", "bf16", {"p_d_in": (None,)}, tl.int32, ONE_TARGET),
        ("fp32", "fp32", {}, tl.int32, ONE_TARGET),
        ("bf16", "bf16", {}, tl.int32, ONE_TARGET),
    )
]
