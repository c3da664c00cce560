"""Taps of cells: means and integrals of the weight function over cells, for every basis."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import common
from common import BOUNDARIES, DTYPES
from inn_kernels.basis import KERNELS, Basis
from inn_kernels.taps import make_cell_taps, make_taps, tap_class, taps_for

SIZES = [(1, 1), (1, 7), (2, 5), (3, 1), (3, 11), (4, 2), (5, 23), (41, 3), (32, 32), (32, 24), (32, 8), (37, 23)]
BASES = [Basis(kernel=kernel, boundary=boundary) for kernel in KERNELS for boundary in BOUNDARIES]
KINDS = ("equal", "random", "clustered", "inside")


def edges_of(kind, cells, seed=0):
    """K + 1 edges from 0 to 1: equal, random, or most in a hundredth; or random ones that leave room at the ends."""
    if kind == "equal":
        return common.equal_edges(cells)
    widths = torch.rand(cells + 2, generator=common.generator(seed), dtype=torch.float64) + 0.3
    if kind == "clustered":
        widths[1 : max(cells, 2)] *= 0.01
    if kind == "inside":
        ends = widths.cumsum(0)[:-1]
        return ends / widths.sum()
    ends = torch.nn.functional.pad(widths[:cells].cumsum(0), (1, 0))
    return ends / ends[-1]


def tiny_edges(at):
    """Edges with two cells one unit in the last place wide at `at`."""
    one = torch.tensor(at, dtype=torch.float64)
    two = torch.nextafter(one, torch.ones_like(one))
    return torch.stack(
        [torch.zeros_like(one), one, two, torch.nextafter(two, torch.ones_like(one)), torch.ones_like(one)]
    )


@pytest.mark.parametrize("nodes, cells", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("basis", BASES, ids=str)
def test_dense_matrix_is_the_integral(nodes, cells, kind, basis):
    edges = edges_of(kind, cells, nodes)
    start, weight, _ = make_cell_taps(edges, nodes, basis)
    dense = common.cell_matrix(edges, nodes, basis.a, basis.boundary, kernel=basis.kernel)
    torch.testing.assert_close(common.dense_taps(start, weight, nodes), dense, rtol=0, atol=2e-12)
    if kind == "equal":  # an int has them to the last bit
        start, weight, _ = make_cell_taps(cells, nodes, basis)
        torch.testing.assert_close(common.dense_taps(start, weight, nodes), dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nodes, cells", SIZES)
@pytest.mark.parametrize("basis", BASES, ids=str)
def test_what_kernels_rely_on(nodes, cells, basis):
    for edges in (*(edges_of(kind, cells) for kind in KINDS), cells):
        start, weight, size = make_cell_taps(edges, nodes, basis)
        taps = weight.shape[1]
        assert start.dtype == torch.int32 and start.shape == (cells,) and weight.shape[0] == cells and size == nodes
        assert int(start.min()) >= 0 and int(start.max()) <= max(0, nodes - taps)
        assert bool((start[1:] >= start[:-1]).all())
        assert bool((weight[start[:, None] + torch.arange(taps) >= nodes] == 0).all())
        assert taps == tap_class(taps)


@pytest.mark.parametrize("basis", BASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_sum_to_one(basis, kind):
    for nodes, cells in SIZES:
        for edges in (edges_of(kind, cells), cells):
            sums = make_cell_taps(edges, nodes, basis).weight.sum(1)
            torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-15 * max(1, nodes / cells / 4))


@pytest.mark.parametrize("basis", BASES, ids=str)
def test_a_constant_integrates_exactly(basis):
    for cells in (1, 3, 16, 40):
        for edges in (cells, edges_of("random", cells)):
            weight = taps_for(edges, 16, basis, quadrature="cells", weighted=True, dtype=torch.float64).weight
            assert float(weight.sum()) == pytest.approx(1, abs=2e-15)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["equal", "random", "inside"])
def test_a_linear_function_has_its_exact_means(kernel, kind):
    # Keys' a = -1/2 is the one cubic convolution that reproduces straight lines.
    nodes, basis = 48, Basis(-0.5, kernel=kernel)
    x = (torch.arange(nodes).double() + 0.5) / nodes
    edges = edges_of(kind, 9)
    start, weight, _ = make_cell_taps(edges, nodes, basis)
    found = common.dense_taps(start, weight, nodes) @ (3 * x - 1)
    inner = (edges[:-1] > 2 / nodes) & (edges[1:] < 1 - 2 / nodes)
    assert inner.sum() >= 4
    torch.testing.assert_close(found[inner], (1.5 * (edges[1:] + edges[:-1]) - 1)[inner], rtol=0, atol=1e-14)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 12, 63, 64, 1000, 4097])
@pytest.mark.parametrize("dtype", DTYPES)
def test_conservative_cells_at_full_size_are_the_identity(nodes, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    taps = taps_for(nodes, nodes, Basis(kernel="conservative"), quadrature="cells", dtype=wide)
    integrated = taps_for(
        nodes, nodes, Basis(kernel="conservative"), quadrature="cells", weighted=True, scale=float(nodes), dtype=wide
    )
    assert taps.identity and integrated.identity
    for start, weight, _ in (taps, integrated):
        node = start[:, None] + torch.arange(weight.shape[1])
        assert torch.equal(weight, (node == torch.arange(nodes)[:, None]).to(wide))
    assert not taps._replace(weight=2 * taps.weight).identity
    halved = taps_for(
        nodes, nodes, Basis(kernel="conservative"), quadrature="cells", weighted=True, scale=nodes / 2, dtype=wide
    )
    other = taps_for(nodes + 1, nodes, Basis(kernel="conservative"), quadrature="cells", dtype=wide)
    assert not halved.identity and not other.identity


def test_only_what_is_the_identity_is_told_to_be():
    for nodes, points, kernel, rule in itertools.product((5, 8), (5, 8), KERNELS, ("cells", "midpoint", "trapezoid")):
        basis = Basis(kernel=kernel)
        taps = taps_for(points, nodes, basis, quadrature=rule)
        dense = torch.zeros(points, nodes + taps.weight.shape[1])
        dense.scatter_(1, taps.start.long()[:, None] + torch.arange(taps.weight.shape[1]), taps.weight)
        is_identity = torch.equal(dense, torch.eye(points, dense.shape[1])) and points == nodes
        assert taps.identity == is_identity
        assert not make_taps(points, nodes, basis).identity  # nobody looked


@pytest.mark.parametrize("basis", BASES, ids=str)
@pytest.mark.parametrize("nodes", [1, 2, 3, 9])
def test_gradients_in_the_edges(basis, nodes):
    for kind in ("inside", "clustered"):
        edges = edges_of(kind, 6, 1)
        edges = (0.05 + 0.9 * edges).requires_grad_()

        def weights(edges):
            return make_cell_taps(edges, nodes, basis).weight

        assert gradcheck(weights, (edges,), eps=1e-7, atol=1e-5) and gradgradcheck(
            weights, (edges,), eps=1e-7, atol=1e-3
        )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("at", [0.3, 1 / 3, 0.5, 0.77])
@pytest.mark.parametrize("nodes", [7, 100, 1001])
def test_cells_one_unit_in_the_last_place_wide(kernel, at, nodes):
    """The mean over such a cell is the value there, its slope in the edges half the function's."""
    edges, basis = tiny_edges(at).requires_grad_(), Basis(kernel=kernel)
    start, weight, _ = make_cell_taps(edges, nodes, basis)
    sums = weight.sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-15 * max(1, nodes / 16))
    cell = common.dense_taps(start, weight.detach(), nodes)[1]
    value = common.sampling_matrix(edges[1:2].detach(), nodes, centred=True, kernel=kernel)[0]
    torch.testing.assert_close(cell, value, rtol=0, atol=1e-15 * nodes * 8)
    given = common.rand(4, nodes)
    dense = torch.zeros(4, nodes + weight.shape[1], dtype=torch.float64)
    dense = dense.scatter_add(1, start.long()[:, None] + torch.arange(weight.shape[1]), weight)[:, :nodes]
    (slope,) = torch.autograd.grad((given * dense).sum(), edges)
    assert bool(torch.isfinite(slope).all()) and float(slope.abs().max()) < 50 * nodes


