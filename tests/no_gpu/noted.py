"""Launches as the driver that does nothing notes them, and taps to launch on.

For processes in which CPU tensors stand for a GPU's: tests/test_replay.py runs each file of cases in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.no_gpu import NoGpu
from inn_kernels.gpu import launch, replay
from inn_kernels.taps import make_taps

GPU = NoGpu()

from inn_kernels.gpu import axis_table, split_sum  # noqa: E402 (they take what it replaces)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


class Launched(NamedTuple):
    """A launch: pointers as (whose, offset in bytes)."""

    function: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    parameters: list[object]


def flat(values: Any) -> list[Tensor]:
    """Every tensor of arguments or results."""
    if isinstance(values, Tensor):
        return [values]
    return [x for value in values for x in flat(value)] if isinstance(values, (list, tuple)) else []


def whose(pointer: int, arguments: list[Tensor], results: list[Tensor]) -> object:
    """What a pointer points to. Memory that only a call itself sees may be anywhere, but aligned."""
    for name, tensors in (("argument", arguments), ("result", results)):
        for n, x in enumerate(tensors):
            begin = x.untyped_storage().data_ptr()
            if x.numel() and begin <= pointer < begin + x.untyped_storage().nbytes():
                return (name if name == "argument" else "results", pointer - begin, n if name == "argument" else 0)
    return pointer if pointer in KEPT else ("scratch", pointer % 16)


KEPT: set[int] = {0}


def noted_kernels() -> dict[int, list[str]]:
    """Types of the parameters of every kernel compiled so far, all of which are noted."""
    signatures = {}
    for found in launch._compiled.values():
        kinds = [kind for kind in found.kernel.src.signature.values() if kind != "constexpr"]
        signatures[found.function] = [*kinds, "*global scratch", "*profile scratch"]
        GPU.note(found.function, len(kinds) + 2)
    return signatures


def launches(run: Callable[[], Any], arguments: Any) -> tuple[Any, list[Launched]]:
    """The call's results and what it launched."""
    signatures = noted_kernels()
    before = GPU.launches
    results = run()
    found = []
    for note in GPU.noted(GPU.launches - before):
        kinds = signatures[note.function]
        parameters: list[object] = []
        for kind, value in zip(kinds, note.values):
            if kind[0] == "*":
                parameters.append(whose(value, flat(arguments), flat(results)))
            else:
                parameters.append(value & 0xFFFFFFFF if kind == "i32" else value)
        found.append(Launched(note.function, tuple(note.grid), tuple(note.block), note.shared, parameters))
    return results, found


def form(results: Any) -> list[tuple]:
    """Everything about results but their values."""
    return [(x.dtype, x.shape, x.stride(), x.storage_offset(), x.requires_grad) for x in flat(results)]


def compare(operator: Callable, *arguments: Any) -> None:
    """A replay of the call against the call by Python."""

    def run() -> Any:
        return operator(*arguments)

    replay.enable(False)
    run()  # compiles
    KEPT.update(x.data_ptr() for x in kept_tensors())
    expected, by_python = launches(run, arguments)
    replay.enable(True)
    run()
    run()  # recorded
    before = replay.replays()
    results, by_replay = launches(run, arguments)
    assert replay.replays() == before + 1
    assert by_replay == by_python and by_python
    assert form(results) == form(expected) and type(results) is type(expected)


def kept_tensors() -> Iterator[Tensor]:
    """Tables of taps and workspaces."""
    for tables in axis_table._tables.values():
        for table in tables.values():
            yield from table
    for space in split_sum._workspaces.values():
        yield from space


def taps(points: int, nodes: int, seed: int = 0, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Start and weight of random points."""
    torch.manual_seed(seed)
    if count is None:
        made = make_taps(torch.rand(points).sort().values, nodes, dtype=F32)
        return made.start, made.weight
    start = torch.randint(0, nodes - count + 1, (points,)).sort().values.int()
    return start, torch.rand(points, count)


def off(x: Tensor) -> Tensor:
    """The same values four bytes (or two) past a multiple of 16."""
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)
