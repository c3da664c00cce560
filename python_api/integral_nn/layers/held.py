"""What a call holds: the tensors of many modules sampled by one operation, and kept for the length of the call.

Values are told apart by thread (a context variable), so that any number of threads may call a model. Code that is being
compiled holds them on the modules, whose attributes a tracer follows; the graph that it makes holds nothing.

Running statistics are sampled like the rest, variances as geometric means. In training a norm moves the sampled ones;
when the call ends, their changes, read as functions of the channel, are brought back to the nodes:

    mean_nodes += U (mean' - mean)        var_nodes *= exp(U log(var' / var))        U: K points to M nodes, linearly
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inn_kernels.taps import Basis, Taps, taps_for
from integral_nn.functional import arguments
from integral_nn.functional.foreach import discretize_foreach, make_plan
from integral_nn.functional.interpolate import interpolate
from integral_nn.layers.axis import Axis
from integral_nn.layers.rule import Rule, Sizes, log
from integral_nn.layers.scheme import NODES, STATISTICS, Group, Kept, Scheme, Together, dtype_of, scheme_for

CALIBRATED = "_calibrated"
"""What the name of a buffer that holds statistics measured at one size ends with."""

_NOTHING: dict[int, dict[str, Tensor]] = {}
_held: ContextVar[dict[int, dict[str, Tensor]]] = ContextVar("held", default=_NOTHING)  # by identity of the module


def found(module: Any, name: str) -> Tensor | None:
    """The value that the running call holds of a module's tensor, if it does."""
    if torch.compiler.is_compiling():
        return None if module._held is None else module._held.get(name)
    held = _held.get().get(id(module))
    return None if held is None else held.get(name)


def holds(module: Any) -> bool:
    """Whether the running call holds values of a module."""
    return module._held is not None if torch.compiler.is_compiling() else id(module) in _held.get()


@contextlib.contextmanager
def held(modules: Sequence[Any], kept: Kept | None = None) -> Iterator[None]:
    """Sample every tensor of `modules` once, let the call see the values, then bring statistics back to their nodes."""
    scheme, nodes, made, before = _sample(modules, None, True, kept, own=False)
    values = _by_module(scheme, made)
    moving = [n for n in before if moves(scheme.entries[n].module)]
    moved = _copied([Moved(n, nodes[n], made[n], before[n]) for n in moving])
    if torch.compiler.is_compiling():
        for module in modules:
            module._held = values[id(module)]
        try:
            yield
        finally:
            for module in modules:
                module._held = None
    else:
        token = _held.set({**_held.get(), **values})
        try:
            yield
        finally:
            _held.reset(token)
    bring_back(scheme, moved)


def sample_modules(
    modules: Iterable[Any], sizes: Sizes = None, training: bool = True, kept: Kept | None = None
) -> dict[int, dict[str, Tensor]]:
    """Every sampled tensor of the modules, by module and name.

    At the current sizes or at others; with `training` off, as if no norm were in training.
    """
    scheme, _, made, _ = _sample(modules, sizes, training, kept)
    return _by_module(scheme, made)


def sample_all(modules: Iterable[Any], names: Iterable[str], kept: Kept) -> dict[str, Tensor]:
    """Every sampled tensor at the current sizes by its name, of which each module has as many as rules.

    A tensor whose nodes several modules share goes by its first name.
    """
    _, nodes, made, _ = _sample(modules, None, True, kept)
    once: dict[int, tuple[str, Tensor]] = {}
    for name, tensor, value in zip(names, nodes, made):
        if value is None:
            raise RuntimeError("all weights together need whole parameters, got shards: gather them first")
        once.setdefault(id(tensor), (name, value))
    return dict(once.values())


def _by_module(scheme: Scheme, made: Iterable[Tensor | None]) -> dict[int, dict[str, Tensor]]:
    values: dict[int, dict[str, Tensor]] = {id(module): {} for module in scheme.modules}
    for (module, name, _, _), value in zip(scheme.entries, made):
        if value is not None:
            values[id(module)][name] = value
    return values


