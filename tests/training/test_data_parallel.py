"""DistributedDataParallel and fully_shard: gradients of two ranks are those of one process on the joint batch."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import integral_nn as inn
from models import MAKE, batch, loss, share

STEPS = 20


def make(kind, trainable):
    model = MAKE[kind]()
    for axis in model.axes.values() if trainable else ():
        axis.make_trainable(keep=True)
    return model


def ddp(model, **options):
    return DistributedDataParallel(model, **options)


def static(model):
    return ddp(model, static_graph=True, gradient_as_bucket_view=True)


def blocks(model, **options):
    """Each layer with nodes is sharded by itself, then the root."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    points = inn.replicate_points(model)
    for layer in model.net:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh, ignored_params=points, **options)
    return fully_shard(model, mesh=mesh, ignored_params=points, **options)


def root(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))


def offloaded(model):
    return blocks(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


WRAPS = [ddp, static, blocks, root, offloaded]


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def distance(model, reference, of=lambda p: p):
    """The largest relative difference of a tensor."""
    own = dict(model.named_parameters())
    pairs = [(whole(of(own[name])), of(p).detach()) for name, p in reference.named_parameters()]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def gradients(p):
    return p.grad


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def train(rank, kind, trainable, wrap):
    """The largest difference of a gradient from one process's, in steps of random sizes."""
    model, alone = make(kind, trainable), make(kind, trainable)
    wrapped = wrap(model)
    pairs = (wrapped, model, optimizer_of(model)), (alone, alone, optimizer_of(alone))
    worst, sizes = 0.0, set()
    for step in range(STEPS):
        for (called, net, optimizer), (x, y) in zip(pairs, (share(step, rank, 2), batch(step))):
            sizes.add(tuple(net.resample(step).values()))
            optimizer.zero_grad()
            loss(called, x, y).backward()
        worst = max(worst, distance(model, alone, gradients))
        for _, _, optimizer in pairs:
            optimizer.step()
    assert len(sizes) > STEPS / 2
    return worst, distance(model, alone)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("kind", MAKE)
def test_gradients_are_those_of_one_process(ranks, kind, trainable, wrap):
    for gradient, parameter in ranks(train, kind, trainable, wrap):
        assert gradient < 1e-5 and parameter < 1e-5
