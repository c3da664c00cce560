"""Networks for pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Family, pictures


class DenseLayers(nn.Module):
    """Every layer concatenates a list of features, the first a list of one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(14, 10, 3, padding=1)])
        self.head = nn.Linear(24, 4)

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


FAMILIES = {
    "dense layers over lists": Family(DenseLayers, pictures, {"stem": 8, "convs.0": 6, "convs.1": 10}),
    "patches padded and merged": Family(PaddedMerge, pictures, {"embed": 6, "merge": 12}),
}
