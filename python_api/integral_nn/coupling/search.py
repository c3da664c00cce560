"""The search for continuous axes: symbolic sizes propose, a proof on the network itself decides.

    sizes     every dimension of every parameter and buffer as an expression of a few symbols  (`symbolic`, `equations`)
    layouts   what an expression can mean: 16 a is channel-major or channel-minor, a + b has an order    (`readings`)
    proof     permutation and refinement leave the outputs as they were    (`proof`)
    search    hypotheses until the proof holds, or none is left    (here)

There is no rule for any operation, save for where a sum of sizes is put together. What cannot be proved stays
discrete, and the summary says why.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import sympy
import torch
from torch import Tensor, nn

from integral_nn.coupling.axis_set import AxisSet, AxisSpec, Discrete
from integral_nn.coupling.calls import Inputs
from integral_nn.coupling.equations import Place, SymbolicSizes
from integral_nn.coupling.groups import failing
from integral_nn.coupling.proof import OutputTie, Probe
from integral_nn.coupling.readings import Meanings, readable, terms_of
from integral_nn.coupling.roles import usual_role
from integral_nn.layers.channels import Layout, Segment, Tie
from integral_nn.layers.numbers import Number

_MOST_HYPOTHESES, _MOST_FLIPS = 128, 6


class Search:
    """The state of a search: hypotheses still held, and what was found out."""

    def __init__(
        self,
        net: nn.Module,
        inputs: Inputs,
        sizes: SymbolicSizes,
        shapes: dict[str, tuple[int, ...]],
        ignore: Sequence[str | type],
        only: Sequence[str | type] | None,
        continuous_outputs: bool,
        seed: int,
    ) -> None:
        self.sizes, self.shapes, self.ignore, self.only = sizes, shapes, ignore, only
        self.net, self.inputs, self.seed = net, inputs, seed
        self.modules = dict(net.named_modules())
        self.discrete: dict[str, str] = {}  # symbol -> why
        self.grain: dict[str, int] = {}  # symbol -> copies of a smaller axis
        self.blocks: dict[str, int] = {}
        self.choice: dict[str, int] = {}  # raw size -> which of its candidate layouts
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

    # the search ------------------------------------------------------------------------------------------------

    def run(self) -> AxisSet:
        names = self.name_axes()
        live = [s for s in self.symbols if s not in self.discrete]
        if live:
            self.probe = Probe(self.net, self.inputs, self.seed, self.sizes.trains)
            for symbol in list(failing(live, lambda some: self.permutes(some))):
                if not self.search_layout(symbol):
                    self.discrete[symbol] = "no layout was found in which its channels can be reordered"
            live = [s for s in live if s not in self.discrete]
            # Twice, and differently: sizes that must keep a ratio to each other would pass if all were doubled.
            halves = [live[::2], live[1::2]]
            for symbol in [s for half in halves for s in failing(half, lambda some: self.refines(some))]:
                if not self.search_roles(symbol) and not self.search_layout(symbol, self.resizes):
                    self.discrete[symbol] = (
                        "the network does not take another size: a sum over its channels that no weight multiplies "
                        "(softmax, product of feature maps), or a size it repeats elsewhere"
                    )
            live = [s for s in live if s not in self.discrete]
            self.check_influence(live)
            live = [s for s in live if s not in self.discrete]
        specs = {}
        for symbol in live:
            name = names[symbol]
            specs[name] = AxisSpec(name, self.meanings.nodes(symbol), self.step(symbol), self.blocks.get(symbol, 1))
        rename: dict[str, str | None] = {s: names[s] for s in live}
        ties = [replace(t, layout=t.layout.renamed(rename)) for t in self.ties(live)]
        outputs = [(i, d, layout.renamed(rename)) for i, d, layout in self.output_ties(live)]
        numbers = [replace(n, layout=n.layout.renamed(rename)) for n in self.numbers(live)]
        parameters = {name: p.numel() for name, p in self.net.named_parameters()}
        unused = [name for name in self.sizes.unused if name in parameters]
        outputs = [o for o in outputs if o[2].axes]
        return AxisSet(specs, ties, outputs, self.discrete_places(live), numbers, unused, parameters)

    def permutes(self, symbols: Sequence[str]) -> bool:
        axes = {s: (self.meanings.nodes(s), self.blocks.get(s, 1)) for s in symbols}
        return self.probe.permuted(self.ties(symbols), axes, self.output_ties(symbols)) <= self.probe.tolerance

    def refines(self, symbols: Sequence[str]) -> bool:
        error = self.probe.refined(self.ties(symbols), symbols, self.output_ties(symbols), self.numbers(symbols))
        return error <= self.probe.tolerance

    def resizes(self, symbol: str) -> bool:
        """Whether an axis takes another size, whatever the roles of its dimensions."""
        return self.refines([symbol]) or self.search_roles(symbol)

    def search_layout(self, symbol: str, also: Callable[[str], bool] = lambda symbol: True) -> bool:
        """Try what else the sizes can mean: other layouts, then channels in blocks, then copies of a smaller axis."""
        expr_of = {self.sizes.raw[p]: e for p, e in self.sizes.places.items() if self.symbols[symbol] in e.free_symbols}
        k = self.step(symbol)
        shapes = [(1, 1)] + ([(k, 1), (1, k)] if k > 1 else [])
        saved = dict(self.choice)
        tried = 0
        for blocks, grain in shapes:
            self.blocks[symbol], self.grain[symbol] = blocks, grain
            keys = [key for key in expr_of if self.fixed.get(key, symbol) == symbol]
            for picks in self._picks([expr_of[key] for key in keys]):
                tried += 1
                if tried > _MOST_HYPOTHESES:
                    break
                self.choice.update(zip(keys, picks))
                if self.permutes([symbol]) and also(symbol):
                    self.fixed |= {key: symbol for key in keys}
                    return True
        self.choice = saved
        self.blocks.pop(symbol), self.grain.pop(symbol)
        return False

    def _picks(self, exprs: Sequence[sympy.Expr]) -> Iterator[tuple[int, ...]]:
        """Which of its candidates each size is: equal sizes alike, then each its own; the likeliest first."""
        alike = list(dict.fromkeys(exprs))
        for sizes in (alike, exprs):
            counts = [range(len(self.meanings.candidates(expr))) for expr in sizes]
            for picks in sorted(itertools.islice(itertools.product(*counts), 4096), key=sum):
                yield picks if sizes is exprs else tuple(picks[alike.index(expr)] for expr in exprs)

    def search_roles(self, symbol: str) -> bool:
        """Try the other roles of weights that no module of torch.nn owns: of a kind of module together, then alone."""
        unsure = [(t.tensor, t.dim) for t in self.ties([symbol]) if not self._usual_role((t.tensor, t.dim))[1]]
        kinds: dict[tuple[type, str, int], list[Place]] = {}
        for place in unsure:
            owner, _, leaf = place[0].rpartition(".")
            kinds.setdefault((type(self.modules.get(owner)), leaf, place[1]), []).append(place)
        known = sorted(kinds, key=lambda kind: kind not in self.roles)  # those that other axes had come first
        groups = [kinds[kind] for kind in known]
        start = [self.roles.get(kind, self._usual_role(kinds[kind][0])[0]) for kind in known]
        for places, roles in ((groups, start), ([[p] for p in unsure], [self._usual_role(p)[0] for p in unsure])):
            for flips in sorted(itertools.product((False, True), repeat=min(len(places), _MOST_FLIPS)), key=sum):
                picked = [role != flip for role, flip in itertools.zip_longest(roles, flips, fillvalue=False)]
                self.flipped.update({p: role for group, role in zip(places, picked) for p in group})
                if self.refines([symbol]):
                    self.roles.update(zip(known, picked) if places is groups else ())
                    return True
        for place in unsure:
            self.flipped.pop(place)
        return False

    def check_influence(self, live: list[str]) -> None:
        """Make axes discrete whose channels the outputs hardly depend on: nothing was proved of them.

        A rectifier that is off hides a channel from one input, so a few are tried. A tensor that no output is made of
        (the residual of a last block that only its skip connection leaves) may have any layout, and is tied all the
        same.
        """
        ties = [(t, s) for t in self.ties(live) for s in t.axes if len(self.shapes[t.tensor]) > 1]
        own = dict(self.net.named_parameters())
        total: dict[str, Tensor] = {}
        for draw in range(6):
            found = self.probe.gradients(fresh_inputs=draw > 0)
            if found is None:
                return
            total |= {n: torch.nan_to_num(g) + total.get(n, 0) for n, g in found.items()}
            weak = [(t, s) for t, s in ties if t.tensor in own and not self._influential(total.get(t.tensor), t, s)]
            if not weak:
                return
        dead = {t.tensor: self.probe.dead(t.tensor) for t, _ in weak if t.tensor not in total}
        for tie, symbol in weak:
            if not dead.get(tie.tensor):
                self.discrete[symbol] = f"the outputs do not depend on {tie.tensor}, so nothing can be proved of it"

    def _influential(self, strength: Tensor | None, tie: Tie, symbol: str) -> bool:
        """Whether the outputs depend on a quarter of a tensor's channels or more."""
        if strength is None:
            return False
        channels = torch.cat(tie.layout.channels(strength, tie.dim, symbol), 1).sum(1)
        return int((channels > 1e-10).sum()) >= max(self.meanings.nodes(symbol) / 4, 1)

    def step(self, symbol: str) -> int:
        """The least number that every size of the axis must be a multiple of."""
        s = self.symbols[symbol]
        facts = [(e, k) for e, k in self.sizes.divisible if s in e.free_symbols]
        nodes = self.meanings.nodes(symbol)
        grain = self.grain.get(symbol, 1)
        for step in range(1, nodes + 1):
            if nodes % step:
                continue
            trial = {other: self.sizes.hints[other] for e, _ in facts for other in e.free_symbols}
            if all(int(e.subs(trial | {s: step * v * grain})) % k == 0 for e, k in facts for v in (1, 2, 3)):
                return step
        return nodes

    # names and reasons -----------------------------------------------------------------------------------------

    def name_axes(self) -> dict[str, str]:
        """Name each axis after the layer that makes it; apply `ignore` and `only`."""
        names: dict[str, str] = {}
        matched: set[str | type] = set()
        for symbol in self.symbols:
            if symbol in self.discrete:
                continue
            ties = self.ties([symbol])
            maker = min(ties, key=self._maker_rank)
            owner = maker.tensor.rpartition(".")[0] or maker.tensor
            name, count = owner, 1
            while name in names.values():
                count += 1
                name = f"{owner}#{count}"
            names[symbol] = name
            makers = {t.tensor.rpartition(".")[0] for t in ties if not t.integrated}
            tied = {name} | makers | {t.tensor for t in ties}
            hits = [p for p in self.ignore if self._matches(p, tied, makers)]
            matched.update(hits)
            if hits:
                self.discrete[symbol] = "ignored, as asked"
            wanted = [p for p in self.only or [] if self._matches(p, {name}, {owner})]
            matched.update(wanted)
            if self.only is not None and not wanted:
                self.discrete[symbol] = "not among those asked for"
        for argument, patterns in (("ignore", self.ignore), ("only", self.only or [])):
            for pattern in patterns:
                if pattern not in matched:
                    there = sorted(names.values())
                    raise ValueError(f"{argument}: {_text(pattern)} matches no continuous axis; there are {there}")
        return names

    def _matches(self, wanted: str | type, names: set[str], makers: set[str]) -> bool:
        """Whether a pattern fits one of the names, or one of the makers is, or lies in, a module of a class."""
        if isinstance(wanted, str):
            return any(fnmatch.fnmatchcase(name, wanted) for name in names)
        inside = {maker[:end] for maker in makers for end, c in enumerate(f"{maker}.") if c == "."}
        return any(isinstance(self.modules.get(name), wanted) for name in inside)

    def _maker_rank(self, tie: Tie) -> tuple[bool, bool, bool]:
        """Layers that surely make the axis come first, then raw weights, then vectors, then its readers."""
        certain = self._usual_role((tie.tensor, tie.dim))[1]
        return tie.integrated and certain, len(self.shapes[tie.tensor]) < 2, not certain

    def discrete_places(self, live: list[str]) -> list[Discrete]:
        found = []
        for place, expr in self.sizes.places.items():
            tensor, dim = place
            size = self.shapes[tensor][dim]
            if {str(s) for s in expr.free_symbols} & set(live) or tensor.startswith("input:"):
                continue
            if expr.free_symbols:
                reasons = {self.discrete[str(s)] for s in expr.free_symbols}
                found.append(Discrete(tensor, dim, size, "; ".join(sorted(reasons))))
            elif place in self.sizes.pinned:
                found.append(Discrete(tensor, dim, size, f"fixed by {self.sizes.pinned[place]}"))
        return found


def _text(pattern: str | type) -> str:
    return repr(pattern) if isinstance(pattern, str) else pattern.__name__
