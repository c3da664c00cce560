"""A GPU's clock: replays of a CUDA graph over rotated memory; and the host's time for the same call, apart.

A single call between two events on an idle GPU would measure Python. Here every call is captured into a graph, many of
them on tensors of their own, so that none finds its input in the second-level cache, and replays are timed while the
GPU has been kept busy until all is queued. A call that cannot be captured is queued behind a busy GPU as it is.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

COLD = 192 * 2**20
"""Bytes that a rotation goes through before it comes back: three times the second-level cache of an H200."""

MOST = 32
"""Most sets of tensors of a rotation."""

Call = Callable[[], object]


@dataclass
class Rotation:
    """One call on several sets of tensors, which take turns."""

    calls: Sequence[Call]

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(self.calls)

    def __call__(self) -> object:
        return next(self._turns)()


def sets_for(nbytes: int, device: str) -> int:
    """How many sets of so many bytes a rotation takes: two on a CPU, where nothing is timed."""
    return min(max(math.ceil(COLD / max(nbytes, 1)), 1), MOST) if device == "cuda" else 2


def rotated(call: partial) -> Rotation:
    """The call on copies of its large tensors, those of at least a sixteenth of the largest one's bytes."""
    tensors = [t for argument in call.args for t in (argument if isinstance(argument, list) else [argument])]
    sizes = [t.nbytes for t in tensors if isinstance(t, Tensor)]
    least = max(sizes) / 16

    def copied(argument: Any) -> Any:
        if isinstance(argument, list):
            return [copied(value) for value in argument]
        large = isinstance(argument, Tensor) and argument.nbytes >= least
        return argument.clone(memory_format=torch.preserve_format) if large else argument

    device = next(t.device.type for t in tensors if isinstance(t, Tensor))
    sets = sets_for(sum(size for size in sizes if size >= least), device)
    others = (partial(call.func, *map(copied, call.args), **call.keywords) for _ in range(1, sets))
    return Rotation([call, *others])


class Timing(NamedTuple):
    """Seconds of a call on the device, in each round, and how they were taken; the host's microseconds a call."""

    seconds: list[float]
    clock: str  # "graph", "events", or "once": nothing is measured
    host_us: float | None = None


def timing(run: Call, device: str, seconds: float, graph: bool = True) -> Timing:
    """A call's times; `seconds` are spent on the device's. With no seconds, or on a CPU, the call runs once.

    Without `graph`, calls follow each other as steps of a training do: the longer of device and host shows.
    """
    if device == "cpu" or seconds == 0.0:
        begin = time.perf_counter()
        run()
        return Timing([time.perf_counter() - begin], "once")
    calls = run.calls if isinstance(run, Rotation) else [run]
    for call in (calls[0], *calls):
        call()
    host, count = host_microseconds(run), len(calls)
    if not graph:
        return Timing(
            _rounds(lambda: [call() for call in calls for _ in range(5)], 5 * count, seconds, 0.0), "eager", host
        )
    replay = _captured(calls)
    if replay is not None:
        return Timing(_rounds(replay, count, seconds, 1e-3), "graph", host)
    queued = 1e-6 * host * count
    return Timing(_rounds(lambda: [call() for call in calls], count, seconds, 1e-3 + 1.5 * queued), "events", host)


def host_microseconds(run: Call, rounds: int = 5) -> float:
    """What a call costs the host: the least of rounds in which the GPU is behind and nobody waits for it."""
    begin = time.perf_counter()
    run()
    calls = max(1, min(20, int(2e-3 / (time.perf_counter() - begin))))  # a queue of a thousand launches is full
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        if calls > 1:
            keep_busy(20e-3)
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        found.append((time.perf_counter() - begin) / calls)
    torch.cuda.synchronize()
    return 1e6 * min(found)


def keep_busy(seconds: float) -> None:
    """Let the GPU do nothing for about so long, so that what follows is queued before it begins."""
    torch.cuda._sleep(int(seconds * 1.7e9))  # cycles


def _captured(calls: Sequence[Call]) -> Call | None:
    """Replays the calls as one graph; None where they cannot be captured."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):  # what a stream is given once, it is given now
        for call in calls:
            call()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
    except Exception as error:
        torch.cuda.set_stream(torch.cuda.default_stream())
        torch.cuda.synchronize()
        print(f"  not captured: {str(error).splitlines()[0]}", flush=True)
        return None
    return graph.replay


def _rounds(run: Call, calls: int, seconds: float, lead: float, least: int = 10, most: int = 200) -> list[float]:
    """Seconds a call in each round of `calls` of them, queued while the GPU is kept busy for `lead` seconds."""
    times: list[float] = []
    spent = 0.0
    while len(times) < least or (spent < seconds and len(times) < most):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        keep_busy(lead)
        begin.record()
        run()
        end.record()
        end.synchronize()
        spent += 1e-3 * begin.elapsed_time(end)
        times.append(1e-3 * begin.elapsed_time(end) / calls)
    return times[1:]
