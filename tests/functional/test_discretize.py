"""discretize, its adjoint and the gradient of the tap weights."""

import pytest
import torch
import torch.nn.functional as F

import common
import integral_nn as inn
from common import BOUNDARIES, CASES, DTYPES, PARTITIONS, QUADRATURES, implementation, rand
from inn_kernels import quadrature as rules
from inn_kernels.taps import Basis, make_taps


def operands(case, kind="random", rest=(), dtype=torch.float32, wide=None):
    """nodes, grad and both taps of a case."""
    wide = wide or (torch.float64 if dtype == torch.float64 else torch.float32)
    out_start, out_weight, _ = make_taps(common.partition(kind, case.K, 1), case.M, dtype=wide)
    factor = 1 + rand(case.L, seed=5).abs()
    in_start, in_weight, _ = make_taps(
        common.partition(kind, case.L, 2), case.N, Basis(-0.5, "keys"), multiplier=factor, dtype=wide
    )
    nodes, grad = rand(case.M, case.N, *rest, seed=3, dtype=dtype), rand(case.K, case.L, *rest, seed=4, dtype=dtype)
    return nodes, grad, (out_start, out_weight, in_start, in_weight)


def dense(case, taps, dtype):
    """S_out, S_in in `dtype`."""
    return common.dense_taps(taps[0], taps[1], case.M).to(dtype), common.dense_taps(taps[2], taps[3], case.N).to(dtype)


# Operations: forward and adjoint, against the definition ----------------------------------------------------


