"""Sizes as symbols while a network is traced: every question is answered as at full size, every equation is used up.

    a = b    d = a    e = 2 a        a linear equation gives up a symbol at once, for good

PyTorch's own environment proves what it can about ranges first, looks through all it knows at every new fact, and so
takes a time that grows with the square of a network's depth. Here an answer costs as much as its expression is long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import FloorDiv, Mod

_ShapeEnv: Any = ShapeEnv  # whose signatures change from one version of PyTorch to the next

Cause = Callable[[sympy.Expr], str]
"""What fixes a size at this moment, given the size's value."""


class SizeEnv(_ShapeEnv):
    """Answers by `hints`, the sizes at full width; `solution` is what the equations made of symbols.

    Attributes:
        hints: what each symbol is at full size.
        solution: symbol -> expression, whose symbols may have solutions of their own (`replace` follows them).
        unsolved: expressions that are zero, none of whose symbols has a whole solution.
        multiples: (expression, k): it must be a multiple of k.
        numbers: symbols of numbers in modules. Where one just reaches another size (`x[:n]` of n channels), it is that.
        fixed: symbols that an equation made a number, and why.
        cause: tells that why.
    """

    def __init__(self) -> None:
        super().__init__(duck_shape=False)
        self.hints: dict[sympy.Symbol, int] = {}
        self.solution: dict[sympy.Symbol, sympy.Expr] = {}
        self.unsolved: list[sympy.Expr] = []
        self.multiples: list[tuple[sympy.Expr, int]] = []
        self.numbers: set[sympy.Symbol] = set()
        self.fixed: dict[sympy.Symbol, str] = {}
        self.cause: Cause = lambda value: "an equation between sizes"
        self._answers: dict[sympy.Basic, Any] = {}
        self._resolved: dict[sympy.Symbol, sympy.Expr] = {}
        self._replaced: dict[sympy.Basic, Any] = {}

    # what PyTorch asks -----------------------------------------------------------------------------------------

    def create_symbol(self, val: int, *args: Any, **kwargs: Any) -> sympy.Expr:
        """As the environment of PyTorch does."""
        symbol = super().create_symbol(val, *args, **kwargs)
        if symbol.is_Symbol:
            self.hints[symbol] = int(val)
        return symbol

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        """The value at full size; what it says of sizes is taken down."""
        answer = self._answers.get(orig_expr)
        if answer is None:
            if not orig_expr.free_symbols <= self.hints.keys():
                return super().evaluate_expr(orig_expr, *args, **kwargs)
            answer = self._answers[orig_expr] = self.at_full_size(orig_expr)
            self._learn(orig_expr, answer)
        return answer

    def guard_or_defer_runtime_assert(self, orig_expr: Any, msg: str, *args: Any, **kwargs: Any) -> bool:
        """Whether it holds at full size."""
        if orig_expr.free_symbols <= self.hints.keys():
            return bool(self.evaluate_expr(orig_expr))
        return super().guard_or_defer_runtime_assert(orig_expr, msg, *args, **kwargs)

    def simplify(self, expr: Any, *args: Any, **kwargs: Any) -> Any:
        """What the equations make of an expression."""
        return self.replace(expr)

    def replace(self, expr: Any) -> Any:
        """What the equations make of an expression."""
        if not isinstance(expr, sympy.Basic) or not self.solution:
            return expr
        known = self._replaced.get(expr)
        if known is None:
            table = {s: self._final(s) for s in expr.free_symbols if s in self.solution}
            known = self._replaced[expr] = _expanded(expr.xreplace(table)) if table else expr
        return known

    def _maybe_evaluate_static(self, expr: Any, *args: Any, **kwargs: Any) -> Any:
        if not expr.free_symbols <= self.hints.keys():
            return super()._maybe_evaluate_static(expr, *args, **kwargs)
        if kwargs.get("compute_hint"):
            return self.at_full_size(expr)
        expr = self.replace(expr)
        return None if expr.free_symbols else expr

    _maybe_evaluate_static.cache_clear = lambda: None  # type: ignore[attr-defined]

    # equations -------------------------------------------------------------------------------------------------

    def equate(self, zero: sympy.Expr) -> None:
        """Use an equation  zero = 0  up, and all those left over that it makes linear."""
        zero = self.replace(_expanded(zero))
        if zero.is_number or self.at_full_size(zero) != 0:
            return
        solved = linear_solution(zero, self.hints)
        if solved is None:
            self.unsolved.append(zero)
        else:
            self.put(*solved)

    def put(self, symbol: sympy.Symbol, value: sympy.Expr) -> None:
        """Give a symbol up for an expression of others."""
        self.solution[symbol] = value
        if value.is_number:
            self.fixed[symbol] = self.cause(value)
        self._resolved, self._replaced = {}, {}
        self._replacements_version_counter = getattr(self, "_replacements_version_counter", 0) + 1

    def retry(self) -> None:
        """Equations that were not linear may be so by now."""
        left, self.unsolved = self.unsolved, []
        for zero in left:
            self.equate(zero)

    def why(self, symbol: sympy.Symbol) -> str | None:
        """What made a symbol a number, by way of others or not."""
        for s in [symbol, *sorted(self.solution.get(symbol, symbol).free_symbols - {symbol}, key=str)]:
            if s in self.fixed:
                return self.fixed[s]
            if s is not symbol and (found := self.why(s)):
                return found
        return None

    def at_full_size(self, expr: Any) -> Any:
        """The value of an expression at full size."""
        return expr.xreplace({s: sympy.Integer(self.hints[s]) for s in expr.free_symbols})

    def _final(self, symbol: sympy.Symbol) -> sympy.Expr:
        if symbol not in self.solution:
            return symbol
        if symbol not in self._resolved:
            value = self.solution[symbol]
            table = {s: self._final(s) for s in value.free_symbols if s in self.solution}
            self._resolved[symbol] = _expanded(value.xreplace(table)) if table else value
        return self._resolved[symbol]

    def _learn(self, expr: Any, answer: Any) -> None:
        if isinstance(expr, sympy.And) and answer == sympy.true:
            for part in expr.args:
                self.evaluate_expr(part)
        elif isinstance(expr, sympy.Not):
            self.evaluate_expr(expr.args[0])
        elif isinstance(expr, (sympy.Eq, sympy.Ne)):
            if answer == isinstance(expr, sympy.Eq):
                self._equal(*expr.args)
        elif isinstance(expr, sympy.core.relational.Relational):
            if expr.free_symbols & self.numbers and self.at_full_size(expr.lhs - expr.rhs) == 0:
                self.equate(expr.lhs - expr.rhs)
        elif isinstance(expr, sympy.Expr) and answer.is_Integer:
            self.equate(expr - answer)

    def _equal(self, one: sympy.Expr, other: sympy.Expr) -> None:
        for side, rest in ((one, other), (other, one)):
            if isinstance(side, Mod) and rest == 0 and side.args[1].is_number:
                self.multiples.append((side.args[0], int(side.args[1])))
                return
        self.equate(one - other)


