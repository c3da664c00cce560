"""DistributedDataParallel and fully_shard: gradients of two ranks are those of one process on the joint batch."""

import contextlib

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import integral_nn as inn
from models import MAKE, batch, blocks, by_hand, distance, gradients, loss, make, share, whole

STEPS = 20


def ddp(model, **options):
    return DistributedDataParallel(model, **options)


def static(model):
    return ddp(model, static_graph=True, gradient_as_bucket_view=True)


def root(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))


def offloaded(model):
    return blocks(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


WRAPS = [ddp, static, blocks, root, offloaded]


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def train(rank, kind, trainable, wrap, world=2):
    """The largest difference of a gradient from one process's, in steps of random sizes."""
    model, alone = make(kind, trainable), make(kind, trainable)
    wrapped = wrap(model)
    pairs = (wrapped, model, optimizer_of(model)), (alone, alone, optimizer_of(alone))
    worst, sizes = 0.0, set()
    for step in range(STEPS):
        data = share(step, rank, world), batch(step)
        for (called, net, optimizer), (x, y) in zip(pairs, data):
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


@pytest.mark.parametrize("wrap", [static, blocks])
@pytest.mark.parametrize("kind", MAKE)
def test_gradients_of_four_ranks(four, kind, wrap):
    for gradient, parameter in four(train, kind, True, wrap, 4):
        assert gradient < 1e-5 and parameter < 1e-5


def joined(rank, kind):
    """The largest difference of a parameter after steps of which rank 1 has fewer; it joins in with nothing."""
    model, alone = make(kind, True), make(kind, True)
    called = ddp(model)
    pairs = (called, model, optimizer_of(model)), (alone, alone, optimizer_of(alone))
    with called.join(divide_by_initial_world_size=False):
        for step in range(6 - 2 * rank):
            for (call, net, optimizer), parts in zip(pairs, ([rank], [0, 1] if step < 4 else [0])):
                net.resample(step)
                optimizer.zero_grad()
                sum(loss(call, *share(step, part, 2)) / len(parts) for part in parts).backward()
                optimizer.step()
    return distance(model, alone) if rank == 0 else 0.0


@pytest.mark.parametrize("kind", MAKE)
def test_a_rank_that_has_fewer_batches(ranks, kind):
    assert max(ranks(joined, kind)) < 1e-5


def accumulate(rank, kind, wrap):
    """The largest difference of a gradient, gathered over two calls of one size, the first of them not synchronized."""
    model, alone = make(kind, True), make(kind, True)
    wrapped = wrap(model)
    for net in (model, alone):
        net.resample(3)
    x, y = share(0, rank, 2)
    with wrapped.no_sync() if wrap is ddp else contextlib.nullcontext():
        if wrap is not ddp:
            wrapped.set_requires_gradient_sync(False)
        (loss(wrapped, x[:2], y[:2]) / 2).backward()
    if wrap is not ddp:
        wrapped.set_requires_gradient_sync(True)
    (loss(wrapped, x[2:], y[2:]) / 2).backward()
    loss(alone, *batch(0)).backward()
    return distance(model, alone, gradients)


@pytest.mark.parametrize("wrap", [ddp, blocks])
@pytest.mark.parametrize("kind", MAKE)
def test_gradients_gathered_over_calls(ranks, kind, wrap):
    assert max(ranks(accumulate, kind, wrap)) < 1e-5


def train_mixed(rank, kind):
    """The difference from float32 in steps at bfloat16; what the weights were sampled in."""
    model, alone = make(kind, True), make(kind, True)
    blocks(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    seen = set()
    model.net[2].register_forward_pre_hook(lambda layer, inputs: seen.add((layer.weight.dtype, inputs[0].dtype)))
    pairs = (model, optimizer_of(model)), (alone, optimizer_of(alone))
    for step in range(5):
        for (net, optimizer), (x, y) in zip(pairs, (share(step, rank, 2), batch(step))):
            net.resample(step)
            optimizer.zero_grad()
            loss(net, x, y).backward()
            optimizer.step()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    return distance(model, alone), seen


@pytest.mark.parametrize("kind", MAKE)
def test_mixed_precision(ranks, kind):
    for difference, seen in ranks(train_mixed, kind):
        assert 1e-6 < difference < 2e-2 and seen == {(torch.bfloat16, torch.bfloat16)}


def late_memory(rank):
    """A network built without memory, sharded, then given memory and initialised; its loss before and after a step."""
    with torch.device("meta"):
        model = make("by hand", True)
    blocks(model).to_empty(device="cpu")
    inn.replicate_points(model)
    torch.manual_seed(rank)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = optimizer_of(model)
    for step in range(3):
        model.resample(step)
        optimizer.zero_grad()
        loss(model, *share(step, rank, 2)).backward()
        optimizer.step()
    nodes = whole(model.net[2].weight_nodes)
    bound = float(nodes.abs().max())
    return [whole(p) for p in model.parameters()], bound, [p.grad is not None for p in model.parameters()]


def test_meta_device_then_memory(ranks):
    (one, bound, graded), (other, _, _) = ranks(late_memory)
    assert all(torch.equal(x, y) for x, y in zip(one, other)) and all(graded)
    assert 0.01 < bound < 1


def sharded_points(rank):
    model = by_hand(trainable=True)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(RuntimeError, match="make_trainable\\(keep=True\\)"):
        model.resize(0.5)
    with pytest.raises(RuntimeError, match="sharded already"):
        for axis in model.axes.values():
            axis.keeps = True
        inn.replicate_points(model)


def test_points_that_cannot_change_number_say_so(ranks):
    ranks(sharded_points)
