"""Layers whose weights are computed from others: normalised by hooks, by parametrizations or in forward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations

from zoo import Family, features, pictures


def _normalised(norm) -> nn.Module:
    layers = (norm(nn.Conv1d(3, 8, 3, padding=1)), nn.ReLU(), norm(nn.Conv1d(8, 6, 3)), nn.ReLU())
    return nn.Sequential(*layers, norm(nn.ConvTranspose1d(6, 5, 2)), nn.Tanh(), nn.Conv1d(5, 2, 1))


class Standardised(nn.Conv2d):
    """A convolution with a weight of mean 0 and deviation 1 over each filter, and a gain."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), self.weight[0].numel() ** -0.5))

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (spread + 1e-6) * self.gain, self.bias)


class PaddedStandardised(Standardised):
    """The same, and pads what it reads, which no ordinary layer does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def _standardised() -> nn.Module:
    return nn.Sequential(
        *(Standardised(3, 12, 3, padding=1), nn.GroupNorm(4, 12), nn.ReLU(), Standardised(12, 16, 3, groups=2)),
        *(nn.ReLU(), Standardised(16, 8, 1), nn.ReLU(), PaddedStandardised(8, 6, 2), nn.ReLU(), nn.Conv2d(6, 2, 1)),
    )


THREE = {"0": 8, "2": 6, "4": 5}
FAMILIES = {
    "weight norm by hooks": Family(lambda: _normalised(utils.weight_norm), features(3, 9), THREE),
    "spectral norm by hooks": Family(lambda: _normalised(utils.spectral_norm), features(3, 9), THREE),
    "weight norm": Family(lambda: _normalised(parametrizations.weight_norm), features(3, 9), THREE),
    "spectral norm": Family(lambda: _normalised(parametrizations.spectral_norm), features(3, 9), THREE),
    "weights standardised": Family(_standardised, pictures, {"0": 6, "3": 8, "7": 6}, multiple_of={"0": 2}),
}
