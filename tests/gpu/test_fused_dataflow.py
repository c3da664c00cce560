"""The dataflow `fused` through operators and autograd, against `materialize`: values, first and second gradients."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch

import integral_nn as inn
from fused_cases import dense, windows
from inn_kernels import dispatch, gpu, ops, reference
from inn_kernels.gpu.launch import INTERPRETED
from inn_kernels.taps import taps_for
from integral_nn.functional import fused
from integral_nn.functional.linear import linear

DEVICE = "cpu" if INTERPRETED else "cuda"
FUSED = ("linear", "linear_backward", "conv", "conv_input_gradient", "conv_node_gradient")


@pytest.fixture(autouse=True)
def kernels_behind_the_operators():
    """In the interpreter, the Triton launchers stand in for the CPU implementation of the fused operators."""
    if not INTERPRETED:
        yield
        return
    library = torch.library.Library("inn_kernels", "IMPL")
    for name in FUSED:
        library.impl(name, gpu._implementation(name), "CPU")
    yield
    library._destroy()


LAYERS = {
    "linear": ((5, 11), (17, 15), lambda *a: fused.linear(*a), inn.integral_linear, {}),
    "linear, leading dimensions": ((2, 3, 11), (17, 15), lambda *a: fused.linear(*a), inn.integral_linear, {}),
    "conv1d": (
        (2, 11, 9),
        (17, 15, 3),
        lambda *a: fused.conv(*a, ([2], [1], [1])),
        inn.integral_conv1d,
        {"stride": 2, "padding": 1},
    ),
    "conv2d, unbatched": (
        (11, 6, 5),
        (17, 15, 3, 2),
        lambda *a: fused.conv(*a, ([2, 1], [1, 0], [1, 2])),
        inn.integral_conv2d,
        {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    ),
}


def arguments(x_shape, node_shape):
    torch.manual_seed(0)
    shapes = (x_shape, node_shape, node_shape[:1])
    return [torch.randn(shape, device=DEVICE).requires_grad_() for shape in shapes]


def taps():
    out_taps = taps_for(13, 17, device=DEVICE)
    return out_taps, taps_for(11, 15, weighted=True, device=DEVICE)


def close(got, wanted):
    return (got - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients(name):
    x_shape, node_shape, ours, plain, window = LAYERS[name]
    inputs = arguments(x_shape, node_shape)
    y = ours(*inputs, *taps())
    wanted = plain(*inputs, 13, 11, dataflow="materialize", **window)
    assert y.shape == wanted.shape and close(y, wanted)
    grad = torch.randn_like(wanted)
    for got, true in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(wanted, inputs, grad)):
        assert close(got, true)


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_and_partitions(name):
    x_shape, node_shape, ours, plain, window = LAYERS[name]
    inputs = arguments(x_shape, node_shape)
    weights = [along.weight.clone().requires_grad_() for along in taps()]
    y = ours(*inputs, *(along._replace(weight=weight) for along, weight in zip(taps(), weights)))
    first = torch.autograd.grad(y.square().sum(), [*inputs, *weights], create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first[:3]), inputs)
    wanted = plain(*inputs, 13, 11, dataflow="materialize", **window)
    true = torch.autograd.grad(wanted.square().sum(), inputs, create_graph=True)
    for got, want in zip(first, true):
        assert close(got, want)
    for got, want in zip(second, torch.autograd.grad(sum(g.square().sum() for g in true), inputs)):
        assert (got - want).norm() <= 1e-5 * want.norm()
    assert [g.shape for g in first[3:]] == [w.shape for w in weights]
    # y is linear in each side's tap weights: Euler's identity ties their gradients to the value.
    for gradient, weight in zip(first[3:], weights):
        linear = _without_bias(y, inputs, gradient, name, weights)
        assert torch.allclose((gradient * weight).sum(), 2 * linear, rtol=1e-4)


def test_windows_of_more_taps():
    inputs = arguments((5, 11), (17, 15))
    along = windows("random", 13, 17, 8), windows("even", 11, 15, 6)
    x, nodes, bias = (t.detach().double().requires_grad_() for t in inputs)
    out, in_ = map(dense, along)
    wanted = ((x @ in_) @ nodes.T + bias) @ out.T
    y = fused.linear(*inputs, *along)
    assert close(y, wanted)
    grad = torch.randn_like(y)
    exact = torch.autograd.grad(wanted, (x, nodes, bias), grad.double())
    for got, true in zip(torch.autograd.grad(y, inputs, grad), exact):
        assert close(got, true)


def _without_bias(y, inputs, gradient, name, weights):
    """<y, the part of y linear in one side's weights>: all of it for the output's, all but the bias for x's."""
    if gradient.shape == weights[0].shape:
        return y.square().sum()
    x, nodes, bias = inputs
    ours = LAYERS[name][2]
    part = ours(x, nodes, torch.zeros_like(bias), *(t._replace(weight=w) for t, w in zip(taps(), weights)))
    return (y * part).sum()


