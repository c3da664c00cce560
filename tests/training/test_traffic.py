"""Bytes that ranks send: the formulas of docs/scaling.md against what two processes were seen to send."""

import json

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from bench import scaling, traffic
from integral_nn.training.tensor_parallel import ColumnwisePoints, RowwisePoints
from models import MAKE, blocks, loss, make, share


def counted(called, model, step, *data):
    """Bytes of the second of two steps, by the kind of collective."""
    for _ in range(2):
        model.zero_grad()
        model.resample(step)
        with traffic.Traffic() as seen:
            loss(called, *data).backward()
    return dict(seen.bytes)


def send(rank, kind, trainable, how):
    model = make(kind, trainable)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    if how == "ddp":
        expected, called = traffic.data_parallel(shapes.values()), DistributedDataParallel(model)
    else:
        points = sum(shape.numel() for name, shape in shapes.items() if name.endswith("delta"))
        sharded = [shape for name, shape in shapes.items() if not name.endswith("delta")]
        expected, called = traffic.fully_sharded(sharded, 2, points), blocks(model)
    found = [counted(called, model, step, *share(step, rank, 2)) for step in range(3)]
    return found, expected


@pytest.mark.parametrize("how", ["ddp", "blocks"])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("kind", MAKE)
def test_data_parallel_traffic_is_that_of_the_nodes_at_every_size(ranks, kind, trainable, how):
    for found, expected in ranks(send, kind, trainable, how):
        assert found == [expected] * 3


def send_split(rank, kind):
    model = make(kind)
    nodes = sum(p.numel() for layer in (model.net[0], model.net[2]) for p in layer.parameters())
    plan = {"0": ColumnwisePoints(), "2": RowwisePoints()}
    parallelize_module(model.net, init_device_mesh("cpu", (2,)), plan)
    x, y = share(0, 0, 1)
    found, expected = [], []
    for step in range(3):
        found.append(counted(model, model, step, x.requires_grad_(), y))
        expected.append(traffic.split(nodes, len(x) * list(model.sizes.values())[1] * 4 * 4, x.numel()))
    return found, expected


@pytest.mark.parametrize("kind", MAKE)
def test_split_layers_send_activations_and_gradients_of_nodes(ranks, kind):
    for found, expected in ranks(send_split, kind):
        assert found == expected and len({one["all-reduce"] for one in found}) > 1


def keep(rank, kind):
    """Bytes of nodes, gradients, moments and sampled weights after a step."""
    model = blocks(make(kind))
    optimizer = torch.optim.Adam(model.parameters())
    model.resample(1)
    loss(model, *share(1, rank, 2)).backward()
    optimizer.step()
    own = [p.to_local() for p in model.parameters()]
    moments = [m.to_local() for state in optimizer.state.values() for key, m in state.items() if key.startswith("exp")]
    kinds = {"nodes": own, "gradients": [p.grad.to_local() for p in model.parameters()], "optimizer": moments}
    return {name: sum(t.nbytes for t in tensors) for name, tensors in kinds.items()}


@pytest.mark.parametrize("kind", MAKE)
def test_memory_of_shards(ranks, kind):
    model = make(kind)
    model.resample(1)
    count = sum(p.numel() for p in model.parameters())
    expected = traffic.memory(count, sum(t.numel() for t in model.sampled().values()), world=2)
    found = ranks(keep, kind)
    for name in ("nodes", "gradients", "optimizer"):
        assert sum(one[name] for one in found) == 2 * expected[name]
    assert expected["sampled weights"] == 2 * sum(t.nbytes for t in model.sampled().values())


def test_memory_and_rings_by_hand():
    shapes = [torch.Size((5, 3)), torch.Size((4,))]
    assert traffic.data_parallel(shapes) == {"all-reduce": 76}
    assert traffic.fully_sharded(shapes, 2) == {"all-gather": 2 * 4 * 22, "reduce-scatter": 4 * 22}
    assert traffic.ring({"all-reduce": 100, "all-gather": 80}, 4) == 2 * 75 + 60
    kept = traffic.memory(100, 25, world=4)
    assert kept == {"nodes": 100, "gradients": 100, "optimizer": 200, "sampled weights": 200}


def test_the_page_says_what_the_record_does():
    page = scaling.PAGE.read_text()
    assert scaling.write(json.loads(scaling.RECORD.read_text()), page) == page