def _sample(
    modules: Iterable[Any], sizes: Sizes, training: bool, kept: Kept | None, own: bool = True
) -> tuple[Scheme, list[Any], list[Any], dict[int, Tensor]]:
    """The scheme; its entries' nodes and values (None: of a shard); what norms may move, as `Moved.before`.

    Values have memory of their `own`; else some may be nodes, at sizes where sampling changes nothing.
    """
    scheme, nodes, calibrations = scheme_for(list(modules), sizes, kept)
    entries = scheme.entries
    taps: dict[tuple, Taps] = {}
    made: list[Any] = [None] * len(entries)
    for group in scheme.groups:
        for n in group.unsampled:
            made[n] = nodes[n].to(group.dtype, copy=own)
        if group.sampled:
            values = discretize_foreach([nodes[n] for n in group.sampled], group.plan, group.dtype)
            for n, value in zip(group.sampled, values):
                made[n] = value
    for n in scheme.alone:
        module, _, _, rule = entries[n]
        made[n] = rule.value(nodes[n], dtype_of(module, nodes[n]), sizes, taps)
    for n, value in zip(scheme.statistics, calibrations):
        made[n] = value  # which the norm may move in place
    before: dict[int, Tensor] = {}
    for group in scheme.means:
        _sample_alike(group, nodes, made, before)
    for n in scheme.lone:
        module, _, _, rule = entries[n]
        value = rule.value(nodes[n], nodes[n].dtype, sizes, taps)
        if training and moves(module):
            value = value.detach()
            before[n] = log(value) if rule.geometric else value
        made[n] = value
    return scheme, nodes, made, before


# Statistics ---------------------------------------------------------------------------------------------------


class Moved(NamedTuple):
    """Statistics that a norm moves during a call: which, their nodes and values, and those (or logarithms) before."""

    at: int
    nodes: Tensor
    value: Tensor
    before: Tensor


def moves(module: Any) -> bool:
    """Whether a norm updates its statistics when it is called."""
    return module.training and module.track_running_stats


@torch.no_grad()
def _sample_alike(group: Group, nodes: Sequence[Tensor], made: list[Any], before: dict[int, Tensor]) -> None:
    """Statistics along fixed partitions, of one device and dtype, by one operation: means, then variances."""
    given, means = [nodes[n] for n in group.members], group.means
    sampled = list(discretize_foreach([*given[:means], *_together(_log, given[means:])], group.plan, group.dtype))
    before.update(zip(group.members, sampled))
    for n, value in zip(group.members, sampled[:means] + _together(torch.Tensor.exp_, sampled[means:])):
        made[n] = value


@torch.no_grad()
def _copied(moved: list[Moved]) -> list[Moved]:
    """With copies of means, which norms write to. (Variances before are logarithms, tensors of their own.)"""
    copies = iter(_each(_as_it_is, [m.value for m in moved if m.before is m.value]))
    return [m._replace(before=next(copies)) if m.before is m.value else m for m in moved]


@torch.no_grad()
def bring_back(scheme: Scheme, moved: list[Moved]) -> None:
    """Bring changes of sampled statistics back to their nodes."""
    if not moved:
        return
    variances = [m for m in moved if scheme.entries[m.at].rule.geometric]
    means = [m for m in moved if not scheme.entries[m.at].rule.geometric]
    after = [m.value for m in means] + _each(_log, [m.value for m in variances])
    moved = [*means, *variances]
    changes = _on_nodes(scheme, moved, _each(torch.Tensor.sub_, after, [m.before for m in moved]))
    if means:
        torch._foreach_add_([m.nodes for m in means], changes[: len(means)])
    if variances:
        nodes = [m.nodes for m in variances]
        torch._foreach_clamp_min_(nodes, 1e-12)
        torch._foreach_mul_(nodes, _each(torch.Tensor.exp_, changes[len(means) :]))


