"""Layers split over two ranks by their points: outputs and gradients of one process, whatever the sizes."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

import integral_nn as inn
from integral_nn.training.tensor_parallel import ColumnwisePoints, RowwisePoints
from models import distance, gradients

PLANS = {"0": ColumnwisePoints, "2": RowwisePoints}
DRAW = torch.Generator().manual_seed(0)
X = {
    "linear": torch.rand(6, 7, generator=DRAW, dtype=torch.float64),
    "conv": torch.rand(4, 3, 6, 6, generator=DRAW, dtype=torch.float64),
}


def by_hand(kind, **axis):
    torch.manual_seed(0)
    a, b = inn.Axis(24, size_range=(5, 24), **axis), inn.Axis(12, size_range=(4, 12), **axis)
    if kind == "conv":
        first, second = inn.IntegralConv2d(3, a, 3), inn.IntegralConv2d(a, b, 3)
        last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), inn.IntegralLinear(b, 5))
    else:
        first, second, last = inn.IntegralLinear(7, a), inn.IntegralLinear(a, b), inn.IntegralLinear(b, 5)
    return inn.IntegralNetwork(nn.Sequential(first, nn.ReLU(), second, nn.Tanh(), last))


@functools.cache
def _converted(kind):
    torch.manual_seed(0)
    if kind == "conv":
        layers = nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5)
    else:
        layers = nn.Linear(7, 24), nn.ReLU(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 5)
    return inn.convert(nn.Sequential(*layers), X[kind].float(), permute=False)


def converted(kind):
    return copy.deepcopy(_converted(kind))


def split_training(rank, make, kind, trainable):
    """The largest differences of outputs and gradients from one process's, and the points of this rank."""
    model, alone, whole = make(kind), make(kind), make(kind)
    for net in (model, alone, whole):
        for axis in net.axes.values() if trainable else ():
            axis.make_trainable(keep=True)
        net.double()
    parallelize_module(model.net, init_device_mesh("cpu", (2,)), {name: style() for name, style in PLANS.items()})
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in (model, alone)]
    worst, shapes = 0.0, []
    for step in range(10):
        outputs = []
        for net in (model, alone):
            net.resample(step)
            net.zero_grad()
            outputs.append(net(X[kind]))
            for _ in range(2):  # gradients of two passes are added up
                net(X[kind]).square().mean().backward()
        one, other = outputs
        worst = max(worst, float((one - other).abs().max() / other.abs().max()), distance(model, alone, gradients))
        shapes.append((model.net[0].weight.shape[0], model.net[2].weight.shape[1], next(iter(model.sizes.values()))))
        for optimizer in optimizers:
            optimizer.step()
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        worst = max(worst, float((whole(X[kind]) - alone(X[kind])).abs().max()))
    return worst, shapes


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("kind", X)
@pytest.mark.parametrize("make", [by_hand, converted])
def test_split_layers_are_those_of_one_process(ranks, make, kind, trainable):
    (one, first), (other, second) = ranks(split_training, make, kind, trainable)
    assert max(one, other) < 1e-9
    for (rows, columns, size), (rest, others, _) in zip(first, second):
        assert rows == columns == size // 2 and rest == others == size - size // 2
    assert len({size for *_, size in first}) > 3


def refused(rank):
    mesh, axis = init_device_mesh("cpu", (2,)), inn.Axis(8)
    bad = [
        (inn.IntegralConv2d(axis, axis, 3, groups=8), ColumnwisePoints, "depthwise"),
        (inn.IntegralLinear(axis, 3), ColumnwisePoints, "outputs run along an axis"),
        (inn.IntegralLinear(3, axis), RowwisePoints, "inputs run along an axis"),
        (nn.Linear(3, 3), RowwisePoints, "got Linear"),
    ]
    for layer, style, words in bad:
        with pytest.raises(ValueError, match=words):
            parallelize_module(layer, mesh, style())
    model = by_hand("linear")
    parallelize_module(model.net, mesh, {"0": ColumnwisePoints()})
    with pytest.raises(RuntimeError, match="needs whole layers"):
        model.at(0.5)


def test_what_cannot_be_split_is_refused(ranks):
    ranks(refused)
