"""The paper's classification study on pictures of digits or clothes: accuracy against compression and width.

    python examples/classify.py --data digits --net vgg             scikit-learn's digits: minutes
    python examples/classify.py --data fashion --net resnet         Fashion-MNIST: apt-get install dataset-fashion-mnist
    python examples/classify.py --quick                             a minute

Pipelines, tables and files: see study.py.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from study import Study, Task, parse, parser
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


def block(i: int, o: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU())


def vgg(w: int, stride: int) -> nn.Module:
    """Convolutions and strides, then two linear layers."""
    layers = [block(1, w, stride), block(w, 2 * w, 2), block(2 * w, 2 * w), block(2 * w, 4 * w, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * w, 4 * w), nn.ReLU(),
                         nn.Linear(4 * w, 10))  # fmt: skip


def nin(w: int, stride: int) -> nn.Module:
    """Network in network: each convolution followed by two of 1 x 1, the last averaged."""
    layers = []
    for i, o, step in ((1, w, stride), (w, 2 * w, 2), (2 * w, 4 * w, 2)):
        layers += [block(i, o, step), block(o, o, 1, 1), block(o, o, 1, 1)]
    return nn.Sequential(*layers, nn.Conv2d(4 * w, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.first = block(i, o, stride)
        self.second = nn.Sequential(nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o))
        short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        self.short = short if stride > 1 or i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.short(x))


def resnet(w: int, stride: int) -> nn.Module:
    """Three stages of two residual blocks."""
    layers, i = [block(1, w, stride)], w
    for o, step in ((w, 1), (2 * w, 2), (4 * w, 2)):
        layers += [Residual(i, o, step), Residual(o, o, 1)]
        i = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10))


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


def task(options: argparse.Namespace) -> Task:
    """The study's network and data."""
    data = (digits if options.data == "digits" else fashion)(options.limit)
    x, y = data[:2]
    few = options.samples
    net = {"vgg": vgg, "nin": nin, "resnet": resnet}[options.net]
    stride = 1 if options.data == "digits" else 2  # of one layer more, for the larger pictures

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    return Task(
        name=f"{options.data}-{options.net}",
        metric="test accuracy [%]",
        build=lambda share: net(round(share * options.width), stride),
        draw=partial(batch, data),
        criterion=partial(F.cross_entropy, label_smoothing=0.05),
        score=lambda net: accuracy(net, data),
        loss=loss,
        batches=list(zip(x[:few].split(128), y[:few].split(128))),
        example=x[:2],
        calibration=list(x[:2048].split(256)),
    )


def main() -> None:
    """Parse the options and run the study."""
    options = parser(__doc__)
    options.add_argument("--data", choices=("digits", "fashion"), default="digits")
    options.add_argument("--net", choices=("vgg", "nin", "resnet"), default="vgg")
    options.add_argument("--width", type=int, default=32, help="channels of the first layer")
    options.add_argument("--limit", type=int, default=60000, help="training pictures used")
    quick = {
        "steps": 100,
        "init_steps": 100,
        "scratch_steps": 100,
        "tuning": 12,
        "width": 8,
        "limit": 1347,
        "samples": 256,
    }
    chosen = parse(options, **quick, compressions=(0.0, 0.4), widths=(0.5, 1.0))
    Study(task(chosen), chosen).run()


if __name__ == "__main__":
    main()
