"""Networks to train on several ranks, and their batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import integral_nn as inn

BATCH = 8


def by_hand(**axis: object) -> inn.IntegralNetwork:
    """Two convolutions and a classifier along two axes."""
    torch.manual_seed(0)
    a, b = inn.Axis(16, size_range=(6, 16), **axis), inn.Axis(12, size_range=(5, 12), **axis)
    layers = [inn.IntegralConv2d(3, a, 3), nn.ReLU(), inn.IntegralConv2d(a, b, 3), nn.ReLU()]
    return inn.IntegralNetwork(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), inn.IntegralLinear(b, 5)))


def ordinary() -> nn.Sequential:
    """The same of ordinary layers."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


def converted(**options: object) -> inn.IntegralNetwork:
    """Two convolutions and a classifier, converted."""
    return inn.convert(ordinary(), torch.rand(2, 3, 8, 8), permute=False, **options).train()


MAKE = {"by hand": by_hand, "converted": converted}


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Pictures and labels of a training step, for all ranks together."""
    draw = torch.Generator().manual_seed(step)
    return torch.rand(BATCH, 3, 8, 8, generator=draw), torch.randint(5, (BATCH,), generator=draw)


def share(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """A rank's part of it."""
    x, y = batch(step)
    return x.chunk(world)[rank], y.chunk(world)[rank]


def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)
