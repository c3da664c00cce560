"""What was found of a network's dimensions: the continuous axes with all they tie, the discrete ones and why."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from integral_nn.coupling.drawing import Layers, Part, svg
from integral_nn.coupling.proof import OutputTie
from integral_nn.coupling.work import in_columns, total
from integral_nn.functional import checks
from integral_nn.layers.channels import Tie
from integral_nn.layers.numbers import Number

_LISTED, _MOST_REASONS = 4, 18


@dataclass(frozen=True)
class Discrete:
    """A dimension that stays as it is, and why."""

    tensor: str
    dim: int
    size: int
    reason: str


@dataclass(frozen=True)
class AxisSpec:
    """A proved axis: its size at full width, what sizes it may take, and how its channels may be reordered."""

    name: str
    nodes: int
    multiple_of: int = 1
    blocks: int = 1
    """Channels may be reordered within each of so many equal blocks (the groups of a GroupNorm)."""


@dataclass(frozen=True)
class AxisSet:
    """Everything continuous about a network, and everything that is not. Printed, a table of the axes.

    Attributes:
        specs: the axes by name.
        ties: the dimensions that run along them.
        outputs: the outputs whose sizes they are.
        discrete: all other dimensions, and why.
        numbers: attributes of modules that count channels.
        unused: parameters that nothing was seen to use, in eval mode or in training; their sizes stay.
        parameters: the number of elements of every parameter.
        multiply_adds: in one call, by the name of the weight of a linear layer or convolution.
    """

    specs: dict[str, AxisSpec]
    ties: list[Tie]
    outputs: list[OutputTie]
    discrete: list[Discrete]
    numbers: list[Number] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    multiply_adds: dict[str, int] = field(default_factory=dict)

    def ties_of(self, name: str) -> list[Tie]:
        """The dimensions that run along axis `name`."""
        checks.check_axis_name(name, self.specs, "name")
        return [tie for tie in self.ties if name in tie.axes]

    def __str__(self) -> str:
        """A row an axis: name, size, the dimensions it ties, parameters and multiply-adds of the tensors with them."""
        rows = [("axis", "size", "ties", "parameters", "multiply-adds")]
        for name, spec in self.specs.items():
            ties = self.ties_of(name)
            tensors = {tie.tensor for tie in ties}
            listed = ", ".join(f"{tie.tensor}[{tie.dim}]" for tie in ties[:_LISTED])
            more = f" and {len(ties) - _LISTED} more" if len(ties) > _LISTED else ""
            step = f" ({spec.multiple_of} x {spec.nodes // spec.multiple_of})" if spec.multiple_of > 1 else ""
            counts = (f"{total(self.parameters, tensors):,}", f"{total(self.multiply_adds, tensors):,}")
            rows.append((name, f"{spec.nodes}{step}", listed + more, *counts))
        return "\n".join(in_columns(rows) + self._remarks())

    def draw(self, path: str | os.PathLike) -> None:
        """Write a picture of the axes: layers as rows, the dimensions of their weights as bars, an axis a colour.

        Args:
            path: of an SVG file, which is written anew.

        Raises:
            TypeError: not a path.
            ValueError: a path in a folder that there is not, or that of a folder.

        >>> import torch, integral_nn as inn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> inn.find_axes(net, torch.zeros(1, 4)).draw("/tmp/axes.svg")
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be a str or a path, got {type(path).__name__}")
        target = Path(path)
        if not target.parent.is_dir() or target.is_dir():
            raise ValueError(f"path must name a file in a folder that there is, got {str(path)!r}")
        target.write_text(svg(self._layers(), self.specs))

    def _layers(self) -> Layers:
        """Dimensions of each layer's tensor that has most of them, as parts along axes; kernels' are left out."""
        dims: dict[str, dict[int, list[Part]]] = {}
        for tie in self.ties:
            parts = [Part(s.axis, s.size) for s in tie.layout.segments] * tie.layout.outer
            dims.setdefault(tie.tensor, {})[tie.dim] = [p._replace(size=p.size * tie.layout.inner) for p in parts]
        for d in self.discrete:
            dims.setdefault(d.tensor, {})[d.dim] = [Part(None, d.size)]
        layers: dict[str, list[list[Part]]] = {}
        for tensor, by_dim in dims.items():
            layer = tensor.rpartition(".")[0] or tensor
            found = [by_dim[d] for d in sorted(by_dim)]
            if not tensor.startswith("input:") and len(found) > len(layers.get(layer, [])):
                layers[layer] = found
        return layers

    def summary(self) -> str:
        """A table of the axes and what they tie, then the discrete dimensions and why."""
        lines = [f"{len(self.specs)} continuous axes"]
        for spec in self.specs.values():
            lines.append(f"  {spec.name}: {spec.nodes} channels" + _multiple(spec))
            for tie in self.ties_of(spec.name):
                how = "summed over" if tie.integrated else "sampled"
                lines.append(f"      {tie.tensor}[{tie.dim}]  {tie.layout.describe()}, {how}")
            for number in self.numbers:
                if spec.name in number.layout.axes:
                    module, attribute, index = number.place
                    what = f"{module}.{attribute}".lstrip(".") + (f"[{index}]" if index >= 0 else "")
                    lines.append(f"      {what} = {number.layout.size}  a number")
        grouped: dict[tuple[str, str], list[Discrete]] = {}
        for d in self.discrete:
            grouped.setdefault((d.tensor.rpartition(".")[0], d.reason), []).append(d)
        lines.append(f"{len(self.discrete)} discrete dimensions")
        for (_, reason), group in grouped.items():
            lines.append(f"  {_named(group)}: {reason}")
        return "\n".join(lines + self._remarks())

    def reasons(self) -> str:
        """Why dimensions are discrete, in few lines: those for one reason together, numbers of layers left open."""
        grouped: dict[str, list[Discrete]] = {}
        for d in self.discrete:
            grouped.setdefault(_any_number(d.reason), []).append(d)
        by_count = sorted(grouped.items(), key=lambda item: -len(item[1]))
        lines = []
        for reason, group in by_count[:_MOST_REASONS]:
            if len(group) <= _LISTED:
                lines.append(f"{_named(group)}: {group[0].reason}")
                continue
            reason = group[0].reason if len({d.reason for d in group}) == 1 else reason
            places = list(dict.fromkeys(_any_number(d.tensor.rpartition(".")[0]) or "the network" for d in group))
            more = ", .." if len(places) > _LISTED else ""
            lines.append(f"{len(group)} sizes in {', '.join(places[:_LISTED])}{more}: {reason}")
        if len(by_count) > _MOST_REASONS:
            lines.append(f"and {sum(len(group) for _, group in by_count[_MOST_REASONS:])} sizes for other reasons")
        return "\n".join(lines)

    def _remarks(self) -> list[str]:
        if not self.unused:
            return []
        names = ", ".join(self.unused[:_LISTED]) + (" .." if len(self.unused) > _LISTED else "")
        return [f"{len(self.unused)} parameters were not seen in use, so their sizes stay what they are: {names}"]


def _named(group: list[Discrete]) -> str:
    return ", ".join(f"{d.tensor}[{d.dim}]={d.size}" for d in group)


def _any_number(text: str) -> str:
    """Numbers between dots, as of layers in a list, left open."""
    return re.sub(r"(?<![\w\[])\d+(?=\.|'|$)", "*", text)


def _multiple(spec: AxisSpec) -> str:
    return f", multiples of {spec.multiple_of}" if spec.multiple_of > 1 else ""