@pytest.mark.skipif(INTERPRETED, reason="the public functions take the fused kernels on a GPU only")
def test_public_function_and_auto():
    x, nodes, bias = arguments((5, 11), (17, 15))
    wanted = inn.integral_linear(x, nodes, bias, 13, 11, dataflow="materialize")
    for dataflow in ("fused", "auto"):
        assert close(inn.integral_linear(x, nodes, bias, 13, 11, dataflow=dataflow), wanted)


def test_a_layer_without_fused_kernels_says_why():
    with pytest.raises(RuntimeError, match="dataflow 'fused' cannot run this layer"):
        inn.integral_linear(torch.randn(3, 4), torch.randn(5, 6), None, 5, 4, dataflow="fused", backend="reference")
    assert set(FUSED) <= set(ops.NAMES)


def test_a_layer_whose_windows_are_too_wide_says_so_and_takes_another_dataflow(monkeypatch):
    monkeypatch.setattr(gpu, "refusal", lambda *_: None)
    asked = []

    def choose(*_, fusable):
        asked.append(fusable)
        raise InterruptedError

    monkeypatch.setattr(dispatch, "choose_dataflow", choose)
    x, nodes, bias = (t.detach() for t in arguments((5, 11), (17, 15)))
    points, widest, wider = (windows("even", 11, 15, taps) for taps in (4, gpu.FUSED_TAPS, gpu.FUSED_TAPS + 1))
    out = windows("even", 13, 17, 12)
    for taps, told in (((out, points), 12), ((windows("even", 13, 17, 6), wider), 9)):
        with pytest.raises(RuntimeError, match=f"do not take points that see more than 8 nodes, got {told}"):
            linear(x, nodes, bias, taps, "fused", "triton")
    for taps in ((out, points), (points, wider), (points, widest)):
        with pytest.raises(InterruptedError):
            linear(x, nodes, bias, taps, "auto", "triton")
    assert asked == [False, False, True]


@pytest.mark.parametrize("side", ["out_weight", "in_weight"])
@pytest.mark.parametrize("name", FUSED)
def test_operators_leave_wider_windows_to_the_reference(monkeypatch, name, side):
    called = []
    plain = getattr(reference, name)

    @functools.wraps(plain)
    def noted(*arguments):
        called.append("reference")

    monkeypatch.setattr(reference, name, noted)
    monkeypatch.setattr(gpu, "launcher", lambda name: lambda *arguments: called.append("kernel"))
    for taps, by in ((gpu.FUSED_TAPS, "kernel"), (gpu.FUSED_TAPS + 1, "reference")):
        given = {"out_weight": torch.ones(3, 4), "in_weight": torch.ones(3, 4), side: torch.ones(3, taps)}
        gpu._implementation(name)(*(given.get(each) for each in inspect.signature(plain).parameters))
        assert called.pop() == by and not called
