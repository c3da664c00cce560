"""Foreach: every layer of a network discretized by one launch, biases and norm vectors included (Eq. 6).

    W_n = S_out_n nodes_n S_in_n^T                              for all layers n, each as `discretize` computes it
    b_n = S_out_n bias_n                                        vectors: the output axis alone, no quadrature

Small layers do not fill a GPU and each launch costs microseconds, so a network's layers share one grid. A program reads
which tile of which layer it computes, and that layer's sizes, from a table on the device (`foreach_table`). The
gradients of all nodes are one launch as well (`foreach_adjoint`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels import ops
from inn_kernels.gpu.discretize import CONFIGS as TILES
from inn_kernels.gpu.discretize import sample_tile
from inn_kernels.gpu.foreach_table import STORED, Foreach, Sides
from inn_kernels.gpu.sampler_tile import tap_label
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec, with_constants
from inn_kernels.taps import Taps

WIDE = TILES[4][0]
CONFIGS = {
    4: WIDE,
    6: WIDE._replace(constants={**WIDE.constants, "SUB": 2}),
    8: WIDE._replace(constants={**WIDE.constants, "SUB": 2}, resident=5, max_registers=96),
}
CONFIGS[0] = CONFIGS[8]
"""By TAPS of the kernel. The wide tile of `discretize`: together the layers of a network fill the chip."""


@triton.jit
def discretize_foreach_kernel(
    p_layers,  # int64 [layers, 16]
    p_tiles,  # int32 [programs, 2]
    p_out,  # every result, one after the other
    STORED: tl.constexpr,  # dtype of the nodes
    TAPS: tl.constexpr,  # 4: every axis has four; else the most of an axis, 0: any number, in a loop
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    """One tile of one layer a program."""
    p_tile = p_tiles + tl.program_id(0) * 2
    i_within = tl.load(p_tile + 1)
    p_layer = p_layers + tl.load(p_tile) * 16
    p_nodes = tl.load(p_layer).to(tl.pointer_type(STORED))
    p_w = p_out + tl.load(p_layer + 1)
    out_start = tl.load(p_layer + 2)
    p_out_start = out_start.to(tl.pointer_type(tl.int32))
    p_out_weight = tl.load(p_layer + 3).to(tl.pointer_type(tl.float32))
    in_start = tl.load(p_layer + 4)
    p_in_start = in_start.to(tl.pointer_type(tl.int32))
    p_in_weight = tl.load(p_layer + 5).to(tl.pointer_type(tl.float32))
    out_nodes = tl.load(p_layer + 6).to(tl.int32)
    out_points = tl.load(p_layer + 7).to(tl.int32)
    outer = tl.load(p_layer + 8).to(tl.int32)
    in_nodes = tl.load(p_layer + 9).to(tl.int32)
    in_points = tl.load(p_layer + 10).to(tl.int32)
    inner = tl.load(p_layer + 11).to(tl.int32)
    rows = tl.load(p_layer + 12).to(tl.int32)
    tiles = tl.load(p_layer + 13).to(tl.int32)
    EXACT: tl.constexpr = TAPS == 4
    out_taps = TAPS if EXACT else tl.load(p_layer + 14).to(tl.int32)
    in_taps = TAPS if EXACT else tl.load(p_layer + 15).to(tl.int32)
    i_block, i_tile = i_within // tiles, i_within % tiles
    if out_start != 0:
        if in_start != 0:
            sample_tile(
                p_nodes, p_w, p_out_start, p_out_weight, p_in_start, p_in_weight,
                out_nodes, out_points, outer, in_nodes, in_points, inner, out_taps, in_taps,
                i_block, i_tile, rows, True, True, TAPS, TAPS, EXACT, False, SUB, LANES, tl.int32,
            )  # fmt: skip
        else:
            sample_tile(
                p_nodes, p_w, p_out_start, p_out_weight, p_in_start, p_in_weight,
                out_nodes, out_points, outer, in_nodes, in_points, inner, out_taps, 1,
                i_block, i_tile, rows, True, False, TAPS, 1, EXACT, False, SUB, LANES, tl.int32,
            )  # fmt: skip
    else:
        if in_start != 0:
            sample_tile(
                p_nodes, p_w, p_out_start, p_out_weight, p_in_start, p_in_weight,
                out_nodes, out_points, outer, in_nodes, in_points, inner, 1, in_taps,
                i_block, i_tile, rows, False, True, 1, TAPS, EXACT, False, SUB, LANES, tl.int32,
            )  # fmt: skip
        else:
            sample_tile(
                p_nodes, p_w, p_out_start, p_out_weight, p_in_start, p_in_weight,
                out_nodes, out_points, outer, in_nodes, in_points, inner, 1, 1,
                i_block, i_tile, rows, False, False, 1, 1, EXACT, False, SUB, LANES, tl.int32,
            )  # fmt: skip


def _alone(
    nodes: Tensor, start: Sequence[Tensor], weight: Sequence[Tensor], _: object, along: Sides, dtype: torch.dtype
) -> Tensor:
    out, in_ = along
    if out >= 0 and in_ >= 0:
        return ops.discretize(nodes, start[out], weight[out], start[in_], weight[in_], dtype)
    at = max(along)
    return nodes.to(dtype) if at < 0 else ops.interpolate(nodes, start[at], weight[at], int(out < 0), dtype)


FORWARD = Foreach(discretize_foreach_kernel, lambda _: CONFIGS, STORED, _alone)
AxisTaps = tuple[Taps | None, Taps | None]


def discretize_foreach(
    nodes: Sequence[Tensor],
    start: Sequence[Tensor],
    weight: Sequence[Tensor],
    out: Sequence[int],
    in_: Sequence[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Every layer's weight in one launch (one more for each further storage dtype of nodes, and for long taps).

    Args:
        nodes: of each layer, [M_out, M_in, *kernel], or [M_out] for a bias or norm vector; all on one device.
        start, weight: the taps that layers have, each once.
        out, in_: the position among them of each layer's output and input taps; -1 for a discrete axis and, of a
            vector, for the input.
        dtype: of the results.

    Returns:
        [K, L, *kernel] or [K] of each layer, in the layout of its nodes. They share one allocation.
    """
    return FORWARD.run(nodes, start, weight, list(zip(out, in_)), dtype)