def _log(x: Tensor) -> Tensor:
    return x.clamp_min_(1e-12).log_()


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _each(change: Callable[..., Tensor], *tensors: list[Tensor]) -> list[Tensor]:
    """`change` of each of many small vectors, in place of copies of them."""
    if torch.compiler.is_compiling() or len({(x.device, x.dtype) for x in tensors[0]}) > 1:
        return [change(*(x.clone() for x in one)) for one in zip(*tensors)]
    return _together(change, *tensors)


def _together(change: Callable[..., Tensor], *tensors: list[Tensor]) -> list[Tensor]:
    """The same of vectors of one device and dtype: one after the other in memory, at one go."""
    if not tensors[0]:
        return []
    made = change(*(torch.cat(each) for each in tensors))
    with torch._C._ExcludeDispatchKeyGuard(_TRACKED):  # norms write to them: tensors of their own, no views
        return list(made.split([x.shape[0] for x in tensors[0]]))


_TRACKED = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


def _on_nodes(scheme: Scheme, moved: Sequence[Moved], changes: list[Tensor]) -> list[Tensor]:
    """Functions given at the points of their axes, at the nodes."""
    if torch.compiler.is_compiling():
        together: list[Together] = []
    else:
        key = tuple(m.at for m in moved)
        found = scheme.back.get(key)
        together = scheme.back.setdefault(key, _groups_back(scheme, moved)) if found is None else found
    for n, m in enumerate(moved):
        rule = scheme.entries[m.at].rule
        if not rule.plain:
            changes[n] = _segments_on_nodes(rule, m.nodes, changes[n])
        elif torch.compiler.is_compiling():
            changes[n] = F.interpolate(changes[n][None, None], m.nodes.shape[0], mode="linear")[0, 0]
    for group in together:
        values = discretize_foreach([changes[n] for n in group.members], group.plan, group.dtype)
        for n, value in zip(group.members, values):
            changes[n] = value
    return changes


def _groups_back(scheme: Scheme, moved: Sequence[Moved]) -> list[Together]:
    kinds: dict[tuple, list[int]] = {}
    for n, m in enumerate(moved):
        if scheme.entries[m.at].rule.plain:
            kinds.setdefault((m.nodes.device, m.nodes.dtype), []).append(n)
    axes = [scheme.entries[m.at].rule.axes.values() for m in moved]
    return [
        Together(members, make_plan([[_reverse(moved[n].nodes, next(iter(axes[n])))] for n in members]), dtype)
        for (_, dtype), members in kinds.items()
    ]


def _reverse(nodes: Tensor, axis: Axis, sizes: Sizes = None) -> Taps:
    """Taps of the nodes of an axis on its points: linear interpolation between the centres of equal cells."""
    points = axis.size if sizes is None else sizes[axis]
    wide = arguments.working_dtype(nodes, nodes.dtype)
    linear = Basis(kernel="linear")
    return taps_for(axis.nodes, points, linear, quadrature="midpoint", dtype=wide, device=nodes.device)


def warm_statistics(modules: Iterable[Any], sizes: Sizes) -> None:
    """Make and keep what brings back statistics at these sizes."""
    for module in modules:
        for name in STATISTICS:
            if name in module._rules:
                for axis in module._rules[name].axes.values():
                    _reverse(getattr(module, name + NODES), axis, sizes)


def _segments_on_nodes(rule: Rule, nodes: Tensor, change: Tensor) -> Tensor:
    """The same of a vector along several axes, one after the other: each segment by itself."""
    (tie,) = rule.ties

    def along(piece: Tensor, dim: int, name: str) -> Tensor:
        return interpolate(piece, _reverse(nodes, rule.axes[name]), dim, piece.dtype, "")

    return tie.layout.at(rule.sizes()).sample(change, 0, along)
