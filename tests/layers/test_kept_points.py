"""Trainable points whose deltas keep their number: one parameter at every size."""

import copy

import pytest
import torch

import common
import integral_nn as inn
from inn_kernels import quadrature as rules

QUADRATURES = ["cells", "trapezoid", "midpoint"]


def made(quadrature="cells", size=12):
    axis = inn.Axis(12, size, quadrature=quadrature)
    axis.make_trainable(keep=True)
    with torch.no_grad():
        axis.delta.mul_(0.5 + torch.rand(size, generator=common.generator()))
    return axis


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_the_parameter_stays_and_its_points_come_back(quadrature):
    axis = made(quadrature)
    delta, points = axis.delta, axis.partition().detach()
    for size in (5, 31, 2, 12):
        axis.resize(size)
        assert axis.delta is delta and axis.size == size and axis.trainable
        assert axis.partition().shape == (size + (quadrature == "cells"),)
        assert bool((axis.partition().diff() > 0).all())
    assert torch.equal(axis.partition(), points)


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_points_of_other_sizes_are_those_of_a_resized_axis(quadrature):
    axis = made(quadrature)
    other = copy.deepcopy(axis).double()
    other.keeps = False
    for size in (7, 20):
        other = copy.deepcopy(axis).double()
        other.keeps = False
        axis.resize(size), other.resize(size)
        assert other.delta.shape == (size,)
        assert common.relative_error(axis.partition(), other.partition().detach()) < 1e-6


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_gradients_at_every_size(quadrature):
    axis = made(quadrature).double()
    for size in (12, 7, 20):
        axis.resize(size)

        def points(delta):
            return torch.func.functional_call(Points(axis), {"axis.delta": delta})

        assert torch.autograd.gradcheck(points, axis.delta.detach().clone().requires_grad_())


class Points(torch.nn.Module):
    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self):
        return self.axis.partition()


def test_an_optimizer_needs_no_word():
    axis = made()
    layer = inn.IntegralLinear(3, axis)
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    for size in (12, 5, 20):
        axis.resize(size)
        before = axis.delta.detach().clone()
        optimizer.zero_grad()
        layer(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(axis.delta, before)


def test_a_state_is_taken_up_by_the_same_parameter():
    axis, other, plain = made(), made(), inn.Axis(12)
    axis.resize(7)
    delta = other.delta
    with torch.no_grad():
        delta.fill_(1.0)
    other.load_state_dict(axis.state_dict())
    plain.load_state_dict(axis.state_dict())
    assert other.delta is delta
    for one in (other, plain, copy.deepcopy(axis)):
        assert one.size == 7 and one.keeps and torch.equal(one.partition(), axis.partition())
    assert "keep=True" in repr(axis) and "keep" not in repr(inn.Axis(12, trainable=True))


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_memory_made_afterwards_holds_uniform_points(quadrature):
    with torch.device("meta"):
        axis = inn.Axis(12, 8, quadrature=quadrature)
        axis.make_trainable(keep=True)
    assert axis.delta.is_meta
    axis.to_empty(device="cpu")
    axis.reset_parameters()
    uniform = rules.partition_for(quadrature, 8, dtype=torch.float64)
    assert common.relative_error(axis.partition(), uniform) < 1e-6


def test_one_compilation_serves_every_size(fresh_compiler):
    axis = made("trapezoid")
    net = inn.IntegralNetwork(torch.nn.Sequential(inn.IntegralLinear(3, axis), torch.nn.Tanh()))
    graphs = []
    compiled = torch.compile(net, backend=lambda graph, inputs: graphs.append(graph) or graph, fullgraph=True)
    x = torch.ones(2, 3)
    for size in (12, 7, 20, 9):
        axis.resize(size)
        found = []
        for call in (compiled, net):
            net.zero_grad()
            call(x).square().sum().backward()
            found.append(axis.delta.grad)
        assert common.relative_error(*found) < 1e-5
    assert len(graphs) == 1
