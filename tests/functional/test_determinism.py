"""The same bits on two runs, on 1 and 2 threads and for every layout; inputs and gradients are never written."""

import pytest
import torch

import common
import integral_nn as inn
from common import DATAFLOWS, implementation, rand
from inn_kernels.taps import make_taps

# Large enough that work is split between threads.
M, N, K, L = 257, 193, 301, 149


def operations(run, nodes, grad, x, y, taps, dtype):
    """Every operation once."""
    out, into = taps
    four = (out.start, out.weight, into.start, into.weight)
    return {
        "discretize": run.discretize(nodes, *four, dtype),
        "discretize_adjoint": run.discretize_adjoint(grad, *four, M, N, dtype),
        "d out_weight": run.discretize_tap_gradient(nodes, grad, *four, True, True)[0],
        "d in_weight": run.discretize_tap_gradient(nodes, grad, *four, True, True)[1],
        "interpolate": run.interpolate(x, out.start, out.weight, 1, dtype),
        "spread": run.spread(y, out.start, out.weight, M, 1, dtype),
        "interpolate_tap_gradient": run.interpolate_tap_gradient(x, y, out.start, 4, 1),
    }


def operands(rest, dtype, kind="random"):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    taps = [make_taps(common.partition(kind, n, i), m, dtype=wide) for i, (n, m) in enumerate(((K, M), (L, N)))]
    tensors = (
        rand(M, N, *rest, dtype=dtype),
        rand(K, L, *rest, seed=1, dtype=dtype),
        rand(33, M, *rest, seed=2, dtype=dtype),
        rand(33, K, *rest, seed=3, dtype=dtype),
    )
    return tensors, taps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rest", [(), (3, 3)], ids=str)
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_same_bits_on_two_runs_and_any_threads(kind, rest, dtype, threads, backend):
    tensors, taps = operands(rest, dtype, kind)
    results = []
    for count in (2, 2, 1, 3):
        threads(count)
        results.append(operations(implementation(backend), *tensors, taps, dtype))
    for again in results[1:]:
        for name, value in results[0].items():
            assert common.same_bits(value, again[name]), name


@pytest.mark.parametrize("rest", [(), (3, 3)], ids=str)
def test_same_bits_for_every_layout(rest, cpp):
    """Of nodes and gradients: contiguous, transposed, strided, at an odd offset, channels_last.

    (The reference is made of PyTorch's own sums, whose order is theirs.)
    """
    tensors, taps = operands(rest, torch.float32)
    first = operations(implementation(cpp), *tensors, taps, torch.float32)
    for layout in common.layouts(tensors[0]):
        same = [common.layouts(t)[layout] for t in tensors]
        for name, value in operations(implementation(cpp), *same, taps, torch.float32).items():
            assert common.same_bits(value, first[name]), f"{name}, {layout}"


def test_same_bits_for_expanded_operands(backend):
    run = implementation(backend)
    (_, grad, _, y), (out, into) = operands((3, 3), torch.float32)
    four = (out.start, out.weight, into.start, into.weight)
    for expanded in (
        grad[:1, :1, :1, :1].expand_as(grad),
        grad[:1].expand_as(grad),
        grad[:, :, :1, :1].expand_as(grad),
    ):
        plain = run.discretize_adjoint(expanded.contiguous(), *four, M, N, torch.float32)
        assert common.same_bits(run.discretize_adjoint(expanded, *four, M, N, torch.float32), plain)
    single = y[:1].expand_as(y)
    plain = run.spread(single.contiguous(), out.start, out.weight, M, 1, torch.float32)
    assert common.same_bits(run.spread(single, out.start, out.weight, M, 1, torch.float32), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rest", [(), (3, 3)], ids=str)
def test_operations_write_no_input(rest, dtype, backend):
    tensors, taps = operands(rest, dtype)
    inputs = [*tensors, *(t for tap in taps for t in tap[:2])]
    before = [(t.clone(), t._version) for t in inputs]
    operations(implementation(backend), *tensors, taps, dtype)
    for t, (values, version) in zip(inputs, before):
        assert common.same_bits(t, values) and t._version == version


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("convolution", [False, True])
def test_layers_write_no_input_and_no_gradient(convolution, dataflow, backend):
    rest = (3, 3) if convolution else ()
    x = rand(5, 13, *rest).requires_grad_()
    nodes, bias = rand(17, 11, *rest).requires_grad_(), rand(17).requires_grad_()
    p_out, p_in = (common.partition("random", n).requires_grad_() for n in (7, 13))
    inputs = [x, nodes, bias, p_out, p_in]
    run = inn.integral_conv2d if convolution else inn.integral_linear
    before = [t.detach().clone() for t in inputs]
    y = run(*inputs, dataflow=dataflow, backend=backend)
    grad = rand(*y.shape)
    kept = grad.clone()
    value = y.detach().clone()
    first = torch.autograd.grad(y, inputs, grad, retain_graph=True)
    second = torch.autograd.grad(y, inputs, grad)
    assert common.same_bits(grad, kept) and common.same_bits(y, value)
    for t, was, g, h in zip(inputs, before, first, second):
        assert common.same_bits(t, was) and common.same_bits(g, h) and g.data_ptr() != grad.data_ptr()


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_training_repeats_bit_for_bit(dataflow, backend):
    def train():
        torch.manual_seed(0)
        rng, axis = common.generator(5), inn.Axis(48, trainable=True)
        model = torch.nn.Sequential(
            inn.IntegralLinear(16, axis, dataflow=dataflow, backend=backend),
            torch.nn.Tanh(),
            inn.IntegralLinear(axis, 4, dataflow=dataflow, backend=backend),
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(rand(32, 16, dtype=torch.float32)).square().mean().backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()], torch.rand(1, generator=rng)

    (first, _), (second, _) = train(), train()
    assert all(common.same_bits(p, q) for p, q in zip(first, second))


def test_a_kept_weight_is_not_handed_out_to_be_written():
    """Writing into one result does not reach the next."""
    p = common.partition("random", 5)
    nodes = rand(6, 5)
    first = inn.discretize(nodes, p, 5)
    expected = first.clone()
    first.zero_()
    assert torch.equal(inn.discretize(nodes, p, 5), expected)
