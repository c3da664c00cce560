"""What a state_dict says of an axis: its size, and the rule that its nodes belong to."""

import warnings

import pytest
import torch

import integral_nn as inn
from inn_kernels import basis, quadrature
from integral_nn.layers import axis_state

OTHERS = {
    "nodes": {"nodes": 12, "size": 10},
    "quadrature": {"quadrature": "trapezoid"},
    "kernel": {"kernel": "cubic"},
    "boundary": {"boundary": "keys"},
}


def network(nodes=10, **rule):
    torch.manual_seed(0)
    axis = inn.Axis(nodes, **rule)
    layers = [inn.IntegralLinear(3, axis), torch.nn.ReLU(), inn.IntegralLinear(axis, 2)]
    return inn.IntegralNetwork(torch.nn.Sequential(*layers))


def test_every_rule_has_its_number():
    assert set(axis_state.QUADRATURES) == set(quadrature._RULES)
    assert set(axis_state.KERNELS) == set(basis.KERNELS) and set(axis_state.BOUNDARIES) == set(basis.BOUNDARIES)


@pytest.mark.parametrize("rule", axis_state.QUADRATURES)
@pytest.mark.parametrize("kernel", axis_state.KERNELS)
def test_a_state_says_the_rule(rule, kernel):
    axis = inn.Axis(10, 7, quadrature=rule, kernel=kernel, boundary="keys", a=-0.3)
    state = axis.state_dict()["_extra_state"]
    assert state.dtype == torch.int64 and state.device.type == "cpu"
    assert axis_state.unpacked(state) == axis_state.AxisState(7, 10, rule, axis.basis, False)
    other = inn.Axis(10, 9, quadrature=rule, kernel=kernel, boundary="keys", a=-0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(axis.state_dict())
    assert other.size == 7


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("within", [False, True])
def test_a_state_of_another_rule_is_refused_and_changes_nothing(what, within):
    saved, model = network(**OTHERS[what]), network()
    saved.resize(0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if within:  # a part of a module that knows nothing of it
        saved, loaded = torch.nn.ModuleDict({"model": saved}), torch.nn.ModuleDict({"model": model})
    else:
        loaded = model
    with pytest.raises(RuntimeError, match=f"net.0.out_axis.*{what}=.* in the state_dict, .* here"):
        loaded.load_state_dict(saved.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_parameter_of_the_cubic_kernel_is_of_the_rule():
    saved, other = (inn.Axis(10, quadrature="trapezoid", kernel="cubic", a=a) for a in (-0.5, -0.75))
    with pytest.raises(RuntimeError, match=r"a=-0.5 in the state_dict, -0.75 here"):
        other.load_state_dict(saved.state_dict())
    inn.Axis(10, a=-0.5).load_state_dict(inn.Axis(10).state_dict())  # B-splines have none


def test_a_state_without_the_rule_loads_and_says_so():
    model, other = network(), network()
    model.resize(0.5)
    with torch.no_grad():
        model.net[0].weight_nodes.add_(1)
    state = model.state_dict()
    for name in state:
        if name.endswith("axis._extra_state"):
            state[name] = torch.tensor(5)
    with pytest.warns(UserWarning, match="does not say by which rule"):
        other.load_state_dict(state)
    x = torch.ones(2, 3)
    assert other.sizes == {"0": 5} and torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    "bad, words",
    [
        (torch.tensor([5, 10, 90, 0, 0, 0, 0]), "does not know"),
        (torch.tensor([5, 10, 0, -1, 0, 0, 0]), "does not know"),
        (torch.ones(3, dtype=torch.int64), "7 integers"),
        (torch.ones(7), "7 integers"),
        ({"size": 4}, "7 integers"),
    ],
)
def test_a_state_that_is_none_is_refused(bad, words):
    with pytest.raises(RuntimeError, match=words):
        inn.Axis(10).load_state_dict({"_extra_state": bad})


@pytest.mark.parametrize("within", [False, True])
def test_a_layer_of_another_scale_is_refused_and_changes_nothing(within):
    saved, model = network(), network()
    saved.net[2].scale = 2.5
    with torch.no_grad():
        saved.net[2].weight_nodes.add_(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = torch.nn.ModuleDict({"model": model}) if within else model
    state = (torch.nn.ModuleDict({"model": saved}) if within else saved).state_dict()
    with pytest.raises(RuntimeError, match=r"net.2.scale=2.5 in the state_dict, 10.0 here: build the layer"):
        loaded.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.net[2].scale = 2.5
    loaded.load_state_dict(state)
    assert torch.equal(model.net[2].weight_nodes, saved.net[2].weight_nodes)


def test_a_state_without_scales_loads_and_one_that_is_none_is_refused():
    saved, model = network(), network()
    with torch.no_grad():
        saved.net[2].weight_nodes.add_(1)
    state = saved.state_dict()
    for name in ("net.0._extra_state", "net.2._extra_state"):
        assert state.pop(name).dtype == torch.int64
    model.load_state_dict(state)
    assert torch.equal(model.net[2].weight_nodes, saved.net[2].weight_nodes)
    for bad in (torch.ones(7), torch.tensor(10.0), 10.0):
        with pytest.raises(RuntimeError, match="must be the scale of a layer"):
            model.load_state_dict({**state, "net.2._extra_state": bad})


def test_measured_statistics_load_within_another_module():
    def converted():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 3))
        return torch.nn.ModuleDict({"model": inn.convert(net, X, permute=False, fold=False).eval()})

    one, other = converted(), converted()
    one["model"].resize(0.5)
    inn.recalibrate(one["model"], [X])
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert torch.equal(one["model"](X), other["model"](X))


X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
