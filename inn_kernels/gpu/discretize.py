"""Discretize: nodes to an ordinary weight in the compute dtype, both axes and the quadrature in one pass (Eq. 6).

    W[k, l, t] = sum_{r<T} out_weight[k, r] V[out_start[k] + r, l, t]                      rows
    V[i, l, t] = sum_{c<T} in_weight[l, c] nodes[i, in_start[l] + c, t]                    columns

The quadrature and its scale are inside in_weight. Gradients (the Neural Integral Lemma: the same integral with
dF/dnodes for F) are files of their own: d_nodes = S_out^T dW S_in in `discretize_adjoint`, those of the tap weights in
`discretize_tap_gradient`.

A row of W is a line of outer x L x inner columns, whatever the layout: kernel offsets t ride along as `inner`
(contiguous, OIHW) or `outer` (channels_last). A program owns SUB x LANES columns and a run of rows of W and streams
the node rows under them, the next one in flight; a node row costs T gathers a column, the last T rows stay in
registers (of more than eight taps a point's rows and columns are read in loops instead). With T = 4:

            columns l, one a thread and sub-tile
    node row i     . . . .           gathered, weighted by in_weight, shifted into the window
    node row i+1   . . . .    window of 4 rows  --out_weight-->  row k of W, stored once in the compute dtype
    node row i+2   . . . .
    node row i+3   . . . .           rows no point needs (K much smaller than M) are never read

Memory sees nodes once (and T - 1 rows more a program) and W once. It never sees S nodes, a float32 W, or a cast.
`sample_tile` also serves `foreach` (all layers in one launch) and `interpolate` (one axis discrete).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.launch import Config, Launch, empty_like_layout, guard
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
    fetch,
    flat_taps,
    gather,
    load_taps,
    plan,
    push,
    split_columns,
    steps,
    tap_configs,
    tap_counts,
    tap_label,
    tap_launch,
    weight_geometry,
    widen,
    zeros,
)
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec

CONFIGS = {
    4: (
        Config("wide", {"SUB": 4, "LANES": 128}, num_warps=4, resident=7, max_registers=72),
        Config("narrow", {"SUB": 1, "LANES": 128}, num_warps=4, resident=12, max_registers=40),
    ),
    6: (
        Config("wide", {"SUB": 2, "LANES": 128}, num_warps=4, resident=6, max_registers=80),
        Config("narrow", {"SUB": 1, "LANES": 128}, num_warps=4, resident=9, max_registers=56),
    ),
    8: (
        Config("wide", {"SUB": 2, "LANES": 128}, num_warps=4, resident=4, max_registers=104),
        Config("narrow", {"SUB": 1, "LANES": 128}, num_warps=4, resident=8, max_registers=64),
    ),
}
"""By the most taps of an axis; the last also where it has more.

