"""Foreach: every layer of a network discretized by one launch, biases and norm vectors included (Eq. 6).

    W_n = S_out_n nodes_n S_in_n^T                              for all layers n, each as `discretize` computes it
    b_n = S_out_n bias_n                                        vectors: the output axis alone, no quadrature

Small layers do not fill a GPU and each launch costs microseconds, so a network's layers share one grid. A program reads
which tile of which layer it computes, and that layer's sizes, from a table on the device (`foreach_table`).

All results lie in one allocation, each layer's from an offset that depends on shapes alone: when shapes, nodes and taps
stay where they are, the table does too and is found in a cache; else it is written on the host and copied without
waiting. The backward pass is each layer's own (`discretize_adjoint`), as its gradient arrives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels import ops, reference
from inn_kernels.gpu.discretize import sample_tile
from inn_kernels.gpu.discretize_adjoint import discretize_adjoint
from inn_kernels.gpu.foreach_table import CONFIGS, layout, on_device
from inn_kernels.gpu.interpolate import spread
from inn_kernels.gpu.launch import TRITON_TYPE, empty, guard, launch
from inn_kernels.gpu.sampler_tile import HELD, dense, tap_label
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec, with_constants
from inn_kernels.taps import Taps


@triton.jit
def discretize_foreach_kernel(
    p_layers,  # int64 [layers, 16]
    p_tiles,  # int32 [programs, 2]
    p_out,  # every result, one after the other
    NODES: tl.constexpr,  # storage dtype of the nodes
    TAPS: tl.constexpr,  # 4: every axis has four; else the most of an axis, 0: any number, in a loop
    SUB: tl.constexpr,
    LANES: tl.constexpr,
):
    """One tile of one layer a program."""
    p_tile = p_tiles + tl.program_id(0) * 2
    i_within = tl.load(p_tile + 1)
    p_layer = p_layers + tl.load(p_tile) * 16
    p_nodes = tl.load(p_layer).to(tl.pointer_type(NODES))
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
    sides = list(zip(out, in_))
    long = [w.shape[1] > HELD for w in weight]
    kinds = [(x.dtype, any(n >= 0 and long[n] for n in positions)) for x, positions in zip(nodes, sides)]
    if len(set(kinds)) == 1 and _runs_here(nodes, weight, dtype):
        return _launch(nodes, start, weight, sides, dtype)
    made: list[Tensor | None] = [None] * len(nodes)
    for kind in set(kinds):
        layers = [n for n, own in enumerate(kinds) if own == kind]
        here = [n for n in layers if _runs_here([nodes[n]], [weight[m] for m in sides[n] if m >= 0], dtype)]
        for n in set(layers) - set(here):
            made[n] = _alone(nodes[n], start, weight, sides[n], dtype)
        if here:
            values = _launch([nodes[n] for n in here], start, weight, [sides[n] for n in here], dtype)
            for n, value in zip(here, values):
                made[n] = value
    return made  # type: ignore[return-value]


def discretize_foreach_adjoint(
    grads: Sequence[Tensor],
    start: Sequence[Tensor],
    weight: Sequence[Tensor],
    nodes: Sequence[int],
    out: Sequence[int],
    in_: Sequence[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Every gradient brought back to nodes, each by a launch of its own."""
    here = _runs_here(grads, weight, dtype)
    both = discretize_adjoint if here else ops.discretize_adjoint  # the operators cost as much as the launches
    one = spread if here else ops.spread
    made = []
    for x, o, i in zip(grads, out, in_, strict=True):
        if o >= 0 and i >= 0:
            made.append(both(x, start[o], weight[o], start[i], weight[i], nodes[o], nodes[i], dtype))
        else:
            either = max(o, i)
            made.append(one(x, start[either], weight[either], nodes[either], 0 if o >= 0 else 1, dtype))
    return made


def discretize_layers(nodes: Sequence[Tensor], taps: Sequence[AxisTaps], dtype: torch.dtype) -> list[Tensor]:
    """The same of layers with their taps: (output taps, input taps), None for a discrete axis."""
    kept = list({id(side): side for along in taps for side in along if side is not None}.values())
    at = {id(side): n for n, side in enumerate(kept)} | {id(None): -1}
    out, in_ = [at[id(along[0])] for along in taps], [at[id(along[1])] for along in taps]
    return discretize_foreach(nodes, [t.start for t in kept], [t.weight for t in kept], out, in_, dtype)


def _runs_here(nodes: Sequence[Tensor], weight: Sequence[Tensor], dtype: torch.dtype) -> bool:
    narrow = dtype in TRITON_TYPE and all(x.dtype in TRITON_TYPE and x.numel() < 2**31 for x in nodes)
    return narrow and all(w.dtype == torch.float32 for w in weight)


def _alone(
    nodes: Tensor, start: Sequence[Tensor], weight: Sequence[Tensor], sides: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """A layer the kernel does not take (float64), in plain PyTorch."""
    wide = next((weight[n].dtype for n in sides if n >= 0), dtype)
    for dim, n in enumerate(sides):
        if n >= 0:
            nodes = reference.interpolate(nodes, start[n], weight[n], dim, wide)
    return nodes.to(dtype)


_STORED = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_TRACKED = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)  # what notes that tensors share memory


def _launch(
    nodes: Sequence[Tensor],
    start: Sequence[Tensor],
    weight: Sequence[Tensor],
    sides: Sequence[tuple[int, int]],
    dtype: torch.dtype,
) -> list[Tensor]:
    device = nodes[0].device
    nodes = [x if x.is_contiguous() else dense(x) for x in nodes]  # copies of any tensor must outlive the launch
    taps = [t.contiguous() for t in (*start, *weight)]
    shapes = tuple([(x.shape, x.is_contiguous()) for x in nodes])
    made = layout(shapes, tuple([t.shape for t in weight]), tuple(sides), device)
    flat = empty([made.numel], dtype, device)
    if total := made.tiles.size:
        table, tiles = on_device(made, tuple([x.data_ptr() for x in (*nodes, *taps)]), device)
        with guard(flat):
            options = CONFIGS[made.taps].options | {"NODES": _STORED[nodes[0].dtype], "TAPS": made.taps}
            launch(discretize_foreach_kernel, (total,), table, tiles, flat, **options)
    with torch._C._ExcludeDispatchKeyGuard(_TRACKED):  # tensors of their own on one storage, no views
        return [torch.as_strided(flat, *result) for result in made.results]


KERNELS = [
    KernelSpec(
        discretize_foreach_kernel,
        {"p_layers": "*i64", "p_tiles": "*i32", "p_out": f"*{out}"},
        with_constants([CONFIGS[taps]], NODES=(nodes,), TAPS=(taps,)),
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
