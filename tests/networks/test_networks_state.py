"""What a model's state holds and what loads into it: sizes, points, statistics, older names, ordinary checkpoints."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import integral_nn as inn
from common import generator, rand
from networks_zoo import ZOO, build

IMAGE = rand(4, 3, 8, 8, dtype=torch.float32)


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    net(3 * rand(16, 3, 8, 8, dtype=torch.float32) + 1)
    return net.eval()


def converted(**options) -> inn.IntegralNetwork:
    return inn.convert(plain_net(), IMAGE, **{"fold": False, "permute": False, **options})


def built() -> inn.IntegralNetwork:
    torch.manual_seed(0)
    first, second = inn.Axis(16), inn.Axis(24)
    layers = [inn.IntegralConv2d(3, first, 3), nn.ReLU(), inn.IntegralConv2d(first, second, 3), nn.Flatten()]
    return inn.IntegralNetwork(nn.Sequential(*layers, inn.IntegralLinear(second, 5, taps=16))).eval()


MODELS = {"converted": converted, "built": built}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_model
@pytest.mark.parametrize("trainable", [False, True])
def test_sizes_and_points_travel(make, trainable):
    model, other = make(), make()
    if trainable:
        for axis in model.axes.values():
            axis.make_trainable()
            with torch.no_grad():
                axis.delta.mul_(torch.linspace(0.5, 1.5, axis.size))
    name = next(iter(model.axes))
    model.resize({name: 9})
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(through_a_file(model.state_dict()))
    assert other.sizes == model.sizes and other.sizes[name] == 9
    with torch.no_grad():
        assert torch.equal(other(IMAGE), model(IMAGE))
    other.resize(0.5), model.resize(0.5)
    with torch.no_grad():
        assert torch.equal(other(IMAGE), model(IMAGE))


def test_measured_statistics_travel_and_serve_their_sizes_alone():
    model, other = converted(), converted()
    model.resize(0.5)
    inn.recalibrate(model, [IMAGE])
    measured = model.net[1].running_mean.clone()
    assert not torch.equal(measured, other.net[1].running_mean[: measured.shape[0]])
    other.load_state_dict(through_a_file(model.state_dict()))
    with torch.no_grad():
        assert torch.equal(other.net[1].running_mean, measured)
        assert torch.equal(other(IMAGE), model(IMAGE))
        other.resize(0.75)
        assert other.net[1].running_mean.shape == (12,)
        other.resize(0.5)
        assert torch.equal(other.net[1].running_mean, measured)
        assert torch.equal(other.discretize()(IMAGE), model(IMAGE))
    fresh = converted()
    other.load_state_dict(fresh.state_dict())  # none were measured there
    assert other.net[1].running_mean.shape == (16,) and other.sizes == fresh.sizes


def test_statistics_of_other_sizes_than_those_saved_stay_behind():
    model, other = converted(), converted()
    model.resize(0.5)
    inn.recalibrate(model, [IMAGE])
    model.resize(0.75)
    other.load_state_dict(through_a_file(model.state_dict()))
    with torch.no_grad():
        assert torch.equal(other(IMAGE), model(IMAGE))


@every_model
def test_a_state_without_sizes_leaves_them(make):
    model = make()
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("_extra_state")}
    model.resize(0.5)
    sizes = model.sizes
    model.load_state_dict(state)
    assert model.sizes == sizes


@every_model
def test_older_names_load(make):
    model, other = make(), make()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    old = {"weight_nodes": "nodes", "bias_nodes": "bias"} if make is built else {}
    state = {}
    for name, value in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        state[f"{path}.{old.get(leaf, leaf.removesuffix('_nodes'))}"] = value
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(other(IMAGE), model(IMAGE))


@every_model
@pytest.mark.parametrize("wrong", ["missing", "unexpected", "shape", "size"])
def test_a_load_that_fails_changes_nothing(make, wrong):
    model = make()
    model.resize(0.5)
    before = copy.deepcopy(model.state_dict())
    state = {name: v + 1 if v.is_floating_point() else v for name, v in make().state_dict().items()}
    size = next(name for name in state if name.endswith("_extra_state"))
    if wrong == "missing":
        del state[next(name for name in state if name.endswith("weight_nodes"))]
    elif wrong == "unexpected":
        state["other"] = torch.ones(1)
    elif wrong == "shape":
        name = next(name for name in state if name.endswith("weight_nodes"))
        state[name] = torch.ones(3, 3)
    else:
        state[size] = torch.tensor(0)
    with pytest.raises(RuntimeError):
        model.load_state_dict(state)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# Checkpoints of ordinary networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("permute", [False, True])
@pytest.mark.parametrize("quadrature", ["midpoint", "trapezoid"])
def test_a_discrete_checkpoint_loads(permute, quadrature):
    model = converted(permute=permute, quadrature=quadrature)
    trained = plain_net()
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        trained[1].running_var.mul_(1.3)
        model.resize(0.5)
        model.load_discrete(trained.state_dict())
        assert model.sizes == {"0": 8, "3": 12}
        model.resize(1.0)
        torch.testing.assert_close(model(IMAGE), trained(IMAGE), rtol=1e-4, atol=1e-5)


def test_a_discrete_checkpoint_loads_into_layers_built_by_hand():
    model = built()
    trained = model.at(1.0)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.1)
        model.load_discrete(trained.state_dict())
        torch.testing.assert_close(model(IMAGE), trained(IMAGE), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_named():
    model = converted(fold=True)
    state = plain_net().state_dict()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"1\.running_mean has no place \(its norm was folded: convert with fold=False\)"
    ):
        model.load_discrete(state)
    model = converted()
    bad = {**state, "other": torch.ones(1), "6.bias": torch.ones(4)}
    del bad["0.weight"]
    with pytest.raises(
        ValueError, match=r"0\.weight is missing; 6\.bias must have shape \[5\], got \[4\]; other has no"
    ):
        model.load_discrete(bad)
    after = converted(fold=True).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["residual", "depthwise, squeeze-excitation", "flatten, channel-minor"])
def test_discrete_checkpoints_of_other_architectures(name):
    net, inputs = build(name), ZOO[name].inputs
    model = inn.convert(net, inputs, fold=False)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
        model.load_discrete(net.state_dict())
        torch.testing.assert_close(model(*inputs), net(*inputs), rtol=1e-4, atol=1e-5)


# Snapshots ----------------------------------------------------------------------------------------------------------


@every_model
def test_a_snapshot_is_its_own(make):
    model = make()
    before = model.sizes
    small = model.at(0.5)
    assert model.sizes == before and not small.training
    assert not any(p.requires_grad for p in small.parameters())
    with torch.no_grad():
        expected = small(IMAGE)
        model.resize(0.5)
        assert torch.equal(model(IMAGE), expected)
        for p in model.parameters():
            p.zero_()
        for b in model.net.buffers():
            b.zero_()
        assert torch.equal(small(IMAGE), expected)
    assert all(type(m).__module__.startswith("torch.nn") for m in small.modules())


@every_model
def test_snapshots_are_kept_within_their_bytes(make):
    model = make()
    one = sum(t.nbytes for t in [*model.at(1.0).parameters(), *model.at(1.0).buffers()])
    snapshots = inn.Snapshots(model, max_bytes=int(1.5 * one))
    first = snapshots.at(1.0)
    assert snapshots.at(1.0) is first and len(snapshots) == 1
    for share in (0.9, 0.8, 0.7, 0.6, 0.5):
        snapshots.at(share)
        assert snapshots.bytes <= snapshots.max_bytes
    assert snapshots.at(1.0) is not first
    tiny = inn.Snapshots(model, max_bytes=0)
    tiny.at(0.5), tiny.at(0.6)
    assert len(tiny) == 1
    with torch.no_grad():
        expected = snapshots.at(0.5)(IMAGE)
        for p in model.parameters():
            p.zero_()
        assert torch.equal(snapshots.at(0.5)(IMAGE), expected)
        assert torch.equal(tiny.at(0.5)(IMAGE), expected)


def test_snapshots_share_what_no_axis_runs_along():
    snapshots = inn.Snapshots(converted())
    small, large = snapshots.at(0.5), snapshots.at(0.75)
    assert small[6].bias is large[6].bias and small[6].weight is not large[6].weight
    assert snapshots.bytes == sum(t.nbytes for n in (small, large) for t in n.state_dict().values()) - 2 * (20 + 8)


@every_model
def test_threads_are_served_as_one_is(make, threads):
    threads(1)
    model = make()
    inputs = [rand(1, 3, 8, 8, seed=n, dtype=torch.float32) for n in range(8)]
    widths = (0.25 + 0.75 * torch.rand(60, generator=generator(2))).tolist()
    one = sum(t.nbytes for t in model.at(1.0).state_dict().values())
    snapshots = inn.Snapshots(model, max_bytes=4 * one)
    with torch.no_grad():
        expected = {width: [model.at(width)(x) for x in inputs] for width in widths}

    def answers(n: int) -> bool:
        with torch.inference_mode():
            for w in (widths[n:] + widths[:n]) * 9:
                if not torch.equal(snapshots.at(w)(inputs[n]), expected[w][n]) or snapshots.bytes > snapshots.max_bytes:
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(answers, range(8)))
    assert snapshots.bytes <= snapshots.max_bytes
