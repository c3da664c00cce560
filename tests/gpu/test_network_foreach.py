"""A network's weights from one launch: values, gradients and launches against the CPU's operator and layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import integral_nn as inn
from inn_kernels import ops
from inn_kernels.gpu import foreach, foreach_adjoint
from inn_kernels.gpu.foreach_table import Foreach
from inn_kernels.gpu.launch import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
Together = Callable[[bool], None]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[Together]:
    """Switches the common launch on (in the interpreter, for CPU tensors) and off (each tensor by itself)."""

    def switch(on: bool) -> None:
        monkeypatch.setattr("integral_nn.layers.scheme.can_join", lambda entry, _: on and entry.rule.fixed)
        if INTERPRETED:
            monkeypatch.setattr(ops, "discretize_foreach", foreach.discretize_foreach)
            monkeypatch.setattr(ops, "discretize_foreach_adjoint", foreach_adjoint.discretize_foreach_adjoint)

    yield switch


def network() -> inn.IntegralNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 14, 3, padding=1), nn.BatchNorm2d(14), nn.ReLU(),
        nn.Conv2d(14, 11, 3, padding=1, bias=False), nn.BatchNorm2d(11), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(11, 5),
    )  # fmt: skip
    net(torch.randn(8, 3, 6, 6))  # statistics that are not 0 and 1
    model = inn.convert(net, torch.randn(2, 3, 6, 6), fold=False).to(DEVICE)
    model.resize(0.7)
    return copy.deepcopy(model)  # which has not been called yet, and knows nothing of what is sampled together


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tensors of each common launch."""
    counts: list[int] = []
    run = Foreach._launch
    monkeypatch.setattr(Foreach, "_launch", lambda self, *rest: counts.append(len(rest[0])) or run(self, *rest))
    return counts


def close(value: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(value, wanted, rtol=2e-6, atol=2e-6 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("trainable", [False, True], ids=["fixed", "trainable points"])
def test_values_and_gradients(together: Together, launches: list[int], trainable: bool) -> None:
    found = {}
    for on, model in ((False, network()), (True, network())):
        together(on)
        if trainable:
            for axis in model.axes.values():
                axis.make_trainable()
        values = model.sampled()
        torch.manual_seed(1)
        sum((v * torch.randn(v.shape).to(v)).sum() for v in values.values()).backward()
        found[on] = values, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert launches == ([] if trainable else [8, 4, 8])  # parameters, statistics without gradients, and back
    for name, value in found[True][0].items():
        wanted = found[False][0][name]
        close(value, wanted)
        assert value.requires_grad == wanted.requires_grad and value.stride() == wanted.stride()
    assert found[True][1].keys() == found[False][1].keys()
    for name, gradient in found[True][1].items():
        close(gradient, found[False][1][name])


def test_a_training_step(together: Together, launches: list[int]) -> None:
    """Parameters, statistics, statistics brought back, and the gradients of parameters: four launches."""
    x = torch.randn(4, 3, 6, 6, device=DEVICE)
    steps = []
    for on, model in ((False, network()), (True, network())):
        model.train()
        together(on)
        y = model(x)
        y.square().sum().backward()
        assert launches == ([4, 8, 4, 4, 8] if on else [4])  # one by one, only the last comes together
        plain = model.discretize().eval()
        buffers = [b for b in model.buffers() if b is not None]
        steps.append((y, plain(x), *(p.grad for p in model.parameters()), *buffers))
    for value, wanted in zip(steps[1], steps[0]):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)


def test_second_derivatives(together: Together) -> None:
    found = []
    for on, model in ((False, network()), (True, network())):
        together(on)
        nodes = model.nodes()["3.weight"]
        (first,) = torch.autograd.grad(model.sampled()["3.weight"].pow(3).sum(), nodes, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), nodes)[0])
    close(found[1], found[0])


@pytest.mark.skipif(not INTERPRETED, reason="CPU tensors")
def test_a_cpu_launches_nothing(launches: list[int]) -> None:
    network().sampled()
    assert not launches
