"""Layers split over two ranks by their points: outputs and gradients of one process, whatever the sizes."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

import integral_nn as inn
from integral_nn.training.tensor_parallel import ColumnwisePoints, RowwisePoints, SequencePart
from models import blocks, distance, gradients

STEPS = 20
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-9}
PLANS = {"0": ColumnwisePoints, "2": RowwisePoints}
DRAW = torch.Generator().manual_seed(0)
X = {
    "linear": torch.rand(6, 7, generator=DRAW, dtype=torch.float64),
    "conv": torch.rand(4, 3, 6, 6, generator=DRAW, dtype=torch.float64),
}


def by_hand(kind, **axis):
    torch.manual_seed(0)
    a, b = inn.Axis(24, size_range=(5, 24), **axis), inn.Axis(12, size_range=(4, 12), **axis)
    if kind == "conv":
        first, second = inn.IntegralConv2d(3, a, 3), inn.IntegralConv2d(a, b, 3)
        last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), inn.IntegralLinear(b, 5))
    else:
        first, second, last = inn.IntegralLinear(7, a), inn.IntegralLinear(a, b), inn.IntegralLinear(b, 5)
    return inn.IntegralNetwork(nn.Sequential(first, nn.ReLU(), second, nn.Tanh(), last))


@functools.cache
def _converted(kind):
    torch.manual_seed(0)
    if kind == "conv":
        layers = nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5)
    else:
        layers = nn.Linear(7, 24), nn.ReLU(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 5)
    return inn.convert(nn.Sequential(*layers), X[kind].float(), permute=False)


def converted(kind):
    return copy.deepcopy(_converted(kind))


def nets(make, kind, trainable, dtype, number=2):
    """The same network several times."""
    made = [make(kind) for _ in range(number)]
    for net in made:
        for axis in net.axes.values() if trainable else ():
            axis.make_trainable(keep=True)
        net.to(dtype)
    return made


def split_training(rank, make, kind, trainable, dtype):
    """The largest differences of outputs and gradients from one process's, and the points of this rank."""
    model, alone, whole = nets(make, kind, trainable, dtype, 3)
    given = X[kind].to(dtype)
    parallelize_module(model.net, init_device_mesh("cpu", (2,)), {name: style() for name, style in PLANS.items()})
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in (model, alone)]
    worst, shapes = 0.0, []
    for step in range(STEPS):
        outputs = []
        for net in (model, alone):
            net.resample(step)
            net.zero_grad()
            outputs.append(net(given))
            for _ in range(2 if step == 0 else 1):  # gradients of two passes are added up
                net(given).square().mean().backward()
        one, other = outputs
        worst = max(worst, float((one - other).abs().max() / other.abs().max()), distance(model, alone, gradients))
        shapes.append((model.net[0].weight.shape[0], model.net[2].weight.shape[1], next(iter(model.sizes.values()))))
        for optimizer in optimizers:
            optimizer.step()
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        worst = max(worst, float((whole(given) - alone(given)).abs().max()))
    return worst, shapes


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("kind, dtype", [("linear", torch.float64), ("conv", torch.float32)])
@pytest.mark.parametrize("make", [by_hand, converted])
def test_split_layers_are_those_of_one_process(ranks, make, kind, dtype, trainable):
    (one, first), (other, second) = ranks(split_training, make, kind, trainable, dtype)
    assert max(one, other) < CLOSE[dtype]
    for (rows, columns, size), (rest, others, _) in zip(first, second):
        assert rows == columns == size // 2 and rest == others == size - size // 2
    assert len({size for *_, size in first}) > 3


