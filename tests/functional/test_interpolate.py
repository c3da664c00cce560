"""interpolate, spread and the gradient of their tap weights, along every dimension."""

import pytest
import torch

import common
from common import DTYPES, implementation, rand
from inn_kernels.taps import Basis, make_taps
from integral_nn.functional.interpolate import interpolate, spread

SIZES = [(1, 1), (1, 5), (2, 3), (3, 2), (4, 4), (5, 97), (101, 3), (67, 37)]  # nodes, points
SHAPES = [((), ()), ((5,), ()), ((), (3,)), ((2, 3), (4,)), ((3,), (2, 17)), ((0,), (2,))]  # before, after


def operands(nodes, points, before, after, dtype, kind="random"):
    """x over the nodes, x over the points, taps and the dimension."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    taps = make_taps(
        common.partition(kind, points), nodes, Basis(-0.5, "keys"), multiplier=1 + rand(points).abs(), dtype=wide
    )
    return (
        rand(*before, nodes, *after, dtype=dtype),
        rand(*before, points, *after, seed=1, dtype=dtype),
        taps,
        len(before),
    )


def rows(x, dim, dtype):
    """[..., K, ...] -> [K, everything else]."""
    return x.to(dtype).movedim(dim, 0).reshape(x.shape[dim], x.numel() // x.shape[dim])


def along(matrix, x, dim):
    return torch.tensordot(matrix, x, ([1], [dim])).movedim(0, dim)


@pytest.mark.parametrize("before, after", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nodes, points", SIZES)
def test_operations(nodes, points, before, after, dtype, backend):
    run = implementation(backend)
    for kind in common.PARTITIONS:
        x, y, taps, dim = operands(nodes, points, before, after, dtype, kind)
        matrix = common.dense_taps(taps.start, taps.weight.double(), nodes)
        for name, value, matrix_, operand in (
            ("interpolate", run.interpolate(x, taps.start, taps.weight, dim, dtype), matrix, x),
            ("spread", run.spread(y, taps.start, taps.weight, nodes, dim, dtype), matrix.t(), y),
        ):
            eager, truth = along(matrix_.to(dtype), operand, dim), along(matrix_, operand.double(), dim)
            common.assert_as_accurate(value, eager, truth, f"{name} on a {kind} partition")
        got = run.interpolate_tap_gradient(x, y, taps.start, 4, dim)
        index = taps.start.long()[:, None] + torch.arange(4)
        eager, truth = (
            torch.nn.functional.pad(rows(y, dim, t) @ rows(x, dim, t).t(), (0, 4)).gather(1, index)
            for t in (dtype, torch.float64)
        )
        common.assert_as_accurate(got.to(dtype), eager, truth, "interpolate_tap_gradient")


@pytest.mark.parametrize("nodes, points", [(7, 11), (101, 3), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_gradient(nodes, points, dtype, backend):
    def taps_of(partition):
        return make_taps(partition, nodes, dtype=dtype)

    def dense(partition):
        return common.sampling_matrix(partition, nodes)

    p = common.partition("random", points).to(dtype)
    common.assert_gradients_as_accurate(
        lambda x, p: interpolate(x, taps_of(p), 1, x.dtype, backend),
        lambda x, p: along(dense(p).to(x.dtype), x, 1),
        {"x": rand(3, nodes, 5, dtype=dtype), "p": p},
    )
    common.assert_gradients_as_accurate(
        lambda x, p: spread(x, taps_of(p), 1, x.dtype, backend),
        lambda x, p: along(dense(p).to(x.dtype).t(), x, 1),
        {"x": rand(3, points, 5, dtype=dtype), "p": p},
    )


def test_negative_dimensions(backend):
    run = implementation(backend)
    x, y, taps, dim = operands(7, 5, (2, 3), (4,), torch.float64)
    assert torch.equal(
        run.interpolate(x, taps.start, taps.weight, dim - 4, x.dtype),
        run.interpolate(x, taps.start, taps.weight, dim, x.dtype),
    )
    assert torch.equal(
        run.spread(y, taps.start, taps.weight, 7, dim - 4, y.dtype),
        run.spread(y, taps.start, taps.weight, 7, dim, y.dtype),
    )
    assert torch.equal(
        run.interpolate_tap_gradient(x, y, taps.start, 4, dim - 4), run.interpolate_tap_gradient(x, y, taps.start, 4, dim)
    )


def test_adjoint_identity(backend):
    run = implementation(backend)
    for nodes, points in SIZES:
        x, y, taps, dim = operands(nodes, points, (3,), (5,), torch.float64, "clustered")
        left = (run.interpolate(x, taps.start, taps.weight, dim, x.dtype) * y).sum()
        right = (x * run.spread(y, taps.start, taps.weight, nodes, dim, x.dtype)).sum()
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("before, after", [((3,), ()), ((2,), (3, 5)), ((2,), (3, 2, 5))], ids=str)
def test_layouts(before, after, dtype, backend):
    run = implementation(backend)
    x, y, taps, dim = operands(7, 5, before, after, dtype)
    up, down = (
        run.interpolate(x, taps.start, taps.weight, dim, dtype),
        run.spread(y, taps.start, taps.weight, 7, dim, dtype),
    )
    gradient = run.interpolate_tap_gradient(x, y, taps.start, 4, dim)
    for (name, x_), y_ in zip(common.layouts(x).items(), common.layouts(y).values()):
        assert torch.equal(run.interpolate(x_, taps.start, taps.weight, dim, dtype), up), name
        assert torch.equal(run.spread(y_, taps.start, taps.weight, 7, dim, dtype), down), name
        torch.testing.assert_close(
            run.interpolate_tap_gradient(x_, y_, taps.start, 4, dim), gradient, rtol=1e-5, atol=1e-5
        )
