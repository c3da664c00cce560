"""Converted networks of other kinds, each module with nodes sharded by itself: gradients of one process."""

import copy

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import integral_nn as inn
from models import whole
from networks_zoo import ZOO

NAMES = ["residual", "shared weights", "transformer with heads"]


def modules(model):
    mesh = init_device_mesh("cpu", (2,))
    points = inn.replicate_points(model, mesh)
    for module in model.net.modules():
        if module is not model.net and list(module.parameters(recurse=False)):
            fully_shard(module, mesh=mesh, ignored_params=points)
    return fully_shard(model, mesh=mesh, ignored_params=points)


def train(rank, name):
    """The largest difference of a gradient, over the largest gradient, in float64."""
    torch.manual_seed(0)
    case = ZOO[name]
    model = inn.convert(case.make(), case.inputs, permute=False, fold=False).eval().double()
    for axis in model.axes.values():
        axis.make_trainable(keep=True)
    alone = copy.deepcopy(model)
    called = modules(model)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.rand(4, *x.shape[1:], generator=draw, dtype=torch.float64) for x in case.inputs]
    worst = 0.0
    for step in range(3):
        for net, call, given in ((model, called, [x.chunk(2)[rank] for x in inputs]), (alone, alone, inputs)):
            net.resample(step)
            net.zero_grad()
            call(*given).square().mean().backward()
        pairs = [(whole(own.grad), p.grad) for own, p in zip(model.parameters(), alone.parameters())]
        largest = max(float(p.norm()) for _, p in pairs)
        worst = max(worst, max(float((own - p).norm()) for own, p in pairs) / largest)
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_one_process(ranks, name):
    assert max(ranks(train, name)) < 1e-6  # points are in float32
