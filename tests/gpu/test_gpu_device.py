"""What only a GPU can show: the registered operators, streams, devices, offsets past 2^31."""

from __future__ import annotations

import pytest
import torch

import integral_nn as inn
from inn_kernels import ops, reference
from inn_kernels.gpu.discretize import discretize
from inn_kernels.gpu.discretize_adjoint import discretize_adjoint
from inn_kernels.gpu.foreach import discretize_layers
from sampler_cases import check, doubled, random, taps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_operators_run_the_kernels() -> None:
    torch.manual_seed(0)
    out, in_ = taps("random", 53, 67), taps("random", 31, 71, weighted=True)
    nodes = random((67, 71), torch.float32)
    arguments = (nodes, *out[:2], *in_[:2], torch.bfloat16)
    assert torch.equal(ops.discretize(*arguments), discretize(*arguments))
    compiled = torch.compile(ops.discretize, fullgraph=True)
    assert torch.equal(compiled(*arguments), discretize(*arguments))
    wide = ops.discretize(*doubled(arguments))  # float64: plain PyTorch
    torch.testing.assert_close(wide, reference.discretize(*doubled(arguments)))


def test_streams_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    sides = [(taps("random", 400 + i, 512), taps("random", 300 + i, 512, weighted=True)) for i in range(4)]
    nodes = random((512, 512), torch.float32)
    alone = [discretize_layers([nodes], [side], torch.bfloat16)[0] for side in sides]
    torch.cuda.synchronize()
    together = []
    for _ in range(5):
        for side in sides:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                together.append(discretize_layers([nodes], [side], torch.bfloat16)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(value, alone[i % len(sides)]) for i, value in enumerate(together))


def test_captured_steps() -> None:
    """Replays at random sizes are passes of one's own: loss, gradients, running statistics."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.BatchNorm2d(64), torch.nn.ReLU(), torch.nn.Conv2d(64, 8, 3)
    )
    sizes, x = (0.5, 0.75, 1.0), torch.randn(4, 3, 16, 16, device="cuda")
    model, own = (inn.convert(plain, torch.zeros(1, 3, 16, 16), fold=False).cuda().train() for _ in range(2))
    step = inn.CapturedSteps(model, lambda x: model(x).square().mean(), (x,), sizes)
    for n in (2, 0, 1, 0, 2):
        for network in (model, own):
            network.resize(sizes[n])
        own.zero_grad()
        wanted = own(x).square().mean()
        wanted.backward()
        torch.testing.assert_close(step(x), wanted.detach())
        for mine, theirs in zip(model.parameters(), own.parameters()):
            torch.testing.assert_close(mine.grad, theirs.grad)
    for mine, theirs in zip(model.buffers(), own.buffers()):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensor_chooses_the_device() -> None:
    torch.manual_seed(0)
    out, in_ = taps("random", 53, 67), taps("random", 31, 71, weighted=True)
    nodes = random((67, 71), torch.float32)
    here = (nodes, *out[:2], *in_[:2])
    there = [t.to("cuda:1") for t in here]
    assert torch.equal(discretize(*here, torch.float32), discretize(*there, torch.float32).to(nodes.device))


def test_offsets_past_2_31() -> None:
    """A weight of 2.3e9 elements: its last rows, and the gradient of the last node rows, are right."""
    torch.manual_seed(0)
    m, n, k, wide = 60000, 16, 70000, 33000
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("needs 8 GiB of GPU memory")
    out, in_ = taps("uniform", k, m), taps("uniform", wide, n, weighted=True)
    nodes = random((m, n), torch.bfloat16)
    weight = discretize(nodes, *out[:2], *in_[:2], torch.bfloat16)
    assert weight.numel() > 2**31
    arguments = (nodes[-24:], out.start[-9:] - (m - 24), out.weight[-9:], *in_[:2], torch.bfloat16)
    check(weight[-9:], reference.discretize(*arguments), reference.discretize(*doubled(arguments)))
    value = discretize_adjoint(weight, *out[:2], *in_[:2], m, n, torch.float32)[-4:]
    first = k - 20  # every point that touches the last four nodes
    arguments = (weight[first:], out.start[first:] - (m - 24), out.weight[first:], *in_[:2], 24, n, torch.float32)
    eager, truth = reference.discretize_adjoint(*arguments), reference.discretize_adjoint(*doubled(arguments))
    check(value, eager[-4:], truth[-4:])
