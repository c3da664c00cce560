"""A part of an axis: the points that one of several ranks samples, in place of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from inn_kernels.taps import Taps
from integral_nn.layers.axis import Axis
from integral_nn.layers.channels import Tie
from integral_nn.layers.rule import Rule


class AxisPart:
    """What a rule needs of an axis, of points [rank K / world, (rank + 1) K / world) alone, rounded down.

    Args:
        axis: the whole one, which is resized as ever.
        rank, world: which part of how many.
        summed: the identity, whose gradient is added up over the ranks: each sees its own points' alone.
    """

    def __init__(self, axis: Axis, rank: int, world: int, summed: Callable[[Tensor], Tensor]) -> None:
        self.axis, self.rank, self.world, self._summed = axis, rank, world, summed

    def __getattr__(self, name: str) -> Any:
        if name == "axis":  # not there yet, in a copy
            raise AttributeError(name)
        return getattr(self.axis, name)

    @property
    def size(self) -> int:
        """Points of this part at the current size."""
        first, last = self._bounds(self.axis.size)
        return last - first

    @property
    def whole(self) -> int:
        """Points of all parts."""
        return self.axis.size

    def taps(self, **options: Any) -> Taps:
        """As those of the axis: of this part."""
        return self._part(self.axis.taps(**options))

    def _traced_taps(self, name: str) -> Taps | None:
        table = self.axis._traced_taps(name)
        return None if table is None else self._part(table)

    def _part(self, table: Taps) -> Taps:
        first, last = self._bounds(table.points)
        weight = self._summed(table.weight) if table.weight.requires_grad else table.weight
        return table._replace(start=table.start[first:last], weight=weight[first:last])

    def _bounds(self, size: int) -> tuple[int, int]:
        return self.rank * size // self.world, (self.rank + 1) * size // self.world


def split_rule(rule: Rule, dim: int | None, rank: int, world: int, summed: Callable[[Tensor], Tensor]) -> Rule:
    """The rule with parts in place of the axes along a dimension (None: of no dimension).

    Others stay whole, but what a rank knows of their gradients is a part too.
    """
    axes: dict[str, Any] = {name: AxisPart(axis, 0, 1, summed) for name, axis in rule.axes.items()}
    scales = dict(rule.scales)
    ties: list[Tie] = []
    for tie in rule.ties:
        if tie.dim == dim:
            names = {name: f"part of {name}" for name in tie.axes}
            axes |= {new: AxisPart(rule.axes[old], rank, world, summed) for old, new in names.items()}
            scales |= {new: rule.scales[old] for old, new in names.items()}
            tie = Tie(tie.tensor, tie.dim, tie.layout.renamed(names), tie.integrated)
        ties.append(tie)
    return Rule(ties, axes, scales, rule.geometric, rule.backend)


def has_parts(rules: Sequence[Rule]) -> bool:
    """Whether any rule samples a part of an axis."""
    return any(isinstance(axis, AxisPart) for rule in rules for axis in rule.axes.values())
