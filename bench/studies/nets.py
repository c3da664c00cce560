"""Small networks for small pictures: `w` channels in the first layer, `stride` there too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def block(i: int, o: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU())


def vgg(w: int, stride: int) -> nn.Module:
    """Convolutions and strides, then two linear layers."""
    layers = [block(1, w, stride), block(w, 2 * w, 2), block(2 * w, 2 * w), block(2 * w, 4 * w, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * w, 4 * w), nn.ReLU(),
                         nn.Linear(4 * w, 10))  # fmt: skip


def nin(w: int, stride: int) -> nn.Module:
    """Network in network: each convolution followed by two of 1 x 1, the last averaged."""
    layers = []
    for i, o, step in ((1, w, stride), (w, 2 * w, 2), (2 * w, 4 * w, 2)):
        layers += [block(i, o, step), block(o, o, 1, 1), block(o, o, 1, 1)]
    return nn.Sequential(*layers, nn.Conv2d(4 * w, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.first = block(i, o, stride)
        self.second = nn.Sequential(nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o))
        short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        self.short = short if stride > 1 or i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.short(x))


def resnet(w: int, stride: int) -> nn.Module:
    """Three stages of two residual blocks."""
    layers, i = [block(1, w, stride)], w
    for o, step in ((w, 1), (2 * w, 2), (4 * w, 2)):
        layers += [Residual(i, o, step), Residual(o, o, 1)]
        i = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10))


NETS = {"vgg": vgg, "nin": nin, "resnet": resnet}
