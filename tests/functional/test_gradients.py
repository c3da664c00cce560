"""First and second derivatives in float64, by finite differences with PyTorch's default tolerances.

Second derivatives in a partition exist off the nodes alone (u is once continuously differentiable), so points are off
the nodes: open partitions, which a finite difference cannot push out of [0, 1], or uniform ones made of deltas, whose
ends stay at 0 and 1.
"""

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import common
import integral_nn as inn
from common import BOUNDARIES, DATAFLOWS, QUADRATURES, rand
from inn_kernels import quadrature as rules
from inn_kernels.taps import make_taps
from integral_nn.functional.discretize import Discretize, DiscretizeAdjoint, DiscretizeTapGradient
from integral_nn.functional.interpolate import Interpolate, InterpolateTapGradient, Spread, interpolate, spread

# Nodes [M, N] and points [K, L]: K - 1 and M - 1 have no common factor, so uniform points meet no interior node.
SIZES = {
    "one_node": common.Case(1, 1, 2, 3),
    "two_nodes": common.Case(2, 2, 3, 4),
    "three_nodes": common.Case(3, 3, 2, 4),
    "K_below_M": common.Case(6, 5, 3, 2),
    "K_above_M": common.Case(4, 3, 5, 4),
}
KINDS = ("uniform", "random", "clustered")


def points(kind, n, seed, quadrature="trapezoid"):
    """A leaf, and the function from it to a partition of n points."""
    if kind == "uniform":
        return torch.ones(n, dtype=torch.float64), inn.partition_from_deltas
    if quadrature == "gauss-legendre" and kind == "random":
        return rules.gauss_legendre_partition(n, dtype=torch.float64) * 0.93 + 0.031, lambda p: p
    return common.partition(kind, n, seed), lambda p: p


def leaf(t):
    return t.detach().clone().requires_grad_()


def check(function, *inputs):
    inputs = tuple(leaf(t) for t in inputs)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def check_linear(case, kind, dataflow, backend, quadrature="trapezoid", **options):
    p_out, to_out = points(kind, case.K, 1)
    p_in, to_in = points(kind, case.L, 2, quadrature)

    def run(x, nodes, bias, p_out, p_in):
        return inn.integral_linear(
            x,
            nodes,
            bias,
            to_out(p_out),
            to_in(p_in),
            quadrature=quadrature,
            dataflow=dataflow,
            backend=backend,
            **options,
        )

    check(run, rand(1, case.L), rand(case.M, case.N, seed=1), rand(case.M, seed=2), p_out, p_in)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_every_quadrature(quadrature, boundary, dataflow, backend):
    check_linear(SIZES["three_nodes"], "random", dataflow, backend, quadrature, boundary=boundary, scale=2.0)


@pytest.mark.parametrize("kind", ["uniform", "clustered"])
@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_every_quadrature_on_every_partition(quadrature, kind, backend):
    case = SIZES["three_nodes"]._replace(
        L=4 if kind == "uniform" else 3
    )  # 4 clustered points have no gauss-legendre rule
    check_linear(case, kind, "materialize", backend, quadrature)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size(size, kind, boundary, dataflow, backend):
    check_linear(SIZES[size], kind, dataflow, backend, boundary=boundary, a=-0.5)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_own_quadrature(dataflow, backend):
    case = SIZES["K_above_M"]
    p_out, p_in = common.partition("random", case.K), common.partition("clustered", case.L)
    x, nodes, q = rand(2, case.L), rand(case.M, case.N), rand(case.L, seed=3)
    check(
        lambda x, nodes, p, q: inn.integral_linear(
            x, nodes, None, p_out, p, quadrature=q, dataflow=dataflow, backend=backend
        ),
        x,
        nodes,
        p_in,
        q,
    )

    def with_callable(p, c):
        own = {"quadrature": lambda z: c[0] + c[1] * z**2, "dataflow": dataflow, "backend": backend}
        return inn.integral_linear(x, nodes, None, p_out, p, **own)

    check(with_callable, p_in, rand(2))


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_linear_with_taps(dataflow, backend):
    p_out, p_in = common.partition("random", 4), common.partition("random", 3, 1)
    check(
        functools.partial(inn.integral_linear, dataflow=dataflow, backend=backend),
        rand(2, 6), rand(3, 4, 2), rand(3), p_out, p_in,
    )  # fmt: skip


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv(rank, dataflow, backend):
    run = {1: inn.integral_conv1d, 2: inn.integral_conv2d, 3: inn.integral_conv3d}[rank]
    p_out, p_in = common.partition("random", 2), common.partition("clustered", 3)
    check(
        functools.partial(run, stride=2, padding=1, dataflow=dataflow, backend=backend),
        rand(1, 3, *[2] * rank), rand(3, 2, *[2, 1, 1][:rank]), rand(3), p_out, p_in,
    )  # fmt: skip


def test_depthwise_and_spatial(backend):
    check(
        lambda x, nodes, bias, p: inn.integral_conv1d(x, nodes, bias, p, groups=3, backend=backend),
        rand(1, 3, 3), rand(4, 1, 2), rand(4), common.partition("random", 3),
    )  # fmt: skip
    check(
        lambda nodes, p, s: inn.discretize(nodes, None, p, spatial_partitions=[s], backend=backend),
        rand(2, 3, 3), common.partition("random", 2), common.partition("random", 4),
    )  # fmt: skip


