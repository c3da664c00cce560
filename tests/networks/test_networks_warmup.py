"""`warmup`: what a size needs is there before its first step, and the model is as it was."""

import copy

import pytest
import torch
from torch import nn

import integral_nn as inn
from inn_kernels import taps, uniform_taps


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


@pytest.mark.skipif(not uniform_taps.AVAILABLE, reason="taps of ints are made by PyTorch")
def test_a_resize_brings_the_taps_of_all_axes_by_one_copy(made, monkeypatch):
    model = inn.convert(nn.Sequential(nn.Linear(2, 12), nn.Linear(12, 9), nn.Linear(9, 3)), torch.zeros(1, 2))
    model.sampled()
    monkeypatch.setattr(uniform_taps, "copies", lambda device: True)  # as to a GPU
    brought = []
    monkeypatch.setattr(uniform_taps, "brought", lambda host, device: brought.append(host) or host.clone())
    made.clear()
    model.resize(0.75)
    assert len(model.axes) == 2 and len(brought) == 1
    values = model.sampled()
    assert len(brought) == 1 and not made
    monkeypatch.undo()
    model.resize(0.5)
    model.resize(0.75)
    assert all(torch.equal(value, values[name]) for name, value in model.sampled().items())


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
