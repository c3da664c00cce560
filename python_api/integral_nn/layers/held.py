"""What a call holds: the tensors of many modules sampled by one operation, and kept for the length of the call.

Values are told apart by thread (a context variable), so that any number of threads may call a model. Code that is being
compiled holds them on the modules, whose attributes a tracer follows; the graph that it makes holds nothing.

Running statistics are sampled like the rest, variances as geometric means. In training a norm moves the sampled ones;
when the call ends, their changes, read as functions of the channel, are brought back to the nodes:

    mean_nodes += U (mean' - mean)        var_nodes *= exp(U log(var' / var))        U: K points to M nodes, linearly
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inn_kernels.taps import Basis, Taps, taps_for
from integral_nn.functional import arguments
from integral_nn.functional.foreach import Plan, discretize_foreach, make_plan
from integral_nn.functional.interpolate import interpolate
from integral_nn.layers.axis import Axis
from integral_nn.layers.rule import Rule, Sizes, log
from integral_nn.layers.scheme import NODES, STATISTICS, Back, Group, Kept, Scheme, dtype_of, scheme_for

CALIBRATED = "_calibrated"
"""What the name of a buffer that holds statistics measured at one size ends with."""

_NOTHING: dict[int, dict[str, Tensor]] = {}
_held: ContextVar[dict[int, dict[str, Tensor]]] = ContextVar("held", default=_NOTHING)  # by identity of the module


def held_of(module: Any) -> Mapping[str, Tensor] | None:
    """The values that the running call holds of a module's tensors, if it does."""
    return module._held if torch.compiler.is_compiling() else _held.get().get(id(module))


@contextlib.contextmanager
def held(modules: Sequence[Any], kept: Kept | None = None) -> Iterator[None]:
    """Sample every tensor of `modules` once, let the call see the values, then bring statistics back to their nodes."""
    scheme, nodes, made, together, lone = _sample(modules, None, True, kept, own=False)
    if torch.compiler.is_compiling():
        before = [log(made[n]) if scheme.entries[n].rule.geometric else made[n].clone() for n in lone]
        values = _by_module(scheme, made)
        for module in modules:
            module._held = values[id(module)]
        try:
            yield
        finally:
            for module in modules:
                module._held = None
        _bring_back(scheme, nodes, made, before, lone)
    else:
        if lone:
            together += _put_together(scheme, made, lone)
        moving = [[moves(scheme.entries[n].module) for n in vectors.members] for vectors in together]
        values = _by_module(scheme, made)
        token = _held.set({**_held.get(), **values})
        try:
            yield
        finally:
            _held.reset(token)
        for vectors, those in zip(together, moving):
            _bring_back_together(scheme, nodes, vectors, those)


def sample_modules(
    modules: Iterable[Any], sizes: Sizes = None, training: bool = True, kept: Kept | None = None
) -> dict[int, dict[str, Tensor]]:
    """Every sampled tensor of the modules, by module and name.

    At the current sizes or at others; with `training` off, as if no norm were in training.
    """
    scheme, _, made, _, _ = _sample(modules, sizes, training, kept)
    return _by_module(scheme, made)


def sample_all(modules: Iterable[Any], names: Iterable[str], kept: Kept) -> dict[str, Tensor]:
    """Every sampled tensor at the current sizes by its name, of which each module has as many as rules.

    A tensor whose nodes several modules share goes by its first name.
    """
    _, nodes, made, _, _ = _sample(modules, None, True, kept)
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
) -> tuple[Scheme, list[Any], list[Any], list[Together], list[int]]:
    """The scheme; its entries' nodes and values (None: of a shard); statistics sampled together; others that move.

    Values have memory of their `own`; else some may be nodes, at sizes where sampling changes nothing.
    """
    scheme, nodes, calibrations = scheme_for(list(modules), sizes, kept)
    entries = scheme.entries
    taps: dict[tuple, Any] = {}
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
    together = [_sample_together(group, nodes, made) for group in scheme.means]
    moving = []
    for n in scheme.lone:
        module, _, _, rule = entries[n]
        value = rule.value(nodes[n], nodes[n].dtype, sizes, taps)
        if training and moves(module):
            value = value.detach()
            moving.append(n)
        made[n] = value
    return scheme, nodes, made, together, moving


# Statistics ---------------------------------------------------------------------------------------------------


def moves(module: Any) -> bool:
    """Whether a norm updates its statistics when it is called."""
    return module.training and module.track_running_stats


class Together(NamedTuple):
    """Vectors of statistics, means and then variances, one after the other in memory."""

    members: list[int]
    means: int  # so many of them
    sizes: list[int]
    values: Tensor  # [sum of sizes] which norms move in place
    before: Tensor  # the same before the call, logarithms of variances


