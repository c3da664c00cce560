"""Weights integrated over cells against dense integration, in every backend; gradients; nodes of a given weight.

On the GPU kernels: tests/gpu/test_gpu_taps.py.
"""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import common
import integral_nn as inn
from common import BOUNDARIES, DTYPES, Case, rand, relative_error
from inn_kernels.basis import KERNELS

CASES = (
    Case(7, 5, 3, 4),
    Case(17, 13, 17, 13),
    Case(1, 2, 2, 3),
    Case(3, 2, 11, 9),
    Case(40, 33, 9, 5),
    Case(24, 20, 18, 15),
)


def edges_of(kind, cells, seed=0):
    """K + 1 edges from 0 to 1: equal, random or most of them in a hundredth."""
    if kind == "equal":
        return common.equal_edges(cells)
    widths = torch.rand(cells, generator=common.generator(seed), dtype=torch.float64) + 0.2
    if kind == "clustered":
        widths[: max(cells - 1, 1)] *= 0.01
    ends = torch.nn.functional.pad(widths.cumsum(0), (1, 0))
    return ends / ends[-1]


def exact(shape, out_edges, in_edges, kernel, scale=1.0):
    """nodes -> S_out nodes S_in^T by dense integration, float64."""
    out, inner = (common.cell_matrix(e, m, kernel=kernel) for e, m in zip((out_edges, in_edges), shape))
    inner = inner * (in_edges.diff() * scale)[:, None]
    return lambda nodes: torch.einsum("ki,ij...,lj->kl...", out, nodes.double(), inner)


def tolerance(dtype):
    return {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_backend_integrates(case, kernel, backend):
    rule = {"quadrature": "cells", "kernel": kernel, "scale": 3.0}
    for kind in ("equal", "random", "clustered"):
        out, inner = edges_of(kind, case.K, 1), edges_of(kind, case.L, 2)
        truth = exact((case.M, case.N), out, inner, kernel, 3.0)
        for rest in ((), (3,)):
            nodes = rand(case.M, case.N, *rest)
            for dtype in DTYPES:
                given = nodes.to(dtype)
                found = inn.discretize(given, out, inner, backend=backend, **rule)
                assert found.dtype == dtype
                assert relative_error(found, truth(given)) < tolerance(dtype)
            if kind == "equal":
                whole = inn.discretize(nodes, case.K, case.L, backend=backend, **rule)
                assert relative_error(whole, truth(nodes)) < 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["equal", "random"])
