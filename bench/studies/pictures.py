"""Pictures of digits or clothes, batches of them, and the accuracy of a network on them."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FASHION = Path("/usr/share/datasets/fashion-mnist")
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def digits(limit: int) -> Data:
    """Training and test images [N, 1, 8, 8] and labels of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16 - 0.5
    y = torch.tensor(data.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1347], order[1347:]
    return x[train][:limit], y[train][:limit], x[test], y[test]


def fashion(limit: int) -> Data:
    """Training and test images [N, 1, 28, 28] and labels of Fashion-MNIST."""
    if not FASHION.exists():
        sys.exit(f"There is no {FASHION}. On Debian and Ubuntu: apt-get install dataset-fashion-mnist")

    def read(name: str, offset: int) -> Tensor:
        with gzip.open(FASHION / name) as file:
            return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=offset).copy())

    def part(prefix: str, count: int) -> tuple[Tensor, Tensor]:
        x = read(f"{prefix}-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)[:count]
        return x.float() / 255 - 0.5, read(f"{prefix}-labels-idx1-ubyte.gz", 8)[:count].long()

    return *part("train", limit), *part("t10k", max(limit // 6, 1000))


def batch(data: Data, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """128 training pictures, all shifted by up to a pixel, and their labels."""
    x, y = data[:2]
    chosen = torch.randint(len(y), (128,), generator=draw)
    dx, dy = torch.randint(-1, 2, (2,), generator=draw).tolist()
    shifted = torch.roll(F.pad(x[chosen], (1, 1, 1, 1), value=-0.5), (dy, dx), (2, 3))[:, :, 1:-1, 1:-1]
    return shifted, y[chosen]


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    """Share of right answers on the test set, in percent."""
    right = sum(int((net.eval()(x).argmax(1) == y).sum()) for x, y in zip(data[2].split(500), data[3].split(500)))
    return 100 * right / len(data[3])
