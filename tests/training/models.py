"""Networks to train on several ranks, and their batches."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import integral_nn as inn

BATCH = 8


def by_hand(**axis: object) -> inn.IntegralNetwork:
    """Two convolutions and a classifier along two axes."""
    torch.manual_seed(0)
    a, b = inn.Axis(16, size_range=(6, 16), **axis), inn.Axis(12, size_range=(5, 12), **axis)
    layers = [inn.IntegralConv2d(3, a, 3), nn.ReLU(), inn.IntegralConv2d(a, b, 3), nn.ReLU()]
    return inn.IntegralNetwork(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), inn.IntegralLinear(b, 5)))


def ordinary() -> nn.Sequential:
    """The same of ordinary layers."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


@functools.cache
def _converted() -> inn.IntegralNetwork:
    return inn.convert(ordinary(), torch.rand(2, 3, 8, 8), permute=False).train()


def converted() -> inn.IntegralNetwork:
    """The same, converted."""
    return copy.deepcopy(_converted())


MAKE = {"by hand": by_hand, "converted": converted}


def make(kind: str, trainable: bool = False) -> inn.IntegralNetwork:
    """One of them, with points to train or without."""
    model = MAKE[kind]()
    for axis in model.axes.values() if trainable else ():
        axis.make_trainable(keep=True)
    return model


def blocks(model: inn.IntegralNetwork, mesh: object = None, **options: object) -> inn.IntegralNetwork:
    """Each layer with nodes is sharded by itself, then the root."""
    mesh = mesh or init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    points = inn.replicate_points(model, mesh)
    for layer in model.net:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh, ignored_params=points, **options)
    return fully_shard(model, mesh=mesh, ignored_params=points, **options)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be a shard."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Pictures and labels of a training step, for all ranks together."""
    draw = torch.Generator().manual_seed(step)
    return torch.rand(BATCH, 3, 8, 8, generator=draw), torch.randint(5, (BATCH,), generator=draw)


def share(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """A rank's part of it."""
    x, y = batch(step)
    return x.chunk(world)[rank], y.chunk(world)[rank]


def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def distance(model, reference, of=lambda p: p):
    """The largest relative difference of a tensor."""
    own = dict(model.named_parameters())
    pairs = [(whole(of(own[name])), of(p).detach()) for name, p in reference.named_parameters()]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def gradients(p):
    return p.grad
