"""A trainable axis of another size: a new parameter, and the optimizer that is told of it or refuses to go on."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import common
import integral_nn as inn
from networks_zoo import ZOO

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "fused SGD": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "fused Adam": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "foreach AdamW": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True, foreach=True),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "fused Adagrad": lambda p: torch.optim.Adagrad(p, 0.01, fused=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


def net(size=9, quadrature="midpoint"):
    torch.manual_seed(0)
    axis = inn.Axis(12, size, quadrature=quadrature, trainable=True)
    return torch.nn.Sequential(inn.IntegralLinear(3, axis), torch.nn.Tanh(), inn.IntegralLinear(axis, 2)), axis


def step(model, optimizer):
    def loss():
        optimizer.zero_grad()
        value = (model(X) - 1).square().mean()
        value.backward()
        return value

    return float(optimizer.step(loss).detach())


X = common.rand(8, 3, dtype=torch.float32)


@pytest.mark.parametrize("quadrature", ["midpoint", "trapezoid"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on(name, quadrature):
    model, axis = net(quadrature=quadrature)
    optimizer = OPTIMIZERS[name](model.parameters())
    for size in (9, 40, 3, 90, 9):
        old = axis.delta
        assert axis.resize(size, optimizer) == size
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert sum(p is axis.delta for p in held) == 1 and len(held) == len(list(model.parameters()))
        assert (axis.delta is old) == (old.shape[0] == size)
        for value in optimizer.state[axis.delta].values() if name != "LBFGS" and axis.delta in optimizer.state else ():
            assert not isinstance(value, torch.Tensor) or value.shape in ((), (1,), axis.delta.shape)
        before = axis.delta.detach().clone()
        losses = [step(model, optimizer) for _ in range(4)]
        assert all(p.isfinite().all() for p in model.parameters()) and all(map(math.isfinite, losses))
        assert not torch.equal(before, axis.delta), "the new points are not trained"
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_state_moves_along():
    model, axis = net(9, "trapezoid")
    optimizer = torch.optim.Adam([{"params": [model[0].weight_nodes]}, {"params": [axis.delta], "lr": 0.5}])
    for _ in range(3):
        step(model, optimizer)
    state = optimizer.state[axis.delta]
    state["exp_avg"].copy_(torch.tensor([7.0, *range(8)]))  # the first delta is no gap
    state["exp_avg_sq"].fill_(0.25)
    axis.resize(17, optimizer)
    moved = optimizer.state[axis.delta]
    assert float(moved["step"]) == 3 and optimizer.param_groups[1] == {
        **optimizer.param_groups[1], "params": [axis.delta], "lr": 0.5
    }  # fmt: skip
    assert torch.equal(moved["exp_avg_sq"], torch.full((17,), 0.25))
    assert float(moved["exp_avg"][0]) == 7
    expected = torch.linspace(-0.25, 7.25, 16).clamp(0, 7)  # gaps half as long
    torch.testing.assert_close(moved["exp_avg"][1:], expected)
    assert len(optimizer.state) == 2


def test_state_of_another_kind_starts_afresh():
    model, axis = net(9)
    optimizer = torch.optim.Adam([axis.delta])
    step(model, optimizer)
    optimizer.state[axis.delta]["blocks"] = torch.ones(3)
    axis.resize(6, optimizer)
    assert axis.delta not in optimizer.state
    step(model, optimizer)
    assert optimizer.state[axis.delta]["exp_avg"].shape == (6,)


@pytest.mark.parametrize("change", ["resize", "resample", "make_trainable", "load_state_dict", "uniform between"])
def test_an_optimizer_that_is_not_told_refuses_to_step(change):
    model, axis = net(9)
    axis.size_range = (5, 8)
    optimizer, other = torch.optim.Adam(model.parameters()), torch.optim.Adam(model[0].parameters())
    step(model, optimizer)
    {
        "resize": lambda: axis.resize(6),
        "resample": lambda: axis.resample(common.generator()),
        "make_trainable": lambda: axis.make_trainable(),
        "load_state_dict": lambda: axis.load_state_dict({"delta": torch.ones(5)}),
        "uniform between": lambda: (axis.make_uniform(), axis.make_trainable()),
    }[change]()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="pass the optimizer to resize or resample"):
        step(model, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if change != "uniform between":
        with pytest.raises(RuntimeError, match="delta"):
            step(model, other)  # it holds the layer's axis too
    step(model, torch.optim.Adam(model.parameters()))
    step(model, torch.optim.Adam([model[0].weight_nodes]))


def test_points_that_are_not_trained_are_no_concern():
    model, axis = net(9)
    axis.delta.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    axis.resize(6)
    assert not axis.delta.requires_grad
    step(model, optimizer)
    model, axis = net(9)
    optimizer = torch.optim.Adam(model.parameters())
    axis.make_uniform()
    step(model, optimizer)


def test_the_present_size_keeps_the_parameter():
    _, axis = net(9)
    old, extent = axis.delta, axis._extent
    axis.delta.grad = torch.ones(9)
    axis.resize(9), axis.resize(0.75)
    assert axis.delta is old and axis._extent is extent and old.grad is not None


def test_a_network_passes_the_optimizer_on():
    model = inn.convert(ZOO["plain"].make(), ZOO["plain"].inputs, permute=False)
    for axis in model.axes.values():
        axis.make_trainable()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for change in (
        lambda: model.resize(0.5, optimizer),
        lambda: model.resize({"0": 12}, optimizer),
        lambda: model.resample(common.generator(1), optimizer=optimizer),
        lambda: model.resample(common.generator(2), common=True, optimizer=optimizer),
    ):
        change()
        optimizer.zero_grad()
        model(*ZOO["plain"].inputs).square().mean().backward()
        optimizer.step()
        assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
        assert all(axis.delta.grad.shape == (axis.size,) for axis in model.axes.values())


def test_distributed_data_parallel_is_wrapped_anew(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, axis = net(9)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        wrapped = DistributedDataParallel(model)
        step(wrapped, optimizer)
        axis.resize(5, optimizer)
        with pytest.raises(RuntimeError, match=r"make_trainable\(keep=True\) before, or wrap the module anew"):
            step(wrapped, optimizer)
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            step(wrapped, optimizer)
        assert axis.delta.grad.shape == (5,)
    finally:
        dist.destroy_process_group()
