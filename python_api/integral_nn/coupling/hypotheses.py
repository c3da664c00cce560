"""Hypotheses about a network's axes: which symbols are sizes of axes, and how these lie along its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import sympy
from torch import nn

from integral_nn.coupling.equations import Place, SymbolicSizes
from integral_nn.coupling.proof import OutputTie
from integral_nn.coupling.readings import Meanings, readable, terms_of
from integral_nn.coupling.roles import usual_role
from integral_nn.layers.channels import Layout, Segment, Tie
from integral_nn.layers.numbers import Number


class Hypotheses:
    """What is held of every symbol; a search makes others of them where a proof fails."""

    def __init__(
        self, net: nn.Module, sizes: SymbolicSizes, shapes: dict[str, tuple[int, ...]], continuous_outputs: bool
    ) -> None:
        self.sizes, self.shapes = sizes, shapes
        self.modules = dict(net.named_modules())
        self.discrete: dict[str, str] = {}  # symbol -> why
        self.grain: dict[str, int] = {}  # symbol -> copies of a smaller axis
        self.blocks: dict[str, int] = {}
        self.choice: dict[str, int] = {}  # raw size -> which of its candidate layouts
        self.liked: dict[tuple, int] = {}  # kind of a sum -> which candidate another symbol's was
        self.fixed: dict[str, str] = {}  # raw size -> the symbol whose search settled its layout
        self.flipped: dict[Place, bool] = {}
        self.roles: dict[tuple[type, str, int], bool] = {}  # of a dimension of a kind of module, where one was found
        self.rank = {place: n for n, place in enumerate(sizes.places)}
        self.symbols: dict[str, sympy.Symbol] = {}  # as the network's parameters come
        self.places_of: dict[str, list[Place]] = {}
        for place, expr in sizes.places.items():
            for symbol in sorted(expr.free_symbols, key=str):
                self.symbols[str(symbol)] = symbol
                self.places_of.setdefault(str(symbol), []).append(place)
        for symbol in self.symbols.values():
            if sizes.hints[symbol] < 2:
                self.discrete[str(symbol)] = "it has a single channel"
        for expr in sizes.places.values():
            if not readable(expr):
                for symbol in expr.free_symbols:
                    self.discrete[str(symbol)] = f"its size enters another as {expr}"
        uses = Counter({s: len(places) for s, places in self.places_of.items()})
        uses.update(str(s) for _, _, expr in sizes.outputs for s in expr.free_symbols)
        for (module, attribute, _), expr in sizes.numbers.items():
            if not readable(expr):
                for symbol in expr.free_symbols:
                    self.discrete[str(symbol)] = f"{attribute} of module {module!r} depends on it as {expr}"
        self.discrete |= {s: "nothing else has its size" for s in self.symbols if uses[s] == 1}
        self.output_exprs = sizes.outputs if continuous_outputs else []
        if not continuous_outputs:
            for _, _, expr in sizes.outputs:
                for symbol in expr.free_symbols:
                    self.discrete[str(symbol)] = "it is a size of the network's outputs"
        self.meanings = Meanings(sizes, self.discrete, self.grain)

    # layouts ---------------------------------------------------------------------------------------------------

    def layout(self, place: Place) -> Layout:
        key = self.sizes.raw[place]
        found = self.meanings.candidates(self.sizes.places[place])
        return found[min(self.choice.get(key, 0), len(found) - 1)]

    def ties(self, symbols: Iterable[str]) -> list[Tie]:
        """The dimensions along any of `symbols`, every other axis taken as constant."""
        live = set(symbols)
        keep: dict[str, str | None] = {s: s for s in live}
        places = sorted({place for s in live for place in self.places_of[s]}, key=self.rank.__getitem__)
        return [Tie(*place, self.layout(place).renamed(keep), self.integrated(place)) for place in places]

    def output_ties(self, symbols: Iterable[str]) -> list[OutputTie]:
        live = {s: s for s in symbols}
        return [(i, d, self.meanings.candidates(e)[0].renamed(live)) for i, d, e in self.output_exprs]

    def numbers(self, symbols: Iterable[str]) -> list[Number]:
        """The numbers in modules that count channels of any of `symbols`."""
        live = set(symbols)
        found = []
        for place, expr in self.sizes.numbers.items():
            if live & {str(s) for s in expr.free_symbols}:
                parts = tuple(self._counted(c, s) for c, s in terms_of(expr))
                found.append(Number(place, Layout(parts).renamed({s: s for s in live})))
        return found

    def _counted(self, copies: int, symbol: str | None) -> Segment:
        if symbol is None:
            return Segment(None, copies)
        return Segment(symbol, self.meanings.nodes(symbol), copies * self.grain.get(symbol, 1))

    # roles -----------------------------------------------------------------------------------------------------

    def integrated(self, place: Place) -> bool:
        return self.flipped.get(place, self._usual_role(place)[0])

    def _usual_role(self, place: Place) -> tuple[bool, bool]:
        owner = place[0].rpartition(".")[0]
        return usual_role(self.modules.get(owner), place, len(self.shapes[place[0]]))
