"""Multiple integrals of any function."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import common
import integral_nn as inn
from common import QUADRATURES


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_one_variable_is_the_weighted_sum(quadrature):
    p = common.quadrature.partition_for(quadrature, 9, dtype=torch.float64)
    expected = common.rules_weights(quadrature, p) @ torch.exp(p)
    for partition in (9, p, [9], (p,)):
        torch.testing.assert_close(
            inn.integrate(torch.exp, partition, quadrature=quadrature), expected, rtol=0, atol=1e-15
        )


def test_gauss_legendre_in_three_variables():
    value = inn.integrate(lambda x, y, z: x**2 * y**3 * torch.exp(z), [2, 2, 8], quadrature="gauss-legendre")
    assert float(value) == pytest.approx(1 / 3 * 1 / 4 * (math.e - 1), abs=1e-14)


def test_a_rule_for_each_variable():
    value = inn.integrate(lambda x, y: x**2 * y, [3, 2], quadrature=["simpson", "trapezoid"])
    assert float(value) == pytest.approx(1 / 6, abs=1e-15)
    q = torch.tensor([0.25, 0.75], dtype=torch.float64)
    value = inn.integrate(
        lambda x, y: x + 0 * y, [common.partition("uniform", 2), 4], quadrature=[q, lambda p: torch.full_like(p, 1 / 4)]
    )
    assert float(value) == pytest.approx(0.75, abs=1e-15)


def test_values_may_have_more_dimensions_and_broadcast():
    scale = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    value = inn.integrate(lambda x, y: (x * y)[..., None, None] * scale, [5, 6])
    torch.testing.assert_close(value, scale / 4, rtol=0, atol=1e-14)
    assert float(inn.integrate(lambda x, y: x, [5, 6])) == pytest.approx(0.5, abs=1e-15)  # constant in y


@pytest.mark.parametrize(
    "rule, expected", [("left", 1), ("right", 1), ("trapezoid", 2), ("midpoint", 2), ("simpson", 4)]
)
def test_order_in_two_variables(rule, expected):
    exact = (math.e - 1) * math.sin(2) / 2
    counts = (17, 33, 65)
    errors = [
        abs(float(inn.integrate(lambda x, y: torch.exp(x) * torch.cos(2 * y), [n, n], quadrature=rule)) - exact)
        for n in counts
    ]
    assert common.order(errors, [1 / (n - (rule != "midpoint")) for n in counts]) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("quadrature", ["trapezoid", "midpoint", "simpson"])
def test_gradients(quadrature):
    c, p = common.rand(3).requires_grad_(), common.partition("random", 4).requires_grad_()
    fixed = common.partition("clustered", 5)

    def run(c, p):
        return inn.integrate(
            lambda x, y: c[0] * x**2 + torch.sin(c[1] * x * y) + c[2], [p, fixed], quadrature=quadrature
        )

    assert gradcheck(run, (c, p)) and gradgradcheck(run, (c, p))


def test_dtype_follows_the_wider_of_points_and_values():
    p = inn.uniform_partition(5, dtype=torch.float32)
    assert inn.integrate(torch.exp, p).dtype == torch.float32
    assert inn.integrate(lambda x: torch.exp(x).double(), p).dtype == torch.float64
    assert inn.integrate(lambda x: x.bfloat16(), p).dtype == torch.float32


def test_weights_are_not_rounded_to_the_points():
    p = (torch.arange(19) / 32 + 0.2).bfloat16()
    for rule in ("simpson", lambda x: x.cos()):
        exact = inn.quadrature_weights(rule, p.double()) @ torch.exp(p.double())
        value = inn.integrate(lambda x: torch.exp(x.float()), p, quadrature=rule)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


def test_a_tensor_of_weights_widens_the_result():
    p, q = torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert inn.integrate(torch.exp, p, quadrature=q).dtype == torch.float64
    assert inn.integrate(torch.exp, p.double(), quadrature=q.float()).dtype == torch.float64


@pytest.mark.parametrize(
    "arguments, options, error, words",
    [
        ((torch.exp, None), {}, TypeError, "partitions must be .* got NoneType"),
        ((torch.exp, 5.0), {}, TypeError, "partitions must be .* got float 5.0"),
        ((torch.exp, "uniform"), {}, TypeError, "partitions must be .* got str"),
        ((torch.exp, {4: 5}), {}, TypeError, "partitions must be .* got dict"),
        ((torch.exp, iter([4])), {}, TypeError, "partitions must be .* got list_iterator"),
        ((torch.exp, True), {}, TypeError, r"partitions\[0\] must be .* got bool"),
        ((torch.exp, [5, None]), {}, TypeError, r"partitions\[1\] must be .* int, got None"),
        ((torch.exp, torch.rand(5).to_sparse()), {}, TypeError, r"partitions\[0\] must be a dense tensor"),
        ((torch.exp, []), {}, ValueError, "partitions must name at least one variable"),
        ((torch.exp, 5), {"quadrature": None}, TypeError, "quadrature must be .* got NoneType"),
        ((torch.exp, 5), {"quadrature": 3}, TypeError, "quadrature must be .* got int 3"),
        ((torch.exp, 5), {"quadrature": {"left"}}, TypeError, "quadrature must be .* got set"),
        ((torch.exp, 5), {"quadrature": "gauss"}, ValueError, "^quadrature must be one of"),
        ((torch.add, [5, 5]), {"quadrature": ["left", None]}, TypeError, r"quadrature\[1\] must be .* got NoneType"),
        ((None, 5), {}, TypeError, "function must be callable, got NoneType"),
        ((lambda x: x.tolist(), 5), {}, TypeError, "function must return a tensor, got list"),
        ((lambda x: x.to_sparse(), 5), {}, TypeError, "function must return a dense tensor"),
        ((lambda x: x.to(torch.float8_e4m3fn), 5), {}, TypeError, "function must return values .*float8_e4m3fn"),
        ((lambda x: x.to("meta"), 5), {}, ValueError, "function must return values on .* cpu, got meta"),
        ((lambda x: x[:3], 5), {}, ValueError, r"function must return values of shape \[5\]"),
    ],
)
def test_bad_arguments(arguments, options, error, words):
    with pytest.raises(error, match=words):
        inn.integrate(*arguments, **options)


def test_transforms():
    p = common.partition("random", 5)

    def value(p):
        return inn.integrate(torch.exp, p, quadrature="simpson")

    leaf = p.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(value)(p), expected)
    batch = torch.stack([p, p / 2])
    torch.testing.assert_close(torch.func.vmap(value)(batch), torch.stack([value(p), value(p / 2)]))
