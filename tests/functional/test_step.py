"""The linear training step as one autograd node: the composed dataflow's values and gradients, to second order."""

import concurrent.futures
import itertools
import subprocess
import sys
import threading

import pytest
import torch
import torch.utils.checkpoint

import common
import integral_nn as inn
from common import rand
from inn_kernels import ops
from integral_nn.functional import linear
from integral_nn.functional import linear_step as step

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
    linear._ways.clear()
    for got, want in zip(node, gradients(inputs, dataflow)):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(3,), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_step_as_on_a_gpu(batch, bias, dtype, monkeypatch):
    """Narrow activations over float32 nodes. The kernels are the CPU's: only the node is tried."""
    monkeypatch.setattr("inn_kernels.dispatch.select_backend", lambda *args: "triton")
    inputs = tensors(batch, bias)
    found = {}
    for node in (True, False):
        if not node:
            monkeypatch.setattr(step, "takes", lambda *args: False)
            linear._ways.clear()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found[node] = gradients(inputs, "materialize")
    made = found[True][0].grad_fn
    assert "Materialized" in (made if len(batch) == 1 else made.next_functions[0][0]).name()
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    for got, want in zip(found[True], found[False]):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * float(want.detach().abs().max()))


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


@pytest.mark.parametrize("dtype", common.DTYPES, ids=str)
def test_weight_gradient_is_the_product(dtype):
    for batch, rows, columns in ((3, 5, 7), (1, 1, 1), (2, 0, 3), (0, 2, 3), (8, 1024, 1100)):
        grad, x = (rand(batch, n, dtype=dtype) for n in (rows, columns))
        assert common.same_bits(ops.weight_gradient(grad, x), grad.t() @ x)
        wide = grad.t().contiguous().t()
        assert common.same_bits(ops.weight_gradient(wide, x), wide.t() @ x)


def test_weight_gradient_refuses():
    x = rand(3, 4)
    for grad, said in ((x.float(), "one dtype"), (x[0], "shapes"), (x[:2], "shapes"), (x.int(), "grad must be")):
        with pytest.raises(RuntimeError, match=said):
            ops.weight_gradient(grad, x)
    huge = torch.zeros(1, 1).expand(1, 2**24)
    with pytest.raises(RuntimeError):  # more memory than a machine can address
        ops.weight_gradient(huge, huge)


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
    y, grads = layer(*inputs, dataflow), torch.randn(4, 3, 7)

    def pull(grad, **options):
        return torch.autograd.grad(y, inputs, grad, retain_graph=True, **options)

    want = [torch.stack(each) for each in zip(*map(pull, grads))]
    for found in (pull(grads, is_grads_batched=True), torch.func.vmap(pull)(grads)):
        for got, true in zip(found, want):
            torch.testing.assert_close(got, true, rtol=2e-6, atol=2e-6)


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
    x, nodes, bias = tensors((3,), True)
    y = layer(x, nodes, bias, dataflow).sin().sum()
    first = torch.autograd.grad(y, (x, nodes, bias), retain_graph=True)
    second = torch.autograd.grad(y, (x, nodes, bias), retain_graph=True)
    (alone,) = torch.autograd.grad(y, x, retain_graph=True)
    doubled = torch.autograd.grad(y, (x, nodes), create_graph=True)
    for got, want in zip((*second, alone, *doubled), (*first, first[0], *first[:2])):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dataflow", ["materialize", "factored"])
def test_two_threads_may_run_one_graph(dataflow, threads):
    """Two heads on one trunk, a thread each, again and again: the gradients of one thread, bit for bit."""
    threads(1)
    x, nodes, bias = (torch.randn(shape).requires_grad_() for shape in ((64, 192), (256, 256), (256,)))

    def heads():
        trunk = inn.integral_linear(x, nodes, bias, 192, 192, dataflow=dataflow)
        return trunk.sin().sum(), trunk.square().sum()

    def pull(head):
        return torch.autograd.grad(head, (x, nodes, bias), retain_graph=True)

    def wait_and_pull(head):
        together.wait()
        return [pull(head) for _ in range(3)]

    want = [pull(head) for head in heads()]
    together = threading.Barrier(2)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(50):
            for results, true in zip(pool.map(wait_and_pull, heads()), want):
                for found in results:
                    assert all(common.same_bits(*pair) for pair in zip(found, true))


@pytest.mark.parametrize("dataflow", ["materialize", "factored"])
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_what_is_saved_is_never_written(dataflow):
    """Saved tensors in read-only memory, equal ones in the same: every pass leaves them as they were."""
    x, nodes, bias = tensors((3,), True)
    y = layer(x, nodes, bias, dataflow).sin().sum() + layer(x + 1, nodes, bias, dataflow).cos().sum()
    want = torch.autograd.grad(y, (x, nodes, bias))
    kept = {}

    def pack(tensor):
        array = tensor.detach().numpy().copy()
        array.flags.writeable = False
        key = (array.dtype.str, array.shape, array.tobytes())
        kept.setdefault(key, array)
        return key

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda key: torch.from_numpy(kept[key])):
        y = layer(x, nodes, bias, dataflow).sin().sum() + layer(x + 1, nodes, bias, dataflow).cos().sum()
    for _ in range(2):
        found = torch.autograd.grad(y, (x, nodes, bias), retain_graph=True)
        assert all(common.same_bits(*pair) for pair in zip(found, want))
        assert all(array.tobytes() == values for (_, _, values), array in kept.items())


def test_a_saved_tensor_may_lie_in_memory_that_cannot_be_written():
    """The operating system ends a process that writes to such pages."""
    code = """
import ctypes, mmap, torch, integral_nn as inn
kept = []
def protect(tensor):
    memory = mmap.mmap(-1, max(tensor.nbytes, 1))
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape).copy_(tensor.detach())
    pages = ctypes.c_void_p(copy.data_ptr()), ctypes.c_size_t(mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(*pages, mmap.PROT_READ) == 0
    kept.append(copy)
    return copy
x, nodes = torch.randn(3, 9, requires_grad=True), torch.randn(12, 12, requires_grad=True)
for dataflow in ("materialize", "factored"):
    with torch.autograd.graph.saved_tensors_hooks(protect, lambda tensor: tensor):
        y = inn.integral_linear(x, nodes, None, 7, 9, dataflow=dataflow)
    y.sum().backward()
print("done", len(kept) > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done True\n", (done.returncode, done.stderr)


def test_checkpointing_and_hooks_on_what_is_saved():
    x, nodes, bias = tensors((3,), True)
    want = torch.autograd.grad(layer(x, nodes, bias, "materialize").sin().sum(), (x, nodes, bias))
    again = torch.utils.checkpoint.checkpoint(layer, x, nodes, bias, "materialize", use_reentrant=False)
    with torch.autograd.graph.save_on_cpu():
        moved = layer(x, nodes, bias, "materialize").sin().sum()
    for y in (again.sin().sum(), moved):
        for got, true in zip(torch.autograd.grad(y, (x, nodes, bias)), want):
            torch.testing.assert_close(got, true)
