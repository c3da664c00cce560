"""What a call holds: the tensors of many modules sampled by one operation, and kept for the length of the call.

Values are told apart by thread (a context variable), so that any number of threads may call a model. Code that is being
compiled holds them on the modules, whose attributes a tracer follows; the graph that it makes holds nothing.

Running statistics are sampled like the rest, variances as geometric means. In training a norm moves the sampled ones;
when the call ends, their changes, read as functions of the channel, are brought back to the nodes:

    mean_nodes += U (mean' - mean)        var_nodes *= exp(U log(var' / var))        U: K points to M nodes, linearly
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from inn_kernels.taps import Basis, Taps, taps_for
from integral_nn.functional import arguments
from integral_nn.functional.foreach import discretize_foreach, make_plan
from integral_nn.functional.interpolate import interpolate
from integral_nn.layers.rule import Rule, Sizes, log

NODES = "_nodes"
"""What the name of a parameter or buffer that holds nodes ends with."""

CALIBRATED = "_calibrated"
"""What the name of a buffer that holds statistics measured at one size ends with."""

BUCKET = 25 << 20
"""Bytes of nodes that are sampled, and get their gradients, together: what DistributedDataParallel sends together."""

STATISTICS = ("running_mean", "running_var")

_LOW_PRECISION = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)  # whose weights autocast casts
_NOTHING: dict[int, dict[str, Tensor]] = {}
_held: ContextVar[dict[int, dict[str, Tensor]]] = ContextVar("held", default=_NOTHING)  # by identity of the module


class Entry(NamedTuple):
    """A tensor to sample: the module it belongs to, its name there, how it is computed, and its nodes."""

    module: nn.Module
    name: str
    rule: Rule
    nodes: Tensor


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
def held(modules: Sequence[Any]) -> Iterator[None]:
    """Sample every tensor of `modules` once, let the call see the values, then bring statistics back to their nodes."""
    values, statistics = sample_modules(modules)
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
    bring_back(statistics)


def dtype_of(module: nn.Module, nodes: Tensor) -> torch.dtype:
    """The dtype a sampled tensor is written in: autocast's where autocast would cast it."""
    if isinstance(module, _LOW_PRECISION):
        return arguments.compute_dtype(nodes)
    return nodes.dtype


def sample_modules(
    modules: Iterable[Any], sizes: Sizes = None, training: bool = True
) -> tuple[dict[int, dict[str, Tensor]], list[Moved]]:
    """Every sampled tensor of the modules, by module and name; and the statistics that norms in training will move.

    At the current sizes or at others; with `training` off, as if no norm were in training.
    """
    values: dict[int, dict[str, Tensor]] = {}
    groups: dict[tuple, list[Entry]] = {}
    statistics: list[Entry] = []
    made: dict[tuple, Taps] = {}
    for module in modules:
        own = values[id(module)] = {}
        for name, rule in module._rules.items():
            entry = Entry(module, name, rule, getattr(module, name + NODES))
            if hasattr(entry.nodes, "device_mesh"):
                continue  # a shard: the tensor is computed when it is read, after its block was gathered
            if name in STATISTICS:
                statistics.append(entry)
            elif can_join(entry):
                dtype = dtype_of(module, entry.nodes)
                groups.setdefault((entry.nodes.device, entry.nodes.dtype, dtype), []).append(entry)
            else:
                own[name] = rule.value(entry.nodes, dtype_of(module, entry.nodes), sizes, made)
    for (_, _, dtype), entries in groups.items():
        for bucket in _buckets(entries):
            plan = make_plan([e.rule.along(e.nodes, dtype, sizes) for e in bucket])
            for entry, value in zip(bucket, discretize_foreach([e.nodes for e in bucket], plan, dtype)):
                values[id(entry.module)][entry.name] = value
    return values, _sample_statistics(statistics, values, made, sizes, training)


def can_join(entry: Entry) -> bool:
    """Whether a tensor is sampled together with others: fixed points, one axis a dimension, not sharded or batched."""
    return (
        not torch.compiler.is_compiling()  # whose compiler fuses what it can
        and entry.rule.plain
        and entry.rule.fixed
        and entry.rule.backend != "reference"
        and bool(entry.rule.ties)
        and type(entry.nodes) in (Tensor, Parameter)
    )


def _buckets(entries: list[Entry]) -> Iterator[list[Entry]]:
    bucket: list[Entry] = []
    size = 0
    for entry in entries:
        if bucket and size + entry.nodes.nbytes > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(entry)
        size += entry.nodes.nbytes
    yield bucket


# Statistics ---------------------------------------------------------------------------------------------------


class Moved(NamedTuple):
    """Statistics that a norm moves during a call: the sampled values, and a copy (of variances, the logarithm)."""

    entry: Entry
    value: Tensor
    before: Tensor


def moves(module: Any) -> bool:
    """Whether a norm updates its statistics when it is called."""
    return module.training and module.track_running_stats


