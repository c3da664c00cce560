"""Convolutional networks as they are published, in their smallest form: classifiers, detectors, pictures from pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Family, pictures


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution of odd size with its norm and rectifier."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Plain(nn.Module):
    """Convolutions and pooling to a fixed grid, then fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 12), nn.AdaptiveAvgPool2d(2))
        self.classify = nn.Sequential(nn.Linear(48, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x).flatten(1))


class Bottleneck(nn.Module):
    """Narrow, convolve in groups, widen; a projection where shapes change."""

    def __init__(self, inputs: int, inside: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.narrow, self.mix = conv(inputs, inside, 1), conv(inside, inside, 3, stride, groups)
        self.widen = conv(inside, outputs, 1)[:2]
        self.short = conv(inputs, outputs, 1, stride)[:2] if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.short(x) + self.widen(self.mix(self.narrow(x))))


class Residual(nn.Module):
    """Two stages of bottlenecks, in groups or not."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.first = nn.Sequential(Bottleneck(8, 4, 16, groups=groups), Bottleneck(16, 4, 16, groups=groups))
        self.second, self.head = Bottleneck(16, 8, 20, 2, groups), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


class Inception(nn.Module):
    """Branches of several kernels and of pooling, side by side; the next one reads them all."""

    def __init__(self, inputs: int, sizes: tuple[int, int, int, int]) -> None:
        super().__init__()
        a, b, c, d = sizes
        self.one, self.three = conv(inputs, a, 1), nn.Sequential(conv(inputs, b, 1), conv(b, b))
        self.five, self.pooled = nn.Sequential(conv(inputs, c, 1), conv(c, c), conv(c, c)), conv(inputs, d, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(F.avg_pool2d(x, 3, 1, 1))], 1)


def _inception() -> nn.Module:
    branches = (Inception(6, (4, 3, 2, 5)), nn.MaxPool2d(2), Inception(14, (3, 4, 5, 2)))
    return nn.Sequential(conv(3, 6), *branches, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(14, 3))


class Inverted(nn.Module):
    """Widen, convolve depthwise, weigh the channels, narrow; residual."""

    def __init__(self, size: int, inside: int, squeezed: int) -> None:
        super().__init__()
        self.widen, self.depth = conv(size, inside, 1), conv(inside, inside, 3, groups=inside)
        self.squeeze, self.excite = nn.Conv2d(inside, squeezed, 1), nn.Conv2d(squeezed, inside, 1)
        self.narrow = conv(inside, size, 1)[:2]

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(F.hardswish(self.widen(x)))
        y = y * F.hardsigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.narrow(y)


def _mobile() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 8, 3, 2), Inverted(8, 16, 4), Inverted(8, 12, 3), conv(8, 20, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 3)),
    )


class Shuffled(nn.Module):
    """Convolutions in groups, the channels dealt out to other groups between them."""

    def __init__(self, inputs: int, inside: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.first = conv(inputs, inside, 1, groups=groups)
        self.depth, self.last = conv(inside, inside, 3, groups=inside)[:2], conv(inside, inputs, 1, groups=groups)[:2]

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return F.relu(x + self.last(self.depth(y)))


def _shuffle() -> nn.Module:
    return nn.Sequential(conv(3, 8), Shuffled(8, 12, 2), Shuffled(8, 16, 2), nn.Conv2d(8, 2, 1))


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


class Rebuilt(nn.Module):
    """Three branches, one of them a norm alone, added: what becomes one convolution when it is served."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.wide, self.narrow, self.norm = conv(8, 8)[:2], conv(8, 8, 1)[:2], nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(F.relu(self.wide(x) + self.narrow(x) + self.norm(x)))


class Selective(nn.Module):
    """Two kernels, weighed against each other for every channel by a softmax over the two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.small, self.large = conv(3, 8), conv(8, 8), conv(8, 8, 5)
        self.squeeze, self.weigh = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 16, 1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.stack([self.small(x), self.large(x)], 1)
        weights = self.weigh(self.squeeze(x.sum(1).mean((2, 3), keepdim=True)).relu())
        weights = weights.view(len(x), 2, -1, 1, 1).softmax(1)
        return self.out((x * weights).sum(1))


class Cascade(nn.Module):
    """Channels in four parts; each is convolved with what the one before it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.parts = conv(3, 16), nn.ModuleList(conv(4, 4) for _ in range(3))
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.stem(x).chunk(4, 1)
        done = [first]
        for part, x in zip(self.parts, rest):
            done.append(part(x + done[-1] if len(done) > 1 else x))
        return self.out(torch.cat(done, 1))


def _at(size: int):
    return lambda batch: pictures(batch, size)


FAMILIES = {
    "VGG": Family(Plain, pictures, {}, kind="plain", elsewhere=_at(12)),
    "ResNet": Family(lambda: Residual(1), pictures, {}, kind="residual", elsewhere=_at(12)),
    "ResNeXt": Family(lambda: Residual(2), pictures, {}, kind="residual", elsewhere=_at(12)),
    "RepVGG": Family(Rebuilt, pictures, {}, kind="residual", elsewhere=_at(12)),
    "selective kernels": Family(Selective, pictures, {}, kind="residual", elsewhere=_at(12)),
    "Res2Net": Family(Cascade, pictures, {}, kind="residual", elsewhere=_at(12)),
    "Inception": Family(_inception, pictures, {}, kind="inception", elsewhere=_at(12)),
    "MobileNet": Family(_mobile, pictures, {}, kind="depthwise, squeeze-excite", elsewhere=_at(12)),
    "ShuffleNet": Family(_shuffle, pictures, {}, kind="shuffle", elsewhere=_at(12)),
    "U-Net": Family(UNet, pictures, {}, kind="U-Net and segmentation", elsewhere=_at(12)),
    "feature pyramid": Family(Pyramid, pictures, {}, kind="detection", elsewhere=_at(16)),
    "cross stages": Family(CrossStage, pictures, {}, kind="detection", elsewhere=_at(12)),
    "EDSR": Family(SuperResolution, pictures, {}, kind="super-resolution", elsewhere=_at(12)),
    "ESRGAN": Family(DenseResidual, pictures, {}, kind="super-resolution", elsewhere=_at(12)),
}
