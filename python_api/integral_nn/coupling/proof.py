"""Proof of an axis on the network itself, in float64 and with random weights, so that nothing is true by accident.

    permutation   reorder the channels everywhere the axis runs: the outputs must stay as they were
    refinement    put every channel twice, and halve the weights where the network sums over the axis: likewise

The first shows that the axis ties what belongs together, in the right layout. The second that the network runs at
another size, and that every sum over the axis is one a quadrature can weight: a softmax over channels, or a dot product
of two feature maps, passes the first and fails the second. A third check, on gradients, makes sure that the outputs
depend on the channels at all, without which the other two would prove nothing.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from integral_nn.coupling.calls import ConversionError, Inputs, call, cast, named_tensors, training
from integral_nn.coupling.precision import double_throughout
from integral_nn.layers.channels import Layout, Tie
from integral_nn.layers.module_sizes import shapes_of, update_sizes
from integral_nn.layers.numbers import Number, put_numbers

_FEW = 32
"""Channels; of more, a random order respects blocks with a chance below one in a hundred million."""
Draw = Callable[[str, Tensor, torch.Generator], Tensor]
OutputTie = tuple[int, int, Layout]
"""An output's index, its dimension, and the axes along it."""


class fast_paths_off:
    """Fused kernels of attention and recurrence hide the shapes of their weights: off while tracing and proving."""

    def __enter__(self) -> None:
        self.was = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        self.fused = torch.backends.mkldnn.flags(enabled=False)
        self.fused.__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.backends.mha.set_fastpath_enabled(self.was)
        self.fused.__exit__(*error)


