"""Redraw README's results, docs/bench.md and the figures from bench/results: python -m bench.report [--check]."""

from __future__ import annotations

import argparse
import sys

from bench.harness import RESULTS, ROOT, HostRow, Row, read_csv
from bench.tables import host, layers, networks, targets
from bench.tables.lookup import CELLS, Table, error_of, line, measured, milliseconds, over_dense

README, PAGE = ROOT / "README.md", ROOT / "docs" / "bench.md"
BEGIN, END = "<!-- results: written by bench/report.py -->", "<!-- end of results -->"
SHOWN = (
    ("linear", "1024 nodes at 768, batch 64"),
    ("linear", "4096 nodes at 3072, batch 8"),
    ("conv2d", "128 nodes at 96 3x3 on 28x28, batch 32"),
    ("conv2d", "512 nodes at 384 3x3 on 7x7, batch 32"),
    ("network", "ResNet-18 at 75%, 64x64, batch 8"),
)
"""Rows of README's table: one small and one large layer of each kind, and a network."""


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
            errors = " / ".join(map(error_of, ways))
            lines.append(line(f"{op}, {shape}", milliseconds(dense), *map(over_dense, ways), errors))
    names = ("copy", "resize, cells", "resize", "grid_sample")
    copied, *ways = (table.get("resize", name, "forward", "ResNet-18 at 75%") for name in names)
    if copied is not None:
        times = [f"{milliseconds(row)} ({row.ms_p50 / copied.ms_p50:.2f})" if row else "" for row in ways]
        errors = " / ".join(map(error_of, ways))
        lines.append(line("all weights of a ResNet-18 at 75%, over a copy", milliseconds(copied), *times, errors))
    if table.shapes("stack", "step"):
        lines += ["", "![time against width, rows and layers](docs/figures/growth.svg)"]
    return "\n".join(lines)


def page(rows: list[Row], calls: list[HostRow]) -> str:
    """The tables of docs/bench.md: what was measured of a CPU, and what calls cost the host on a GPU."""
    table = Table(rows)
    sections = targets.section(rows) + layers.sections(table) + networks.sections(table) + host.sections(calls)
    return "\n".join([measured(rows), *sections])


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
    return replaced(text, BEGIN, page(read_csv(RESULTS / "cpu.csv"), read_csv(RESULTS / "host.csv", HostRow)))


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
