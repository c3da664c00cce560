"""The gradient of the nodes of the fused convolution (`conv`), with d_bias, in one launch.

    d_nodes[i, j, t] = sum_p dy'[i, p] x'[j, p + t]     d_bias[i] = sum_p dy'[i, p]     (Neural Integral Lemma)

A product over pixels of two gathers, SIDE nodes by SIDE columns c = (j, t) a tile. Where tiles are few, several
programs share the pixels of one (`split_sum`).
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.axis_table import cached_table, pad_points
from inn_kernels.gpu.conv import Pair, Shape, pixels, under
from inn_kernels.gpu.gemm_configs import ANY, Flags, select
from inn_kernels.gpu.gemm_tile import crowd, gather, gather_rest, padded
from inn_kernels.gpu.launch import Config, Launch, cdiv, empty, guard
from inn_kernels.gpu.specs import gemm_specs
from inn_kernels.gpu.split_sum import Work, share_of, shared, split_count, sum_splits, workspace


def _square(side: int, depth: int, warps: int) -> Config:
    """SIDE by SIDE cells of d_nodes, ROW_DEPTH pixels a step."""
    return Config(f"nodes{side}", {"SIDE": side, "ROW_DEPTH": depth}, warps)


# 16 pixels a step fill a memory sector. Sixteen warps share the gathers of both operands of a square of 64: on eight
# their addresses take 170 registers a thread, and a multiprocessor holds one such program.
NODE_GRADIENT = {
    "half": ((ANY, _square(64, 16, 16)),),
    "tf32": ((ANY, _square(32, 32, 8)),),
    "ieee": ((ANY, _square(32, 16, 8)),),
}

SIZES = (
    "B", "K", "L", "M_left", "M_sum", "H", "W", "P", "Q", "S", "n_offset", "scale_h", "scale_w", "from_h", "from_w",
    "step_h", "step_w", "need_nodes", "need_bias", "n_share",
)  # fmt: skip
"""Run-time arguments, whatever their value."""


@triton.jit(do_not_specialize=SIZES)
def conv_node_gradient_kernel(
    p_d_nodes, p_d_bias,  # [M_left, M_sum, n_offset], [M_left]
    p_dy, p_x,  # [B, K, P, Q], [B, L, H, W]
    p_out_skew, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient,
    p_in_skew, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient,
    p_partial, p_ticket,
    B, K, L, M_left, M_sum, H, W, P, Q, S, n_offset,
    scale_h, scale_w, from_h, from_w, step_h, step_w, need_nodes, need_bias, n_share,
    ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, NT_OUT: tl.constexpr, NT_IN: tl.constexpr,
    SIDE: tl.constexpr, ROW_DEPTH: tl.constexpr,
):  # fmt: skip
    """d_nodes[i, c] = sum_p dy'[i, p] x'[c, under p], SIDE nodes by SIDE columns; the first tiles also sum d_bias.

    n_share programs share the pixels of a tile, where there are few tiles.
    """
    n_column = M_sum * n_offset
    n_across, n_down = tl.cdiv(n_column, SIDE) if need_nodes else 1, tl.cdiv(M_left, SIDE)
    i_tile, i_share = tl.program_id(0) // n_share, tl.program_id(0) % n_share
    b_i = i_tile // n_across * SIDE + tl.arange(0, SIDE)  # [SIDE]
    c0 = i_tile % n_across * SIDE
    b_c = c0 + tl.arange(0, SIDE)  # [SIDE]
    b_j = b_c // n_offset
    b_step_h = b_c % n_offset // S * step_h
    b_step_w = b_c % n_offset % S * step_w
    n_pixel = B.to(tl.int64) * P * Q
    out_channel, in_channel = P * Q, H * W
    out_table = (p_out_skew, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient, padded(M_left))
    in_table = (p_in_skew, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient, padded(M_sum))
    n_more_out = crowd(out_table, b_i, NT_OUT)
    n_more_in = crowd(in_table, b_j, NT_IN)

    b_acc = tl.zeros([SIDE, SIDE], tl.float32)
    b_bias = tl.zeros([SIDE, ROW_DEPTH], tl.float32)
    begin, end = share_of(i_share, n_share, tl.cdiv(n_pixel, ROW_DEPTH).to(tl.int32), 1)  # steps
    i_first = begin.to(tl.int64) * ROW_DEPTH
    i_image = (i_first // (P * Q)).to(tl.int32)  # of a step's first pixel
    i_local = (i_first % (P * Q)).to(tl.int32)
    for i_step in tl.range(begin, end, disable_licm=True):  # or tables fill registers
        n_left = tl.minimum(n_pixel - i_step * tl.full([], ROW_DEPTH, tl.int64), ROW_DEPTH).to(tl.int32)
        b_image, b_p, b_q = pixels(i_image, i_local, n_left, P, Q, ROW_DEPTH)  # [ROW_DEPTH]
        i_local += ROW_DEPTH
        i_image += i_local // (P * Q)
        i_local %= P * Q
        b_valid = (tl.arange(0, ROW_DEPTH) < n_left)[None, :] & (b_i >= 0)[:, None]  # [SIDE, ROW_DEPTH]
        p_dy_pixel = p_dy + (b_image * K * P * Q + b_p * Q + b_q)[None, :]  # [1, ROW_DEPTH]
        b_dy = gather(p_dy_pixel, b_valid, out_table, b_i, out_channel, False, NT_OUT)
        b_dy = gather_rest(b_dy, p_dy_pixel, b_valid, out_table, b_i, out_channel, n_more_out, False, NT_OUT)
        b_bias += b_dy
        b_dy = b_dy.to(p_dy.dtype.element_ty).to(COMPUTE)
        b_at_h, b_inside_h = under(b_p * scale_h + from_h, b_step_h, H, 1, False)  # [SIDE, ROW_DEPTH]
        b_at_w, b_inside_w = under(b_q * scale_w + from_w, b_step_w, W, 1, False)
        b_inside = b_inside_h & b_inside_w
        p_pixel = p_x + (b_image * L * H * W)[None, :] + (b_at_h * W + b_at_w)
        b_x = gather(p_pixel, b_inside, in_table, b_j, in_channel, False, NT_IN)
        b_x = gather_rest(b_x, p_pixel, b_inside, in_table, b_j, in_channel, n_more_in, False, NT_IN)
        b_x = b_x.to(p_x.dtype.element_ty).to(COMPUTE)
        b_acc = tl.dot(b_dy, tl.trans(b_x), b_acc, input_precision=PRECISION)

    if need_nodes:
        b_acc, last = sum_splits(b_acc, p_partial, p_ticket, i_tile, i_share, n_share)
        if last:
            p_out = p_d_nodes + b_i.to(tl.int64)[:, None] * n_column + b_c[None, :]  # [SIDE, SIDE]
            b_mask = (b_i < M_left)[:, None] & (b_c < n_column)[None, :]
            tl.store(p_out, b_acc.to(p_d_nodes.dtype.element_ty), mask=b_mask)
    if need_bias & (c0 == 0):
        p_sums = p_partial + n_down * n_across * n_share * (SIDE * SIDE)
        b_sum = tl.sum(b_bias, 1)[:, None]  # [SIDE, 1]
        b_sum, last = sum_splits(b_sum, p_sums, p_ticket + n_down * n_across, i_tile // n_across, i_share, n_share)
        if last:
            tl.store((p_d_bias + b_i)[:, None], b_sum.to(p_d_bias.dtype.element_ty), mask=(b_i < M_left)[:, None])


@functools.lru_cache(4096)
def _launch_of(
    config: Config, flags: Flags, device: torch.device, out_contributors: int, in_contributors: int,
    dy: Shape, x: Shape, nodes: Shape, stride: Shape, padding: Shape, dilation: Shape,
    need_nodes: bool, need_bias: bool,
) -> Work:  # fmt: skip
    (out_nodes, in_nodes), offsets, side = nodes[:2], nodes[2] * nodes[3], config.constants["SIDE"]
    across, down = cdiv(in_nodes * offsets, side) if need_nodes else 1, cdiv(out_nodes, side)
    steps = cdiv(dy[0] * dy[2] * dy[3], config.constants["ROW_DEPTH"])
    shares = split_count(across * down, steps, config.programs, device)
    numbers = (
        *dy[:2], x[1], out_nodes, in_nodes, *x[2:], *dy[2:], nodes[3], offsets,
        *stride, -padding[0], -padding[1], *dilation, int(need_nodes), int(need_bias), shares,
    )  # fmt: skip
    options = {"NT_OUT": out_contributors, "NT_IN": in_contributors, **flags._asdict(), **config.options}
    launch = Launch(conv_node_gradient_kernel, (down * across * shares,), numbers, options)
    squares, bias = shared(down * across, shares, side * side), shared(down, shares, side)
    return Work(launch, squares[0] + bias[0], squares[1] + bias[1])


def conv_node_gradient(
    dy: Tensor,  # [B, K, P, Q]
    x: Tensor,  # [B, L, H, W]
    nodes: Tensor,  # [M_out, M_in, R, S]
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    need_nodes: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:  # d_nodes [M_out, M_in, R, S], d_bias [M_out]; empty where not needed
    """d_nodes = S_out^T (sum_p dy x) S_in and d_bias = S_out^T sum_p dy in one launch."""
    out_nodes, in_nodes = nodes.shape[:2]
    d_nodes = empty(nodes.shape if need_nodes else (0,), nodes.dtype, x.device)
    d_bias = empty((out_nodes if need_bias else 0,), nodes.dtype, x.device)
    if not (need_nodes or need_bias):
        return d_nodes, d_bias
    out_table, in_table = cached_table(out_start, out_weight, out_nodes), cached_table(in_start, in_weight, in_nodes)
    dy, x = pad_points(dy, out_table), pad_points(x, in_table)
    work = _launch_of(
        *select(NODE_GRADIENT, x, nodes, 1), x.device, out_table.contributors, in_table.contributors,
        dy.shape, x.shape, nodes.shape, *map(tuple, (stride, padding, dilation)), need_nodes, need_bias,
    )  # fmt: skip
    with guard(x):
        space = workspace(x.device, work.partial, work.tickets)
        work.launch(d_nodes, d_bias, dy, x, *out_table.nodes[:5], *in_table.nodes[:5], *space)
    return d_nodes, d_bias


KERNELS = gemm_specs(conv_node_gradient_kernel, NODE_GRADIENT, ("NT_OUT", "NT_IN"), SIZES)
