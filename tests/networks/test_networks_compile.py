"""Whole networks compiled: one graph for every size, gradients and statistics as in eager mode; a step's operators."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import integral_nn as inn
from bench import networks
from common import generator, rand

IMAGE = rand(2, 3, 16, 16, dtype=torch.float32)


class Compilations:
    """A backend that counts them and runs the graph as it is."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> object:
        self.count += 1
        return graph


def resnet(**options: Any) -> inn.IntegralNetwork:
    torch.manual_seed(0)
    return inn.convert(networks.ResNet18(8), torch.zeros(1, 3, 16, 16), permute=False, fold=False, **options).train()


def built() -> inn.IntegralNetwork:
    torch.manual_seed(0)
    first, second = inn.Axis(12, size_range=(5, 12)), inn.Axis(12, size_range=(5, 12))
    layers = [inn.IntegralConv2d(3, first, 3), nn.ReLU(), inn.IntegralConv2d(first, second, 3), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), inn.IntegralLinear(second, 5)]
    return inn.IntegralNetwork(nn.Sequential(*layers, *head))


def step(call: nn.Module, model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    y = call(IMAGE)
    return y, list(torch.autograd.grad(y.square().mean(), list(model.parameters())))


def train_at_random_sizes(model: inn.IntegralNetwork, steps: int, dynamic: bool | None) -> int:
    """Steps of a compiled model and of its twin in eager mode at the same sizes; returns the number of compilations."""
    eager, compilations, draw = copy.deepcopy(model), Compilations(), generator(1)
    compiled = torch.compile(model, fullgraph=True, backend=compilations, dynamic=dynamic)
    for _ in range(steps):
        eager.resize(model.resample(draw))
        (y, got), (z, want) = step(compiled, model), step(eager, eager)
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-8)
        with torch.no_grad():
            for p, q, gradient in zip(model.parameters(), eager.parameters(), want):
                p.sub_(gradient, alpha=0.01)
                q.sub_(gradient, alpha=0.01)
    for a, b in zip(model.net.buffers(), eager.net.buffers()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return compilations.count


def test_a_converted_network_at_a_hundred_sizes(fresh_compiler):
    """Cells see 4 nodes, 6 or 8, as the size has it: that makes no graph of its own."""
    assert train_at_random_sizes(resnet(size_range=(0.25, 1.0)), 100, None) <= 4


@pytest.mark.parametrize("dynamic", [True, False, None])
def test_layers_built_by_hand(dynamic, fresh_compiler):
    """With `dynamic=False` as well: the sizes of axes are marked as dynamic."""
    assert train_at_random_sizes(built(), 30, dynamic) <= 4


class Operators(TorchDispatchMode):
    """How many operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_a_step_runs_hardly_more_operators_than_the_plain_network(share):
    """All weights come from one operator, all gradients of nodes go back by one, statistics take a dozen."""
    model = resnet()
    model.resize(share)
    plain, counts = model.discretize(), []
    for net in (plain, model):
        for _ in range(2):  # the first makes taps
            net.zero_grad()
            with Operators() as operators:
                net(IMAGE).square().mean().backward()
        counts.append(operators.count)
    assert counts[1] <= 1.15 * counts[0], counts
