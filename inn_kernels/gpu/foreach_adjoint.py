"""Adjoint of foreach: the gradients of every layer's nodes by one launch, vectors included.

    d_nodes_n = S_out_n^T dW_n S_in_n        for all layers n, each as `discretize_adjoint` computes it

A program reads which tile of which layer it computes from a table on the device (`foreach_table`). Discrete axes, and
the single row that a vector is, have the taps of the identity, so that one program serves all layers: those axes are
short, or their layer is read once all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels import ops
from inn_kernels.gpu import discretize_adjoint
from inn_kernels.gpu.adjoint_tile import adjoint_program
from inn_kernels.gpu.foreach_table import STORED, Foreach, Sides
from inn_kernels.gpu.sampler_tile import tap_label
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec, with_constants

WIDE, MORE = discretize_adjoint.WIDE, discretize_adjoint.MORE[0]
MOST = MORE._replace(max_registers=88, resident=5)
CONFIGS = {
    2: {4: WIDE._replace(max_registers=80, resident=6, instead={}), 6: MORE, 8: MOST, 0: MORE},
    4: {4: WIDE._replace(max_registers=96, resident=5, instead={}), 6: MORE, 8: MOST, 0: MORE},
}
"""By bytes an element of dW and TAPS of the kernel: the wide tiles of `discretize_adjoint`, without a spill."""

BITS = {**STORED, torch.bfloat16: tl.uint16}
"""As what dW is read: see `fetch`."""


@triton.jit
def discretize_foreach_adjoint_kernel(
    p_layers,  # int64 [layers, 16]
    p_tiles,  # int32 [programs, 2]
    p_out,  # every result, one after the other
    STORED: tl.constexpr,  # dtype of dW; uint16 for the bits of bfloat16
    TAPS: tl.constexpr,  # 4: every axis has four; else the most of an axis, 0: any number, in a loop
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    """One tile of one layer a program."""
    p_tile = p_tiles + tl.program_id(0) * 2
    i_within = tl.load(p_tile + 1)
    p_layer = p_layers + tl.load(p_tile) * 16
    tiles = tl.load(p_layer + 13).to(tl.int32)
    EXACT: tl.constexpr = TAPS == 4
    adjoint_program(
        tl.load(p_layer).to(tl.pointer_type(STORED)),
        p_out + tl.load(p_layer + 1),
        tl.load(p_layer + 2).to(tl.pointer_type(tl.int32)),  # out_start
        tl.load(p_layer + 3).to(tl.pointer_type(tl.float32)),  # out_weight
        tl.load(p_layer + 4).to(tl.pointer_type(tl.int32)),  # in_start
        tl.load(p_layer + 5).to(tl.pointer_type(tl.float32)),  # in_weight
        tl.load(p_layer + 6).to(tl.int32),  # out_nodes
        tl.load(p_layer + 7).to(tl.int32),  # out_points
        tl.load(p_layer + 8).to(tl.int32),  # outer
        tl.load(p_layer + 9).to(tl.int32),  # in_nodes
        tl.load(p_layer + 10).to(tl.int32),  # in_points
        tl.load(p_layer + 11).to(tl.int32),  # inner
        TAPS if EXACT else tl.load(p_layer + 14).to(tl.int32),
        TAPS if EXACT else tl.load(p_layer + 15).to(tl.int32),
        i_within // tiles, i_within % tiles, tl.load(p_layer + 12).to(tl.int32),
        True, True, TAPS, TAPS, EXACT, False, SUB, LANES, tl.int32,
    )  # fmt: skip


def _alone(
    grad: Tensor,
    start: Sequence[Tensor],
    weight: Sequence[Tensor],
    nodes: Any,
    along: Sides,
    dtype: torch.dtype,
) -> Tensor:
    out, in_ = along
    if out >= 0 and in_ >= 0:
        sizes = nodes[out], nodes[in_]
        return ops.discretize_adjoint(grad, start[out], weight[out], start[in_], weight[in_], *sizes, dtype)
    at = max(along)
    return ops.spread(grad, start[at], weight[at], nodes[at], int(out < 0), dtype)


ADJOINT = Foreach(
    discretize_foreach_adjoint_kernel,
    lambda dtype: CONFIGS[dtype.itemsize],
    {**STORED, torch.bfloat16: tl.uint16},
    _alone,
)


def discretize_foreach_adjoint(
    grads: Sequence[Tensor],
    start: Sequence[Tensor],
    weight: Sequence[Tensor],
    nodes: Sequence[int],
    out: Sequence[int],
    in_: Sequence[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Every gradient brought back to nodes in one launch (one more for each further dtype, and for long taps).

    Args:
        grads: of each layer's weight, [K, L, *kernel], or [K] of a vector; all on one device.
        start, weight: the taps that layers have, each once.
        nodes: M of each of the taps.
        out, in_: the position among them of each layer's output and input taps, -1 for a discrete axis.
        dtype: of the results.

    Returns:
        [M_out, M_in, *kernel] or [M_out] of each layer, in the layout of its gradient. They share one allocation.
    """
    return ADJOINT.run(grads, start, weight, list(zip(out, in_)), dtype, nodes)


KERNELS = [
    KernelSpec(
        discretize_foreach_adjoint_kernel,
        {"p_layers": "*i64", "p_tiles": "*i32", "p_out": f"*{out}"},
        with_constants([CONFIGS[size][taps]], STORED=(grad,), TAPS=(taps,)),
        f"{'bf16' if grad is tl.uint16 else grad.name}-{out}" + tap_label((taps, taps)),
        barrier_free_loops=True,
        targets=targets,
    )
    for grad, out, size, taps, targets in (
        (tl.uint16, "fp32", 2, 4, ALL_TARGETS),
        (tl.float16, "fp32", 2, 4, ONE_TARGET),
        (tl.float32, "fp32", 4, 4, ONE_TARGET),
        (tl.uint16, "bf16", 2, 4, ONE_TARGET),
        (tl.uint16, "fp32", 2, 6, ONE_TARGET),
        (tl.uint16, "fp32", 2, 8, ONE_TARGET),
        (tl.uint16, "fp32", 2, 0, ONE_TARGET),
        (tl.float32, "fp32", 4, 8, ONE_TARGET),
    )
]
