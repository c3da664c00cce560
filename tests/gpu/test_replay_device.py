"""Calls replayed by C++ on a GPU: the bits of the same calls through Python, on any stream, in graphs, from threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inn_kernels import gpu, ops
from inn_kernels.gpu import launch, replay
from sampler_cases import random, taps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def plain_outputs(monkeypatch: pytest.MonkeyPatch, nan_outputs: None) -> None:
    """Outputs are not filled: a call that does more than allocate and launch is not recorded."""
    monkeypatch.setattr(launch, "allocate", torch.empty)
    assert gpu.replays_missing is None


def calls() -> dict[str, Callable[[], object]]:
    """A call of each operator."""
    torch.manual_seed(0)
    out, in_ = taps("random", 53, 64), taps("random", 70, 96, weighted=True)
    own = (*out[:2], *in_[:2])
    nodes, grad, x, dy = (random(size, F32) for size in ((64, 96), (53, 70), (24, 70), (24, 53)))
    filters, image, d_image = (random(size, F32) for size in ((64, 96, 3, 3), (2, 70, 9, 8), (2, 53, 9, 8)))
    x, image, window = x.to(BF16), image.to(BF16), ([1, 1], [1, 1], [1, 1])
    foreach = ([nodes, filters], [out.start, in_.start], [out.weight, in_.weight])
    weights = ops.discretize_foreach(*foreach, [0, 0], [1, 1], F32)
    return {
        "discretize": lambda: ops.discretize(nodes, *own, BF16),
        "discretize_adjoint": lambda: ops.discretize_adjoint(grad, *own, 64, 96, F32),
        "discretize_tap_gradient": lambda: ops.discretize_tap_gradient(nodes, grad, *own, True, True),
        "interpolate": lambda: ops.interpolate(nodes, *in_[:2], 1, F32),
        "spread": lambda: ops.spread(x, *in_[:2], 96, 1, F32),
        "linear": lambda: ops.linear(x, nodes, nodes[:, 0].contiguous(), *own),
        "linear_backward": lambda: ops.linear_backward(dy.to(BF16), x, nodes, *own, True, True, True),
        "conv": lambda: ops.conv(image, filters, None, *own, *window),
        "conv_input_gradient": lambda: ops.conv_input_gradient(d_image, filters, *own, [9, 8], *window),
        "conv_node_gradient": lambda: ops.conv_node_gradient(
            d_image.to(BF16), image, filters, *own, *window, True, True
        ),
        "foreach": lambda: ops.discretize_foreach(*foreach, [0, 0], [1, 1], BF16),
        "foreach_adjoint": lambda: ops.discretize_foreach_adjoint(weights, *foreach[1:], [64, 96], [0, 0], [1, 1], F32),
    }


NAMES = (
    "discretize", "discretize_adjoint", "discretize_tap_gradient", "interpolate", "spread", "linear", "linear_backward",
    "conv", "conv_input_gradient", "conv_node_gradient", "foreach", "foreach_adjoint",
)  # fmt: skip


def flat(values: object) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else list(values)  # type: ignore[call-overload]


def by_python(run: Callable[[], object]) -> list[Tensor]:
    replay.enable(False)
    try:
        return flat(run())
    finally:
        replay.enable(True)


def replayed(run: Callable[[], object]) -> list[Tensor]:
    for _ in range(3):
        run()
    before = replay.replays()
    values = flat(run())
    assert replay.replays() == before + 1
    return values


def same(values: list[Tensor], expected: list[Tensor]) -> None:
    torch.cuda.synchronize()
    assert len(values) == len(expected)
    for value, wanted in zip(values, expected):
        assert torch.equal(value, wanted) and value.stride() == wanted.stride() and value.device == wanted.device


@pytest.mark.parametrize("name", NAMES)
def test_bits(name: str) -> None:
    run = calls()[name]
    expected = by_python(run)
    same(replayed(run), expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        values = replayed(run)
    same(values, expected)


@pytest.mark.parametrize("name", NAMES)
def test_graphs(name: str) -> None:
    """Captured after a replay, on the stream of the capture and on another before."""
    run = calls()[name]
    expected = [x.clone() for x in replayed(run)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values = flat(run())
    replay.forget()
    for _ in range(3):
        for value in values:
            value.zero_()
        graph.replay()
        same(values, expected)


def test_threads() -> None:
    """Each on a stream of its own, some of them the first on their thread to use the device."""
    wanted = {name: by_python(run) for name, run in calls().items()}
    made, wrong = calls(), []
    torch.cuda.synchronize()

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                for name, run in made.items():
                    values = flat(run())
                    torch.cuda.current_stream().synchronize()
                    if not all(torch.equal(x, y) for x, y in zip(values, wanted[name])):
                        wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensor_chooses_the_device() -> None:
    out = taps("random", 53, 64)
    nodes = random((64, 9), F32).to("cuda:1")
    own = out.start.to("cuda:1"), out.weight.to("cuda:1")

    def run() -> Tensor:
        return ops.interpolate(nodes, *own, 0, F32)

    expected = by_python(run)
    assert torch.cuda.current_device() == 0
    same(replayed(run), expected)


def test_no_memory() -> None:
    """Python says how much could not be had."""
    x, nodes = random((2048, 8), F32), 2**30  # 8 TiB
    with pytest.raises(RuntimeError, match="out of memory"):
        ops.spread(x, *taps("random", 8, nodes)[:2], nodes, 1, F32)
