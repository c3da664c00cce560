"""Networks for sound, volumes and fields, and networks that generate, in their smallest form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo import Family, features, pictures


class WaveNet(nn.Module):
    """Dilated convolutions with two gates, a residual and a skip connection each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(2, 8, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(8, 12, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(6, 8, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(6, 10, 1) for _ in range(3))
        self.mix, self.out = nn.Conv1d(10, 12, 1), nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        total = 0
        for i in range(3):
            value, gate = self.dilated[i](F.pad(x, (2**i, 0))).chunk(2, 1)
            y = value.tanh() * gate.sigmoid()
            x, total = x + self.residual[i](y), total + self.skip[i](y)
        return self.out(self.mix(total.relu()).relu())


class Separator(nn.Module):
    """A mask on learned frames, for two speakers; separable convolutions with a norm over channels and time."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.waves = nn.Conv1d(1, 10, 4, 2, bias=False), nn.ConvTranspose1d(10, 1, 4, 2, bias=False)
        self.norm, self.narrow = nn.GroupNorm(1, 10), nn.Conv1d(10, 6, 1)
        self.widen, self.depth = nn.Conv1d(6, 12, 1), nn.Conv1d(12, 12, 3, padding=1, groups=12)
        self.act, self.inner, self.back = nn.PReLU(), nn.GroupNorm(1, 12), nn.Conv1d(12, 6, 1)
        self.masks = nn.Conv1d(6, 20, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frames(x).relu()
        y = self.narrow(self.norm(x))
        y = y + self.back(self.inner(self.act(self.depth(self.act(self.widen(y))))))
        masks = self.masks(y).unflatten(1, (2, -1)).sigmoid()
        return self.waves((x[:, None] * masks).flatten(0, 1)).unflatten(0, (-1, 2))


class Vocoder(nn.Module):
    """Up by transposed convolutions, several kernels averaged at every step."""

    def __init__(self) -> None:
        super().__init__()
        norm = parametrizations.weight_norm
        self.pre, self.up = norm(nn.Conv1d(5, 12, 3, padding=1)), norm(nn.ConvTranspose1d(12, 8, 4, 2, 1))
        self.blocks = nn.ModuleList(norm(nn.Conv1d(8, 8, k, padding=k // 2)) for k in (3, 5))
        self.post = norm(nn.Conv1d(8, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.leaky_relu(self.pre(x), 0.1))
        x = sum(x + block(F.leaky_relu(x, 0.1)) for block in self.blocks) / 2
        return self.post(F.leaky_relu(x)).tanh()


class Conformer(nn.Module):
    """Half a feed-forward, a gated depthwise convolution in time with a batch norm, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 10), nn.LayerNorm(10)
        self.up, self.down = nn.Linear(10, 16), nn.Linear(16, 10)
        self.point, self.depth = nn.Conv1d(10, 20, 1), nn.Conv1d(10, 10, 3, padding=1, groups=10)
        self.batch, self.last, self.head = nn.BatchNorm1d(10), nn.Conv1d(10, 10, 1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + 0.5 * self.down(F.silu(self.up(self.norm(x))))
        y = F.glu(self.point(x.transpose(1, 2)), 1)
        x = x + self.last(F.silu(self.batch(self.depth(y)))).transpose(1, 2)
        return self.head(x)


class Video(nn.Module):
    """Convolutions in space, then in time, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1))
        self.space, self.norm = nn.Conv3d(8, 10, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(10)
        self.time, self.head = nn.Conv3d(10, 8, (3, 1, 1), padding=(1, 0, 0)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.time(self.norm(self.space(x)).relu())).relu()
        return self.head(x.mean((2, 3, 4)))


class Volume(nn.Module):
    """Down and up in three dimensions, features added, not put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6, affine=True)
        self.down, self.deep = nn.Conv3d(6, 10, 2, 2), nn.Conv3d(10, 10, 3, padding=1)
        self.act, self.up, self.out = nn.PReLU(10), nn.ConvTranspose3d(10, 6, 2, 2), nn.Conv3d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.norm(self.first(x)))
        y = self.down(x)
        return self.out(x + self.up(self.act(y + self.deep(y))))


class PictureVae(nn.Module):
    """Pictures to a code and back; the code is drawn in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.mean, self.spread, self.start = nn.Linear(48, 5), nn.Linear(48, 5), nn.Linear(5, 48)
        self.up = nn.Sequential(
            *(nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Sigmoid()),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.down(x).flatten(1)
        mean, spread = self.mean(x), self.spread(x)
        code = mean + torch.randn_like(mean) * (0.5 * spread).exp() if self.training else mean
        return self.up(self.start(code).view(len(x), -1, 2, 2)), mean, spread


class Generator(nn.Module):
    """A picture of noise, by transposed convolutions from a single pixel on."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(
            *(nn.ConvTranspose2d(6, 16, 4, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x[:, :, None, None])


def _discriminator() -> nn.Module:
    norm = parametrizations.spectral_norm
    return nn.Sequential(
        *(norm(nn.Conv2d(3, 8, 4, 2, 1)), nn.LeakyReLU(0.2), norm(nn.Conv2d(8, 12, 4, 2, 1)), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), norm(nn.Linear(48, 1))),
    )


