"""A network's weights from one launch: values, gradients and launches against the same network layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import integral_nn as inn
from inn_kernels import dispatch
from inn_kernels.gpu import foreach as launcher
from inn_kernels.gpu.launch import INTERPRETED
from integral_nn.functional import foreach

DEVICE = "cpu" if INTERPRETED else "cuda"
Shared = Callable[[bool], None]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    """Switches the common launch on (in the interpreter, for CPU tensors) and off."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(foreach, "can_share", lambda nodes, backend: on)

    yield switch


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 14, 3, padding=1), nn.BatchNorm2d(14), nn.ReLU(),
        nn.Conv2d(14, 11, 3, padding=1, bias=False), nn.BatchNorm2d(11), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(11, 5),
    )  # fmt: skip
    net(torch.randn(8, 3, 6, 6))  # statistics that are not 0 and 1
    model = inn.convert(net, torch.randn(2, 3, 6, 6), fold=False).to(DEVICE)
    model.resize(0.7)
    return model


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tensors of each common launch."""
    counts: list[int] = []
    run = launcher._launch
    monkeypatch.setattr(launcher, "_launch", lambda nodes, *rest: counts.append(len(nodes)) or run(nodes, *rest))
    return counts


def close(value: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(value, wanted, rtol=2e-6, atol=2e-6 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("trainable", [False, True], ids=["fixed", "trainable points"])
def test_values_and_gradients(shared: Shared, launches: list[int], trainable: bool) -> None:
    model = network()
    if trainable:
        for axis in model.axes.values():
            axis.make_trainable()
    found = {}
    for on in (False, True):
        shared(on)
        model.zero_grad()
        values = model.sampled()
        torch.manual_seed(1)
        sum((v * torch.randn(v.shape).to(v)).sum() for v in values.values()).backward()
        found[on] = values, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    tied = len(model.sampled())
    assert launches[0] == tied == 12 and len(launches) == 2  # the second: the line above
    for name, value in found[True][0].items():
        wanted = found[False][0][name]
        close(value, wanted)
        assert value.requires_grad == wanted.requires_grad and value.stride() == wanted.stride()
    assert found[True][1].keys() == found[False][1].keys()
    for name, gradient in found[True][1].items():
        close(gradient, found[False][1][name])


def test_a_training_step_and_a_discretization_take_one_launch_each(shared: Shared, launches: list[int]) -> None:
    x = torch.randn(4, 3, 6, 6, device=DEVICE)
    steps = []
    for on in (False, True):
        model = network().train()
        shared(on)
        y = model(x)
        y.square().sum().backward()
        plain = model.discretize().eval()
        steps.append((y, plain(x), *(p.grad for p in model.parameters()), *model.buffers()))
        assert len(launches) == (2 if on else 0)
    for value, wanted in zip(steps[1], steps[0]):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)


def test_second_derivatives(shared: Shared) -> None:
    model = network()
    weight = model.get_parameter("net.3.weight")
    found = []
    for on in (False, True):
        shared(on)
        (first,) = torch.autograd.grad(model.sampled()["3.weight"].pow(3).sum(), weight, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), weight)[0])
    close(found[1], found[0])


def test_fake_tensors_and_traces_go_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "select_backend", lambda *_: "triton")
    monkeypatch.setattr(foreach, "Tensor", FakeTensor)  # what stands for an ordinary tensor where there is no GPU
    with FakeTensorMode():
        x = torch.empty(3, 4, device="cuda")
        assert foreach.can_share(x, None)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not foreach.can_share(x, None)
        monkeypatch.undo()
        assert not foreach.can_share(x, None)


@pytest.mark.skipif(not INTERPRETED, reason="CPU tensors")
def test_on_a_cpu_nothing_is_shared(launches: list[int]) -> None:
    model = network()
    model.sampled()
    assert not foreach.can_share(next(model.parameters()), None) and not launches
