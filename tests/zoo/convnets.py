"""Convolutional networks as they are published, in their smallest form."""

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


class Frozen(nn.Module):
    """A batch norm of buffers alone, which a detector keeps from its backbone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


def _frozen() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), Frozen(8), nn.ReLU(), nn.Conv2d(8, 12, 3), Frozen(12), nn.Conv2d(12, 2, 1))


def at(size: int):
    return lambda batch: pictures(batch, size)


FAMILIES = {
    "frozen norms": Family(_frozen, pictures, {"0": 8, "3": 12}, kind="detection", elsewhere=at(12)),
    "VGG": Family(
        Plain, pictures, {"features.0.0": 8, "features.2.0": 12, "classify.0": 20}, kind="plain", elsewhere=at(12)
    ),
    "ResNet": Family(
        lambda: Residual(1),
        pictures,
        {
            "stem.0": 8,
            "first.0.narrow.0": 4,
            "first.0.mix.0": 4,
            "first.0.widen.0": 16,
            "first.1.narrow.0": 4,
            "first.1.mix.0": 4,
            "second.narrow.0": 8,
            "second.mix.0": 8,
            "second.widen.0": 20,
        },
        kind="residual",
        elsewhere=at(12),
    ),
    "ResNeXt": Family(
        lambda: Residual(2),
        pictures,
        {
            "stem.0": 8,
            "first.0.narrow.0": 2,
            "first.0.mix.0": 2,
            "first.0.widen.0": 16,
            "first.1.narrow.0": 2,
            "first.1.mix.0": 2,
            "second.narrow.0": 4,
            "second.mix.0": 4,
            "second.widen.0": 20,
        },
        kind="residual",
        elsewhere=at(12),
    ),
    "RepVGG": Family(Rebuilt, pictures, {"stem.0": 8}, kind="residual", elsewhere=at(12)),
    "selective kernels": Family(
        Selective, pictures, {"stem.0": 8, "small.0": 8, "squeeze": 6}, kind="residual", elsewhere=at(12)
    ),
    "Res2Net": Family(Cascade, pictures, {"stem.0": 4, "parts.2.0": 4}, kind="residual", elsewhere=at(12)),
    "Inception": Family(
        _inception,
        pictures,
        {
            "0.0": 6,
            "1.one.0": 4,
            "1.three.0.0": 3,
            "1.three.1.0": 3,
            "1.five.0.0": 2,
            "1.five.1.0": 2,
            "1.five.2.0": 2,
            "1.pooled.0": 5,
            "3.one.0": 3,
            "3.three.0.0": 4,
            "3.three.1.0": 4,
            "3.five.0.0": 5,
            "3.five.1.0": 5,
            "3.five.2.0": 5,
            "3.pooled.0": 2,
        },
        kind="inception",
        elsewhere=at(12),
    ),
    "MobileNet": Family(
        _mobile,
        pictures,
        {"0.0": 8, "1.widen.0": 16, "1.squeeze": 4, "2.widen.0": 12, "2.squeeze": 3, "3.0": 20},
        kind="depthwise, squeeze-excite",
        elsewhere=at(12),
    ),
    "ShuffleNet": Family(
        _shuffle, pictures, {"0.0": 4, "1.first.0": 3, "2.first.0": 4}, kind="shuffle", elsewhere=at(12)
    ),
}