class Styled(nn.Module):
    """Convolutions whose inputs are scaled by a style, and a norm that another style shifts."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(5, 12), nn.LeakyReLU(0.2), nn.Linear(12, 10), nn.LeakyReLU(0.2))
        self.const, self.style, self.conv = nn.Parameter(torch.randn(1, 8, 4, 4)), nn.Linear(10, 8), nn.Conv2d(8, 6, 3)
        self.scale, self.shift, self.out = nn.Linear(10, 6), nn.Linear(10, 6), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        code = self.map(x)
        x = self.conv(self.const * self.style(code)[..., None, None])
        x = F.instance_norm(x) * (1 + self.scale(code)[..., None, None]) + self.shift(code)[..., None, None]
        return self.out(x.relu())


class Diffusion(nn.Module):
    """A step's number as sines, added to the features of a picture; group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.embed = nn.Linear(8, 12), nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.conv1, self.shift = nn.GroupNorm(4, 8), nn.Conv2d(8, 12, 3, padding=1), nn.Linear(12, 12)
        self.norm2, self.conv2, self.out = nn.GroupNorm(4, 12), nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        angles = step[:, None] * torch.exp(-torch.arange(4).to(x))
        code = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], 1)))
        x = self.embed(x)
        y = self.conv1(F.silu(self.norm1(x))) + self.shift(code)[..., None, None]
        return self.out(x + self.conv2(F.silu(self.norm2(y))))


class Fourier(nn.Module):
    """The lowest frequencies of a signal times complex weights, beside an ordinary layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.short = nn.Conv1d(2, 8, 1), nn.Conv1d(8, 8, 1)
        self.real, self.imaginary = (nn.Parameter(torch.randn(8, 8, 3) / 8) for _ in range(2))
        self.mix, self.out = nn.Conv1d(8, 12, 1), nn.Conv1d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        waves = torch.fft.rfft(x)[..., :3]
        waves = torch.einsum("bim,iom->bom", waves, torch.complex(self.real, self.imaginary))
        x = F.gelu(self.short(x) + torch.fft.irfft(waves, n=x.shape[-1]))
        return self.out(F.gelu(self.mix(x)))


class TwoTowers(nn.Module):
    """Users and items in tables, their product, beside a deep network on both."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(9, 8), nn.Embedding(11, 8)
        self.deep, self.head = (
            nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU()),
            nn.Linear(14, 1),
        )

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        one, two = self.users(users), self.items(items)
        return self.head(torch.cat([one * two, self.deep(torch.cat([one, two], -1))], -1))


def _numbers(batch: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(batch)
    return torch.randint(9, (batch,), generator=draw), torch.randint(11, (batch,), generator=draw)


def _stepped(size: int):
    return lambda batch: (*pictures(batch, size), torch.arange(batch).float())


FAMILIES = {
    "WaveNet": Family(
        WaveNet,
        features(2, 12),
        {"embed": 8, "dilated.0": 6, "dilated.1": 6, "dilated.2": 6, "skip.0": 10, "mix": 12},
        kind="1-D audio",
        elsewhere=features(2, 17),
    ),
    "Conv-TasNet": Family(
        Separator,
        features(1, 16),
        {"frames": 10, "narrow": 6, "widen": 12},
        kind="1-D audio",
        elsewhere=features(1, 24),
    ),
    "HiFi-GAN": Family(Vocoder, features(5, 6), {"pre": 12, "up": 8}, kind="1-D audio", elsewhere=features(5, 9)),
    "Conformer": Family(
        Conformer, features(7, 6), {"embed": 10, "up": 16, "point": 10}, kind="1-D audio", elsewhere=features(9, 6)
    ),
    "R(2+1)D": Family(
        Video, features(3, 4, 6, 6), {"stem": 8, "space": 10}, kind="3-D", elsewhere=features(3, 5, 8, 8)
    ),
    "V-Net": Family(Volume, features(1, 4, 4, 4), {"first": 6, "down": 10}, kind="3-D", elsewhere=features(1, 6, 6, 6)),
    "VAE of pictures": Family(PictureVae, pictures, {"down.0": 8, "down.2": 12, "start": 12, "up.0": 8}, kind="VAE"),
    "DCGAN, generator": Family(Generator, features(6), {"up.0": 16, "up.3": 8}, kind="GAN"),
    "DCGAN, discriminator": Family(_discriminator, pictures, {"0": 8, "2": 12}, kind="GAN"),
    "StyleGAN": Family(Styled, features(5), {"style": 8, "map.0": 12, "map.2": 10, "conv": 6}, kind="GAN"),
    "diffusion": Family(
        Diffusion,
        _stepped(8),
        {"time": 12, "embed": 8, "conv1": 12},
        multiple_of={"embed": 4, "conv1": 4},
        kind="diffusion",
        elsewhere=_stepped(12),
    ),
    "FNO": Family(Fourier, features(2, 10), {"lift": 8, "short": 8, "mix": 12}, kind="FNO", elsewhere=features(2, 16)),
    "two towers": Family(TwoTowers, _numbers, {"users": 8, "deep.0": 12, "deep.2": 6}, kind="recommendation"),
}
