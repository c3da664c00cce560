"""Integers that modules keep and that may be sizes: symbols in a trace, numbers again where they prove to be none.

self.width = 64 beside a weight of 64 rows        (any name)
self.num_heads = 8 beside a weight of 512 rows    (a count of heads divides a size; its size stays what it is)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from integral_nn.layers.module_sizes import known_numbers
from integral_nn.layers.numbers import NumberPlace

_HEADS, _SIZES_OF_HEADS = ("head",), ("dim", "size", "width", "channel")
_CHANNELS = ("ch", "dim", "width", "planes", "features", "filters", "hidden", "embed")
_RATHER_SHAPES = ("kernel", "stride", "dilation", "padding", "patch", "window", "image", "img", "length", "position")


def numbers_of(net: nn.Module) -> dict[NumberPlace, int]:
    """Attributes of modules that equal a size of a tensor at or below them, with it.

    Of a tensor anywhere, where there is none below or the name speaks of channels.
    """
    everywhere = _sizes_below(net)
    found = {}
    for name, module in net.named_modules():
        below = _sizes_below(module) or everywhere
        for attribute, index, value in _integers(module):
            sizes = everywhere if any(word in attribute for word in _CHANNELS) else below
            if value in sizes if not _counts_heads(attribute) else any(size % value == 0 for size in sizes):
                found[name, attribute, index] = value
    return found


def _sizes_below(module: nn.Module) -> set[int]:
    tensors = [*module.parameters(), *module.buffers()]
    return {size for tensor in tensors for size in tensor.shape if size > 1}


def _integers(module: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Attribute, index (-1: no tuple), value."""
    skipped = known_numbers(module)
    for name, value in vars(module).items():
        if name.startswith("_") or name in skipped or any(word in name for word in _RATHER_SHAPES):
            continue
        if _counts_heads(name) is None:
            continue
        if _is_count(value):
            yield name, -1, value
        elif isinstance(value, (tuple, list)):
            yield from ((name, index, item) for index, item in enumerate(value) if _is_count(item))


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 1


def _counts_heads(name: str) -> bool | None:
    """Whether an attribute is a number of heads; None for the size of one, which stays a number."""
    if not any(word in name for word in _HEADS):
        return False
    return None if any(word in name for word in _SIZES_OF_HEADS) else True
