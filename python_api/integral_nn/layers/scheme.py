"""How a call samples the tensors of many modules: which together, along which taps, in what order. No value is in it.

A scheme costs more to make than to run, and stays the same from call to call until a dtype or the network itself
changes. So it is kept, with all that it depends on beside it, which every call compares with what it finds. A new size
costs no more than its taps. Tensors are looked up anew in every call, and none is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter

from inn_kernels.taps import Taps
from integral_nn.functional import arguments
from integral_nn.functional.foreach import Plan
from integral_nn.layers.axis import Axis
from integral_nn.layers.rule import Rule, Sizes

NODES = "_nodes"
"""What the name of a parameter or buffer that holds nodes ends with."""

BUCKET = 25 << 20
"""Bytes of nodes that are sampled, and get their gradients, together: what DistributedDataParallel sends together."""

STATISTICS = ("running_mean", "running_var")

_LOW_PRECISION = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)  # whose weights autocast casts


class Entry(NamedTuple):
    """A tensor to sample: the module it belongs to, its name and that of its nodes there, and how it is computed."""

    module: Any
    name: str
    nodes: str
    rule: Rule

    @property
    def is_statistic(self) -> bool:
        """Of a norm of torch.nn, which moves it in training."""
        return self.name in STATISTICS and hasattr(self.module, "calibrated")


class Side(NamedTuple):
    """Where taps come from."""

    axis: Axis
    integrated: bool
    scale: float
    dtype: torch.dtype
    device: torch.device

    def taps(self, sizes: Sizes) -> Taps:
        """At the sizes of now, or at others."""
        size = None if sizes is None else sizes[self.axis]
        return self.axis.taps(
            weighted=self.integrated, scale=self.scale, dtype=self.dtype, device=self.device, size=size
        )


class Group(NamedTuple):
    """Tensors that one operation samples, by their place among the entries, and how."""

    members: list[int]
    places: tuple[list[int], list[int]]  # of each, which of the sides its first two dimensions have, -1: none
    dtype: torch.dtype
    sides: list[Side]
    means: int  # so many of the members, the first, are sampled as they are, the others by their logarithms
    passes: bool  # tensors along axes whose taps are the identity are their nodes, and not sampled
    sampled: list[int]  # members that are
    plan: Plan  # of those
    unsampled: list[int]

    def resized(self, sizes: Sizes = None) -> Group:
        """The same at the sizes of now (or at others)."""
        taps = [side.taps(sizes) for side in self.sides]
        same = {n for n, table in enumerate(taps) if self.passes and table.identity}
        out, in_ = ([-1 if at in same else at for at in places] for places in self.places)
        some = [n for n, along in enumerate(zip(out, in_)) if max(along) >= 0]
        start, weight, nodes = (tuple(column) for column in zip(*taps))
        return self._replace(
            plan=Plan(start, weight, nodes, tuple(out[n] for n in some), tuple(in_[n] for n in some)),
            sampled=[self.members[n] for n in some],
            unsampled=[m for n, m in enumerate(self.members) if out[n] == in_[n] == -1],
        )


class Back(NamedTuple):
    """How changes of some statistics come to their nodes, by their place among them."""

    members: list[int]  # by one operation
    plan: Plan
    dtype: torch.dtype
    others: list[int]  # one by one


class Scheme(NamedTuple):
    """How tensors are sampled, and what that depends on."""

    modules: list[Any]
    rules: list[dict[str, Rule]]
    entries: list[Entry]
    statistics: list[int]  # which of them are
    kinds: tuple[list, ...]  # of the nodes
    devices: list[str]
    autocast: list[torch.dtype | None]
    calibrated: list[bool]  # of the statistics
    axes: list[Axis]
    fixed: list[bool]  # no trainable points
    tables: Sequence[object]  # of taps: an axis has others as soon as anything of it changes
    groups: list[Group]  # of weights
    alone: list[int]  # weights by themselves
    means: list[Group]  # of statistics: variances after means
    lone: list[int]  # statistics by themselves
    back: dict[tuple[int, ...], Back]  # of changes of statistics, by those that have changed


class Kept:
    """The scheme of the last call of a network. A copy of it is empty, for a copied network has other modules."""

    scheme: Scheme | None = None

    def __reduce__(self) -> tuple:
        return Kept, ()


def scheme_for(modules: list[Any], sizes: Sizes, kept: Kept | None) -> tuple[Scheme, list[Any], list[Any]]:
    """How modules are sampled at the current sizes (or at others); the nodes, and calibrations of the statistics.

    The scheme in `kept` if it still serves; else one that is made, and kept there.
    """
    if sizes is not None or kept is None or torch.compiler.is_compiling():
        return _make(modules, sizes)
    scheme = kept.scheme
    if scheme is not None and scheme.modules == modules and scheme.rules == [m._rules for m in modules]:
        nodes, calibrations = _nodes(scheme.entries), _calibrations(scheme.entries, scheme.statistics, None)
        if (
            scheme.kinds == _kinds(nodes)
            and scheme.autocast == _autocast(scheme.devices)
            and scheme.calibrated == [value is not None for value in calibrations]
            and scheme.fixed == [axis.delta is None for axis in scheme.axes]
        ):
            tables = [axis._tables for axis in scheme.axes]  # first: another thread may resize while taps are looked up
            if not all(map(is_, tables, scheme.tables)):
                groups, means = ([g.resized() for g in kind] for kind in (scheme.groups, scheme.means))
                scheme = kept.scheme = scheme._replace(tables=tables, groups=groups, means=means, back={})
            return scheme, nodes, calibrations
    made = _make(modules, None)
    kept.scheme = made[0]
    return made


def _make(modules: list[Any], sizes: Sizes) -> tuple[Scheme, list[Any], list[Any]]:
    entries = [Entry(m, name, name + NODES, rule) for m in modules for name, rule in m._rules.items()]
    weights = [n for n, entry in enumerate(entries) if not entry.is_statistic]
    statistics = [n for n, entry in enumerate(entries) if entry.is_statistic]
    compiling = torch.compiler.is_compiling()
    axes = [] if compiling else list({axis: None for entry in entries for axis in entry.rule.axes.values()})
    fixed, tables = [axis.delta is None for axis in axes], [axis._tables for axis in axes]
    nodes, calibrations = _nodes(entries), _calibrations(entries, statistics, sizes)
    kinds = () if compiling else _kinds(nodes)
    alone = [n for n in weights if entries[n].rule.geometric]  # of a norm that is not torch.nn's
    joining = [n for n in weights if n not in alone]
    groups = []
    for (_, _, dtype), members in _alike(entries, nodes, joining, alone).items():
        for bucket in _buckets(members, nodes):
            groups.append(_group(entries, nodes, bucket, dtype, sizes))
    lone: list[int] = []
    means = []
    sampled = [n for n, value in zip(statistics, calibrations) if value is None]
    for (_, dtype, _), members in _alike(entries, nodes, sampled, lone).items():
        members.sort(key=lambda n: entries[n].rule.geometric)
        means.append(_group(entries, nodes, members, dtype, sizes))
    devices = sorted({device.type for device in kinds[1]}) if kinds else []
    scheme = Scheme(
        modules, [m._rules for m in modules], entries, statistics, kinds, devices, _autocast(devices),
        [value is not None for value in calibrations], axes, fixed, tables, groups, alone, means, lone, {},
    )  # fmt: skip
    return scheme, nodes, calibrations


def _nodes(entries: Iterable[Entry]) -> list[Any]:
    if torch.compiler.is_compiling():
        return [getattr(module, name) for module, _, name, _ in entries]
    found = [module._parameters.get(name) for module, _, name, _ in entries]
    return [nodes_of(e.module, e.nodes) if x is None else x for x, e in zip(found, entries)]


def _calibrations(entries: Sequence[Entry], statistics: Iterable[int], sizes: Sizes) -> list[Any]:
    return [entries[n].module.calibrated(entries[n].name, sizes) for n in statistics]


def nodes_of(module: Any, name: str) -> Any:
    """A parameter or buffer of a module, sooner than by attribute; or what stands in its place, or None."""
    nodes = module._parameters.get(name)
    if nodes is None:
        nodes = module._buffers.get(name)
    return getattr(module, name, None) if nodes is None else nodes


def has_shards(modules: Iterable[Any]) -> bool:
    """Whether nodes of any module are shards."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return any(hasattr(nodes_of(m, name + NODES), "device_mesh") for m in modules for name in m._rules)


