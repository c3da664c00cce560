"""Gradients of both axes' tap weights in one pass over nodes and dW: for trainable partitions and quadratures.

    d_out_weight[k, r] = sum_{l, t} dW[k, l, t] V[out_start[k] + r, l, t]        V = nodes S_in^T
    d_in_weight[l, c]  = sum_{k, t} dW[k, l, t] sum_r out_weight[k, r] nodes[out_start[k] + r, in_start[l] + c, t]
                       = sum_{i, t} D[i, l, t] nodes[i, in_start[l] + c, t]      D = S_out^T dW

(the derivatives of <dW, W_q>, Eq. 6, in the weights that a partition and its quadrature become). A program owns
columns (l, t) and a run of rows k of dW and streams the node rows under them:

    row k of dW  . . . .  x  window V[start ..]              summed over the columns  -> d_out_weight[k]  (partial)
                          x  out_weight[k]  -> window D[start ..]
    complete row D[i]     x  nodes[i] gathered again (L1)    summed over the rows     -> d_in_weight[l]   (partial)

Programs write partial sums, one line a tile or a run of rows, added afterwards in a fixed order: no atomics, bitwise
repeatable. A program is one warp, so sums over columns are shuffles without barriers. Memory sees nodes and dW once;
it never sees V, D, S_out nodes or a product of their size. Windows and sums are in registers, at most eight taps a side
in one launch.
"""

# In kernels tuples grow by an element at a time.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.adjoint_tile import add_scaled
from inn_kernels.gpu.discretize import IN_TAPS, OUT_TAPS
from inn_kernels.gpu.launch import Config, Launch, empty, guard, is_channels_last
from inn_kernels.gpu.sampler_tile import (
    HELD,
    SIZES,
    TAPS,
    Geometry,
    Plan,
    SideTaps,
    columns,
    configs_for,
    dense,
    dot,
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
    weight_geometry,
    zeros,
)
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec

CONFIGS = {
    4: (
        Config("wide", {"SUB": 4, "LANES": 32}, num_warps=1, resident=16, max_registers=128),
        Config("narrow", {"SUB": 1, "LANES": 32}, num_warps=1, resident=25, max_registers=80),
    ),
    6: (
        Config("wide", {"SUB": 2, "LANES": 32}, num_warps=1, resident=12, max_registers=160),
        Config("narrow", {"SUB": 1, "LANES": 32}, num_warps=1, resident=19, max_registers=104),
    ),
    8: (
        Config("wide", {"SUB": 2, "LANES": 32}, num_warps=1, resident=12, max_registers=168),
        Config("narrow", {"SUB": 1, "LANES": 32}, num_warps=1, resident=15, max_registers=136),
    ),
}
"""By the most taps of an axis. One warp a program: sums over columns need no barrier. Several columns a thread share
the shuffles of a sum."""


@triton.jit
def dot_columns(b_x, b_y):
    """Sum of x y over the columns of a tile: sub-tiles within a thread, then lanes by shuffles. Scalar."""
    return tl.sum(b_x * b_y, 0)


@triton.jit
def add_node_row(b_sums, b_d, p_row, distances, TAPS: tl.constexpr, ADJACENT: tl.constexpr):
    """d_in_weight sums plus one row of D times the nodes of each column, `p_row` the first. [SUB * LANES] each."""
    b_x = gather(p_row, distances, TAPS, ADJACENT)
    b_added = ()
    for n in tl.static_range(TAPS):
        b_added += (b_sums[n] + b_d * b_x[n].to(tl.float32),)
    return b_added


