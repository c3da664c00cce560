"""Fused integral convolution, 2-D and 1-D: y = conv(x, W_q) + S_out bias with W_q = S_out nodes S_in^T never formed.

Kernel offsets t = (r, s) ride along untouched (Eq. 5, 6), so that with x(p + t) the input under output pixel p

    forward    x' = S_in^T x          y'[i, p] = sum_jt nodes[i, j, t] x'[j, p + t] + bias[i]       y = S_out y'
    dx         dy' = S_out^T dy       g'[j, p] = sum_it nodes[i, j, t] dy'[i, p - t]                dx = S_in g'

x [B, L, H, W], nodes [M_out, M_in, R, S], y [B, K, P, Q]; S is the banded matrix of an axis's taps, quadrature in S_in.
Forward pass and dx are one implicit GEMM over nodes (`gemm_tile`), read straight or transposed. Its rows are pixels,
its columns c = (j, t):

    x under the pixels --gather NT--> x' [DEPTH, ROWS] --\
                                                          tensor core -> y' [NODES, ROWS] --gather T--> y [points, ROWS]
    nodes [NODES, DEPTH] --cast in registers-------------/

One launch each for y and dx, and one for d_nodes with d_bias (`conv_node_gradient`). Memory sees x, nodes, y and their
gradients; never W_q, an unfolded x, or x', y', dy', g'. The price: x' of a pixel is gathered again for each of the R S
offsets that see it, so this wins only where weights outweigh activations (a batch of one, few pixels, many channels).
Tensors are read in contiguous layout; channels_last ones are copied to it first.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.axis_table import AxisTable, cached_table, pad_points
from inn_kernels.gpu.gemm_configs import ANY, Flags, select
from inn_kernels.gpu.gemm_tile import NODES, assign, finish, multiply, padded, tile_count
from inn_kernels.gpu.launch import Config, Launch, cdiv, empty, guard
from inn_kernels.gpu.specs import gemm_specs
from inn_kernels.gpu.split_sum import Work, shared, split_count, workspace


def _config(pixels: int, depth: int, stages: int, warps: int = 4, **instead: dict) -> Config:
    """ROWS a tile, which are pixels, DEPTH columns a step, pipeline stages."""
    return Config(f"pixels{pixels}", {"ROWS": pixels, "DEPTH": depth}, warps, stages, instead=instead)


# (most pixels, configuration) by kind of multiplication; `select` takes the first that fits. As in `linear`, but the
# addresses and padding masks of a gather cost registers, so wider tiles have eight warps and the widest steps of 16
# columns. Made for sm_90; not yet swept on a device.
FORWARD = {
    "half": ((16, _config(16, 32, 4)), (32, _config(32, 32, 4, 8)), (ANY, _config(64, 16, 4, 8))),
    "tf32": ((ANY, _config(32, 32, 3, 8, gfx942={"DEPTH": 16})),),
    "ieee": ((ANY, _config(16, 16, 2)),),
}
SIZES = (
    "B", "K", "L", "M_left", "M_sum", "n_split", "H", "W", "P", "Q", "S", "n_offset",
    "scale_h", "scale_w", "from_h", "from_w", "step_h", "step_w", "divide_h", "divide_w",
)  # fmt: skip


@triton.jit
def pixels(i_image, i_local, n_left, P, Q, ROWS: tl.constexpr):
    """Image (int64), row and column of ROWS pixels from the i_local-th of an image on; the last left again beyond it.

    Every division is of int32: of int64 they would be routines.
    """
    b_local = i_local + tl.minimum(tl.arange(0, ROWS), tl.minimum(n_left, ROWS).to(tl.int32) - 1)  # [ROWS]
    b_inner = b_local % (P * Q)
    return i_image.to(tl.int64) + b_local // (P * Q), b_inner // Q, b_inner % Q


@triton.jit
def under(b_from, b_offset, size, divide, STRIDED: tl.constexpr):
    """Coordinates b_from [ROWS] seen through kernel offsets b_offset [N], and which of them exist. [N, ROWS]"""
    b_at = b_from[None, :] + b_offset[:, None]
    b_inside = (b_at >= 0) & (b_at < size * divide)
    if STRIDED:  # the transposed convolution: only every `divide`-th pixel was computed from
        b_inside &= b_at % divide == 0
        b_at = b_at // divide
    return b_at, b_inside


@triton.jit
def window_nodes(nodes, c0, DEPTH: tl.constexpr):
    """Columns c0 on of rows of nodes, or of nodes transposed. [NODES, DEPTH]"""
    p_nodes, i0, b_i, M_left, n_offset, n_column, TRANSPOSED = nodes
    b_c = c0 + tl.arange(0, DEPTH)  # [DEPTH]
    if TRANSPOSED:
        b_column = b_c // n_offset * (M_left.to(tl.int64) * n_offset) + b_c % n_offset
        p_tile = p_nodes + ((i0 + b_i) * n_offset)[:, None] + b_column[None, :]
    else:
        p_tile = p_nodes + (i0 * n_column.to(tl.int64) + b_i * n_column)[:, None] + b_c[None, :]
    return tl.load(p_tile, mask=(b_c < n_column)[None, :], other=0.0)


@triton.jit
def window_pixels(x, c0, DEPTH: tl.constexpr):
    """The pixels seen through the kernel offsets of columns c0 on. [DEPTH, ROWS]"""
    p_image, b_h, b_w, H, W, S, n_offset, step_h, step_w, divide_h, divide_w, STRIDED = x
    b_c = c0 + tl.arange(0, DEPTH)  # [DEPTH]
    b_j, b_t = b_c // n_offset, b_c % n_offset
    b_at_h, b_inside_h = under(b_h, b_t // S * step_h, H, divide_h, STRIDED)  # [DEPTH, ROWS]
    b_at_w, b_inside_w = under(b_w, b_t % S * step_w, W, divide_w, STRIDED)
    return p_image + (b_at_h * W + b_at_w), b_inside_h & b_inside_w, b_j


@triton.jit(do_not_specialize=SIZES)
def conv_kernel(
    p_y,  # [B, K, P, Q]
    p_x,  # [B, L, H, W]
    p_nodes,  # [M_left, M_sum, n_offset], or [M_sum, M_left, n_offset] where TRANSPOSED
    p_bias,  # [M_left] or None
    p_out_start, p_out_weight, p_out_first,
    p_skew, p_weight, p_lo, p_hi, p_coefficient, p_crowded,  # of the axis summed over
    p_partial, p_ticket,
    B, K, L, M_left, M_sum, n_split, H, W, P, Q, S, n_offset,
    scale_h, scale_w, from_h, from_w, step_h, step_w, divide_h, divide_w,
    TRANSPOSED: tl.constexpr, STRIDED: tl.constexpr,
    ALIGNED: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, TAPS: tl.constexpr, NT: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """y = S_out (sum_c nodes[., c] x'[c, under .] + bias), a tile of nodes and pixels.

    Row r of the kernel sees row (p scale_h + from_h + r step_h) / divide_h of x at output row p.
    """
    n_pixel = B.to(tl.int64) * P * Q
    n_row_tile = tl.cdiv(n_pixel, ROWS).to(tl.int32)
    n_column = M_sum * n_offset
    i_row, i_out, i_split, begin, end = assign(tl.program_id(0), n_row_tile, n_column, n_split, DEPTH)
    ADVANCE: tl.constexpr = NODES + 1 - TAPS
    i0 = i_out * ADVANCE
    b_i = tl.minimum(tl.arange(0, NODES), M_left - 1 - i0)  # [NODES]
    n_column = n_column // 16 * 16 if ALIGNED and not TRANSPOSED else n_column  # tells the compiler so
    nodes = (p_nodes, i0, b_i, M_left, n_offset, n_column, TRANSPOSED)

    i_first = i_row.to(tl.int64) * ROWS
    i_image = i_first // (P * Q)
    i_local = (i_first - i_image * (P * Q)).to(tl.int32)
    b_image, b_p, b_q = pixels(i_image, i_local, n_pixel - i_first, P, Q, ROWS)  # [ROWS]
    p_image = p_x + (b_image * L * H * W)[None, :]  # [1, ROWS]
    b_h, b_w = b_p * scale_h + from_h, b_q * scale_w + from_w
    x = (p_image, b_h, b_w, H, W, S, n_offset, step_h, step_w, divide_h, divide_w, STRIDED)
    table = (p_skew, p_weight, p_lo, p_hi, p_coefficient, padded(M_sum))
    b_acc = multiply(
        window_nodes, nodes, window_pixels, x, table, p_crowded, H * W, n_offset, begin, end,
        p_x.dtype.element_ty, COMPUTE, PRECISION, False, True, NT, ROWS, DEPTH,
    )  # fmt: skip
    finish(
        b_acc, p_bias, p_partial, p_ticket, i_out * n_row_tile + i_row, i_split, n_split,
        i0, tl.minimum(i0 + ADVANCE, M_left), M_left, (p_out_start, p_out_weight, p_out_first),
        p_y + (b_image * K * P * Q + b_p * Q + b_q), i_first + tl.arange(0, ROWS) < n_pixel, P * Q,
        TAPS, True,
    )  # fmt: skip


Shape = tuple[int, ...]
Pair = tuple[int, int]


def conv(
    x: Tensor,  # [B, L, H, W]
    nodes: Tensor,  # [M_out, M_in, R, S]
    bias: Tensor | None,  # [M_out]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, T]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, T]
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


@functools.lru_cache(4096)
def _launch_of(
    config: Config, flags: Flags, device: torch.device, taps: int, contributors: int, transposed: bool,
    y: Shape, x: Shape, nodes: Shape, scale: Shape, offset: Shape, step: Shape, divide: Shape,
) -> Work:  # fmt: skip
    left, summed = (nodes[1], nodes[0]) if transposed else nodes[:2]
    offsets, block = nodes[2] * nodes[3], config.constants["ROWS"]
    tiles = cdiv(y[0] * y[2] * y[3], block) * tile_count(left, taps)
    splits = split_count(tiles, cdiv(summed * offsets, config.constants["DEPTH"]), config.programs, device)
    numbers = (*y[:2], x[1], left, summed, splits, *x[2:], *y[2:], nodes[3], offsets, *scale, *offset, *step, *divide)
    options = {"TRANSPOSED": transposed, "STRIDED": divide != (1, 1), "TAPS": taps, "NT": contributors}
    launch = Launch(conv_kernel, (tiles * splits,), numbers, {**options, **flags._asdict(), **config.options})
    return Work(launch, *shared(tiles, splits, NODES.value * block))


def _launch(
    y: Tensor, x: Tensor, nodes: Tensor, bias: Tensor | None, out_table: AxisTable, in_table: AxisTable,
    scale: Pair, offset: Pair, step: Pair, divide: Pair, transposed: bool,
) -> None:  # fmt: skip
    """`conv_kernel` over all of y: offset t of pixel p sees pixel (p scale + offset + t step) / divide of x."""
    if y.numel() == 0:
        return
    x, nodes = pad_points(x, in_table), nodes.contiguous()
    work = _launch_of(
        *select(FORWARD, x, nodes, y.shape[0] * y.shape[2] * y.shape[3]), x.device,
        out_table.taps, in_table.contributors, transposed, y.shape, x.shape, nodes.shape,
        *map(tuple, (scale, offset, step, divide)),
    )  # fmt: skip
    with guard(x):
        space = workspace(x.device, work.partial, work.tickets)
        bias = None if bias is None else bias.contiguous()
        work.launch(y, x, nodes, bias, *out_table.points, *in_table.nodes, *space)


KERNELS = [
    *gemm_specs(conv_kernel, FORWARD, ("NT",), SIZES, TRANSPOSED=False, STRIDED=False),
    *gemm_specs(conv_kernel, FORWARD, ("NT",), SIZES, "-dx", p_bias=None, TRANSPOSED=True, STRIDED=True),
]
