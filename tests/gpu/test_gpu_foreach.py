"""Every layer of a network discretized by one launch, against float64 and against layers one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from inn_kernels import reference
from inn_kernels.gpu import foreach
from inn_kernels.gpu.discretize import discretize
from inn_kernels.gpu.foreach import AxisTaps, discretize_layers
from sampler_cases import check, random, taps

LAYERS = (  # nodes, points of each axis (None: discrete), channels_last
    ((16, 3, 3, 3), (9, None), False),
    ((16,), (9, None), False),
    ((30, 16, 1, 1), (20, 9), False),
    ((30,), (20, None), False),
    ((37, 30, 3, 3), (41, 20), True),
    ((10, 37), (None, 41), False),
    ((10,), (None, None), False),
    ((9, 8, 3), (3, 30), False),
    ((5, 6), (None, None), False),
    ((1, 1), (1, 1), False),
    ((2, 3), (5, 4), False),
)


def network(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[AxisTaps]]:
    torch.manual_seed(0)
    nodes = [random(shape, dtype, last) for shape, _, last in LAYERS]
    along: list[AxisTaps] = []
    for shape, points, _ in LAYERS:
        pair = [None if k is None else taps("random", k, m, i == 1) for i, (m, k) in enumerate(zip(shape, points))]
        along.append((pair[0], pair[1] if len(pair) > 1 else None))
    return nodes, along


def plain(nodes: Tensor, along: AxisTaps, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
    for dim, side in reversed(list(enumerate(along))):
        if side is not None:
            nodes = reference.interpolate(nodes, side.start, side.weight.to(wide), dim, wide)
    return nodes.to(dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("storage", (torch.float32, torch.bfloat16), ids=str)
def test_against_float64(storage: torch.dtype, dtype: torch.dtype) -> None:
    nodes, along = network(storage)
    for x, sides, value in zip(nodes, along, discretize_layers(nodes, along, dtype)):
        check(value, plain(x, sides, dtype, torch.float32), plain(x, sides, torch.float64, torch.float64))


def test_equals_layers_one_by_one() -> None:
    nodes, along = network()
    for x, (out, in_), value in zip(nodes, along, discretize_layers(nodes, along, torch.float32)):
        if out is not None and in_ is not None:
            one = discretize(x, out.start, out.weight, in_.start, in_.weight, torch.float32)
            assert torch.equal(value, one) and value.stride() == one.stride()


def test_mixed_storage_and_float64() -> None:
    nodes, along = network()
    nodes[2] = nodes[2].bfloat16()
    out, in_ = along[7]
    along[7] = (out._replace(weight=out.weight.double()), in_._replace(weight=in_.weight.double()))
    nodes[7] = nodes[7].double()
    for x, sides, value in zip(nodes, along, discretize_layers(nodes, along, torch.float32)):
        check(value, plain(x, sides, torch.float32, torch.float32), plain(x, sides, torch.float64, torch.float64))


def test_results_do_not_overlap() -> None:
    nodes, along = network()
    values = discretize_layers(nodes, along, torch.float32)
    spans = sorted((v.data_ptr(), v.data_ptr() + 4 * v.numel()) for v in values)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    kept = values[0].clone()
    values[1].fill_(7)
    assert torch.equal(values[0], kept)


def test_no_layers() -> None:
    assert discretize_layers([], [], torch.float32) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="tables are cached on a GPU only")
def test_table_is_cached() -> None:
    nodes, along = network()
    first = discretize_layers(nodes, along, torch.bfloat16)
    size = len(foreach._tables)
    second = discretize_layers(nodes, along, torch.bfloat16)
    assert len(foreach._tables) == size
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph() -> None:
    nodes, along = network()
    expected = discretize_layers(nodes, along, torch.bfloat16)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = discretize_layers(nodes, along, torch.bfloat16)
    for value in captured:
        value.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured))