@triton.jit(do_not_specialize=SIZES)
def discretize_tap_gradient_kernel(
    p_nodes,  # [batch, out_nodes, outer, in_nodes, inner]
    p_grad,  # [batch, out_points, outer, in_points, inner]
    p_out_start, p_out_weight,  # [out_points], [out_points, TAPS_OUT]; None: the output axis is discrete
    p_in_start, p_in_weight,  # [in_points], [in_points, TAPS_IN]; None: the input axis is discrete
    p_d_out,  # [batch, tiles, out_points, TAPS_OUT] partial sums, None: not needed
    p_d_in,  # [batch, blocks, outer, in_points, inner, TAPS_IN] partial sums, None: not needed
    out_nodes, out_points, outer, in_nodes, in_points, inner, rows, blocks, tiles,
    TAPS_OUT: tl.constexpr,
    TAPS_IN: tl.constexpr,
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
    b_c, distances = (1.0,), (0,)
    if SAMPLE_IN:
        b_outer, b_l, b_inner = split_columns(i_first, b_near, in_points, inner)  # [SUB * LANES]
        b_first = (b_outer * in_nodes + tl.load(p_in_start + b_l)) * inner + b_inner
        distances = steps(in_nodes, inner, TAPS_IN)
        if NEED_OUT:
            b_c = load_taps(p_in_weight, b_l, TAPS_IN, TAPS_IN, True)  # [SUB * LANES] each
    b_zero = tl.zeros((SUB * LANES,), tl.float32)
    b_v = zeros(TAPS_OUT, SUB * LANES)  # window of V, node rows from i_start on
    b_a = zeros(TAPS_OUT, SUB * LANES)  # window of D, the same rows
    b_d = zeros(TAPS_IN, SUB * LANES)  # d_in_weight
    i_begin = i_block * rows
    i_end = tl.minimum(i_begin + rows, out_points)
    p_g = p_grad + (i_batch * out_points + i_begin) * width + i_first
    p_sum = p_d_out
    if NEED_OUT:
        p_sum += ((i_batch * tiles + i_tile) * out_points + i_begin) * TAPS_OUT
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
                for i_row in range(i_start, tl.minimum(i_head, i_start + TAPS_OUT)):  # no later point touches these
                    p_row = p_nodes + tl.minimum(i_row, out_nodes - 1) * stride + b_first
                    b_d = add_node_row(b_d, b_a[0], p_row, distances, TAPS_IN, ADJACENT)
                    b_a = push(b_a, b_zero, TAPS_OUT, TAPS_OUT, True)
                w = load_taps(p_out_weight, i_k, TAPS_OUT, TAPS_OUT, True)
                b_a = add_scaled(b_a, w, b_now, TAPS_OUT)
            i_start = i_head
            if NEED_OUT:
                for i_row in range(tl.maximum(i_next, i_start), i_start + TAPS_OUT):
                    p_row = p_nodes + tl.minimum(i_row, out_nodes - 1) * stride + b_first  # [SUB * LANES]
                    b_row = dot(gather(p_row, distances, TAPS_IN, ADJACENT), b_c, TAPS_IN)
                    b_v = push(b_v, b_row, TAPS_OUT, TAPS_OUT, True)
                i_next = i_start + TAPS_OUT
                # Fewer nodes than taps: the last row stands in for those that do not exist, whose taps have no weight
                # and take no gradient.
                tl.store(p_sum, dot_columns(b_now, b_v[0]))
                for n in tl.static_range(1, TAPS_OUT):
                    tl.store(p_sum + n, tl.where(out_nodes > n, dot_columns(b_now, b_v[n]), 0.0))
                p_sum += TAPS_OUT
        else:
            p_row = p_nodes + i_k * stride + b_first
            b_d = add_node_row(b_d, b_now, p_row, distances, TAPS_IN, ADJACENT)
    if NEED_IN:
        if SAMPLE_OUT:
            for i_row in range(i_start, i_start + TAPS_OUT):
                p_row = p_nodes + tl.minimum(i_row, out_nodes - 1) * stride + b_first
                b_d = add_node_row(b_d, b_a[0], p_row, distances, TAPS_IN, ADJACENT)
                b_a = push(b_a, b_zero, TAPS_OUT, TAPS_OUT, True)
        p_line = p_d_in + ((i_batch * blocks + i_block) * width + i_first) * TAPS_IN
        p_line += b_lane * TAPS_IN  # [SUB * LANES]
        tl.store(p_line, b_d[0], mask=b_inside)
        for n in tl.static_range(1, TAPS_IN):
            tl.store(p_line + n, tl.where(in_nodes > n, b_d[n], 0.0), mask=b_inside)


def tap_gradient(
    nodes: Tensor,
    grad: Tensor,
    sizes: Geometry,
    out_taps: SideTaps,
    in_taps: SideTaps,
    need_out: bool,
    need_in: bool,
) -> tuple[Tensor, Tensor]:  # [out_points, T_out] or [0, T_out], [in_points, T_in] or [0, T_in]
    """Gradients of the weights of each axis that needs them."""
    counts = tap_counts(out_taps, in_taps)
    if (need_out or need_in) and grad.numel() and max(counts) <= HELD:
        return _held_gradient(nodes, grad, sizes, out_taps, in_taps, need_out, need_in)
    points = sizes.out_points if need_out else 0, sizes.in_points if need_in else 0
    sums = [torch.zeros(n, taps, dtype=torch.float32, device=nodes.device) for n, taps in zip(points, counts)]
    if not (need_out or need_in) or not grad.numel():
        return sums[0], sums[1]
    # Both gradients are linear in the other side's weights, and a tap's own needs no other tap of its side.
    for out, out_part in _parts(out_taps, sizes.out_nodes):
        for in_, in_part in _parts(in_taps, sizes.in_nodes):
            made = _held_gradient(nodes, grad, sizes, out_part, in_part, need_out, need_in)
            for total, part, more, need in zip(sums, (out, in_), made, (need_out, need_in)):
                if need:
                    total[:, part] += more
    return sums[0], sums[1]


def _parts(taps: SideTaps, nodes: int) -> list[tuple[slice, SideTaps]]:
    """The taps of an axis, at most HELD at a time, without those that have no node."""
    start, weight = taps
    if start is None or weight is None:
        return [(slice(None), taps)]
    most = min(weight.shape[1], nodes)
    parts = [slice(n, min(n + HELD, most)) for n in range(0, most, HELD)]
    return [(part, (start + part.start, weight[:, part])) for part in parts]


@functools.lru_cache(4096)
def _launch_of(
    sizes: Geometry, out: int, in_: int, configs: Sequence[Config], device: torch.device
) -> tuple[Launch, Plan]:
    """The launch for tensors of these sizes along axes of so many taps, and how it divides the work."""
    p = plan(sizes, sizes.out_points, sizes.point_columns, configs, device)
    options = {"TAPS_OUT": out, "TAPS_IN": in_, "ADJACENT": sizes.adjacent(sizes.in_nodes, in_), "INDEX": p.index}
    numbers = (*sizes[1:], p.rows, p.blocks, p.tiles)
    return Launch(discretize_tap_gradient_kernel, p.grid, numbers, {**options, **p.config.options}), p


def _held_gradient(
    nodes: Tensor,
    grad: Tensor,
    sizes: Geometry,
    out_taps: SideTaps,
    in_taps: SideTaps,
    need_out: bool,
    need_in: bool,
) -> tuple[Tensor, Tensor]:
    """`tap_gradient` of at most HELD taps a side, in one launch."""
    device, (out, in_) = nodes.device, tap_counts(out_taps, in_taps)
    launch, p = _launch_of(sizes, out, in_, configs_for(CONFIGS, out, in_), device)
    batch, _, _, outer, _, in_points, inner = sizes
    d_out = empty([batch * p.tiles, sizes.out_points, out], torch.float32, device) if need_out else None
    d_in = empty([batch * p.blocks, outer, in_points, inner, in_], torch.float32, device) if need_in else None
    with guard(nodes):
        launch(nodes, grad, *flat_taps(out_taps, in_taps), d_out, d_in)
    nothing = [torch.empty(0, taps, dtype=torch.float32, device=device) for taps in (out, in_)]
    return nothing[0] if d_out is None else d_out.sum(0), nothing[1] if d_in is None else d_in.sum((0, 1, 3))


def discretize_tap_gradient(
    nodes: Tensor,  # [M_out, M_in, *rest]
    grad: Tensor,  # [K, L, *rest]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, T_out]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, T_in]
    need_out: bool,
    need_in: bool,
) -> tuple[Tensor, Tensor]:  # [K, T_out], [L, T_in]
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
        tap_configs(CONFIGS, taps, ADJACENT=(True, False), INDEX=(index,), **unneeded),
        f"{nodes}-{grad}"
        + tap_label(taps)
        + "".join(f" no {name[2:]}" for name in unneeded)
        + (" int64" if index is tl.int64 else ""),
        barrier_free_loops=True,
        targets=targets,
    )
    for nodes, grad, taps, unneeded, index, targets in (
        ("fp32", "bf16", (4, 4), {}, tl.int32, ALL_TARGETS),
        ("fp32", "bf16", (4, 4), {}, tl.int64, ONE_TARGET),
        ("fp32", "bf16", (4, 4), {"p_d_out": (None,)}, tl.int32, ONE_TARGET),
        ("fp32", "bf16", (4, 4), {"p_d_in": (None,)}, tl.int32, ONE_TARGET),
        ("fp32", "fp32", (4, 4), {}, tl.int32, ONE_TARGET),
        ("bf16", "bf16", (4, 4), {}, tl.int32, ONE_TARGET),
        *(("fp32", "bf16", taps, {}, tl.int32, ONE_TARGET) for taps in TAPS if max(taps) <= HELD),
        *(("bf16", "bf16", taps, {}, tl.int32, ONE_TARGET) for taps in TAPS if max(taps) <= HELD),
    )
]
