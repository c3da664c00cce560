"""What a size can mean: expressions of symbols read as layouts of channels.

a + b     segments, in an order that the traced concatenations and splits tell
16 a      sixteen copies of a channel, channel-major (flatten) or channel-minor, or a grid between them
a + 3     an axis beside channels that never change
"""

from __future__ import annotations

import itertools
import math

import sympy

from integral_nn.coupling.equations import SymbolicSizes
from integral_nn.layers.channels import Layout, Segment


class Meanings:
    """The layouts that each size allows. `discrete` and `grain` are the search's own, as it fills them."""

    def __init__(self, sizes: SymbolicSizes, discrete: dict[str, str], grain: dict[str, int]) -> None:
        self.hints = {str(symbol): size for symbol, size in sizes.hints.items()}
        self.discrete, self.grain = discrete, grain
        self.orders = _known_orders(sizes)
        self._known: dict[tuple, list[Layout]] = {}

    def nodes(self, symbol: str) -> int:
        """Channels of a symbol's axis: its size over the copies (`grain`) of each channel in it."""
        return self.hints[symbol] // self.grain.get(symbol, 1)

    def candidates(self, expr: sympy.Expr) -> list[Layout]:
        """What a size can mean, likeliest first."""
        names = sorted(map(str, expr.free_symbols))
        key = (expr, *((s in self.discrete, self.grain.get(s, 1)) for s in names))
        if key not in self._known:
            self._known[key] = self._candidates(expr)
        return self._known[key]

    def _candidates(self, expr: sympy.Expr) -> list[Layout]:
        if expr in self.orders:
            return [
                Layout(tuple(s))
                for order in self.orders[expr]
                for s in itertools.islice(itertools.product(*(self._segments(term) for term in order)), 32)
            ]
        terms = terms_of(expr)
        if len(terms) == 1:
            return [Layout((s,)) for s in self._segments(terms[0])]
        common = math.gcd(*(int(c) for c, _ in terms))
        part = sympy.expand(expr / common)
        inside = self.orders.get(part)
        lists = [[terms_of(t)[0] for t in order] for order in inside] if inside else list(itertools.permutations(terms))
        if not inside:
            lists = [[(int(c) // common, s) for c, s in order] for order in lists[:6]] + _centred(terms, common)
        return [
            Layout(tuple(self._segments(t)[0] for t in order), outer, inner)
            for order in lists
            for outer, inner in _factors(common)
        ]

    def _segments(self, term: tuple[int, str | None] | sympy.Expr) -> list[Segment]:
        c, symbol = terms_of(term)[0] if isinstance(term, sympy.Expr) else term
        if symbol is None:
            return [Segment(None, int(c))]
        if symbol in self.discrete:
            return [Segment(None, int(c) * self.hints[symbol])]
        grain = self.grain.get(symbol, 1)
        pairs = [(outer * grain, inner) for outer, inner in _factors(int(c))]
        pairs += [pair for pair in _factors(int(c) * grain) if pair not in pairs]  # channels dealt out to groups
        return [Segment(symbol, self.nodes(symbol), outer, inner) for outer, inner in pairs]


def terms_of(expr: sympy.Expr) -> list[tuple[int, str | None]]:
    """[(coefficient, symbol or None)] of a linear expression."""
    table = sympy.expand(expr).as_coefficients_dict()
    return [(int(c), None if term == 1 else str(term)) for term, c in sorted(table.items(), key=lambda i: str(i[0]))]


def readable(expr: sympy.Expr) -> bool:
    """Whether a size is a sum of positive multiples of symbols."""
    table = sympy.expand(expr).as_coefficients_dict()
    return all((term == 1 or term.is_Symbol) and c.is_Integer and c > 0 for term, c in table.items())


def _factors(count: int) -> list[tuple[int, int]]:
    """Pairs (outer, inner) with product `count`: channel-major, channel-minor, then what lies between."""
    between = [d for d in range(2, count) if count % d == 0]
    return [(1, count)] + ([(count, 1)] if count > 1 else []) + [(d, count // d) for d in between]


def _centred(terms: list[tuple[int, str | None]], common: int) -> list[list[tuple[int, str | None]]]:
    """Constant channels split in half around the rest (padding on both sides)."""
    constant = [c // common for c, s in terms if s is None]
    rest = [(c // common, s) for c, s in terms if s is not None]
    if not constant or constant[0] % 2:
        return []
    return [[(constant[0] // 2, None), *rest, (constant[0] // 2, None)]]


def _known_orders(sizes: SymbolicSizes) -> dict[sympy.Expr, list[list[sympy.Expr]]]:
    """Recorded orders with nested sums written out: every part a single term."""

    def flat(expr: sympy.Expr, depth: int = 0) -> list[sympy.Expr]:
        if expr in sizes.orders and depth < 512:
            return [t for part in sizes.orders[expr][0] for t in flat(part, depth + 1)]
        return [expr]

    found: dict[sympy.Expr, list[list[sympy.Expr]]] = {}
    for total, orders in sizes.orders.items():
        written = [[t for part in order for t in flat(part)] for order in orders]
        found[total] = [o for o in written if all(readable(t) and len(terms_of(t)) == 1 for t in o)]
    return {total: orders for total, orders in found.items() if orders}
