"""integral_conv1d/2d/3d: y = W_q * x + b, materialized and factored."""

import pytest
import torch
import torch.nn.functional as F

import common
import integral_nn as inn
from common import CASES, DATAFLOWS, DTYPES, QUADRATURES, rand

OURS = {1: inn.integral_conv1d, 2: inn.integral_conv2d, 3: inn.integral_conv3d}
PLAIN = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
WINDOW = ("stride", "padding", "dilation", "groups")


def eager(x, nodes, bias=None, out_partition=None, in_partition=None, **options):
    """The dense convolution on the dense weight, all in x's dtype."""
    window = {name: options.pop(name) for name in WINDOW if name in options}
    weight = common.eager_discretize(nodes, out_partition, in_partition, dtype=x.dtype, **options)
    if bias is not None and out_partition is not None:
        bias = common.sampling_matrix(
            out_partition, len(bias), options.get("a", -0.75), options.get("boundary", "clamp")
        ).to(x.dtype) @ bias.to(x.dtype)
    return PLAIN[nodes.dim() - 2](x, weight, bias, **window)


def operands(rank, case=CASES[0], kernel=3, size=6, dtype=torch.float64, batch=2):
    return (
        rand(batch, case.L, *[size] * rank, dtype=dtype),
        rand(case.M, case.N, *[kernel] * rank, seed=1, dtype=dtype),
        rand(case.M, seed=2, dtype=dtype),
        common.partition("random", case.K, 1),
        common.partition("clustered", case.L, 2),
    )


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[5], CASES[7], CASES[8]], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_forward(rank, case, dtype, dataflow, backend):
    x, nodes, bias, *p = operands(rank, case, kernel=2 if rank == 3 else 3, size=4, dtype=dtype)
    value = OURS[rank](x, nodes, bias, *p, padding=1, dataflow=dataflow, backend=backend)
    truth = eager(x.double(), nodes.double(), bias.double(), *p, padding=1)
    common.assert_as_accurate(value, eager(x, nodes, bias, *p, padding=1), truth)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_gradient(rank, dtype, dataflow, backend):
    x, nodes, bias, p_out, p_in = operands(rank, kernel=2, size=4, dtype=dtype)
    inputs = {"x": x, "nodes": nodes, "bias": bias, "out_partition": p_out.to(dtype), "in_partition": p_in.to(dtype)}
    inputs["quadrature"] = rand(len(p_in), seed=3, dtype=dtype)
    common.assert_gradients_as_accurate(
        lambda **inputs: OURS[rank](**inputs, padding=1, dataflow=dataflow, backend=backend),
        lambda **inputs: eager(**inputs, padding=1),
        inputs,
    )


WINDOWS = [
    {"stride": 2},
    {"padding": 2},
    {"padding": "same"},
    {"padding": "valid"},
    {"dilation": 2},
    {"stride": 2, "padding": 1, "dilation": 2},
]


