"""Fused integral linear layer: y = x W_q^T + S_out bias with W_q = S_out nodes S_in^T never formed (Eq. 5, 6).

    forward    x' = x S_in          y' = x' nodes^T + bias          y = y' S_out^T
    dx         dy' = dy S_out       g' = dy' nodes                  dx = g' S_in^T
    d_nodes    = dy'^T x'           d_bias = sum_b dy'              (the Neural Integral Lemma: dF/dnodes for F)

x [B, L], nodes [M_out, M_in], y [B, K]; S [K, M] is the banded matrix of an axis's taps, the quadrature inside S_in.

Forward pass and dx are one GEMM tile (`gemm_tile`): nodes as they lie are its first operand in the forward pass and its
second in dx, where a transposed copy into shared memory would go by 4 bytes. d_nodes is a product of two gathers:

    dy [rows, K] --gather NT--> dy' [ROW_DEPTH, SIDE] --\
                                                         tensor core -> d_nodes [SIDE, SIDE]
    x  [rows, L] --gather NT--> x'  [ROW_DEPTH, SIDE] --/

The forward pass is one launch, the backward pass another: tiles of dx and tiles of d_nodes (whose first column also
sums d_bias) in one grid. Memory sees x, nodes, y and their gradients. It never sees W_q or dW_q [K, L], a copy of the
nodes in the compute dtype, or interpolated activations x', y', dy', g'.
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
from inn_kernels.gpu.specs import gemm_specs
from inn_kernels.gpu.split_sum import Work, split_count, workspace

IN_ADVANCE = tl.constexpr((NODES.value + 1 - FUSED_TAPS) // 8 * 8)
"""Nodes from tile to tile of dx, whatever T: every row of a tile is aligned to 16 bytes."""


def _config(rows: int, depth: int, stages: int, warps: int = 4, square: int | None = None, **instead: dict) -> Config:
    """ROWS of x a tile, DEPTH nodes a step, pipeline stages; for the backward pass SIDE of a d_nodes tile."""
    constants, name = {"ROWS": rows, "DEPTH": depth}, f"rows{rows}"
    if square is not None:
        constants |= {"SIDE": square, "ROW_DEPTH": 16}
        name += f"-nodes{square}"
    return Config(name, constants, warps, stages, instead=instead)


# (most rows, configuration) by kind of multiplication; `select` takes the first that fits. Few rows are a matter of
# streaming nodes: 16 rows are the least a tensor core takes, and three stages of 64 nodes keep 32 KB in flight in each
# of the four programs an SM holds. More rows share the nodes they stream, up to 64 on eight warps (128 spill), with
# steps of 32 for registers. float32 operands are twice as wide. ieee multiplies on the ordinary cores, where a thread
# holds strips of both operands as deep as the step: steps of 16 and one or two stages, or registers spill. Made for
# sm_90; what other targets take instead keeps them from spilling. Not yet swept on a device.
FORWARD = {
    "half": ((16, _config(16, 64, 3)), (32, _config(32, 32, 4)), (ANY, _config(64, 32, 4, 8))),
    "tf32": ((16, _config(16, 32, 3)), (32, _config(32, 32, 3)), (ANY, _config(64, 32, 3, 8, gfx942={"DEPTH": 16}))),
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
        (16, _config(16, 32, 3, 8, square=64, sm_100={"num_warps": 4, "DEPTH": 16})),
        (ANY, _config(32, 32, 3, 8, square=64, sm_100={"num_warps": 4}, gfx942={"DEPTH": 16})),
    ),
    "ieee": ((ANY, _config(16, 16, 1, square=32)),),
}


SIZES = ("B", "K", "L", "M_out", "M_in", "n_split", "n_dx", "need_nodes", "need_bias")
"""Run-time arguments, whatever their value."""


@triton.jit
def row_nodes(nodes, c0, DEPTH: tl.constexpr):
    """Columns c0 on of rows of nodes. [NODES, DEPTH]"""
    p_first, b_row, n_column = nodes
    b_c = tl.arange(0, DEPTH)  # [DEPTH]
    return tl.load(p_first + c0 + (b_row[:, None] + b_c[None, :]), mask=(c0 + b_c < n_column)[None, :], other=0.0)


@triton.jit
def column_nodes(nodes, i0, DEPTH: tl.constexpr):
    """Rows i0 on of columns of nodes, the last row again beyond it, where dy' is 0. [DEPTH, NODES]"""
    p_first, b_inside, n_row, stride = nodes
    b_i = tl.minimum(tl.arange(0, DEPTH), n_row - 1 - i0)  # [DEPTH]
    p_rows = p_first + i0 * stride.to(tl.int64) + (b_i * stride)[:, None]  # [DEPTH, 1]
    return tl.load(p_rows + tl.arange(0, NODES)[None, :], mask=b_inside, other=0.0)


