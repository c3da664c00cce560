"""Adjoint of discretize: the gradient of the nodes, gathered over the sorted partitions (the Neural Integral Lemma).

    d_nodes[i, j, t] = sum over k with out_start[k] in (i - T, i]    out_weight[k, i - out_start[k]] G[k, j, t]
    G[k, j, t]       = sum over l with in_start[l]  in (j - T, j]    in_weight[l, j - in_start[l]] dW[k, l, t]

No atomics, sums in a fixed order: results are bitwise repeatable. The adjoint's own gradients are `discretize` (for dW)
and `discretize_tap_gradient` (for the tap weights). How a program works is in `adjoint_tile`.

A program owns SUB x LANES columns and a run of rows of d_nodes and streams the rows of dW that touch them, the next row
in flight. Memory sees dW once (and the points of T - 1 node rows more a program) and d_nodes once: no zero
filling, no float32 copy of dW, no S_out^T dW.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.adjoint_tile import MOST_NEAR, adjoint_program
from inn_kernels.gpu.discretize import TAPS_TYPES
from inn_kernels.gpu.launch import Config, Launch, empty_like_layout, guard
from inn_kernels.gpu.sampler_tile import (
    SIZES,
    TAP_COUNTS,
    TAPS,
    Geometry,
    SideTaps,
    configs_for,
    dense,
    flat_taps,
    plan,
    tap_configs,
    tap_counts,
    tap_label,
    tap_launch,
    weight_geometry,
)
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec

NARROW = Config("narrow", {"SUB": 1, "LANES": 128}, num_warps=4, resident=10, max_registers=48)
WIDE = Config(
    "wide",
    {"SUB": 4, "LANES": 128},
    num_warps=4,
    resident=7,
    max_registers=72,
    instead={"sm_80": {"max_registers": 80, "resident": 6}},  # 72 spill there
)
MORE = (
    Config("wide", {"SUB": 2, "LANES": 128}, num_warps=4, resident=6, max_registers=80),
    NARROW._replace(resident=8, max_registers=64),
)
CONFIGS = {
    2: {4: (WIDE, NARROW), 8: MORE},
    4: {4: (WIDE._replace(resident=5, max_registers=96, instead={}), NARROW), 8: MORE},
}
"""By bytes an element of dW and the most taps of an axis; the last also where it has more.

