"""Which calls are of one kind, which are recorded, and when a recording goes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from noted import BF16, F16, F32, GPU, noted_kernels, taps
from torch import Tensor

from inn_kernels import gpu, ops
from inn_kernels.gpu import discretize, launch, replay
from inn_kernels.taps import Taps


def replayed(run: Callable[[], Any]) -> bool:
    """Whether the call is a replay."""
    before = replay.replays()
    run()
    return replay.replays() > before


def warm(run: Callable[[], Any]) -> None:
    for _ in range(3):
        run()
    assert replayed(run)


X, NODES = torch.randn(4, 48), torch.randn(64, 64)


def some_taps() -> Taps:
    return Taps(*taps(48, 64), 64)


def linear(own: Taps) -> Tensor:
    return ops.linear(X, NODES, None, own.start, own.weight, own.start, own.weight)


def table_pointers(own: Taps) -> list[int]:
    noted_kernels()
    linear(own)
    return list(GPU.noted(1)[0].values[3:14])


def test_every_operator_is_replayed() -> None:
    assert gpu.replays_missing is None
    assert all(replay.takes(name) for name in gpu._FILES) and not replay.takes("weight_gradient")


def test_taps_changed_in_place_have_a_new_table() -> None:
    own = some_taps()
    warm(lambda: linear(own))
    before = table_pointers(own)
    own.weight.mul_(2)
    assert not replayed(lambda: linear(own))
    warm(lambda: linear(own))
    assert table_pointers(own) != before


def test_other_taps_at_the_same_address() -> None:
    own = some_taps()
    warm(lambda: linear(own))
    other = Taps(own.start, own.weight.data, 64)  # a tensor of its own, which does not know of changes to the first
    assert other.weight._version == own.weight._version and other.weight.data_ptr() == own.weight.data_ptr()
    assert not replayed(lambda: linear(other))
    assert replayed(lambda: linear(own))


def test_plans_go_with_their_taps() -> None:
    replay.forget()
    kept = [some_taps()]
    identity = kept[0].weight._cdata
    warm(lambda: linear(kept[0]))
    assert replay.plans() == 1 and identity in replay._watched
    kept.clear()
    gc.collect()
    assert replay.plans() == 0 and identity not in replay._watched


def test_arguments_that_share_memory_are_not_recorded() -> None:
    memory = torch.randn(70)
    own = *taps(5, 8), *taps(6, 8, 1)
    nodes = memory[:64].view(8, 8)
    weight = memory[40:60].view(5, 4)

    def run() -> Tensor:
        return ops.discretize(nodes, own[0], weight, *own[2:], F32)

    for _ in range(6):
        assert not replayed(run)
    assert replay.refused["discretize"] == "arguments share memory"


def test_the_same_tensor_twice_is_recorded() -> None:
    start, weight = taps(5, 8)

    def run(*more: Tensor) -> Tensor:
        return ops.discretize(torch.empty(8, 8), start, weight, *(more or (start, weight)), F32)

    warm(run)
    for _ in range(2):  # the same sizes, but other taps: of another kind
        assert not replayed(lambda: run(start.clone(), weight.clone()))
    assert replayed(run)


def test_copies_are_not_recorded() -> None:
    nodes, own = torch.randn(8, 8).t(), (*taps(5, 8), *taps(6, 8, 1))
    for _ in range(6):
        assert not replayed(lambda: ops.discretize(nodes, *own, F32))
    assert replay.refused["discretize"] == "it runs aten.clone.default"


def test_nothing_is_recorded_while_capturing_and_tables_stay_with_python() -> None:
    own, at = (*taps(5, 8), *taps(6, 8, 1)), some_taps()
    warm(lambda: linear(at))
    GPU.set("capturing", 1)
    try:
        for _ in range(4):
            assert not replayed(lambda: ops.discretize(torch.randn(8, 8), *own, F16))
            assert not replayed(lambda: linear(at))
    finally:
        GPU.set("capturing", 0)
    assert replayed(lambda: linear(at))


def test_hooks_of_triton_are_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    own = (*taps(5, 9), *taps(6, 9, 1))
    monkeypatch.setattr(launch, "_hooked", lambda kernel: True)
    for _ in range(4):
        assert not replayed(lambda: ops.discretize(torch.randn(9, 9), *own, F32))


def test_tf32_is_another_kind() -> None:
    own, matmul = some_taps(), torch.backends.cuda.matmul
    warm(lambda: linear(own))
    function = function_of(own)
    matmul.fp32_precision = "tf32"
    try:
        assert not replayed(lambda: linear(own))
        warm(lambda: linear(own))
        assert function_of(own) != function
    finally:
        matmul.fp32_precision = "ieee"
    assert replayed(lambda: linear(own)) and function_of(own) == function


def function_of(own: Taps) -> int:
    linear(own)
    return GPU.noted(1)[0].function


def test_plans_are_bounded() -> None:
    replay.forget()
    own = taps(4, 8)
    for n in range(1, 5000):
        for _ in range(2):
            ops.interpolate(torch.empty(n, 1, 8), *own, 2, F32)
    assert 3000 < replay.plans() <= 4096
    assert replayed(lambda: ops.interpolate(torch.empty(4999, 1, 8), *own, 2, F32))
    assert not replayed(lambda: ops.interpolate(torch.empty(1, 1, 8), *own, 2, F32))


def test_threads() -> None:
    replay.forget()
    own, wrong = some_taps(), []

    def work(seed: int) -> None:
        for n in range(400):
            size = 1 + (n * 7 + seed) % 12
            x, y = torch.empty(size, 64), torch.empty(size, 48)
            if ops.interpolate(x, own.start, own.weight, 1, BF16).shape != (size, 48):
                wrong.append(size)
            if ops.linear(y, NODES, None, own.start, own.weight, own.start, own.weight).shape != (size, 48):
                wrong.append(size)
            if n % 150 == 149:
                replay.forget()

    before, counted = replay.replays(), GPU.launches
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and replay.replays() - before > 3000
    assert counted < GPU.launches  # (the driver's own count is no atomic)


def test_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    own = some_taps()
    warm(lambda: linear(own))
    GPU.set("failing", 700)
    try:
        with pytest.raises(RuntimeError, match="CUDA error 700 at a launch: an error that a test asked for"):
            linear(own)
    finally:
        GPU.set("failing", 0)
    assert replayed(lambda: linear(own))

    def broken(*arguments: Any) -> None:
        raise ValueError("nothing fits")

    monkeypatch.setattr(discretize, "sample", broken)
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"^ValueError: nothing fits$"):
            ops.discretize(torch.empty(11, 8), *taps(5, 11), *taps(6, 8, 1), F32)


def test_gradients_and_modes() -> None:
    """Arguments that require gradients change nothing; results are inference tensors where others' are."""
    own = (*taps(5, 8), *taps(6, 8, 1))
    nodes = torch.randn(8, 8)
    warm(lambda: ops.discretize(nodes, *own, F32))
    nodes.requires_grad_()
    assert replayed(lambda: ops.discretize(nodes, *own, F32))
    with torch.inference_mode():
        assert ops.discretize(nodes, *own, F32).is_inference()
    assert torch.is_grad_enabled()
    ops.discretize(torch.randn(13, 8), *taps(5, 13), *own[2:], F32)
    assert torch.is_grad_enabled()
