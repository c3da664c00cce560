"""torch.compile, activation checkpointing, autocast and pipelines, with sizes by step on two ranks."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from models import MAKE, batch, distance, gradients, loss, make, share


def counted():
    """A compiler that counts what it is asked for."""
    graphs = []
    return graphs, lambda graph, inputs: graphs.append(graph) or graph


def compare(model, called, rank, steps, alone, context=contextlib.nullcontext):
    """The largest difference of a gradient from one process's, in steps of random sizes."""
    worst = 0.0
    for step in range(steps):
        for net, call, data in ((model, called, share(step, rank, 2)), (alone, alone, batch(step))):
            net.resample(step)
            net.zero_grad()
            with context():
                value = loss(call, *data)
            value.backward()
        worst = max(worst, distance(model, alone, gradients))
    return worst


def compiled(rank, kind, wrap, steps=50):
    torch._dynamo.reset()
    graphs, backend = counted()
    model = make(kind)
    called = torch.compile(wrap(model), backend=backend)
    difference = compare(model, called, rank, steps, make(kind))
    torch._dynamo.reset()
    return difference, len(graphs)


def test_compiled_once_for_two_hundred_steps(ranks):
    for difference, graphs in ranks(compiled, "converted", DistributedDataParallel, 200):
        assert difference < 1e-5 and graphs == 1


def recomputed(rank, kind, reentrant):
    model = make(kind, True)
    for layer in (model.net[0], model.net[2]):
        layer.forward = lambda x, forward=layer.forward: checkpoint(forward, x, use_reentrant=reentrant)
    model.net.register_forward_pre_hook(lambda net, inputs: inputs[0].requires_grad_())  # or reentrant drops gradients
    called = DistributedDataParallel(model, static_graph=reentrant)  # which PyTorch asks for there
    return compare(model, called, rank, 20, make(kind, True))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", MAKE)
def test_activations_computed_again(ranks, kind, reentrant):
    assert max(ranks(recomputed, kind, reentrant)) < 1e-5


def low_precision(rank, kind):
    model = make(kind, True)
    called = DistributedDataParallel(model)
    return compare(model, called, rank, 5, make(kind, True), lambda: torch.autocast("cpu", torch.bfloat16))


@pytest.mark.parametrize("kind", MAKE)
def test_autocast(ranks, kind):
    assert max(ranks(low_precision, kind)) < 0.05  # bfloat16 keeps 8 bits


def scaled(rank, kind):
    """Steps in float16 with scaled losses: the scales, the largest difference of a parameter from a float32 run."""
    model, alone = make(kind, True), make(kind, True)
    called, scaler = DistributedDataParallel(model), torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=4)
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in (model, alone)]
    scales, done = [], 0
    for step in range(20):
        model.resample(step)
        with torch.autocast("cpu", torch.float16):
            value = loss(called, *share(step, rank, 2))
        optimizers[0].zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizers[0])
        before = scaler.get_scale()
        scaler.update()
        scales.append(scaler.get_scale())
        if scales[-1] < before:  # the step was left out
            continue
        done += 1
        alone.resample(step)
        optimizers[1].zero_grad()
        loss(alone, *batch(step)).backward()
        optimizers[1].step()
    return scales, done, distance(model, alone)


@pytest.mark.parametrize("kind", MAKE)
def test_float16_with_scaled_losses(ranks, kind):
    (one, done, difference), (other, _, _) = ranks(scaled, kind)
    assert one == other and 5 < done < 20  # the first scales are too large
    assert difference < 5e-3


def pipeline(rank, kind, schedule_of, again=False):
    """Two stages and four micro-batches; points that both stages see have their gradients added up."""
    model, alone = make(kind, True), make(kind, True)
    parts = model.net[:2], model.net[2:]
    for layer in (model.net[0], model.net[2]) if again else ():
        layer.forward = lambda x, forward=layer.forward: checkpoint(forward, x, use_reentrant=False)
    worst = 0.0
    for step in range(20):
        sizes = model.resample(step)
        assert alone.resample(step) == sizes
        stage = PipelineStage(parts[rank], rank, 2, torch.device("cpu"))
        # Gradients are not scaled, for the points of a converted network are of no stage.
        schedule = schedule_of(stage, 4, loss_fn=lambda z, y: F.cross_entropy(z, y) / 4, scale_grads=False)
        x, y = batch(step)
        for net in (model, alone):
            net.zero_grad()
        schedule.step(x) if rank == 0 else schedule.step(target=y)
        loss(alone, x, y).backward()
        for own, p in zip(model.parameters(), alone.parameters()):
            gradient = torch.zeros_like(p) if own.grad is None else own.grad
            torch.distributed.all_reduce(gradient)
            worst = max(worst, float((gradient - p.grad).norm() / p.grad.norm()))
    return worst


@pytest.mark.parametrize("schedule_of", [ScheduleGPipe, Schedule1F1B])
@pytest.mark.parametrize("kind", MAKE)
def test_two_stages(ranks, kind, schedule_of):
    assert max(ranks(pipeline, kind, schedule_of)) < 1e-5


def test_two_stages_whose_activations_are_computed_again(ranks):
    assert max(ranks(pipeline, "converted", Schedule1F1B, True)) < 1e-5