def _kinds(nodes: Iterable[Tensor]) -> tuple[list, ...]:
    return [*map(type, nodes)], [x.device for x in nodes], [x.dtype for x in nodes]


def _autocast(devices: Iterable[str]) -> list[torch.dtype | None]:
    """The dtype that autocast computes in on each of the devices, if it is on there."""
    return [torch.get_autocast_dtype(d) if d != "meta" and torch.is_autocast_enabled(d) else None for d in devices]


def dtype_of(module: nn.Module, nodes: Tensor) -> torch.dtype:
    """The dtype a sampled tensor is written in: autocast's where autocast would cast it."""
    if isinstance(module, _LOW_PRECISION):
        return arguments.compute_dtype(nodes)
    return nodes.dtype


def can_join(entry: Entry, nodes: Tensor) -> bool:
    """Whether a tensor is sampled together with others: fixed points, one axis a dimension, not sharded or batched."""
    return (
        not torch.compiler.is_compiling()  # whose compiler fuses what it can
        and entry.rule.plain
        and entry.rule.fixed
        and entry.rule.backend != "reference"
        and bool(entry.rule.ties)
        and type(nodes) in (Tensor, Parameter)
    )


def _alike(
    entries: Sequence[Entry], nodes: Sequence[Tensor], members: Iterable[int], alone: list[int]
) -> dict[tuple, list[int]]:
    """Those that can join others by device, dtype, and dtype of the result. The rest are added to `alone`.

    Shards are neither: the tensor is computed when it is read, after its block was gathered.
    """
    kinds: dict[tuple, list[int]] = {}
    for n in members:
        x = nodes[n]
        if can_join(entries[n], x):
            kinds.setdefault((x.device, x.dtype, dtype_of(entries[n].module, x)), []).append(n)
        elif not hasattr(x, "device_mesh"):
            alone.append(n)
    return kinds


