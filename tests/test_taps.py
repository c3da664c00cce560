"""Taps: basis, boundary and quadrature folded into four nodes and four weights a point."""

import gc

import pytest
import torch

import common
from common import BOUNDARIES, PARTITIONS, QUADRATURES
from inn_kernels import taps
from inn_kernels.taps import Basis, make_taps, neighbours, taps_for

SIZES = [(1, 1), (1, 7), (2, 5), (3, 1), (3, 11), (4, 2), (5, 97), (101, 3), (64, 64), (97, 61)]  # nodes, points


@pytest.mark.parametrize("nodes, points", SIZES)
@pytest.mark.parametrize("kind", PARTITIONS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    "basis", [Basis(), Basis(-0.5, "keys"), Basis(-0.5), Basis(-0.75, "keys"), Basis(kernel="linear")]
)
def test_dense_matrix_is_the_definition(nodes, points, kind, centred, basis):
    p = common.partition(kind, points, seed=nodes)
    start, weight, _ = make_taps(p, nodes, basis, centred=centred)
    dense = common.sampling_matrix(p, nodes, basis.a, basis.boundary, centred=centred, kernel=basis.kernel)
    torch.testing.assert_close(common.dense_taps(start, weight, nodes), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nodes, points", SIZES)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_what_kernels_rely_on(nodes, points, centred, boundary):
    for kind in PARTITIONS:
        start, weight, size = make_taps(
            common.partition(kind, points), nodes, Basis(boundary=boundary), centred=centred
        )
        assert start.dtype == torch.int32 and start.shape == (points,) and weight.shape == (points, 4) and size == nodes
        assert int(start.min()) >= 0 and int(start.max()) <= max(0, nodes - 4)
        assert bool((start[1:] >= start[:-1]).all())
        outside = start[:, None] + torch.arange(4) >= nodes
        assert bool((weight[outside] == 0).all())


def test_uniform_points_on_nodes_start_alike_in_float32_and_float64():
    for nodes, points in [(4096, 4096), (4097, 1025), (97, 49), (3, 4097)]:
        exact = make_taps(common.partition("uniform", points), nodes).start
        rounded = make_taps(common.partition("uniform", points).float(), nodes).start
        assert torch.equal(exact, rounded)


@pytest.mark.parametrize(
    "kernel, dtype",
    [("cubic", torch.float64), ("cubic", torch.float32), ("linear", torch.float64), ("linear", torch.float32)],
)
def test_points_next_to_a_node(kernel, dtype):
    """A point an ulp away from a node has the weights of its own side, to that dtype's precision."""
    nodes = 1025
    at = torch.arange(1, nodes - 1, 97, dtype=torch.float64) / (nodes - 1)
    for p in (
        at.to(dtype),
        torch.nextafter(at.to(dtype), at.new_zeros(()).to(dtype)),
        torch.nextafter(at.to(dtype), at.new_ones(()).to(dtype)),
    ):
        start, weight, _ = make_taps(p, nodes, Basis(kernel=kernel))
        dense = common.sampling_matrix(p, nodes, kernel=kernel)
        slack = 16 * nodes * torch.finfo(dtype).eps
        torch.testing.assert_close(common.dense_taps(start, weight, nodes), dense, rtol=0, atol=slack)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 9])
