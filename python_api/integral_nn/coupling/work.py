"""What a network's layers compute in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from integral_nn.coupling.calls import Inputs, call

_CONV, _TRANSPOSED = nn.modules.conv._ConvNd, nn.modules.conv._ConvTransposeNd


@torch.no_grad()
def multiply_adds_of(net: nn.Module, inputs: Inputs) -> dict[str, int]:
    """{name of a weight: multiply-adds in one call} of linear layers and convolutions.

    A convolution applies its weight at every position of its output, a transposed one at every position of its input.
    Empty where the network does not run.
    """
    found: dict[str, int] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, out: Any) -> None:
            x, weight = args[0] if isinstance(module, _TRANSPOSED) and args else out, module.weight
            if isinstance(x, Tensor) and isinstance(weight, Tensor):
                channels = x.shape[-1] if isinstance(module, nn.Linear) else x.shape[1 - weight.dim()]
                found[name] = found.get(name, 0) + x.numel() // max(channels, 1) * weight.numel()

        return hook

    handles = []
    for path, module in net.named_modules():
        if isinstance(module, (_CONV, nn.Linear)):
            handles.append(module.register_forward_hook(note(f"{path}.weight" if path else "weight")))
    try:
        call(net, {}, inputs)
    except Exception:  # tracing says which operation
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return found


def in_columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of as many cells each, one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def total(sizes: Mapping[str, int], names: set[str]) -> int:
    """The sum of those that are there."""
    return sum(sizes.get(name, 0) for name in names)
