"""Equations between sizes, solved: every dimension of a network's tensors as an expression of a few symbols.

    a = b    d = a    e = 2 a    s // 4 = ..        linear ones give up a symbol each; a division s // k makes s = k u

What is not linear stays as it is, and the proof decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import FloorDiv, Mod

Place = tuple[str, int]
"""A dimension of a parameter or buffer: its name and the dimension's index."""


@dataclass
class SymbolicSizes:
    """Sizes of every parameter's and buffer's dimensions as expressions of a few symbols."""

    places: dict[Place, sympy.Expr]
    """Size of each dimension."""
    hints: dict[sympy.Symbol, int]
    """What each symbol is at full size."""
    raw: dict[Place, str]
    """The size before divisions were taken out: dimensions with the same one are laid out alike."""
    orders: dict[sympy.Expr, list[tuple[sympy.Expr, ...]]]
    """Orders in which a sum was put together."""
    divisible: list[tuple[sympy.Expr, int]]
    """Expressions that must be multiples of a number."""
    outputs: list[tuple[int, int, sympy.Expr]]
    """Outputs of symbolic size: index, dimension, size."""
    pinned: dict[Place, str]
    """Why a dimension is a number."""


def solve(
    env: ShapeEnv,
    shapes: dict[Place, Any],
    hints: dict[sympy.Symbol, int],
    outputs: list[tuple[int, int, Any]],
    orders: list[tuple[Any, tuple[Any, ...]]],
    fixed: dict[sympy.Symbol, str],
) -> SymbolicSizes:
    """Use up the equations, and take divisions out: s // k in a size makes s = k u, with u the new symbol.

    Args:
        env: holds the equations that operations demanded.
        shapes: size of each dimension, as it was before them.
        hints: what each symbol is at full size; symbols that divisions make are added.
        outputs: index, dimension and size of outputs of symbolic size.
        orders: sums and their parts, in the order in which they were put together.
        fixed: symbols that became numbers, and what fixed them.
    """
    guards = [env.replace(guard.expr) for guard in env.guards]
    equations = [g.lhs - g.rhs for g in guards if isinstance(g, sympy.Eq)]
    places = {place: _expr(env, size) for place, size in shapes.items()}
    solution = _eliminate(equations)
    first = {place: _subs(expr, solution) for place, expr in places.items()}
    division: dict[sympy.Symbol, sympy.Expr] = {}
    current = first
    for _ in range(16):
        found = next(_divisions(current.values()), None)
        if found is None:
            break
        symbol, k = found
        if k == 0 or hints[symbol] % k:
            break
        part = sympy.Symbol(f"{symbol}_{k}", positive=True, integer=True)
        hints[part] = hints[symbol] // k
        division = {s: e.subs(symbol, k * part) for s, e in division.items()} | {symbol: k * part}
        solution = _eliminate([_subs(e, division) for e in equations])
        current = {place: _subs(_subs(expr, division), solution) for place, expr in places.items()}

    def final(size: Any) -> sympy.Expr:
        return _subs(_subs(_expr(env, size), division), solution)

    known_orders: dict[sympy.Expr, list[tuple[sympy.Expr, ...]]] = {}
    for total, parts in orders:
        order = tuple(e for e in map(final, parts) if e != 0)
        known = known_orders.setdefault(final(total), [])
        if order not in known and len(order) > 1:
            known.append(order)
    divisible = [(_subs(_subs(e, division), solution), k) for e, k in _multiples(guards, env)]
    pinned = {}
    for place, size in shapes.items():
        if isinstance(size, torch.SymInt) and current[place].is_number:
            pinned[place] = fixed.get(size.node._expr, "an equation between sizes")
    return SymbolicSizes(
        places=current,
        hints=hints,
        raw={place: str(expr) for place, expr in first.items()},
        orders=known_orders,
        divisible=[(e, k) for e, k in divisible if not e.is_number],
        outputs=[(i, d, e) for i, d, size in outputs if not (e := final(size)).is_number],
        pinned=pinned,
    )


def _expr(env: ShapeEnv, size: Any) -> sympy.Expr:
    return env.replace(size.node.expr) if isinstance(size, torch.SymInt) else sympy.Integer(int(size))


def _subs(expr: sympy.Expr, table: dict[sympy.Symbol, sympy.Expr]) -> sympy.Expr:
    return sympy.expand(expr.subs(table)) if table and expr.free_symbols & table.keys() else expr


def _divisions(exprs: Iterable[sympy.Expr]) -> Iterator[tuple[sympy.Symbol, int]]:
    """Symbols inside s // k, ((s + c) // k), and k."""
    for expr in exprs:
        for division in expr.atoms(FloorDiv):
            base, k = division.args
            for symbol in sorted(base.free_symbols, key=str):
                coefficient = sympy.expand(base).coeff(symbol)
                if k.is_number and coefficient.is_number and coefficient != 0:
                    yield symbol, int(k) // math.gcd(int(k), int(coefficient))


def _multiples(guards: list[sympy.Basic], env: ShapeEnv) -> Iterator[tuple[sympy.Expr, int]]:
    facts = [g.lhs for g in guards if isinstance(g, sympy.Eq) and g.rhs == 0]
    for fact in [*facts, *(env.replace(e) for e in env.divisible)]:
        if isinstance(fact, Mod) and fact.args[1].is_number:
            yield fact.args[0], int(fact.args[1])


def _eliminate(equations: list[sympy.Expr]) -> dict[sympy.Symbol, sympy.Expr]:
    """Solve linear equations one by one for a symbol each: symbol -> expression. Others are left to the proof."""
    solution: dict[sympy.Symbol, sympy.Expr] = {}
    for equation in equations:
        equation = _subs(equation, solution)
        if equation.is_number:
            continue
        solved = _linear_solution(equation)
        if solved is not None:
            symbol, value = solved
            solution = {s: _subs(e, {symbol: value}) for s, e in solution.items()} | {symbol: value}
    return solution


def _linear_solution(equation: sympy.Expr) -> tuple[sympy.Symbol, sympy.Expr] | None:
    """(symbol, value) with  coefficient * symbol + rest = 0, a value with whole coefficients, best all positive."""
    equation = sympy.expand(equation)
    inside = set().union(*(f.free_symbols for f in equation.atoms(FloorDiv, Mod))) if equation.args else set()
    best = None
    for symbol in sorted(equation.free_symbols - inside, key=str):
        coefficient = equation.coeff(symbol)
        rest = sympy.expand(equation - coefficient * symbol)
        if not coefficient.is_Integer or symbol in rest.free_symbols:
            continue
        value = sympy.expand(-rest / coefficient)
        terms = [c for _, c in value.as_coefficients_dict().items()]
        if not all(c.is_Integer for c in terms):
            continue
        if all(c >= 0 for c in terms):
            return symbol, value
        best = best or (symbol, value)
    return best
