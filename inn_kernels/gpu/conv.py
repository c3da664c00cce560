"""Fused integral convolution, 2-D and 1-D: y = conv(x, W_q) + S_out bias with W_q = S_out nodes S_in^T never formed.

Kernel offsets t = (r, s) ride along untouched (Eq. 5, 6), so that with x(p + t) the input under output pixel p

    forward    x' = S_in^T x          y'[i, p] = sum_jt nodes[i, j, t] x'[j, p + t] + bias[i]       y = S_out y'
    dx         dy' = S_out^T dy       g'[j, p] = sum_it nodes[i, j, t] dy'[i, p - t]                dx = S_in g'
    d_nodes[i, j, t] = sum_p dy'[i, p] x'[j, p + t]     d_bias[i] = sum_p dy'[i, p]     (Neural Integral Lemma)

x [B, L, H, W], nodes [M_out, M_in, R, S], y [B, K, P, Q]; S is the banded matrix of an axis's taps, quadrature in S_in.
Forward and dx are one implicit GEMM over nodes, read straight or transposed, with pixels for rows:

            L channels              columns c = (j, t), BK a step              61 windows start in a tile of 64 nodes
    x under BP pixels --gather NT--> x' [BK, BP] --\
                                                    tensor core -> y' [64, BP] --gather 4--> y [points of the tile, BP]
    nodes [64, BK] --cast in registers-------------/

One launch each for y, dx, and d_nodes with d_bias. Memory sees x, nodes, y and their gradients; never W_q, an unfolded
x, or x', y', dy', g'. The price: x' of a pixel is gathered again for each of the R S offsets that see it, so this wins
only where weights outweigh activations (a batch of one, few pixels, many channels). Tensors are read in contiguous
layout; channels_last ones are copied to it first.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.gemm_axis import (
    ANY,
    PAD,
    AxisTable,
    cached_table,
    crowd,
    gemm_specs,
    pad_points,
    select,
    split_count,
    sum_splits,
    workspace,
)
from inn_kernels.gpu.launch import Config, empty, guard

TILE = 64  # nodes of an accumulator along the axis its epilogue leaves
ADVANCE = 61  # 61 windows of 4 start in 64


def _config(pixels: int, depth: int, stages: int, warps: int = 4, **instead: dict) -> Config:
    """BP pixels a tile, BK columns a step."""
    constants = {"BP": pixels, "BK": depth, "TILE": TILE, "ADVANCE": ADVANCE, "PAD": PAD}
    return Config(f"pixels{pixels}", constants, warps, stages, instead=instead)


def _square(side: int, depth: int, warps: int) -> Config:
    """T by T cells of d_nodes, BB pixels a step."""
    return Config(f"nodes{side}", {"T": side, "BB": depth, "PAD": PAD}, warps, 1)


# (most pixels, configuration) by kind of multiplication; `select` takes the first that fits. As in `linear`, but the
# addresses and padding masks of a gather cost registers, so wider tiles have eight warps and the widest steps of 16
# columns. Made for sm_90; not yet swept on a device.
FORWARD = {
    "half": ((16, _config(16, 32, 4)), (32, _config(32, 32, 4, 8)), (ANY, _config(64, 16, 4, 8))),
    "tf32": ((ANY, _config(32, 32, 3, 8, gfx942={"BK": 16})),),
    "ieee": ((ANY, _config(16, 16, 2)),),
}
# 16 pixels a step fill a memory sector; eight warps share the gathers of both operands.
NODE_GRADIENT = {
    "half": ((ANY, _square(64, 16, 8)),),
    "tf32": ((ANY, _square(32, 32, 8)),),
    "ieee": ((ANY, _square(32, 16, 8)),),
}


@triton.jit
def pixels(i_first, n_pixel, P, Q, BP: tl.constexpr):
    """Image (int64), row and column of BP pixels from i_first (int64) on; the last pixel again beyond it. [BP]"""
    i_image = i_first // (P * Q)
    b_local = (i_first - i_image * (P * Q)).to(tl.int32) + tl.arange(0, BP)
    b_local = tl.minimum(b_local, n_pixel - 1 - i_image * (P * Q))  # int64
    b_inner = b_local % (P * Q)
    return i_image + b_local // (P * Q), (b_inner // Q).to(tl.int32), (b_inner % Q).to(tl.int32)


@triton.jit
def under(b_from, b_offset, size, divide, STRIDED: tl.constexpr):
    """Coordinates b_from [BP] seen through kernel offsets b_offset [BK], and which of them exist. [BK, BP]"""
    b_at = b_from[None, :] + b_offset[:, None]
    b_inside = (b_at >= 0) & (b_at < size * divide)
    if STRIDED:  # the transposed convolution: only every `divide`-th pixel was computed from
        b_inside &= b_at % divide == 0
        b_at = b_at // divide
    return b_at, b_inside


@triton.jit
def gather_channels(p_pixel, b_inside, p_lo, p_coefficient, b_node, channel, n_padded, NT: tl.constexpr):
    """x'[c, p] from the table: p_pixel [N, P] points at channel 0, channels are `channel` apart -> float32 [N, P]."""
    p_point = p_pixel + (tl.load(p_lo + b_node) * channel.to(tl.int64))[:, None]
    b_sum = tl.load(p_coefficient + b_node)[:, None] * tl.load(p_point, mask=b_inside, other=0.0).to(tl.float32)
    for n in tl.static_range(1, NT):
        p_point += channel
        b_coefficient = tl.load(p_coefficient + n * n_padded + b_node)  # [N]
        b_sum += b_coefficient[:, None] * tl.load(p_point, mask=b_inside, other=0.0).to(tl.float32)
    return b_sum


