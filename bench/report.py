"""Redraw README's results table from bench/results: python -m bench.report [--check]."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from bench.harness import README, RESULTS

BEGIN, END = "<!-- results: written by bench/report.py -->", "<!-- end of results -->"


def read(path: Path) -> list[dict[str, str]]:
    """The rows of one CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def render(rows: list[dict[str, str]]) -> str:
    """README's results section as Markdown."""
    device, version, commit = rows[0]["device"], rows[0]["torch"], rows[0]["commit"]
    lines = [
        f"Measured on {device}; PyTorch {version}, commit `{commit}`, float32, medians of paired runs.",
        "",
        "Training step (forward and backward) of one layer; in brackets, over the dense layer of the discretized size.",
        "",
        "| layer | dense | ours, `auto` | `materialize` | `factored` | through `grid_sample` | error (ours / dense) |",
        "|---|---|---|---|---|---|---|",
    ]
    steps = [row for row in rows if row["mode"] == "step"]
    for op, shape in dict.fromkeys((row["op"], row["shape"]) for row in steps):
        by = {row["provider"]: row for row in steps if (row["op"], row["shape"]) == (op, shape)}
        cells = [_time(by["dense"])]
        cells += [
            f"{_time(by[name])} ({float(by[name]['ratio_to_dense']):.2f})"
            for name in ("auto", "materialize", "factored", "grid_sample")
        ]
        errors = f"{float(by['auto']['error']):.0e} / {float(by['dense']['error']):.0e}"
        lines.append(f"| {op}, {shape} | " + " | ".join(cells) + f" | {errors} |")
    lines += [
        "",
        "The sampling alone, and its share of the bandwidth of a plain copy of the same bytes:",
        "",
        "| nodes | copy | `discretize` | its adjoint | `grid_sample` | its backward |",
        "|---|---|---|---|---|---|",
    ]
    samples = [row for row in rows if row["op"] == "discretize"]
    for shape in dict.fromkeys(row["shape"] for row in samples):
        by = {row["provider"]: row for row in samples if row["shape"] == shape}
        cells = [
            _time(by[name]) + ("" if name == "copy" else f" ({float(by[name]['bandwidth_share']):.0%})")
            for name in ("copy", "discretize", "adjoint", "grid_sample", "grid_sample backward")
        ]
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _time(row: dict[str, str]) -> str:
    ms = float(row["ms_p50"])
    return f"{ms:.3f} ms" if ms < 1 else f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"


def redrawn(readme: str, section: str) -> str:
    """README's text with its results section replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def main() -> int:
    """Rewrite README.md, or with --check only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if README differs from the CSV")
    options = parser.parse_args()
    old = README.read_text()
    new = redrawn(old, render(read(RESULTS / "cpu.csv")))
    if not options.check:
        README.write_text(new)
    return int(options.check and old != new)


if __name__ == "__main__":
    sys.exit(main())
