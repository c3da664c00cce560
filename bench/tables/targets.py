"""What was promised of the benchmark, and whether it is met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable

from bench.harness import Row
from bench.tables.lookup import OURS, Table


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean, NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def _ratios(table: Table, op: str, over: str, of: str, wanted: Callable[[Row], bool]) -> list[float]:
    """Times of provider `of` over those of `over`, through the dense layer that both were paired with; steps only."""
    found = []
    for dtype in table.dtypes():
        for shape in table.shapes(op, "step", dtype):
            first, second = (table.get(op, name, "step", shape, dtype) for name in (over, of))
            if first is not None and second is not None and wanted(first):
                assert first.ratio_to_dense and second.ratio_to_dense
                found.append(second.ratio_to_dense / first.ratio_to_dense)
    return found


def choice(table: Table) -> list[tuple[float, Row]]:
    """How much longer `auto` takes than the best dataflow of its case, in every case and mode."""
    found = []
    for row in table.rows:
        if row.provider == "auto" and row.op in ("linear", "conv2d"):
            others = (table.get(row.op, name, row.mode, row.shape, row.dtype) for name in OURS)
            best = min(other.ratio_to_dense for other in others if other is not None and other.ratio_to_dense)
            assert row.ratio_to_dense is not None
            found.append((row.ratio_to_dense / best, row))
    return sorted(found, key=lambda pair: pair[0])


def batch_of(row: Row) -> int:
    """The batch in a row's shape."""
    return int(row.shape.rpartition("batch ")[2])


def _channels(row: Row) -> int:
    return max(int(side) for side in row.shape.partition(" ")[0].split("x"))


def targets(rows: list[Row]) -> list[tuple[str, str, str, bool]]:
    """What was promised of this bench: the target, what was measured, and whether it is met."""
    table = Table(rows)
    chosen = [ratio for ratio, _ in choice(table)]
    near = sum(ratio <= 1.05 for ratio in chosen) / len(chosen)
    found = [
        ("`auto` within 5% of the best dataflow", "in at least 90% of the cases", f"{near:.0%}", near >= 0.9),
        ("`auto` over the best dataflow, at worst", "at most 1.15", f"{chosen[-1]:.2f}", chosen[-1] <= 1.15),
    ]
    means = [
        ("step over dense, convolutions at batch 32", "conv2d", "dense", "auto", lambda r: batch_of(r) == 32, 1.15, 1),
        ("step over dense, linear layers of at most 64 rows", "linear", "dense", "auto",
         lambda r: batch_of(r) <= 64, 1.6, 1),
        ("`grid_sample` over ours, linear layers", "linear", "auto", "grid_sample", lambda r: True, 20, -1),
        ("`grid_sample` over ours, linear layers of at most 64 rows", "linear", "auto", "grid_sample",
         lambda r: batch_of(r) <= 64, 20, -1),
        ("`grid_sample` over ours, convolutions of 256 channels and up", "conv2d", "auto", "grid_sample",
         lambda r: _channels(r) >= 256, 2, -1),
    ]  # fmt: skip
    for text, op, over, of, wanted, limit, sign in means:
        mean = geometric_mean(_ratios(table, op, over, of, wanted))
        bound = f"at most {limit}" if sign > 0 else f"at least {limit}"
        found.append((text + ", geometric mean", bound, f"{mean:.2f}", sign * mean <= sign * limit))
    for name in ("resize", "resize, new size"):
        ratios = []
        for shape in table.shapes("resize", "forward"):
            copied, resized = (table.get("resize", provider, "forward", shape) for provider in ("copy", name))
            if copied is not None and resized is not None and shape.startswith("ResNet-18"):
                ratios.append(resized.ms_p50 / copied.ms_p50)
        if ratios:
            text = f"all weights of a ResNet-18 resized ({name}) over a copy of them, at worst"
            found.append((text, "at most 2", f"{max(ratios):.2f}", max(ratios) <= 2))
    return found


def section(rows: list[Row]) -> list[str]:
    """The section of the page, and where the choice of a dataflow is farthest from the best."""
    lines = ["", "## Targets", "", "| | target | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {text} | {bound} | {value} | {'met' if met else '**missed**'} |"
        for text, bound, value, met in targets(rows)
    ]
    farthest = reversed(choice(Table(rows))[-5:])
    worst = [f"{row.op} {row.shape} {row.dtype} {row.mode} {ratio:.2f}" for ratio, row in farthest]
    return [*lines, "", f"`auto` is farthest from the best dataflow in: {'; '.join(worst)}."]