@triton.jit
def whole_rows(x, j0, DEPTH: tl.constexpr):
    """Rows of x [ROWS, 1] under nodes j0 on: every point exists."""
    (p_rows,) = x
    return p_rows, tl.full([1, 1], True, tl.int1), j0 + tl.arange(0, DEPTH)


@triton.jit
def rows_from(p_x, b0, n_row, stride, ROWS: tl.constexpr):
    """Pointers to ROWS rows from b0 on, the last row again beyond it. [ROWS, 1]"""
    b_row = tl.minimum(tl.arange(0, ROWS), (n_row - 1 - b0).to(tl.int32))
    return p_x + b0 * stride.to(tl.int64) + (b_row * stride)[:, None]


@triton.jit(do_not_specialize=SIZES[:6])
def linear_kernel(
    p_y, p_x, p_nodes, p_bias,  # [B, K], [B, L], [M_out, M_in], [M_out] or None
    p_out_start, p_out_weight, p_out_first,
    p_in_skew, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient, p_in_crowded,
    p_partial, p_ticket,
    B, K, L, M_out, M_in, n_split,
    ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, TAPS: tl.constexpr, NT: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """y = S_out (nodes x'^T + bias), a tile of nodes i and rows b."""
    n_row_tile = tl.cdiv(B, ROWS)
    i_row, i_out, i_split, begin, end = assign(tl.program_id(0), n_row_tile, M_in, n_split, DEPTH)
    stride = M_in // 16 * 16 if ALIGNED else M_in  # tells the compiler that rows, and their ends, are aligned
    ADVANCE: tl.constexpr = NODES + 1 - TAPS
    i0 = i_out * ADVANCE
    b_row = tl.minimum(tl.arange(0, NODES), M_out - 1 - i0) * stride  # [NODES]
    nodes = (p_nodes + i0.to(tl.int64) * stride, b_row, stride)
    b0 = i_row.to(tl.int64) * ROWS
    p_rows = rows_from(p_x, b0, B, L, ROWS)  # [ROWS, 1]
    table = (p_in_skew, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient, padded(M_in))
    b_acc = multiply(
        row_nodes, nodes, whole_rows, (p_rows,), table, p_in_crowded, 1, 1, begin, end,
        p_x.dtype.element_ty, COMPUTE, PRECISION, True, True, NT, ROWS, DEPTH,
    )  # fmt: skip
    b_b = b0 + tl.arange(0, ROWS)  # [ROWS]
    finish(
        b_acc, p_bias, p_partial, p_ticket, i_out * n_row_tile + i_row, i_split, n_split,
        i0, tl.minimum(i0 + ADVANCE, M_out), M_out, (p_out_start, p_out_weight, p_out_first),
        p_y + b_b * K, b_b < B, 1, TAPS, True,
    )  # fmt: skip


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
    i_program, p_d_nodes, p_d_bias, p_dy, p_x, out_table, in_table,
    B, K, L, M_out, M_in, need_nodes, need_bias,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, NT_OUT: tl.constexpr, NT_IN: tl.constexpr,
    SIDE: tl.constexpr, ROW_DEPTH: tl.constexpr,
):  # fmt: skip
    """d_nodes = dy'^T x', a tile of SIDE by SIDE nodes, ROW_DEPTH rows a step; tiles of column 0 also sum d_bias."""
    n_in = tl.cdiv(M_in, SIDE) if need_nodes else 1
    j0 = i_program % n_in * SIDE
    b_i = i_program // n_in * SIDE + tl.arange(0, SIDE)  # [SIDE]
    b_j = j0 + tl.arange(0, SIDE)  # [SIDE]
    n_more_out = crowd(out_table, b_i, NT_OUT)
    n_more_in = crowd(in_table, b_j, NT_IN)

    b_all = tl.full([1, 1], True, tl.int1)  # every point exists
    b_acc = tl.zeros([SIDE, SIDE], tl.float32)
    b_bias = tl.zeros([ROW_DEPTH, SIDE], tl.float32)
    for b0 in tl.range(0, B, ROW_DEPTH, disable_licm=True):  # tables are read again: in registers they would spill
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
        p_out = p_d_nodes + b_i.to(tl.int64)[:, None] * M_in + b_j[None, :]  # [SIDE, SIDE]
        tl.store(p_out, b_acc.to(p_d_nodes.dtype.element_ty), mask=(b_i < M_out)[:, None] & (b_j < M_in)[None, :])
    if need_bias & (j0 == 0):
        tl.store(p_d_bias + b_i, tl.sum(b_bias, 0).to(p_d_bias.dtype.element_ty), mask=b_i < M_out)


