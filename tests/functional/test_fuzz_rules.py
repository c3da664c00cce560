"""Random partitions, quadratures and integrals against their formulas in float64, as in `test_fuzz`."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_fuzz import results, run
from torch import Tensor

import common
import fuzzing
import integral_nn as inn
import oracle
import programs
from common import DTYPES, QUADRATURES
from programs import Call

GRAD = fuzzing.GRADS[0]


def check_close(name: str, got: Tensor, eager: Tensor, exact: Tensor, size: Tensor, floor: float) -> None:
    """error <= 2 x plain PyTorch's in the same dtype + `floor` of the sum of the absolute values of the terms."""
    assert got.dtype == eager.dtype and got.shape == exact.shape, f"{name} is {got.dtype} {list(got.shape)}"
    error, theirs = (got.double() - exact).abs(), float((eager.double() - exact).abs().max())
    worst = int((error - floor * size).argmax())
    assert bool((error <= 2 * theirs + floor * size).all()), (
        f"{name}, element {worst}, is {got.flatten()[worst]}, by the definition {exact.flatten()[worst]}"
    )


@st.composite
def tensor_partition(draw: Any, rule: str) -> str:
    """Points as a tensor."""
    n = draw(st.sampled_from(fuzzing.SIZES))
    fewest = 2 if rule in ("trapezoid", "simpson") else 1
    expression = draw(fuzzing.partition(n, draw(st.sampled_from(fuzzing.SIZES)), rule, fewest))
    return f"inn.uniform_partition({expression})" if expression.isdigit() and rule != "gauss-legendre" else expression


def check_weights(draw: Any) -> None:
    """quadrature_weights and its gradient."""
    rule = draw(st.sampled_from(QUADRATURES))
    expression = draw(tensor_partition(rule))
    if expression.isdigit():
        expression = f"inn.gauss_legendre_partition({expression}, dtype={draw(fuzzing.dtypes)}).unique()"
    trained = draw(st.sampled_from([("partition",), ()]))
    call = Call("quadrature_weights", {"partition": expression}, {"name": repr(rule)}, trained, GRAD)
    p = programs.value(expression)
    assume(len(p) > 1 or rule != "gauss-legendre")  # one weight, 1 wherever its point is: nothing to differentiate
    if not fuzzing.stable(rule, expression):
        return
    exact, floor = oracle.quadrature(rule, p.double()), common.FLOOR[p.dtype]
    with programs.reported(call.program):
        found, grad = results(call), run(call)["grad"].double()
        check_close("y", found["y"], exact.to(p.dtype), exact, oracle.quadrature_size(rule, p.double()), floor)
        if trained:
            leaf = p.double().requires_grad_()
            (slope,) = torch.autograd.grad(oracle.quadrature(rule, leaf), leaf, grad)
            size = grad.abs() @ oracle.quadrature_slopes(rule, p.double())
            check_close("the gradient of partition", found["partition"], slope.to(p.dtype), slope, size, floor)


@given(data=st.data())
def test_quadrature_weights(data):
    check_weights(data.draw)


