"""Taps: basis, boundary and quadrature folded into four nodes and four weights a point."""

from fractions import Fraction

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

import common
import integral_nn as inn
from common import BOUNDARIES, PARTITIONS, QUADRATURES
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


# Positions --------------------------------------------------------------------------------------------------


def exact_distances(points, nodes, centred, start):
    """Distances [K, 4] of points from the four nodes that taps name, each the float64 next to the exact number."""
    rows = []
    for x, first in zip(points, start.tolist()):
        s = x * nodes - Fraction(1, 2) if centred else x * (nodes - 1)
        rows.append([float(s - (first + t)) for t in range(4)])
    return torch.tensor(rows, dtype=torch.float64)


def slope_function(distance, a=-0.75):
    """u' of Eq. 5."""
    d = distance.abs()
    slope = torch.where(d <= 1, 3 * (a + 2) * d**2 - 2 * (a + 3) * d, 3 * a * d**2 - 10 * a * d + 8 * a)
    return torch.where(d < 2, slope, 0.0) * distance.sign()


@pytest.mark.parametrize("dtype", common.DTYPES)
@pytest.mark.parametrize("nodes", [9, 97, 4096, 1_000_000])
@pytest.mark.parametrize("centred", [False, True])
def test_points_next_to_nodes_have_the_weights_and_slopes_of_the_formula(nodes, centred, dtype):
    node = torch.linspace(2, nodes - 3, 25, dtype=torch.float64).round()
    at = (((node + 0.5) / nodes) if centred else node / (nodes - 1)).to(dtype)
    zero, one = at.new_zeros(()), at.new_ones(())
    for points in (at, torch.nextafter(at, zero), torch.nextafter(at, one)):
        points = points.unique().requires_grad_()
        start, weight, _ = make_taps(points, nodes, centred=centred)
        distance = exact_distances([Fraction(x) for x in points.tolist()], nodes, centred, start)
        inside = ((start > 0) & (start < nodes - 4)).nonzero().flatten()  # no boundary is folded in
        round_off = nodes * 2.0**-50 + 1e-15
        expected = common.kernel_function(distance)
        torch.testing.assert_close(weight.detach()[inside], expected[inside], rtol=0, atol=round_off)
        for t in range(4):
            (slope,) = torch.autograd.grad(weight[inside, t].sum(), points, retain_graph=True)
            assert slope.dtype == dtype
            expected = slope_function(distance[:, t]) * (nodes if centred else nodes - 1)
            atol = nodes * (4 * round_off + 2 * torch.finfo(dtype).eps * (dtype != torch.float64))
            if dtype != torch.float16 or nodes < 10_000:  # beyond that the slope is infinite in float16
                torch.testing.assert_close(slope.double()[inside], expected[inside], rtol=0, atol=atol)


@pytest.mark.parametrize("nodes, points", [*SIZES, (4096, 3000), (3000, 4096), (1025, 4097), (1_000_003, 1_013)])
@pytest.mark.parametrize("centred", [False, True])
def test_an_int_is_uniform_points_in_exact_arithmetic(nodes, points, centred):
    start, weight, _ = make_taps(points, nodes, centred=centred)
    k = range(points)
    exact = [Fraction(2 * i + 1, 2 * points) if centred else Fraction(i, max(points - 1, 1)) for i in k]
    distance = exact_distances(exact, nodes, centred, start)
    inside = (start > 0) & (start < nodes - 4)
    torch.testing.assert_close(weight[inside], common.kernel_function(distance)[inside], rtol=0, atol=4e-15)
    rule = common.quadrature.midpoint_partition if centred else common.quadrature.uniform_partition
    other = make_taps(rule(points, dtype=torch.float64), nodes, centred=centred)
    assert torch.equal(start, other.start)
    torch.testing.assert_close(weight, other.weight, rtol=0, atol=1e-15 + nodes * 2.0**-51)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 7, 96, 1000])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("a, boundary", [(-0.75, "clamp"), (-0.5, "keys"), (-0.61, "clamp"), (0.3, "keys")])
def test_full_size_is_the_identity_bit_for_bit(nodes, centred, a, boundary):
    start, weight, _ = make_taps(nodes, nodes, Basis(a, boundary), centred=centred)
    assert torch.equal(common.dense_taps(start, weight, nodes), torch.eye(nodes).double())
    rule = common.quadrature.midpoint_partition if centred else common.quadrature.uniform_partition
    start, weight, _ = make_taps(rule(nodes, dtype=torch.float64), nodes, Basis(a, boundary), centred=centred)
    torch.testing.assert_close(
        common.dense_taps(start, weight, nodes), torch.eye(nodes).double(), rtol=0, atol=2.0**-50
    )


@pytest.mark.parametrize("centred", [False, True])
def test_sizes_may_be_symbols(centred):
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def run(x, y):
        return make_taps(x.shape[0], y.shape[0], centred=centred)[:2]

    compiled = []
    for points, nodes in ((11, 13), (13, 11), (25, 49), (96, 96)):
        start, weight = run(torch.empty(points), torch.empty(nodes))
        expected = make_taps(points, nodes, centred=centred)
        assert torch.equal(start, expected.start)
        torch.testing.assert_close(weight, expected.weight, rtol=0, atol=1e-15)
        compiled.append(counter.frame_count)
    assert compiled[-1] == compiled[0]


