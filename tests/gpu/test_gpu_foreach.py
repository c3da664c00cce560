"""Every layer of a network discretized by one launch, against float64 and against layers one by one."""

from __future__ import annotations

import itertools
import unittest.mock

import pytest
import torch
from torch import Tensor

from inn_kernels import reference
from inn_kernels.gpu import foreach_table
from inn_kernels.gpu.discretize import discretize
from inn_kernels.gpu.discretize_adjoint import discretize_adjoint
from inn_kernels.gpu.foreach import AxisTaps, discretize_layers
from inn_kernels.gpu.foreach_adjoint import discretize_foreach_adjoint
from inn_kernels.gpu.launch import Launch
from inn_kernels.taps import Basis, Taps, taps_for
from sampler_cases import DEVICE, check, random, taps

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


def test_mixed_storage() -> None:
    nodes, along = network()
    nodes[2] = nodes[2].bfloat16()
    for x, sides, value in zip(nodes, along, discretize_layers(nodes, along, torch.float32)):
        check(value, plain(x, sides, torch.float32, torch.float32), plain(x, sides, torch.float64, torch.float64))


def test_float64() -> None:
    """Which the kernel does not store: each layer by its own operator."""
    nodes, along = network(torch.float64)
    along = [tuple(t and t._replace(weight=t.weight.double()) for t in sides) for sides in along]  # type: ignore[misc]
    for x, sides, value in zip(nodes, along, discretize_layers(nodes, along, torch.float64)):
        torch.testing.assert_close(value, plain(x, sides, torch.float64, torch.float64))


def adjoint(grads: list[Tensor], along: list[AxisTaps], dtype: torch.dtype) -> list[Tensor]:
    """The gradients of nodes, of layers with their taps."""
    kept = [side for sides in along for side in sides if side is not None]
    counted = iter(range(len(kept)))
    out, in_ = zip(*[[-1 if side is None else next(counted) for side in sides] for sides in along])
    sizes = [side.nodes for side in kept]
    return discretize_foreach_adjoint(grads, [t.start for t in kept], [t.weight for t in kept], sizes, out, in_, dtype)


def spread_back(grad: Tensor, along: AxisTaps, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
    for dim, side in enumerate(along):
        if side is not None:
            grad = reference.spread(grad, side.start, side.weight.to(wide), side.nodes, dim, wide)
    return grad.to(dtype)


SAMPLED = [n for n, (_, points, _) in enumerate(LAYERS) if any(points)]


def gradients(kind: str, dtype: torch.dtype) -> tuple[list[Tensor], list[AxisTaps]]:
    """Of the layers that are sampled, along taps of a kind: points, or cells of a few and of many nodes."""
    torch.manual_seed(0)
    grads, along = [], []
    for shape, points, last in (LAYERS[n] for n in SAMPLED):
        sides = [None if k is None else side_taps(kind, k, m) for m, k in zip(shape, points)]
        sizes = [m if side is None else len(side.start) for m, side in zip(shape, sides)]
        grads.append(random((*sizes, *shape[2:]), dtype, last))
        along.append((sides[0], sides[1] if len(sides) > 1 else None))
    return grads, along


def side_taps(kind: str, points: int, nodes: int) -> Taps:
    if kind in ("random", "clustered"):
        return taps(kind, points, nodes)
    fewer = max(points // (4 if kind == "wide cells" else 1), 1)
    return taps_for(fewer, nodes, Basis(kernel="bspline"), quadrature="cells", device=DEVICE)


@pytest.mark.parametrize("kind", ("random", "clustered", "cells", "wide cells"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_adjoint_against_float64(kind: str, dtype: torch.dtype) -> None:
    grads, along = gradients(kind, dtype)
    for x, sides, value in zip(grads, along, adjoint(grads, along, torch.float32)):
        check(
            value,
            spread_back(x, sides, torch.float32, torch.float32),
            spread_back(x, sides, torch.float64, torch.float64),
        )


def test_adjoint_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[object] = []
    run = Launch.__call__
    monkeypatch.setattr(Launch, "__call__", lambda self, *rest: (launches.append(self.kernel), run(self, *rest)))
    grads, along = gradients("cells", torch.bfloat16)
    values = adjoint(grads, along, torch.float32)
    assert len(launches) == 1
    for x, (out, in_), value in zip(grads, along, values):
        assert value.is_contiguous() == x.is_contiguous() and not value._is_view()
        if out is not None and in_ is not None:
            one = discretize_adjoint(x, *out[:2], *in_[:2], out.nodes, in_.nodes, torch.float32)
            torch.testing.assert_close(value, one, rtol=1e-6, atol=1e-6)


def test_adjoint_of_float64_and_of_nothing() -> None:
    grads, along = gradients("random", torch.float64)
    along = [tuple(t and t._replace(weight=t.weight.double()) for t in sides) for sides in along]  # type: ignore[misc]
    for x, sides, value in zip(grads, along, adjoint(grads, along, torch.float64)):
        torch.testing.assert_close(value, spread_back(x, sides, torch.float64, torch.float64))
    assert discretize_foreach_adjoint([], [], [], [], [], [], torch.float32) == []


def test_results_do_not_overlap() -> None:
    nodes, along = network()
    values = discretize_layers(nodes, along, torch.float32)
    spans = sorted((v.data_ptr(), v.data_ptr() + 4 * v.numel()) for v in values)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    kept = values[0].clone()
    values[1].fill_(7)
    assert torch.equal(values[0], kept)


@pytest.mark.parametrize("grad", (False, True))
def test_results_are_tensors_of_their_own(grad: bool) -> None:
    """Not views of one: writing to one does not invalidate what autograd saved of another."""
    nodes, along = network()
    with torch.set_grad_enabled(grad):
        values = discretize_layers(nodes, along, torch.float32)
    assert not any(v._is_view() for v in values)
    versions = [v._version for v in values]
    values[1].add_(1)
    assert [v._version for v in values] == [n + (at == 1) for at, n in enumerate(versions)]


def test_the_same_layers_elsewhere() -> None:
    """Layers of one shape, other memory and other taps between: each call reads its own."""
    nodes, along = network()
    other = [x.clone() * 2 for x in nodes]
    first, twice = discretize_layers(nodes, along, torch.float32), discretize_layers(other, along, torch.float32)
    again = discretize_layers(nodes, along, torch.float32)
    changed = [(o if o is None else o._replace(weight=o.weight * 3), i) for o, i in along]
    thrice = discretize_layers(nodes, changed, torch.float32)
    for a, b, c, d, (out, _) in zip(first, twice, again, thrice, along):
        assert torch.equal(a, c)
        torch.testing.assert_close(b, 2 * a)
        torch.testing.assert_close(d, a if out is None else 3 * a, rtol=1e-5, atol=1e-5)


def test_no_layers() -> None:
    assert discretize_layers([], [], torch.float32) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="tables are cached on a GPU only")
def test_table_is_cached() -> None:
    nodes, along = network()
    first = discretize_layers(nodes, along, torch.bfloat16)
    with unittest.mock.patch.object(foreach_table, "_on_host") as written:
        second = discretize_layers(nodes, along, torch.bfloat16)
    assert not written.called
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
