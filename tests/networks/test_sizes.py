"""Equations between sizes: solved as they come, by the sizes at full width."""

import pytest
import sympy
import torch

import integral_nn as inn
from integral_nn.coupling.size_env import SizeEnv, divisions, linear_solution

a, b, c = sympy.symbols("a b c", positive=True, integer=True)
FloorDiv = torch.utils._sympy.functions.FloorDiv


@pytest.mark.parametrize(
    ("zero", "solution"),
    [
        (a - b, (a, b)),
        (a + b - c, (c, a + b)),
        (2 * a - b, (b, 2 * a)),
        (a - b + 3, (b, a + 3)),
        (2 * a - 64, (a, sympy.Integer(32))),
        (2 * a - 3 * b, None),
        (2 * a - 3, None),
        (a * b - 12, None),
        (a - FloorDiv(b, 2), (a, FloorDiv(b, 2))),
        (a - FloorDiv(a, 2), None),
    ],
)
def test_linear_solution(zero, solution):
    assert linear_solution(zero) == solution


def test_divisions():
    assert divisions(FloorDiv(a, 4) + FloorDiv(a + 6 * b, 4)) == {a: 4, b: 2}
    assert divisions(a * b) == {}


def test_equations_are_used_up():
    env = SizeEnv()
    env.hints |= {a: 4, b: 4, c: 8}
    assert env.evaluate_expr(sympy.Eq(a, b)) == sympy.true
    assert env.evaluate_expr(sympy.Ne(c, a + b)) == sympy.false
    assert env.evaluate_expr(c > a) == sympy.true
    assert env.evaluate_expr(sympy.Eq(a, 5)) == sympy.false
    assert env.replace(c) == 2 * env.replace(a) and env.replace(b) == env.replace(a) and not env.fixed
    env.cause = lambda value: f"the test, to {value}"
    assert env.evaluate_expr(b) == 4
    assert [env.replace(s) for s in (a, b, c)] == [4, 4, 8]
    assert env.why(c) == "the test, to 4"


def test_depth_adds_no_symbols_to_expressions():
    """A residual stream keeps one symbol however many layers write to it."""

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(30))
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x).tanh()
            return self.head(x)

    net = torch.nn.Sequential(torch.nn.Linear(3, 8), Deep())
    found = inn.find_axes(net, torch.ones(1, 3))
    assert {name: spec.nodes for name, spec in found.specs.items()} == {"0": 8}
    assert len(found.ties) == 2 + 3 * 30 + 1
