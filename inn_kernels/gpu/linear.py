"""Fused integral linear layer: y = x W_q^T + S_out bias with W_q = S_out nodes S_in^T never formed (Eq. 5, 6).

    forward    x' = x S_in          y' = x' nodes^T + bias          y = y' S_out^T
    dx         dy' = dy S_out       g' = dy' nodes                  dx = g' S_in^T
    d_nodes    = dy'^T x'           d_bias = sum_b dy'              (the Neural Integral Lemma: dF/dnodes for F)

x [B, L], nodes [M_out, M_in], y [B, K]; S [K, M] is the banded matrix of an axis's taps, the quadrature inside S_in.

A tile of the forward pass: 64 node rows, BM rows of x. Windows of four rows straddle tiles, so tiles overlap by 3:

            L points            M_in nodes, BK a step                      61 windows start in a tile of 64 rows
    x  [BM, L] --gather NT--> x' [BM, BK] --\
                                             tensor core -> y' [64, BM] --gather 4--> y [points of the tile, BM]
    nodes [64, BK] --cast in registers-----/

The forward pass is one launch, the backward pass another: tiles of dx and tiles of d_nodes (whose first column also
sums d_bias) in one grid. Memory sees x, nodes, y and their gradients. It never sees W_q or dW_q [K, L], a copy of the
nodes in the compute dtype, or interpolated activations x', y', dy', g'. Few rows leave few tiles, so the programs of
one tile share its steps and the last to arrive adds their partial sums in fixed order (`gemm_axis.sum_splits`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.gemm_axis import (
    ANY,
    PAD,
    cached_table,
    crowd,
    gather_rest,
    gather_table,
    gemm_specs,
    pad_points,
    select,
    split_count,
    sum_splits,
    workspace,
)
from inn_kernels.gpu.launch import Config, empty, guard

TILE = 64  # nodes of an accumulator along the axis its epilogue leaves
OUT_ADVANCE = 61  # forward: 61 windows of 4 rows start in 64 rows
IN_ADVANCE = 56  # dx: 61 would do, 56 keeps every row of a tile aligned to 16 bytes


def _config(rows: int, depth: int, stages: int, warps: int = 4, square: int | None = None, **instead: dict) -> Config:
    """BM rows of x a tile, BK nodes a step, pipeline stages; for the backward pass T, the side of a d_nodes tile."""
    constants = {"BM": rows, "BK": depth, "TILE": TILE, "ADVANCE": OUT_ADVANCE, "PAD": PAD}
    if square is not None:
        constants |= {"ADVANCE": IN_ADVANCE, "BB": 16, "T": square}
    name = f"rows{rows}" + ("" if square is None else f"-nodes{square}")
    return Config(name, constants, warps, stages, instead=instead)


# (most rows, configuration) by kind of multiplication; `select` takes the first that fits. Widths are random at every
# step and choose nothing but NT. Few rows are a matter of streaming nodes: BM 16 is the least a tensor core takes, and
# three stages of 64 nodes keep 32 KB in flight in each of the four programs an SM holds. More rows share the nodes they
# stream, up to BM 64 on eight warps (BM 128 spills), with steps of 32 for registers. float32 operands are twice as
# wide. ieee multiplies on the ordinary cores, where a thread holds strips of both operands as deep as the step: BK 16
# and one or two stages, or registers spill. Made for sm_90; what other targets take instead keeps them from spilling.
# Not yet swept on a device.
FORWARD = {
    "half": ((16, _config(16, 64, 3)), (32, _config(32, 32, 4)), (ANY, _config(64, 32, 4, 8))),
    "tf32": ((16, _config(16, 32, 3)), (32, _config(32, 32, 3)), (ANY, _config(64, 32, 3, 8, gfx942={"BK": 16}))),
    "ieee": ((ANY, _config(16, 16, 2)),),
}
# d_nodes in squares of 64, so that the programs of an SM have 32 to 64 KB to write in flight; 16 rows of x a step. On
# eight warps: on four, Triton 3.6 takes 255 registers and, with more points than nodes, spills.
BACKWARD = {
    "half": (
        (16, _config(16, 64, 3, 8, square=64)),
        (32, _config(32, 32, 4, 8, square=64)),
        (ANY, _config(64, 32, 4, 8, square=64)),
    ),
    "tf32": (
        (16, _config(16, 32, 3, square=64, sm_100={"BK": 16})),
        (ANY, _config(32, 32, 3, 8, square=64, sm_100={"num_warps": 4}, gfx942={"BK": 16})),
    ),
    "ieee": ((ANY, _config(16, 16, 1, square=32)),),
}


_SIZES = ("B", "K", "L", "M_out", "M_in", "n_split", "n_x", "need_nodes", "need_bias")  # run-time, whatever their value


@triton.jit(do_not_specialize=_SIZES[:6])
def linear_kernel(
    p_y,  # [B, K]
    p_x,  # [B, L]
    p_nodes,  # [M_out, M_in]
    p_bias,  # [M_out], or nodes again where HAS_BIAS is False
    p_out_start, p_out_weight, p_out_first,
    p_start, p_weight, p_lo, p_hi, p_coefficient, p_crowded,  # of the input axis
    p_partial, p_ticket,
    B, K, L, M_out, M_in, n_split,
    HAS_BIAS: tl.constexpr, ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    NT: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr, ADVANCE: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """y = S_out (nodes x'^T + bias), a tile of 64 node rows and BM rows of x."""
    n_row = tl.cdiv(B, BM)
    i_row = tl.program_id(0) % n_row
    i_split = tl.program_id(0) // n_row % n_split
    i_out = tl.program_id(0) // n_row // n_split
    stride = M_in // 16 * 16 if ALIGNED else M_in  # tells the compiler that rows, and their ends, are aligned
    n_padded = tl.cdiv(M_in, PAD) * PAD
    n_share = tl.cdiv(tl.cdiv(M_in, BK), n_split) * BK
    j_begin = i_split * n_share
    j_end = tl.minimum(j_begin + n_share, M_in)

    b0 = i_row.to(tl.int64) * BM
    b_row = tl.minimum(tl.arange(0, BM), (B - 1 - b0).to(tl.int32))  # [BM], the last row again beyond B
    p_rows = p_x + b0 * L + (b_row * L)[:, None]  # [BM, 1]
    i0 = i_out * ADVANCE
    b_i = tl.minimum(tl.arange(0, TILE), M_out - 1 - i0)  # [TILE]
    p_tile = p_nodes + i0.to(tl.int64) * stride
    b_nodes_offset = (b_i * stride)[:, None] + tl.arange(0, BK)[None, :]  # [TILE, BK]

    b_acc = tl.zeros([TILE, BM], tl.float32)  # y'
    for j0 in range(j_begin, j_end, BK):
        b_j = j0 + tl.arange(0, BK)  # [BK]
        b_nodes = tl.load(p_tile + j0 + b_nodes_offset, mask=(b_j < stride)[None, :], other=0.0)  # [TILE, BK]
        b_x = gather_table(p_rows, p_lo, p_coefficient, b_j, n_padded, NT)  # [BM, BK]
        b_x = b_x.to(p_x.dtype.element_ty).to(COMPUTE)
        b_acc = tl.dot(b_nodes.to(COMPUTE), tl.trans(b_x), b_acc, input_precision=PRECISION)
    crowded_begin = tl.maximum(tl.load(p_crowded) // BK * BK, j_begin)
    for j0 in range(crowded_begin, tl.minimum(tl.load(p_crowded + 1), j_end), BK):
        b_j = j0 + tl.arange(0, BK)
        b_nodes = tl.load(p_tile + j0 + b_nodes_offset, mask=(b_j < stride)[None, :], other=0.0)
        n_more = crowd(p_lo, p_hi, b_j, NT)
        b_x = tl.zeros([BM, BK], tl.float32)
        b_x = gather_rest(b_x, p_rows, p_start, p_weight, p_lo, p_hi, b_j, n_more, NT)
        b_x = b_x.to(p_x.dtype.element_ty).to(COMPUTE)
        b_acc = tl.dot(b_nodes.to(COMPUTE), tl.trans(b_x), b_acc, input_precision=PRECISION)

    done = n_split == 1
    if n_split > 1:
        b_acc, done = sum_splits(b_acc, p_partial, p_ticket, i_out * n_row + i_row, i_split, n_split, TILE, BM)
    if done:
        if HAS_BIAS:
            b_acc += tl.load(p_bias + i0 + b_i).to(tl.float32)[:, None]
        b_b = b0 + tl.arange(0, BM)  # [BM]
        k_end = tl.load(p_out_first + tl.minimum(i0 + ADVANCE, M_out))
        for k0 in range(tl.load(p_out_first + i0), k_end, TILE):
            b_k = k0 + tl.arange(0, TILE)  # [TILE], points whose windows start in this tile
            b_tap = tl.load(p_out_start + b_k, mask=b_k < k_end, other=0) - i0
            b_tap = tl.maximum(b_tap, 0)
            b_y = tl.zeros([TILE, BM], tl.float32)
            for t in tl.static_range(4):
                b_weight = tl.load(p_out_weight + 4 * b_k + t, mask=b_k < k_end, other=0.0)  # [TILE]
                b_y += b_weight[:, None] * tl.gather(b_acc, tl.broadcast_to((b_tap + t)[:, None], [TILE, BM]), 0)
            p_out = p_y + (b_b * K)[None, :] + b_k[:, None]  # [TILE, BM]
            tl.store(p_out, b_y.to(p_y.dtype.element_ty), mask=(b_k < k_end)[:, None] & (b_b < B)[None, :])


@triton.jit
def _input_gradient_tile(
    i_program, p_dx, p_dy, p_nodes,
    p_start, p_weight, p_lo, p_hi, p_coefficient, p_crowded,  # of the output axis
    p_in_start, p_in_weight, p_in_first,
    p_partial, p_ticket,
    B, K, L, M_out, M_in, n_split,
    ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, NT: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr, ADVANCE: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """dx = (dy' nodes) S_in^T, a tile of BM rows of dy and 64 node columns."""
    n_row = tl.cdiv(B, BM)
    i_row = i_program % n_row
    i_split = i_program // n_row % n_split
    i_in = i_program // n_row // n_split
    stride = M_in // 16 * 16 if ALIGNED else M_in  # tells the compiler that rows, and their ends, are aligned
    n_padded = tl.cdiv(M_out, PAD) * PAD
    n_share = tl.cdiv(tl.cdiv(M_out, BK), n_split) * BK
    i_begin = i_split * n_share
    i_end = tl.minimum(i_begin + n_share, M_out)

    b0 = i_row.to(tl.int64) * BM
    b_row = tl.minimum(tl.arange(0, BM), (B - 1 - b0).to(tl.int32))  # [BM]
    p_rows = p_dy + b0 * K + (b_row * K)[:, None]  # [BM, 1]
    j0 = i_in * ADVANCE
    b_j = j0 + tl.arange(0, TILE)  # [TILE]
    b_inside = (b_j < stride)[None, :]

    b_acc = tl.zeros([BM, TILE], tl.float32)  # g'
    for i0 in range(i_begin, i_end, BK):
        b_i = tl.minimum(tl.arange(0, BK), M_out - 1 - i0)  # [BK], the last row again where dy' is 0
        p_tile = p_nodes + i0 * stride.to(tl.int64) + j0
        b_nodes = tl.load(p_tile + (b_i * stride)[:, None] + tl.arange(0, TILE)[None, :], mask=b_inside, other=0.0)
        b_dy = gather_table(p_rows, p_lo, p_coefficient, i0 + tl.arange(0, BK), n_padded, NT)  # [BM, BK]
        b_dy = b_dy.to(p_dy.dtype.element_ty).to(COMPUTE)
        b_acc = tl.dot(b_dy, b_nodes.to(COMPUTE), b_acc, input_precision=PRECISION)
    crowded_begin = tl.maximum(tl.load(p_crowded) // BK * BK, i_begin)
    for i0 in range(crowded_begin, tl.minimum(tl.load(p_crowded + 1), i_end), BK):
        b_i = tl.minimum(tl.arange(0, BK), M_out - 1 - i0)
        p_tile = p_nodes + i0 * stride.to(tl.int64) + j0
        b_nodes = tl.load(p_tile + (b_i * stride)[:, None] + tl.arange(0, TILE)[None, :], mask=b_inside, other=0.0)
        n_more = crowd(p_lo, p_hi, i0 + tl.arange(0, BK), NT)
        b_dy = tl.zeros([BM, BK], tl.float32)
        b_dy = gather_rest(b_dy, p_rows, p_start, p_weight, p_lo, p_hi, i0 + tl.arange(0, BK), n_more, NT)
        b_dy = b_dy.to(p_dy.dtype.element_ty).to(COMPUTE)
        b_acc = tl.dot(b_dy, b_nodes.to(COMPUTE), b_acc, input_precision=PRECISION)

    done = n_split == 1
    if n_split > 1:
        b_acc, done = sum_splits(b_acc, p_partial, p_ticket, i_in * n_row + i_row, i_split, n_split, BM, TILE)
    if done:
        b_b = b0 + tl.arange(0, BM)  # [BM]
        l_end = tl.load(p_in_first + tl.minimum(j0 + ADVANCE, M_in))
        for l0 in range(tl.load(p_in_first + j0), l_end, TILE):
            b_l = l0 + tl.arange(0, TILE)  # [TILE], points whose windows start in this tile
            b_tap = tl.load(p_in_start + b_l, mask=b_l < l_end, other=0) - j0
            b_tap = tl.maximum(b_tap, 0)
            b_dx = tl.zeros([BM, TILE], tl.float32)
            for t in tl.static_range(4):
                b_weight = tl.load(p_in_weight + 4 * b_l + t, mask=b_l < l_end, other=0.0)  # [TILE]
                b_dx += b_weight[None, :] * tl.gather(b_acc, tl.broadcast_to((b_tap + t)[None, :], [BM, TILE]), 1)
            p_out = p_dx + (b_b * L)[:, None] + b_l[None, :]  # [BM, TILE]
            tl.store(p_out, b_dx.to(p_dx.dtype.element_ty), mask=(b_b < B)[:, None] & (b_l < l_end)[None, :])


@triton.jit
def _node_gradient_tile(
    i_program, p_d_nodes, p_d_bias, p_dy, p_x,
    p_out_start, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient,
    p_in_start, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient,
    B, K, L, M_out, M_in, need_nodes, need_bias,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, NT_OUT: tl.constexpr, NT_IN: tl.constexpr,
    BB: tl.constexpr, T: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """d_nodes = dy'^T x', a tile of T by T nodes, BB rows a step; the tiles of column 0 also sum d_bias."""
    n_in = tl.cdiv(M_in, T) if need_nodes else 1
    i0 = i_program // n_in * T
    j0 = i_program % n_in * T
    b_i = i0 + tl.arange(0, T)  # [T]
    b_j = j0 + tl.arange(0, T)  # [T]
    n_out_padded = tl.cdiv(M_out, PAD) * PAD
    n_in_padded = tl.cdiv(M_in, PAD) * PAD
    n_more_out = crowd(p_out_lo, p_out_hi, b_i, NT_OUT)
    n_more_in = crowd(p_in_lo, p_in_hi, b_j, NT_IN)

    b_acc = tl.zeros([T, T], tl.float32)
    b_bias = tl.zeros([BB, T], tl.float32)
    for b0 in tl.range(0, B, BB, disable_licm=True):  # tables are read again each step: in registers they would spill
        b_row = tl.minimum(tl.arange(0, BB), B - 1 - b0)  # [BB], the last row again beyond B, where dy' is set to 0
        p_dy_rows = p_dy + b0 * K.to(tl.int64) + (b_row * K)[:, None]  # [BB, 1]
        p_x_rows = p_x + b0 * L.to(tl.int64) + (b_row * L)[:, None]
        b_dy = gather_table(p_dy_rows, p_out_lo, p_out_coefficient, b_i, n_out_padded, NT_OUT)  # [BB, T]
        b_dy = gather_rest(b_dy, p_dy_rows, p_out_start, p_out_weight, p_out_lo, p_out_hi, b_i, n_more_out, NT_OUT)
        b_dy = tl.where((b0 + tl.arange(0, BB) < B)[:, None], b_dy, 0.0)
        b_bias += b_dy
        b_dy = b_dy.to(p_dy.dtype.element_ty).to(COMPUTE)
        b_x = gather_table(p_x_rows, p_in_lo, p_in_coefficient, b_j, n_in_padded, NT_IN)  # [BB, T]
        b_x = gather_rest(b_x, p_x_rows, p_in_start, p_in_weight, p_in_lo, p_in_hi, b_j, n_more_in, NT_IN)
        b_x = b_x.to(p_x.dtype.element_ty).to(COMPUTE)
        b_acc = tl.dot(tl.trans(b_dy), b_x, b_acc, input_precision=PRECISION)

    if need_nodes:
        p_out = p_d_nodes + b_i.to(tl.int64)[:, None] * M_in + b_j[None, :]  # [T, T]
        tl.store(p_out, b_acc.to(p_d_nodes.dtype.element_ty), mask=(b_i < M_out)[:, None] & (b_j < M_in)[None, :])
    if need_bias & (j0 == 0):
        tl.store(p_d_bias + b_i, tl.sum(b_bias, 0).to(p_d_bias.dtype.element_ty), mask=b_i < M_out)


@triton.jit(do_not_specialize=_SIZES)
def linear_backward_kernel(
    p_dx, p_d_nodes, p_d_bias,  # [B, L], [M_out, M_in], [M_out]
    p_dy, p_x, p_nodes,
    p_out_start, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient, p_out_crowded,
    p_in_start, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient, p_in_first,
    p_partial, p_ticket,
    B, K, L, M_out, M_in, n_split, n_x, need_nodes, need_bias,
    ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, NT_OUT: tl.constexpr, NT_IN: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BB: tl.constexpr, T: tl.constexpr,
    TILE: tl.constexpr, ADVANCE: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """dx in the first n_x programs, d_nodes and d_bias in the others."""
    i_program = tl.program_id(0)
    if i_program < n_x:
        _input_gradient_tile(
            i_program, p_dx, p_dy, p_nodes,
            p_out_start, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient, p_out_crowded,
            p_in_start, p_in_weight, p_in_first, p_partial, p_ticket,
            B, K, L, M_out, M_in, n_split,
            ALIGNED, COMPUTE, PRECISION, NT_OUT, BM, BK, TILE, ADVANCE, PAD,
        )  # fmt: skip
    else:
        _node_gradient_tile(
            i_program - n_x, p_d_nodes, p_d_bias, p_dy, p_x,
            p_out_start, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient,
            p_in_start, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient,
            B, K, L, M_out, M_in, need_nodes, need_bias,
            COMPUTE, PRECISION, NT_OUT, NT_IN, BB, T, PAD,
        )  # fmt: skip


def linear(
    x: Tensor,  # [B, L]
    nodes: Tensor,  # [M_out, M_in]
    bias: Tensor | None,  # [M_out]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, 4]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, 4]
) -> Tensor:  # [B, K], in x's dtype
    """y = x (S_out nodes S_in^T)^T + S_out bias in one launch."""
    rows, points, (out_nodes, in_nodes) = x.shape[0], out_start.shape[0], nodes.shape
    y = empty((rows, points), x.dtype, x.device)
    if rows == 0:
        return y
    out_table, in_table = cached_table(out_start, out_weight, out_nodes), cached_table(in_start, in_weight, in_nodes)
    x, nodes = pad_points(x, in_table), nodes.contiguous()
    config, flags = select(FORWARD, x, nodes, rows)
    block, depth = config.constants["BM"], config.constants["BK"]
    tiles = triton.cdiv(rows, block) * triton.cdiv(max(out_nodes - 3, 1), OUT_ADVANCE)
    splits = split_count(tiles, triton.cdiv(in_nodes, depth), x.device)
    space = workspace(x.device, splits, tiles, TILE * block)
    with guard(x):
        linear_kernel[(tiles * splits,)](
            y, x, nodes, nodes if bias is None else bias.contiguous(),
            *out_table.points, *in_table.nodes, *space,
            rows, points, x.shape[1], out_nodes, in_nodes, splits,
            HAS_BIAS=bias is not None, NT=in_table.contributors, **flags, **config.options,
        )  # fmt: skip
    return y


def linear_backward(
    dy: Tensor,  # [B, K]
    x: Tensor,  # [B, L]
    nodes: Tensor,  # [M_out, M_in]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, 4]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, 4]
    need_x: bool,
    need_nodes: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # dx [B, L], d_nodes [M_out, M_in], d_bias [M_out]; empty where not needed
    """dx = dy W_q, d_nodes = S_out^T dy^T x S_in and d_bias = S_out^T sum_b dy in one launch."""
    rows, width, (out_nodes, in_nodes) = x.shape[0], x.shape[1], nodes.shape
    d_nodes = empty(nodes.shape if need_nodes else (0,), nodes.dtype, x.device)
    d_bias = empty((out_nodes if need_bias else 0,), nodes.dtype, x.device)
    out_table, in_table = cached_table(out_start, out_weight, out_nodes), cached_table(in_start, in_weight, in_nodes)
    dy, x, nodes = pad_points(dy, out_table), pad_points(x, in_table), nodes.contiguous()
    dx = empty(x.shape if need_x else (0,), x.dtype, x.device)
    config, flags = select(BACKWARD, x, nodes, rows)
    block, depth, square = (config.constants[name] for name in ("BM", "BK", "T"))
    tiles = triton.cdiv(rows, block) * triton.cdiv(max(in_nodes - 3, 1), IN_ADVANCE) if need_x else 0
    splits = split_count(tiles, triton.cdiv(out_nodes, depth), x.device)
    space = workspace(x.device, splits, tiles, block * TILE)
    squares = triton.cdiv(out_nodes, square) * (triton.cdiv(in_nodes, square) if need_nodes else 1)
    grid = tiles * splits + (squares if need_nodes or need_bias else 0)
    if grid == 0:
        return dx[..., :width], d_nodes, d_bias
    with guard(x):
        linear_backward_kernel[(grid,)](
            dx, d_nodes, d_bias, dy, x, nodes, *out_table.nodes, *in_table.nodes[:5], in_table.first, *space,
            rows, dy.shape[1], x.shape[1], out_nodes, in_nodes, splits, tiles * splits, int(need_nodes), int(need_bias),
            NT_OUT=out_table.contributors, NT_IN=in_table.contributors, **flags, **config.options,
        )  # fmt: skip
    return dx[..., :width].contiguous(), d_nodes, d_bias


KERNELS = [
    *gemm_specs(linear_kernel, FORWARD, ["NT"], _SIZES, HAS_BIAS=True),
    *gemm_specs(linear_backward_kernel, BACKWARD, ["NT_OUT", "NT_IN"], _SIZES),
]
