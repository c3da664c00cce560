"""integral_linear: y = x W_q^T + b, materialized and factored."""

import pytest
import torch
import torch.nn.functional as F

import common
import integral_nn as inn
from common import CASES, DATAFLOWS, DTYPES, QUADRATURES, rand
from inn_kernels import quadrature as rules


def eager(x, nodes, bias=None, out_partition=None, in_partition=None, **options):
    """The dense layer on the dense weight, all in x's dtype."""
    weight = common.eager_discretize(nodes, out_partition, in_partition, dtype=x.dtype, **options)
    if bias is not None and out_partition is not None:
        centred = options.get("quadrature") == "midpoint"
        s_out = common.sampling_matrix(
            out_partition, len(bias), options.get("a", -0.75), options.get("boundary", "clamp"), centred=centred
        )
        bias = s_out.to(x.dtype) @ bias.to(x.dtype)
    return F.linear(x, weight.flatten(1), bias)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case, dtype, dataflow, backend):
    for kind in common.PARTITIONS:
        p = {"out_partition": common.partition(kind, case.K, 1), "in_partition": common.partition(kind, case.L, 2)}
        args = [t.to(dtype) for t in (rand(5, case.L), rand(case.M, case.N, seed=1), rand(case.M, seed=2))]
        value = inn.integral_linear(*args, **p, dataflow=dataflow, backend=backend)
        common.assert_as_accurate(value, eager(*args, **p), eager(*(t.double() for t in args), **p), kind)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[3]._replace(L=3), CASES[6], CASES[-1]], ids=str)
