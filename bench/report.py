"""Redraw README's results, docs/bench.md and the figures from bench/results: python -m bench.report [--check]."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable

from bench import torch_integral
from bench.harness import RESULTS, ROOT, Row, read_csv

README, PAGE = ROOT / "README.md", ROOT / "docs" / "bench.md"
BEGIN, END = "<!-- results: written by bench/report.py -->", "<!-- end of results -->"
CELLS = "auto, cells"
OURS = ("materialize", "factored", "fused")
SHOWN = (
    ("linear", "1024 nodes at 768, batch 64"),
    ("linear", "4096 nodes at 3072, batch 8"),
    ("conv2d", "128 nodes at 96 3x3 on 28x28, batch 32"),
    ("conv2d", "512 nodes at 384 3x3 on 7x7, batch 32"),
    ("network", "ResNet-18 at 75%, 64x64, batch 8"),
)
"""Rows of README's table: one small and one large layer of each kind, and a network."""


class Table:
    """Rows looked up by what they measure."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self._by_key = {row.key: row for row in rows}

    def get(self, op: str, provider: str, mode: str, shape: str, dtype: str = "float32") -> Row | None:
        """One row, or None if it was not measured."""
        return self._by_key.get((op, provider, mode, shape, dtype))

    def shapes(self, op: str, mode: str, dtype: str = "float32") -> list[str]:
        """Shapes of an operation, in order."""
        return list(dict.fromkeys(r.shape for r in self.rows if (r.op, r.mode, r.dtype) == (op, mode, dtype)))

    def dtypes(self) -> list[str]:
        """Dtypes there are rows of."""
        return list(dict.fromkeys(row.dtype for row in self.rows))


def measured(rows: list[Row]) -> str:
    """Where the rows come from."""
    row = rows[0]
    commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(row.commit for row in rows))
    return f"Measured on {row.device}; PyTorch {row.torch}, commit {commits}; medians of paired runs."


def milliseconds(row: Row) -> str:
    """A time in two or three digits."""
    ms = row.ms_p50
    return f"{ms:.3f} ms" if ms < 1 else f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _over_dense(row: Row | None) -> str:
    return "" if row is None else f"{milliseconds(row)} ({row.ratio_to_dense:.2f})"


def _both(style: str, ours: float | None, dense: float | None) -> str:
    return "" if ours is None or dense is None else f"{style.format(ours)} / {style.format(dense)}"


def _error(row: Row | None) -> str:
    return "" if row is None or row.error is None else f"{row.error:.0e}"


# README ----------------------------------------------------------------------------------------------------------


def render(rows: list[Row]) -> str:
    """README's results section as Markdown."""
    table = Table(rows)
    lines = [
        measured(rows),
        "",
        "A training step (forward and backward, float32); in brackets, over the dense layer or network of that size.",
        "",
        "| | dense | ours, over cells | at points | the authors', by `grid_sample` | error (cells / points / theirs) |",
        "|---|---|---|---|---|---|",
    ]
    steps = {(row.op, row.shape): None for row in rows if row.mode == "step"}
    for op, shape in [pair for pair in SHOWN if pair in steps] or steps:
        dense, *ways = (table.get(op, name, "step", shape) for name in ("dense", CELLS, "auto", "grid_sample"))
        if dense is not None:
            errors = " / ".join(map(_error, ways))
            lines.append(_line(f"{op}, {shape}", milliseconds(dense), *map(_over_dense, ways), errors))
    names = ("copy", "resize, cells", "resize", "grid_sample")
    copied, *ways = (table.get("resize", name, "forward", "ResNet-18 at 75%") for name in names)
    if copied is not None:
        times = [f"{milliseconds(row)} ({row.ms_p50 / copied.ms_p50:.2f})" if row else "" for row in ways]
        errors = " / ".join(map(_error, ways))
        lines.append(_line("all weights of a ResNet-18 at 75%, over a copy", milliseconds(copied), *times, errors))
    if table.shapes("stack", "step"):
        lines += ["", "![time against width, rows and layers](docs/figures/growth.svg)"]
    return "\n".join(lines)


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


def page(rows: list[Row]) -> str:
    """The tables of docs/bench.md."""
    table = Table(rows)
    lines = [measured(rows), "", "## Targets", "", "| | target | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {text} | {bound} | {value} | {'met' if met else '**missed**'} |"
        for text, bound, value, met in targets(rows)
    ]
    worst = [f"{row.op} {row.shape} {row.dtype} {row.mode} {ratio:.2f}" for ratio, row in reversed(choice(table)[-5:])]
    lines += [
        "",
        f"`auto` is farthest from the best dataflow in: {'; '.join(worst)}.",
        "",
        "## Limits of the machine",
        "",
    ]
    lines += ["| | dtype | size | time | rate |", "|---|---|---|---|---|"]
    for row in table.rows:
        if row.op == "machine":
            rate = (
                f"{row.flops / row.ms_p50 / 1e6:.0f} GFLOP/s"
                if row.flops
                else f"{row.bytes / row.ms_p50 / 1e6:.0f} GB/s"
            )
            lines.append(f"| {row.provider} | {row.dtype} | {row.shape} | {milliseconds(row)} | {rate} |")
    for op, title in (("linear", "Linear layers"), ("conv2d", "Convolutions")):
        for mode, text in (("step", "training step"), ("forward", "forward")):
            for dtype in table.dtypes():
                lines += _layers(table, op, mode, dtype, f"{title}: {text}, {dtype}")
    lines += _growth(table)
    lines += _sampling(table)
    return "\n".join(lines + _networks(table))