@pytest.mark.parametrize("dataflow", [*DATAFLOWS, "auto"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_windows(rank, window, dataflow, backend):
    args = operands(rank)
    value = OURS[rank](*args, **window, dataflow=dataflow, backend=backend)
    torch.testing.assert_close(value, eager(*args, **window), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dataflow", [*DATAFLOWS, "auto"])
def test_windows_by_dimension(dataflow, backend):
    x, nodes, *rest = operands(2)
    window = {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}
    value = inn.integral_conv2d(x, nodes[..., :2], *rest, **window, dataflow=dataflow, backend=backend)
    torch.testing.assert_close(value, eager(x, nodes[..., :2], *rest, **window), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("boundary", common.BOUNDARIES)
@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_quadratures(quadrature, boundary, dataflow, backend):
    x, nodes, *_ = operands(2)
    p = [common.quadrature.partition_for(quadrature, n, dtype=torch.float64) for n in (11, 13)]
    options = {"quadrature": quadrature, "boundary": boundary, "a": -0.5, "scale": 2.0}
    value = inn.integral_conv2d(x, nodes, None, 11, 13, **options, dataflow=dataflow, backend=backend)
    torch.testing.assert_close(value, eager(x, nodes, None, *p, **options), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dataflow", [*DATAFLOWS, "auto"])
@pytest.mark.parametrize("out_points, in_points", [(None, None), (5, None), (None, 6)])
def test_discrete_dimensions(out_points, in_points, dataflow, backend):
    x, nodes, bias = rand(2, in_points or 8, 5, 5), rand(7, 8, 3, 3), rand(7)
    p = [None if n is None else common.partition("random", n) for n in (out_points, in_points)]
    value = inn.integral_conv2d(x, nodes, bias, *p, dataflow=dataflow, backend=backend)
    torch.testing.assert_close(value, eager(x, nodes, bias, *p), rtol=0, atol=1e-12)


# Groups -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_depthwise(rank, backend):
    """Only the output axis is continuous; each point is its own group."""
    inputs = {
        "x": rand(2, 11, *[5] * rank),
        "nodes": rand(7, 1, *[3] * rank, seed=1),
        "bias": rand(7, seed=2),
        "out_partition": common.partition("random", 11),
    }
    common.assert_gradients_as_accurate(
        lambda **inputs: OURS[rank](**inputs, groups=11, padding=1, backend=backend),
        lambda **inputs: eager(**inputs, groups=11, padding=1),
        inputs,
    )


@pytest.mark.parametrize("in_points, out_points", [(None, None), (4, 6), (None, 6), (4, None)])
def test_groups(in_points, out_points, backend):
    """in_partition holds the points of one group."""
    nodes, bias = rand(8, 5, 3, 3), rand(8)
    x = rand(2, 2 * (in_points or 5), 6, 6)
    p = [None if n is None else common.partition("random", n) for n in (out_points, in_points)]
    value = inn.integral_conv2d(x, nodes, bias, *p, groups=2, backend=backend)
    torch.testing.assert_close(value, eager(x, nodes, bias, *p, groups=2), rtol=0, atol=1e-12)


# Kernels continuous in space --------------------------------------------------------------------------------


@pytest.mark.parametrize("dataflow", ["materialize", "auto"])
def test_spatial_partitions(dataflow, backend):
    """A 3x3 kernel of nodes sampled at 5x4 offsets, integrated over them."""
    x, nodes, bias, p_out, p_in = operands(2)
    rows, columns = common.partition("uniform", 5), common.partition("uniform", 4)
    kernel = torch.einsum("ac,ijcd,bd->ijab", *(
        m for m in (common.sampling_matrix(rows, 3) * common.rules_weights("trapezoid", rows)[:, None], nodes,
                    common.sampling_matrix(columns, 3) * common.rules_weights("trapezoid", columns)[:, None])
    ))  # fmt: skip
    value = inn.integral_conv2d(
        x, nodes, bias, p_out, p_in, spatial_partitions=[rows, columns], dataflow=dataflow, backend=backend
    )
    torch.testing.assert_close(value, eager(x, kernel, bias, p_out, p_in), rtol=0, atol=1e-12)
    ints = inn.integral_conv2d(
        x, nodes, bias, p_out, p_in, spatial_partitions=[5, 4], dataflow=dataflow, backend=backend
    )
    torch.testing.assert_close(ints, value, rtol=0, atol=1e-12)


def test_spatial_partitions_have_gradients(backend):
    x, nodes, bias, p_out, p_in = operands(1, size=9)
    inputs = {"nodes": nodes, "points": common.partition("random", 5)}

    def dense(nodes, points):
        matrix = common.sampling_matrix(points, 3) * common.rules_weights("trapezoid", points)[:, None]
        return eager(x, torch.einsum("ac,ijc->ija", matrix, nodes), bias, p_out, p_in)

    common.assert_gradients_as_accurate(
        lambda nodes, points: inn.integral_conv1d(
            x, nodes, bias, p_out, p_in, spatial_partitions=[points], backend=backend
        ),
        dense,
        inputs,
    )


# Shapes and layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataflow", [*DATAFLOWS, "auto"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unbatched_and_empty(rank, dataflow, backend):
    x, *args = operands(rank)
    batched = OURS[rank](x, *args, dataflow=dataflow, backend=backend)
    single = OURS[rank](x[0], *args, dataflow=dataflow, backend=backend)
    torch.testing.assert_close(single, batched[0], rtol=0, atol=1e-11)
    nodes = args[0].requires_grad_()
    empty = OURS[rank](x[:0], nodes, *args[1:], dataflow=dataflow, backend=backend)
    assert empty.shape == (0, *batched.shape[1:])
    empty.sum().backward()
    assert bool((nodes.grad == 0).all())


@pytest.mark.parametrize("dataflow", [*DATAFLOWS, "auto"])
def test_layouts(dataflow, backend):
    x, nodes, *rest = operands(2)

    def run(x, nodes):
        return inn.integral_conv2d(x, nodes, *rest, padding=1, dataflow=dataflow, backend=backend)

    value = common.gradients(run, {"x": x, "nodes": nodes})
    for layout, z in common.layouts(x).items():
        for name, n in common.layouts(nodes).items():
            for key, got in common.gradients(run, {"x": z, "nodes": n}).items():
                torch.testing.assert_close(
                    got, value[key], rtol=0, atol=1e-11, msg=lambda m, at=(key, layout, name): f"{at}: {m}"
                )


def test_channels_last_stays(backend):
    x, nodes, *rest = (t.float() for t in operands(2))
    x, nodes = (t.contiguous(memory_format=torch.channels_last) for t in (x, nodes))
    value = inn.integral_conv2d(x, nodes, *rest, padding=1, dataflow="materialize", backend=backend)
    assert value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
