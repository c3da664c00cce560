"""opcheck on every operation; torch.compile(fullgraph=True) forward and backward; recompilation; export."""

import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import common
import integral_nn as inn
from common import DATAFLOWS, QUADRATURES, rand
from inn_kernels import ops
from inn_kernels.taps import make_taps

pytestmark = pytest.mark.usefixtures("fresh_compiler")

# Operations -------------------------------------------------------------------------------------------------

M, N, K, L = 7, 5, 4, 6


def samples(dtype, layout):
    """Arguments for every operation, its large operands in a memory layout."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    out, into = (make_taps(common.partition("random", n), m, dtype=wide) for n, m in ((K, M), (L, N)))
    four = (out.start, out.weight, into.start, into.weight)

    def shaped(*shape):
        return common.layouts(rand(*shape, 3, 3, dtype=dtype))[layout]

    def flat(rows, columns):
        if layout == "transposed":
            return rand(columns, rows, dtype=dtype).T
        return rand(rows, 2 * columns, dtype=dtype)[:, ::2] if layout == "strided" else rand(rows, columns, dtype=dtype)

    nodes, grad, x, y = shaped(M, N), shaped(K, L), shaped(2, M), shaped(2, K)
    bias, image, map_ = rand(M, dtype=dtype), shaped(2, L), shaped(2, K)  # 3x3 nodes on 3x3 images with padding 1
    window = ([1, 1], [1, 1], [1, 1])
    lists, along = ([out.start, into.start], [out.weight, into.weight]), ([0, 0, -1], [1, -1, 1])
    return {
        "discretize": (nodes, *four, dtype),
        "discretize_adjoint": (grad, *four, M, N, dtype),
        "discretize_tap_gradient": (nodes, grad, *four, True, True),
        "interpolate": (x, out.start, out.weight, 1, dtype),
        "spread": (y, out.start, out.weight, M, 1, dtype),
        "interpolate_tap_gradient": (x, y, out.start, 4, 1),
        "discretize_foreach": ([nodes, bias, flat(M, N)], *lists, *along, dtype),
        "discretize_foreach_adjoint": ([grad, rand(K, dtype=dtype), flat(M, L)], *lists, [M, N], *along, dtype),
        "weight_gradient": (flat(3, K), flat(3, L)),
        "linear": (flat(3, L), flat(M, N), bias, *four),
        "linear_backward": (flat(3, K), flat(3, L), flat(M, N), *four, True, False, True),
        "conv": (image, nodes, bias, *four, *window),
        "conv_input_gradient": (map_, nodes, *four, [3, 3], *window),
        "conv_node_gradient": (map_, image, nodes, *four, *window, True, False),
        "uniform_taps": (
            torch.zeros(K, dtype=torch.int32), torch.zeros(K, 6, dtype=wide), M, -0.5, "bspline", "keys", "cells", 2.0
        ),
        "axis_table": (
            torch.zeros(8 + 4 + 64 + 64 + 4 + 6 * 64, dtype=torch.int32), out.start, out.weight.float(), M, 6
        ),
    }  # fmt: skip


def test_every_operation_has_a_sample():
    assert set(samples(torch.float32, "contiguous")) == set(ops.NAMES)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ops.NAMES)
def test_opcheck(name, dtype, layout):
    torch.library.opcheck(getattr(torch.ops.inn_kernels, name).default, samples(dtype, layout)[name])


@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)], ids=str)
def test_opcheck_of_half_a_tap_gradient(need):
    arguments = samples(torch.float32, "contiguous")["discretize_tap_gradient"][:-2]
    torch.library.opcheck(ops.discretize_tap_gradient, (*arguments, *need))


@pytest.mark.parametrize("shape", [(M, N), (M, N, 1, 1), (M, N, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("dims", ["forward", "reversed"])
def test_opcheck_of_permuted_nodes(shape, dims):
    """Dense nodes in any order of their dimensions, among them sizes of one whose strides are arbitrary."""
    nodes = rand(*shape, dtype=torch.float32)
    if dims == "reversed":
        nodes = nodes.permute(*reversed(range(len(shape)))).contiguous().permute(*reversed(range(len(shape))))
    _, *rest = samples(torch.float32, "contiguous")["discretize"]
    torch.library.opcheck(ops.discretize, (nodes, *rest))


# Functions and modules --------------------------------------------------------------------------------------


def assert_compiles(function, inputs, backend="aot_eager"):
    """Value and every gradient of the compiled function are the eager ones."""
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    eager = common.gradients(function, inputs)
    for name, value in common.gradients(compiled, inputs).items():
        torch.testing.assert_close(value, eager[name], rtol=0, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


def linear_inputs(trainable):
    inputs = {"x": rand(3, 6), "nodes": rand(7, 5), "bias": rand(7)}
    if trainable:
        inputs |= {"out_partition": common.partition("random", 4), "in_partition": common.partition("clustered", 6)}
    return inputs


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("trainable", [False, True])
def test_linear(trainable, dataflow, backend):
    sizes = {} if trainable else {"out_partition": 4, "in_partition": 6}
    assert_compiles(
        lambda **z: inn.integral_linear(**z, **sizes, dataflow=dataflow, backend=backend), linear_inputs(trainable)
    )


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_conv(dataflow, backend):
    inputs = {
        "x": rand(2, 6, 5, 5),
        "nodes": rand(7, 5, 3, 3),
        "bias": rand(7),
        "in_partition": common.partition("random", 6),
    }
    assert_compiles(
        lambda **z: inn.integral_conv2d(**z, out_partition=4, padding=1, dataflow=dataflow, backend=backend), inputs
    )


def test_depthwise_and_spatial(backend):
    inputs = {"x": rand(2, 4, 5, 5), "nodes": rand(7, 1, 3, 3), "bias": rand(7)}
    assert_compiles(
        lambda **z: inn.integral_conv2d(**z, out_partition=4, groups=4, spatial_partitions=[2, 4], backend=backend),
        inputs,
    )


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_quadratures(quadrature):
    def run(nodes, p):
        return inn.discretize(nodes, 4, 6, quadrature=quadrature).sum() + inn.discretize(
            nodes, p, p, quadrature=quadrature
        )

    assert_compiles(
        run, {"nodes": rand(7, 6), "p": common.quadrature.gauss_legendre_partition(5, dtype=torch.float64) * 0.9 + 0.04}
    )


def test_own_quadrature_and_deltas(backend):
    assert_compiles(
        lambda nodes, delta, q: inn.discretize(
            nodes, 4, inn.partition_from_deltas(delta), quadrature=q, backend=backend
        ),
        {"nodes": rand(7, 5), "delta": 1 + rand(6).abs(), "q": rand(6)},
    )


def test_integrate():
    inputs = {"c": rand(3), "p": common.partition("random", 5)}
    assert_compiles(
        lambda c, p: inn.integrate(lambda x, y: c[0] * x + c[1] * y * x + c[2], [p, 6], quadrature="simpson"), inputs
    )


def network(trainable=False, dataflow="auto"):
    torch.manual_seed(0)
    a, b = inn.Axis(12, trainable=trainable), inn.Axis(9, quadrature="midpoint", trainable=trainable)
    return nn.Sequential(
        inn.IntegralConv2d(1, a, 3, padding=1, dataflow=dataflow),
        nn.ReLU(),
        inn.IntegralConv2d(a, b, 3, stride=2, dataflow=dataflow),
        nn.Tanh(),
        nn.Flatten(),
        inn.IntegralLinear(b, 10, taps=9, dataflow=dataflow),
    ).double()


IMAGES = rand(4, 1, 7, 7)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("trainable", [False, True])
def test_modules(trainable, dataflow):
    model, other = network(trainable, dataflow), network(trainable, dataflow)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, expected = compiled(IMAGES), other(IMAGES)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    y.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_eval_modules(mode):
    """A compiled eval call sees every change, whatever eager calls left behind."""
    model = network().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with mode():
        for size in (12, 8, 12):
            model[0].out_axis.resize(size)
            torch.testing.assert_close(compiled(IMAGES), model(IMAGES), rtol=0, atol=1e-12)
    with torch.no_grad():
        model[0].weight_nodes.add_(0.5)
        torch.testing.assert_close(compiled(IMAGES), model(IMAGES), rtol=0, atol=1e-12)


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler"
)
def test_inductor():
    """channels_last images, so that the strides inductor plans for are the strides the kernels write."""
    torch.manual_seed(0)
    axis = inn.Axis(12, 8)
    model = nn.Sequential(
        inn.IntegralConv2d(3, axis, 3), nn.ReLU(), inn.IntegralConv2d(axis, 4, 3, dataflow="factored")
    )
    x = rand(2, 3, 7, 7, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    expected = common.gradients(model, {"input": x})
    found = common.gradients(torch.compile(model, fullgraph=True), {"input": x})
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_autocast():
    model = network().float()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        value, expected = compiled(IMAGES.float()), model(IMAGES.float())
    assert value.dtype == torch.bfloat16
    torch.testing.assert_close(value, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_dynamic_sizes_and_numbers(dataflow):
    """Sizes and the scale are symbols: no number is asked for."""
    counter = CompileCounterWithBackend("aot_eager")

    def run(x, nodes, k, scale):
        return inn.integral_linear(x, nodes, None, k, 6, scale=scale, dataflow=dataflow)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for batch, k, scale in ((3, 4, 2.0), (5, 7, 3.5), (2, 5, 0.25), (4, 9, -7.0)):
        x, nodes = rand(batch, 6), rand(7, 5).requires_grad_()
        got, want = (f(x, nodes, k, scale) for f in (compiled, run))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        grads = [torch.autograd.grad(y.cos().sum(), nodes)[0] for y in (got, want)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_no_number_is_refused_while_a_graph_is_traced(scale):
    compiled = torch.compile(lambda x, s: inn.discretize(x, 3, 3, scale=s), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="ValueError"):
        compiled(rand(4, 4), scale)


# Recompilation ----------------------------------------------------------------------------------------------


# The second width is the one a compiler takes for dynamic: try those that coincide with another size.
@pytest.mark.parametrize(
    "quadrature, dataflow, start",
    [
        ("trapezoid", "auto", [20, 64]),
        ("midpoint", "factored", [64, 16]),
        ("simpson", "materialize", [20, 10]),
        ("gauss-legendre", "materialize", [20, 8]),
        ("left", "factored", [20, 33]),
        ("cells", "auto", [20, 8]),
    ],
)
def test_thirty_widths_of_the_functions_compile_twice(quadrature, dataflow, start):
    counter = CompileCounterWithBackend("aot_eager")
    first, second = (torch.nn.Parameter(rand(*shape, dtype=torch.float32)) for shape in ((64, 16), (8, 64)))

    @torch.compile(fullgraph=True, backend=counter)
    def loss(x, k):
        options = {"quadrature": quadrature, "dataflow": dataflow}
        hidden = inn.integral_linear(x, first, None, k, None, **options).relu()
        return inn.integral_linear(hidden, second, None, None, k, **options).square().mean()

    x = rand(10, 16, dtype=torch.float32)
    drawn = torch.randint(4, 65, (28,), generator=common.generator()).tolist()
    for k in start + drawn:
        loss(x, k).backward()
    assert counter.frame_count <= 2


@pytest.mark.parametrize("kind, seed", [("linear", 0), ("conv", 0), ("depthwise", 1)])
def test_thirty_random_sizes_of_modules_compile_twice(kind, seed):
    torch.manual_seed(0)
    counter, rng = CompileCounterWithBackend("aot_eager"), common.generator(seed)
    a, b = inn.Axis(64, size_range=(4, 64)), inn.Axis(48, size_range=(4, 48), quadrature="midpoint")
    if kind == "linear":
        model, x = (
            nn.Sequential(
                inn.IntegralLinear(16, a), nn.ReLU(), inn.IntegralLinear(a, b), nn.ReLU(), inn.IntegralLinear(b, 3)
            ),
            rand(10, 16),
        )
    else:
        middle = [inn.IntegralConv2d(a, a, 3, groups=64, padding=1)] if kind == "depthwise" else []
        model = nn.Sequential(
            inn.IntegralConv2d(1, a, 3),
            *middle,
            nn.ReLU(),
            inn.IntegralConv2d(a, b, 3),
            nn.ReLU(),
            nn.Flatten(),
            inn.IntegralLinear(b, 3, taps=4),
        )
        x = rand(5, 1, 6, 6)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(30):
        a.resample(rng), b.resample(rng)
        optimizer.zero_grad()
        compiled(x.float()).square().mean().backward()
        optimizer.step()
    assert counter.frame_count <= 2


# torch.jit.trace --------------------------------------------------------------------------------------------

TRACED = {
    "discretize": lambda x, nodes: inn.discretize(nodes, 4, 6, quadrature="simpson") + x.sum(),
    **{f: lambda x, nodes, f=f: inn.integral_linear(x, nodes, None, 4, 6, dataflow=f) for f in (*DATAFLOWS, "auto")},
    "conv": lambda x, nodes: inn.integral_conv1d(x[..., None], nodes[..., None], None, 4, 6),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("name", TRACED)
def test_jit_trace(name, grad_mode, tmp_path):
    """Int partitions: the graph serves other batches, other values and other numbers of nodes, and has gradients."""
    run = TRACED[name]
    with grad_mode():
        traced = torch.jit.trace(run, (rand(2, 6), rand(8, 8)))
    traced.save(str(tmp_path / "traced.pt"))
    traced = torch.jit.load(str(tmp_path / "traced.pt"))
    for batch, m in ((2, 8), (7, 8), (3, 9), (1, 5)):
        inputs = {"x": rand(batch, 6, seed=1), "nodes": rand(m, m, seed=2)}
        got, want = (common.gradients(lambda f=f, **z: f(*z.values()), inputs) for f in (traced, run))
        for key, value in got.items():
            torch.testing.assert_close(value, want[key], rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_jit_trace_of_modules_and_points():
    model = network().eval()
    traced = torch.jit.trace(model, IMAGES)
    other = rand(2, 1, 7, 7, seed=3)
    torch.testing.assert_close(traced(other), model(other), rtol=0, atol=1e-12)
    nodes, p, q = rand(8, 8), common.partition("random", 5), common.partition("clustered", 5)
    inn.discretize(nodes, None, p)  # whose taps are kept
    traced = torch.jit.trace(lambda nodes, p: inn.discretize(nodes, None, p), (nodes, p))
    torch.testing.assert_close(traced(nodes, q), inn.discretize(nodes, None, q), rtol=0, atol=1e-12)


# Export -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_export(dataflow, trainable):
    model = network(trainable, dataflow).eval()
    model[0].out_axis.resize(8)
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    for images in (IMAGES, rand(9, 1, 7, 7)):
        torch.testing.assert_close(program.module()(images), model(images), rtol=0, atol=1e-12)


def test_export_can_be_saved(tmp_path):
    model = network().eval()
    torch.export.save(torch.export.export(model, (IMAGES,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(IMAGES), model(IMAGES), rtol=0, atol=1e-12)
