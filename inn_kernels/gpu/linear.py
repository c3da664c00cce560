"""Fused integral linear layer: y = x W_q^T + S_out bias with W_q = S_out nodes S_in^T never formed (Eq. 5, 6).

    forward    x' = x S_in          y' = x' nodes^T + bias          y = y' S_out^T

x [B, L], nodes [M_out, M_in], y [B, K]; S [K, M] is the banded matrix of an axis's taps, the quadrature inside S_in.
One launch; a GEMM tile (`gemm_tile`) of which the nodes as they lie are the first operand. Memory sees x, nodes and y;
never W_q [K, L], a copy of the nodes in the compute dtype, x' or y'. The backward pass is in `linear_backward`.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.axis_table import cached_table, pad_points
from inn_kernels.gpu.gemm_configs import ANY, Flags, select
from inn_kernels.gpu.gemm_tile import NODES, assign, finish, multiply, padded, tile_count
from inn_kernels.gpu.launch import Config, Launch, cdiv, empty, guard
from inn_kernels.gpu.specs import gemm_specs
from inn_kernels.gpu.split_sum import Work, shared, split_count, workspace


def config(rows: int, depth: int, stages: int, warps: int = 4, square: int | None = None, **instead: dict) -> Config:
    """ROWS of x a tile, DEPTH nodes a step, pipeline stages; `square`: SIDE of a d_nodes tile of the backward pass."""
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
    "half": ((16, config(16, 64, 3)), (32, config(32, 32, 4)), (ANY, config(64, 32, 4, 8))),
    "tf32": ((16, config(16, 32, 3)), (32, config(32, 32, 3)), (ANY, config(64, 32, 3, 8, gfx942={"DEPTH": 16}))),
    "ieee": ((ANY, config(16, 16, 2)),),
}
SIZES = ("B", "K", "L", "M_out", "M_in", "n_split")
"""Run-time arguments, whatever their value."""


@triton.jit
def row_nodes(nodes, c0, DEPTH: tl.constexpr):
    """Columns c0 on of rows of nodes. [NODES, DEPTH]"""
    p_first, b_row, n_column = nodes
    b_c = tl.arange(0, DEPTH)  # [DEPTH]
    return tl.load(p_first + c0 + (b_row[:, None] + b_c[None, :]), mask=(c0 + b_c < n_column)[None, :], other=0.0)


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


@triton.jit(do_not_specialize=SIZES)
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


@functools.lru_cache(4096)
def _launch_of(
    chosen: Config, flags: Flags, device: torch.device,
    rows: int, points: int, width: int, out_nodes: int, in_nodes: int, taps: int, contributors: int,
) -> Work:  # fmt: skip
    block, depth = chosen.constants["ROWS"], chosen.constants["DEPTH"]
    tiles = cdiv(rows, block) * tile_count(out_nodes, taps)
    splits = split_count(tiles, cdiv(in_nodes, depth), chosen.programs, device)
    options = {"TAPS": taps, "NT": contributors, **flags._asdict(), **chosen.options}
    numbers = (rows, points, width, out_nodes, in_nodes, splits)
    launch = Launch(linear_kernel, (tiles * splits,), numbers, options)
    return Work(launch, *shared(tiles, splits, NODES.value * block))


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
    work = _launch_of(
        *select(FORWARD, x, nodes, rows), x.device,
        rows, points, x.shape[1], out_nodes, in_nodes, out_table.taps, in_table.contributors,
    )  # fmt: skip
    with guard(x):
        space = workspace(x.device, work.partial, work.tickets)
        bias = None if bias is None else bias.contiguous()
        work.launch(y, x, nodes, bias, *out_table.points, *in_table.nodes, *space)
    return y


KERNELS = gemm_specs(linear_kernel, FORWARD, ("NT",), SIZES)
