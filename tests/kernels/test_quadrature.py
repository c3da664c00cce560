"""Partitions and quadratures: exactness, measured orders of convergence, gradients; and the order of the basis."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import common
import integral_nn as inn
from common import QUADRATURES
from inn_kernels import quadrature as rules

EXACT = math.exp(1.3) * (2 / 1.3 - 2 / 1.3**2 + 2 / 1.3**3) - (1 / 1.3 + 2 / 1.3**3)


def function(x):
    """Nothing symmetric or periodic about it; its integral is EXACT."""
    return torch.exp(1.3 * x) * (1 + x**2)


COUNTS = {"odd": (17, 33, 65, 129), "even": (16, 32, 64, 128)}


def points(rule: str, n: int) -> torch.Tensor:
    return rules.partition_for(rule, n, dtype=torch.float64)


# Partitions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 97])
def test_partitions(n):
    k = torch.arange(n, dtype=torch.float64)
    torch.testing.assert_close(inn.uniform_partition(n, dtype=torch.float64), k / max(n - 1, 1), rtol=0, atol=0)
    torch.testing.assert_close(inn.midpoint_partition(n, dtype=torch.float64), (k + 0.5) / n, rtol=0, atol=0)
    zeros = inn.gauss_legendre_partition(n, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(
        np.polynomial.legendre.legval(zeros.numpy(), [0] * n + [1]), np.zeros(n), rtol=0, atol=1e-12
    )
    for make in (inn.uniform_partition, inn.midpoint_partition, inn.gauss_legendre_partition):
        assert make(n).dtype == torch.get_default_dtype()
        assert bool((make(n).diff() > 0).all()) and float(make(n).min()) >= 0 and float(make(n).max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_partition_from_deltas_is_the_formula(dtype):
    delta = common.rand(11, dtype=dtype)
    gaps = delta.double()[1:] ** 2
    expected = torch.cat([torch.zeros(1).double(), torch.cumsum(gaps / gaps.sum(), 0)])
    torch.testing.assert_close(
        inn.partition_from_deltas(delta).double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps
    )
    moved = delta.clone()
    moved[0] = 3.0
    assert torch.equal(inn.partition_from_deltas(moved), inn.partition_from_deltas(-delta))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [2, 3, 17, 128, 1001])
def test_partition_from_deltas_can_be_used_as_a_partition(n, dtype):
    for seed in range(20):
        delta = common.rand(n, seed=seed).sign() * (1 + common.rand(n, seed=seed + 99).abs())
        p = inn.partition_from_deltas(delta.to(dtype))
        assert p[0] == 0 and 1 - 64 * torch.finfo(dtype).eps <= p[-1] <= 1
        inn.quadrature_weights("trapezoid", p)


def test_partition_from_deltas_depends_on_ratios_alone():
    """Whatever the squares would do in the dtype."""
    expected = torch.tensor([0, 0.2, 1], dtype=torch.float64)
    for dtype, sizes in {
        torch.float64: (1e-320, 1e-200, 1e200, 8e307),
        torch.float32: (1e-44, 1e-30, 1e30, 1.6e38),
        torch.bfloat16: (1e-30, 1e30),
        torch.float16: (1e-4, 3e4),
    }.items():
        for size in sizes:
            delta = size * torch.tensor([0, 1, 2], dtype=dtype)
            torch.testing.assert_close(
                inn.partition_from_deltas(delta).double(), expected, rtol=0, atol=torch.finfo(dtype).eps
            )
    delta = torch.tensor([0, 1e30, 2e30, 1e30], requires_grad=True)
    weights = torch.tensor([3.0, 1.0, 4.0, 1.0])
    (inn.partition_from_deltas(delta) @ weights).backward()
    plain = (delta.detach().double() / 1e30).requires_grad_()
    (inn.partition_from_deltas(plain) @ weights.double()).backward()
    torch.testing.assert_close(delta.grad.double() * 1e30, plain.grad, rtol=1e-5, atol=1e-7)


def test_partition_from_deltas_is_correctly_rounded():
    delta = 1 + common.rand(1001).abs()
    for dtype in (torch.float32, torch.bfloat16):
        exact = inn.partition_from_deltas(delta.to(dtype).double())
        assert torch.equal(inn.partition_from_deltas(delta.to(dtype)), exact.to(dtype))


def test_partition_from_deltas_refuses():
    for delta in ([0.0, 0.0, 0.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="delta must not be zero"):
            inn.partition_from_deltas(torch.tensor(delta))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="delta must be finite"):
            inn.partition_from_deltas(torch.tensor([0.0, 1.0, bad]))
    for kind in (torch.complex64, torch.int64, torch.bool, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"delta must be a floating-point tensor.*{kind}"):
            inn.partition_from_deltas(torch.ones(3).to(kind))
    with pytest.raises(TypeError, match="delta must be a dense tensor"):
        inn.partition_from_deltas(torch.ones(3).to_sparse())
    with pytest.raises(TypeError, match="delta must be a floating-point tensor, got list"):
        inn.partition_from_deltas([0.0, 1.0])


@pytest.mark.parametrize("make", [inn.uniform_partition, inn.midpoint_partition, inn.gauss_legendre_partition])
def test_points_have_a_floating_point_dtype(make):
    for dtype in common.DTYPES:
        assert torch.equal(make(5, dtype=dtype), make(5, dtype=torch.float64).to(dtype))
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, "float32"):
        with pytest.raises(TypeError, match=f"dtype must be float64, .* got .*{dtype}"):
            make(5, dtype=dtype)


def test_partition_from_deltas_gradient():
    delta = (1 + common.rand(7).abs()).requires_grad_()
    assert gradcheck(inn.partition_from_deltas, (delta,)) and gradgradcheck(inn.partition_from_deltas, (delta,))
    equal = torch.ones(7, dtype=torch.float64, requires_grad=True)  # where training starts
    function(inn.partition_from_deltas(equal)).sum().backward()
    assert equal.grad[0] == 0 and float(equal.grad[1:].abs().min()) > 1e-3


# Exactness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 11, 12])
def test_formulas_on_any_partition(kind, n):
    p = common.partition(kind, n)
    h = [float(p[i + 1] - p[i]) for i in range(n - 1)]
    weights = {rule: rules.weights(rule, p).tolist() for rule in ("left", "right", "trapezoid", "midpoint")}
    assert weights["left"] == pytest.approx([*h, 1 - float(p[-1])], abs=1e-15)
    assert weights["right"] == pytest.approx([float(p[0]), *h], abs=1e-15)
    assert weights["trapezoid"] == pytest.approx([(x + y) / 2 for x, y in zip([0, *h], [*h, 0])], abs=1e-15)
    edges = [0, *((p[1:] + p[:-1]) / 2).tolist(), 1]
    assert weights["midpoint"] == pytest.approx([y - x for x, y in itertools.pairwise(edges)], abs=1e-15)


def test_simpson_on_uniform_points_is_the_textbook_rule():
    expected = torch.tensor([1, 4, 2, 4, 2, 4, 1]).double() / 18
    torch.testing.assert_close(rules.weights("simpson", points("simpson", 7)), expected, rtol=0, atol=1e-15)
    q = rules.weights("simpson", points("simpson", 8))
    torch.testing.assert_close(q, q.flip(0), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["uniform", "random", "clustered"])
@pytest.mark.parametrize("n", [3, 4, 5, 6, 13, 14])
def test_simpson_is_exact_on_quadratics(n, kind):
    p = common.partition(kind, n)
    q = rules.weights("simpson", p)
    low, high = float(p[0]), float(p[-1])
    for degree in range(3):
        exact = (high ** (degree + 1) - low ** (degree + 1)) / (degree + 1)
        assert float(q @ p**degree) == pytest.approx(exact, abs=1e-12)


def simpson_of(x):
    """The rule on three points or four, in exact arithmetic: the mean of the ways to pair intervals up."""
    h = [y - x for x, y in itertools.pairwise(x)]

    def parabola(a, b):
        return [a / 6 * (2 * a + 3 * b) / (a + b), a / 6 * (a + 3 * b) / b, -a / 6 * a * a / (b * (a + b))]

    def over(k, others):  # interval k by the parabola that takes in the next interval, or the one before
        q = [Fraction(0)] * len(x)
        for place, weight in zip(others, parabola(h[k], h[k + 1] if others[2] > k else h[k - 1])):
            q[place] += weight
        return q

    if len(x) == 3:
        parts = [over(0, (0, 1, 2)), over(1, (2, 1, 0))]
    else:
        middle = [(u + v) / 2 for u, v in zip(over(1, (1, 2, 3)), over(1, (2, 1, 0)))]
        parts = [over(0, (0, 1, 2)), middle, over(2, (3, 2, 1))]
    return [sum(column) for column in zip(*parts)]


@pytest.mark.parametrize("gap", [0.1, 1e-8, 1e-16, 1e-29])
def test_simpson_on_tiny_gaps(gap):
    for x in ([0, gap, 1], [0, gap, 2 * gap], [0, gap, 2 * gap, 1], [0, gap, 3 * gap, 7 * gap]):
        p = torch.tensor(x, dtype=torch.float64).requires_grad_()
        exact = torch.tensor([float(q) for q in simpson_of([Fraction(v) for v in p.tolist()])], dtype=torch.float64)
        q = rules.weights("simpson", p)
        torch.testing.assert_close(q.detach(), exact, rtol=1e-14, atol=1e-14 * float(exact.abs().max()))
        (grad,) = torch.autograd.grad(q[0], p)
        assert bool(grad.isfinite().all())


def test_simpson_refuses_gaps_that_overflow():
    tiny = torch.nextafter(torch.zeros(()).double(), torch.ones(()).double())
    for dtype in (torch.float64, torch.float32):
        unit = torch.nextafter(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))
        for p in ([0, unit, 2 * unit], [0, unit, 1], [0, 0.5, 0.5 + 0 * unit]):
            with pytest.raises(ValueError, match="partition must have gaps of at least 1e-30 for the rule 'simpson'"):
                rules.weights("simpson", torch.tensor(p, dtype=dtype))
    with pytest.raises(ValueError, match="partition must have gaps"):
        inn.quadrature_weights("simpson", torch.stack([0 * tiny, tiny, 1 - tiny]))
    for rule in ("left", "right", "trapezoid", "midpoint"):
        assert bool(inn.quadrature_weights(rule, torch.stack([0 * tiny, tiny, 1 - tiny])).isfinite().all())


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 64])
def test_gauss_legendre_is_exact_to_degree_2n_minus_1(n):
    p = points("gauss-legendre", n)
    q = rules.weights("gauss-legendre", p)
    for degree in range(2 * n):
        assert float(q @ p**degree) == pytest.approx(1 / (degree + 1), abs=1e-14)
    if n <= 8:  # and no further (beyond that, the first error is below round-off)
        assert abs(float(q @ p ** (2 * n)) - 1 / (2 * n + 1)) > 1e-12


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_gauss_legendre_on_other_points_is_the_interpolatory_rule(n):
    p = (points("gauss-legendre", n) * 0.9 + 0.03).requires_grad_()
    q = rules.weights("gauss-legendre", p)
    for degree in range(n):
        assert float((q @ p**degree).detach()) == pytest.approx(1 / (degree + 1), abs=1e-12)


def test_trainable_and_fixed_gauss_legendre_agree():
    p = points("gauss-legendre", 9)
    q = rules.weights("gauss-legendre", p)
    torch.testing.assert_close(
        rules.weights("gauss-legendre", p.clone().requires_grad_()).detach(), q, rtol=0, atol=1e-13
    )
    assert rules.weights("gauss-legendre", p.float()) == pytest.approx(q, abs=1e-6)
    beside = p + 1e-9 * torch.arange(9)  # not Legendre's points: their own rule, whether they are trained or not
    trained = rules.weights("gauss-legendre", beside.clone().requires_grad_()).detach()
    torch.testing.assert_close(rules.weights("gauss-legendre", beside), trained, rtol=0, atol=1e-14)


def test_gauss_legendre_refuses_points_it_cannot_serve():
    with pytest.raises(ValueError, match=r"partition.*gauss-legendre"):
        rules.weights("gauss-legendre", points("left", 64))


# Orders -----------------------------------------------------------------------------------------------------

ORDERS = {"left": 1, "right": 1, "trapezoid": 2, "midpoint": 2, "simpson": 4}


def measured_order(rule: str, partitions: list[torch.Tensor]) -> float:
    errors = [abs(float(rules.weights(rule, p) @ function(p)) - EXACT) for p in partitions]
    return common.order(errors, [1 / (p.shape[0] - (rule != "midpoint")) for p in partitions])


@pytest.mark.parametrize("parity", ["odd", "even"])
@pytest.mark.parametrize("rule", ORDERS)
def test_order_on_the_rules_own_points(rule, parity):
    assert measured_order(rule, [points(rule, n) for n in COUNTS[parity]]) == pytest.approx(ORDERS[rule], abs=0.1)


@pytest.mark.parametrize("parity", ["odd", "even"])
@pytest.mark.parametrize("rule", ORDERS)
def test_order_on_stretched_points(rule, parity):
    """Smoothly graded points: the orders hold off the uniform partition too (simpson keeps at least 3)."""
    partitions = [points(rule, n) * (points(rule, n) + 2) / 3 for n in COUNTS[parity]]
    assert measured_order(rule, partitions) > ORDERS[rule] - 0.15


def test_gauss_legendre_reaches_round_off():
    p = points("gauss-legendre", 12)
    assert float(rules.weights("gauss-legendre", p) @ function(p)) == pytest.approx(EXACT, abs=1e-14)


@pytest.mark.parametrize(
    "a, boundary, expected", [(-0.5, "keys", 3), (-0.75, "clamp", 1), (-0.75, "keys", 1), (-0.5, "clamp", 1)]
)
def test_order_of_the_basis(a, boundary, expected):
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    errors, counts = [], (33, 65, 129, 257)
    for nodes in counts:
        sampled = inn.discretize(function(inn.uniform_partition(nodes, dtype=torch.float64)), x, a=a, boundary=boundary)
        errors.append(float((sampled - function(x)).abs().max()))
    assert common.order(errors, [1 / (n - 1) for n in counts]) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("centred, boundary, expected", [(True, "keys", 3), (True, "clamp", 1)])
def test_order_of_the_basis_on_cell_centres(centred, boundary, expected):
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    errors, counts = [], (33, 65, 129, 257)
    for nodes in counts:
        values = function(inn.midpoint_partition(nodes, dtype=torch.float64))
        sampled = inn.discretize(values, x, quadrature="midpoint", a=-0.5, boundary=boundary)
        errors.append(float((sampled - function(x)).abs().max()))
    assert common.order(errors, [1 / n for n in counts]) == pytest.approx(expected, abs=0.15)


# Gradients, user's own rules --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 7])
@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("rule", QUADRATURES)
def test_weights_are_differentiable_twice(rule, kind, n):
    p = common.partition(kind, n).requires_grad_()
    if rule == "gauss-legendre":
        p = (points(rule, n) * 0.9 + 0.03).requires_grad_()
    assert gradcheck(lambda p: rules.weights(rule, p), (p,))
    assert gradgradcheck(lambda p: rules.weights(rule, p), (p,))


@pytest.mark.parametrize("rule", QUADRATURES)
def test_transforms(rule):
    batch = torch.stack([points(rule, 7) * share + 0.02 for share in (0.9, 0.93, 0.96)])
    batch[1] = points(rule, 7)  # gauss-legendre's own points: the tabled weights have no derivative

    def weights(p):
        return rules.weights(rule, p)

    torch.testing.assert_close(torch.func.vmap(weights)(batch), torch.stack([weights(p) for p in batch]))
    for p in batch:
        jacobian = torch.autograd.functional.jacobian(weights, p)
        torch.testing.assert_close(torch.func.jacrev(weights)(p), jacobian)
        torch.testing.assert_close(torch.func.jacfwd(weights)(p), jacobian)


def test_own_weights():
    p, q = common.partition("random", 5), common.rand(5)
    assert inn.quadrature_weights(q, p) is q
    assert torch.equal(inn.quadrature_weights(lambda x: x**2, p), p**2)
    for rule in ("simpson", lambda x: x**2):
        for dtype in common.DTYPES:
            exact = inn.quadrature_weights(rule, p.to(dtype).double())
            assert torch.equal(inn.quadrature_weights(rule, p.to(dtype)), exact.to(dtype))  # rounded once
    narrow = p.bfloat16().requires_grad_()
    inn.quadrature_weights("simpson", narrow).sum().backward()
    assert narrow.grad.dtype == torch.bfloat16


def test_own_weights_must_be_finite():
    p = common.partition("random", 5)
    for bad in (math.nan, math.inf, -math.inf):
        q = torch.tensor([0.1, 0.2, bad, 0.2, 0.1])
        for quadrature in (q, lambda p, q=q: q):
            with pytest.raises(ValueError, match="quadrature must have finite weights"):
                inn.quadrature_weights(quadrature, p)
            with pytest.raises(ValueError, match="quadrature must have finite weights"):
                inn.discretize(common.rand(4, 4), None, p, quadrature=quadrature)
            with pytest.raises(ValueError, match="quadrature must have finite weights"):
                inn.integrate(torch.exp, p, quadrature=quadrature)
