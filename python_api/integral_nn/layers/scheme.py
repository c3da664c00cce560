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
from torch import Tensor, nn
from torch.nn import Parameter

from inn_kernels.taps import Taps
from integral_nn.functional import arguments
from integral_nn.functional.foreach import Plan
from integral_nn.layers.axis import Axis
from integral_nn.layers.channels import Tie
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

    rule: Rule
    tie: Tie
    axis: str
    dtype: torch.dtype
    device: torch.device

    def taps(self, sizes: Sizes) -> Taps:
        """At the sizes of now, or at others."""
        return self.rule._taps(self.tie, self.axis, self.dtype, self.device, sizes, None)


class Group(NamedTuple):
    """Tensors that one operation samples, by their place among the entries, and how."""

    members: list[int]
    plan: Plan
    dtype: torch.dtype
    sides: list[Side]  # whose taps the plan has

    def resized(self, sizes: Sizes = None) -> Group:
        """The same at the sizes of now (or at others)."""
        taps = [side.taps(sizes) for side in self.sides]
        start, weight, nodes = (tuple(column) for column in zip(*taps))
        return self._replace(plan=self.plan._replace(start=start, weight=weight, nodes=nodes))


class Scheme(NamedTuple):
    """How tensors are sampled, and what that depends on."""

    modules: list[Any]
    rules: list[dict[str, Rule]]
    weights: list[Entry]
    statistics: list[Entry]
    kinds: list[tuple]  # of the nodes
    devices: list[str]
    autocast: list[torch.dtype | None]
    calibrated: list[bool]  # of the statistics
    axes: list[Axis]
    fixed: list[bool]  # no trainable points
    tables: Sequence[object]  # of taps: an axis has others as soon as anything of it changes
    groups: list[Group]  # of weights
    alone: list[int]  # weights by themselves
    means: list[Group]  # of statistics: variances, by their logarithms, after means
    lone: list[int]  # statistics by themselves
    back: dict[tuple[int, ...], list[Group]]  # of changes of statistics, by those that have changed


class Kept:
    """The scheme of the last call of a network. A copy of it is empty, for a copied network has other modules."""

    scheme: Scheme | None = None

    def __reduce__(self) -> tuple:
        return Kept, ()


def scheme_for(
    modules: list[Any], sizes: Sizes, kept: Kept | None
) -> tuple[Scheme, list[Tensor], list[Tensor], list[Any]]:
    """How modules are sampled at the current sizes (or at others); nodes of weights and statistics, and calibrations.

    The scheme in `kept` if it still serves; else one that is made, and kept there.
    """
    if sizes is not None or kept is None or torch.compiler.is_compiling():
        return _make(modules, sizes)
    scheme = kept.scheme
    if scheme is not None and scheme.modules == modules and scheme.rules == [m._rules for m in modules]:
        weights, statistics = _nodes(scheme.weights), _nodes(scheme.statistics)
        calibrations = [entry.module.calibrated(entry.name) for entry in scheme.statistics]
        if (
            scheme.kinds == _kinds(weights) + _kinds(statistics)
            and scheme.autocast == _autocast(scheme.devices)
            and scheme.calibrated == [value is not None for value in calibrations]
            and scheme.fixed == [axis.delta is None for axis in scheme.axes]
        ):
            tables = [axis._tables for axis in scheme.axes]  # first: another thread may resize while taps are looked up
            if not all(map(is_, tables, scheme.tables)):
                groups, means = ([g.resized() for g in kind] for kind in (scheme.groups, scheme.means))
                scheme = kept.scheme = scheme._replace(tables=tables, groups=groups, means=means, back={})
            return scheme, weights, statistics, calibrations
    made = _make(modules, None)
    kept.scheme = made[0]
    return made


def _make(modules: list[Any], sizes: Sizes) -> tuple[Scheme, list[Tensor], list[Tensor], list[Any]]:
    entries = [Entry(m, name, name + NODES, rule) for m in modules for name, rule in m._rules.items()]
    weights = [entry for entry in entries if not entry.is_statistic]
    statistics = [entry for entry in entries if entry.is_statistic]
    compiling = torch.compiler.is_compiling()
    axes = [] if compiling else list({axis: None for entry in entries for axis in entry.rule.axes.values()})
    fixed, tables = [axis.delta is None for axis in axes], [axis._tables for axis in axes]
    nodes, moving = _nodes(weights), _nodes(statistics)
    calibrations = [entry.module.calibrated(entry.name, sizes) for entry in statistics]
    kinds = [] if compiling else _kinds(nodes) + _kinds(moving)
    alone = [n for n, entry in enumerate(weights) if entry.rule.geometric]  # of a norm that is not torch.nn's
    joining = [n for n in range(len(weights)) if n not in alone]
    groups = []
    for (_, _, dtype), members in _alike(weights, nodes, joining, alone).items():
        for bucket in _buckets(members, nodes):
            groups.append(_group(weights, nodes, bucket, dtype, sizes))
    lone: list[int] = []
    means = []
    sampled = [n for n, value in enumerate(calibrations) if value is None]
    for (_, dtype, _), members in _alike(statistics, moving, sampled, lone).items():
        members.sort(key=lambda n: statistics[n].rule.geometric)
        means.append(_group(statistics, moving, members, dtype, sizes))
    devices = sorted({device.type for _, device, _ in kinds})
    scheme = Scheme(
        modules, [m._rules for m in modules], weights, statistics, kinds, devices, _autocast(devices),
        [value is not None for value in calibrations], axes, fixed, tables, groups, alone, means, lone, {},
    )  # fmt: skip
    return scheme, nodes, moving, calibrations


def _nodes(entries: Iterable[Entry]) -> list[Any]:
    if torch.compiler.is_compiling():
        return [getattr(module, name) for module, _, name, _ in entries]
    return [nodes_of(module, name) for module, _, name, _ in entries]


def nodes_of(module: Any, name: str) -> Any:
    """A parameter or buffer of a module, sooner than by attribute; or what stands in its place, or None."""
    nodes = module._parameters.get(name)
    if nodes is None:
        nodes = module._buffers.get(name)
    return getattr(module, name, None) if nodes is None else nodes


def _kinds(nodes: Iterable[Tensor]) -> list[tuple]:
    return [(type(x), x.device, x.dtype) for x in nodes]


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
        for dim, tie, axis in rule._sides:
            key = (rule.axes[axis], tie.integrated and rule.scales[axis])
            at[dim] = found.setdefault(key, len(sides))
            if at[dim] == len(sides):
                sides.append(Side(rule, tie, axis, wide, nodes[n].device))
        for place, one in zip(places, at):
            place.append(one)
    return Group(members, Plan((), (), (), tuple(places[0]), tuple(places[1])), dtype, sides).resized(sizes)
