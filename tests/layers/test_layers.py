"""IntegralLinear, IntegralConv1d/2d/3d: the functions as modules that share axes."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import common
import integral_nn as inn
from common import DATAFLOWS, rand

CONVS = {1: inn.IntegralConv1d, 2: inn.IntegralConv2d, 3: inn.IntegralConv3d}
SAME = {"rtol": 0, "atol": 2e-6}
KEYS = {"quadrature": "trapezoid", "kernel": "cubic", "boundary": "keys", "a": -0.5}
POINTS = {"quadrature": "midpoint", "kernel": "cubic"}
CELLS = {"quadrature": "cells", "kernel": "bspline"}


def net(quadrature="cells", trainable=False, **options):
    """A small CNN over two axes: image channels and classes are discrete, one layer is depthwise."""
    torch.manual_seed(0)
    a = inn.Axis(12, quadrature=quadrature, trainable=trainable, multiple_of=2)
    b = inn.Axis(9, quadrature=quadrature, trainable=trainable)
    return nn.Sequential(
        inn.IntegralConv2d(1, a, 3, padding=1, **options),
        nn.ReLU(),
        inn.IntegralConv2d(a, a, 3, groups=12, padding=1),
        inn.IntegralConv2d(a, b, 3, stride=2, **options),
        nn.ReLU(),
        nn.Flatten(),
        inn.IntegralLinear(b, 10, taps=9, **options),
    )


def axes(model):
    return [m for m in model.modules() if isinstance(m, inn.Axis)]


IMAGES = rand(4, 1, 7, 7, dtype=torch.float32)


@pytest.mark.parametrize("rule, scale", [(KEYS, 6.0), (POINTS, 7.0), (CELLS, 7.0)])
@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_linear_is_the_function(dataflow, backend, rule, scale):
    in_axis, out_axis = inn.Axis(7, 5, **rule), inn.Axis(6, 9, **rule)
    layer = inn.IntegralLinear(in_axis, out_axis, dataflow=dataflow, backend=backend, dtype=torch.float64)
    x = rand(3, 5)
    expected = inn.integral_linear(x, layer.weight_nodes, layer.bias_nodes, 9, 5, scale=scale, backend=backend, **rule)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rule", [POINTS, CELLS])
@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("rank", CONVS)
def test_conv_is_the_function(rank, dataflow, backend, rule):
    function = {1: inn.integral_conv1d, 2: inn.integral_conv2d, 3: inn.integral_conv3d}[rank]
    in_axis, out_axis = inn.Axis(7, 5, **rule), inn.Axis(6, 9, **rule)
    window = {"stride": 2, "padding": 1, "dilation": 1}
    layer = CONVS[rank](in_axis, out_axis, 3, **window, dataflow=dataflow, backend=backend, dtype=torch.float64)
    x = rand(2, 5, *[6] * rank)
    nodes, bias = layer.weight_nodes, layer.bias_nodes
    expected = function(x, nodes, bias, 9, 5, scale=7.0, **rule, **window, backend=backend)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_parameters_look_like_the_layers_they_stand_for():
    torch.manual_seed(3)
    ours = inn.IntegralConv2d(inn.Axis(8, kernel="conservative"), inn.Axis(6, kernel="conservative"), (3, 2))
    torch.manual_seed(3)
    plain = nn.Conv2d(8, 6, (3, 2))
    assert ours.weight_nodes.shape == plain.weight.shape and ours.bias_nodes.shape == plain.bias.shape
    assert [name for name, _ in ours.named_parameters()] == ["weight_nodes", "bias_nodes"]
    assert torch.equal(ours.weight_nodes, plain.weight) and torch.equal(ours.bias_nodes, plain.bias)
    assert inn.IntegralLinear(4, 5, bias=False).bias is None
    assert inn.IntegralLinear(4, 5, dtype=torch.bfloat16).weight_nodes.dtype == torch.bfloat16
    assert inn.IntegralLinear(inn.Axis(4), 5, device="meta").weight_nodes.device.type == "meta"


@pytest.mark.parametrize("rule", [KEYS, POINTS, CELLS, {"quadrature": "cells", "kernel": "linear"}], ids=str)
def test_weights_vary_at_full_size_as_those_they_stand_for(rule):
    """Whatever neighbouring nodes share of a weight."""
    torch.manual_seed(3)
    first, second = inn.Axis(96, **rule), inn.Axis(80, **rule)
    for ours, plain in (
        (inn.IntegralConv2d(first, second, 3), nn.Conv2d(96, 80, 3)),
        (inn.IntegralLinear(second, 10), nn.Linear(80, 10)),
        (inn.IntegralLinear(5, first), nn.Linear(5, 96)),
    ):
        limit = 1 / (3 * ours.weight[0].numel()) ** 0.5  # of uniform weights within 1 / sqrt(inputs)
        assert float(plain.weight.detach().std()) == pytest.approx(limit, rel=0.1)
        assert float(ours.weight.detach().std()) == pytest.approx(limit, rel=0.1)
        assert float(ours.bias.detach().std()) == pytest.approx(limit, rel=0.3)


def test_layers_are_made_where_tensors_have_no_values():
    for made in (torch.device("meta"), FakeTensorMode()):
        for rule in (KEYS, CELLS):
            inn.IntegralLinear(inn.Axis(6, **rule), 3)(torch.ones(1, 6))  # whose taps are kept, and have values
            with made:
                axis = inn.Axis(6, **rule)
                layer = inn.IntegralLinear(axis, axis)
                assert layer.weight_nodes.shape == (6, 6) and layer(torch.ones(2, 6)).shape == (2, 6)
            assert not isinstance(inn.Axis(6, **rule).taps(weighted=True).weight, FakeTensor)


def test_full_size_is_the_dense_layer():
    def layer(quadrature, kernel):
        axes = (inn.Axis(n, quadrature=quadrature, kernel=kernel) for n in (8, 5))
        return inn.IntegralLinear(*axes, dtype=torch.float64)

    x = rand(3, 8)
    for rule in (("midpoint", "cubic"), ("cells", "conservative")):
        made = layer(*rule)
        torch.testing.assert_close(made(x), F.linear(x, made.weight_nodes, made.bias_nodes), rtol=0, atol=1e-13)
    made = layer("trapezoid", "cubic")
    weight = made.weight_nodes.detach().clone()
    weight[:, [0, -1]] /= 2  # the ends weigh half
    torch.testing.assert_close(made(x), F.linear(x, weight, made.bias_nodes), rtol=0, atol=1e-13)


# Sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quadrature", ["cells", "trapezoid", "midpoint", "simpson"])
def test_layers_resize_together(quadrature):
    model = net(quadrature)
    for share in (0.5, 0.75, 1.0, 2.0):
        sizes = [axis.resize(share) for axis in axes(model)]
        assert model[0](IMAGES).shape[1] == sizes[0] == model[2].groups
        assert model(IMAGES).shape == (4, 10)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_step_at_random_sizes(trainable):
    model, rng = net(trainable=trainable), common.generator(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(4):
        for axis in axes(model):
            axis.resample(rng, optimizer)
        optimizer.zero_grad()
        loss = model(IMAGES).square().mean()
        loss.backward()
        assert all(
            p.grad is not None and p.grad.shape == p.shape and bool(p.grad.isfinite().all()) for p in model.parameters()
        )
        optimizer.step()


# Copies and checkpoints -------------------------------------------------------------------------------------


def copied(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)]


@pytest.mark.parametrize("trainable", [False, True])
def test_copies(trainable):
    model = net(trainable=trainable).eval()
    axes(model)[0].resize(8)
    with torch.no_grad():
        expected = model(IMAGES)  # leaves a kept weight behind
    for other in copied(model):
        assert [axis.size for axis in axes(other)] == [axis.size for axis in axes(model)] == [8, 9]
        assert torch.equal(other(IMAGES), expected)
        assert other[0].out_axis is other[3].in_axis and other[0].out_axis is not model[0].out_axis
        axes(other)[0].resize(6)
        assert other(IMAGES).shape == (4, 10) and axes(model)[0].size == 8


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict(trainable, assign):
    model, other = net(trainable=trainable), net(trainable=trainable)
    axes(model)[0].resize(8)
    for p in other.parameters():
        p.data.mul_(0.5)
    if not trainable:
        axes(other)[0].resize(8)
    other.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
    assert axes(other)[0].size == 8
    torch.testing.assert_close(other(IMAGES), model(IMAGES), **SAME)
    assert other[0].out_axis is other[3].in_axis
    other(IMAGES).sum().backward()
    if trainable:
        assert other[0].out_axis.delta is other[3].in_axis.delta
        assert other[0].out_axis.delta.grad is not None


def test_state_dict_is_that_of_plain_tensors():
    assert all(type(value) is torch.Tensor for value in net(trainable=True).state_dict().values())
    stream = io.BytesIO()
    torch.save(net().state_dict(), stream)
    stream.seek(0)
    net().load_state_dict(torch.load(stream, weights_only=True))


# Ordinary layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("quadrature", ["cells", "trapezoid", "midpoint"])
def test_discretize_equals_the_layer(quadrature, share):
    model = net(quadrature)
    for axis in axes(model):
        axis.resize(share)
    x = IMAGES
    for layer in model:
        y = layer(x)
        if hasattr(layer, "discretize"):
            plain = layer.discretize()
            assert type(plain) in (nn.Conv2d, nn.Linear)
            torch.testing.assert_close(plain(x), y, **SAME)
            assert plain.weight.requires_grad and plain.weight.grad_fn is None
        x = y


@pytest.mark.parametrize("rank", CONVS)
def test_discretize_keeps_the_window(rank):
    layer = CONVS[rank](inn.Axis(6, 4), inn.Axis(5, 7), 3, stride=2, padding=1, dilation=2, bias=False).eval()
    plain, x = layer.discretize(), rand(2, 4, *[9] * rank, dtype=torch.float32)
    assert plain.bias is None and not plain.training
    torch.testing.assert_close(plain(x), layer(x), **SAME)


# Changes are seen ------------------------------------------------------------------------------------------


def rewrite(p):
    with torch.no_grad():
        p.mul_(torch.linspace(0.5, 2.0, p.numel()).view(p.shape))


def shifted(layer):
    state = layer.state_dict()
    return {k: v if k.endswith("_extra_state") else v + 1 for k, v in state.items()}


CHANGES = {
    "nodes in place": lambda layer: rewrite(layer.weight_nodes),
    "bias in place": lambda layer: rewrite(layer.bias_nodes),
    "resize": lambda layer: layer.out_axis.resize(4),
    "delta in place": lambda layer: rewrite(layer.out_axis.delta),
    "load_state_dict": lambda layer: layer.load_state_dict(shifted(layer)),
    "load_state_dict(assign=True)": lambda layer: layer.load_state_dict(shifted(layer), assign=True),
    "a new parameter": lambda layer: setattr(layer, "weight_nodes", nn.Parameter(layer.weight_nodes.detach() + 1)),
    "scale": lambda layer: setattr(layer, "scale", 0.5),
    "double": lambda layer: layer.double(),
    "another axis": lambda layer: setattr(layer, "out_axis", inn.Axis(7, 3)),
    "another quadrature": lambda layer: setattr(layer.in_axis, "quadrature", "simpson"),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, mode):
    layer = inn.IntegralLinear(inn.Axis(8, 6), inn.Axis(7, trainable=True)).eval()
    x = rand(3, 6, dtype=torch.float32)
    with mode():
        before = layer(x)
        assert torch.equal(layer(x), before)
    CHANGES[change](layer)
    x = x.to(layer.weight_nodes.dtype)
    with mode():
        after = layer(x)
    assert after.shape != before.shape or after.dtype != before.dtype or not torch.equal(after, before)
    torch.testing.assert_close(after, layer(x), **SAME)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam], ids=lambda o: o.__name__)
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_an_optimizer_step_is_seen(optimizer, options):
    axis = inn.Axis(8, 6)
    layer, x = inn.IntegralLinear(axis, 5).eval(), rand(3, 6, dtype=torch.float32)
    with torch.no_grad():
        before = layer(x)
    step = optimizer(layer.parameters(), 0.1, **options)
    layer(x).square().sum().backward()
    step.step()
    with torch.no_grad():
        after = layer(x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, layer(x), **SAME)


def test_a_write_that_escapes_version_counters_is_seen():
    layer = inn.IntegralLinear(inn.Axis(8), 5).eval()
    with torch.no_grad():
        layer(rand(3, 8, dtype=torch.float32))
        layer.weight_nodes.data.zero_()
        assert bool((layer(rand(3, 8, dtype=torch.float32)) == layer.bias).all())


# Dtypes and layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_autocast(dataflow, backend):
    """bfloat16 products on float32 nodes: bfloat16 out, float32 gradients, as accurate as the dense layers."""
    layer = inn.IntegralConv2d(inn.Axis(12, 9), inn.Axis(11, 7), 3, dataflow=dataflow, backend=backend)
    x = rand(2, 9, 6, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        plain = layer.discretize()(x)
    assert y.dtype == torch.bfloat16
    common.assert_as_accurate(y, plain, layer.double()(x.double()))
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert layer.weight_nodes.grad.dtype == torch.float32 and layer.bias_nodes.grad.dtype == torch.float32


def test_autocast_leaves_float64_alone_and_eval_keeps_one_weight_a_dtype():
    layer, x = inn.IntegralLinear(inn.Axis(8), 5).eval(), rand(3, 8, dtype=torch.float32)
    with torch.no_grad():
        wide = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16 and layer(x.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(layer(x), wide)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_modules_in_other_dtypes(dtype):
    model = net().to(dtype)
    axes(model)[0].resize(8)
    y = model(IMAGES.to(dtype))
    y.sum().backward()
    assert y.dtype == dtype and all(p.grad.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_channels_last(training):
    model = net().train(training)
    axes(model)[0].resize(8)
    expected = model(IMAGES)
    model = model.to(memory_format=torch.channels_last)
    x = IMAGES.contiguous(memory_format=torch.channels_last)
    y = model(x)
    torch.testing.assert_close(y, expected, **SAME)
    y.sum().backward()
    for p in model.parameters():
        assert p.grad.shape == p.shape and bool(p.grad.isfinite().all())


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_empty_and_unbatched(dataflow):
    linear = inn.IntegralLinear(inn.Axis(8, 6), inn.Axis(5), dataflow=dataflow)
    for shape in ((0, 6), (6,), (2, 0, 6)):
        linear(torch.zeros(shape)).sum().backward()
    assert linear(torch.zeros(6)).shape == (5,) and linear(torch.zeros(0, 6)).shape == (0, 5)
    conv = inn.IntegralConv2d(inn.Axis(8, 6), inn.Axis(5), 3, dataflow=dataflow)
    assert conv(torch.zeros(6, 7, 7)).shape == (5, 5, 5) and conv(torch.zeros(0, 6, 7, 7)).shape == (0, 5, 5, 5)


@pytest.mark.parametrize("rule", [KEYS, CELLS])
def test_depthwise_follows_its_axis(rule):
    axis = inn.Axis(8, **rule)
    layer = inn.IntegralConv2d(axis, axis, 3, groups=8, padding=1, dtype=torch.float64)
    assert layer.weight_nodes.shape == (8, 1, 3, 3) and layer.depthwise
    for size in (5, 8, 13):
        axis.resize(size)
        x = rand(2, size, 6, 6)
        weight, bias = (inn.discretize(nodes, size, **rule) for nodes in (layer.weight_nodes, layer.bias_nodes))
        expected = F.conv2d(x, weight, bias, padding=1, groups=size)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)


def test_backward_twice_through_a_layer():
    layer = inn.IntegralLinear(inn.Axis(8, 6), inn.Axis(5, 4), dtype=torch.float64)
    x = rand(3, 6).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    dx.pow(2).sum().backward()
    assert layer.weight_nodes.grad is not None and float(layer.weight_nodes.grad.abs().max()) > 0


def test_repr_names_sizes_of_nodes():
    text = repr(net())
    assert "in=12/12" in text and "taps=9" in text and "stride=2" in text
    assert "bias=False" in repr(inn.IntegralConv1d(3, 4, 3, bias=False))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    model, other = net(), net()
    x = IMAGES.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    other(IMAGES).square().sum().backward()
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-5)


def test_parametrizations():
    layer = inn.IntegralLinear(inn.Axis(8, 6), 5)
    x = rand(3, 6, dtype=torch.float32)
    expected = layer(x)
    nn.utils.parametrizations.weight_norm(layer, "weight_nodes")
    torch.testing.assert_close(layer(x), expected, **SAME)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("trainable", [False, True])
def test_shapes_on_the_meta_device(trainable):
    """Deferred initialisation: made without memory, asked for shapes, then filled."""
    model = net(trainable=trainable).to("meta")
    assert model(IMAGES.to("meta")).shape == (4, 10)
    model = model.to_empty(device="cpu")
    model.load_state_dict(net(trainable=trainable).state_dict())
    torch.testing.assert_close(model(IMAGES), net(trainable=trainable)(IMAGES), **SAME)
