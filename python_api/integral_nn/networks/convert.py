"""Turn any network into an integral one with the same outputs.

fold batch norms -> find axes -> reorder channels -> nodes from weights -> compare outputs
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from inn_kernels import quadrature as rules
from inn_kernels.taps import Basis, check_basis
from integral_nn.coupling.axis_set import AxisSet
from integral_nn.coupling.calls import ConversionError, Inputs, named_tensors
from integral_nn.coupling.find import Names, check_network, find_axes_of
from integral_nn.coupling.plain import plain_copy
from integral_nn.coupling.proof import fast_paths_off
from integral_nn.functional import checks
from integral_nn.layers.axis import Axis
from integral_nn.layers.channels import Tie
from integral_nn.layers.numbers import counted_attributes
from integral_nn.layers.rule import Rule
from integral_nn.layers.sampled import sample_from_nodes
from integral_nn.networks.changes import LayerChanges
from integral_nn.networks.network import IntegralNetwork
from integral_nn.networks.nodes import nodes_from
from integral_nn.networks.norms import fold_norms
from integral_nn.networks.permute import Reordering, apply_orders, reorder_axes
from integral_nn.networks.verify import check_outputs, output_error, tolerance_of

_EXACT = ("trapezoid", "midpoint", "cells")


@dataclass(frozen=True)
class Report:
    """What a conversion did and how exactly, and what the network's sizes make of it now. Printed, all of that."""

    error: float
    """Largest difference of outputs at full size, relative to the largest output."""
    folded: list[str]
    """Batch norms folded into the layer before."""
    reordered: dict[str, Reordering] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    """Layers that computed their weight in forward, and are ordinary ones with what they computed now."""
    changes: LayerChanges | None = None
    """Every layer at full size and at the current ones: shapes, parameters, multiply-adds."""

    def __str__(self) -> str:
        lines = [f"relative error of the outputs at full size: {self.error:.1e}"]
        if self.folded:
            lines.append(f"{len(self.folded)} batch norms folded")
        if self.computed:
            lines.append(f"{len(self.computed)} layers have the weights they computed in forward")
        for name, r in self.reordered.items():
            share = r.after / r.before if r.before else 1.0
            lines.append(f"  {name}: total variation {r.before:.4g} -> {r.after:.4g} ({share:.0%})")
        if self.changes is not None and len(set(self.changes.parameters)) > 1:
            lines += ["from full size to the current one:", str(self.changes)]
        return "\n".join(lines)