@triton.jit
def gather_more_channels(
    b_sum, p_pixel, b_inside, p_start, p_weight, p_lo, p_hi, b_node, channel, n_more, NT: tl.constexpr
):
    """b_sum [N, P] and what `gather_channels` leaves out: up to n_more = crowd(...) points a node."""
    for n in range(NT, NT + n_more):
        b_point = tl.load(p_lo + b_node) + n  # [N]
        b_heard = b_point < tl.load(p_hi + b_node)
        b_tap = b_node - tl.load(p_start + b_point, mask=b_heard, other=0)
        b_weight = tl.load(p_weight + 4 * b_point + b_tap, mask=b_heard, other=0.0)
        p_point = p_pixel + (b_point * channel.to(tl.int64))[:, None]  # [N, P]
        b_sum += b_weight[:, None] * tl.load(p_point, mask=b_inside & b_heard[:, None], other=0.0).to(tl.float32)
    return b_sum


_SIZES = (
    "B", "K", "L", "M_left", "M_sum", "n_split", "H", "W", "P", "Q", "S", "n_offset",
    "scale_h", "scale_w", "from_h", "from_w", "step_h", "step_w", "divide_h", "divide_w", "need_nodes", "need_bias",
)  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def conv_kernel(
    p_y,  # [B, K, P, Q]
    p_x,  # [B, L, H, W]
    p_nodes,  # [M_left, M_sum, n_offset], or [M_sum, M_left, n_offset] where TRANSPOSED
    p_bias,  # [M_left], or nodes again where HAS_BIAS is False
    p_out_start, p_out_weight, p_out_first,
    p_start, p_weight, p_lo, p_hi, p_coefficient, p_crowded,  # of the axis summed over
    p_partial, p_ticket,
    B, K, L, M_left, M_sum, n_split, H, W, P, Q, S, n_offset,
    scale_h, scale_w, from_h, from_w, step_h, step_w, divide_h, divide_w,
    HAS_BIAS: tl.constexpr, TRANSPOSED: tl.constexpr, STRIDED: tl.constexpr,
    ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    NT: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr, ADVANCE: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """y = S_out (sum_c nodes[., c] x'[c, under .] + bias), a tile of 64 nodes and BP pixels.

    Row r of the kernel sees row (p scale_h + from_h + r step_h) / divide_h of x at output row p.
    """
    n_pixel = B.to(tl.int64) * P * Q
    n_tile = tl.cdiv(n_pixel, BP).to(tl.int32)
    i_tile = tl.program_id(0) % n_tile
    i_split = tl.program_id(0) // n_tile % n_split
    i_out = tl.program_id(0) // n_tile // n_split
    n_padded = tl.cdiv(M_sum, PAD) * PAD
    n_column = M_sum * n_offset
    n_share = tl.cdiv(tl.cdiv(n_column, BK), n_split) * BK
    c_begin = i_split * n_share
    c_end = tl.minimum(c_begin + n_share, n_column)

    b_image, b_p, b_q = pixels(i_tile.to(tl.int64) * BP, n_pixel, P, Q, BP)  # [BP]
    b_h = b_p * scale_h + from_h
    b_w = b_q * scale_w + from_w
    p_image = p_x + (b_image * L * H * W)[None, :]  # [1, BP]
    i0 = i_out * ADVANCE
    b_i = tl.minimum(tl.arange(0, TILE), M_left - 1 - i0)  # [TILE]
    row = n_column // 16 * 16 if ALIGNED and not TRANSPOSED else n_column  # of nodes, where they are not transposed
    b_row = i0 * row.to(tl.int64) + (b_i * row)
    crowded_begin = tl.load(p_crowded) * n_offset // BK * BK
    crowded_end = tl.load(p_crowded + 1) * n_offset

    b_acc = tl.zeros([TILE, BP], tl.float32)  # y'
    for crowded in tl.static_range(2):  # all columns from the table, then what it leaves out of the crowded ones
        begin = tl.maximum(c_begin, crowded_begin) if crowded else c_begin
        end = tl.minimum(c_end, crowded_end) if crowded else c_end
        for c0 in range(begin, end, BK):
            b_c = c0 + tl.arange(0, BK)  # [BK]
            b_j = b_c // n_offset
            b_t = b_c % n_offset
            if TRANSPOSED:
                b_column = b_j * (M_left.to(tl.int64) * n_offset) + b_t
                p_tile = p_nodes + ((i0 + b_i) * n_offset)[:, None] + b_column[None, :]  # [TILE, BK]
            else:
                p_tile = p_nodes + b_row[:, None] + b_c[None, :]
            b_nodes = tl.load(p_tile, mask=(b_c < row)[None, :], other=0.0)
            b_at_h, b_inside_h = under(b_h, b_t // S * step_h, H, divide_h, STRIDED)  # [BK, BP]
            b_at_w, b_inside_w = under(b_w, b_t % S * step_w, W, divide_w, STRIDED)
            p_pixel = p_image + (b_at_h * W + b_at_w)
            b_inside = b_inside_h & b_inside_w
            if crowded:
                b_x = tl.zeros([BK, BP], tl.float32)
                n_more = crowd(p_lo, p_hi, b_j, NT)
                b_x = gather_more_channels(
                    b_x, p_pixel, b_inside, p_start, p_weight, p_lo, p_hi, b_j, H * W, n_more, NT
                )
            else:
                b_x = gather_channels(p_pixel, b_inside, p_lo, p_coefficient, b_j, H * W, n_padded, NT)
            b_x = b_x.to(p_x.dtype.element_ty).to(COMPUTE)
            b_acc = tl.dot(b_nodes.to(COMPUTE), b_x, b_acc, input_precision=PRECISION)

    done = n_split == 1
    if n_split > 1:
        b_acc, done = sum_splits(b_acc, p_partial, p_ticket, i_out * n_tile + i_tile, i_split, n_split, TILE, BP)
    if done:
        if HAS_BIAS:
            b_acc += tl.load(p_bias + i0 + b_i).to(tl.float32)[:, None]
        b_valid = (i_tile.to(tl.int64) * BP + tl.arange(0, BP) < n_pixel)[None, :]
        p_out = p_y + (b_image * K * P * Q + b_p * Q + b_q)[None, :]  # [1, BP]
        k_end = tl.load(p_out_first + tl.minimum(i0 + ADVANCE, M_left))
        for k0 in range(tl.load(p_out_first + i0), k_end, TILE):
            b_k = k0 + tl.arange(0, TILE)  # [TILE], points whose windows start in this tile
            b_tap = tl.maximum(tl.load(p_out_start + b_k, mask=b_k < k_end, other=0) - i0, 0)
            b_y = tl.zeros([TILE, BP], tl.float32)
            for t in tl.static_range(4):
                b_weight = tl.load(p_out_weight + 4 * b_k + t, mask=b_k < k_end, other=0.0)  # [TILE]
                b_y += b_weight[:, None] * tl.gather(b_acc, tl.broadcast_to((b_tap + t)[:, None], [TILE, BP]), 0)
            p_point = p_out + (b_k * (P * Q).to(tl.int64))[:, None]  # [TILE, BP]
            tl.store(p_point, b_y.to(p_y.dtype.element_ty), mask=(b_k < k_end)[:, None] & b_valid)


@triton.jit(do_not_specialize=_SIZES)
def conv_node_gradient_kernel(
    p_d_nodes, p_d_bias,  # [M_left, M_sum, n_offset], [M_left]
    p_dy, p_x,  # [B, K, P, Q], [B, L, H, W]
    p_out_start, p_out_weight, p_out_lo, p_out_hi, p_out_coefficient,
    p_in_start, p_in_weight, p_in_lo, p_in_hi, p_in_coefficient,
    B, K, L, M_left, M_sum, H, W, P, Q, S, n_offset,
    scale_h, scale_w, from_h, from_w, step_h, step_w, need_nodes, need_bias,
    ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, NT_OUT: tl.constexpr, NT_IN: tl.constexpr,
    BB: tl.constexpr, T: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """d_nodes[i, c] = sum_p dy'[i, p] x'[c, under p], T nodes i by T columns c; the first tiles also sum d_bias."""
    n_column = M_sum * n_offset
    n_across = tl.cdiv(n_column, T) if need_nodes else 1
    b_i = tl.program_id(0) // n_across * T + tl.arange(0, T)  # [T]
    c0 = tl.program_id(0) % n_across * T
    b_c = c0 + tl.arange(0, T)  # [T]
    b_j = b_c // n_offset
    b_step_h = b_c % n_offset // S * step_h
    b_step_w = b_c % n_offset % S * step_w
    n_pixel = B.to(tl.int64) * P * Q
    n_out_padded = tl.cdiv(M_left, PAD) * PAD
    n_in_padded = tl.cdiv(M_sum, PAD) * PAD
    n_more_out = crowd(p_out_lo, p_out_hi, b_i, NT_OUT)
    n_more_in = crowd(p_in_lo, p_in_hi, b_j, NT_IN)

    b_acc = tl.zeros([T, T], tl.float32)
    b_bias = tl.zeros([T, BB], tl.float32)
    for i_step in tl.range(0, tl.cdiv(n_pixel, BB).to(tl.int32), disable_licm=True):  # or tables fill the registers
        i_first = i_step * tl.full([], BB, tl.int64)
        b_image, b_p, b_q = pixels(i_first, n_pixel, P, Q, BB)  # [BB]
        b_valid = (i_first + tl.arange(0, BB) < n_pixel)[None, :] & (b_i >= 0)[:, None]  # [T, BB]
        p_dy_pixel = p_dy + (b_image * K * P * Q + b_p * Q + b_q)[None, :]  # [1, BB]
        b_dy = gather_channels(p_dy_pixel, b_valid, p_out_lo, p_out_coefficient, b_i, P * Q, n_out_padded, NT_OUT)
        b_dy = gather_more_channels(
            b_dy, p_dy_pixel, b_valid, p_out_start, p_out_weight, p_out_lo, p_out_hi, b_i, P * Q, n_more_out, NT_OUT
        )
        b_bias += b_dy
        b_dy = b_dy.to(p_dy.dtype.element_ty).to(COMPUTE)
        b_at_h, b_inside_h = under(b_p * scale_h + from_h, b_step_h, H, 1, False)  # [T, BB]
        b_at_w, b_inside_w = under(b_q * scale_w + from_w, b_step_w, W, 1, False)
        p_pixel = p_x + (b_image * L * H * W)[None, :] + (b_at_h * W + b_at_w)
        b_inside = b_inside_h & b_inside_w
        b_x = gather_channels(p_pixel, b_inside, p_in_lo, p_in_coefficient, b_j, H * W, n_in_padded, NT_IN)
        b_x = gather_more_channels(
            b_x, p_pixel, b_inside, p_in_start, p_in_weight, p_in_lo, p_in_hi, b_j, H * W, n_more_in, NT_IN
        )
        b_x = b_x.to(p_x.dtype.element_ty).to(COMPUTE)
        b_acc = tl.dot(b_dy, tl.trans(b_x), b_acc, input_precision=PRECISION)

    if need_nodes:
        p_out = p_d_nodes + b_i.to(tl.int64)[:, None] * n_column + b_c[None, :]  # [T, T]
        tl.store(p_out, b_acc.to(p_d_nodes.dtype.element_ty), mask=(b_i < M_left)[:, None] & (b_c < n_column)[None, :])
    if need_bias & (c0 == 0):
        tl.store(p_d_bias + b_i, tl.sum(b_bias, 1).to(p_d_bias.dtype.element_ty), mask=b_i < M_left)


Pair = tuple[int, int]


def conv(
    x: Tensor,  # [B, L, H, W]
    nodes: Tensor,  # [M_out, M_in, R, S]
    bias: Tensor | None,  # [M_out]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, 4]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, 4]
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:  # [B, K, P, Q], in x's dtype
    """y = conv2d(x, S_out nodes S_in^T, S_out bias) in one launch. A 1-D convolution has H = R = 1."""
    size = [
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (nodes.shape[2 + d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
    ]
    y = empty((x.shape[0], out_start.shape[0], *size), x.dtype, x.device)
    tables = cached_table(out_start, out_weight, nodes.shape[0]), cached_table(in_start, in_weight, nodes.shape[1])
    _launch(y, x, nodes, bias, *tables, stride, (-padding[0], -padding[1]), dilation, (1, 1), False)
    return y


def conv_input_gradient(
    dy: Tensor,  # [B, K, P, Q]
    nodes: Tensor,  # [M_out, M_in, R, S]
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    size: Pair,  # H, W of x
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:  # dx [B, L, H, W]
    """dx = conv_transpose2d(dy, S_out nodes S_in^T) in one launch."""
    dx = empty((dy.shape[0], in_start.shape[0], *size), dy.dtype, dy.device)
    tables = cached_table(in_start, in_weight, nodes.shape[1]), cached_table(out_start, out_weight, nodes.shape[0])
    _launch(dx, dy, nodes, None, *tables, (1, 1), padding, (-dilation[0], -dilation[1]), stride, True)
    return dx


def _launch(
    y: Tensor, x: Tensor, nodes: Tensor, bias: Tensor | None, out_table: AxisTable, in_table: AxisTable,
    scale: Pair, offset: Pair, step: Pair, divide: Pair, transposed: bool,
) -> None:  # fmt: skip
    """`conv_kernel` over all of y: offset t of pixel p sees pixel (p scale + offset + t step) / divide of x."""
    if y.numel() == 0:
        return
    x, nodes = pad_points(x, in_table), nodes.contiguous()
    left, summed = (nodes.shape[1], nodes.shape[0]) if transposed else nodes.shape[:2]
    offsets, pixel_count = nodes.shape[2] * nodes.shape[3], y.shape[0] * y.shape[2] * y.shape[3]
    config, flags = select(FORWARD, x, nodes, pixel_count)
    block, depth = config.constants["BP"], config.constants["BK"]
    tiles = triton.cdiv(pixel_count, block) * triton.cdiv(max(left - 3, 1), ADVANCE)
    splits = split_count(tiles, triton.cdiv(summed * offsets, depth), x.device)
    space = workspace(x.device, splits, tiles, TILE * block)
    with guard(x):
        conv_kernel[(tiles * splits,)](
            y, x, nodes, nodes if bias is None else bias.contiguous(),
            *out_table.points, *in_table.nodes, *space,
            *y.shape[:2], x.shape[1], left, summed, splits, *x.shape[2:], *y.shape[2:], nodes.shape[3], offsets,
            *scale, *offset, *step, *divide,
            HAS_BIAS=bias is not None, TRANSPOSED=transposed, STRIDED=divide != (1, 1),
            NT=in_table.contributors, **flags, **config.options,
        )  # fmt: skip


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
    (out_nodes, in_nodes), offsets = nodes.shape[:2], nodes.shape[2] * nodes.shape[3]
    d_nodes = empty(nodes.shape if need_nodes else (0,), nodes.dtype, x.device)
    d_bias = empty((out_nodes if need_bias else 0,), nodes.dtype, x.device)
    if not (need_nodes or need_bias):
        return d_nodes, d_bias
    out_table, in_table = cached_table(out_start, out_weight, out_nodes), cached_table(in_start, in_weight, in_nodes)
    dy, x = pad_points(dy, out_table), pad_points(x, in_table)
    config, flags = select(NODE_GRADIENT, x, nodes, 1)
    side = config.constants["T"]
    across = triton.cdiv(in_nodes * offsets, side) if need_nodes else 1
    with guard(x):
        conv_node_gradient_kernel[(triton.cdiv(out_nodes, side) * across,)](
            d_nodes, d_bias, dy, x, *out_table.nodes[:5], *in_table.nodes[:5],
            *dy.shape[:2], x.shape[1], out_nodes, in_nodes, *x.shape[2:], *dy.shape[2:], nodes.shape[3], offsets,
            *stride, -padding[0], -padding[1], *dilation, int(need_nodes), int(need_bias),
            NT_OUT=out_table.contributors, NT_IN=in_table.contributors, **flags, **config.options,
        )  # fmt: skip
    return d_nodes, d_bias


KERNELS = [
    *gemm_specs(conv_kernel, FORWARD, ["NT"], _SIZES, HAS_BIAS=True, TRANSPOSED=False, STRIDED=False),
    *gemm_specs(conv_kernel, FORWARD, ["NT"], _SIZES, "-dx", HAS_BIAS=False, TRANSPOSED=True, STRIDED=True),
    *gemm_specs(conv_node_gradient_kernel, NODE_GRADIENT, ["NT_OUT", "NT_IN"], _SIZES),
]
