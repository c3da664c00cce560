"""Redraw README's results table from bench/results: python -m bench.report [--check]."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from bench.harness import README, RESULTS

NETWORKS = "<!-- networks: written by bench/report.py -->"
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
        "The sampling alone; in brackets, its share of the bandwidth of two copies of the same bytes: one into fresh",
        "memory, as the samplers write (a copy pays for the pages too), and one into memory that was there before.",
        "",
        "| nodes | copy | copy in place | `discretize` | its adjoint | `grid_sample` | its backward |",
        "|---|---|---|---|---|---|---|",
    ]
    samples = [row for row in rows if row["op"] == "discretize"]
    for shape in dict.fromkeys(row["shape"] for row in samples):
        by = {row["provider"]: row for row in samples if row["shape"] == shape}
        cells = [_time(by["copy"]), _time(by["copy in place"])]
        in_place = float(by["copy in place"]["bandwidth_share"])
        for name in ("discretize", "adjoint", "grid_sample", "grid_sample backward"):
            share = float(by[name]["bandwidth_share"])
            cells.append(f"{_time(by[name])} ({share:.0%}, {share / in_place:.0%})")
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_networks(crepe: dict[str, float], digits: dict[str, float]) -> str:
    """README's section on whole networks as Markdown."""
    lines = [
        "CREPE tiny (pitch, pre-trained), channels removed without fine-tuning: raw pitch accuracy in % (full net "
        f"{crepe['full']:.1f}).",
        "",
        "| method | 30% removed | 50% removed |",
        "|---|---|---|",
    ]
    for method in ("L1", "uniform", "tuned", "tuned, biases and norms too"):
        lines.append(f"| {method} | {crepe[f'{method} at 30%']:.1f} | {crepe[f'{method} at 50%']:.1f} |")
    shares = ("0.00", "0.30", "0.50", "0.75")
    lines += [
        "",
        "A small VGG on handwritten digits: test accuracy in % by share of parameters removed.",
        "",
        "| method | " + " | ".join(f"{float(share):.0%}" for share in shares) + " |",
        "|---" * 5 + "|",
    ]
    for method in dict.fromkeys(name.rpartition(" ")[0] for name in digits):
        lines.append(f"| {method} | " + " | ".join(f"{digits[f'{method} {share}']:.1f}" for share in shares) + " |")
    return "\n".join(lines)


def _time(row: dict[str, str]) -> str:
    ms = float(row["ms_p50"])
    return f"{ms:.3f} ms" if ms < 1 else f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"


def redrawn(readme: str) -> str:
    """README's text with its sections of results replaced."""
    networks = [json.loads((RESULTS / f"{name}.json").read_text()) for name in ("crepe", "digits-vgg")]
    for begin, section in ((BEGIN, render(read(RESULTS / "cpu.csv"))), (NETWORKS, render_networks(*networks))):
        before, _, rest = readme.partition(begin)
        _, _, after = rest.partition(END)
        readme = f"{before}{begin}\n{section}\n{END}{after}"
    return readme


def main() -> int:
    """Rewrite README.md, or with --check only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if README differs from the CSV")
    options = parser.parse_args()
    old = README.read_text()
    new = redrawn(old)
    if not options.check:
        README.write_text(new)
    return int(options.check and old != new)


if __name__ == "__main__":
    sys.exit(main())
