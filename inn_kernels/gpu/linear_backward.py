"""The backward pass of the fused linear layer (`linear`): dx, d_nodes and d_bias in one launch.

    dx         dy' = dy S_out       g' = dy' nodes                  dx = g' S_in^T
    d_nodes    = dy'^T x'           d_bias = sum_b dy'              (the Neural Integral Lemma: dF/dnodes for F)

dx is a GEMM tile like the forward pass's (`gemm_tile`), with the nodes for its second operand, where a transposed copy
into shared memory would go by 4 bytes. d_nodes is a product of two gathers:

    dy [rows, K] --gather NT--> dy' [ROW_DEPTH, SIDE] --\\
                                                         tensor core -> d_nodes [SIDE, SIDE]
    x  [rows, L] --gather NT--> x'  [ROW_DEPTH, SIDE] --/

Tiles of dx and tiles of d_nodes (whose first column also sums d_bias) are one grid; where they are few, several
programs share the columns of the ones and the rows of the others (`split_sum`). Memory never sees W_q or dW_q [K, L],
or interpolated activations x', dy', g'.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu import FUSED_TAPS
from inn_kernels.gpu.axis_table import cached_table, pad_points
from inn_kernels.gpu.gemm_configs import ANY, Flags, select
from inn_kernels.gpu.gemm_tile import NODES, assign, crowd, finish, gather, gather_rest, multiply, padded, tile_count
from inn_kernels.gpu.launch import Config, Launch, cdiv, empty, guard
from inn_kernels.gpu.linear import config, rows_from, whole_rows
from inn_kernels.gpu.specs import gemm_specs
from inn_kernels.gpu.split_sum import Work, share_of, shared, split_count, sum_splits, workspace

IN_ADVANCE = tl.constexpr((NODES.value + 1 - FUSED_TAPS) // 8 * 8)
"""Nodes from tile to tile of dx, whatever T: every row of a tile is aligned to 16 bytes."""


# d_nodes in squares of 64, so that the programs of an SM have 32 to 64 KB to write in flight; 16 rows of x a step. On
# eight warps: on four, Triton 3.6 takes 255 registers and, with more points than nodes, spills.
BACKWARD = {
    "half": (
        (16, config(16, 64, 3, 8, square=64)),
        (32, config(32, 32, 4, 8, square=64)),
        (ANY, config(64, 32, 4, 8, square=64)),
    ),
    "tf32": (
        (16, config(16, 32, 3, 8, square=64, sm_100={"num_warps": 4, "DEPTH": 16})),
        (ANY, config(32, 32, 3, 8, square=64, sm_100={"num_warps": 4}, gfx942={"DEPTH": 16})),
    ),
    "ieee": ((ANY, config(16, 16, 1, square=32)),),
}

SIZES = (
    "B", "K", "L", "M_out", "M_in", "n_split", "n_dx", "need_nodes", "need_bias", "n_share", "partial_at", "ticket_at",
)  # fmt: skip
"""Run-time arguments, whatever their value."""


@triton.jit
def column_nodes(nodes, i0, DEPTH: tl.constexpr):
    """Rows i0 on of columns of nodes, the last row again beyond it, where dy' is 0. [DEPTH, NODES]"""
    p_first, b_inside, n_row, stride = nodes
    b_i = tl.minimum(tl.arange(0, DEPTH), n_row - 1 - i0)  # [DEPTH]
    p_rows = p_first + i0 * stride.to(tl.int64) + (b_i * stride)[:, None]  # [DEPTH, 1]
    return tl.load(p_rows + tl.arange(0, NODES)[None, :], mask=b_inside, other=0.0)


