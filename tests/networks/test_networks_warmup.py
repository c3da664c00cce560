"""`warmup`: what a size needs is there before its first step, and the model is as it was."""

import copy

import pytest
import torch
from torch import nn

import integral_nn as inn
from inn_kernels import taps


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    return inn.convert(net, torch.randn(2, 1, 4, 4), fold=False)


def step(model, size):
    model.resize(size)
    model.train()(torch.randn(4, 1, 4, 4)).square().sum().backward()


@pytest.fixture
def made(monkeypatch):
    """Partitions that taps were computed of."""
    found = []
    compute = taps._made
    monkeypatch.setattr(taps, "_of_ints", {})
    monkeypatch.setattr(taps, "_made", lambda *args: found.append(args[0]) or compute(*args))
    return found


def test_a_step_at_a_warm_size_makes_nothing(made):
    model, cold = network(), network()
    step(cold, {"0": 9})
    assert made
    made.clear()
    inn.warmup(model, [{"0": 7}, 0.5])
    assert {7, 6} <= set(made)
    made.clear()
    for size in ({"0": 7}, 0.5):
        step(model, size)
    assert not made


def test_the_model_is_as_it_was():
    model = network()
    step(model, {"0": 9})
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    inn.warmup(model, [0.5, {"0": 3}])
    assert model.sizes == {"0": 9}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients))


def test_frozen_and_trainable():
    model = network().requires_grad_(False)
    inn.warmup(model, [0.5])
    model = network()
    model.axes["0"].make_trainable()
    points = model.axes["0"].delta.clone()
    inn.warmup(model, [0.5])
    assert torch.equal(model.axes["0"].delta, points)