# Derivatives ------------------------------------------------------------------------------------------------

BASES = [Basis(), Basis(-0.5, "keys"), Basis(0.3)]


def twice_differentiable(points, nodes, basis, centred, **tolerance):
    points = points.clone().requires_grad_()

    def dense(p):
        return common.dense_taps(*make_taps(p, nodes, basis, centred=centred))

    assert gradcheck(dense, (points,), **tolerance) and gradgradcheck(dense, (points,), **tolerance)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("nodes", [1, 2, 3, 9])
def test_gradients_left_and_right_of_nodes(nodes, centred, basis):
    node = (torch.arange(nodes).double() + 0.5) / nodes if centred else torch.arange(nodes).double() / max(nodes - 1, 1)
    for side in (-1e-5, 1e-5):
        points = node + side
        twice_differentiable(points[(points > 0) & (points < 1)], nodes, basis, centred)
    if not centred:  # the ends themselves: the pieces of the first and of the last cell go on
        twice_differentiable(torch.tensor([0.0, 1.0]).double(), nodes, basis, centred)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("centred", [False, True])
def test_gradients_at_nodes(centred, basis):
    nodes = 9
    points = (torch.arange(9).double() + 0.5) / nodes if centred else torch.arange(9).double() / (nodes - 1)
    points.requires_grad_()

    def dense(p):
        return common.dense_taps(*make_taps(p, nodes, basis, centred=centred))

    assert gradcheck(dense, (points,), eps=1e-7, atol=1e-4)  # the second derivative jumps: differences err by it
    beside = (
        points.detach().clone()
    )  # the second derivative at a node is that of the cell to its right, at 1 to its left
    beside += 1e-12 * torch.where(beside < 1, 1, -1)
    second = []
    for p in (points, beside.requires_grad_()):
        values = dense(p) @ common.rand(nodes)
        (slope,) = torch.autograd.grad(values.sum(), p, create_graph=True)
        second.append(torch.autograd.grad(slope.sum(), p)[0])
    torch.testing.assert_close(*second, rtol=1e-8, atol=1e-8 * nodes**2)


@pytest.mark.parametrize("basis", BASES)
def test_gradients_of_clustered_points_and_of_gaps_of_one_ulp(basis):
    twice_differentiable(common.partition("clustered", 17), 9, basis, False)
    points = [torch.tensor([0.19, 0.44, 0.81], dtype=torch.float64)]
    for _ in range(3):
        points.append(torch.nextafter(points[-1], torch.ones(3).double()))
    twice_differentiable(torch.cat(points).sort().values, 9, basis, False)


# Dtypes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*QUADRATURES[:-1], "callable"])
@pytest.mark.parametrize("dtype", common.DTYPES)
def test_everything_after_the_points_is_float64(dtype, rule):
    points = common.partition("random", 13).to(dtype)
    quadrature = (lambda p: p.cos()) if rule == "callable" else rule
    for p in (points, points.clone().requires_grad_()):
        found = taps_for(p, 9, quadrature=quadrature, weighted=True, scale=3.0, dtype=torch.float64)
        exact = taps_for(points.double(), 9, quadrature=quadrature, weighted=True, scale=3.0, dtype=torch.float64)
        assert torch.equal(found.weight.detach(), exact.weight)
    (grad,) = torch.autograd.grad(found.weight.sum(), p)
    assert grad.dtype == dtype


def test_a_callable_quadrature_gets_float64_points():
    seen = []
    quadrature = lambda p: seen.append(p.dtype) or torch.ones_like(p)  # noqa: E731
    taps_for(torch.tensor([0.25, 0.5]).bfloat16(), 9, quadrature=quadrature, weighted=True)
    inn.integrate(torch.exp, torch.tensor([0.25, 0.5]).bfloat16(), quadrature=quadrature)
    inn.quadrature_weights(quadrature, torch.tensor([0.25, 0.5]).bfloat16())
    assert seen == [torch.float64] * 3


def test_float32_nodes_on_a_bfloat16_partition():
    nodes, points = common.rand(40, 30, dtype=torch.float32), (torch.arange(19) / 32 + 0.2).bfloat16()
    expected = common.eager_discretize(nodes, points, points, quadrature="simpson")
    found = inn.discretize(nodes, points, points, quadrature="simpson")
    assert common.relative_error(found, expected) < 1e-6


# Facts ------------------------------------------------------------------------------------------------------


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


# Refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, words",
    [
        (lambda p: p.to_sparse(), "dense tensor, got layout torch.sparse_coo"),
        (lambda p: p.to(torch.float8_e4m3fn), "floating-point tensor .*float8_e4m3fn"),
        (lambda p: p.cfloat(), "floating-point tensor .*complex64"),
    ],
)
def test_tensors_that_cannot_be_computed_with(kind, words):
    p = torch.linspace(0.25, 1, 5)
    with pytest.raises(TypeError, match=f"^points must be a {words}"):
        taps_for(kind(p), 7, name="points")
    with pytest.raises(TypeError, match=f"^quadrature must be a {words}"):
        taps_for(p, 7, quadrature=kind(p), weighted=True)
    with pytest.raises(TypeError, match=f"^quadrature's weights must be a {words}"):
        taps_for(p, 7, quadrature=lambda p: kind(p.float()), weighted=True)
