"""Foreach: every layer of a network discretized by one launch, biases and norm vectors included (Eq. 6).

    W_n = S_out_n nodes_n S_in_n^T                              for all layers n, each as `discretize` computes it
    b_n = S_out_n bias_n                                        vectors: the output axis alone, no quadrature

Small layers do not fill a GPU and each launch costs microseconds, so a network's layers share one grid. A program reads
which tile of which layer it computes, and that layer's sizes, from a table on the device:

    tiles   int32 [programs, 2]     layer, tile within the layer
    layers  int64 [layers, 16]      node pointer, offset of the result, four tap pointers, six sizes, rows, tiles, taps

All results lie in one allocation, each layer's from an offset that depends on shapes alone: when shapes, nodes and taps
stay where they are, the table does too and is found in a cache; else it is written on the host and copied without
waiting. The backward pass is each layer's own (`discretize_adjoint`), as its gradient arrives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from inn_kernels import ops, reference
from inn_kernels.gpu import discretize
from inn_kernels.gpu.discretize import sample_tile
from inn_kernels.gpu.discretize_adjoint import discretize_adjoint
from inn_kernels.gpu.interpolate import spread
from inn_kernels.gpu.launch import TRITON_TYPE, cdiv, empty, guard, launch, processors
from inn_kernels.gpu.sampler_tile import HELD, MIN_ROWS, Geometry, dense, tap_label
from inn_kernels.gpu.specs import ALL_TARGETS, ONE_TARGET, KernelSpec, with_constants
from inn_kernels.taps import Taps

WIDE = discretize.CONFIGS[4][0]
CONFIGS = {
    4: WIDE,
    6: WIDE._replace(constants={**WIDE.constants, "SUB": 2}),
    8: WIDE._replace(constants={**WIDE.constants, "SUB": 2}, resident=5, max_registers=96),
}
CONFIGS[0] = CONFIGS[8]
"""By TAPS of the kernel. The wide tile of `discretize`: together the layers of a network fill the chip."""

MAX_ROWS = 64
"""Longest run of rows: the programs of one launch should end together whatever their layers."""


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


def _tap_class(counts: Sequence[int]) -> int:
    """The variant of the kernel for axes of these taps."""
    if all(n == 4 for n in counts):
        return 4
    return next((most for most in CONFIGS if most != 4 and max(counts) <= most), 0)


class _Table(NamedTuple):
    """A table on the device, and when and where it gets there."""

    layers: Tensor  # int64
    tiles: Tensor  # int32, behind it in memory
    stream: torch.cuda.Stream
    copied: torch.cuda.Event


class _Layout(NamedTuple):
    """What the shapes of layers decide of a launch, and tables with pointers to layers of these shapes."""

    taps: int  # the variant of the kernel
    layers: np.ndarray  # int64 [layers, 16], without pointers
    sides: np.ndarray  # [layers, 2] positions of the taps of both sides, -1 for none
    tiles: np.ndarray  # int32 [programs, 2] as int64: the list behind the layers
    numel: int  # of the allocation
    results: Sequence[tuple[Sequence[int], Sequence[int], int]]  # shape, strides and offset of each layer's
    tables: dict[tuple[int, ...], _Table]  # by pointers, least recently used first


_TABLES = 8
_captured: list[Tensor] = []  # what CUDA graphs read at every replay
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
    layout = _layout(shapes, tuple([t.shape for t in weight]), tuple(sides), device)
    flat = empty([layout.numel], dtype, device)
    if total := layout.tiles.size:
        table, tiles = _on_device(layout, tuple([x.data_ptr() for x in (*nodes, *taps)]), device)
        with guard(flat):
            options = CONFIGS[layout.taps].options | {"NODES": _STORED[nodes[0].dtype], "TAPS": layout.taps}
            launch(discretize_foreach_kernel, (total,), table, tiles, flat, **options)
    with torch._C._ExcludeDispatchKeyGuard(_TRACKED):  # tensors of their own on one storage, no views
        return [torch.as_strided(flat, *result) for result in layout.results]


@functools.lru_cache(64)
def _layout(
    shapes: tuple[tuple[torch.Size, bool], ...],  # of nodes; contiguous (or channels_last)?
    taps: tuple[torch.Size, ...],  # [K, T] of each axis
    sides: tuple[tuple[int, int], ...],
    device: torch.device,
) -> _Layout:
    most = _tap_class([taps[at][1] for at in {at for positions in sides for at in positions if at >= 0}])
    config = CONFIGS[most]
    rows, results, offset = [], [], 0
    for (shape, contiguous), positions in zip(shapes, sides):
        made = [n if at < 0 else taps[at][0] for n, at in zip(shape, positions)] + [*shape[2:]]
        sizes = _layer(shape, made, contiguous)
        own = [1 if at < 0 else taps[at][1] for at in _seen(shape, positions)]
        rows.append((0, offset, 0, 0, 0, 0, *sizes[1:], 0, 0, *own))
        results.append((made, _strides(made, contiguous), offset))
        offset += cdiv(math.prod(made), 128) * 128  # aligned for the GEMM that reads it
    layers = np.array(rows, np.int64)
    heights, widths = layers[:, 7], layers[:, 8] * layers[:, 10] * layers[:, 11]
    tiles = -(-widths // (config.constants["SUB"] * config.constants["LANES"]))
    waves = 2 * config.resident * processors(device)
    run = min(max(cdiv(int((tiles * heights).sum()), waves), MIN_ROWS), MAX_ROWS)
    layers[:, 12], layers[:, 13] = run, tiles
    programs = -(-heights // run) * tiles
    layer = np.repeat(np.arange(len(programs)), programs)
    within = np.arange(layer.size) - np.repeat(np.cumsum(programs) - programs, programs)
    listed = np.stack([layer, within], 1).astype(np.int32).ravel().view(np.int64)
    seen = np.array([_seen(shape, positions) for (shape, _), positions in zip(shapes, sides)])
    return _Layout(most, layers, seen, listed, offset, results, {})


def _seen(shape: Sequence[int], positions: tuple[int, int]) -> tuple[int, int]:
    """Positions of taps as the kernel sees them: a vector is a row, its points lie along the input."""
    return (-1, positions[0]) if len(shape) == 1 else positions


def _layer(nodes: Sequence[int], points: Sequence[int], contiguous: bool) -> Geometry:
    """A layer as the kernel sees it: a vector is one row, sampled along its columns."""
    if len(nodes) == 1:
        return Geometry(1, 1, 1, 1, nodes[0], points[0], 1)
    offsets = math.prod(nodes[2:])
    outer, inner = (1, offsets) if contiguous else (offsets, 1)
    return Geometry(1, nodes[0], points[0], outer, nodes[1], points[1], inner)


def _strides(shape: Sequence[int], contiguous: bool) -> list[int]:
    """Of a tensor that is contiguous, or channels_last."""
    order = [*range(len(shape))] if contiguous else [0, 2, 3, 1]
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return strides


def _on_device(layout: _Layout, pointers: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The table and the list of tiles, on the device; as written before if all pointers are the same."""
    if device.type != "cuda":
        return _parts(_on_host(layout, pointers), layout)
    stream = torch.cuda.current_stream(device)
    capturing = torch.cuda.is_current_stream_capturing()
    table = layout.tables.pop(pointers, None)
    if table is None:
        host = _on_host(layout, pointers).pin_memory()
        data = host.to(device, non_blocking=True)
        table = _Table(*_parts(data, layout), stream, torch.cuda.Event())
        if capturing:  # the copy is part of the graph: no cache entry, its content appears at a replay
            _captured.extend((host, data))
            return table.layers, table.tiles
        table.copied.record(stream)
    elif capturing:  # a capture starts with a synchronized device
        _captured.append(table.layers)
    elif stream != table.stream:
        stream.wait_event(table.copied)
        table.layers.record_stream(stream)
    layout.tables[pointers] = table
    if len(layout.tables) > _TABLES:
        layout.tables.pop(next(iter(layout.tables)), None)
    return table.layers, table.tiles


def _parts(table: Tensor, layout: _Layout) -> tuple[Tensor, Tensor]:
    return table, table[layout.layers.size :].view(torch.int32)


def _on_host(layout: _Layout, pointers: Sequence[int]) -> Tensor:
    layers, count = layout.layers.copy(), len(layout.results)
    layers[:, 0] = pointers[:count]
    taps = np.array([*pointers[count:], 0], np.int64)
    kinds = len(taps) // 2
    for side in range(2):
        at = layout.sides[:, side]
        layers[:, 2 + 2 * side] = np.where(at < 0, 0, taps[at])
        layers[:, 3 + 2 * side] = np.where(at < 0, 0, taps[at + kinds])
    return torch.from_numpy(np.concatenate([layers.ravel(), layout.tiles]))


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
