"""Families of public architectures in a few lines each, with what a conversion must find of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """An architecture, its inputs for so many examples, and its continuous axes with their sizes.

    `elsewhere`: inputs of another size than those it is converted with, where it takes them.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple]
    axes: dict[str, int]
    kwargs: Callable[[int], dict[str, Any]] = lambda batch: {}
    multiple_of: dict[str, int] = field(default_factory=dict)
    kind: str = ""
    elsewhere: Callable[[int], tuple] | None = None


def pictures(batch: int, size: int = 8, channels: int = 3) -> tuple[Tensor]:
    """One input: pictures."""
    return (torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(batch)),)


def features(*shape: int) -> Callable[[int], tuple[Tensor]]:
    """One input: vectors or sequences of these shapes."""
    return lambda batch: (torch.rand(batch, *shape, generator=torch.Generator().manual_seed(batch)),)


def tokens(length: int, words: int) -> Callable[[int], tuple[Tensor]]:
    """One input: tokens."""
    return lambda batch: (torch.randint(words, (batch, length), generator=torch.Generator().manual_seed(batch)),)


def build(family: Family) -> nn.Module:
    """The architecture with seeded weights and vectors and statistics that are not trivial, in eval mode."""
    torch.manual_seed(0)
    net = family.make()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in net.named_buffers():
            if "running" in name and buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in name else -0.5))
    return net.eval()
