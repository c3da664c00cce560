"""The layers under pytest-benchmark: pytest bench -k "1024 and step" --benchmark-json FILE.

Providers are not timed one after the other, as the plugin would: each case is measured once, in the paired rounds of
`bench.jobs`, and the plugin is handed the rounds of every provider, through a timer that replays them. So its tables,
JSON files and comparisons hold the numbers of `python -m bench`, and each benchmark's `extra_info` the row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pytest

from bench.harness import Row
from bench.jobs import COMPILED, Bench, case_name, cpu_cases
from bench.providers import Case, layer_names

BENCH = Bench(seconds=0.5)


@functools.cache
def measured(case: Case) -> list[Row]:
    """The rows of a case, checked and measured when first asked for."""
    return BENCH.layer(case)


class Replay:
    """A timer that lets rounds pass as they did when they were measured: read before and after each."""

    def __init__(self, rounds: Sequence[float]) -> None:
        self._readings = self._run(rounds)

    def __call__(self) -> float:
        return next(self._readings)

    @staticmethod
    def _run(rounds: Sequence[float]) -> Iterator[float]:
        now = 0.0
        for seconds in rounds:
            yield now
            now += seconds
            yield now


def _parameters() -> Iterator[object]:
    for case in cpu_cases():
        for mode in ("step", "forward"):
            for provider in layer_names(case, BENCH.dataflows, case in COMPILED):
                yield pytest.param(case, mode, provider, id=f"{case_name(case)} {mode} {provider}")


@pytest.mark.parametrize(("case", "mode", "provider"), _parameters())
def test_layer(case: Case, mode: str, provider: str, request: pytest.FixtureRequest) -> None:
    """A provider's rounds in one case and mode; its errors against float64 were checked before they were timed."""
    (row,) = [row for row in measured(case) if (row.mode, row.provider) == (mode, provider)]
    rounds = BENCH.rounds[row.key]
    group = f"{case_name(case)} {mode}"
    request.node.add_marker(pytest.mark.benchmark(timer=Replay(rounds), group=group))
    benchmark = request.getfixturevalue("benchmark")
    benchmark.extra_info.update(asdict(row))
    benchmark.pedantic(lambda: None, rounds=len(rounds))
