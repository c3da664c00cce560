"""Networks with parts that only training uses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo import Family, features, pictures


class Auxiliary(nn.Module):
    """A second head on the features in the middle, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.deep = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3)
        self.side, self.side_norm, self.side_head = nn.Conv2d(8, 10, 1), nn.BatchNorm2d(10), nn.Linear(10, 2)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.norm(self.stem(x)).relu()
        y = self.head(self.drop(self.deep(x).relu().mean((2, 3))))
        if not self.training:
            return y
        return y, self.side_head(self.side_norm(self.side(x)).relu().mean((2, 3)))


class MaskedTokens(nn.Module):
    """An embedding of masked places, which training alone puts in; a projection that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 12), nn.Linear(16, 2)
        self.masked = nn.Parameter(torch.randn(12))
        self.up, self.idle = nn.Linear(12, 16), nn.Linear(16, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.training:
            x = torch.where((torch.arange(x.shape[1]) % 3 == 0)[:, None], self.masked, x)
        return self.head(self.up(x).relu())


FAMILIES = {
    "a head for training": Family(Auxiliary, pictures, {"stem": 8, "deep": 12, "side": 10}),
    "masks in training": Family(MaskedTokens, features(5, 6), {"embed": 12, "up": 16}),
}
