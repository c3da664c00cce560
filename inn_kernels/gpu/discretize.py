"""Discretize: nodes to an ordinary weight in the compute dtype, both axes and the quadrature in one pass (Eq. 6).

    W[k, l, t] = sum_{r<4} out_weight[k, r] V[out_start[k] + r, l, t]                      rows
    V[i, l, t] = sum_{c<4} in_weight[l, c] nodes[i, in_start[l] + c, t]                    columns

The quadrature and its scale are inside in_weight. Gradients (the Neural Integral Lemma: the same integral with
dF/dnodes for F) are files of their own: d_nodes = S_out^T dW S_in in `discretize_adjoint`, those of the tap weights in
`discretize_tap_gradient`.

A row of W is a line of outer x L x inner columns, whatever the layout: kernel offsets t ride along as `inner`
(contiguous, OIHW) or `outer` (channels_last). A program owns SUB x LANES columns and a run of rows of W and streams
the node rows under them, the next one in flight; a node row costs four gathers a column, the last four rows stay in
registers:

            columns l, one a thread and sub-tile
    node row i     . . . .           gathered, weighted by in_weight, shifted into the window
    node row i+1   . . . .    window of 4 rows  --out_weight-->  row k of W, stored once in the compute dtype
    node row i+2   . . . .
    node row i+3   . . . .           rows no point needs (K much smaller than M) are never read

Memory sees nodes once (and three rows more a program) and W once. It never sees S nodes, a float32 W, or a cast.
`sample_tile` also serves `foreach` (all layers in one launch) and `interpolate` (one axis discrete).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    split_columns,
    steps,
    weight_geometry,
)
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec, with_constants

CONFIGS = (
    Config("wide", {"SUB": 4, "LANES": 128}, num_warps=4, resident=7, max_registers=72),
    Config("narrow", {"SUB": 1, "LANES": 128}, num_warps=4, resident=12, max_registers=40),
)
"""Four columns a thread keep 14 KB of float32 node rows in flight on a multiprocessor, about what its share of the
bandwidth times the latency of memory asks for. Small layers take one column a thread, so that the grid fills the chip.
The bounds are what the compiler needs to spill nothing. From models and machine code, not yet measured."""


@triton.jit
def sample_tile(
    p_nodes,  # [out_nodes, outer, in_nodes, inner]
    p_out,  # [out_points, outer, in_points, inner]
    p_out_start, p_out_weight,  # [out_points], [out_points, 4]
    p_in_start, p_in_weight,  # [in_points], [in_points, 4]
    out_nodes, out_points, outer, in_nodes, in_points, inner,
    i_block, i_tile, rows,  # which run of rows, which tile of columns, rows a run
    SAMPLE_OUT: tl.constexpr,
    SAMPLE_IN: tl.constexpr,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """One program's tile of W. An axis that is not sampled is discrete: its nodes are its points."""
    width = outer.to(INDEX) * in_points * inner
    stride = outer.to(tl.int64) * in_nodes * inner
    i_first, b_lane, b_near, b_inside = columns(i_tile, width, SUB, LANES, INDEX)  # scalar, [SUB * LANES] each
    b_first = i_first + b_near  # [SUB * LANES] column of the first node
    b_c0, b_c1, b_c2, b_c3 = 1.0, 0.0, 0.0, 0.0
    step_1, step_2, step_3 = 0, 0, 0
    if SAMPLE_IN:
        b_outer, b_l, b_inner = split_columns(i_first, b_near, in_points, inner)  # [SUB * LANES]
        b_first = (b_outer * in_nodes + tl.load(p_in_start + b_l)) * inner + b_inner
        b_c0, b_c1, b_c2, b_c3 = load_4(p_in_weight, b_l)  # [SUB * LANES]
        step_1, step_2, step_3 = steps(in_nodes, inner)
    b_r0 = tl.zeros((SUB * LANES,), tl.float32)  # the window: node rows start .. start + 3 sampled along the input axis
    b_r1 = tl.zeros((SUB * LANES,), tl.float32)
    b_r2 = tl.zeros((SUB * LANES,), tl.float32)
    b_r3 = tl.zeros((SUB * LANES,), tl.float32)
    i_begin = i_block * rows
    i_end = tl.minimum(i_begin + rows, out_points)
    p_out += i_begin.to(tl.int64) * width + i_first
    i_start, i_final = i_begin, i_end - 1  # first and last node row of this program
    if SAMPLE_OUT:
        i_start = tl.load(p_out_start + i_begin)
        i_final = tl.minimum(tl.load(p_out_start + i_end - 1) + 3, out_nodes - 1)
    i_row = i_start  # the node row in flight
    p_row = p_nodes + i_row * stride + b_first  # [SUB * LANES]
    b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, SAMPLE_IN, ADJACENT)
    for i_k in range(i_begin, i_end):
        if SAMPLE_OUT:
            i_ahead = tl.load(p_out_start + tl.minimum(i_k + 1, out_points - 1))
            w0, w1, w2, w3 = load_4(p_out_weight, i_k)
            while i_row < i_start + 4:
                b_r0 = b_r1
                b_r1 = b_r2
                b_r2 = b_r3
                b_r3 = dot_4(b_x0, b_x1, b_x2, b_x3, b_c0, b_c1, b_c2, b_c3, SAMPLE_IN)
                i_row += 1
                if i_row == i_start + 4:
                    i_row = tl.maximum(i_row, i_ahead)
                p_row = p_nodes + tl.minimum(i_row, i_final) * stride + b_first  # [SUB * LANES]
                b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, SAMPLE_IN, ADJACENT)
            i_start = i_ahead
            b_w = w0 * b_r0 + w1 * b_r1 + w2 * b_r2 + w3 * b_r3  # [SUB * LANES] row k of W
        else:
            b_w = dot_4(b_x0, b_x1, b_x2, b_x3, b_c0, b_c1, b_c2, b_c3, SAMPLE_IN)
            p_row = p_nodes + tl.minimum(i_k + 1, i_final) * stride + b_first  # [SUB * LANES]
            b_x0, b_x1, b_x2, b_x3 = gather_4(p_row, step_1, step_2, step_3, SAMPLE_IN, ADJACENT)
        tl.store(p_out + b_lane, b_w.to(p_out.dtype.element_ty), mask=b_inside)
        p_out += width


