"""Whole networks whose axes are cut into cells, and of every basis: conversion, sizes, tuning, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import integral_nn as inn
from common import rand
from inn_kernels.basis import KERNELS

IMAGE = rand(6, 3, 4, 4, dtype=torch.float32)


class Net(nn.Module):
    """A norm alone, one along a concat, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.joint = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(40)
        self.flat, self.head = nn.Linear(40 * 16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.joint(torch.cat([x, self.second(x)], 1)).relu()
        return self.head(self.flat(x.flatten(1)).relu())


def net() -> nn.Module:
    torch.manual_seed(0)
    made = Net()
    for norm in (made.norm, made.joint):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    return made.eval()


def converted(quadrature: str, kernel: str, **options) -> inn.IntegralNetwork:
    return inn.convert(net(), IMAGE, quadrature=quadrature, kernel=kernel, permute=False, **options)


rules = pytest.mark.parametrize(
    "quadrature, kernel",
    [*(("cells", kernel) for kernel in KERNELS), ("midpoint", "bspline"), ("trapezoid", "conservative")],
)


@rules
@pytest.mark.parametrize("fold", [False, True])
@torch.no_grad()
def test_full_size_is_exact_and_every_size_runs(quadrature, kernel, fold):
    model = converted(quadrature, kernel, fold=fold)
    assert model.report.error < 1e-5
    torch.testing.assert_close(model(IMAGE), net()(IMAGE), rtol=1e-4, atol=1e-5)
    for share in (0.75, 0.5, 0.3, 1.5):
        model.resize(share)
        y = model(IMAGE)
        assert bool(torch.isfinite(y).all())
        torch.testing.assert_close(model.discretize()(IMAGE), y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.at(share)(IMAGE), y, rtol=1e-4, atol=1e-5)


def test_conservative_nodes_are_the_weights():
    """Converting is a relabelling: of every tensor, to the last bit."""
    model = converted("cells", "conservative", fold=False)
    weights = dict(net().named_parameters()) | dict(net().named_buffers())
    for name, nodes in model.nodes().items():
        assert torch.equal(nodes, weights[name])
    for name, value in model.sampled().items():
        if not name.endswith("running_var"):  # the exponential of a mean of logarithms
            assert torch.equal(value, weights[name])


class Operators(TorchDispatchMode):
    """Counts the operators of ours that a call takes."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count = getattr(self, "count", 0) + (function.namespace == "inn_kernels")
        return function(*args, **(kwargs or {}))


def plain_and_converted(**options) -> tuple[nn.Module, inn.IntegralNetwork]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    plain = nn.Sequential(*layers, nn.Linear(24, 5))
    return plain, inn.convert(plain, IMAGE, quadrature="cells", kernel="conservative", permute=False, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_at_full_size_samples_nothing(dtype):
    """Its weights are the nodes themselves, cast where autocast casts: outputs and gradients of the plain network."""
    plain, model = plain_and_converted()
    with Operators() as operators, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = model(IMAGE)
        wanted = plain(IMAGE)
        y.float().square().sum().backward()
        wanted.float().square().sum().backward()
    assert operators.count == 0
    assert torch.equal(y, wanted)
    given = dict(plain.named_parameters())
    for name, nodes in model.nodes().items():
        assert torch.equal(nodes.grad, given[name].grad)
    model.resize(0.5)
    with Operators() as operators:
        model(IMAGE)
    assert operators.count > 0
    model.resize({"0": 16})  # an axis back at full size, another is not
    torch.testing.assert_close(model(IMAGE), model.discretize()(IMAGE))


def test_what_is_given_away_at_full_size_is_not_the_nodes():
    _, model = plain_and_converted()
    nodes = {name: value.detach().clone() for name, value in model.nodes().items()}
    with torch.no_grad():
        for value in model.sampled().values():
            value.add_(1)
        for network in (model.discretize(), model.at(1.0), inn.Snapshots(model).at(1.0)):
            for value in network.parameters():
                value.add_(1)
        for module in model.modules():
            if "weight_nodes" in module._parameters:
                module.weight.add_(1)
    for name, value in model.nodes().items():
        assert torch.equal(value, nodes[name])


def test_statistics_at_full_size_are_copies():
    """Norms write to them: nodes change once, by what they wrote."""
    model, plain = converted("cells", "conservative", fold=False).train(), net().train()
    model(IMAGE)
    plain(IMAGE)
    for name, value in plain.named_buffers():
        if name.startswith("norm.running"):
            torch.testing.assert_close(model.nodes()[name], value)


def test_halves_of_equal_channels_lose_nothing():
    """Twice the same channel, side by side: half as many cells give the same outputs; points between them do not."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    large = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 3))
    with torch.no_grad():
        large[0].weight.copy_(small[0].weight.repeat_interleave(2, 0))
        large[0].bias.copy_(small[0].bias.repeat_interleave(2))
        large[2].weight.copy_(small[2].weight.repeat_interleave(2, 1) / 2)
        large[2].bias.copy_(small[2].bias)
    x, errors = rand(32, 4, dtype=torch.float32), {}
    for quadrature, kernel in (("cells", "conservative"), ("midpoint", "cubic")):
        model = inn.convert(large, x, quadrature=quadrature, kernel=kernel, permute=False)
        model.resize(0.5)
        errors[quadrature] = float((model(x) - small(x)).detach().norm())
    assert errors["cells"] < 1e-5 < errors["midpoint"]


@rules
def test_training_tuning_and_checkpoints(quadrature, kernel):
    model = converted(quadrature, kernel, fold=False)
    model.train()
    for share in (1.0, 0.6, 0.3):
        model.resize(share)
        model.zero_grad()
        model(IMAGE).square().mean().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and bool(torch.isfinite(p.grad).all()) and bool((p.grad != 0).any()), name
    model.eval()
    target = net()(IMAGE).detach()
    losses = inn.tune_partitions(
        model, lambda net, batch: (net(batch) - target).square().mean(), [IMAGE], sizes=0.5, steps=25
    )
    assert losses[-1] < losses[0]
    other = converted(quadrature, kernel, fold=False)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        assert torch.equal(other(IMAGE), model(IMAGE))
        assert torch.allclose(model.discretize()(IMAGE), model(IMAGE), atol=1e-5)
    inn.tune_partitions(model, sizes=0.5)  # no data
    assert bool(torch.isfinite(model(IMAGE)).all())
    for axis in model.axes.values():
        axis.make_uniform()
    model.resize(1.0)
    model.load_discrete(net().state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGE), net()(IMAGE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_trained_cells_of_an_axis(kernel):
    axis = inn.Axis(20, 8, quadrature="cells", kernel=kernel, trainable=True)
    edges = axis.partition()
    assert edges.shape == (9,) and float(edges[0]) == 0 and float(edges[-1]) == 1
    torch.testing.assert_close(edges, torch.linspace(0, 1, 9).double(), rtol=0, atol=1e-6)
    layer = inn.IntegralLinear(axis, axis)
    x = rand(5, 8, dtype=torch.float32)
    axis.make_trainable(edges.detach() ** 1.5)
    torch.testing.assert_close(axis.partition(), edges.detach() ** 1.5, rtol=0, atol=1e-6)
    layer(x).square().sum().backward()
    assert bool((axis.delta.grad != 0).all())
    before = axis.partition().detach()
    axis.resize(12)
    assert axis.partition().shape == (13,) and axis.delta.shape == (12,)
    assert float(axis.partition()[6]) == pytest.approx(float(before[4]), abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 points"):
        axis.make_trainable(torch.tensor([0.0, 1.0]))


def test_cells_that_vary_alike():
    """Without data, cells are narrow where the nodes change."""
    plain = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 1))
    with torch.no_grad():
        step = torch.cat([torch.zeros(20), torch.linspace(0, 1, 5), torch.ones(15)])
        plain[0].weight[:, 0], plain[2].weight[0] = step, step
        plain[0].bias.zero_()
    model = inn.convert(plain, torch.zeros(1, 1), quadrature="cells", kernel="conservative", permute=False)
    model.resize({"0": 10})
    edges = inn.curvature_partition(model, "0")
    assert edges.shape == (11,) and float(edges[0]) == 0 and float(edges[-1]) == 1
    assert bool((edges.diff() > 0).all())
    inside = ((edges > 20 / 40) & (edges < 25 / 40)).sum()
    assert inside >= 6  # an eighth of the axis, most of the cells