def test_constant_activations_are_integrated_exactly(kernel, kind):
    """sum_l W[l] x[l] is the integral of F times a function that is x[l] on cell l: no quadrature error."""
    nodes, x, edges = rand(6, 16), rand(3, 7, seed=1), edges_of(kind, 7, 3)
    y = inn.integral_linear(x, nodes, None, None, edges, quadrature="cells", kernel=kernel)
    at, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(4))
    ends = torch.cat([torch.linspace(0, 1, 2 * 16 + 1, dtype=torch.float64), edges]).unique()
    half, middle = ends.diff() / 2, (ends[1:] + ends[:-1]) / 2
    places, q = (middle[:, None] + half[:, None] * at).flatten(), (half[:, None] * weight).flatten()
    function = common.sampling_matrix(places, 16, centred=True, kernel=kernel) @ nodes.T  # [places, 6]
    activation = x[:, (torch.searchsorted(edges, places) - 1).clamp(0, 6)]  # [3, places]
    torch.testing.assert_close(y, activation @ (q[:, None] * function), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", ["equal", "random", "clustered"])
def test_gradients(kernel, boundary, kind):
    nodes = rand(5, 6, 2).requires_grad_()
    edges = [(0.05 + 0.9 * edges_of(kind, n, n) ** 1.01).requires_grad_() for n in (4, 3)]

    def weight(nodes, out, inner):
        return inn.discretize(nodes, out, inner, quadrature="cells", kernel=kernel, boundary=boundary, scale=2.0)

    assert gradcheck(weight, (nodes, *edges), eps=1e-7, atol=1e-5, rtol=1e-3)
    assert gradgradcheck(weight, (nodes, *edges), eps=1e-7, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_adjoint_is_the_transpose(kernel, backend):
    for case in CASES:
        nodes = rand(case.M, case.N, 2).requires_grad_()
        rule = {"quadrature": "cells", "kernel": kernel, "scale": 5.0}
        grad = rand(case.K, case.L, 2, seed=1)
        y = inn.discretize(nodes, case.K, case.L, backend=backend, **rule)
        (d_nodes,) = torch.autograd.grad(y, nodes, grad)
        assert float((d_nodes * nodes.detach()).sum()) == pytest.approx(float((grad * y.detach()).sum()), rel=1e-11)


@pytest.mark.parametrize("dataflow", common.DATAFLOWS)
@pytest.mark.parametrize("kernel", ["bspline", "conservative"])
@pytest.mark.parametrize("quadrature", ["cells", "midpoint", "trapezoid"])
def test_layers_in_every_dataflow(quadrature, kernel, dataflow):
    nodes, bias = rand(12, 9, 3, 3, dtype=torch.float32), rand(12, dtype=torch.float32)
    x = rand(2, 7, 6, 6, seed=1, dtype=torch.float32)
    rule = {"quadrature": quadrature, "kernel": kernel, "scale": 9.0}
    y = inn.integral_conv2d(x, nodes, bias, 10, 7, padding=1, dataflow=dataflow, **rule)
    weight = inn.discretize(nodes.double(), 10, 7, **rule)
    truth = torch.nn.functional.conv2d(x.double(), weight, inn.discretize(bias.double(), 10, **rule), padding=1)
    assert relative_error(y, truth) < 2e-6


def test_continuous_kernels_and_more_points_than_nodes():
    nodes = rand(6, 5, 4)
    rule = {"quadrature": "cells", "kernel": "bspline"}
    found = inn.discretize(nodes, 15, 11, spatial_partitions=[7], **rule)
    truth = exact((6, 5), common.equal_edges(15), common.equal_edges(11), "bspline")(nodes)
    along = common.cell_matrix(common.equal_edges(7), 4, kernel="bspline") / 7
    torch.testing.assert_close(found, truth @ along.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_conservative_cells_at_full_size_are_the_nodes(dtype, backend):
    for shape in ((5, 7), (64, 48, 3, 3), (1, 1), (130, 3)):
        nodes = rand(*shape, dtype=dtype)
        rule = {"quadrature": "cells", "kernel": "conservative", "scale": float(shape[1]), "backend": backend}
        made = inn.discretize(nodes, shape[0], shape[1], **rule)
        assert torch.equal(made, nodes) and made.data_ptr() != nodes.data_ptr()


RULES = ("cells", "midpoint", "trapezoid", "simpson", "right", "gauss-legendre")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("quadrature", RULES)
def test_nodes_from_makes_full_size_exact(quadrature, boundary, kernel):
    if quadrature == "right":
        with pytest.raises(ValueError, match="undetermined"):  # the point at 0 has weight 0
            inn.nodes_from(rand(8, 8), 8, 8, quadrature=quadrature, kernel=kernel, boundary=boundary)
        return
    weight = rand(9, 12, 3, seed=4)
    rule = {"quadrature": quadrature, "kernel": kernel, "boundary": boundary, "scale": 12.0}
    nodes = inn.nodes_from(weight, 9, 12, **rule)
    # Round-off grows by the condition of the system: Gauss's points lie far from the nodes.
    limit = 1e-9 if quadrature == "gauss-legendre" else 1e-13
    assert relative_error(inn.discretize(nodes, 9, 12, **rule), weight) < limit
    vector = inn.nodes_from(weight[0, :, 0], 12, **rule)
    assert relative_error(inn.discretize(vector, 12, **rule), weight[0, :, 0]) < limit


def test_nodes_from_trained_edges_and_narrow_dtypes():
    edges = edges_of("random", 8, 5)
    rule = {"quadrature": "cells", "kernel": "bspline"}
    for dtype in DTYPES:
        weight = rand(8, 3, dtype=dtype)
        nodes = inn.nodes_from(weight, edges, **rule)
        assert nodes.dtype == dtype
        assert relative_error(inn.discretize(nodes, edges, **rule), weight) < 20 * torch.finfo(dtype).eps


def test_partitions_are_edges():
    with pytest.raises(ValueError, match="in_partition must hold the edges of cells, at least 2, got 1"):
        inn.discretize(torch.ones(4, 4), 3, torch.tensor([0.5]), quadrature="cells")
    widths = inn.quadrature_weights("cells", torch.tensor([0, 0.25, 1.0]))
    torch.testing.assert_close(widths, torch.tensor([0.25, 0.75]))
    with pytest.raises(ValueError, match="x must have 3 input points"):
        inn.integral_linear(torch.ones(1, 4), torch.ones(4, 4), None, None, torch.linspace(0, 1, 4), quadrature="cells")
