"""Inputs of architectures: of a batch, seeded by it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DEPTHWISE, SEGMENTATION = "depthwise, squeeze-excite", "U-Net and segmentation"


def pictures(size: int, channels: int = 3) -> Callable[[int], tuple[Tensor]]:
    """One input: pictures."""
    return lambda batch: (torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(batch)),)


def noise(*shape: int) -> Callable[[int], tuple[Tensor]]:
    """One input of these shapes."""
    return lambda batch: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)),)


def tokens(length: int, words: int = 50, low: int = 3) -> Callable[[int], tuple[Tensor]]:
    """One input: tokens."""
    return lambda batch: (torch.randint(low, words, (batch, length), generator=torch.Generator().manual_seed(batch)),)
