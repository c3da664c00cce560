"""What a conversion makes of one architecture: axes, seconds, errors, and what it is after a change of size."""

from __future__ import annotations

import fnmatch
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import integral_nn as inn
from integral_nn.coupling.axis_set import AxisSet
from integral_nn.coupling.calls import tensors_in
from integral_nn.networks.permute import apply_orders

BATCH, OTHER = 2, 3
OURS = (b"integral_nn", b"inn_kernels")


@dataclass(frozen=True)
class Architecture:
    """A network and its inputs at conversion; other ones, of another size where it takes one, to compare outputs on."""

    kind: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple]
    elsewhere: Callable[[int], tuple] | None = None
    kwargs: Callable[[int], dict[str, Any]] = lambda batch: {}
    axes: Mapping[str, int] = field(default_factory=dict)
    """Patterns of names of axes that must be found, and their sizes (0: whatever they are)."""


@dataclass
class Row:
    """One architecture. Errors are relative to the largest output."""

    name: str
    source: str
    kind: str
    parameters: int = 0
    axes: int = 0
    share: float = 0.0
    """Of parameters, those in tensors that a resize changes."""
    missing: str = ""
    """Axes that should be found and are not."""
    seconds: float = 0.0
    """To convert on one thread, channels in the order they have."""
    error: float = float("nan")
    permuted: float = float("nan")
    """With the channels of every axis in a random order."""
    resized: float = float("nan")
    """Between the resized network and the plain one it discretizes to."""
    trains: int = 0
    refused: str = ""

    @property
    def good(self) -> bool:
        """Whether everything holds that a conversion promises."""
        exact = self.error <= 1e-5 and self.permuted <= 1e-5 and self.resized <= 1e-6
        return not self.refused and not self.missing and exact and self.trains == 1


def measure(row: Row, architecture: Architecture) -> Row:
    """Fill a row in; what goes wrong is its `refused`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        _measure(row, architecture)
    except Exception as error:
        kind = "" if isinstance(error, inn.ConversionError) else f"{type(error).__name__}: "
        row.refused = kind + str(error).strip()
    return row


def _measure(row: Row, architecture: Architecture) -> None:
    net = architecture.make().eval()
    row.parameters = sum(p.numel() for p in net.parameters())
    example, kwargs = architecture.inputs(BATCH), architecture.kwargs(BATCH)
    if row.source != "ours":
        enliven(net, example, kwargs)
    start = time.thread_time()
    model = inn.convert(net, example, kwargs, permute=False)
    row.seconds = time.thread_time() - start
    row.axes, row.share = len(model.axes), share_of(model.found, net)
    row.missing = ", ".join(p for p, size in architecture.axes.items() if not _has(model.found, p, size))
    given = (architecture.elsewhere or architecture.inputs)(OTHER), architecture.kwargs(OTHER)
    want = outputs(net, *given)
    if not any(varies(t) for t in want):
        raise AssertionError("the outputs do not depend on the inputs, so nothing is shown")
    row.error = difference(want, outputs(model, *given))
    plain = model.discretize().eval()
    row.permuted = difference(want, outputs(permuted(plain, model.found), *given))
    model.resize(0.5)
    small = model.discretize().eval()
    row.resized = difference(outputs(model, *given), outputs(small, *given))
    check_free_of_us(small)
    train(model, *given)
    train(small, *given)
    row.trains = 1


def _has(found: AxisSet, pattern: str, size: int) -> bool:
    return any(size in (0, found.specs[name].nodes) for name in fnmatch.filter(found.specs, pattern))


@torch.no_grad()
def enliven(net: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Weights that keep the size of signals, vectors that are not trivial, statistics of norms as measured.

    As they are made, deep networks often answer with their last bias, whatever they are given.
    """
    for module in net.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    for parameter in net.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.5
        norm.train()
    if norms:
        net(*args, **kwargs)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()


def share_of(found: AxisSet, net: nn.Module) -> float:
    """The share of parameters that lie in tensors with a continuous dimension."""
    tied = {tie.tensor for tie in found.ties}
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    folded = {name for name in sizes if name not in found.parameters}  # norms in layers that have their sizes
    return sum(n for name, n in sizes.items() if name in tied or name in folded) / sum(sizes.values())


def varies(out: Tensor) -> bool:
    """Whether an output differs between examples, by more than a thousandth."""
    return out.dim() > 0 and difference([out], [out[:1].expand_as(out)]) > 1e-3


@torch.no_grad()
def outputs(net: Callable, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """Floating-point outputs, random numbers seeded."""
    torch.manual_seed(0)
    return [t.clone() for t in tensors_in(net(*args, **kwargs))]


def difference(want: list[Tensor], have: list[Tensor]) -> float:
    """The largest, relative to the largest element of each output; where both are infinite they are the same."""
    worst = 0.0
    if [t.shape for t in want] != [t.shape for t in have]:
        return float("inf")
    for x, y in zip(want, have):
        finite = x.isfinite()
        if not torch.equal(x[~finite], y[~finite]):
            return float("inf")
        if bool(finite.any()):
            error = float((x - y)[finite].abs().max() / x[finite].abs().max().clamp(min=1e-30))
            worst = worst if error <= worst else error
    return worst


def permuted(net: nn.Module, found: AxisSet, seed: int = 0) -> Callable:
    """The network with the channels of every axis in a random order, wherever the axis runs."""
    generator = torch.Generator().manual_seed(seed)
    orders = {}
    for name, spec in found.specs.items():
        block = spec.nodes // spec.blocks
        rows = [b * block + torch.randperm(block, generator=generator) for b in range(spec.blocks)]
        orders[name] = torch.cat(rows)
    named = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    tensors = apply_orders({name: t.detach() for name, t in named}, found, orders)
    return lambda *args, **kwargs: functional_call(net, tensors, args, kwargs, tie_weights=False)


def check_free_of_us(net: nn.Module) -> None:
    """Raise where a plain network still needs this package."""
    for name, module in net.named_modules():
        for kind in type(module).__mro__:
            if kind.__module__.startswith(("integral_nn", "inn_kernels")):
                raise AssertionError(f"module {name!r} of the discretized network is a {kind}")
    try:
        saved = pickle.dumps(net)
    except (pickle.PicklingError, AttributeError, TypeError):  # classes of this process alone
        return
    if any(name in saved for name in OURS):
        raise AssertionError("the discretized network, pickled, names this package")


def train(net: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """A step of training in training mode."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-4)
    loss = torch.stack([t.nan_to_num(0, 0, 0).square().mean() for t in tensors_in(net(*args, **kwargs))]).sum()
    loss.backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    if not grads or not all(bool(g.isfinite().all()) for g in grads):
        raise AssertionError("a training step has gradients that are not finite, or none")
    optimizer.step()
    net.eval()
