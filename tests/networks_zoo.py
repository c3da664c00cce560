"""Small architectures, each with its inputs and the axes it must be found to have: {axis: (nodes, tied dimensions)}."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two stages of residual blocks with batch norm and a strided projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv1, self.norm1 = nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 20, 3, padding=1, stride=2)
        self.short = nn.Conv2d(16, 20, 1, stride=2)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        x = F.relu(self.conv3(x) + self.short(x))
        return self.head(x.mean((2, 3)))


class DenseConcat(nn.Module):
    """DenseNet-like: pre-activation batch norm over a growing concat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(14, 10, 3, padding=1)])
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs):
            x = torch.cat([conv(F.relu(norm(x))), x], 1)
        return self.head(x.amax((2, 3)))


class ConcatInput(nn.Module):
    """A concat with the picture itself, then a flatten of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(15 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.b(x), x, self.a(x).relu()], 1)
        return self.head(F.max_pool2d(x, 2).flatten(1))


class Chunk(nn.Module):
    """Gated halves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv(x).chunk(2, 1)
        return self.out(value * gate.sigmoid())


class FixedSplit(nn.Module):
    """A split at numbers in the code pins the sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 24, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv(x).relu().split([16, 8], 1)
        return self.out((self.a(left) + self.b(right)).relu())


class Flatten(nn.Module):
    """A flatten of 4 x 4 positions, channels first or last."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.conv, self.fc, self.out = nn.Conv2d(3, 10, 3, 2, 1), nn.Linear(160, 18), nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        x = x.permute(0, 2, 3, 1) if self.channels_last else x
        return self.out(self.fc(x.flatten(1)).relu())


class FlattenBetween(nn.Module):
    """Rows, channels, columns: a flatten with the channels in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 10, 3, 2, 1), nn.Linear(160, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().transpose(1, 2).flatten(1))


class SqueezeExcite(nn.Module):
    """Depthwise-separable convolutions with squeeze and excitation, one with a depth multiplier."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 8, 1)
        self.widen, self.out = nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.depth(F.silu(self.expand(x))))
        x = x * self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.out(self.widen(self.project(x)).relu())


class Upsample(nn.Module):
    """Transposed convolutions, one depthwise, PReLU, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act = nn.ConvTranspose2d(3, 8, 2, 2), nn.PReLU(8)
        self.spread = nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8)
        self.conv, self.out = nn.ConvTranspose2d(8, 24, 1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.spread(self.act(self.up(x))))
        return self.out(F.pixel_shuffle(x, 2).relu())


class Grouped(nn.Module):
    """Group norm, a grouped convolution and a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(4, 24)
        self.mix, self.narrow = nn.Conv2d(24, 12, 1), nn.Conv2d(12, 10, 1)
        self.group = nn.Conv2d(10, 16, 3, groups=2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.relu(self.norm(self.conv(x))))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.out(self.group(self.narrow(x)).relu())


class Shared(nn.Module):
    """One convolution used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.loop, self.out = nn.Conv2d(1, 9, 3), nn.Conv2d(9, 9, 3, padding=1), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + self.loop(x.tanh())
        return self.out(x)


class Transformer(nn.Module):
    """A block whose heads are cut by numbers in the code: only feed-forward and residual widths are continuous."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(6, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.position = nn.Parameter(torch.randn(1, 5, 16))
        self.qkv, self.merge = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.out = nn.Linear(16, 40), nn.Linear(40, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4)
        x = x + self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.out((x + self.down(F.gelu(self.up(self.norm2(x))))).mean(1))


class TwoInTwoOut(nn.Module):
    """Tokens and features in, a dictionary out; a raw parameter used from the other side."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(11, 14), nn.Linear(4, 14)
        self.mix = nn.Parameter(torch.randn(14, 10))
        self.gain = nn.Parameter(torch.rand(10))
        self.a, self.b = nn.Linear(10, 2), nn.Linear(10, 3)

    def forward(self, tokens: Tensor, features: Tensor) -> dict[str, Tensor]:
        x = (self.embed(tokens) * self.linear(features)).tanh() @ self.mix
        x = (x * self.gain).relu()
        return {"a": self.a(x), "b": self.b(x)}


class PadShortcut(nn.Module):
    """A residual shortcut that pads channels with zeros on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.out = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 20, 3, 2, 1), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.out(x.relu().mean((2, 3)))


