"""Train an integral network on handwritten digits by Algorithm 1, then shrink it without fine-tuning.

A small convolutional network of integral layers is trained on scikit-learn's 8x8 digits; every step draws a random
width for each axis. Afterwards one set of nodes serves every width: the table shows accuracy, parameters and time an
image from 100% to 25% width, beside the same architecture trained as an ordinary network and cut by the L1 norm of its
filters.

    python examples/digits.py            writes digits.png beside the table it prints
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import integral_nn as inn

CHANNELS = (32, 64, 64)
WIDTHS = (1.0, 0.9, 0.75, 0.625, 0.5, 0.375, 0.25)


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [N, 1, 8, 8] in [-0.5, 0.5] and labels [N]: 1347 to train on, 450 to test on."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16 - 0.5
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1347], order[1347:]
    return images[train], labels[train], images[test], labels[test]


def integral_net() -> inn.IntegralNetwork:
    """Three convolutions and a classifier; the three hidden widths are continuous axes."""
    a, b, c = [inn.Axis(m, size_range=(m // 4, m)) for m in CHANNELS]
    net = nn.Sequential(
        inn.IntegralConv2d(1, a, 3, padding=1),
        nn.ReLU(),
        inn.IntegralConv2d(a, b, 3, padding=1, stride=2),
        nn.ReLU(),
        inn.IntegralConv2d(b, c, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        inn.IntegralLinear(c, 10),
    )
    return inn.IntegralNetwork(net)


def discrete_net() -> nn.Sequential:
    """The same architecture of ordinary layers."""
    a, b, c = CHANNELS
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(a, b, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(b, c, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(c, 10),
    )


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each batch shifted by up to one pixel."""
    dx, dy = (int(v) for v in torch.randint(-1, 2, (2,), generator=generator))
    return torch.roll(F.pad(images, (1, 1, 1, 1), value=-0.5), (dy, dx), (2, 3))[:, :, 1:-1, 1:-1]


def train(net: nn.Module, images: Tensor, labels: Tensor, steps: int, title: str) -> None:
    """Adam with a one-cycle rate; an integral network draws sizes at random at every step (Algorithm 1)."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    net.train()
    for _ in tqdm(range(steps), title, mininterval=1, leave=False):
        batch = torch.randint(len(labels), (128,), generator=generator)
        if isinstance(net, inn.IntegralNetwork):
            net.resample(generator)
        loss = F.cross_entropy(net(augmented(images[batch], generator)), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()


def cut_by_l1(net: nn.Sequential, width: float) -> nn.Sequential:
    """Keep the share `width` of each hidden layer's filters, those of the largest L1 norm; no fine-tuning."""
    net = copy.deepcopy(net)
    layers = [layer for layer in net if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer, following in pairwise(layers):
        norms = layer.weight.detach().abs().flatten(1).sum(1)
        keep = norms.topk(round(width * len(norms))).indices.sort().values
        layer.weight = nn.Parameter(layer.weight.detach()[keep])
        layer.bias = nn.Parameter(layer.bias.detach()[keep])
        following.weight = nn.Parameter(following.weight.detach()[:, keep])
    return net


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers in percent."""
    return 100 * (net(images).argmax(1) == labels).float().mean().item()


@torch.no_grad()
def milliseconds_an_image(net: nn.Module, images: Tensor) -> float:
    """Median over 20 passes of the test set."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        net(images)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times) / len(images)


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


class Line(NamedTuple):
    """One width of the table."""

    width: float
    integral: float
    cut: float
    parameters: int
    milliseconds: float


def measure(integral: inn.IntegralNetwork, discrete: nn.Sequential, images: Tensor, labels: Tensor) -> list[Line]:
    """Both networks at every width: the one re-discretized, the other cut; nothing is trained again."""
    lines = []
    for width in WIDTHS:
        small, cut = integral.at(width), cut_by_l1(discrete, width).eval()
        scores = accuracy(small, images, labels), accuracy(cut, images, labels)
        lines.append(Line(width, *scores, parameters(small), milliseconds_an_image(small, images)))
    return lines


def main() -> None:
    """Train both networks, save the curve, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="training steps of each network")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch; the layers are small")
    parser.add_argument("--figure", type=Path, default=Path("digits.png"), help="where the curve is saved")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()

    images, labels, test_images, test_labels = load()
    torch.manual_seed(0)
    integral = integral_net()
    train(integral, images, labels, options.steps, "integral network, random widths")
    torch.manual_seed(0)
    discrete = discrete_net()
    train(discrete, images, labels, options.steps, "ordinary network")
    lines = measure(integral, discrete, test_images, test_labels)
    draw(lines, options.figure)

    print(f"{'width':>6} {'integral net':>13} {'L1 cut':>8} {'parameters':>11} {'ms an image':>12}")
    for line in lines:
        print(
            f"{line.width:>6.0%} {line.integral:>12.1f}% {line.cut:>7.1f}% {line.parameters:>11,} "
            f"{line.milliseconds:>12.4f}"
        )
    print(f"Right answers on {len(test_labels)} test pictures; one set of nodes, nothing trained again after a cut.")
    print(f"Picture: {options.figure}. Total time: {time.perf_counter() - start:.0f} s.")
    print("Try next: the programs of docs/gallery (make gallery), or inn.convert on a network of yours (README).")


def draw(lines: list[Line], path: Path) -> None:
    """Accuracy against width, both networks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, plot = plt.subplots(figsize=(5, 3.2), layout="constrained")
    widths = [100 * line.width for line in lines]
    plot.plot(widths, [line.integral for line in lines], "o-", label="integral network, re-discretized")
    plot.plot(widths, [line.cut for line in lines], "s--", label="ordinary network, cut by L1 norm")
    plot.set(xlabel="width [%]", ylabel="test accuracy [%]", ylim=(0, 102))
    plot.invert_xaxis()
    plot.grid(alpha=0.3)
    plot.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