def _sample_statistics(
    entries: list[Entry],
    values: dict[int, dict[str, Tensor]],
    made: dict[tuple, Taps],
    sizes: Sizes,
    training: bool,
) -> list[Moved]:
    moved: list[Moved] = []
    together: list[Entry] = []
    for entry in entries:
        kept = entry.module.calibrated(entry.name, sizes)  # type: ignore[operator]
        if kept is not None:
            values[id(entry.module)][entry.name] = kept  # which the norm may move in place
        elif can_join(entry):
            together.append(entry)
        else:
            value = entry.rule.value(entry.nodes, entry.nodes.dtype, sizes, made)
            if training and moves(entry.module):
                value = value.detach()
                moved.append(Moved(entry, value, log(value) if entry.rule.geometric else value.clone()))
            values[id(entry.module)][entry.name] = value
    kinds: dict[tuple, list[Entry]] = {}
    for entry in together:
        kinds.setdefault((entry.nodes.device, entry.nodes.dtype), []).append(entry)
    for alike in kinds.values():
        moved += _sample_alike(alike, values, sizes, training)
    return moved


@torch.no_grad()
def _sample_alike(
    entries: list[Entry], values: dict[int, dict[str, Tensor]], sizes: Sizes, training: bool
) -> list[Moved]:
    """Statistics along fixed partitions, of one device and dtype, by one operation."""
    variances = [e for e in entries if e.rule.geometric]
    means = [e for e in entries if not e.rule.geometric]
    logs = _foreach_log([e.nodes for e in variances])
    entries, dtype = [*means, *variances], entries[0].nodes.dtype
    plan = make_plan([e.rule.along(e.nodes, dtype, sizes) for e in entries])
    made = list(discretize_foreach([*(e.nodes for e in means), *logs], plan, dtype))
    logs = made[len(means) :]
    made[len(means) :] = torch._foreach_exp(logs) if logs else []
    for entry, value in zip(entries, made):
        values[id(entry.module)][entry.name] = value
    moving = [n for n, e in enumerate(entries) if training and moves(e.module)]
    moved_means = [made[n] for n in moving if n < len(means)]
    copies = iter(torch._foreach_mul(moved_means, 1.0) if moved_means else ())
    return [Moved(entries[n], made[n], next(copies) if n < len(means) else logs[n - len(means)]) for n in moving]


@torch.no_grad()
def bring_back(moved: list[Moved]) -> None:
    """Bring changes of sampled statistics back to their nodes."""
    if not moved:
        return
    variances = [m for m in moved if m.entry.rule.geometric]
    means = [m for m in moved if not m.entry.rule.geometric]
    after = [m.value for m in means] + _foreach_log([m.value for m in variances])
    moved = [*means, *variances]
    changes = _on_nodes([m.entry for m in moved], list(torch._foreach_sub(after, [m.before for m in moved])))
    if means:
        torch._foreach_add_([m.entry.nodes for m in means], changes[: len(means)])
    if variances:
        nodes = [m.entry.nodes for m in variances]
        torch._foreach_clamp_min_(nodes, 1e-12)
        torch._foreach_mul_(nodes, torch._foreach_exp(changes[len(means) :]))


def _foreach_log(variances: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_log(torch._foreach_clamp_min(variances, 1e-12))) if variances else []


def _on_nodes(entries: list[Entry], changes: list[Tensor]) -> list[Tensor]:
    """Functions given at the points of their axes, at the nodes."""
    kinds: dict[tuple, list[int]] = {}
    for n, entry in enumerate(entries):
        if entry.rule.plain and torch.compiler.is_compiling():
            changes[n] = F.interpolate(changes[n][None, None], entry.nodes.shape[0], mode="linear")[0, 0]
        elif entry.rule.plain:
            kinds.setdefault((entry.nodes.device, entry.nodes.dtype), []).append(n)
        else:
            changes[n] = _segments_on_nodes(entry, changes[n])
    for members in kinds.values():
        plan = make_plan([[_reverse(entries[n], *entries[n].rule.axes)] for n in members])
        made = discretize_foreach([changes[n] for n in members], plan, changes[members[0]].dtype)
        for n, value in zip(members, made):
            changes[n] = value
    return changes


def _reverse(entry: Entry, name: str) -> Taps:
    """Taps of the nodes of an axis on its points: linear interpolation between the centres of equal cells."""
    axis = entry.rule.axes[name]
    wide = arguments.working_dtype(entry.nodes, entry.nodes.dtype)
    linear = Basis(kernel="linear")
    return taps_for(axis.nodes, axis.size, linear, quadrature="midpoint", dtype=wide, device=entry.nodes.device)


def _segments_on_nodes(entry: Entry, change: Tensor) -> Tensor:
    """The same of a vector along several axes, one after the other: each segment by itself."""
    (tie,) = entry.rule.ties

    def along(piece: Tensor, dim: int, name: str) -> Tensor:
        return interpolate(piece, _reverse(entry, name), dim, piece.dtype, "")

    return tie.layout.at(entry.rule.sizes()).sample(change, 0, along)
