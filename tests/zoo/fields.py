"""Networks that answer with pictures or with features at many places, in their smallest form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Family, pictures
from zoo.convnets import at, conv


class UNet(nn.Module):
    """Down, up, and the features of every scale put beside those that come back."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 6), conv(6, 10), conv(10, 14)
        self.up2, self.merge2 = nn.ConvTranspose2d(14, 8, 2, 2), conv(18, 10)
        self.up1, self.merge1 = nn.ConvTranspose2d(10, 6, 2, 2), conv(12, 7)
        self.out = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        x = self.up2(self.three(F.max_pool2d(two, 2)))
        x = self.up1(self.merge2(torch.cat([two, x], 1)))
        return self.out(self.merge1(torch.cat([one, x], 1)))


class Pyramid(nn.Module):
    """Features of three scales, the coarse added to the fine, one head on all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 8, 3, 2), conv(8, 12, 3, 2), conv(12, 16, 3, 2)])
        self.sides = nn.ModuleList([nn.Conv2d(n, 10, 1) for n in (8, 12, 16)])
        self.smooth = nn.ModuleList([conv(10, 10) for _ in range(3)])
        self.tower, self.classes, self.boxes = conv(10, 12), nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        laterals = [side(x) for side, x in zip(self.sides, features)]
        for i in (1, 0):
            laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], size=laterals[i].shape[-2:], mode="nearest")
        heads = [self.tower(smooth(x)) for smooth, x in zip(self.smooth, laterals)]
        return [{"classes": self.classes(x), "boxes": self.boxes(x).permute(0, 2, 3, 1).flatten(1, 2)} for x in heads]


class CrossStage(nn.Module):
    """Half of the channels go round the blocks, every block's result is kept, and pooling at three sizes ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split = conv(3, 8), conv(8, 12, 1)
        self.blocks = nn.ModuleList([nn.Sequential(conv(6, 4), conv(4, 6)) for _ in range(2)])
        self.merge, self.narrow, self.out = conv(24, 10, 1), conv(10, 5, 1), nn.Conv2d(20, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(self.stem(x)).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        x = self.narrow(self.merge(torch.cat(parts, 1)))
        pooled = [x]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 3, 1, 1))
        return self.out(torch.cat(pooled, 1))


class SuperResolution(nn.Module):
    """Residual blocks without norms, a long shortcut, twice the size by pixel shuffle, the enlarged picture added."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleList(nn.ModuleList([nn.Conv2d(8, 10, 3, 1, 1), nn.Conv2d(10, 8, 3, 1, 1)]) for _ in "ab")
        self.up, self.tail = nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = y = self.head(x)
        for one, two in self.body:
            y = y + 0.1 * two(one(y).relu())
        y = self.tail(F.pixel_shuffle(self.up(y + first), 2).relu())
        return y + F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class DenseResidual(nn.Module):
    """Every convolution reads all before it; the last one's result, scaled, is added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, 1, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4 if i < 3 else 8, 3, 1, 1) for i in range(4))
        self.tail = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        kept = [x]
        for layer in self.convs[:-1]:
            kept.append(F.leaky_relu(layer(torch.cat(kept, 1)), 0.2))
        return self.tail(x + 0.2 * self.convs[-1](torch.cat(kept, 1)))


FAMILIES = {
    "U-Net": Family(
        UNet,
        pictures,
        {"one.0": 6, "two.0": 10, "three.0": 14, "up2": 8, "merge2.0": 10, "up1": 6, "merge1.0": 7},
        kind="U-Net and segmentation",
        elsewhere=at(12),
    ),
    "feature pyramid": Family(
        Pyramid,
        pictures,
        {"stages.0.0": 8, "stages.1.0": 12, "stages.2.0": 16, "sides.0": 10, "smooth.0.0": 10, "tower.0": 12},
        kind="detection",
        elsewhere=at(16),
    ),
    "cross stages": Family(
        CrossStage,
        pictures,
        {"stem.0": 8, "split.0": 6, "blocks.0.0.0": 4, "blocks.1.0.0": 4, "merge.0": 10, "narrow.0": 5},
        kind="detection",
        elsewhere=at(12),
    ),
    "EDSR": Family(
        SuperResolution,
        pictures,
        {"head": 8, "body.0.0": 10, "body.1.0": 10, "up": 6},
        kind="super-resolution",
        elsewhere=at(12),
    ),
    "ESRGAN": Family(
        DenseResidual,
        pictures,
        {"head": 8, "convs.0": 4, "convs.1": 4, "convs.2": 4},
        kind="super-resolution",
        elsewhere=at(12),
    ),
}
