"""Families of architectures: the axes that are found, and no silent damage on any way a network is then used."""

import copy
import pickle

import pytest
import torch
from torch.func import functional_call

import integral_nn as inn
import zoo.calls
import zoo.heads
import zoo.images
import zoo.recurrent
import zoo.sequences
import zoo.weights
from integral_nn.coupling.calls import Inputs, tensors_in
from integral_nn.coupling.plain import plain_copy
from integral_nn.networks.permute import apply_orders
from zoo import build

torch.set_num_threads(1)
ROOMS = (zoo.images, zoo.sequences, zoo.calls, zoo.weights, zoo.recurrent, zoo.heads)
FAMILIES = {name: family for room in ROOMS for name, family in room.FAMILIES.items()}
BATCH, OTHER = 2, 3


def outputs(net, args, kwargs):
    torch.manual_seed(0)
    return list(tensors_in(net(*args, **kwargs)))


@torch.no_grad()
def error(net, other, family):
    """Largest relative difference of outputs on another batch size than that of the conversion."""
    args, kwargs = family.inputs(OTHER), family.kwargs(OTHER)
    want, have = outputs(net, args, kwargs), outputs(other, args, kwargs)
    assert [t.shape for t in want] == [t.shape for t in have]
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(want, have))


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request):
    family = FAMILIES[request.param]
    net = build(family)
    return family, net, inn.convert(net, family.inputs(BATCH), family.kwargs(BATCH), time_limit=1.0)


def test_axes(case):
    family, _, model = case
    assert {name: axis.nodes for name, axis in model.axes.items()} == family.axes
    assert {n: s.multiple_of for n, s in model.found.specs.items() if s.multiple_of > 1} == family.multiple_of


def test_full_size_is_exact(case):
    family, net, model = case
    assert error(net, model, family) <= 1e-5


def permuted(net, found, seed=0):
    """The network with the channels of every axis in a random order, wherever the axis runs."""
    generator = torch.Generator().manual_seed(seed)
    orders = {}
    for name, spec in found.specs.items():
        block = spec.nodes // spec.blocks
        rows = [b * block + torch.randperm(block, generator=generator) for b in range(spec.blocks)]
        orders[name] = torch.cat(rows)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    tensors = apply_orders({n: t.detach() for n, t in tensors.items()}, found, orders)
    return lambda *args, **kwargs: functional_call(net, tensors, args, kwargs)


def test_any_order_of_channels(case):
    family, net, _ = case
    inputs = Inputs(family.inputs(BATCH), family.kwargs(BATCH))
    found = inn.find_axes(net, *inputs)
    assert error(net, permuted(plain_copy(net, inputs)[0], found), family) <= 1e-4


def test_a_resized_network_trains_and_is_what_it_discretizes_to(case):
    family, _, model = case
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    args, kwargs = family.inputs(OTHER), family.kwargs(OTHER)
    for size in (0.5, 0.75):
        model.resize(size)
        loss = sum(t.square().mean() for t in outputs(model, args, kwargs))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        small = model.discretize()
        assert not any(type(m).__module__.startswith("integral_nn") for m in small.modules())
        assert error(model.eval(), small.eval(), family) <= 1e-5
        assert error(model, pickle.loads(pickle.dumps(model)), family) == 0
        sum(t.square().mean() for t in outputs(small.train(), args, kwargs)).backward()
        model.train()


def test_weights_computed_in_forward_are_reported():
    family = FAMILIES["weights standardised"]
    report = inn.convert(build(family), *family.inputs(BATCH), time_limit=1.0).report
    assert report.computed == ["0", "3", "5"]
    assert "3 layers have the weights they computed in forward" in str(report)


def test_what_nothing_uses_is_named():
    family = FAMILIES["masks in training"]
    found = inn.find_axes(build(family), *family.inputs(BATCH))
    assert found.unused == ["idle.weight", "idle.bias"]
    assert "2 parameters were not seen in use" in str(found) and "masked[0]" in str(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_networks(dtype):
    """Axes are proved in float64; outputs are compared by what the dtype can tell."""
    family = FAMILIES["norms in float32, grouped queries"]
    net, inputs = build(family).to(dtype), family.inputs(BATCH)
    model = inn.convert(net, inputs, quadrature="trapezoid", kernel="bspline", time_limit=1.0)
    assert {name: axis.nodes for name, axis in model.axes.items()} == family.axes
    assert 1e-5 < model.report.error <= 32 * torch.finfo(dtype).eps