def discretize_layers(nodes: Sequence[Tensor], taps: Sequence[AxisTaps], dtype: torch.dtype) -> list[Tensor]:
    """The same of layers with their taps: (output taps, input taps), None for a discrete axis."""
    kept = list({id(side): side for along in taps for side in along if side is not None}.values())
    at = {id(side): n for n, side in enumerate(kept)} | {id(None): -1}
    out, in_ = [at[id(along[0])] for along in taps], [at[id(along[1])] for along in taps]
    return discretize_foreach(nodes, [t.start for t in kept], [t.weight for t in kept], out, in_, dtype)


KERNELS = [
    KernelSpec(
        discretize_foreach_kernel,
        {"p_layers": "*i64", "p_tiles": "*i32", "p_out": f"*{out}"},
        with_constants([CONFIGS[taps]], STORED=(nodes,), TAPS=(taps,)),
        f"{nodes.name}-{out}" + tap_label((taps, taps)),
        barrier_free_loops=True,
        targets=targets,
    )
    for nodes, out, taps, targets in (
        (tl.float32, "bf16", 4, ALL_TARGETS),
        (tl.float32, "fp16", 4, ONE_TARGET),
        (tl.float32, "fp32", 4, ONE_TARGET),
        (tl.bfloat16, "bf16", 4, ONE_TARGET),
        (tl.float32, "bf16", 6, ONE_TARGET),
        (tl.float32, "bf16", 8, ONE_TARGET),
        (tl.float32, "bf16", 0, ONE_TARGET),
    )
]
