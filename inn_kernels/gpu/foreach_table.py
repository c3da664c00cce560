"""One launch for many layers: the table that says which tile of which layer each program computes, and the launch.

    tiles   int32 [programs, 2]     layer, tile within the layer
    layers  int64 [layers, 16]      pointer, offset of the result, four tap pointers, six sizes, rows, tiles, taps

All results lie in one allocation, each layer's from an offset that depends on shapes alone. Shapes decide all but the
pointers (`layout`, kept); a table with pointers is kept on the device while they stay, else it is written on the host
and copied without waiting.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.launch import LIMIT, TRITON_TYPE, Config, Launch, cdiv, empty, guard, processors
from inn_kernels.gpu.record import recorder
from inn_kernels.gpu.sampler_tile import HELD, MIN_ROWS, Geometry, dense
from inn_kernels.taps import Basis, Taps, taps_for

STORED = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""Storage dtypes, as Triton's types of pointers."""

MAX_ROWS = 64
"""Longest run of rows: the programs of one launch should end together whatever their layers."""

Sides = tuple[int, int]
"""Positions of the taps of a layer's output and input axis; -1 where it is discrete, and for a vector's input."""


Configs = tuple[tuple[int, Config], ...]
"""By the most taps of an axis that the variant of a kernel takes; 4 exactly, 0 for any."""


def _tap_class(configs: Configs, counts: Sequence[int]) -> tuple[int, Config]:
    """The variant of the kernel for axes of these taps."""
    most = 4 if all(n == 4 for n in counts) else next((n for n, _ in configs if n > 4 and max(counts) <= n), 0)
    return most, dict(configs)[most]


class _Table(NamedTuple):
    """A table on the device, and when and where it gets there."""

    layers: Tensor  # int64
    tiles: Tensor  # int32, behind it in memory
    stream: torch.cuda.Stream
    copied: torch.cuda.Event


class Layout(NamedTuple):
    """What the shapes of layers decide of a launch, and tables with pointers to layers of these shapes."""

    launch: Launch
    layers: np.ndarray  # int64 [layers, 16], without pointers
    sides: np.ndarray  # [layers, 2] positions of the taps of both sides, -1 for none
    identities: list[int]  # sizes of discrete axes that have taps nevertheless, behind the others
    tiles: np.ndarray  # int32 [programs, 2] as int64: the list behind the layers
    numel: int  # of the allocation
    results: Sequence[tuple[Sequence[int], Sequence[int], int]]  # shape, strides and offset of each layer's
    tables: dict[tuple[int, ...], _Table]  # by pointers, least recently used first


_TABLES = 8
_captured: list[Tensor] = []  # what CUDA graphs read at every replay


