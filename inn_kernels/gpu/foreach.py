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
from inn_kernels.gpu.launch import TRITON_TYPE, empty, guard, is_channels_last, processors
from inn_kernels.gpu.sampler_tile import MIN_ROWS, Geometry, dense, tap_counts, tap_label, weight_geometry
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

FIELDS = 16
"""int64 values a layer in the table."""

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
    """`discretize_layers` as the operator asks for it: taps once, and of each tensor the position of those it has."""
    taps = []
    for x, positions in zip(nodes, zip(out, in_), strict=True):
        sides = [None if n < 0 else Taps(start[n], weight[n], x.shape[dim]) for dim, n in enumerate(positions)]
        taps.append((sides[0], sides[1]))
    return discretize_layers(nodes, taps, dtype)


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
    made = []
    for x, o, i in zip(grads, out, in_, strict=True):
        if o >= 0 and i >= 0:
            made.append(ops.discretize_adjoint(x, start[o], weight[o], start[i], weight[i], nodes[o], nodes[i], dtype))
        else:
            either = max(o, i)
            made.append(ops.spread(x, start[either], weight[either], nodes[either], 0 if o >= 0 else 1, dtype))
    return made


def discretize_layers(nodes: Sequence[Tensor], taps: Sequence[AxisTaps], dtype: torch.dtype) -> list[Tensor]:
    """Every layer's weight in one launch (one more for each further storage dtype of nodes, and for long taps).

    Args:
        nodes: of each layer, [M_out, M_in, *kernel], or [M_out] for a bias or norm vector; all on one device.
        taps: of each layer, (output taps, input taps), None for a discrete axis; a vector has (output taps, None).
        dtype: of the results.

    Returns:
        [K, L, *kernel] or [K] of each layer, in the layout of its nodes. They share one allocation.
    """
    out: list[Tensor | None] = [None] * len(nodes)
    kinds: dict[tuple[torch.dtype, bool], list[int]] = {}
    for n, (x, along) in enumerate(zip(nodes, taps, strict=True)):
        if _runs_here(x, along, dtype):
            kinds.setdefault((x.dtype, _tap_class(_counts(along)) > 0), []).append(n)
        else:
            out[n] = _alone(x, along, dtype)
    for layers in kinds.values():
        made = _launch([dense(nodes[n]) for n in layers], [taps[n] for n in layers], dtype)
        for n, weight in zip(layers, made):
            out[n] = weight
    return out  # type: ignore[return-value]


def _counts(taps: AxisTaps) -> list[int]:
    """T of each axis that is sampled."""
    return [side.weight.shape[1] for side in taps if side is not None]


def _tap_class(counts: list[int]) -> int:
    """The variant of the kernel for axes of these taps."""
    if all(n == 4 for n in counts):
        return 4
    return next((most for most in CONFIGS if most != 4 and max(counts) <= most), 0)


def _runs_here(nodes: Tensor, taps: AxisTaps, dtype: torch.dtype) -> bool:
    wide = any(along is not None and along.weight.dtype != torch.float32 for along in taps)
    return not wide and nodes.dtype in TRITON_TYPE and dtype in TRITON_TYPE and nodes.numel() < 2**31


def _alone(nodes: Tensor, taps: AxisTaps, dtype: torch.dtype) -> Tensor:
    """A layer the kernel does not take (float64), in plain PyTorch."""
    wide = next((along.weight.dtype for along in taps if along is not None), dtype)
    for dim, along in enumerate(taps[: nodes.dim()]):
        if along is not None:
            nodes = reference.interpolate(nodes, along.start, along.weight, dim, wide)
    return nodes.to(dtype)


