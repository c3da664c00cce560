"""What was found of a network's dimensions: the continuous axes with all they tie, the discrete ones and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from integral_nn.coupling.proof import OutputTie
from integral_nn.functional import checks
from integral_nn.layers.channels import Tie
from integral_nn.layers.numbers import Number


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
    """Everything continuous about a network, and everything that is not."""

    specs: dict[str, AxisSpec]
    ties: list[Tie]
    outputs: list[OutputTie]
    discrete: list[Discrete]
    numbers: list[Number] = field(default_factory=list)
    """Attributes of modules that count channels."""

    def ties_of(self, name: str) -> list[Tie]:
        """The dimensions that run along axis `name`."""
        checks.check_axis_name(name, self.specs, "name")
        return [tie for tie in self.ties if name in tie.axes]

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
            named = ", ".join(f"{d.tensor}[{d.dim}]={d.size}" for d in group)
            lines.append(f"  {named}: {reason}")
        return "\n".join(lines)


def _multiple(spec: AxisSpec) -> str:
    return f", multiples of {spec.multiple_of}" if spec.multiple_of > 1 else ""
