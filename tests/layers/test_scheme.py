"""What is kept from call to call of how a network is sampled is kept only as long as it is true."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import integral_nn as inn
from integral_nn.layers import scheme


def network() -> inn.IntegralNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    net(torch.randn(8, 3, 6, 6))
    return inn.convert(net, torch.randn(2, 3, 6, 6), fold=False, permute=False)


def hand_built() -> inn.IntegralNetwork:
    first, second = inn.Axis(16), inn.Axis(16)
    layers = [inn.IntegralLinear(4, first), inn.IntegralLinear(first, second), inn.IntegralLinear(second, 3)]
    return inn.IntegralNetwork(nn.Sequential(*layers))


def axis(model: inn.IntegralNetwork, n: int = 0) -> inn.Axis:
    return list(model.axes.values())[n]


def replace_parameter(model: inn.IntegralNetwork) -> None:
    layer = model.net[3]
    layer.weight_nodes = nn.Parameter(layer.weight_nodes.detach() + 1)


def replace_data(model: inn.IntegralNetwork) -> None:
    nodes = model.net[3].weight_nodes
    nodes.data = (nodes.data * 2).contiguous(memory_format=torch.channels_last)


def replace_module(model: inn.IntegralNetwork) -> None:
    twin = copy.deepcopy(
        model.net[3], {id(a): a for a in model.axes.values()} | {id(model.net[3]._rules): model.net[3]._rules}
    )
    with torch.no_grad():
        twin.weight_nodes.mul_(3)
    model.net[3] = twin


def remove_module(model: inn.IntegralNetwork) -> None:
    del model.net[8]


def calibrate(model: inn.IntegralNetwork) -> None:
    norm = model.net[1]
    size = norm.running_mean.shape[0]
    norm.calibrate({"running_mean": torch.ones(size), "running_var": torch.ones(size)}, {axis(model): axis(model).size})


def trainable(model: inn.IntegralNetwork) -> None:
    axis(model).make_trainable(torch.linspace(0, 1, axis(model).size) ** 1.1)


def uniform_again(model: inn.IntegralNetwork) -> None:
    trainable(model)
    model.sampled()
    axis(model).make_uniform()


def load(model: inn.IntegralNetwork) -> None:
    other = network()
    other.resize(0.25)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    model.load_state_dict(other.state_dict())


CHANGES: dict[str, Callable] = {
    "nothing": lambda model: None,
    "resize": lambda model: model.resize(0.5),
    "resize of one axis": lambda model: axis(model).resize(9),
    "written": lambda model: model.net[3].weight_nodes.data.mul_(2),
    "parameter": replace_parameter,
    "data": replace_data,
    "module": replace_module,
    "removed": remove_module,
    "dtype": lambda model: model.double(),
    "dtype of one": lambda model: model.net[3].bfloat16(),
    "trainable": trainable,
    "uniform again": uniform_again,
    "quadrature": lambda model: setattr(axis(model), "quadrature", "simpson"),
    "calibrated": calibrate,
    "parametrized": lambda model: parametrizations.weight_norm(model.net[3], "weight_nodes"),
    "eval": lambda model: model.eval(),
    "loaded": load,
    "frozen": lambda model: model.requires_grad_(False),
}


def same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype and got[name].stride() == value.stride(), name
        assert got[name].requires_grad == value.requires_grad, name
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_change_is_missed(change: Callable) -> None:
    model = network().train()
    model.resize(0.75)
    model.sampled()
    change(model)
    same(model.sampled(), copy.deepcopy(model).sampled())
    same(model.sampled(), copy.deepcopy(model).sampled())


@pytest.mark.parametrize(
    "change", [lambda m: setattr(m.net[1], "scale", 3.0), lambda m: setattr(m.net[1], "backend", "reference")]
)
def test_rules_of_a_layer(change: Callable) -> None:
    model = hand_built()
    model.sampled()
    change(model)
    same(model.sampled(), copy.deepcopy(model).sampled())


def test_autocast() -> None:
    model = network()
    for on in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16) if on else contextlib.nullcontext():
            values = model.sampled()
        assert values["3.weight"].dtype == (torch.bfloat16 if on else torch.float32)


def test_axes_of_one_size_part() -> None:
    model = hand_built()
    model.sampled()  # both axes share their taps
    axis(model, 1).resize(7)
    same(model.sampled(), copy.deepcopy(model).sampled())
    assert model.sampled()["1.weight"].shape == (7, 16)


def test_nothing_is_looked_up_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(network())  # conversion calls it
    made = []
    make = scheme._make
    monkeypatch.setattr(scheme, "_make", lambda *arguments: made.append(1) or make(*arguments))
    for share in (1.0, 0.5, 0.75, 1.0):
        model.resize(share)
        model.sampled()
        model(torch.randn(2, 3, 6, 6))
    assert len(made) == 1


def test_copies_keep_nothing_of_the_model() -> None:
    model = network()
    model.sampled()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._scheme.scheme is None
        with torch.no_grad():
            twin.net[3].weight_nodes.mul_(2)
        assert not torch.equal(twin.sampled()["3.weight"], model.sampled()["3.weight"])


def test_only_norms_in_training_move_their_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others keep theirs to the last bit; those that move are brought back together as they are one by one."""
    found = []
    x = torch.randn(4, 3, 6, 6)
    for joined in (True, False):
        monkeypatch.setattr(scheme, "can_join", scheme.can_join if joined else lambda *_: False)
        model = network()
        model.resize(0.75)
        model.train()
        model.net[1].eval()
        before = {name: value.clone() for name, value in model.net.named_buffers()}
        model(x)
        found.append(dict(model.net.named_buffers()))
        for name, value in found[-1].items():
            assert torch.equal(value, before[name]) == (not name.startswith("4.")), name
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