def _launch(nodes: list[Tensor], taps: list[AxisTaps], dtype: torch.dtype) -> list[Tensor]:
    device = nodes[0].device
    kept = []  # contiguous copies of taps must outlive the launch
    layers = np.zeros((len(nodes), FIELDS), np.int64)
    shapes, offset = [], 0
    for row, x, along in zip(layers, nodes, taps):
        sizes, along = _layer(x, along)
        tensors = [t.contiguous() for side in along if side is not None for t in (side.start, side.weight)]
        kept += tensors
        pointers = iter([t.data_ptr() for t in tensors])
        row[:6] = [x.data_ptr(), offset, *(next(pointers) if side else 0 for side in along for _ in range(2))]
        row[6:12] = sizes[1:]
        shapes.append((sizes.out_points, sizes.point_columns))
        offset += -(-sizes.out_points * sizes.point_columns // 128) * 128  # aligned for the GEMM that reads it
        row[14:] = tap_counts(*(side[:2] if side else (None, None) for side in along))
    most = _tap_class([n for along in taps for n in _counts(along)])
    config = CONFIGS[most]
    lanes = config.constants["SUB"] * config.constants["LANES"]
    points, widths = np.array(shapes, np.int64).T
    tiles = -(-widths // lanes)
    waves = 2 * config.resident * processors(device)
    rows = int(np.clip(-(-int((tiles * points).sum()) // waves), MIN_ROWS, MAX_ROWS))
    layers[:, 12], layers[:, 13] = rows, tiles
    programs = -(-points // rows) * tiles
    table = _on_device(layers, programs, device)
    flat = empty([offset], dtype, device)
    if total := int(programs.sum()):
        with guard(flat):
            discretize_foreach_kernel[(total,)](
                table,
                table[layers.size :].view(torch.int32),
                flat,
                NODES=getattr(tl, str(nodes[0].dtype).removeprefix("torch.")),
                TAPS=most,
                **config.options,
            )
    return [_result(flat, int(row[1]), x, along) for row, x, along in zip(layers, nodes, taps)]


def _layer(nodes: Tensor, taps: AxisTaps) -> tuple[Geometry, AxisTaps]:
    """A layer as the kernel sees it: a vector is one row, sampled along its columns."""
    if nodes.dim() == 1:
        points = nodes.shape[0] if taps[0] is None else taps[0].points
        return Geometry(1, 1, 1, 1, nodes.shape[0], points, 1), (None, taps[0])
    k, n = [size if side is None else side.points for size, side in zip(nodes.shape, taps)]
    return weight_geometry(nodes, nodes.shape[0], k, nodes.shape[1], n), taps


def _result(flat: Tensor, offset: int, nodes: Tensor, taps: AxisTaps) -> Tensor:
    """A layer's weight: a tensor of its own on the shared storage, in the layout of the nodes."""
    shape = [n if side is None else side.points for n, side in zip(nodes.shape, taps)] + [*nodes.shape[2:]]
    shape = shape[: nodes.dim()]
    layout = torch.channels_last if is_channels_last(nodes) else torch.contiguous_format
    strides = torch.empty(shape, device="meta", memory_format=layout).stride()
    return flat.new_empty(0).set_(flat.untyped_storage(), offset, shape, strides)


class _Table(NamedTuple):
    """A table on the device, and when and where it gets there."""

    data: Tensor
    stream: torch.cuda.Stream
    copied: torch.cuda.Event


_tables: dict[tuple, _Table] = {}  # least recently used first
_captured: list[Tensor] = []  # what CUDA graphs read at every replay
_TABLES = 64


def _on_device(layers: np.ndarray, programs: np.ndarray, device: torch.device) -> Tensor:
    """The table and the tile list behind it, int64, on the device. Its key is its content, pointers included."""
    if device.type != "cuda":
        return _on_host(layers, programs)
    stream = torch.cuda.current_stream(device)
    capturing = torch.cuda.is_current_stream_capturing()
    key = (layers.tobytes(), device)
    table = _tables.pop(key, None)
    if table is None:
        host = _on_host(layers, programs).pin_memory()
        table = _Table(host.to(device, non_blocking=True), stream, torch.cuda.Event())
        if capturing:  # the copy is part of the graph: no cache entry, its content appears at a replay
            _captured.extend((host, table.data))
            return table.data
        table.copied.record(stream)
    elif capturing:  # a capture starts with a synchronized device
        _captured.append(table.data)
    elif stream != table.stream:
        stream.wait_event(table.copied)
        table.data.record_stream(stream)
    _tables[key] = table
    if len(_tables) > _TABLES:
        _tables.pop(next(iter(_tables)))
    return table.data


def _on_host(layers: np.ndarray, programs: np.ndarray) -> Tensor:
    layer = np.repeat(np.arange(len(programs)), programs)
    within = np.arange(layer.size) - np.repeat(np.cumsum(programs) - programs, programs)
    tiles = np.stack([layer, within], 1).astype(np.int32)
    return torch.from_numpy(np.concatenate([layers.ravel(), tiles.ravel().view(np.int64)]))


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