def convert(
    net: nn.Module,
    example_inputs: Tensor | tuple,
    kwargs: Mapping[str, Any] | None = None,
    *,
    quadrature: str = "cells",
    permute: bool = True,
    fold: bool = True,
    ignore: Names = (),
    only: Names | None = None,
    nodes: float | Mapping[str, int | float] | None = None,
    size_range: tuple[float, float] = (0.5, 1.0),
    multiple_of: int = 1,
    continuous_inputs: bool | Mapping[int, int] = False,
    continuous_outputs: bool = False,
    kernel: str = "conservative",
    a: float = -0.75,
    boundary: str = "clamp",
    tolerance: float | None = None,
    seed: int = 0,
    time_limit: float = 12.0,
    progress: bool = False,
) -> IntegralNetwork:
    """Convert a network into an integral one that returns the same outputs at full size.

    Args:
        net: any `nn.Module`; it is not changed.
        example_inputs: a tensor, or a tuple of positional inputs, of the shapes the network will see; lists and dicts
            in it are opened, integers in it are values.
        kwargs: inputs by name.
        quadrature: "cells" (the weight function integrated over cells: nothing aliases, narrow networks keep most),
            "trapezoid" (the paper's: keeps most where points are tuned, for they may skip what lies between) or
            "midpoint" (points; no channel at the ends weighs half).
        permute: reorder channels to make the weights smooth; needs the package fast-tsp.
        fold: fold batch norms into the layer before them where they may be. Without, their affine parameters and
            running statistics are sampled along the axis (`recalibrate` measures the statistics anew).
        ignore, only: axes to leave discrete, or the only ones to make, by names or by classes of modules: see
            `find_axes`, which shows without converting what there is.
        nodes: nodes of each axis, as {axis: number or share of its channels} or one share for all; default: as many as
            channels. Fewer are fitted by least squares, and full size is then not exact (`report.error` says how far).
        size_range: shares of the channels between which `resample` draws sizes.
        multiple_of: sizes that `resample` draws, or `resize` by share, are multiples of this (8 suits many devices).
        continuous_inputs: let the channels of the inputs be continuous too (dimension 1, or {input: dimension}).
        continuous_outputs: let the sizes of the outputs be continuous too.
        kernel, a, boundary: of the basis, see `discretize`. In "conservative" cells at full size are the nodes
            themselves; "bspline" is smoother, for a network that is trained on at random widths.
        tolerance: largest relative error of the outputs at full size; default: 1e-5, or 32 roundings of the network's
            narrowest dtype where that is more.
        seed: of the proof's random weights and of the solver's start.
        time_limit: seconds that reordering the channels of all axes together may take, about.
        progress: show a progress bar.

    Returns:
        An `IntegralNetwork` in the mode (train or eval) of `net`; `print(model.axes)` shows what is continuous and what
        is not, `model.report` how exact the conversion is, what the new order saves and, after a resize, each layer's
        shape, parameters and multiply-adds before and after.

    Raises:
        ConversionError: the network cannot be traced or run, has no continuous axis, or its outputs would change; the
            message names the operation or the dimension.
        ValueError, TypeError: bad arguments; the message names them.

    Source: paper, section 4.

    >>> import torch, integral_nn as inn
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> model = inn.convert(net, torch.zeros(1, 4))
    >>> bool(torch.allclose(model(torch.ones(1, 4)), net(torch.ones(1, 4)), atol=1e-6))
    True
    >>> model.resize(0.5)
    {'0': 16}
    >>> model.discretize()
    Sequential(
      (0): Linear(in_features=4, out_features=16, bias=True)
      (1): ReLU()
      (2): Linear(in_features=16, out_features=2, bias=True)
    )
    """
    check_network(net)
    inputs = Inputs(checks.check_example_inputs(example_inputs), checks.check_kwargs(kwargs))
    if quadrature not in _EXACT:
        raise ValueError(f"quadrature must be one of {list(_EXACT)} for an exact conversion, got {quadrature!r}")
    ignored = checks.names_or_classes(ignore, "ignore")
    wanted = None if only is None else checks.names_or_classes(only, "only")
    continuous_inputs = checks.check_continuous_inputs(continuous_inputs, inputs.args)
    _check_sizes(nodes, size_range, multiple_of)
    check_basis(Basis(a, boundary, kernel))
    if tolerance is None:
        tolerance = tolerance_of(net)
    checks.check_number(tolerance, "tolerance", least=0)
    checks.check_seed(seed)
    checks.check_number(time_limit, "time_limit", above=0)
    with fast_paths_off():
        plain, computed = plain_copy(net, inputs)
        check_outputs(plain, inputs)
        folded = fold_norms(plain, inputs) if fold else []
        found = find_axes_of(plain, inputs, ignored, wanted, continuous_inputs, continuous_outputs, seed)
    if not found.specs:
        raise ConversionError(f"the network has no continuous axis:\n{found.reasons()}")
    tensors = {name: tensor.detach() for name, tensor in named_tensors(plain).items()}
    reordered = reorder_axes(tensors, found, seed=seed, time_limit=time_limit, progress=progress) if permute else {}
    orders = {name: r.order for name, r in reordered.items()}
    tensors = apply_orders(tensors, found, orders)
    axes, scales = _make_axes(found, nodes, quadrature, size_range, multiple_of, Basis(a, boundary, kernel))
    exact = all(axes[name].nodes == spec.nodes for name, spec in found.specs.items())
    if not exact:
        found = _with_nodes(found, axes)
    changes = LayerChanges(plain, found, axes)
    _sample_all(plain, tensors, found, axes, scales)
    model = IntegralNetwork(plain, found, axes)
    error = output_error(net, model, inputs, found, orders if continuous_inputs or continuous_outputs else {})
    if exact and not error <= tolerance:
        raise ConversionError(
            f"the outputs at full size differ by {error:.1e} of the largest output, more than tolerance={tolerance:g}; "
            "if the network amplifies rounding that much, convert it in float64 or raise the tolerance"
        )
    model.report = Report(error, folded, reordered, computed, changes)
    return model.train(net.training)


