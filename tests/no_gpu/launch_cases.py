"""What C++ launches on a replay is what Triton's own launcher launches for the same call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from noted import BF16, F16, F32, GPU, compare, flat, form, noted_kernels, off, taps, whose
from torch import Tensor

from inn_kernels import ops
from inn_kernels.gpu import launch, replay

SHAPES = [((8, 8), (5, 6)), ((16, 12, 3, 3), (9, 12)), ((300, 260), (299, 131))]


@pytest.mark.parametrize("nodes, points", SHAPES)
@pytest.mark.parametrize("stored, dtype", [(F32, F32), (F32, BF16), (BF16, BF16), (F16, F32)])
@pytest.mark.parametrize("aligned", [True, False])
def test_samplers(nodes: tuple, points: tuple, stored: torch.dtype, dtype: torch.dtype, aligned: bool) -> None:
    own = *taps(points[0], nodes[0]), *taps(points[1], nodes[1], 1)
    x, grad = torch.randn(nodes).to(stored), torch.randn(*points, *nodes[2:]).to(dtype)
    if not aligned:
        x, grad = off(x), off(grad)
    compare(ops.discretize, x, *own, dtype)
    compare(ops.discretize_adjoint, grad, *own, *nodes[:2], stored)
    for need in ((True, True), (True, False), (False, True)):
        compare(ops.discretize_tap_gradient, x, grad, *own, *need)
    if len(nodes) == 4:
        compare(ops.discretize, x.contiguous(memory_format=torch.channels_last), *own, dtype)
        compare(ops.discretize_adjoint, grad.contiguous(memory_format=torch.channels_last), *own, *nodes[:2], stored)


@pytest.mark.parametrize("count", [1, 2, 6, 8, 11])
def test_taps_of_other_lengths(count: int) -> None:
    own = *taps(13, 40, 0, count), *taps(21, 30, 1, count)
    compare(ops.discretize, torch.randn(40, 30), *own, BF16)
    compare(ops.discretize_adjoint, torch.randn(13, 21), *own, 40, 30, F32)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("shape", [(9, 10), (7, 8, 130), (9, 9, 3)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_along_one_axis(shape: tuple, dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    start, weight = taps(6, shape[dim])
    compare(ops.interpolate, x, start, weight, dim, dtype)
    short = list(shape)
    short[dim] = 6
    y = torch.randn(short).to(dtype)
    compare(ops.spread, y, start, weight, shape[dim], dim, dtype)
    compare(ops.interpolate_tap_gradient, x, y, start, weight.shape[1], dim)


@pytest.mark.parametrize("rows", [1, 4, 40, 300])
@pytest.mark.parametrize("dtype, stored", [(F32, F32), (BF16, F32), (BF16, BF16)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(rows: int, dtype: torch.dtype, stored: torch.dtype, bias: bool) -> None:
    own = *taps(48, 64), *taps(70, 96, 1)
    x, nodes = torch.randn(rows, 70).to(dtype), torch.randn(64, 96).to(stored)
    compare(ops.linear, x, nodes, torch.randn(64).to(stored) if bias else None, *own)
    for needs in ((True, True, True), (False, True, False), (True, False, False), (False, False, True)):
        compare(ops.linear_backward, torch.randn(rows, 48).to(dtype), x, nodes, *own, *needs)


@pytest.mark.parametrize("window", [([1, 1], [1, 1], [1, 1]), ([2, 1], [0, 2], [1, 2])])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_conv(window: tuple, dtype: torch.dtype) -> None:
    own = *taps(12, 16), *taps(20, 24, 1)
    x, nodes = torch.randn(2, 20, 9, 8).to(dtype), torch.randn(16, 24, 3, 3)
    y = ops.conv(x, nodes, None, *own, *window)
    compare(ops.conv, x, nodes, torch.randn(16), *own, *window)
    compare(ops.conv, x, nodes, None, *own, *window)
    dy = torch.randn(y.shape).to(dtype)
    compare(ops.conv_input_gradient, dy, nodes, *own, [9, 8], *window)
    compare(ops.conv_node_gradient, dy, x, nodes, *own, *window, True, True)
    compare(ops.conv_node_gradient, dy, x, nodes, *own, *window, True, False)


def test_numbers_past_int32() -> None:
    """They are as wide as Triton takes them for."""
    own, dy, nodes = (*taps(12, 16), *taps(20, 24, 1)), torch.empty(2, 12, 9, 8), torch.empty(16, 24, 3, 3)
    for padding in ([2**31 - 1, 1], [2**31, 1], [-(2**31), 1], [-(2**40) - 7, 1]):
        compare(ops.conv_input_gradient, dy, nodes, *own, [9, 8], [1, 1], padding, [1, 1])
    wide = [found.kernel.src.signature for found in launch._compiled.values()]
    assert any("i64" in signature.values() for signature in wide)


def listed(dtypes: list[torch.dtype]) -> tuple[list[Tensor], list[int], list[int]]:
    """Layers of a network, and the positions of their taps."""
    shapes = [(8, 12), (8,), (12, 8, 3, 3), (8, 3, 3, 3), (10, 12)]
    nodes = [torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes)]
    nodes[2] = nodes[2].contiguous(memory_format=torch.channels_last)
    return nodes, [0, 0, 1, 0, -1], [1, -1, 0, -1, 1]


def test_foreach() -> None:
    nodes, out, in_ = listed([F32] * 5)
    kept = taps(5, 8), taps(7, 12)
    starts, weights = [s for s, _ in kept], [w for _, w in kept]
    compare_tables(ops.discretize_foreach, nodes, starts, weights, out, in_, BF16)
    grads = [torch.randn_like(w) for w in ops.discretize_foreach(nodes, starts, weights, out, in_, F32)]
    compare_tables(ops.discretize_foreach_adjoint, grads, starts, weights, [8, 12], out, in_, F32)
    # Two kinds of nodes are two launches, and two tables.
    mixed = listed([F32, F32, BF16, BF16, F32])[0]
    compare_tables(ops.discretize_foreach, mixed, starts, weights, out, in_, F32)


def test_foreach_of_one_tensor_twice() -> None:
    """Layers that were one tensor when they were recorded, and are two now, are layers of another kind."""
    kept, own, other = taps(5, 8), torch.randn(8), torch.randn(8)
    rest = [kept[0]], [kept[1]], [0, 0], [-1, -1], F32

    def nodes_read(*nodes: Tensor) -> list[int]:
        ops.discretize_foreach(list(nodes), *rest)
        noted_kernels()
        table = (ctypes.c_int64 * 32).from_address(GPU.noted(1)[0].values[0])
        return [table[0], table[16]]

    for _ in range(4):
        ops.discretize_foreach([own, own], *rest)
    assert nodes_read(own, own) == [own.data_ptr()] * 2
    for _ in range(4):
        assert nodes_read(own, other) == [own.data_ptr(), other.data_ptr()]
    assert nodes_read(own, own) == [own.data_ptr()] * 2


def compare_tables(operator: Callable, layers: list[Tensor], *arguments: Any) -> None:
    """`compare`, with what the tables hold; then of layers elsewhere, whose tables C++ writes."""

    def run(x: list[Tensor]) -> tuple[Any, list[tuple]]:
        before = GPU.launches
        results = operator(x, *arguments)
        found = []
        for note in GPU.noted(GPU.launches - before):
            p_layers, p_tiles, p_out = note.values[:3]
            words = (p_tiles - p_layers) // 8 + note.grid[0]  # tiles are two int32
            table = tuple((ctypes.c_int64 * words).from_address(p_layers))
            out = whose(p_out, [], flat(results))
            found.append((note.function, tuple(note.grid), tuple(note.block), note.shared, table, out))
        return form(results), found

    replay.enable(False)
    operator(layers, *arguments)  # compiles
    noted_kernels()
    elsewhere = [x.clone() for x in layers]
    expected = [run(x) for x in (layers, elsewhere)]
    assert expected[0] != expected[1]
    replay.enable(True)
    run(layers)
    run(layers)
    before = replay.replays()
    for x, wanted in ((layers, expected[0]), (elsewhere, expected[1]), (layers, expected[0])):
        assert run(x) == wanted
    assert replay.replays() == before + 3
