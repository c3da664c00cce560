"""What a trace leaves, solved: every dimension of a network's tensors as an expression of a few symbols.

    s // 4 = ..        a division makes s = 4 u, with u the new symbol

What is not linear stays as it is, and the proof decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from integral_nn.coupling.size_env import SizeEnv, divisions, expression
from integral_nn.layers.numbers import NumberPlace

Place = tuple[str, int]
"""A dimension of a parameter or buffer: its name and the dimension's index."""

_DEEPEST_DIVISION = 16


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
    numbers: dict[NumberPlace, sympy.Expr]
    """Attributes of modules that are sizes."""
    unused: list[str] = field(default_factory=list)
    """Tensors that no operation took, in eval mode or in training."""
    trains: bool = False
    """Whether the sizes hold of a run in training mode, too, which takes more tensors than one in eval mode."""


def solve(
    env: SizeEnv,
    shapes: dict[Place, Any],
    outputs: list[tuple[int, int, Any]],
    orders: list[tuple[Any, tuple[Any, ...]]],
    numbers: Mapping[NumberPlace, torch.SymInt],
) -> SymbolicSizes:
    """Take divisions out: s // k in a size makes s = k u, with u the new symbol.

    Args:
        env: has used the equations that operations demanded.
        shapes: size of each dimension, as it was before them.
        outputs: index, dimension and size of outputs of symbolic size.
        orders: sums and their parts, in the order in which they were put together.
        numbers: attributes of modules, as symbols.
    """
    env.retry()
    _settle_numbers(env, list(shapes.values()), numbers)
    first = {place: expression(env, size) for place, size in shapes.items()}
    for _ in range(_DEEPEST_DIVISION):
        if not _take_divisions_out(env, {env.replace(expr) for expr in first.values()}):
            break
        _settle_shares(env, list(shapes.values()))
    places = {place: env.replace(expr) for place, expr in first.items()}
    known_orders: dict[sympy.Expr, list[tuple[sympy.Expr, ...]]] = {}
    for total, parts in orders:
        order = tuple(e for e in (expression(env, part) for part in parts) if e != 0)
        if len(order) > 1:
            known = known_orders.setdefault(expression(env, total), [])
            if order not in known:
                known.append(order)
    divisible = [(env.replace(e), k) for e, k in env.multiples]
    pinned = {
        place: env.why(size.node._expr) or "an equation between sizes"
        for place, size in shapes.items()
        if isinstance(size, torch.SymInt) and places[place].is_number
    }
    return SymbolicSizes(
        places=places,
        hints=env.hints,
        raw={place: str(expr) for place, expr in first.items()},
        orders=known_orders,
        divisible=[(e, k) for e, k in dict.fromkeys(divisible) if not e.is_number],
        outputs=[(i, d, e) for i, d, size in outputs if not (e := expression(env, size)).is_number],
        pinned=pinned,
        numbers={place: e for place, n in numbers.items() if not (e := expression(env, n)).is_number},
    )


def _settle_numbers(env: SizeEnv, sizes: list[Any], numbers: Mapping[NumberPlace, torch.SymInt]) -> None:
    """Make those attributes numbers again that multiply other sizes, or are no size of a tensor's."""
    own = {n.node._expr for n in numbers.values()}
    env.cause = lambda value: "a number in a module"
    _settle_shares(env, sizes)
    terms = {term for size in sizes for term in sympy.expand(expression(env, size)).as_coefficients_dict()}
    alone = {term for term in terms if term.is_Symbol}
    for symbol in sorted(own - env.solution.keys() - alone, key=str):
        env.put(symbol, sympy.Integer(env.hints[symbol]))
    env.retry()


def _settle_shares(env: SizeEnv, sizes: list[Any]) -> None:
    """x // heads makes  x = (size of a head) * heads,  (x + part - 1) // part  a split in equal parts."""
    for _ in range(_DEEPEST_DIVISION):
        exprs = [*(expression(env, size) for size in sizes), *env.unsolved]
        shares = {d for expr in exprs for d in expr.atoms(FloorDiv) if d.args[1].is_Symbol}
        for share in sorted(shares, key=str):
            base, k = share.args
            rest = base - env.at_full_size(share) * k
            env.equate(rest - (k - 1) if env.at_full_size(rest - (k - 1)) == 0 else rest)
        env.retry()
        if not shares:
            break


def _take_divisions_out(env: SizeEnv, exprs: set[sympy.Expr]) -> bool:
    """Whether there was one that comes out."""
    found = False
    for expr in sorted(exprs, key=str):
        for symbol, k in divisions(expr).items():
            if symbol in env.solution or k < 2 or env.hints[symbol] % k:
                continue
            part = sympy.Symbol(f"{symbol}_{k}", positive=True, integer=True)
            env.hints[part] = env.hints[symbol] // k
            env.put(symbol, k * part)
            found = True
    if found:
        env.retry()
    return found