def _check_sizes(nodes: object, size_range: object, multiple_of: object) -> None:
    for count in nodes.values() if isinstance(nodes, Mapping) else [nodes]:
        if isinstance(count, int) and not isinstance(count, bool):
            checks.check_count(count, "nodes")
        elif count is not None:
            checks.check_number(count, "nodes", above=0)
    if not isinstance(size_range, (tuple, list)) or len(size_range) != 2:
        raise ValueError(f"size_range must be shares (low, high), got {size_range!r}")
    for share in size_range:
        checks.check_number(share, "size_range", above=0)
    if size_range[0] > size_range[1]:
        raise ValueError(f"size_range must be shares (low, high) with low <= high, got {size_range!r}")
    checks.check_count(multiple_of, "multiple_of")


def _make_axes(
    found: AxisSet,
    nodes: float | Mapping[str, int | float] | None,
    quadrature: str,
    size_range: tuple[float, float],
    multiple_of: int,
    basis: Basis,
) -> tuple[dict[str, Axis], dict[str, float]]:
    if isinstance(nodes, Mapping):
        for name in nodes:
            checks.check_axis_name(name, found.specs, "nodes")
    axes, scales = {}, {}
    for name, spec in found.specs.items():
        wanted = nodes.get(name) if isinstance(nodes, Mapping) else nodes
        count = spec.nodes if wanted is None else wanted
        if isinstance(count, float):
            count = max(round(count * spec.nodes), 2)
        step = math.lcm(spec.multiple_of, multiple_of)
        if step > spec.nodes:
            step = spec.multiple_of
        fewest = -(-2 // step) * step
        low = max(round(size_range[0] * spec.nodes / step) * step, fewest)
        high = max(round(size_range[1] * spec.nodes / step) * step, low)
        axis = Axis(
            count,
            spec.nodes,
            quadrature=quadrature,
            size_range=(low, high),
            multiple_of=step,
            **basis._asdict(),
        )
        axes[name] = axis
        # Unit interior weights at as many points as there were channels.
        scales[name] = float(spec.nodes if rules.is_centred(quadrature) else max(spec.nodes - 1, 1))
    return axes, scales


def _sample_all(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    found: AxisSet,
    axes: Mapping[str, Axis],
    scales: Mapping[str, float],
) -> None:
    """Let every module sample those of its tensors that run along an axis, from nodes made of `tensors`.

    Modules that have a tensor in common have its nodes in common, and sample each in its own way: an embedding whose
    table is a head's weight takes no quadrature where the head does. Where both cannot have the same nodes, at the ends
    of a trapezoid, the head gets its own.
    """
    ties: dict[str, list[Tie]] = {}
    for tie in found.ties:
        ties.setdefault(tie.tensor, []).append(tie)
    channels = {name: spec.nodes for name, spec in found.specs.items()}
    numbers = counted_attributes(net, found.numbers, axes)
    made: dict[int, Tensor] = {}  # nodes of a tensor that several modules have
    rules: dict[int, dict[str, Rule]] = {}
    for path, module in net.named_modules():
        for table in (module._parameters, module._buffers):
            for leaf, tensor in table.items():
                name = f"{path}.{leaf}" if path else leaf
                if tensor is None or name not in ties:
                    continue
                rule = Rule(ties[name], axes, scales, geometric=leaf == "running_var")
                nodes = nodes_from(tensors[name], rule, channels)
                if not torch.equal(made.setdefault(id(tensor), nodes), nodes):  # other points weigh otherwise here
                    table[leaf] = nn.Parameter(nodes, tensor.requires_grad)
                rules.setdefault(id(module), {})[leaf] = rule
    for tensor in named_tensors(net).values():
        tensor.data = made.get(id(tensor), tensor.data)
    for module in list(net.modules()):
        if id(module) in rules or id(module) in numbers:
            sample_from_nodes(module, rules.get(id(module), {}), numbers.get(id(module)))


def _with_nodes(found: AxisSet, axes: dict[str, Axis]) -> AxisSet:
    """The same axes with layouts of nodes in place of channels."""

    def renewed(tie: Tie) -> Tie:
        parts = [s if s.axis is None else replace(s, nodes=axes[s.axis].nodes) for s in tie.layout.segments]
        return replace(tie, layout=replace(tie.layout, segments=tuple(parts)))

    return replace(found, ties=[renewed(t) for t in found.ties])