def test_every_gradient(case, dtype, dataflow, backend):
    inputs = {
        "x": rand(6, case.L),
        "nodes": rand(case.M, case.N, seed=1),
        "bias": rand(case.M, seed=2),
        "out_partition": common.partition("random", case.K, 1),
        "in_partition": common.partition("clustered", case.L, 2),
        "quadrature": rand(case.L, seed=3),
    }
    common.assert_gradients_as_accurate(
        lambda **inputs: inn.integral_linear(**inputs, scale=2.0, dataflow=dataflow, backend=backend),
        lambda **inputs: eager(**inputs, scale=2.0),
        {name: value.to(dtype) for name, value in inputs.items()},
    )


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("a, boundary", [(-0.75, "clamp"), (-0.5, "keys")])
def test_quadratures(quadrature, a, boundary, dataflow, backend):
    options = {"quadrature": quadrature, "a": a, "boundary": boundary, "scale": 3.0}
    x, nodes, bias = rand(4, 9), rand(7, 6), rand(7)
    p = [rules.partition_for(quadrature, n, dtype=torch.float64) for n in (8, 9)]
    value = inn.integral_linear(x, nodes, bias, 8, 9, **options, dataflow=dataflow, backend=backend)
    torch.testing.assert_close(value, eager(x, nodes, bias, *p, **options), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dataflow", [*DATAFLOWS, "auto"])
@pytest.mark.parametrize("out_points, in_points", [(None, None), (5, None), (None, 6), (5, 6)])
def test_discrete_dimensions(out_points, in_points, dataflow, backend):
    x, nodes, bias = rand(4, in_points or 8), rand(7, 8), rand(7)
    p = [None if n is None else common.partition("random", n) for n in (out_points, in_points)]
    value = inn.integral_linear(x, nodes, bias, *p, dataflow=dataflow, backend=backend)
    torch.testing.assert_close(value, eager(x, nodes, bias, *p), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dataflow", [*DATAFLOWS, "auto"])
@pytest.mark.parametrize("in_points", [6, None])
def test_taps_after_a_flatten(in_points, dataflow, backend):
    """nodes [M_out, M_in, T] against x flattened from [B, L, T], and against a convolution that covers its input."""
    nodes, bias = rand(7, 5, 12), rand(7)
    image = rand(3, in_points or 5, 3, 4)
    p = common.partition("random", 6), None if in_points is None else common.partition("random", in_points)
    value = inn.integral_linear(image.flatten(1), nodes, bias, *p, dataflow=dataflow, backend=backend)
    torch.testing.assert_close(value, eager(image.flatten(1), nodes, bias, *p), rtol=0, atol=1e-13)
    convolved = inn.integral_conv2d(image, nodes.unflatten(2, (3, 4)), bias, *p, backend=backend)
    torch.testing.assert_close(value, convolved.flatten(1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dataflow", [*DATAFLOWS, "auto"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (2, 0, 3), (4, 1, 2)], ids=str)
def test_leading_dimensions(shape, dataflow, backend):
    nodes = rand(7, 5).requires_grad_()
    x = rand(*shape, 6).requires_grad_()
    value = inn.integral_linear(x, nodes, rand(7), 4, 6, dataflow=dataflow, backend=backend)
    p = [common.partition("uniform", n) for n in (4, 6)]
    torch.testing.assert_close(value, eager(x, nodes, rand(7), *p), rtol=0, atol=1e-13)
    value.sum().backward()
    assert x.grad.shape == x.shape and bool(nodes.grad.isfinite().all())


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize(
    "x_dtype, nodes_dtype",
    [
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_mixed_dtypes(x_dtype, nodes_dtype, dataflow, backend):
    """The result has x's dtype, each gradient its input's."""
    x, nodes, bias = rand(4, 9, dtype=x_dtype), rand(7, 6, dtype=nodes_dtype), rand(7, dtype=nodes_dtype)
    leaves = [t.requires_grad_() for t in (x, nodes, bias)]
    value = inn.integral_linear(x, nodes, bias, 8, 9, dataflow=dataflow, backend=backend)
    p = [common.partition("uniform", n) for n in (8, 9)]
    truth = eager(x.double(), nodes.double(), bias.double(), *p)
    narrow = eager(x, nodes, bias, *p)
    common.assert_as_accurate(value, narrow, truth)
    value.sum().backward()
    for leaf in leaves:
        assert leaf.grad.dtype == leaf.dtype and bool(leaf.grad.isfinite().all())


def test_auto_is_one_of_the_two_and_right(backend):
    for batch, case in ((1, CASES[-1]), (512, CASES[0]), (3, CASES[7])):
        x, nodes, bias = rand(batch, case.L), rand(case.M, case.N), rand(case.M)
        p = [common.partition("uniform", n) for n in (case.K, case.L)]
        value = inn.integral_linear(x, nodes, bias, case.K, case.L, backend=backend)
        torch.testing.assert_close(value, eager(x, nodes, bias, *p), rtol=0, atol=1e-11)


# Analytic facts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_full_size_with_doubled_ends_is_the_dense_layer(dataflow, backend):
    weight, bias, x = rand(9, 7), rand(9), rand(4, 7)
    nodes = weight.clone()
    nodes[:, 0] *= 2
    nodes[:, -1] *= 2
    value = inn.integral_linear(x, nodes, bias, 9, 7, scale=6.0, dataflow=dataflow, backend=backend)
    torch.testing.assert_close(value, F.linear(x, weight, bias), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_the_integral_itself(dataflow, backend):
    """F_W = x_out + x_in, F_I = x_in^2: the output is x_out / 3 + 1 / 4 (Simpson and Keys are exact here)."""
    grid = torch.linspace(0, 1, 6, dtype=torch.float64)
    p_out, p_in = common.partition("random", 5), common.partition("uniform", 9)
    y = inn.integral_linear(
        p_in[None] ** 2,
        grid[:, None] + grid,
        None,
        p_out,
        p_in,
        quadrature="simpson",
        a=-0.5,
        boundary="keys",
        dataflow=dataflow,
        backend=backend,
    )
    torch.testing.assert_close(y[0], p_out / 3 + 1 / 4, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_non_contiguous(dataflow, backend):
    nodes, x, bias = rand(7, 6, 4), rand(5, 8 * 4), rand(7)
    value = inn.integral_linear(x, nodes, bias, 9, 8, dataflow=dataflow, backend=backend)
    for name, n in common.layouts(nodes).items():
        for layout, z in common.layouts(x).items():
            again = inn.integral_linear(z, n, bias, 9, 8, dataflow=dataflow, backend=backend)
            torch.testing.assert_close(again, value, rtol=0, atol=1e-12, msg=lambda m, at=(name, layout): f"{at}: {m}")
    ones = torch.ones(1, dtype=torch.float64).expand(5, 32)
    torch.testing.assert_close(
        inn.integral_linear(ones, nodes, bias, 9, 8, dataflow=dataflow, backend=backend),
        inn.integral_linear(ones.contiguous(), nodes, bias, 9, 8, dataflow=dataflow, backend=backend),
        rtol=0, atol=1e-12,
    )  # fmt: skip
