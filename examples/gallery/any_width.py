"""One network, trained at random widths.

The first network draws a width for every other step (`resample`, Algorithm 1 of the paper), the second has the same
continuous weights but is trained at full width only, the third is an ordinary network. Then each is narrowed, nothing
trained again: the first two by re-discretizing them, the third by keeping the channels of largest L1 norm. Widths
were drawn from 25% up; what lies below, none of them has seen. A continuous weight alone goes a long way, for a
narrow network integrates the same function; random widths add what is left.
"""

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import nn

from examples.gallery.task import accuracy, data, network, ordinary

WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1)


def cut(net: nn.Sequential, width: float) -> nn.Sequential:
    """The channels of largest L1 norm of each hidden layer."""
    small, kept = ordinary(round(128 * width)), slice(None)
    for layer, to in zip(net[::2], small[::2]):
        weight = layer.weight.detach()[:, kept]
        kept = weight.abs().sum(1).topk(to.out_features).indices if to.out_features != 10 else slice(None)
        to.load_state_dict({"weight": weight[kept], "bias": layer.bias.detach()[kept]})
    return small


def train(model: nn.Module, x, y, steps: int, random: bool) -> nn.Module:
    """Adam with a one-cycle rate, 128 digits a step, every other one at a random width if wanted."""
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for step in range(steps):
        if random:
            _ = model.resample(draw) if step % 2 else model.resize(1.0)
        batch = torch.randint(len(y), (128,), generator=draw)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def main(quick: bool = False):
    """Train both, narrow both."""
    x, y, test_x, test_y = data()
    figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    print(f"{'accuracy at width':36}" + "".join(f"{width:>7.0%}" for width in WIDTHS))
    ways = {
        "integral, trained at random widths": (network, True, "o-"),
        "integral, trained at full width": (network, False, "v-."),
        "ordinary, cut by L1 norm": (ordinary, False, "s--"),
    }
    for label, (build, random, look) in ways.items():
        torch.manual_seed(0)
        model = train(build(), x, y, 30 if quick else 800, random)
        narrowed = [cut(model, width) if build is ordinary else model.at(width) for width in WIDTHS]
        scores = [accuracy(net, test_x, test_y) for net in narrowed]
        print(f"{label:36}" + "".join(f"{score:>7.1f}" for score in scores))
        axes.plot([100 * width for width in WIDTHS], scores, look, label=label)
    axes.set(xlabel="width [%]", ylabel="test accuracy [%]")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main().savefig("any_width.png")