@pytest.mark.parametrize("kernel", KERNELS)
def test_tensors_and_ints_agree(kernel):
    for nodes, cells in SIZES:
        for dtype in (torch.float64, torch.float32):
            start, weight, _ = make_cell_taps(common.equal_edges(cells).to(dtype), nodes, Basis(kernel=kernel))
            exact = make_cell_taps(cells, nodes, Basis(kernel=kernel))
            found, wanted = (common.dense_taps(s, w, nodes) for s, w in ((start, weight), exact[:2]))
            # A rounded edge moves the cells on both of its sides.
            torch.testing.assert_close(found, wanted, rtol=0, atol=8 * torch.finfo(dtype).eps * max(nodes, cells))


def test_few_classes_of_taps():
    assert [tap_class(n) for n in (1, 4, 5, 6, 7, 8, 9, 12, 13, 17, 25, 33)] == [
        4,
        4,
        6,
        6,
        8,
        8,
        12,
        12,
        16,
        24,
        32,
        48,
    ]
    drawn = {
        make_cell_taps(cells, 64, Basis(kernel=kernel)).weight.shape[1]
        for kernel in ("conservative", "bspline")
        for cells in range(16, 65)
    }
    assert drawn == {4, 6, 8}


@pytest.mark.parametrize("kernel", ["bspline", "conservative"])
@pytest.mark.parametrize("centred", [False, True])
def test_points_of_the_new_bases(kernel, centred):
    """Four taps a point, as the cubic convolution."""
    for nodes, points in SIZES:
        for boundary in BOUNDARIES:
            for given in (points, common.partition("random", points, nodes)):
                start, weight, _ = make_taps(given, nodes, Basis(boundary=boundary, kernel=kernel), centred=centred)
                places = given
                if isinstance(given, int):
                    k = torch.arange(points).double()
                    places = (k + 0.5) / points if centred else k / max(points - 1, 1)
                dense = common.sampling_matrix(places, nodes, boundary=boundary, centred=centred, kernel=kernel)
                torch.testing.assert_close(common.dense_taps(start, weight, nodes), dense, rtol=0, atol=1e-12)
                assert weight.shape[1] == 4