Four columns a thread keep 14 KB of float32 node rows in flight on a multiprocessor, about what its share of the
bandwidth times the latency of memory asks for. Small layers take one column a thread, so that the grid fills the chip.
The bounds are what the compiler needs to spill nothing. From models and machine code, not yet measured."""


@triton.jit
def sample_row(b_x, b_c, p_row, p_weight, taps, inner, TAPS: tl.constexpr):
    """One node row sampled along the input axis: what `gather` loaded, and with TAPS of 0 the rest. [SUB * LANES]."""
    b_sum = dot(b_x, b_c, TAPS)
    if TAPS == 0:
        for n in range(1, taps):
            b_sum += tl.load(p_weight + n) * widen(fetch(p_row + n * inner))
    return b_sum


@triton.jit
def sample_tile(
    p_nodes,  # [out_nodes, outer, in_nodes, inner]
    p_out,  # [out_points, outer, in_points, inner]
    p_out_start, p_out_weight,  # [out_points], [out_points, out_taps]
    p_in_start, p_in_weight,  # [in_points], [in_points, in_taps]
    out_nodes, out_points, outer, in_nodes, in_points, inner, out_taps, in_taps,
    i_block, i_tile, rows,  # which run of rows, which tile of columns, rows a run
    SAMPLE_OUT: tl.constexpr,
    SAMPLE_IN: tl.constexpr,
    TAPS_OUT: tl.constexpr,  # rows of the window, 0: rows are read again for each point
    TAPS_IN: tl.constexpr,  # gathers a column, 0: a loop
    EXACT: tl.constexpr,  # these are the taps of a point; else the most of them
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
    b_c, p_c, distances = (1.0,), p_in_weight, (0,)
    if SAMPLE_IN:
        b_outer, b_l, b_inner = split_columns(i_first, b_near, in_points, inner)  # [SUB * LANES]
        b_first = (b_outer * in_nodes + tl.load(p_in_start + b_l)) * inner + b_inner
        b_c = load_taps(p_in_weight, b_l, in_taps, TAPS_IN, EXACT)  # [SUB * LANES] each
        p_c = p_in_weight + b_l * in_taps
        in_taps = tl.minimum(in_taps, in_nodes)  # those there are nodes for
        distances = steps(in_taps, inner, TAPS_IN)
    b_window = zeros(TAPS_OUT, SUB * LANES)  # node rows from start on, sampled along the input axis
    i_begin = i_block * rows
    i_end = tl.minimum(i_begin + rows, out_points)
    p_out += i_begin.to(tl.int64) * width + i_first
    i_start, i_final = i_begin, i_end - 1  # first and last node row of this program
    if SAMPLE_OUT:
        i_start = tl.load(p_out_start + i_begin)
        i_final = tl.minimum(tl.load(p_out_start + i_end - 1) + out_taps, out_nodes) - 1
    i_row = i_start  # the node row in flight
    p_row = p_nodes + i_row * stride + b_first  # [SUB * LANES]
    b_x = gather(p_row, distances, TAPS_IN, ADJACENT)  # [SUB * LANES] each
    for i_k in range(i_begin, i_end):
        if not SAMPLE_OUT:
            b_w = sample_row(b_x, b_c, p_row, p_c, in_taps, inner, TAPS_IN)  # [SUB * LANES] row k of W
            p_row = p_nodes + tl.minimum(i_k + 1, i_final) * stride + b_first  # [SUB * LANES]
            b_x = gather(p_row, distances, TAPS_IN, ADJACENT)
        elif TAPS_OUT == 0:
            b_w = tl.zeros((SUB * LANES,), tl.float32)
            i_start = tl.load(p_out_start + i_k)
            for n in range(tl.minimum(out_taps, out_nodes)):
                p_row = p_nodes + (i_start + n) * stride + b_first  # [SUB * LANES]
                b_x = gather(p_row, distances, TAPS_IN, ADJACENT)
                b_v = sample_row(b_x, b_c, p_row, p_c, in_taps, inner, TAPS_IN)
                b_w += tl.load(p_out_weight + i_k * out_taps + n) * b_v
        else:
            i_ahead = tl.load(p_out_start + tl.minimum(i_k + 1, out_points - 1))
            w = load_taps(p_out_weight, i_k, out_taps, TAPS_OUT, EXACT)
            while i_row < i_start + out_taps:
                b_v = sample_row(b_x, b_c, p_row, p_c, in_taps, inner, TAPS_IN)
                b_window = push(b_window, b_v, out_taps, TAPS_OUT, EXACT)
                i_row += 1
                if i_row == i_start + out_taps:
                    i_row = tl.maximum(i_row, i_ahead)
                p_row = p_nodes + tl.minimum(i_row, i_final) * stride + b_first  # [SUB * LANES]
                b_x = gather(p_row, distances, TAPS_IN, ADJACENT)
            i_start = i_ahead
            b_w = dot(b_window, w, TAPS_OUT)
        tl.store(p_out + b_lane, b_w.to(p_out.dtype.element_ty), mask=b_inside)
        p_out += width


@triton.jit(do_not_specialize=SIZES + TAP_COUNTS)
def discretize_kernel(
    p_nodes,  # [batch, out_nodes, outer, in_nodes, inner]
    p_out,  # [batch, out_points, outer, in_points, inner]
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
    """W = S_out nodes S_in^T, a tile of columns and a run of rows a program."""
    i_program = tl.program_id(0)
    i_batch = (i_program // tiles // blocks).to(tl.int64)
    sample_tile(
        p_nodes + i_batch * out_nodes * outer * in_nodes * inner,
        p_out + i_batch * out_points * outer * in_points * inner,
        p_out_start, p_out_weight, p_in_start, p_in_weight,
        out_nodes, out_points, outer, in_nodes, in_points, inner,
        out_taps if TAPS_OUT == 0 else TAPS_OUT, in_taps if TAPS_IN == 0 else TAPS_IN,
        i_program // tiles % blocks, i_program % tiles, rows,
        p_out_start is not None, p_in_start is not None, TAPS_OUT, TAPS_IN, True, ADJACENT, SUB, LANES, INDEX,
    )  # fmt: skip


@functools.lru_cache(4096)
def launch_of(sizes: Geometry, out_taps: int, in_taps: int, configs: Sequence[Config], device: torch.device) -> Launch:
    """The launch that samples nodes of these sizes along axes of so many taps."""
    p = plan(sizes, sizes.out_points, sizes.point_columns, configs, device)
    return tap_launch(discretize_kernel, sizes, p, out_taps, in_taps, sizes.adjacent(sizes.in_nodes, in_taps))


def sample(
    nodes: Tensor,
    out: Tensor,
    sizes: Geometry,
    out_taps: SideTaps,
    in_taps: SideTaps,
) -> Tensor:
    """Fill `out` with the nodes sampled along each axis that has taps (start, weight)."""
    if out.numel():
        counts = tap_counts(out_taps, in_taps)
        with guard(out):
            launch_of(sizes, *counts, configs_for(CONFIGS, *counts), out.device)(
                nodes, out, *flat_taps(out_taps, in_taps)
            )
    return out


def discretize(
    nodes: Tensor,  # [M_out, M_in, *rest]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, T_out]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, T_in]
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
TAPS_TYPES = {**OUT_TAPS, **IN_TAPS, **dict.fromkeys(SIZES + TAP_COUNTS, "i32")}
KERNELS = [
    KernelSpec(
        discretize_kernel,
        {"p_nodes": f"*{nodes}", "p_out": f"*{out}", **TAPS_TYPES},
        tap_configs(CONFIGS, taps, ADJACENT=(True, False), INDEX=(index,)),
        f"{nodes}-{out}" + tap_label(taps) + (" int64" if index is tl.int64 else ""),
        barrier_free_loops=True,
        targets=targets,
    )
    for nodes, out, taps, index, targets in (
        ("fp32", "bf16", (4, 4), tl.int32, ALL_TARGETS),
        ("fp32", "bf16", (4, 4), tl.int64, ONE_TARGET),
        ("fp32", "fp16", (4, 4), tl.int32, ONE_TARGET),
        ("fp32", "fp32", (4, 4), tl.int32, ONE_TARGET),
        ("bf16", "bf16", (4, 4), tl.int32, ONE_TARGET),
        *(("fp32", "bf16", taps, tl.int32, ONE_TARGET) for taps in TAPS),
        *(("bf16", "bf16", taps, tl.int32, ONE_TARGET) for taps in TAPS),
    )
]