@triton.jit(do_not_specialize=SIZES)
def linear_backward_kernel(
    p_dx, p_d_nodes, p_d_bias,  # [B, L], [M_out, M_in], [M_out]
    p_dy, p_x, p_nodes,
    p_out_skew, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient, p_out_crowded,
    p_in_skew, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient, p_in_start, p_in_first,
    p_partial, p_ticket,
    B, K, L, M_out, M_in, n_split, n_dx, need_nodes, need_bias,
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
            B, K, L, M_out, M_in, need_nodes, need_bias,
            COMPUTE, PRECISION, NT_OUT, NT_IN, SIDE, ROW_DEPTH,
        )  # fmt: skip


@functools.lru_cache(4096)
def _forward_launch(
    config: Config, flags: Flags, device: torch.device,
    rows: int, points: int, width: int, out_nodes: int, in_nodes: int, taps: int, contributors: int,
) -> Work:  # fmt: skip
    block, depth = config.constants["ROWS"], config.constants["DEPTH"]
    tiles = cdiv(rows, block) * tile_count(out_nodes, taps)
    splits = split_count(tiles, cdiv(in_nodes, depth), config.programs, device)
    options = {"TAPS": taps, "NT": contributors, **flags._asdict(), **config.options}
    numbers = (rows, points, width, out_nodes, in_nodes, splits)
    return Work(Launch(linear_kernel, (tiles * splits,), numbers, options), splits, tiles, NODES.value * block)


@functools.lru_cache(4096)
def _backward_launch(
    config: Config, flags: Flags, device: torch.device,
    rows: int, points: int, width: int, out_nodes: int, in_nodes: int,
    taps: int, out_contributors: int, in_contributors: int, need_x: bool, need_nodes: bool, need_bias: bool,
) -> Work:  # fmt: skip
    block, depth, square = (config.constants[name] for name in ("ROWS", "DEPTH", "SIDE"))
    tiles = cdiv(rows, block) * tile_count(in_nodes, taps, IN_ADVANCE.value) if need_x else 0
    splits = split_count(tiles, cdiv(out_nodes, depth), config.programs, device)
    squares = cdiv(out_nodes, square) * (cdiv(in_nodes, square) if need_nodes else 1)
    grid = tiles * splits + (squares if need_nodes or need_bias else 0)
    options = {"TAPS": taps, "NT_OUT": out_contributors, "NT_IN": in_contributors}
    numbers = (rows, points, width, out_nodes, in_nodes, splits, tiles * splits, int(need_nodes), int(need_bias))
    launch = Launch(linear_backward_kernel, (grid,), numbers, {**options, **flags._asdict(), **config.options})
    return Work(launch, splits, tiles, block * NODES.value)


def linear(
    x: Tensor,  # [B, L]
    nodes: Tensor,  # [M_out, M_in]
    bias: Tensor | None,  # [M_out]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, T]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, T]
) -> Tensor:  # [B, K], in x's dtype
    """y = x (S_out nodes S_in^T)^T + S_out bias in one launch."""
    rows, points, (out_nodes, in_nodes) = x.shape[0], out_start.shape[0], nodes.shape
    y = empty((rows, points), x.dtype, x.device)
    if rows == 0:
        return y
    out_table, in_table = cached_table(out_start, out_weight, out_nodes), cached_table(in_start, in_weight, in_nodes)
    x, nodes = pad_points(x, in_table), nodes.contiguous()
    work = _forward_launch(
        *select(FORWARD, x, nodes, rows), x.device,
        rows, points, x.shape[1], out_nodes, in_nodes, out_table.taps, in_table.contributors,
    )  # fmt: skip
    with guard(x):
        space = workspace(x.device, work.splits, work.tiles, work.tile_numel)
        bias = None if bias is None else bias.contiguous()
        work.launch(y, x, nodes, bias, *out_table.points, *in_table.nodes, *space)
    return y


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
    work = _backward_launch(
        *select(BACKWARD, x, nodes, rows), x.device, rows, dy.shape[1], x.shape[1], out_nodes, in_nodes,
        in_table.taps, out_table.contributors, in_table.contributors, need_x, need_nodes, need_bias,
    )  # fmt: skip
    if work.launch.grid[0] > 0:
        with guard(x):
            space = workspace(x.device, work.splits, work.tiles, work.tile_numel)
            axes = *out_table.nodes, *in_table.nodes[:5], in_table.start, in_table.first
            work.launch(dx, d_nodes, d_bias, dy, x, nodes, *axes, *space)
    return dx[..., :width].contiguous(), d_nodes, d_bias


KERNELS = [
    *gemm_specs(linear_kernel, FORWARD, ("NT",), SIZES),
    *gemm_specs(linear_backward_kernel, BACKWARD, ("NT_OUT", "NT_IN"), SIZES),
]