@torch.no_grad()
def _sample_together(group: Group, nodes: Sequence[Tensor], made: list[Any]) -> Together:
    """Statistics along fixed partitions, of one device and dtype, by one operation. Writes to `made`."""
    given, means = [nodes[n] for n in group.members], group.means
    if means < len(given):
        variances = given[means:]
        given[means:] = _apart(_log_(torch.cat(variances)), [x.shape[0] for x in variances])
    sampled = list(discretize_foreach(given, group.plan, group.dtype))
    sizes = [x.shape[0] for x in sampled]
    before = torch.cat(sampled)
    values = before.clone()
    _variances(values, sizes, means).exp_()
    for n, value in zip(group.members, _apart(values, sizes)):
        made[n] = value
    return Together(group.members, means, sizes, values, before)


@torch.no_grad()
def _put_together(scheme: Scheme, made: list[Any], members: Iterable[int]) -> Iterator[Together]:
    """The same of statistics that were sampled one by one."""
    kinds: dict[tuple, list[int]] = {}
    for n in members:
        kinds.setdefault((made[n].device, made[n].dtype), []).append(n)
    for alike in kinds.values():
        alike.sort(key=lambda n: scheme.entries[n].rule.geometric)
        means = sum(not scheme.entries[n].rule.geometric for n in alike)
        sizes = [made[n].shape[0] for n in alike]
        values = torch.cat([made[n] for n in alike])
        before = values.clone()
        _log_(_variances(before, sizes, means))
        for n, value in zip(alike, _apart(values, sizes)):
            made[n] = value
        yield Together(alike, means, sizes, values, before)


@torch.no_grad()
def _bring_back_together(scheme: Scheme, nodes: Sequence[Tensor], vectors: Together, moving: list[bool]) -> None:
    """Bring changes of sampled statistics back to their nodes, of those that norms moved."""
    if not any(moving):
        return
    members, means, sizes, values, before = vectors
    after = values.clone()
    _log_(_variances(after, sizes, means))
    changes = _apart(after.sub_(before), sizes)
    if not all(moving):
        members = [n for n, moved in zip(members, moving) if moved]
        changes = [change for change, moved in zip(changes, moving) if moved]
        means = sum(moving[:means])
    own = [nodes[n] for n in members]
    back = scheme.back.get(tuple(members))
    if back is None:
        back = scheme.back[tuple(members)] = _back(scheme, members, own)
    if back.members:
        brought = discretize_foreach([changes[i] for i in back.members], back.plan, back.dtype)
        for i, value in zip(back.members, brought):
            changes[i] = value
    for i in back.others:
        changes[i] = _segments_on_nodes(scheme.entries[members[i]].rule, own[i], changes[i])
    _move(own[:means], changes[:means], own[means:], changes[means:])


def _back(scheme: Scheme, members: Sequence[int], nodes: Sequence[Tensor]) -> Back:
    rules = [scheme.entries[n].rule for n in members]
    plain = [i for i, rule in enumerate(rules) if rule.plain]
    taps = [[_reverse(nodes[i], next(iter(rules[i].axes.values())))] for i in plain]
    plan = make_plan(taps) if plain else Plan((), (), (), (), ())
    return Back(plain, plan, nodes[0].dtype, [i for i, rule in enumerate(rules) if not rule.plain])


def _move(means: list[Tensor], by: list[Tensor], variances: list[Tensor], by_logarithms: list[Tensor]) -> None:
    if means:
        torch._foreach_add_(means, by)
    if variances:
        torch._foreach_clamp_min_(variances, _LEAST)
        torch._foreach_exp_(by_logarithms)
        torch._foreach_mul_(variances, by_logarithms)


_LEAST = 1e-12  # variance


def _log_(variances: Tensor) -> Tensor:
    return variances.clamp_min_(_LEAST).log_()


def _variances(vectors: Tensor, sizes: Sequence[int], means: int) -> Tensor:
    """The part of vectors in a row that follows the means."""
    return vectors[sum(sizes[:means]) :]


_TRACKED = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


def _apart(vectors: Tensor, sizes: list[int]) -> list[Tensor]:
    """Vectors in a row as tensors of their own: no views, for norms write to them."""
    with torch._C._ExcludeDispatchKeyGuard(_TRACKED):
        return list(vectors.split_with_sizes(sizes))


@torch.no_grad()
def _bring_back(
    scheme: Scheme, nodes: Sequence[Tensor], made: Sequence[Tensor], before: Iterable[Tensor], members: Iterable[int]
) -> None:
    """The same in a compiled call, where each is one by itself."""
    kinds: tuple[tuple[list[Tensor], list[Tensor]], ...] = (([], []), ([], []))
    for n, old in zip(members, before):
        rule = scheme.entries[n].rule
        change = (log(made[n]) if rule.geometric else made[n]) - old
        if rule.plain:
            change = F.interpolate(change[None, None], nodes[n].shape[0], mode="linear")[0, 0]
        else:
            change = _segments_on_nodes(rule, nodes[n], change)
        own, changes = kinds[rule.geometric]
        own.append(nodes[n])
        changes.append(change)
    _move(*kinds[0], *kinds[1])


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