def split_and_sharded(rank, make, trainable, wrap, dtype):
    """Two by two ranks: layers split over one dimension of the mesh, data and parameters over the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "points"))
    model, alone = nets(make, "conv", trainable, dtype)
    x = X["conv"].to(dtype)
    parallelize_module(model.net, mesh["points"], {name: style() for name, style in PLANS.items()})
    called = wrap(model, mesh["data"])
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in (model, alone)]
    worst = 0.0
    for step in range(STEPS):
        for net, call, given in ((model, called, x.chunk(2)[rank // 2]), (alone, alone, x)):
            net.resample(step)
            net.zero_grad()
            call(given).square().mean().backward()
        worst = max(worst, distance(model, alone, gradients))
        for optimizer in optimizers:
            optimizer.step()
    return worst


def ddp(model, mesh):
    return DistributedDataParallel(model, process_group=mesh.get_group())


@pytest.mark.parametrize("wrap", [blocks, ddp])
@pytest.mark.parametrize("trainable, dtype", [(False, torch.float32), (True, torch.float64)])
@pytest.mark.parametrize("make", [by_hand, converted])
def test_split_layers_under_data_parallelism(four, make, trainable, dtype, wrap):
    assert max(four(split_and_sharded, make, trainable, wrap, dtype)) < CLOSE[dtype]


TOKENS = torch.rand(4, 6, 7, generator=DRAW, dtype=torch.float64)
SEQUENCE = {"0": SequencePart, "1": SequencePart, "2": ColumnwisePoints, "4": RowwisePoints, "5": SequencePart}


def tokens_by_hand(kind):
    """Layers of tokens; of those that are not split one has nodes along two axes, one a bias along none."""
    torch.manual_seed(0)
    a, b = inn.Axis(16, size_range=(5, 16)), inn.Axis(24, size_range=(6, 24))
    layers = inn.IntegralLinear(7, a), inn.IntegralLinear(a, a), inn.IntegralLinear(a, b), nn.GELU()
    return inn.IntegralNetwork(nn.Sequential(*layers, inn.IntegralLinear(b, a), inn.IntegralLinear(a, 5)))


@functools.cache
def _tokens_converted():
    torch.manual_seed(0)
    layers = nn.Linear(7, 16), nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16), nn.LayerNorm(16)
    return inn.convert(nn.Sequential(*layers, nn.Linear(16, 5)), TOKENS.float(), permute=False, fold=False)


def tokens_converted(kind):
    return copy.deepcopy(_tokens_converted())


def sequence_parts(rank, make, trainable, dtype):
    """Each rank has half of every sequence, but within the pair of layers that is split by points."""
    model, alone = nets(make, "", trainable, dtype)
    plan = {name: style(1) if style is not SequencePart else style() for name, style in SEQUENCE.items()}
    if make is tokens_converted:
        plan["6"] = SequencePart()
    parallelize_module(model.net, init_device_mesh("cpu", (2,)), plan)
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in (model, alone)]
    x, worst = TOKENS.to(dtype), 0.0
    for step in range(STEPS):
        for net in (model, alone):
            net.resample(step)
            net.zero_grad()
        (model(x.chunk(2, 1)[rank]).square().mean() / 2).backward()
        alone(x).square().mean().backward()
        worst = max(worst, distance(model, alone, gradients))
        for optimizer in optimizers:
            optimizer.step()
    return worst


@pytest.mark.parametrize("trainable, dtype", [(False, torch.float32), (True, torch.float64)])
@pytest.mark.parametrize("make", [tokens_by_hand, tokens_converted])
def test_norms_of_parts_of_a_sequence(ranks, make, trainable, dtype):
    assert max(ranks(sequence_parts, make, trainable, dtype)) < CLOSE[dtype]


def split_head(rank, make):
    """The last layer split over its inputs, whose bias runs along no axis."""
    model, alone = make("linear").double(), make("linear").double()
    plan = {"2": ColumnwisePoints(), "4": RowwisePoints()}
    parallelize_module(model.net, init_device_mesh("cpu", (2,)), plan)
    worst = 0.0
    for step in range(3):
        for net in (model, alone):
            net.resample(step)
            net.zero_grad()
            net(X["linear"]).square().mean().backward()
        worst = max(worst, distance(model, alone, gradients))
    return worst


@pytest.mark.parametrize("make", [by_hand, converted])
def test_a_bias_along_no_axis(ranks, make):
    assert max(ranks(split_head, make)) < 1e-9


def refused(rank):
    mesh, axis = init_device_mesh("cpu", (2,)), inn.Axis(8)
    bad = [
        (inn.IntegralConv2d(axis, axis, 3, groups=8), ColumnwisePoints, "depthwise"),
        (inn.IntegralLinear(axis, 3), ColumnwisePoints, "outputs run along an axis"),
        (inn.IntegralLinear(3, axis), RowwisePoints, "inputs run along an axis"),
        (nn.Linear(3, 3), RowwisePoints, "got Linear"),
        (nn.LayerNorm(3), ColumnwisePoints, "takes a linear layer or a convolution .* got LayerNorm"),
        (nn.BatchNorm1d(3), SequencePart, "statistics are of the whole batch"),
    ]
    for layer, style, words in bad:
        with pytest.raises(ValueError, match=words):
            parallelize_module(layer, mesh, style())
    with pytest.raises(TypeError, match="sequence_dim must be an int"):
        ColumnwisePoints("1")
    down = parallelize_module(inn.IntegralLinear(axis, 3), mesh, RowwisePoints(1))
    with pytest.raises(ValueError, match="a sequence of 5 \\(dimension 1\\) has no equal parts for 2 ranks"):
        down(torch.rand(2, 5, 4))
    model = by_hand("linear")
    parallelize_module(model.net, mesh, {"0": ColumnwisePoints()})
    with pytest.raises(RuntimeError, match="needs whole layers"):
        model.at(0.5)


def test_what_cannot_be_split_is_refused(ranks):
    ranks(refused)