As `discretize`: four columns a thread keep enough of dW in flight, one column where the layer is small. The bounds are
what the compiler needs to spill nothing; int64 column numbers take the larger one. A bfloat16 dW is read as bits, a
register each: values of two bytes the compiler packs in pairs in the middle of an iteration, and waits for them there.
From models and machine code, not yet measured."""


@triton.jit(do_not_specialize=SIZES + TAP_COUNTS)
def discretize_adjoint_kernel(
    p_grad,  # [batch, out_points, outer, in_points, inner]; bits of bfloat16
    p_out,  # [batch, out_nodes, outer, in_nodes, inner]
    p_out_start, p_out_weight,  # [out_points], [out_points, out_taps]; None: the output axis is discrete
    p_in_start, p_in_weight,  # [in_points], [in_points, in_taps]; None: the input axis is discrete
    out_nodes, out_points, outer, in_nodes, in_points, inner, rows, blocks, tiles, out_taps, in_taps,
    TAPS_OUT: tl.constexpr,
    TAPS_IN: tl.constexpr,
    ADJACENT: tl.constexpr,
    SUB: tl.constexpr,
    LANES: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """d_nodes = S_out^T dW S_in, a tile of columns and a run of rows a program."""
    i_program = tl.program_id(0)
    i_batch = (i_program // tiles // blocks).to(tl.int64)
    adjoint_program(
        p_grad + i_batch * out_points * (outer.to(tl.int64) * in_points * inner),
        p_out + i_batch * out_nodes * (outer.to(INDEX) * in_nodes * inner),
        p_out_start, p_out_weight, p_in_start, p_in_weight,
        out_nodes, out_points, outer, in_nodes, in_points, inner,
        out_taps if TAPS_OUT == 0 else TAPS_OUT, in_taps if TAPS_IN == 0 else TAPS_IN,
        i_program // tiles % blocks, i_program % tiles, rows,
        p_out_start is not None, p_in_start is not None, TAPS_OUT, TAPS_IN, True, ADJACENT, SUB, LANES, INDEX,
    )  # fmt: skip


@functools.lru_cache(4096)
def launch_of(sizes: Geometry, out_taps: int, in_taps: int, configs: Sequence[Config], device: torch.device) -> Launch:
    """The launch that brings back the gradient of a weight of these sizes along axes of so many taps."""
    p = plan(sizes, sizes.out_nodes, sizes.node_columns, configs, device)
    return tap_launch(
        discretize_adjoint_kernel, sizes, p, out_taps, in_taps, sizes.adjacent(sizes.in_points, MOST_NEAR)
    )


def gather_adjoint(
    grad: Tensor,
    out: Tensor,
    sizes: Geometry,
    out_taps: SideTaps,
    in_taps: SideTaps,
) -> Tensor:
    """Fill `out` with what the points of each axis that has taps (start, weight) give back to its nodes."""
    if not grad.numel():
        return out.zero_()
    if out.numel():
        counts = tap_counts(out_taps, in_taps)
        configs = configs_for(CONFIGS[grad.element_size() if sizes.index is tl.int32 else 4], *counts)
        bits = grad.view(torch.uint16) if grad.dtype == torch.bfloat16 else grad
        with guard(out):
            launch_of(sizes, *counts, configs, out.device)(bits, out, *flat_taps(out_taps, in_taps))
    return out


def discretize_adjoint(
    grad: Tensor,  # [K, L, *rest]
    out_start: Tensor,  # [K]
    out_weight: Tensor,  # [K, T_out]
    in_start: Tensor,  # [L]
    in_weight: Tensor,  # [L, T_in]
    out_nodes: int,
    in_nodes: int,
    dtype: torch.dtype,
) -> Tensor:  # [M_out, M_in, *rest]
    """d_nodes = S_out^T dW S_in, in the layout of `grad`."""
    grad = dense(grad)
    sizes = weight_geometry(grad, out_nodes, grad.shape[0], in_nodes, grad.shape[1])
    out = empty_like_layout(grad, [out_nodes, in_nodes, *grad.shape[2:]], dtype)
    return gather_adjoint(grad, out, sizes, (out_start, out_weight), (in_start, in_weight))


KERNELS = [
    KernelSpec(
        discretize_adjoint_kernel,
        {"p_grad": "*u16" if grad == "bf16" else f"*{grad}", "p_out": f"*{out}", **TAPS_TYPES},
        tap_configs(CONFIGS[size], taps, ADJACENT=(True, False), INDEX=(index,)),
        f"{grad}-{out}" + tap_label(taps) + (" int64" if index is tl.int64 else ""),
        barrier_free_loops=True,
        targets=targets,
    )
    for grad, out, size, taps, index, targets in (
        ("bf16", "fp32", 2, (4, 4), tl.int32, ALL_TARGETS),
        ("bf16", "fp32", 4, (4, 4), tl.int64, ONE_TARGET),
        ("fp16", "fp32", 2, (4, 4), tl.int32, ONE_TARGET),
        ("fp32", "fp32", 4, (4, 4), tl.int32, ONE_TARGET),
        ("bf16", "bf16", 2, (4, 4), tl.int32, ONE_TARGET),
        *(("bf16", "fp32", 2, taps, tl.int32, ONE_TARGET) for taps in TAPS),
        *(("bf16", "bf16", 2, taps, tl.int32, ONE_TARGET) for taps in TAPS),
        *(("fp32", "fp32", 4, taps, tl.int32, ONE_TARGET) for taps in TAPS[:2]),
    )
]