@pytest.mark.parametrize("continuous", ["out", "in", "both"])
def test_discretize(continuous, backend):
    p_out, p_in = common.partition("random", 3, 1), common.partition("clustered", 4, 2)
    chosen = {"out": (p_out, None), "in": (None, p_in), "both": (p_out, p_in)}[continuous]

    def run(nodes, *given):
        given = list(given)
        return inn.discretize(nodes, *(None if p is None else given.pop(0) for p in chosen), backend=backend)

    check(run, rand(5, 3, 2), *(p for p in chosen if p is not None))


def test_bias_alone(backend):
    check(lambda nodes, p: inn.discretize(nodes, p, backend=backend), rand(5), common.partition("random", 3))


def test_some_inputs_need_no_gradient(backend):
    """Every subset of inputs that want a gradient gets the gradients it would get among all."""
    case = SIZES["K_above_M"]
    inputs = {
        "x": rand(2, case.L),
        "nodes": rand(case.M, case.N),
        "bias": rand(case.M),
        "out_partition": common.partition("random", case.K),
        "in_partition": common.partition("random", case.L),
    }
    for dataflow in DATAFLOWS:
        run = functools.partial(inn.integral_linear, dataflow=dataflow, backend=backend)
        every = common.gradients(run, inputs)
        for mask in range(1, 32):
            wanted = {name: z for i, (name, z) in enumerate(inputs.items()) if mask >> i & 1}
            fixed = {name: z for name, z in inputs.items() if name not in wanted}
            some = common.gradients(functools.partial(run, **fixed), wanted)
            for name, value in some.items():
                torch.testing.assert_close(
                    value, every[name], rtol=0, atol=1e-13, msg=lambda m, at=(dataflow, name, mask): f"{at}: {m}"
                )


def test_gradient_penalty(backend):
    """A loss on a gradient: second derivatives through the public call, against the definition."""
    x, p = rand(3, 6), common.partition("random", 6)

    def penalty(run, nodes, points):
        nodes, points = leaf(nodes), leaf(points)
        z = leaf(x)
        (dx,) = torch.autograd.grad(run(z, nodes, points).pow(3).sum(), z, create_graph=True)
        return torch.autograd.grad(dx.pow(2).sum(), (nodes, points))

    ours = penalty(
        lambda x, nodes, p: inn.integral_linear(x, nodes, None, None, p, dataflow="factored", backend=backend),
        rand(4, 5),
        p,
    )
    eager = penalty(lambda x, nodes, p: x @ common.eager_discretize(nodes, None, p).t(), rand(4, 5), p)
    for got, wanted in zip(ours, eager):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


# The autograd Functions themselves, on free tap weights -----------------------------------------------------


def test_functions():
    out_taps, in_taps = make_taps(common.partition("random", 3), 5), make_taps(common.partition("clustered", 4), 3)
    starts = out_taps.start, in_taps.start
    f64 = torch.float64
    u, v = out_taps.weight, in_taps.weight
    u, v = u * (u != 0), torch.where(torch.arange(4) < 3, v + 0.1 * rand(4, 4), 0.0)  # the fourth tap is beyond 3 nodes
    nodes, grad = rand(5, 3, 2), rand(3, 4, 2, seed=1)
    keep = (torch.arange(4) < 3).double()  # ... so its weight is no input
    check(lambda nodes, u, v: Discretize.apply(nodes, starts[0], u, starts[1], v * keep, f64), nodes, u, v)
    check(lambda grad, u, v: DiscretizeAdjoint.apply(grad, starts[0], u, starts[1], v * keep, 5, 3, f64), grad, u, v)
    for need in ((True, True), (True, False), (False, True)):
        wanted = [i for i in range(2) if need[i]]
        check(
            lambda nodes, grad, u, v, need=need, wanted=wanted: [
                DiscretizeTapGradient.apply(nodes, grad, starts[0], u, starts[1], v * keep, *need)[i] for i in wanted
            ],
            nodes, grad, u, v,
        )  # fmt: skip
    x, y = rand(2, 5, 2), rand(2, 3, 2)
    check(lambda x, u: Interpolate.apply(x, starts[0], u, 1, f64), x, u)
    check(lambda y, u: Spread.apply(y, starts[0], u, 5, 1, f64), y, u)
    check(lambda x, y: InterpolateTapGradient.apply(x, y, starts[0], 4, 1), x, y)


def test_third_derivatives(backend):
    """Backward passes are made of the same operations, so there is no last order."""
    nodes, p = leaf(rand(5, 4)), leaf(common.partition("random", 3))
    value = inn.discretize(nodes, p, common.partition("random", 3), backend=backend).pow(4).sum()
    expected = common.eager_discretize(nodes, p, common.partition("random", 3)).pow(4).sum()
    for wanted in (nodes, p, p):
        value, expected = (torch.autograd.grad(z, wanted, create_graph=True)[0].pow(2).sum() for z in (value, expected))
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


def test_interpolate_and_spread_of_taps_with_gradient(backend):
    p = common.partition("random", 3)
    for function, size in ((interpolate, 5), (spread, 3)):
        check(lambda x, p, function=function: function(x, make_taps(p, 5), 1, x.dtype, backend), rand(2, size, 2), p)