def linear_solution(
    zero: sympy.Expr, hints: Mapping[sympy.Symbol, int] | None = None
) -> tuple[sympy.Symbol, sympy.Expr] | None:
    """(symbol, value) with  coefficient * symbol + rest = 0, a value with whole coefficients, best all positive.

    Where none is, that of the largest symbol (`hints` has sizes), which is a sum of others rather than a difference.
    """
    terms = zero.as_coefficients_dict()
    alone = {term: c for term, c in terms.items() if term.is_Symbol}
    elsewhere = {s for term in terms if term not in alone for s in term.free_symbols}
    sizes = hints or {}
    best = None
    for symbol in sorted(alone.keys() - elsewhere, key=str):
        coefficient = alone[symbol]
        if not coefficient.is_Integer or not all((c / coefficient).is_Integer for c in terms.values()):
            continue
        value = sympy.Add(*(-c / coefficient * term for term, c in terms.items() if term is not symbol))
        if all(c / coefficient <= 0 for term, c in terms.items() if term is not symbol):
            return symbol, value
        if best is None or sizes.get(symbol, 0) > sizes.get(best[0], 0):
            best = symbol, value
    return best


def divisions(expr: sympy.Expr) -> dict[sympy.Symbol, int]:
    """Symbols inside s // k and (c s + d) // k, and what they must be multiples of for the division to come out."""
    found: dict[sympy.Symbol, int] = {}
    for division in expr.atoms(FloorDiv):
        base, k = division.args
        if not k.is_Integer or not base.is_Add | base.is_Mul | base.is_Symbol:
            continue
        for term, c in sympy.expand(base).as_coefficients_dict().items():
            if term.is_Symbol and c.is_Integer and c != 0:
                found[term] = math.lcm(found.get(term, 1), int(k) // math.gcd(int(k), int(c)))
    return found


def _expanded(expr: Any) -> Any:
    return sympy.expand(expr) if isinstance(expr, sympy.Expr) and not expr.is_Atom else expr


def expression(env: SizeEnv, size: Any) -> sympy.Expr:
    """A size as an expression, with all that the equations make of it."""
    return env.replace(size.node.expr) if isinstance(size, torch.SymInt) else sympy.Integer(int(size))
