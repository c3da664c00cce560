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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import sympy
import torch
from torch import Tensor, nn

from integral_nn.coupling.axis_set import AxisSet, AxisSpec, Discrete
from integral_nn.coupling.calls import Inputs
from integral_nn.coupling.equations import Place, SymbolicSizes
from integral_nn.coupling.groups import failing
from integral_nn.coupling.hypotheses import Hypotheses
from integral_nn.coupling.proof import Probe
from integral_nn.coupling.readings import terms_of
from integral_nn.layers.channels import Tie

_MOST_HYPOTHESES, _MOST_FLIPS = 128, 6


class Search(Hypotheses):
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
        super().__init__(net, sizes, shapes, continuous_outputs)
        self.ignore, self.only = ignore, only
        self.net, self.inputs, self.seed = net, inputs, seed

    # the search ------------------------------------------------------------------------------------------------

    def run(self) -> AxisSet:
        names = self.name_axes()
        live = [s for s in self.symbols if s not in self.discrete]
        if live:
            self.probe = Probe(self.net, self.inputs, self.seed, self.sizes.trains)
            kinds: dict[tuple, list[str]] = {}
            for symbol in live:
                kinds.setdefault(self._kind(symbol), []).append(symbol)
            groups = list(kinds.values())
            for group in list(failing(groups, lambda some: self.permutes(list(itertools.chain(*some))))):
                self.lay_out(group)
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

    def lay_out(self, group: Sequence[str]) -> None:
        """Find layouts for symbols of a kind, which fail together: the first one's for the others, if it does."""
        first, *rest = group
        if not (rest and self.permutes([first])):
            self._must_be_laid_out(first)
        for symbol in rest if first in self.grain else ():
            self.blocks[symbol], self.grain[symbol] = self.blocks[first], self.grain[first]
            pairs = list(zip(self._sizes_of(first), self._sizes_of(symbol)))
            self.choice.update({key: self.choice[like] for like, key in pairs if like in self.choice})
        for symbol in list(failing(rest, self.permutes)):
            if symbol in self.grain:
                self.blocks.pop(symbol), self.grain.pop(symbol)
                for key in self._sizes_of(symbol):
                    self.choice.pop(key, None)
            if not (first in self.grain and self.permutes([symbol])):
                self._must_be_laid_out(symbol)

    def _must_be_laid_out(self, symbol: str) -> None:
        if not self.search_layout(symbol):
            self.discrete[symbol] = "no layout was found in which its channels can be reordered"

    def _sizes_of(self, symbol: str) -> dict[str, sympy.Expr]:
        """The raw sizes that a symbol enters and may still lay out, with what they are."""
        places = ((p, e) for p, e in self.sizes.places.items() if self.symbols[symbol] in e.free_symbols)
        found = {self.sizes.raw[place]: expr for place, expr in places}
        return {key: expr for key, expr in found.items() if self.fixed.get(key, symbol) == symbol}

    def _kind(self, symbol: str) -> tuple:
        """Alike for symbols that run in the same way along tensors of the same kinds of modules."""
        where = set()
        for tensor, dim in self.places_of[symbol]:
            owner, _, leaf = tensor.rpartition(".")
            terms = self._terms(self.sizes.places[tensor, dim], symbol)
            where.add((type(self.modules.get(owner)).__name__, leaf, dim, terms))
        return self.step(symbol), tuple(sorted(where))

    def _terms(self, expr: sympy.Expr, symbol: str) -> tuple:
        """A size as a sum of so many of this symbol, of others, and of a constant."""
        return tuple(sorted((c, "" if s is None else "own" if s == symbol else "other") for c, s in terms_of(expr)))

    def search_layout(self, symbol: str, also: Callable[[str], bool] = lambda symbol: True) -> bool:
        """Try what else the sizes can mean: other layouts, then channels in blocks, then copies of a smaller axis."""
        expr_of = self._sizes_of(symbol)
        k = self.step(symbol)
        shapes = [(1, 1)] + ([(k, 1), (1, k)] if k > 1 else [])
        copies = {c for expr in expr_of.values() for c, s in terms_of(expr) if s == symbol and c > 1}
        shapes += [(1, c) for c in sorted(copies - {k}) if self.meanings.hints[symbol] % c == 0]
        saved = dict(self.choice)
        tried = 0
        for blocks, grain in shapes:
            self.blocks[symbol], self.grain[symbol] = blocks, grain
            known = tuple(self.liked.get(self._terms(e, symbol), 0) for e in expr_of.values())
            for picks in itertools.chain([known] if any(known) else [], self._picks(list(expr_of.values()))):
                tried += 1
                if tried > _MOST_HYPOTHESES:
                    break
                self.choice.update(zip(expr_of, picks))
                if self.permutes([symbol]) and also(symbol):
                    self.liked.update({self._terms(e, symbol): pick for e, pick in zip(expr_of.values(), picks)})
                    self.fixed |= dict.fromkeys(expr_of, symbol)
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
