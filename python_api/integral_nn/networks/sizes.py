"""The sizes of a network's axes: as they are asked for, and as they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch

from integral_nn.functional import checks
from integral_nn.layers.axis import Axis
from integral_nn.layers.draws import Draw, ratio

Size = Union[float, Mapping[str, Union[int, float]]]
"""One share of every axis's nodes, or {axis: size or share}."""


def sizes_at(axes: Mapping[str, Axis], size: Size, argument: str = "size") -> dict[Axis, int]:
    """The size of each axis, all checked: axes that a mapping does not name stay as they are."""
    if not isinstance(size, Mapping):
        checks.check_share(size, argument)
        return {axis: axis._size_at(float(size), f"{argument} of axis {name!r}") for name, axis in axes.items()}
    sizes = {axis: axis.size for axis in axes.values()}
    for name, value in size.items():
        checks.check_axis_name(name, axes, argument)
        axis, label = axes[name], f"{argument} of axis {name!r}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{label} must be an int or a share, got {type(value).__name__}")
        if isinstance(value, int) and (value < 1 or value % axis.multiple_of):
            raise ValueError(f"{label} must be a positive multiple of {axis.multiple_of}, got {value}")
        sizes[axis] = axis._size_at(value, label)
    return sizes


def drawn(axes: Mapping[str, Axis], generator: Draw, seed: int | None, common: bool) -> dict[Axis, int]:
    """A random size of each axis, from its `size_range`; `common`: all at one ratio."""
    for axis in axes.values():
        axis._steps()
    if common:
        together = ratio(generator, seed, "")
        return {axis: axis._between(together) for axis in axes.values()}
    if isinstance(generator, int):
        return {axis: axis._between(ratio(generator, seed, name)) for name, axis in axes.items()}
    return {axis: axis._drawn(generator) for axis in axes.values()}


def drawn_from(axes: Mapping[str, Axis], palette: Any, generator: Draw, seed: int | None) -> dict[Axis, int]:
    """The sizes at one entry of a palette; each entry is checked."""
    if not isinstance(palette, Sequence) or isinstance(palette, (str, bytes)):
        kind = type(palette).__name__
        raise TypeError(f"palette must be a sequence of shares and mappings from axes to sizes, got {kind}")
    if not palette:
        raise ValueError("palette must hold at least one share or mapping from axes to sizes, got none")
    entries = [sizes_at(axes, size, "palette") for size in palette]
    if generator is None or isinstance(generator, torch.Generator):
        return entries[int(torch.randint(len(entries), (), generator=generator))]
    return entries[int(ratio(generator, seed, "palette") * len(entries))]
