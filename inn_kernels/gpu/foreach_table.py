"""What one launch for all layers reads: which tile of which layer each program computes, and the layers' sizes.

    tiles   int32 [programs, 2]     layer, tile within the layer
    layers  int64 [layers, 16]      node pointer, offset of the result, four tap pointers, six sizes, rows, tiles, taps

Shapes decide all but the pointers (`layout`, kept); a table with pointers is kept on the device while they stay.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inn_kernels.gpu import discretize
from inn_kernels.gpu.launch import cdiv, processors
from inn_kernels.gpu.sampler_tile import MIN_ROWS, Geometry

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


class Layout(NamedTuple):
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


@functools.lru_cache(64)
def layout(
    shapes: tuple[tuple[torch.Size, bool], ...],  # of nodes; contiguous (or channels_last)?
    taps: tuple[torch.Size, ...],  # [K, T] of each axis
    sides: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Layout:
    """How layers of these shapes share a launch."""
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
    return Layout(most, layers, seen, listed, offset, results, {})


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


def on_device(layout: Layout, pointers: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
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


def _parts(table: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    return table, table[layout.layers.size :].view(torch.int32)


def _on_host(layout: Layout, pointers: Sequence[int]) -> Tensor:
    layers, count = layout.layers.copy(), len(layout.results)
    layers[:, 0] = pointers[:count]
    taps = np.array([*pointers[count:], 0], np.int64)
    kinds = len(taps) // 2
    for side in range(2):
        at = layout.sides[:, side]
        layers[:, 2 + 2 * side] = np.where(at < 0, 0, taps[at])
        layers[:, 3 + 2 * side] = np.where(at < 0, 0, taps[at + kinds])
    return torch.from_numpy(np.concatenate([layers.ravel(), layout.tiles]))
