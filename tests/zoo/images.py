"""Networks for pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks_zoo import DenseConcat
from zoo import Family, pictures


class DenseLayers(DenseConcat):
    """Every layer concatenates a list of features, the first a list of one."""

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(torch.cat(features, 1).mean((2, 3)))


class PaddedMerge(nn.Module):
    """Patches are padded to even sizes, here by nothing, and merged four by four."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 6), nn.LayerNorm(24)
        self.merge, self.head = nn.Linear(24, 12, bias=False), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.permute(0, 2, 3, 1))
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(self.merge(self.norm(x)).mean((1, 2)))


class InstanceNormed(nn.Module):
    """Down and up again with a skip connection; instance norms have no weights, only a number of features."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.InstanceNorm2d(8), nn.PReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.InstanceNorm2d(12), nn.PReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 6, 2, 2), nn.InstanceNorm2d(6), nn.PReLU())
        self.out = nn.ConvTranspose2d(14, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.out(torch.cat([x, self.up(self.deep(x))], 1))


class ScaledBlock(nn.Module):
    """A residual block whose norm and whose scale keep their shapes as tuples."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.normalized_shape, self.shape = (size,), [1, size, 1, 1]
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.depth = nn.Conv2d(size, size, 3, padding=1, groups=size)
        self.widen, self.narrow = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.gamma = nn.Parameter(0.1 * torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(x).permute(0, 2, 3, 1)
        y = F.layer_norm(y, self.normalized_shape, self.weight, self.bias)
        y = self.narrow(F.gelu(self.widen(y))).permute(0, 3, 1, 2)
        return x + self.gamma.view(self.shape) * y


def _scaled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), ScaledBlock(8), ScaledBlock(8), nn.Conv2d(8, 2, 1))


class Ghost(nn.Module):
    """Half of the features made of the other half by a depthwise convolution, cut to a number in the module."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs_chs = outputs
        half = (outputs + 1) // 2
        self.primary = nn.Sequential(nn.Conv2d(inputs, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.cheap = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)[:, : self.outputs_chs]


def _ghosts() -> nn.Module:
    return nn.Sequential(Ghost(3, 12), Ghost(12, 16), nn.Conv2d(16, 2, 1))


FAMILIES = {
    "instance norm without weights": Family(InstanceNormed, pictures, {"down.0": 8, "deep.0": 12, "up.0": 6}),
    "shapes kept as tuples": Family(_scaled, pictures, {"0": 8, "1.widen": 16, "2.widen": 16}),
    "features cut to a number": Family(_ghosts, pictures, {"0.primary.0": 6, "1.primary.0": 8}),
    "dense layers over lists": Family(DenseLayers, pictures, {"stem": 8, "convs.0": 6, "convs.1": 10}),
    "patches padded and merged": Family(PaddedMerge, pictures, {"embed": 6, "merge": 12}),
}
