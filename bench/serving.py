"""Requests a second of networks of random widths: `Snapshots` beside plain networks that are kept ready.

Threads of a server ask for a width each time and call the network. Both ways take turns, a round each; what is
compared is the processor's time of a round, so that other programs on the machine matter little. Every answer is
compared to the bit with that of one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

import integral_nn as inn
from bench import networks

THREADS, REQUESTS, ROUNDS = 8, 500, 10  # requests of each thread
WIDTHS = 24
ROOMS = (1.0, 0.75, 0.5)
"""Memory for snapshots, over what networks of all widths take."""

Ask = Callable[[float], nn.Module]


def serve(width: int = 16, image: int = 32, requests: int = REQUESTS, rounds: int = ROUNDS) -> list[dict[str, object]]:
    """A row for each amount of memory: requests a second of both ways, their ratio, and the bytes that were kept."""
    torch.manual_seed(0)
    model = networks.converted(networks.ResNet18(width), image).eval()
    shares = torch.linspace(0.25, 1, WIDTHS).tolist()
    ready = {share: model.at(share) for share in shares}
    every = inn.Snapshots(model, 1 << 40)
    for share in shares:
        every.at(share)
    pictures = [torch.rand(1, 3, image, image) for _ in range(THREADS)]
    with torch.inference_mode():
        expected = {share: [ready[share](picture) for picture in pictures] for share in shares}
    rows = []
    for room in ROOMS:
        snapshots = inn.Snapshots(model, int(room * every.bytes))
        ways: dict[str, Ask] = {"ready": ready.__getitem__, "snapshots": snapshots.at}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        wall: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(-1, rounds):  # the first fills the cache
            for name, ask in ways.items():
                cpu, clock, most = _round(ask, shares, pictures, expected, requests // rounds, number, snapshots)
                if most > snapshots.max_bytes:
                    raise RuntimeError(f"snapshots keep {most} bytes, more than {snapshots.max_bytes}")
                if number >= 0:
                    seconds[name].append(cpu)
                    wall[name].append(clock)
        served = THREADS * (requests // rounds)
        rows.append(
            {
                "room": room,
                "max_bytes": snapshots.max_bytes,
                "bytes": snapshots.bytes,
                "ready_bytes": sum(_bytes(net) for net in ready.values()),
                "requests": served * rounds,
                **{name: served / statistics.median(times) for name, times in seconds.items()},
                "ratio": statistics.median(r / s for r, s in zip(seconds["ready"], seconds["snapshots"])),
                "ratio of the clock": statistics.median(r / s for r, s in zip(wall["ready"], wall["snapshots"])),
            }
        )
    return rows


def _bytes(net: nn.Module) -> int:
    return sum(t.nbytes for t in [*net.parameters(), *net.buffers()])


def _round(
    ask: Ask,
    shares: list[float],
    pictures: list[Tensor],
    expected: dict[float, list[Tensor]],
    requests: int,
    number: int,
    snapshots: inn.Snapshots,
) -> tuple[float, float, int]:
    """Requests of all threads: the process's seconds, those of the clock, and most bytes that were seen."""

    def answer(thread: int) -> int:
        draw = torch.Generator().manual_seed(1000 * number + thread)
        most = 0
        with torch.inference_mode():
            for n in torch.randint(len(shares), (requests,), generator=draw).tolist():
                y = ask(shares[n])(pictures[thread])
                most = max(most, snapshots.bytes)
                if not torch.equal(y, expected[shares[n]][thread]):
                    raise RuntimeError(f"an answer at {shares[n]:.0%} differs from that of one thread")
        return most

    with ThreadPoolExecutor(THREADS) as pool:
        cpu, clock = time.process_time(), time.perf_counter()
        most = max(pool.map(answer, range(THREADS)))
        return time.process_time() - cpu, time.perf_counter() - clock, most