class Probe:
    """A copy of a network with random weights in float64 (float32 where it cannot run in float64).

    With `trains`, what it does in training mode is looked at as well.

    Raises:
        ConversionError: the network's outputs are not finite, or differ between two runs on the same inputs.
    """

    def __init__(self, net: nn.Module, inputs: Inputs, seed: int = 0, trains: bool = False) -> None:
        self.trains = trains
        generator = torch.Generator().manual_seed(seed)
        self.generator = generator
        randomized = inputs.replaced([_noise_like(x, generator) if _is_real(x) else x for x in inputs.leaves()])
        failures = []
        for dtype in (torch.float64, torch.float32):
            copied = copy.deepcopy(net).eval().to(dtype)
            own = _tensors(copied)
            for draw, given in ((_draw, randomized), (_draw, inputs), (_near, inputs), (None, inputs)):
                tensors = _drawn(own, draw, generator)
                self.net, self.tensors, self.inputs, self.dtype = copied, tensors, cast(given, dtype), dtype
                try:
                    self.base = self.run(tensors)
                    again = self.run(tensors)
                except Exception as error:
                    failures.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
                    continue
                if not all(torch.equal(x, y) for x, y in zip(self.base, again) if not x.isnan().any()):
                    raise ConversionError(
                        "the network's outputs differ between two runs on the same inputs in eval mode, with PyTorch's "
                        "random numbers seeded alike: nothing can be proved of it"
                    )
                if all(bool(torch.isfinite(t).all()) and bool(t.abs().sum() > 0) for t in self.base):
                    self.tolerance = 1e-9 if dtype == torch.float64 else 1e-4
                    self.shapes = shapes_of(tensors)
                    return
                failures.append("the outputs are zero or not finite")
        raise ConversionError(f"the network does not run on its example inputs: {failures[-1]}")

    def run(self, tensors: dict[str, Tensor], inputs: Inputs | None = None) -> list[Tensor]:
        """Floating-point outputs with these tensors."""
        inputs = self.inputs if inputs is None else inputs
        with torch.no_grad(), self.precision():
            return self._call(tensors, inputs)

    def _call(self, tensors: dict[str, Tensor], inputs: Inputs) -> list[Tensor]:
        out = call(self.net, tensors, inputs)
        if self.trains:
            with training(self.net):
                out += call(self.net, tensors, inputs)
        return out

    def precision(self) -> contextlib.AbstractContextManager:
        """In which the network runs."""
        return double_throughout() if self.dtype == torch.float64 else contextlib.nullcontext()

    def changed(
        self,
        ties: Sequence[Tie],
        orders: dict[str, Tensor],
        outputs: Sequence[OutputTie] = (),
        weights: dict[str, Tensor] | None = None,
        numbers: Sequence[Number] = (),
    ) -> float:
        """How far the outputs move (relative to their size) when channels become `orders`; infinite on an error.

        `weights` [new channels] multiplies integrated dimensions; `numbers` follow the sizes.
        """
        tensors = dict(self.tensors)
        flat = self.inputs.leaves()
        for tie in ties:
            live = {a: orders[a] for a in tie.axes if a in orders}
            if not live:
                continue
            source = tie.layout.source(live)
            is_input = tie.tensor.startswith("input:")
            old = flat[int(tie.tensor[6:])] if is_input else tensors[tie.tensor]
            new = old.index_select(tie.dim, source.to(old.device))
            if weights is not None and tie.integrated:
                factors = tie.layout.spread({a: w for a, w in weights.items() if a in tie.axes})
                new = new * factors[source].to(new).view([-1] + [1] * (new.dim() - tie.dim - 1))
            if is_input:
                flat[int(tie.tensor[6:])] = new
            else:
                tensors[tie.tensor] = new
        sizes = {name: len(order) for name, order in orders.items()}
        counts = {number.place: number.layout.resized(sizes) for number in numbers}
        full = {number.place: number.layout.size for number in numbers}
        try:
            update_sizes(self.net, shapes_of(tensors))
            put_numbers(self.net, counts)
            out = self.run(tensors, self.inputs.replaced(flat))
        except Exception:
            return float("inf")
        finally:
            update_sizes(self.net, self.shapes)
            put_numbers(self.net, full)
        worst = 0.0
        expected = list(self.base)
        for index, dim, layout in outputs:
            live = {a: orders[a] for a in layout.axes if a in orders}
            if live:
                source = layout.source(live).to(expected[index].device)
                expected[index] = expected[index].index_select(dim, source)
        for want, have in zip(expected, out):
            if want.shape != have.shape:
                return float("inf")
            error = (want - have).abs().max() / want.abs().max()
            worst = max(worst, float(error)) if bool(torch.isfinite(error)) else float("inf")
        return worst

    def permuted(
        self, ties: Sequence[Tie], axes: dict[str, tuple[int, int]], outputs: Sequence[OutputTie] = ()
    ) -> float:
        """`changed` under permutations of the axes {name: (nodes, blocks)}, which leave blocks whole.

        Orders that change nothing are a group. Two are tried, of which all others are made: all channels moved on by
        one, and a random order; for few channels, where that may respect by chance what it should not, two exchanged.
        """
        worst = 0.0
        for draw in (0, 1):
            orders = {}
            for name, (nodes, blocks) in axes.items():
                each = nodes // blocks
                rows = [b * each + self._order(each, draw, b == 0) for b in range(blocks)]
                turned = rows if draw else rows[1:] + rows[:1]
                orders[name] = torch.cat(turned)
            worst = max(worst, self.changed(ties, orders, outputs))
            if not worst <= self.tolerance:
                break
        return worst

    def _order(self, n: int, draw: int, first: bool) -> Tensor:
        """One of two orders of n channels, in the first block or another."""
        order = torch.arange(n)
        if draw == 0:
            return order.roll(1)
        if n > _FEW:
            return torch.randperm(n, generator=self.generator)
        return torch.cat([order[:2].flip(0), order[2:]]) if first else order

    def refined(
        self,
        ties: Sequence[Tie],
        axes: Iterable[str],
        outputs: Sequence[OutputTie] = (),
        numbers: Sequence[Number] = (),
    ) -> float:
        """`changed` when each channel of `axes` is put twice, with half the weight where it is summed over."""
        nodes = {s.axis: s.nodes for tie in ties for s in tie.layout.segments if s.axis is not None}
        axes = list(axes)
        orders = {name: torch.arange(nodes[name]).repeat_interleave(2) for name in axes}
        weights = {name: torch.full((nodes[name],), 0.5, dtype=torch.float64) for name in axes}
        return self.changed(ties, orders, outputs, weights, numbers)

    def gradients(self, fresh_inputs: bool = False) -> dict[str, Tensor] | None:
        """|gradient * value| of a random sum of the outputs, for every parameter; None where autograd cannot run.

        Of a parameter that no output was made of, none.

        `fresh_inputs`: on other inputs than the proof's, of the same shapes.
        """
        names = dict(self.net.named_parameters())
        leaves = {n: t.detach().clone().requires_grad_(n in names) for n, t in self.tensors.items()}
        inputs = self.inputs
        if fresh_inputs:
            noise = [_noise_like(x, self.generator).to(x) if _is_real(x) else x for x in inputs.leaves()]
            inputs = inputs.replaced(noise)
        try:
            with torch.enable_grad(), self.precision():
                out = self._call(leaves, inputs)
                weights = [torch.randn(t.shape, generator=self.generator).to(t) for t in out]
                total = torch.stack([(t * w).sum() / t.detach().abs().max() for t, w in zip(out, weights)]).sum()
                live = {n: t for n, t in leaves.items() if t.requires_grad}
                grads = torch.autograd.grad(total, list(live.values()), allow_unused=True)
        except RuntimeError:
            return None
        return {n: (g * t).abs().detach() for (n, t), g in zip(live.items(), grads) if g is not None}

    def dead(self, name: str) -> bool:
        """Whether outputs are the same to the bit whatever a tensor holds."""
        drawn = (_draw(name, self.tensors[name], self.generator) for _ in range(3))
        outs = [self.run({**self.tensors, name: value}) for value in drawn]
        return all(torch.equal(x, y) for out in outs for x, y in zip(self.base, out))


def _is_real(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in named_tensors(net).items() if t.is_floating_point()}


def _drawn(own: dict[str, Tensor], draw: Draw | None, generator: torch.Generator) -> dict[str, Tensor]:
    """Other values, the same ones in all modules that have a tensor."""
    found: dict[int, Tensor] = {}
    for name, t in own.items():
        if id(t) not in found:
            found[id(t)] = t.detach() if draw is None else draw(name, t.detach(), generator)
    return {name: found[id(t)] for name, t in own.items()}


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)


def _draw(name: str, t: Tensor, generator: torch.Generator) -> Tensor:
    """Random values a network can live with: weights by fan-in, small biases, everything else near one."""
    leaf = name.rpartition(".")[2]
    if "bias" in leaf or "mean" in leaf:
        drawn = 0.1 * torch.randn(t.shape, generator=generator)
    elif t.dim() >= 2:
        fan_in = max(t[0].numel(), 1)
        drawn = 1.5 / fan_in**0.5 * torch.randn(t.shape, generator=generator)
    else:
        drawn = 0.5 + torch.rand(t.shape, generator=generator)
    return drawn.to(t)


def _near(name: str, t: Tensor, generator: torch.Generator) -> Tensor:
    """The network's own values, off by up to a tenth."""
    return t * (1 + 0.1 * torch.rand(t.shape, generator=generator).to(t))
