"""Networks that mix places and channels in turn, in their smallest form."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Family, features, pictures
from zoo.attention import FeedForward


class Mixer(nn.Module):
    """Layers over places and layers over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 10, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(10) for _ in range(5))
        self.places = nn.ModuleList(FeedForward(4, 6) for _ in range(2))
        self.channels = nn.ModuleList(FeedForward(10, 16) for _ in range(2))
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for i in range(2):
            x = x + self.places[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x).mean(1))


class Gated(nn.Module):
    """Half of the features, mixed over places, gate the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.up = nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 24)
        self.inner, self.places, self.down = nn.LayerNorm(12), nn.Conv1d(5, 5, 1), nn.Linear(12, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        one, two = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        return self.head(x + self.down(one * self.places(self.inner(two))))


class Mixing(nn.Module):
    """Residual depthwise convolutions of large kernel, then mixing channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 10, 2, 2), nn.Conv2d(10, 10, 5, padding=2, groups=10)
        self.mix, self.head = nn.Conv2d(10, 10, 1), nn.Linear(10, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(10) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](F.gelu(self.stem(x)))
        x = x + self.norms[1](F.gelu(self.depth(x)))
        return self.head(self.norms[2](F.gelu(self.mix(x))).mean((2, 3)))


FAMILIES = {
    "MLP-Mixer": Family(
        Mixer,
        pictures,
        {"embed": 10, "places.0.up": 6, "places.1.up": 6, "channels.0.up": 16, "channels.1.up": 16},
        kind="mixer",
    ),
    "gMLP": Family(Gated, features(5, 6), {"embed": 10, "up": 12}, kind="mixer"),
    "ConvMixer": Family(
        Mixing, pictures, {"stem": 10, "mix": 10}, kind="mixer", elsewhere=lambda batch: pictures(batch, 12)
    ),
}
