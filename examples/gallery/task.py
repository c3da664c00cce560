"""What several programs of the gallery train: networks with two hidden layers, on scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import integral_nn as inn


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1347 digits to train on and 450 to test on: x [N, 64] in [0, 1] and y [N], twice."""
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return x[order[:1347]], y[order[:1347]], x[order[1347:]], y[order[1347:]]


def network(width: int = 128) -> inn.IntegralNetwork:
    """Both hidden widths are continuous, drawn from a quarter up."""
    a, b = (inn.Axis(width, size_range=(width // 4, width)) for _ in range(2))
    layers = inn.IntegralLinear(64, a), nn.ReLU(), inn.IntegralLinear(a, b), nn.ReLU(), inn.IntegralLinear(b, 10)
    return inn.IntegralNetwork(nn.Sequential(*layers))


def ordinary(width: int = 128) -> nn.Sequential:
    """The same of ordinary layers."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Right answers in percent."""
    return 100 * (net(x).argmax(1) == y).float().mean().item()