@pytest.mark.parametrize("quadrature", ["cells", "trapezoid"])
def test_taps_of_trainable_points_are_shared_within_a_call(quadrature: str) -> None:
    """Weighted or not, they are made of one another: with the values and gradients of those made for each tensor."""
    torch.manual_seed(0)
    first, second = (inn.Axis(16, 12, quadrature=quadrature, trainable=True) for _ in range(2))
    layers = [inn.IntegralLinear(4, first), inn.IntegralLinear(first, second), inn.IntegralLinear(second, first)]
    model = inn.IntegralNetwork(nn.Sequential(*layers))
    together = model.sampled()
    apart = {f"{n}.{leaf}": getattr(layer, leaf) for n, layer in enumerate(layers) for leaf in ("weight", "bias")}
    found = []
    for values in (together, apart):
        deltas = torch.autograd.grad(sum(value.sin().sum() for value in values.values()), [first.delta, second.delta])
        found.append([*values.values(), *deltas])
    for got, wanted in zip(*found):
        torch.testing.assert_close(got, wanted)


def test_functional_calls_between() -> None:
    model, x = network().eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        before = model(x)
        zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        assert not torch.func.functional_call(model, zeros, (x,)).any()
        assert torch.equal(model(x), before)


def test_no_replaced_parameter_is_kept_alive() -> None:
    model = network()
    model.sampled()
    gone = []
    seen = weakref.ref(model.net[3].weight_nodes, lambda _: gone.append(1))
    model.net[3].weight_nodes = nn.Parameter(model.net[3].weight_nodes.detach().clone())
    assert gone and seen() is None


def test_threads_at_sizes_of_their_own() -> None:
    """Each thread resizes a model of its own while others do the same: taps are shared, schemes are not."""
    models = [network() for _ in range(4)]
    wanted = {}
    for share in (0.25, 0.5, 0.75, 1.0):
        models[0].resize(share)
        wanted[share] = models[0].sampled()
    failures: list[BaseException] = []

    def run(n: int) -> None:
        try:
            for turn in range(24):
                share = (0.25, 0.5, 0.75, 1.0)[(turn + n) % 4]
                models[n].resize(share)
                same(models[n].sampled(), wanted[share])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