@triton.jit(do_not_specialize=SIZES)
def discretize_kernel(
    p_nodes,  # [batch, out_nodes, outer, in_nodes, inner]
    p_out,  # [batch, out_points, outer, in_points, inner]
    p_out_start, p_out_weight,  # [out_points], [out_points, 4]; None: the output axis is discrete
    p_in_start, p_in_weight,  # [in_points], [in_points, 4]; None: the input axis is discrete
    out_nodes, out_points, outer, in_nodes, in_points, inner, rows, blocks, tiles,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """W = S_out nodes S_in^T, a tile of columns and a run of rows a program."""
    i_program = tl.program_id(0)
    i_batch = (i_program // tiles // blocks).to(tl.int64)
    sample_tile(
        p_nodes + i_batch * out_nodes * outer * in_nodes * inner,
        p_out + i_batch * out_points * outer * in_points * inner,
        p_out_start, p_out_weight, p_in_start, p_in_weight,
        out_nodes, out_points, outer, in_nodes, in_points, inner,
        i_program // tiles % blocks, i_program % tiles, rows,
        p_out_start is not None, p_in_start is not None, ADJACENT, SUB, LANES, INDEX,
    )  # fmt: skip


def sample(
    nodes: Tensor,
    out: Tensor,
    sizes: Geometry,
    out_taps: SideTaps,
    in_taps: SideTaps,
) -> Tensor:
    """Fill `out` with the nodes sampled along each axis that has taps (start, weight)."""
    if out.numel():
        p = plan(sizes, sizes.out_points, sizes.point_columns, CONFIGS, out.device)
        with guard(out):
            launch(
                discretize_kernel, p.grid,
                nodes, out, *flat_taps(out_taps, in_taps), *sizes[1:], p.rows, p.blocks, p.tiles,
                ADJACENT=sizes.adjacent_nodes, INDEX=p.index, **p.config.options,
            )  # fmt: skip
    return out


def discretize(
    nodes: Tensor,  # [M_out, M_in, *rest]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, 4]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, 4]
    dtype: torch.dtype,
) -> Tensor:  # [K, L, *rest]
    """W = S_out nodes S_in^T (Eq. 6; the quadrature is in `in_weight`), in the layout of `nodes`."""
    nodes = dense(nodes)
    points = out_start.shape[0], in_start.shape[0]
    sizes = weight_geometry(nodes, nodes.shape[0], points[0], nodes.shape[1], points[1])
    out = empty_like_layout(nodes, [*points, *nodes.shape[2:]], dtype)
    return sample(nodes, out, sizes, (out_start, out_weight), (in_start, in_weight))


OUT_TAPS = {"p_out_start": "*i32", "p_out_weight": "*fp32"}
IN_TAPS = {"p_in_start": "*i32", "p_in_weight": "*fp32"}
KERNELS = [
    KernelSpec(
        discretize_kernel,
        {"p_nodes": f"*{nodes}", "p_out": f"*{out}", **OUT_TAPS, **IN_TAPS, **dict.fromkeys(SIZES, "i32")},
        with_constants(CONFIGS, ADJACENT=(True, False), INDEX=(index,)),
        f"{nodes}-{out}" + (" int64" if index is tl.int64 else ""),
        barrier_free_loops=True,
        targets=targets,
    )
    for nodes, out, index, targets in (
        ("fp32", "bf16", tl.int32, ALL_TARGETS),
        ("fp32", "bf16", tl.int64, ONE_TARGET),
        ("fp32", "fp16", tl.int32, ONE_TARGET),
        ("fp32", "fp32", tl.int32, ONE_TARGET),
        ("bf16", "bf16", tl.int32, ONE_TARGET),
    )
]
