"""A network that grows.

Nodes are values of a function, so a network can be given more of them while it computes nearly the same: sample it
wider than it was trained (`discretize(2.0)`) and make that an integral network of its own (`convert`). Here a network
of 64 channels grows to 128 and 256, and is trained on after each growth (dotted lines). Beside it, a network of 256
channels that was as wide from the first step and takes as many. Steps are cheap where a network is narrow.
"""

import time

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt

import integral_nn as inn
from examples.gallery.task import accuracy, data, network


def grown(model: inn.IntegralNetwork, x) -> inn.IntegralNetwork:
    """A network of twice the nodes, which computes nearly the same."""
    return inn.convert(model.discretize(2.0), x[:2], quadrature="cells", kernel="bspline", permute=False)


def train(model: inn.IntegralNetwork, x, y, test, steps: int, curve: list) -> None:
    """Adam; every tenth step, (seconds of training so far, test error) goes to the curve."""
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    seconds = curve[-1][0] if curve else 0.0
    for step in range(steps):
        if step % 10 == 0:
            curve.append((seconds, 100 - accuracy(model, *test)))
        start = time.perf_counter()
        batch = torch.randint(len(y), (128,), generator=draw)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.perf_counter() - start
    curve.append((seconds, 100 - accuracy(model, *test)))


def main(quick: bool = False):
    """Grow one, train one wide from the start."""
    x, y, *test = data()
    steps = 20 if quick else 200
    figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    model, curve = network(64), []
    for width in (64, 128, 256):
        if width > 64:
            before, model = accuracy(model, *test), grown(model, x)
            print(f"grown to {width}: accuracy {before:.1f} before, {accuracy(model, *test):.1f} after, untrained")
            axes.axvline(curve[-1][0], color="0.6", linestyle=":")
        train(model, x, y, test, steps, curve)
        print(f"width {width:3}: {accuracy(model, *test):.1f} after {curve[-1][0]:.1f} s of training")
    wide, wide_curve = network(256), []
    train(wide, x, y, test, 3 * steps, wide_curve)
    print(f"as wide from the start: {accuracy(wide, *test):.1f} after {wide_curve[-1][0]:.1f} s")
    axes.semilogy(*zip(*curve), label="grown: 64, 128, 256")
    axes.semilogy(*zip(*wide_curve), "--", label="256 from the start")
    axes.set(xlabel="seconds of training", ylabel="test error [%]")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main().savefig("growing.png")