@pytest.mark.parametrize("rest", [(), (1,), (3, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operations(case, dtype, rest, backend):
    run = implementation(backend)
    for kind in PARTITIONS:
        nodes, grad, taps = operands(case, kind, rest, dtype)
        eager_out, eager_in = dense(case, taps, dtype)
        true_out, true_in = dense(case, taps, torch.float64)

        def check(name, value, equation, *tensors):
            eager = torch.einsum(equation, *(t.to(dtype) for t in tensors))
            truth = torch.einsum(equation, *(t.double() for t in tensors))
            common.assert_as_accurate(value, eager, truth, f"{name} on a {kind} partition")  # noqa: B023

        check("discretize", run.discretize(nodes, *taps, dtype), "ki,ij...,lj->kl...", true_out, nodes, true_in)
        check(
            "discretize_adjoint",
            run.discretize_adjoint(grad, *taps, case.M, case.N, dtype),
            "ki,kl...,lj->ij...",
            true_out, grad, true_in,
        )  # fmt: skip
        d_out, d_in = run.discretize_tap_gradient(nodes, grad, *taps, True, True)
        full_out, full_in = full_tap_gradients(nodes.double(), grad.double(), true_out, true_in)
        easy_out, easy_in = full_tap_gradients(nodes, grad, eager_out, eager_in)
        for name, value, eager, truth, start in (
            ("d out_weight", d_out, easy_out, full_out, taps[0]),
            ("d in_weight", d_in, easy_in, full_in, taps[2]),
        ):
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert value.dtype == wide, f"{name} is {value.dtype}"
            common.assert_as_accurate(value.to(dtype), gather(eager, start), gather(truth, start), name)


def full_tap_gradients(nodes, grad, s_out, s_in):
    """<dW, nodes S_in^T> [K, M] and <dW, S_out nodes> [L, N]."""
    half_in, half_out = torch.einsum("ij...,lj->il...", nodes, s_in), torch.einsum("ki,ij...->kj...", s_out, nodes)
    return torch.einsum("kl...,il...->ki", grad, half_in), torch.einsum("kl...,kj...->lj", grad, half_out)


def gather(full, start):
    """[K, M] -> [K, 4] at the taps, 0 where there is no node."""
    padded = F.pad(full, (0, 4))
    return padded.gather(1, start.long()[:, None] + torch.arange(4))


@pytest.mark.parametrize("need_out, need_in", [(True, False), (False, True), (False, False)])
def test_tap_gradient_computes_what_is_asked(need_out, need_in, backend):
    case = CASES[0]
    nodes, grad, taps = operands(case, rest=(3,))
    both = implementation(backend).discretize_tap_gradient(nodes, grad, *taps, True, True)
    some = implementation(backend).discretize_tap_gradient(nodes, grad, *taps, need_out, need_in)
    for value, wanted, needed in zip(some, both, (need_out, need_in)):
        assert torch.equal(value, wanted) if needed else value.shape == (0, 4)


@pytest.mark.parametrize(
    "storage, result",
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
    ids=str,
)
def test_storage_and_result_may_differ(storage, result, backend):
    """float32 nodes are summed in float32 and rounded once."""
    case = CASES[-1]
    nodes, grad, taps = operands(case, rest=(3, 3), dtype=storage)
    s_out, s_in = dense(case, taps, torch.float64)
    run = implementation(backend)
    value, adjoint = run.discretize(nodes, *taps, result), run.discretize_adjoint(grad, *taps, case.M, case.N, result)
    true_value = torch.einsum("ki,ijhw,lj->klhw", s_out, nodes.double(), s_in)
    true_adjoint = torch.einsum("ki,klhw,lj->ijhw", s_out, grad.double(), s_in)
    common.assert_as_accurate(value, true_value.float().to(result), true_value)
    common.assert_as_accurate(adjoint, true_adjoint.float().to(result), true_adjoint)


# The function: gradients by name ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("case", [CASES[0], CASES[6], CASES[-1]], ids=str)
def test_value_and_every_gradient(case, quadrature, boundary, dtype, backend):
    in_partition = common.partition("random", case.L, 2)
    if quadrature == "gauss-legendre":
        in_partition = rules.gauss_legendre_partition(case.L, dtype=torch.float64) * 0.99 + 0.004
    inputs = {
        "nodes": rand(case.M, case.N, 3, dtype=dtype),
        "out_partition": common.partition("random", case.K, 1).to(dtype),
        "in_partition": in_partition.to(dtype),
    }
    options = {"quadrature": quadrature, "boundary": boundary, "scale": 2.5}
    common.assert_gradients_as_accurate(
        lambda **inputs: inn.discretize(**inputs, **options, backend=backend),
        lambda **inputs: common.eager_discretize(**inputs, **options, dtype=inputs["nodes"].dtype),
        inputs,
    )


def test_quadrature_tensor_and_callable(backend):
    case = CASES[0]
    nodes, p, points = rand(case.M, case.N), common.partition("random", case.K), common.partition("clustered", case.L)
    common.assert_gradients_as_accurate(
        lambda nodes, quadrature: inn.discretize(nodes, p, points, quadrature=quadrature, backend=backend),
        lambda nodes, quadrature: common.eager_discretize(nodes, p, points, quadrature=quadrature),
        {"nodes": nodes, "quadrature": rand(case.L, seed=2)},
    )
    power = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    value = inn.discretize(nodes, p, points, quadrature=lambda x: x**power, backend=backend)
    torch.testing.assert_close(
        value, common.eager_discretize(nodes, p, points, quadrature=points**power), rtol=0, atol=1e-13
    )
    value.sum().backward()
    assert power.grad != 0


@pytest.mark.parametrize("kind", ["uniform", "random"])
def test_any_subset_of_dimensions_may_be_continuous(kind, backend):
    """[M_out, M_in, kh, kw] sampled along every subset of its four dimensions."""
    nodes = rand(5, 4, 3, 3)
    p = [common.partition(kind, n, n) for n in (7, 6, 5, 2)]
    for mask in range(16):
        chosen = [x if mask >> i & 1 else None for i, x in enumerate(p)]
        value = inn.discretize(nodes, chosen[0], chosen[1], spatial_partitions=chosen[2:], scale=3.0, backend=backend)
        expected = nodes.clone()
        scale = 3.0
        for dim, points in enumerate(chosen):
            if points is None:
                continue
            matrix = common.sampling_matrix(points, nodes.shape[dim])
            if dim > 0:
                matrix, scale = matrix * (scale * rules.weights("trapezoid", points))[:, None], 1.0
            expected = torch.tensordot(matrix, expected, ([1], [dim])).movedim(0, dim)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-13, msg=lambda m, mask=mask: f"{mask:04b}: {m}")


def test_int_partitions_are_the_rules_own_points(backend):
    nodes = rand(9, 8)
    for rule in QUADRATURES:
        points = [rules.partition_for(rule, n, dtype=torch.float64) for n in (7, 6)]
        value = inn.discretize(nodes, 7, 6, quadrature=rule, backend=backend)
        torch.testing.assert_close(
            value, inn.discretize(nodes, *points, quadrature=rule, backend=backend), rtol=0, atol=1e-13
        )


def test_dtype_of_the_result(backend):
    nodes = rand(6, 5, dtype=torch.float32)
    assert inn.discretize(nodes, 4, 4, dtype=torch.bfloat16, backend=backend).dtype == torch.bfloat16
    wide = inn.discretize(nodes, 4, 4, dtype=torch.float64, backend=backend)
    truth = common.eager_discretize(
        nodes.double(), rules.uniform_partition(4, dtype=torch.float64), rules.uniform_partition(4, dtype=torch.float64)
    )
    torch.testing.assert_close(wide, truth, rtol=0, atol=1e-14)
    leaf = rand(6, 5, dtype=torch.bfloat16).requires_grad_()
    inn.discretize(leaf, 4, 4, dtype=torch.float32, backend=backend).sum().backward()
    assert leaf.grad.dtype == torch.bfloat16


# PyTorch's own operator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PARTITIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_grid_sample(case, kind, backend):
    """a = -0.75, clamp is grid_sample(mode="bicubic", align_corners=True, padding_mode="border")."""
    nodes, p_out, p_in = rand(case.M, case.N), common.partition(kind, case.K, 1), common.partition(kind, case.L, 2)
    grid = torch.stack(torch.meshgrid(p_in * 2 - 1, p_out * 2 - 1, indexing="xy"), -1)
    sampled = F.grid_sample(nodes[None, None], grid[None], mode="bicubic", align_corners=True, padding_mode="border")[
        0, 0
    ]
    value = inn.discretize(nodes, p_out, p_in, quadrature=torch.ones(case.L, dtype=torch.float64), backend=backend)
    torch.testing.assert_close(value, sampled, rtol=0, atol=1e-11)


# Analytic facts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quadrature", ["trapezoid", "midpoint", "left", "right"])
def test_full_size_returns_the_nodes(quadrature, backend):
    nodes = rand(7, 9, 3)
    p = rules.partition_for(quadrature, 9, dtype=torch.float64)
    q = rules.weights(quadrature, p)
    value = inn.discretize(nodes, 7, 9, quadrature=quadrature, backend=backend)
    torch.testing.assert_close(value, nodes * q[:, None], rtol=0, atol=1e-14)


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_integral_of_a_constant(quadrature, backend):
    for n in (2, 3, 8, 13):
        weight = inn.discretize(torch.ones(5, 6).double(), 4, n, quadrature=quadrature, backend=backend)
        torch.testing.assert_close(weight.sum(1), torch.ones(4).double(), rtol=0, atol=1e-13)


def test_linear_in_nodes_and_scale(backend):
    x, y = rand(5, 6, seed=1), rand(5, 6, seed=2)

    def sample(nodes, scale=1.0):
        return inn.discretize(nodes, 7, 4, scale=scale, backend=backend)

    torch.testing.assert_close(sample(x + 2 * y), sample(x) + 2 * sample(y), rtol=0, atol=1e-14)
    torch.testing.assert_close(sample(x, 3.0), 3 * sample(x), rtol=0, atol=1e-14)


def test_adjoint_identity(backend):
    run = implementation(backend)
    for case in CASES:
        nodes, grad, taps = operands(case, "clustered", (3,), torch.float64)
        left = (run.discretize(nodes, *taps, torch.float64) * grad).sum()
        right = (nodes * run.discretize_adjoint(grad, *taps, case.M, case.N, torch.float64)).sum()
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_nan_and_infinity_pass_through(backend):
    nodes = torch.zeros(9, 9)
    nodes[4, 4] = float("nan")
    value = inn.discretize(nodes, 9, 9, backend=backend)
    assert bool(value[4, 4].isnan()) and not bool(value[0, 0].isnan()) and not bool(value[8, 8].isnan())


# Layouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [(), (3, 3), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(rest, dtype, backend):
    run, case = implementation(backend), CASES[0]
    nodes, grad, taps = operands(case, rest=rest, dtype=dtype)
    value, adjoint = run.discretize(nodes, *taps, dtype), run.discretize_adjoint(grad, *taps, case.M, case.N, dtype)
    d_taps = run.discretize_tap_gradient(nodes, grad, *taps, True, True)
    for (name, n), g in zip(common.layouts(nodes).items(), common.layouts(grad).values()):
        assert torch.equal(run.discretize(n, *taps, dtype), value), name
        assert torch.equal(run.discretize_adjoint(g, *taps, case.M, case.N, dtype), adjoint), name
        for got, wanted in zip(run.discretize_tap_gradient(n, g, *taps, True, True), d_taps):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_expanded_gradient(backend):
    """sum().backward() hands an expanded gradient with zero strides."""
    leaf = rand(7, 5, 3, 3).requires_grad_()
    inn.discretize(leaf, 4, 6, backend=backend).sum().backward()
    expected = rand(7, 5, 3, 3).requires_grad_()
    (inn.discretize(expected, 4, 6, backend=backend) * torch.ones(4, 6, 3, 3).double()).sum().backward()
    torch.testing.assert_close(leaf.grad, expected.grad, rtol=0, atol=1e-14)