@functools.lru_cache(128)
def layout(
    kernel: Any,
    configs: Configs,
    stored: tl.dtype,  # as what the kernel reads
    shapes: tuple[tuple[torch.Size, bool], ...],  # of what is read; contiguous (or channels_last)?
    taps: tuple[torch.Size, ...],  # [K, T] of each axis
    sides: tuple[Sides, ...],
    nodes: tuple[int, ...] | None,  # of each axis, if points are brought back to nodes; None: nodes to points
    device: torch.device,
) -> Layout:
    """How layers of these shapes share a launch."""
    most, config = _tap_class(configs, [taps[at][1] for at in {at for along in sides for at in along if at >= 0}])
    adjoint = nodes is not None
    sizes = nodes if nodes is not None else tuple(points for points, _ in taps)
    identities: list[int] = []
    rows, seen, results, offset = [], [], [], 0
    for (shape, contiguous), positions in zip(shapes, sides):
        made = [n if at < 0 else sizes[at] for n, at in zip(shape, positions)] + [*shape[2:]]
        geometry = _geometry(made, shape, contiguous) if adjoint else _geometry(shape, made, contiguous)
        along = (-1, positions[0]) if len(shape) == 1 else positions  # a vector is a row
        if adjoint:
            along = _filled(along, geometry, len(taps), identities)
        counts = [1 if at < 0 else 4 if at >= len(taps) else taps[at][1] for at in along]
        rows.append((0, offset, 0, 0, 0, 0, *geometry[1:], 0, 0, *counts))
        seen.append(along)
        results.append((made, _strides(made, contiguous), offset))
        offset += cdiv(math.prod(made), 128) * 128  # aligned for the GEMM that reads it
    layers = np.array(rows, np.int64)
    heights, across = (layers[:, 6], layers[:, 9]) if adjoint else (layers[:, 7], layers[:, 10])
    tiles = -(-across * layers[:, 8] * layers[:, 11] // (config.constants["SUB"] * config.constants["LANES"]))
    waves = 2 * config.resident * processors(device)
    run = min(max(cdiv(int((tiles * heights).sum()), waves), MIN_ROWS), MAX_ROWS)
    layers[:, 12], layers[:, 13] = run, tiles
    programs = -(-heights // run) * tiles
    layer = np.repeat(np.arange(len(programs)), programs)
    within = np.arange(layer.size) - np.repeat(np.cumsum(programs) - programs, programs)
    listed = np.stack([layer, within], 1).astype(np.int32).ravel().view(np.int64)
    launch = Launch(kernel, (len(listed),), (), {**config.options, "STORED": stored, "TAPS": most})
    return Layout(launch, layers, np.array(seen), identities, listed, offset, results, {})


def _geometry(nodes: Sequence[int], points: Sequence[int], contiguous: bool) -> Geometry:
    """A layer as the kernel sees it: a vector is one row, sampled along its columns."""
    if len(nodes) == 1:
        return Geometry(1, 1, 1, 1, nodes[0], points[0], 1)
    offsets = math.prod(nodes[2:])
    outer, inner = (1, offsets) if contiguous else (offsets, 1)
    return Geometry(1, nodes[0], points[0], outer, nodes[1], points[1], inner)


def _filled(along: Sides, geometry: Geometry, count: int, identities: list[int]) -> Sides:
    """Positions of taps, those of the identity along discrete axes: `count` and more, in the order of `identities`."""
    found = []
    for at, size in zip(along, (geometry.out_nodes, geometry.in_nodes)):
        if at < 0:
            if size not in identities:
                identities.append(size)
            at = count + identities.index(size)
        found.append(at)
    return found[0], found[1]


def _identity(size: int, device: torch.device) -> Taps:
    """Four taps a point that change nothing: cells of as many points as nodes, in a conservative basis."""
    return taps_for(size, size, Basis(kernel="conservative"), quadrature="cells", device=device)


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


def _now(make: Callable[[], Any]) -> Any:
    return make()


def _pointers(words: Sequence[int], layers: int) -> list[int]:
    """Where a table holds pointers: to nodes, and to taps where there are any."""
    columns = [16 * row + column for row in range(layers) for column in (0, 2, 3, 4, 5)]
    return [at for at in columns if words[at]]


# The launch -----------------------------------------------------------------------------------------------------

_TRACKED = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)  # what notes that tensors share memory


class Foreach(NamedTuple):
    """A kernel that takes many layers, and how it is launched."""

    kernel: Any
    configs: Callable[[torch.dtype], Mapping[int, Config]]  # for the dtype that is read: by the most taps, 0 for any
    pointee: Mapping[torch.dtype, Any]  # as what that dtype is read
    alone: Callable[..., Tensor]  # a layer that the kernel does not take

    def run(
        self,
        layers: Sequence[Tensor],
        start: Sequence[Tensor],
        weight: Sequence[Tensor],
        sides: Sequence[Sides],
        dtype: torch.dtype,
        nodes: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """The result of each layer, by a launch for each kind of them. `nodes` as in `layout`."""
        made: list[Tensor | None] = [None] * len(layers)
        for members, takes in _kinds(layers, weight, sides, dtype):
            own, along = [layers[n] for n in members], [sides[n] for n in members]
            if takes:
                values = self._launch(own, start, weight, along, dtype, nodes)
            else:
                values = [self.alone(x, start, weight, nodes, at, dtype) for x, at in zip(own, along)]
            for n, value in zip(members, values):
                made[n] = value
        return made  # type: ignore[return-value]

    def _launch(
        self,
        layers: Sequence[Tensor],
        start: Sequence[Tensor],
        weight: Sequence[Tensor],
        sides: Sequence[Sides],
        dtype: torch.dtype,
        nodes: Sequence[int] | None,
    ) -> list[Tensor]:
        device, stored = layers[0].device, layers[0].dtype
        layers = [x if x.is_contiguous() else dense(x) for x in layers]  # copies of any tensor must outlive the launch
        made = layout(
            self.kernel, tuple(self.configs(stored).items()), self.pointee[stored],
            tuple([(x.shape, x.is_contiguous()) for x in layers]), tuple([w.shape for w in weight]), tuple(sides),
            None if nodes is None else tuple(nodes), device,
        )  # fmt: skip
        flat = empty([made.numel], dtype, device)
        if made.tiles.size:
            recording = recorder()
            aside = _now if recording is None else recording.aside
            identities = aside(lambda: [_identity(size, device) for size in made.identities])
            flattened = (*start, *(t.start for t in identities), *weight, *(t.weight for t in identities))
            kept = [t.contiguous() for t in flattened]
            pointers = tuple([x.data_ptr() for x in (*layers, *kept)])
            table, tiles = aside(lambda: on_device(made, pointers, device))
            if recording is not None:
                recording.kept([x for t in identities for x in (t.start, t.weight)])
                words = aside(lambda: _on_host(made, pointers).tolist())
                recording.table(table, words, _pointers(words, len(made.results)))
            with guard(flat):
                made.launch(table, tiles, flat)
        with torch._C._ExcludeDispatchKeyGuard(_TRACKED):  # tensors of their own on one storage, no views
            return [torch.as_strided(flat, *result) for result in made.results]


def _kinds(
    layers: Sequence[Tensor], weight: Sequence[Tensor], sides: Sequence[Sides], dtype: torch.dtype
) -> list[tuple[Sequence[int], bool]]:
    """Which layers share a launch: those of one storage dtype, apart from those with long taps.

    Returns the layers of each kind, and whether the kernels take them: no float64, nothing empty or past int32.
    """
    stored = [x.dtype for x in layers]
    sizes = [x.numel() for x in layers]
    plain = all([w.dtype == torch.float32 and w.shape[1] <= HELD for w in weight])
    alike = len(set(stored)) == 1 and stored[0] in TRITON_TYPE and min(sizes) > 0 and max(sizes) < LIMIT
    if plain and alike and dtype in TRITON_TYPE:
        return [(range(len(layers)), True)]
    found: dict[tuple, list[int]] = {}
    for n, along in enumerate(sides):
        own = [weight[at] for at in along if at >= 0]
        takes = dtype in TRITON_TYPE and stored[n] in TRITON_TYPE and 0 < sizes[n] < LIMIT
        takes = takes and all(w.dtype == torch.float32 for w in own)
        found.setdefault((stored[n], any(w.shape[1] > HELD for w in own), takes), []).append(n)
    return [(members, takes) for (_, _, takes), members in found.items()]
