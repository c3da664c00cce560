"""Steps captured at a few sizes: the same losses and gradients as passes of one's own, in any order."""

import contextlib
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import integral_nn as inn

SIZES = (0.5, 0.75, {"0": 30})


def build() -> tuple[inn.IntegralNetwork, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    return inn.convert(net, torch.zeros(2, 6), fold=False).train(), torch.randn(8, 6), torch.randint(3, (8,))


def captured(model, x, y):
    return inn.CapturedSteps(model, lambda x, y: F.cross_entropy(model(x), y), (x, y), SIZES)


def test_losses_and_gradients_are_those_of_passes_of_ones_own():
    model, x, y = build()
    model.resize(1.0)
    before = {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}
    step = captured(model, x, y)
    assert model.sizes == {"0": 32}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    other, _, _ = build()
    for n, at in enumerate((2, 0, 1, 0)):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(n))
        for network in (model, other):
            network.resize(SIZES[at])
        loss = step(x, y)
        wanted = F.cross_entropy(other(x), y)
        for parameter in other.parameters():
            parameter.grad = None
        wanted.backward()
        assert torch.equal(loss, wanted.detach())
        for mine, theirs in zip(model.parameters(), other.parameters()):
            assert torch.equal(mine.grad, theirs.grad)
        with torch.no_grad():
            for network in (model, other):
                for parameter in network.parameters():
                    parameter -= 0.1 * parameter.grad
        if n == 1:
            model.zero_grad(set_to_none=True)  # gradients come back to where graphs write them


def test_wrong_calls_are_refused_before_anything_is_written():
    model, x, y = build()
    step = captured(model, x, y)
    model.resize(0.5)
    step(x, y)
    grads = [p.grad.clone() for p in model.parameters()]
    for inputs, said in (
        ((x,), "inputs must be 2 tensors"),
        ((x[:4], y), r"inputs\[0\] must be as captured, \[8, 6\] of torch.float32 on cpu, got \[4, 6\]"),
        ((x, y.float()), r"inputs\[1\] must be as captured"),
    ):
        with pytest.raises(ValueError, match=said):
            step(*inputs)
    model.resize(1.0)
    with pytest.raises(ValueError, match=r"sizes must be among those captured, got \{'0': 32\}"):
        step(x, y)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads))
    not_scalar = inn.CapturedSteps(model, lambda x: model(x), (x,), [1.0])
    with pytest.raises(ValueError, match=r"loss_fn must return a scalar tensor, got \[8, 3\]"):
        not_scalar(x)


def test_trainable_points_keep_their_number():
    model, x, y = build()
    model.resize(0.75)
    model.axes["0"].make_trainable()
    loss = lambda x, y: F.cross_entropy(model(x), y)  # noqa: E731
    with pytest.raises(ValueError, match="sizes must leave axis '0' at its 24 trainable points, got 16"):
        inn.CapturedSteps(model, loss, (x, y), [0.75, 0.5])
    step = inn.CapturedSteps(model, loss, (x, y), [0.75])
    step(x, y)
    assert model.axes["0"].delta.grad.abs().sum() > 0


class _Graph:
    """Stands in for a CUDA graph: it knows at what size it was captured."""

    replayed: ClassVar[list[dict]] = []

    def replay(self):
        self.replayed.append(self.sizes)


def test_each_size_has_its_graph(monkeypatch):
    """The way that a GPU takes, with a stand-in for its graphs."""
    model, x, y = build()
    step = captured(model, x, y)

    @contextlib.contextmanager
    def capture(graph, pool, stream):
        yield
        graph.sizes, graph.pool = model.sizes, pool

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "graph_pool_handle": lambda: "pool", "Stream": lambda device: stream, "current_stream": lambda device: stream,
        "stream": lambda stream: contextlib.nullcontext(), "CUDAGraph": _Graph, "graph": capture,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(_Graph, "replayed", [])
    state = {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}
    sizes = model.sizes
    step._capture([model._sizes_at(size) for size in SIZES])
    assert model.sizes == sizes
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    for size in (0.75, 0.5, {"0": 30}, 0.75):
        model.resize(size)
        loss = step(x, y)
        assert loss.shape == ()
    assert [list(sizes.values()) for sizes in _Graph.replayed] == [[24], [16], [30], [24]]
