"""The axes of a network by name, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from integral_nn.coupling.axis_set import AxisSet
from integral_nn.layers.axis import Axis


class AxisTable(Mapping[str, Axis]):
    """The axes of a network by name; printed, what each ties and why other dimensions are discrete."""

    def __init__(self, axes: dict[str, Axis], found: AxisSet) -> None:
        self._axes = axes
        self.found = found

    def __getitem__(self, name: str) -> Axis:
        if name not in self._axes:
            raise KeyError(f"no axis {name!r}; there are {list(self._axes)}")
        return self._axes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)

    def ties(self, name: str) -> list[str]:
        """The dimensions along an axis, as "conv1.weight[0]"."""
        return [f"{tie.tensor}[{tie.dim}]" for tie in self.found.ties_of(name)]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {axis.size}/{axis.nodes}" for name, axis in self._axes.items())
        return f"{self.found.summary()}\nsizes now: {sizes}"
