"""What a change of size makes of a network, layer by layer: shapes, parameters and multiply-adds before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from integral_nn.coupling.axis_set import AxisSet
from integral_nn.coupling.calls import named_tensors
from integral_nn.coupling.work import in_columns
from integral_nn.layers.axis import Axis
from integral_nn.layers.module_sizes import Shape


@dataclass(frozen=True)
class LayerChange:
    """One layer at full size and at the current ones, each a pair."""

    layer: str
    shapes: tuple[Shape, Shape]
    """Of its weight, or of its first tensor."""
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    """Of a linear layer or convolution, in one call on the inputs of the conversion."""


class LayerChanges:
    """Every layer with parameters, at full size and at the current ones.

    Printed, a table of those that differ and the totals of all.
    """

    def __init__(self, net: nn.Module, found: AxisSet, axes: Mapping[str, Axis]) -> None:
        self._found, self._axes = found, dict(axes)
        self._layers: dict[str, dict[str, tuple[Shape, bool]]] = {}  # layer -> tensor -> shape, whether it counts
        seen: set[int] = set()
        parameters = {id(p) for p in net.parameters()}
        for name, tensor in named_tensors(net).items():
            if id(tensor) in parameters:
                own = self._layers.setdefault(name.rpartition(".")[0], {})
                own[name] = tuple(tensor.shape), id(tensor) not in seen
                seen.add(id(tensor))

    def __iter__(self) -> Iterator[LayerChange]:
        sizes = {name: axis.size for name, axis in self._axes.items()}
        now: dict[str, dict[int, int]] = {}
        for tie in self._found.ties:
            now.setdefault(tie.tensor, {})[tie.dim] = tie.layout.resized(sizes)
        for layer, tensors in self._layers.items():
            counts, macs, shown = [0, 0], [0, 0], None
            for name, (shape, counted) in tensors.items():
                resized = tuple(now.get(name, {}).get(d, n) for d, n in enumerate(shape))
                both = shape, resized
                elements = [torch.Size(s).numel() for s in both]
                full = self._found.multiply_adds.get(name, 0)
                for i in (0, 1):
                    counts[i] += elements[i] if counted else 0
                    macs[i] += full * elements[i] // max(elements[0], 1)
                shown = both if shown is None or name.endswith(".weight") or name == "weight" else shown
            if shown is not None:
                yield LayerChange(layer, shown, (counts[0], counts[1]), (macs[0], macs[1]))

    @property
    def parameters(self) -> tuple[int, int]:
        """Of all layers."""
        return sum(c.parameters[0] for c in self), sum(c.parameters[1] for c in self)

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Of all layers."""
        return sum(c.multiply_adds[0] for c in self), sum(c.multiply_adds[1] for c in self)

    def __str__(self) -> str:
        rows = [("layer", "weight", "parameters", "multiply-adds")]
        for change in self:
            if change.shapes[0] != change.shapes[1] or change.parameters[0] != change.parameters[1]:
                before, after = (" x ".join(map(str, shape)) for shape in change.shapes)
                shapes = f"{before} -> {after}"
                rows.append((change.layer, shapes, _pair(change.parameters), _pair(change.multiply_adds)))
        rows.append(("all layers", "", _pair(self.parameters), _pair(self.multiply_adds)))
        return "\n".join(in_columns(rows))


def _pair(counts: tuple[int, int]) -> str:
    before, after = counts
    if not before:
        return ""
    return f"{before:,} -> {after:,} ({after / before:.0%})" if before != after else f"{before:,}"