def _buckets(members: Iterable[int], nodes: Sequence[Tensor]) -> Iterator[list[int]]:
    bucket: list[int] = []
    size = 0
    for n in members:
        if bucket and size + nodes[n].nbytes > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(n)
        size += nodes[n].nbytes
    yield bucket


def _group(
    entries: Sequence[Entry], nodes: Sequence[Tensor], members: list[int], dtype: torch.dtype, sizes: Sizes
) -> Group:
    """Sides have their places whatever their sizes: axes of one size may share taps, and part with the next."""
    found: dict[tuple, int] = {}
    sides: list[Side] = []
    places: tuple[list[int], list[int]] = ([], [])
    for n in members:
        rule = entries[n].rule
        wide = arguments.working_dtype(nodes[n], dtype)
        at = [-1, -1]
        for dim, tie, name in rule._sides:
            scale = rule.scales[name] if tie.integrated else 1.0
            key = (rule.axes[name], tie.integrated, scale)
            at[dim] = found.setdefault(key, len(sides))
            if at[dim] == len(sides):
                sides.append(Side(*key, wide, nodes[n].device))
        for place, one in zip(places, at):
            place.append(one)
    means = sum(not entries[n].rule.geometric for n in members)
    passes = not entries[members[0]].is_statistic  # which norms write to
    empty = Plan((), (), (), (), ())
    return Group(members, places, dtype, sides, means, passes, [], empty, []).resized(sizes)