def _layers(table: Table, op: str, mode: str, dtype: str, title: str) -> list[str]:
    shapes = table.shapes(op, mode, dtype)
    if not shapes:
        return []
    ways = [name for name in (CELLS, *OURS, "two products", "grid_sample", "grid_sample, compiled", torch_integral.NAME)
            if any(table.get(op, name, mode, shape, dtype) for shape in shapes)]  # fmt: skip
    lines = [
        "",
        f"## {title}",
        "",
        "| | dense | dense, node size | `auto` | " + " | ".join(ways),
        "|---" * (6 + len(ways)),
    ]
    lines = [*lines[:-2], lines[-2] + " | roof | MiB | error (ours / dense) |", lines[-1] + "|---|"]
    for shape in shapes:
        found = {name: table.get(op, name, mode, shape, dtype) for name in ("dense", "dense, node size", "auto", *ways)}
        dense, auto = found["dense"], found["auto"]
        assert dense is not None and auto is not None
        cells = [milliseconds(dense), *(_over_dense(row) for name, row in found.items() if name != "dense")]
        cells += [_both("{:.0%}", auto.bandwidth_share, dense.bandwidth_share)]
        cells.append(_both("{:.1f}", auto.peak_mib, dense.peak_mib))
        lines.append(f"| {shape} | " + " | ".join(cells) + f" | {_error(auto)} / {_error(dense)} |")
    return lines


def _growth(table: Table) -> list[str]:
    shapes = table.shapes("stack", "step")
    lines = [
        "",
        "## Layers one after the other: training step",
        "",
        "| | dense | `auto` | grid_sample |",
        "|---|---|---|---|",
    ]
    for shape in shapes:
        dense, auto, theirs = (table.get("stack", name, "step", shape) for name in ("dense", "auto", "grid_sample"))
        assert dense is not None
        lines.append(f"| {shape} | {milliseconds(dense)} | {_over_dense(auto)} | {_over_dense(theirs)} |")
    return [*lines, "", "![time against width, rows and layers](figures/growth.svg)"] if shapes else []


def _sampling(table: Table) -> list[str]:
    lines = [
        "",
        "## The sampling alone",
        "",
        "In brackets, the share of the bandwidth of a copy of the same bytes within memory that was there before; the",
        "first copy is into fresh memory, as the samplers write, and pays for its pages too.",
        "",
        "| nodes | copy | copy in place | `discretize` | adjoint | over cells | adjoint | `grid_sample` | backward |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("copy", "copy in place", "discretize", "adjoint", "discretize, cells", "adjoint, cells", "grid_sample",
             "grid_sample backward")  # fmt: skip
    samples = [row for row in table.rows if row.op == "discretize"]
    for shape in dict.fromkeys(row.shape for row in samples):
        by = {row.provider: row for row in samples if row.shape == shape}
        cells = [f"{milliseconds(by[name])} ({by[name].bandwidth_share:.0%})" if name in by else "" for name in names]
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return lines if samples else []


def _networks(table: Table) -> list[str]:
    names = ("copy", "copy in place", "resize", "resize, new size", "resize, cells", "resize, cells, new size",
             "discretize", "grid_sample")  # fmt: skip
    lines = [
        "",
        "## A whole network",
        "",
        "Every weight of a ResNet-18 (11.7 million) at another size; in brackets, over the first copy. `resize, new",
        "size` makes partitions and quadratures never asked for before; `discretize` also builds the plain network.",
        "",
        "| | " + " | ".join(names) + " | error |",
        "|---" * (len(names) + 2) + "|",
    ]
    for shape in table.shapes("resize", "forward"):
        found = [table.get("resize", name, "forward", shape) for name in names]
        copied = found[0]
        if copied is not None:
            cells = [f"{milliseconds(row)} ({row.ms_p50 / copied.ms_p50:.2f})" if row else "" for row in found]
            lines.append(f"| {shape} | " + " | ".join(cells) + f" | {_error(found[2])} |")
    lines += [
        "",
        "Its training step, and inference of the plain network that `discretize` gives (over the full one).",
        "",
    ]
    lines += [
        "| | dense | `auto` | `auto`, cells | `grid_sample` | discretized, inference |",
        "|---|---|---|---|---|---|",
    ]
    ways = ("auto", CELLS, "grid_sample")
    for dtype in table.dtypes():
        shapes = dict.fromkeys([*table.shapes("network", "step", dtype), *table.shapes("network", "forward", dtype)])
        for shape in shapes:
            dense = table.get("network", "dense", "step", shape, dtype)
            cells = [milliseconds(dense) if dense else ""]
            cells += [_over_dense(table.get("network", name, "step", shape, dtype)) for name in ways]
            cells.append(_over_dense(table.get("network", "discretized", "forward", shape, dtype)))
            lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return lines


# Files -----------------------------------------------------------------------------------------------------------


def replaced(text: str, begin: str, section: str) -> str:
    """A text with the section after a marker replaced."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{section}\n{END}{after}"


def redrawn(readme: str) -> str:
    """README's text with its results replaced."""
    return replaced(readme, BEGIN, render(read_csv(RESULTS / "cpu.csv")))


def redrawn_page(text: str) -> str:
    """The benchmark page's text with its tables replaced."""
    return replaced(text, BEGIN, page(read_csv(RESULTS / "cpu.csv")))


def main() -> int:
    """Rewrite README.md, docs/bench.md and the figures, or with --check only say whether the texts are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if a text differs from the CSV")
    options = parser.parse_args()
    changed = False
    for path, draw in ((README, redrawn), (PAGE, redrawn_page)):
        old = path.read_text()
        new = draw(old)
        changed |= old != new
        if not options.check:
            path.write_text(new)
    if not options.check:
        from bench import figures

        figures.draw(read_csv(RESULTS / "cpu.csv"), ROOT / "docs" / "figures")
    return int(options.check and changed)


if __name__ == "__main__":
    sys.exit(main())