def test_constants_are_exact(nodes, centred, boundary):
    for kind in PARTITIONS:
        weight = make_taps(common.partition(kind, 31), nodes, Basis(boundary=boundary), centred=centred).weight
        torch.testing.assert_close(weight.sum(1), torch.ones(31).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("a", [-0.75, -0.5, 0.0])
@pytest.mark.parametrize("nodes", [2, 5, 17])
def test_nodes_are_interpolated(nodes, a):
    start, weight, _ = make_taps(common.partition("uniform", nodes), nodes, Basis(a))
    torch.testing.assert_close(common.dense_taps(start, weight, nodes), torch.eye(nodes).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("quadrature", ["midpoint", "trapezoid"])
def test_as_many_points_as_nodes_are_exactly_on_them(quadrature):
    """Whatever round-off a position has, a full-size weight is its nodes bit for bit."""
    for nodes in (5, 7, 24, 48, 96, 100, 576, 1000, 2047):
        found = taps_for(nodes, nodes, quadrature=quadrature)
        assert torch.equal(common.dense_taps(*found).double(), torch.eye(nodes).double())


def test_points_on_a_node_keep_their_slope():
    points = torch.linspace(0, 1, 25, dtype=torch.float64).requires_grad_()
    wave = torch.linspace(0, 3, 25, dtype=torch.float64).sin()
    (slope,) = torch.autograd.grad((common.dense_taps(*make_taps(points, 25)) @ wave).sum(), points)
    h = 1e-6
    moved = [common.dense_taps(*make_taps(points.detach()[5:20] + d, 25)) @ wave for d in (h, -h)]
    # the second derivative jumps on nodes: differences err by some h M^2
    torch.testing.assert_close(slope[5:20], (moved[0] - moved[1]) / (2 * h), rtol=1e-4, atol=0)


def test_keys_is_exact_on_quadratics():
    p = common.partition("random", 41)
    for centred in (False, True):
        node = torch.linspace(0, 1, 9, dtype=torch.float64) if not centred else (torch.arange(9).double() + 0.5) / 9
        start, weight, _ = make_taps(p, 9, Basis(-0.5, "keys"), centred=centred)
        for degree in range(3):
            value = common.dense_taps(start, weight, 9) @ node**degree
            torch.testing.assert_close(value, p**degree, rtol=0, atol=1e-13)


def test_multiplier_and_dtype():
    p, factor = common.partition("random", 13), common.rand(13)
    plain, scaled = make_taps(p, 7), make_taps(p, 7, multiplier=factor, dtype=torch.float32)
    assert scaled.weight.dtype == torch.float32
    torch.testing.assert_close(scaled.weight, (plain.weight * factor[:, None]).float(), rtol=0, atol=0)


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_taps_for_folds_quadrature_and_scale(quadrature):
    found = taps_for(11, 7, quadrature=quadrature, weighted=True, scale=3.0, dtype=torch.float64)
    p = common.quadrature.partition_for(quadrature, 11, dtype=torch.float64)
    q = common.rules_weights(quadrature, p) * 3.0
    dense = common.sampling_matrix(p, 7, centred=quadrature == "midpoint") * q[:, None]
    torch.testing.assert_close(common.dense_taps(found.start, found.weight, 7), dense, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", PARTITIONS)
@pytest.mark.parametrize("nodes, points", SIZES)
def test_neighbours(nodes, points, kind):
    found = make_taps(common.partition(kind, points), nodes)
    bounds = neighbours(found)
    for i in range(nodes):
        touching = [k for k in range(points) if 0 <= i - int(found.start[k]) < 4]
        assert list(range(int(bounds[i, 0]), int(bounds[i, 1]))) == touching


# The cache --------------------------------------------------------------------------------------------------


def test_taps_of_fixed_partitions_are_kept():
    p = common.partition("random", 5)
    assert taps_for(p, 7).weight is taps_for(p, 7).weight
    assert taps_for(6, 7).weight is taps_for(6, 7).weight
    assert taps_for(p, 7).weight is not taps_for(p, 7, Basis(-0.5)).weight
    for other in ({"weighted": True}, {"dtype": torch.float64}, {"quadrature": "midpoint"}):
        assert taps_for(p, 7).weight is not taps_for(p, 7, **other).weight
    assert not torch.equal(taps_for(p, 7, weighted=True).weight, taps_for(p, 7, weighted=True, scale=2.0).weight)


def test_a_partition_written_in_place_gets_new_taps():
    p = common.partition("random", 5)
    before = taps_for(p, 7).weight
    p.mul_(0.5)
    torch.testing.assert_close(taps_for(p, 7, dtype=torch.float64).weight, make_taps(p, 7).weight, rtol=0, atol=0)
    assert not torch.equal(taps_for(p, 7).weight, before)


def test_trainable_partitions_are_not_kept():
    p = common.partition("random", 5).requires_grad_()
    first, second = taps_for(p, 7).weight, taps_for(p, 7).weight
    assert first is not second and first.requires_grad


def test_kept_taps_go_with_their_partition():
    gc.collect()
    before = len(taps._cache)
    for seed in range(20):
        taps_for(common.partition("random", 9, seed), 7)
    gc.collect()
    assert len(taps._cache) <= before


def test_taps_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        made = taps_for(23, 19)
    nodes = common.rand(19, dtype=torch.float32).requires_grad_()
    assert taps_for(23, 19).weight is made.weight
    (common.dense_taps(*taps_for(23, 19)) @ nodes).sum().backward()
    assert nodes.grad is not None


def test_a_fixed_partition_written_through_data_gets_new_taps():
    partition = torch.linspace(0, 1, 5)
    before = taps_for(partition, 9)
    assert taps_for(partition, 9) is before
    partition.data.copy_(torch.tensor([0.0, 0.1, 0.2, 0.3, 1.0]))
    after = taps_for(partition, 9)
    assert not torch.equal(after.weight, before.weight)
    assert torch.equal(after.weight, taps_for(partition.clone(), 9).weight)
