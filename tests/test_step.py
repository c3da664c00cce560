"""The linear training step as one autograd node: the composed dataflow's values and gradients, to second order."""

import itertools

import pytest
import torch
import torch.utils.checkpoint

import integral_nn as inn
from inn_kernels import ops
from integral_nn import step

pytestmark = pytest.mark.skipif(ops.compiled_missing is not None, reason="the compiled kernels are not there")

CASES = list(itertools.product(("materialize", "factored"), ((3,), (2, 5), ()), (True, False)))


def tensors(batch, bias, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(*batch, 9), (12, 10)] + [(12,)] * bias
    made = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    return made if bias else [*made, None]


def layer(x, nodes, bias, dataflow):
    return inn.integral_linear(x, nodes, bias, 7, 9, scale=9.0, dataflow=dataflow)


def gradients(inputs, dataflow):
    y = layer(*inputs, dataflow)
    return [y, *torch.autograd.grad(y.sin().sum(), [t for t in inputs if t is not None])]


@pytest.mark.parametrize(("dataflow", "batch", "bias"), CASES)
def test_the_node_is_the_composed_dataflow(dataflow, batch, bias, monkeypatch):
    inputs = tensors(batch, bias)
    node = gradients(inputs, dataflow)
    made = node[0].grad_fn if len(batch) == 1 else node[0].grad_fn.next_functions[0][0]  # or of the reshape
    assert made.name().startswith("Materialized" if dataflow == "materialize" else "Factored")
    monkeypatch.setattr(step, "takes", lambda *args: False)
    for got, want in zip(node, gradients(inputs, dataflow)):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("dataflow", "batch", "bias"), CASES[:4] + CASES[6:10])
def test_first_and_second_derivatives(dataflow, batch, bias):
    inputs = tuple(t for t in tensors(batch, bias, torch.float64) if t is not None)

    def run(x, nodes, bias=None):
        return layer(x, nodes, bias, dataflow)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("dataflow", ["materialize", "factored"])
def test_only_what_is_asked_for(dataflow):
    x, nodes, bias = tensors((3,), True)
    for wanted in (x, nodes, bias):
        inputs = [t if t is wanted else t.detach() for t in (x, nodes, bias)]
        (alone,) = torch.autograd.grad(layer(*inputs, dataflow).sin().sum(), wanted)
        (whole,) = torch.autograd.grad(layer(x, nodes, bias, dataflow).sin().sum(), wanted)
        assert torch.equal(alone, whole)


@pytest.mark.parametrize("dataflow", ["materialize", "factored"])
def test_huge_pages_hold_the_same_gradient(dataflow, monkeypatch):
    inputs = tensors((3,), True)
    usual = gradients(inputs, dataflow)
    monkeypatch.setattr(step, "_FRESH", 0)
    for got, want in zip(gradients(inputs, dataflow), usual):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)
    inputs[1].grad = None
    layer(*inputs, dataflow).sum().backward()
    layer(*inputs, dataflow).sum().backward()  # a gradient is added to in place
    torch.testing.assert_close(inputs[1].grad, 2 * torch.autograd.grad(layer(*inputs, dataflow).sum(), inputs[1])[0])


def test_what_the_node_does_not_take():
    x, nodes, _ = tensors((3,), False)
    points = inn.uniform_partition(7).requires_grad_()
    for y in (
        inn.integral_linear(x, nodes, None, points, 9, dataflow="materialize"),  # trainable points
        inn.integral_linear(x, nodes, None, None, 9, dataflow="materialize"),  # a discrete dimension
        inn.integral_linear(x, nodes, None, 7, 9, dataflow="materialize", backend="reference"),
        inn.integral_linear(x.double(), nodes, None, 7, 9, dataflow="materialize"),
    ):
        assert "Materialized" not in str(y.grad_fn)


@pytest.mark.parametrize("dataflow", ["materialize", "factored"])
def test_a_graph_may_be_run_again(dataflow):
    """The first backward pass has used the sampled weight's memory for something else."""
    x, nodes, bias = tensors((3,), True)
    y = layer(x, nodes, bias, dataflow).sin().sum()
    first = torch.autograd.grad(y, (x, nodes, bias), retain_graph=True)
    second = torch.autograd.grad(y, (x, nodes, bias), retain_graph=True)
    (alone,) = torch.autograd.grad(y, x, retain_graph=True)
    doubled = torch.autograd.grad(y, (x, nodes), create_graph=True)
    for got, want in zip((*second, alone, *doubled), (*first, first[0], *first[:2])):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


def test_checkpointing_and_hooks_on_what_is_saved():
    x, nodes, bias = tensors((3,), True)
    want = torch.autograd.grad(layer(x, nodes, bias, "materialize").sin().sum(), (x, nodes, bias))
    again = torch.utils.checkpoint.checkpoint(layer, x, nodes, bias, "materialize", use_reentrant=False)
    with torch.autograd.graph.save_on_cpu():
        moved = layer(x, nodes, bias, "materialize").sin().sum()
    for y in (again.sin().sum(), moved):
        for got, true in zip(torch.autograd.grad(y, (x, nodes, bias)), want):
            torch.testing.assert_close(got, true)
