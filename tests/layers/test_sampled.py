"""The sampled weight: whoever reads a module's weight, at any time, in any thread, gets that of the current sizes."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import integral_nn as inn
from integral_nn.layers.sampled import Sampled


class Net(nn.Module):
    """A stem, a residual block with batch norms that may be recomputed, a concat with a norm after it, a head."""

    def __init__(self, recompute: str = "") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1)
        )
        self.side = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 5)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        reentrant = self.recompute == "reentrant"
        z = checkpoint(self.block, y, use_reentrant=reentrant) if self.recompute else self.block(y)
        y = torch.cat([y + z, self.side(x)], 1)
        return self.head(self.norm(y).mean((2, 3)))


IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def converted(recompute: str = "", **options) -> inn.IntegralNetwork:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():  # statistics that tell channels apart
        for _ in range(3):
            net(torch.randn(8, 3, 8, 8))
    model = inn.convert(net.eval(), IMAGE, fold=False, permute=False, **options)
    model.net.recompute = recompute
    return model


RULE = {"quadrature": "cells", "kernel": "bspline"}


def built() -> inn.IntegralNetwork:
    torch.manual_seed(0)
    first, second = inn.Axis(16, **RULE), inn.Axis(24, **RULE)
    return inn.IntegralNetwork(
        nn.Sequential(
            inn.IntegralConv2d(3, first, 3, padding=1),
            nn.ReLU(),
            inn.IntegralConv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            inn.IntegralLinear(second, 5, taps=64, dataflow="materialize"),
        )
    ).eval()


MODELS = {"converted": converted, "built": built}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def gradients(model: nn.Module, out: Tensor) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(out.square().sum(), parameters))


# Threads ------------------------------------------------------------------------------------------------------------


def in_threads(count: int, run) -> None:
    failures: list[BaseException] = []

    def guarded(n: int) -> None:
        try:
            run(n)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@every_model
def test_threads_call_one_model(make, threads):
    threads(1)
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "_extra_state" not in name}
    inputs = [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(8)]
    for share in (0.25, 0.5, 0.75, 1.0):
        model.resize(share)
        with torch.no_grad():
            expected = [model(x) for x in inputs]

        def run(n: int, expected: list[Tensor] = expected) -> None:
            with torch.inference_mode() if n % 2 else torch.no_grad():
                for _ in range(125):
                    assert torch.equal(model(inputs[n]), expected[n])

        in_threads(8, run)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())


# Recomputation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_checkpointing(mode, outside, training):
    model = converted("" if outside else mode).train(training)
    plain = converted().train(training)
    for each in (model, plain):
        each.resize(0.7)
    x = IMAGE.clone().requires_grad_()
    out = checkpoint(model, x, use_reentrant=mode == "reentrant") if outside else model(x)
    out.square().sum().backward()
    plain(IMAGE).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters()):
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["reentrant", "not reentrant"])
def test_a_resize_before_the_recomputation_is_an_error(mode):
    model = converted(mode)
    out = model(IMAGE).square().sum()
    model.resize(0.5)
    with pytest.raises(RuntimeError, match="resize after the backward pass"):
        out.backward()
    model.resize(1.0)
    model(IMAGE).square().sum().backward()  # and the model is as good as before


def test_hooks_of_saved_tensors_see_the_modules_own_operations():
    model = converted()
    model.resize(0.7)
    expected = gradients(model, model(IMAGE))
    with torch.autograd.graph.save_on_cpu():
        out = model(IMAGE)
    for got, want in zip(gradients(model, out), expected):
        torch.testing.assert_close(got, want)


# Reading ------------------------------------------------------------------------------------------------------------


@every_model
def test_the_weight_is_read_like_any_other(make):
    model = make()
    model.resize(0.5)
    plain = dict(model.discretize().named_parameters())
    for path, module in model.net.named_modules():
        if isinstance(module, Sampled):
            for name in {"weight", "bias"} & set(module._rules):
                value = getattr(module, name)
                assert torch.equal(value.view_as(plain[f"{path}.{name}"]), plain[f"{path}.{name}"])
                assert value.requires_grad
                with pytest.raises(AttributeError, match=f"{name}_nodes"):
                    setattr(module, name, value.detach())
    values = model.sampled()
    assert all(torch.equal(values[name].view_as(plain[name]), plain[name]) for name in plain if name in values)


@every_model
def test_hooks_see_the_weight_of_the_call(make):
    model = make()
    model.resize(0.5)
    seen = []
    layer = model.net[2] if make is built else model.net.block[0]

    def hook(module, args, out):
        weight = module.weight
        seen.append((weight, module.weight, F.conv2d(args[0], weight, module.bias, padding=1), out))

    layer.register_forward_hook(hook)
    model(IMAGE)
    ((first, second, again, out),) = seen
    assert first is second  # one tensor for the length of the call
    assert torch.equal(again, out)


@every_model
def test_a_write_is_seen_whatever_way_it_takes(make):
    model = make()
    model.resize(0.5)
    nodes = next(iter(dict(model.named_parameters()).values()))
    with torch.no_grad():
        seen = [model(IMAGE)]
        nodes.data.mul_(1.5)  # as averages of weights are written
        seen.append(model(IMAGE))
        nodes.detach().numpy()[...] *= 1.5
        seen.append(model(IMAGE))
        optimizer = torch.optim.Adam([nodes], lr=0.1, fused=True)
        nodes.grad = torch.ones_like(nodes)
        optimizer.step()
        seen.append(model(IMAGE))
        for a, b in itertools.pairwise(seen):
            assert not torch.equal(a, b)
        assert torch.equal(seen[-1], model.discretize()(IMAGE))


def test_a_module_under_two_names_trains_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 16)
            self.inner = nn.Linear(16, 16)
            self.again = self.inner
            self.last = nn.Linear(16, 2)

        def forward(self, x):
            x = self.inner(self.first(x).relu()).relu()
            return self.last(self.again(x))

    torch.manual_seed(0)
    net, x = Twice(), torch.randn(5, 6)
    model = inn.convert(net, x, permute=False)
    assert model.net.again is model.net.inner
    got, want = gradients(model, model(x)), gradients(net, net(x))
    assert len(got) == len(want)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b, self.last = (
                nn.Linear(6, 16),
                nn.Linear(16, 12),
                nn.Linear(16, 12),
                nn.Linear(12, 2),
            )
            self.b.weight = self.a.weight

        def forward(self, x):
            x = self.first(x).relu()
            return self.last(self.a(x).relu() + self.b(x).sigmoid())

    torch.manual_seed(0)
    net, x = Tied(), torch.randn(5, 6)
    model = inn.convert(net, x, permute=False)
    assert model.net.a.weight_nodes is model.net.b.weight_nodes
    model.resize(0.5)
    plain = model.discretize()
    assert plain.a.weight is plain.b.weight
    assert len(list(plain.parameters())) == len(list(net.parameters()))
    got, want = gradients(model, model(x)), gradients(plain, plain(x))
    assert len(got) == len(want) == 7  # of eight, two are one
    twin = copy.deepcopy(model)
    assert twin.net.a.weight_nodes is twin.net.b.weight_nodes


# Other people's tools -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_parametrized_nodes(kind):
    model = built()
    layer = model.net[2]
    getattr(parametrizations, kind)(layer, "weight_nodes")
    model.resize(0.5)
    for training in (True, False):
        model.train(training)
        for _ in range(6):
            with torch.no_grad():
                for p in layer.parametrizations.weight_nodes.parameters():
                    p.add_(0.05)
                out = model.eval()(IMAGE)
                assert torch.equal(out, model(IMAGE))
                nodes = layer.weight_nodes
                plain = inn.discretize(nodes, 12, 8, scale=16.0, **RULE)
                torch.testing.assert_close(layer.weight, plain)
    model.train()(IMAGE).square().sum().backward()
    assert all(p.grad is not None for p in layer.parametrizations.weight_nodes.parameters())


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("old", [False, True])
def test_networks_with_normed_weights_are_converted(kind, old):
    torch.manual_seed(0)
    make = getattr(nn.utils, kind) if old else getattr(parametrizations, kind)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), make(nn.Linear(16, 12)), nn.ReLU(), nn.Linear(12, 2)).eval()
    x = torch.randn(5, 6)
    model = inn.convert(net, x, permute=False)
    torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-5)
    model.resize(0.5)
    assert torch.isfinite(model.train()(x)).all()
    model.eval()
    torch.testing.assert_close(model.discretize()(x), model(x))


def test_pruning_masks_apply_to_nodes():
    model = built()
    layer = model.net[2]
    prune.l1_unstructured(layer, "weight_nodes", amount=0.5)
    model.resize(0.5)
    model(IMAGE).square().sum().backward()
    assert (layer.weight_nodes_orig.grad[layer.weight_nodes_mask == 0] == 0).all()
    masked = layer.weight_nodes_orig * layer.weight_nodes_mask
    torch.testing.assert_close(layer.weight, inn.discretize(masked, 12, 8, scale=16.0, **RULE))


@every_model
def test_copies_follow_their_own_sizes(make):
    model = make()
    model.resize(0.5)
    with torch.no_grad():
        expected = model(IMAGE)
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=False)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            assert type(twin.net) is type(model.net)
            assert torch.equal(twin(IMAGE), expected)
            twin.resize(1.0)
            assert not torch.equal(twin(IMAGE), expected)
            assert torch.equal(model(IMAGE), expected)
            for p in twin.parameters():
                p.zero_()
            assert torch.equal(model(IMAGE), expected)


@every_model
def test_functional_call(make):
    model = make()
    model.resize(0.5)
    other = {name: p.detach() * 1.1 for name, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    twin.load_state_dict(other, strict=False)
    with torch.no_grad():
        for _ in range(3):
            fresh = {name: value.clone() for name, value in other.items()}
            assert torch.equal(torch.func.functional_call(model, fresh, (IMAGE,)), twin(IMAGE))


def test_averaged_models_follow():
    model = converted()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.eval()
    for share in (1.0, 0.5, 0.75):
        model.resize(share)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)
        average.update_parameters(model)
        average.module.resize(share)
        with torch.no_grad():
            assert torch.equal(average(IMAGE), average.module.discretize()(IMAGE))


def test_two_models_on_one_axis():
    width = inn.Axis(16)
    first = inn.IntegralNetwork(nn.Sequential(inn.IntegralLinear(4, width), nn.ReLU(), inn.IntegralLinear(width, 2)))
    second = inn.IntegralNetwork(nn.Sequential(inn.IntegralLinear(4, width), nn.Tanh(), inn.IntegralLinear(width, 3)))
    x = torch.randn(3, 4)
    first.resize(0.5)
    assert second.sizes == {"0": 8}
    for model in (first, second):
        assert torch.equal(model(x), model.discretize()(x))


# Statistics ---------------------------------------------------------------------------------------------------------


def test_statistics_after_a_concat_move_each_in_their_own_half():
    model = converted().train()
    before = model.net.norm.running_mean_nodes.clone(), model.net.norm.running_var_nodes.clone()
    with torch.no_grad():
        model.net.side.weight_nodes.zero_()  # the second half of what the norm sees stands still at its bias
        model.net.side.bias_nodes.copy_(before[0][16:])
    model.resize(0.5)
    model(IMAGE)
    mean = model.net.norm.running_mean_nodes
    moved = (mean - before[0]).abs()
    assert moved[:16].max() > 1e-3
    assert moved[16:].max() < 0.2 * moved[:16].max()


def test_a_norm_alone_moves_as_in_its_network():
    together, alone = converted().train(), converted().train()
    for model in (together, alone):
        model.resize(0.7)
    x = together.net.stem(IMAGE)
    seen = []
    together.net.block[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    together(IMAGE)
    alone.net.block[1](seen[0])
    del x
    for name in ("running_mean_nodes", "running_var_nodes"):
        moved = getattr(together.net.block[1], name)
        torch.testing.assert_close(getattr(alone.net.block[1], name), moved, rtol=1e-5, atol=1e-6)


def test_a_tied_buffer_is_sampled():
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 2)
            self.register_buffer("offset", torch.randn(16))

        def forward(self, x):
            return self.last((self.first(x) + self.offset).relu())

    torch.manual_seed(0)
    net, x = Position(), torch.randn(5, 6)
    model = inn.convert(net, x, permute=False).train()
    before = model.net.offset_nodes.clone()
    model.resize(0.5)
    model(x).square().sum().backward()
    assert torch.equal(model.net.offset_nodes, before) and model.net.offset.shape == (8,)
    torch.testing.assert_close(model(x), model.discretize()(x))