@triton.jit
def input_gradient_tile(
    i_program, p_dx, p_dy, p_nodes,
    out_table, p_out_crowded, in_points,
    p_partial, p_ticket,
    B, K, L, M_out, M_in, n_split,
    ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, TAPS: tl.constexpr, NT: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dx = (dy' nodes) S_in^T, a tile of rows b and nodes j. Nodes are the second operand, read as they lie."""
    tl.static_assert(IN_ADVANCE + TAPS <= NODES + 1, "windows that start in a tile must end there")
    n_row_tile = tl.cdiv(B, ROWS)
    i_row, i_in, i_split, begin, end = assign(i_program, n_row_tile, M_out, n_split, DEPTH)
    stride = M_in // 16 * 16 if ALIGNED else M_in  # tells the compiler that rows, and their ends, are aligned
    j0 = i_in * IN_ADVANCE
    b_j = j0 + tl.arange(0, NODES)  # [NODES]
    b0 = i_row.to(tl.int64) * ROWS
    p_rows = rows_from(p_dy, b0, B, K, ROWS)  # [ROWS, 1]
    nodes = (p_nodes + j0, (b_j < stride)[None, :], M_out, stride)
    b_acc = multiply(
        column_nodes, nodes, whole_rows, (p_rows,), out_table, p_out_crowded, 1, 1, begin, end,
        p_dy.dtype.element_ty, COMPUTE, PRECISION, True, False, NT, ROWS, DEPTH,
    )  # fmt: skip
    b_b = b0 + tl.arange(0, ROWS)  # [ROWS]
    finish(
        b_acc, None, p_partial, p_ticket, i_in * n_row_tile + i_row, i_split, n_split,
        j0, tl.minimum(j0 + IN_ADVANCE, M_in), M_in, in_points,
        p_dx + b_b * L, b_b < B, 1, TAPS, False,
    )  # fmt: skip


@triton.jit
def node_gradient_tile(
    i_program, p_d_nodes, p_d_bias, p_dy, p_x, out_table, in_table, p_partial, p_ticket,
    B, K, L, M_out, M_in, need_nodes, need_bias, n_share,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, NT_OUT: tl.constexpr, NT_IN: tl.constexpr,
    SIDE: tl.constexpr, ROW_DEPTH: tl.constexpr,
):  # fmt: skip
    """d_nodes = dy'^T x', a tile of SIDE by SIDE nodes, ROW_DEPTH rows a step; tiles of column 0 also sum d_bias.

    n_share programs share the rows of a tile, where there are few tiles.
    """
    n_in = tl.cdiv(M_in, SIDE) if need_nodes else 1
    n_out = tl.cdiv(M_out, SIDE)
    i_tile, i_share = i_program // n_share, i_program % n_share
    i_out = i_tile // n_in
    j0 = i_tile % n_in * SIDE
    begin, end = share_of(i_share, n_share, tl.cdiv(B, ROW_DEPTH), ROW_DEPTH)
    b_i = i_out * SIDE + tl.arange(0, SIDE)  # [SIDE]
    b_j = j0 + tl.arange(0, SIDE)  # [SIDE]
    n_more_out = crowd(out_table, b_i, NT_OUT)
    n_more_in = crowd(in_table, b_j, NT_IN)

    b_all = tl.full([1, 1], True, tl.int1)  # every point exists
    b_acc = tl.zeros([SIDE, SIDE], tl.float32)
    b_bias = tl.zeros([ROW_DEPTH, SIDE], tl.float32)
    for b0 in tl.range(
        begin, end, ROW_DEPTH, disable_licm=True
    ):  # tables are read again: in registers they would spill
        p_dy_rows = rows_from(p_dy, b0, B, K, ROW_DEPTH)  # [ROW_DEPTH, 1]
        p_x_rows = rows_from(p_x, b0, B, L, ROW_DEPTH)
        b_dy = gather(p_dy_rows, b_all, out_table, b_i, 1, True, NT_OUT)  # [ROW_DEPTH, SIDE]
        b_dy = gather_rest(b_dy, p_dy_rows, b_all, out_table, b_i, 1, n_more_out, True, NT_OUT)
        b_dy = tl.where((b0 + tl.arange(0, ROW_DEPTH) < B)[:, None], b_dy, 0.0)
        b_bias += b_dy
        b_dy = b_dy.to(p_dy.dtype.element_ty).to(COMPUTE)
        b_x = gather(p_x_rows, b_all, in_table, b_j, 1, True, NT_IN)  # [ROW_DEPTH, SIDE]
        b_x = gather_rest(b_x, p_x_rows, b_all, in_table, b_j, 1, n_more_in, True, NT_IN)
        b_x = b_x.to(p_x.dtype.element_ty).to(COMPUTE)
        b_acc = tl.dot(tl.trans(b_dy), b_x, b_acc, input_precision=PRECISION)

    if need_nodes:
        b_acc, last = sum_splits(b_acc, p_partial, p_ticket, i_tile, i_share, n_share)
        if last:
            p_out = p_d_nodes + b_i.to(tl.int64)[:, None] * M_in + b_j[None, :]  # [SIDE, SIDE]
            tl.store(p_out, b_acc.to(p_d_nodes.dtype.element_ty), mask=(b_i < M_out)[:, None] & (b_j < M_in)[None, :])
    if need_bias & (j0 == 0):
        p_sums = p_partial + n_out * n_in * n_share * (SIDE * SIDE)
        b_sum = tl.sum(b_bias, 0)[None, :]  # [1, SIDE]
        b_sum, last = sum_splits(b_sum, p_sums, p_ticket + n_out * n_in, i_out, i_share, n_share)
        if last:
            p_out = p_d_bias + b_i[None, :]
            tl.store(p_out, b_sum.to(p_d_bias.dtype.element_ty), mask=(b_i < M_out)[None, :])


@triton.jit(do_not_specialize=SIZES)
def linear_backward_kernel(
    p_dx, p_d_nodes, p_d_bias,  # [B, L], [M_out, M_in], [M_out]
    p_dy, p_x, p_nodes,
    p_out_skew, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient, p_out_crowded,
    p_in_skew, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient, p_in_start, p_in_first,
    p_partial, p_ticket,
    B, K, L, M_out, M_in, n_split, n_dx, need_nodes, need_bias, n_share, partial_at, ticket_at,
    ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    TAPS: tl.constexpr, NT_OUT: tl.constexpr, NT_IN: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, SIDE: tl.constexpr, ROW_DEPTH: tl.constexpr,
):  # fmt: skip
    """dx in the first n_dx programs, d_nodes and d_bias in the others."""
    i_program = tl.program_id(0)
    out_table = (p_out_skew, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient, padded(M_out))
    in_table = (p_in_skew, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient, padded(M_in))
    if i_program < n_dx:
        input_gradient_tile(
            i_program, p_dx, p_dy, p_nodes, out_table, p_out_crowded, (p_in_start, p_in_weight, p_in_first),
            p_partial, p_ticket, B, K, L, M_out, M_in, n_split,
            ALIGNED, COMPUTE, PRECISION, TAPS, NT_OUT, ROWS, DEPTH,
        )  # fmt: skip
    else:
        node_gradient_tile(
            i_program - n_dx, p_d_nodes, p_d_bias, p_dy, p_x, out_table, in_table,
            p_partial + partial_at, p_ticket + ticket_at, B, K, L, M_out, M_in, need_nodes, need_bias, n_share,
            COMPUTE, PRECISION, NT_OUT, NT_IN, SIDE, ROW_DEPTH,
        )  # fmt: skip


@functools.lru_cache(4096)
def _launch_of(
    chosen: Config, flags: Flags, device: torch.device,
    rows: int, points: int, width: int, out_nodes: int, in_nodes: int,
    taps: int, out_contributors: int, in_contributors: int, need_x: bool, need_nodes: bool, need_bias: bool,
) -> Work:  # fmt: skip
    block, depth, square = (chosen.constants[name] for name in ("ROWS", "DEPTH", "SIDE"))
    tiles = cdiv(rows, block) * tile_count(in_nodes, taps, IN_ADVANCE.value) if need_x else 0
    splits = split_count(tiles, cdiv(out_nodes, depth), chosen.programs, device)
    partial, tickets = shared(tiles, splits, block * NODES.value)
    across, down = cdiv(in_nodes, square) if need_nodes else 1, cdiv(out_nodes, square)
    squares = down * across if need_nodes or need_bias else 0
    shares = split_count(squares, cdiv(rows, chosen.constants["ROW_DEPTH"]), chosen.programs, device)
    numbers = (
        rows, points, width, out_nodes, in_nodes, splits, tiles * splits, int(need_nodes), int(need_bias),
        shares, partial, tickets,
    )  # fmt: skip
    options = {"TAPS": taps, "NT_OUT": out_contributors, "NT_IN": in_contributors, **flags._asdict(), **chosen.options}
    launch = Launch(linear_backward_kernel, (tiles * splits + squares * shares,), numbers, options)
    more, bias = shared(squares, shares, square * square), shared(down, shares, square)
    return Work(launch, partial + more[0] + bias[0], tickets + more[1] + bias[1])


def linear_backward(
    dy: Tensor,  # [B, K]
    x: Tensor,  # [B, L]
    nodes: Tensor,  # [M_out, M_in]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, T]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, T]
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
    work = _launch_of(
        *select(BACKWARD, x, nodes, rows), x.device, rows, dy.shape[1], x.shape[1], out_nodes, in_nodes,
        in_table.taps, out_table.contributors, in_table.contributors, need_x, need_nodes, need_bias,
    )  # fmt: skip
    if work.launch.grid[0] > 0:
        with guard(x):
            space = workspace(x.device, work.partial, work.tickets)
            axes = *out_table.nodes, *in_table.nodes[:5], in_table.start, in_table.first
            work.launch(dx, d_nodes, d_bias, dy, x, nodes, *axes, *space)
    return dx[..., :width].contiguous(), d_nodes, d_bias


KERNELS = gemm_specs(linear_backward_kernel, BACKWARD, ("NT_OUT", "NT_IN"), SIZES)