class Heads(nn.Module):
    """Channels whose products are summed without a weight (a Gram matrix): no quadrature can enter."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Conv1d(3, 8, 1), nn.Conv1d(3, 8, 1)
        self.value, self.out = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.query(x).transpose(1, 2) @ self.key(x) / 8).softmax(-1)
        return self.out((self.value(x) @ weight).relu())


class Inverted(nn.Module):
    """x.sum over channels, which no weight multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).relu().sum(1, keepdim=True))


def _plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3)
    )


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 8, 3), nn.ELU(), nn.Conv1d(8, 2, 1)
    )


def _conv3d() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 6, 3), nn.InstanceNorm3d(6, affine=True), nn.ReLU(), nn.Conv3d(6, 2, 1))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 3)
    )


@dataclass(frozen=True)
class Case:
    """An architecture, its inputs, and what must be found."""

    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    axes: dict[str, tuple[int, list[str]]]
    multiple_of: dict[str, int] | None = None


def _random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


_PICTURE = (_random(2, 3, 8, 8),)

ZOO: dict[str, Case] = {
    "plain": Case(
        _plain,
        (_random(2, 1, 8, 8),),
        {
            "0": (12, ["0.weight[0] 0", "0.bias[0] 0", "2.weight[1] 0 q"]),
            "2": (8, ["2.weight[0] 2", "2.bias[0] 2", "4.weight[1] 2 q"]),
        },
    ),
    "residual": Case(
        Residual,
        _PICTURE,
        {
            "stem": (
                16,
                [
                    "stem.weight[0] stem",
                    "stem.bias[0] stem",
                    "conv1.weight[1] stem q",
                    "conv2.weight[0] stem",
                    "conv2.bias[0] stem",
                    "conv3.weight[1] stem q",
                    "short.weight[1] stem q",
                ],
            ),
            "conv1": (12, ["conv1.weight[0] conv1", "conv1.bias[0] conv1", "conv2.weight[1] conv1 q"]),
            "conv3": (
                20,
                [
                    "conv3.weight[0] conv3",
                    "conv3.bias[0] conv3",
                    "short.weight[0] conv3",
                    "short.bias[0] conv3",
                    "head.weight[1] conv3 q",
                ],
            ),
        },
    ),
    "dense concat, pre-activation norm": Case(
        DenseConcat,
        _PICTURE,
        {
            "stem": (
                8,
                [
                    "stem.weight[0] stem",
                    "stem.bias[0] stem",
                    "norms.0.weight[0] stem",
                    "norms.0.bias[0] stem",
                    "norms.1.weight[0] convs.0 + stem",
                    "norms.1.bias[0] convs.0 + stem",
                    "convs.0.weight[1] stem q",
                    "convs.1.weight[1] convs.0 + stem q",
                    "head.weight[1] convs.1 + convs.0 + stem q",
                    "norms.0.running_mean[0] stem",
                    "norms.0.running_var[0] stem",
                    "norms.1.running_mean[0] convs.0 + stem",
                    "norms.1.running_var[0] convs.0 + stem",
                ],
            ),
            "convs.0": (
                6,
                [
                    "norms.1.weight[0] convs.0 + stem",
                    "norms.1.bias[0] convs.0 + stem",
                    "convs.0.weight[0] convs.0",
                    "convs.0.bias[0] convs.0",
                    "convs.1.weight[1] convs.0 + stem q",
                    "head.weight[1] convs.1 + convs.0 + stem q",
                    "norms.1.running_mean[0] convs.0 + stem",
                    "norms.1.running_var[0] convs.0 + stem",
                ],
            ),
            "convs.1": (
                10,
                ["convs.1.weight[0] convs.1", "convs.1.bias[0] convs.1", "head.weight[1] convs.1 + convs.0 + stem q"],
            ),
        },
    ),
    "concat with the input, flattened": Case(
        ConcatInput,
        _PICTURE,
        {
            "a": (6, ["a.weight[0] a", "a.bias[0] a", "head.weight[1] (b + 3 + a) x 16 q"]),
            "b": (6, ["b.weight[0] b", "b.bias[0] b", "head.weight[1] (b + 3 + a) x 16 q"]),
        },
    ),
    "chunk": Case(
        Chunk, _PICTURE, {"conv": (12, ["conv.weight[0] 2 x conv", "conv.bias[0] 2 x conv", "out.weight[1] conv q"])}
    ),
    "fixed split": Case(
        FixedSplit,
        _PICTURE,
        {"a": (8, ["a.weight[0] a", "a.bias[0] a", "b.weight[0] a", "b.bias[0] a", "out.weight[1] a q"])},
    ),
    "flatten, channel-major": Case(
        lambda: Flatten(False),
        _PICTURE,
        {
            "conv": (10, ["conv.weight[0] conv", "conv.bias[0] conv", "fc.weight[1] conv x 16 q"]),
            "fc": (18, ["fc.weight[0] fc", "fc.bias[0] fc", "out.weight[1] fc q"]),
        },
    ),
    "flatten, channel-minor": Case(
        lambda: Flatten(True),
        _PICTURE,
        {
            "conv": (10, ["conv.weight[0] conv", "conv.bias[0] conv", "fc.weight[1] 16 x conv q"]),
            "fc": (18, ["fc.weight[0] fc", "fc.bias[0] fc", "out.weight[1] fc q"]),
        },
    ),
    "flatten, channels between": Case(
        FlattenBetween,
        _PICTURE,
        {"conv": (10, ["conv.weight[0] conv", "conv.bias[0] conv", "fc.weight[1] 4 x conv x 4 q"])},
    ),
    "depthwise, squeeze-excitation": Case(
        SqueezeExcite,
        _PICTURE,
        {
            "expand": (
                12,
                [
                    "expand.weight[0] expand",
                    "expand.bias[0] expand",
                    "depth.weight[0] expand",
                    "depth.bias[0] expand",
                    "squeeze.weight[1] expand q",
                    "excite.weight[0] expand",
                    "excite.bias[0] expand",
                    "project.weight[1] expand q",
                ],
            ),
            "squeeze": (4, ["squeeze.weight[0] squeeze", "squeeze.bias[0] squeeze", "excite.weight[1] squeeze q"]),
            "project": (
                8,
                [
                    "project.weight[0] project",
                    "project.bias[0] project",
                    "widen.weight[0] project x 2",
                    "widen.bias[0] project x 2",
                    "out.weight[1] project x 2 q",
                ],
            ),
        },
    ),
    "transposed convolution, PReLU, pixel shuffle": Case(
        Upsample,
        _PICTURE,
        {
            "up": (
                8,
                [
                    "up.weight[1] up",
                    "up.bias[0] up",
                    "act.weight[0] up",
                    "spread.weight[0] up",
                    "spread.bias[0] up",
                    "conv.weight[0] up q",
                ],
            ),
            "conv": (6, ["conv.weight[1] conv x 4", "conv.bias[0] conv x 4", "out.weight[1] conv q"]),
        },
    ),
    "group norm, channel shuffle, grouped convolution": Case(
        Grouped,
        _PICTURE,
        {
            "conv": (
                24,
                [
                    "conv.weight[0] conv",
                    "conv.bias[0] conv",
                    "norm.weight[0] conv",
                    "norm.bias[0] conv",
                    "mix.weight[1] conv q",
                ],
            ),
            "mix": (6, ["mix.weight[0] 2 x mix", "mix.bias[0] 2 x mix", "narrow.weight[1] mix x 2 q"]),
            "narrow": (5, ["narrow.weight[0] 2 x narrow", "narrow.bias[0] 2 x narrow", "group.weight[1] narrow q"]),
            "group": (8, ["group.weight[0] 2 x group", "group.bias[0] 2 x group", "out.weight[1] 2 x group q"]),
        },
        {"conv": 4},
    ),
    "shared weights": Case(
        Shared,
        (_random(2, 1, 8, 8),),
        {
            "stem": (
                9,
                [
                    "stem.weight[0] stem",
                    "stem.bias[0] stem",
                    "loop.weight[0] stem",
                    "loop.weight[1] stem q",
                    "loop.bias[0] stem",
                    "out.weight[1] stem q",
                ],
            )
        },
    ),
    "transformer with heads": Case(
        Transformer,
        (_random(2, 5, 6),),
        {
            "embed": (
                16,
                [
                    "position[2] embed",
                    "embed.weight[0] embed",
                    "embed.bias[0] embed",
                    "norm1.weight[0] embed",
                    "norm1.bias[0] embed",
                    "norm2.weight[0] embed",
                    "norm2.bias[0] embed",
                    "qkv.weight[1] embed q",
                    "merge.weight[0] embed",
                    "merge.bias[0] embed",
                    "up.weight[1] embed q",
                    "down.weight[0] embed",
                    "down.bias[0] embed",
                    "out.weight[1] embed q",
                ],
            ),
            "up": (40, ["up.weight[0] up", "up.bias[0] up", "down.weight[1] up q"]),
        },
    ),
    "two inputs, two outputs": Case(
        TwoInTwoOut,
        (torch.arange(6) % 11, _random(6, 4)),
        {
            "embed": (
                14,
                ["mix[0] embed q", "embed.weight[1] embed", "linear.weight[0] embed", "linear.bias[0] embed"],
            ),
            "mix": (10, ["mix[1] mix", "gain[0] mix", "a.weight[1] mix q", "b.weight[1] mix q"]),
        },
    ),
    "padded shortcut": Case(
        PadShortcut,
        _PICTURE,
        {
            "stem": (
                12,
                [
                    "stem.weight[0] stem",
                    "stem.bias[0] stem",
                    "conv.weight[0] 4 + stem + 4",
                    "conv.weight[1] stem q",
                    "conv.bias[0] 4 + stem + 4",
                    "out.weight[1] 4 + stem + 4 q",
                ],
            )
        },
    ),
    "attention over channels": Case(
        Heads,
        (_random(2, 3, 7),),
        {"value": (6, ["value.weight[0] value", "value.bias[0] value", "out.weight[1] value q"])},
    ),
    "conv1d": Case(
        _conv1d,
        (_random(2, 2, 16),),
        {
            "0": (12, ["0.weight[0] 0", "0.bias[0] 0", "3.weight[1] 0 q"]),
            "3": (8, ["3.weight[0] 3", "3.bias[0] 3", "5.weight[1] 3 q"]),
        },
    ),
    "conv3d, instance norm": Case(
        _conv3d,
        (_random(2, 1, 5, 5, 5),),
        {"0": (6, ["0.weight[0] 0", "0.bias[0] 0", "1.weight[0] 0", "1.bias[0] 0", "3.weight[1] 0 q"])},
    ),
    "perceptron with dropout": Case(
        _mlp,
        (_random(4, 7),),
        {
            "0": (20, ["0.weight[0] 0", "0.bias[0] 0", "4.weight[1] 0 q"]),
            "4": (16, ["4.weight[0] 4", "4.bias[0] 4", "6.weight[1] 4 q"]),
        },
    ),
}


def build(name: str) -> nn.Module:
    """The architecture with seeded weights and statistics of its norms that are not trivial, in eval mode."""
    torch.manual_seed(0)
    net = ZOO[name].make()
    for buffer_name, buffer in net.named_buffers():
        if buffer.is_floating_point():
            with torch.no_grad():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in buffer_name else -0.5))
    for parameter in net.parameters():
        if parameter.dim() == 1:
            with torch.no_grad():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval()