def check_integral(draw: Any) -> None:
    """The integral of c prod_i (1 + x_i^2), whose slopes are at most twice its values."""
    variables = draw(st.integers(1, 3))
    names = [f"partition_{i}" for i in range(variables)]
    rules = [draw(st.sampled_from(QUADRATURES)) for _ in names]
    tensors = {"c_0": draw(fuzzing.tensor((2,), draw(fuzzing.dtypes)))}
    for name, rule in zip(names, rules):
        tensors[name] = draw(tensor_partition(rule))
    product = " * ".join(f"(1 + x{i}.double() ** 2)" for i in range(variables))
    options = {
        "function": f"lambda {', '.join(f'x{i}' for i in range(variables))}: ({product})[..., None] * c_0",
        "partitions": f"[{', '.join(names)}]",
        "quadrature": repr(rules),
    }
    floating = [n for n, e in tensors.items() if isinstance(programs.value(e), Tensor)]
    call = Call("integrate", tensors, options, tuple(floating), GRAD)
    made = {name: programs.value(e) for name, e in tensors.items()}
    points = [
        p.double() if isinstance(p := made[name], Tensor) else oracle.points_of(rule, p)
        for name, rule in zip(names, rules)
    ]
    with programs.reported(call.program):
        found, grad = results(call), run(call)["grad"].double()
        leaves = [p.clone().requires_grad_() for p in points]
        c = made["c_0"].double().requires_grad_()
        parts = [oracle.quadrature(rule, p) @ (1 + p**2) for rule, p in zip(rules, leaves)]
        exact = torch.stack(parts).prod() * c
        gradients = dict(zip(("c_0", *names), torch.autograd.grad(exact, [c, *leaves], grad)))
        sums = [oracle.quadrature_size(rule, p) @ (1 + p**2) for rule, p in zip(rules, points)]
        size = torch.stack(sums).prod() * c.detach().abs()
        dtypes = [t.dtype for t in made.values() if isinstance(t, Tensor)]
        floor = max(common.FLOOR[torch.float64], *(common.FLOOR[d] for d in dtypes))
        check_close("y", found["y"], exact.detach().to(found["y"].dtype), exact.detach(), size, floor)
        for i, (name, rule, p) in enumerate(zip(names, rules, points)):
            others = torch.stack([s for j, s in enumerate(sums) if j != i] or [torch.ones(()).double()]).prod()
            own = (1 + p**2) @ oracle.quadrature_slopes(rule, p) + oracle.quadrature_size(rule, p) * 2 * (1 + p**2)
            if name in found:
                size = own * others * float((c.detach().abs() * grad.abs()).sum())
                eager = gradients[name].to(found[name].dtype)
                check_close(f"the gradient of {name}", found[name], eager, gradients[name], size, floor)


@given(data=st.data())
def test_integrate(data):
    check_integral(data.draw)


@given(st.integers(1, 300), st.sampled_from(DTYPES))
def test_points_of_a_count(n, dtype):
    for make, formula in (
        (inn.uniform_partition, oracle.uniform),
        (inn.midpoint_partition, oracle.midpoint),
        (inn.gauss_legendre_partition, oracle.legendre),
    ):
        got, exact = make(n, dtype=dtype), formula(n)
        assert got.dtype == dtype and got.shape == (n,)
        error = float((got.double() - exact).abs().max())
        assert error <= torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float64).eps, (make.__name__, n, dtype)


def check_deltas(draw: Any) -> None:
    """partition_from_deltas: P[k] = sum of delta^2 up to k over the sum of all, delta[0] ignored."""
    n, dtype = draw(st.sampled_from([2, 3, 7, 64, 301])), draw(fuzzing.dtypes)
    call = Call("partition_from_deltas", {"delta": draw(fuzzing.tensor((n,), dtype))}, {}, ("delta",), GRAD)
    delta = programs.value(call.tensors["delta"])

    def formula(delta: Tensor) -> Tensor:
        gaps = torch.cat([torch.zeros_like(delta[:1]), delta[1:] ** 2])
        return gaps.cumsum(0) / gaps.sum()

    with programs.reported(call.program):
        found, grad = results(call), run(call)["grad"]
        leaf, exact_leaf = (delta.to(d).clone().requires_grad_() for d in (dtype, torch.float64))
        eager, exact = formula(leaf), formula(exact_leaf)
        slopes = torch.autograd.functional.jacobian(formula, delta.double())
        total = float(delta.double()[1:].square().sum())
        check_close("y", found["y"], eager.detach(), exact.detach(), torch.ones(n).double(), common.FLOOR[dtype])
        assert float(found["y"][0]) == 0 and float(found["y"][-1]) == 1, "a partition goes from 0 to 1"
        assert bool((found["y"].double().diff() >= 0).all()), "a partition does not fall"
        (theirs,) = torch.autograd.grad(eager, leaf, grad)
        # Every point but the last depends on a delta both by its own sum and by the total.
        size = (slopes.abs() + 2 * delta.double().abs() / total * exact.detach()[:, None]).T @ grad.double().abs()
        truth = slopes.T @ grad.double()
        check_close("the gradient of delta", found["delta"], theirs, truth, size, common.FLOOR[dtype])


@given(data=st.data())
def test_partition_from_deltas(data):
    check_deltas(data.draw)
