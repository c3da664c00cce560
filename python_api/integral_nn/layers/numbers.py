"""Numbers in modules that are sizes of axes: `self.width`, `self.shape = (width, 1)`, `self.num_heads`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from integral_nn.layers.axis import Axis
from integral_nn.layers.channels import Layout
from integral_nn.layers.rule import Sizes

NumberPlace = tuple[str, str, int]
"""A module's name, the name of its attribute, and an index into it where that is a tuple or a list (else -1)."""


@dataclass(frozen=True)
class Number:
    """A number that a module keeps, and the axes it counts the channels of."""

    place: NumberPlace
    layout: Layout


class Counted:
    """An attribute of a module that counts channels: what it is at the current sizes, or at others."""

    def __init__(self, full: Any, numbers: Iterable[Number], axes: Mapping[str, Axis]) -> None:
        self.full = full
        self.layouts = {number.place[2]: number.layout for number in numbers}
        self.axes = {name: axes[name] for layout in self.layouts.values() for name in layout.axes}

    def value(self, sizes: Sizes = None) -> Any:
        """A number, or a tuple or list of them as the module had it."""
        now = {name: axis.size if sizes is None else sizes[axis] for name, axis in self.axes.items()}
        return changed(self.full, {index: layout.resized(now) for index, layout in self.layouts.items()})


def changed(attribute: Any, values: Mapping[int, Any]) -> Any:
    """An attribute with some of its numbers replaced, by index (-1: the attribute itself)."""
    if -1 in values:
        return values[-1]
    items = [values.get(index, item) for index, item in enumerate(attribute)]
    return items if isinstance(attribute, list) else tuple(items)


def put_numbers(net: nn.Module, values: Mapping[NumberPlace, Any]) -> None:
    """Give modules of `net` other numbers."""
    modules = dict(net.named_modules()) if values else {}
    grouped: dict[tuple[str, str], dict[int, Any]] = {}
    for (module, attribute, index), value in values.items():
        grouped.setdefault((module, attribute), {})[index] = value
    for (module, attribute), own in grouped.items():
        there = modules[module].__dict__
        there[attribute] = changed(there[attribute], own)


def counted_attributes(
    net: nn.Module, numbers: Iterable[Number], axes: Mapping[str, Axis]
) -> dict[int, dict[str, Counted]]:
    """The attributes that count channels, by identity of the module and name."""
    modules = dict(net.named_modules())
    grouped: dict[tuple[str, str], list[Number]] = {}
    for number in numbers:
        grouped.setdefault(number.place[:2], []).append(number)
    found: dict[int, dict[str, Counted]] = {}
    for (name, attribute), own in grouped.items():
        module = modules[name]
        found.setdefault(id(module), {})[attribute] = Counted(module.__dict__[attribute], own, axes)
    return found


def number_property(name: str) -> property:
    """A number of a module, counted at the current sizes."""

    def get(module: Any) -> Any:
        return module._numbers[name].value()

    return property(get, doc="The size of axes at their current sizes.")
