"""Launches that pass Triton's binder by: what they hand to a compiled kernel, and when they do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from inn_kernels.gpu import launch as launches
from inn_kernels.gpu.launch import Launch


class Kernel:
    """Stands for a kernel of Triton's: notes what is compiled, what is launched by Triton and what directly."""

    arg_names = ("p_x", "p_taps", "size", "ADJACENT", "LANES")

    def __init__(self, general: bool = True) -> None:
        self.params = [SimpleNamespace(do_not_specialize=name == "size" and general) for name in self.arg_names]
        self.pre_run_hooks: list[Any] = []
        self.bound: list[tuple] = []
        self.direct: list[tuple] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def ordinary(*args: Any, **options: Any) -> Any:
            self.bound.append((grid, args, options))
            return SimpleNamespace(run=lambda *args: self.direct.append(args), function=7, packed_metadata=(4, 1))

        return ordinary


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A driver of which device and stream can be chosen."""
    now = {"device": 0, "stream": 0}
    active = SimpleNamespace(
        get_current_device=lambda: now["device"], get_current_stream=lambda device: now["stream"] + 100 * device
    )
    monkeypatch.setattr(launches, "INTERPRETED", False)
    monkeypatch.setattr(launches, "_compiled", {})
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=active))
    return now


def launch(kernel: Kernel, grid: tuple[int, ...], x: object, taps: object, size: int, **options: object) -> None:
    """A launch of its own, as another shape has."""
    Launch(kernel, grid, [size], options)(x, taps)


X, TAPS = torch.zeros(64), torch.zeros(64, dtype=torch.int32)
OPTIONS = {"LANES": 128, "ADJACENT": True, "num_warps": 4}


def test_the_second_launch_is_direct(device: dict[str, int]) -> None:
    kernel, y = Kernel(), torch.ones(64)
    launch(kernel, (5,), X, TAPS, 16, **OPTIONS)
    assert len(kernel.bound) == 1 and not kernel.direct
    device["stream"] = 3
    launch(kernel, (6, 2), y, TAPS, 1, **OPTIONS)
    assert len(kernel.bound) == 1
    ((*head, p_x, p_taps, size, adjacent, lanes),) = kernel.direct
    assert head == [6, 2, 1, 3, 7, (4, 1), None, None, None]
    assert p_x is y and p_taps is TAPS and (size, adjacent, lanes) == (1, True, 128)  # in the order of the kernel


def test_one_launch_again_and_again(device: dict[str, int]) -> None:
    kernel = Kernel()
    again = Launch(kernel, (5,), [16], OPTIONS)
    for now in (0, 0, 0, 1, 1, 0):
        device["device"] = now
        again(X, TAPS)
    assert len(kernel.bound) == 2 and [args[3] for args in kernel.direct] == [0, 0, 100, 0]
    again(X[1:], TAPS)  # of another alignment
    again(X.double(), TAPS)
    again(None, TAPS)
    assert len(kernel.bound) == 5
    again(X, TAPS)
    assert len(kernel.direct) == 5


@pytest.mark.parametrize(
    "args, options",
    [
        ((X.double(), TAPS, 16), {}),
        ((X[1:], TAPS, 16), {}),  # not aligned
        ((X, None, 16), {}),
        ((X, TAPS, 2**31), {}),
        ((X, TAPS, -(2**31) - 1), {}),
        ((X, TAPS, 16), {"LANES": 64}),
        ((X, TAPS, 16), {"ADJACENT": False}),
        ((X, TAPS, 16), {"num_warps": 8}),
    ],
)
def test_another_kind_is_compiled(args: tuple, options: dict[str, Any]) -> None:
    kernel = Kernel()
    launch(kernel, (5,), X, TAPS, 16, **OPTIONS)
    launch(kernel, (5,), X, TAPS, 0, **OPTIONS)
    assert len(kernel.bound) == 1 and len(kernel.direct) == 1
    launch(kernel, (5,), *args, **{**OPTIONS, **options})
    assert len(kernel.bound) == 2
    launch(kernel, (5,), *args, **{**OPTIONS, **options})
    assert len(kernel.bound) == 2 and len(kernel.direct) == 2


def test_another_device_and_another_kernel(device: dict[str, int]) -> None:
    kernel, other = Kernel(), Kernel()
    launch(kernel, (5,), X, TAPS, 16, **OPTIONS)
    device["device"] = 1
    launch(kernel, (5,), X, TAPS, 16, **OPTIONS)
    launch(other, (5,), X, TAPS, 16, **OPTIONS)
    assert len(kernel.bound) == 2 and len(other.bound) == 1
    launch(kernel, (5,), X, TAPS, 16, **OPTIONS)
    assert kernel.direct[0][3] == 100


def test_sizes_that_triton_looks_at() -> None:
    """A kernel that is compiled anew for 1 and for multiples of 16 is left to Triton."""
    kernel = Kernel(general=False)
    for _ in range(3):
        launch(kernel, (5,), X, TAPS, 16, **OPTIONS)
    assert len(kernel.bound) == 3


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
@pytest.mark.parametrize("chain", [False, True])
def test_hooks_see_every_launch(name: str, chain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    for _ in range(2):
        launch(kernel, (5,), X, TAPS, 16, **OPTIONS)
    assert len(kernel.direct) == 1
    listener = SimpleNamespace(calls=[print]) if chain else print
    monkeypatch.setattr(triton.knobs, "runtime", SimpleNamespace(**{**HOOKS, name: listener}))
    launch(kernel, (5,), X, TAPS, 16, **OPTIONS)
    assert len(kernel.direct) == 1 and len(kernel.bound) == 2


def test_hooks_of_a_kernel() -> None:
    kernel = Kernel()
    kernel.pre_run_hooks.append(print)
    for _ in range(2):
        launch(kernel, (5,), X, TAPS, 16, **OPTIONS)
    assert len(kernel.bound) == 2


HOOKS = {
    "launch_enter_hook": SimpleNamespace(calls=[]),
    "launch_exit_hook": None,
    "add_stages_inspection_hook": None,
}
