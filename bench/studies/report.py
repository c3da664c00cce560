"""Redraw docs/paper.md and README's section on networks from bench/results: python -m bench.studies.report [--check].

The records are what the studies beside it wrote; the paper's numbers are its Tables 1 and 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, ROOT
from bench.studies import curves, width_tables
from bench.studies.width_tables import table

README, PAGE = ROOT / "README.md", ROOT / "docs" / "paper.md"
FIGURE = ROOT / "docs" / "figures" / "compression.png"
BEGIN, END = "<!-- {}: written by bench/studies/report.py -->", "<!-- end of {} -->"
Record = dict[str, Any]

# Of each study: what it is called, the paper's nearest experiment, and that one's numbers in Table 1 (discrete, INN,
# INN-init; accuracy in % on Cifar10, PSNR in dB on Set5) and, if it is there, in Table 2 (permuted, not permuted).
STUDIES: dict[str, tuple[str, str, tuple[float, ...], tuple[float, ...]]] = {
    "fashion-nin": ("small NIN, Fashion-MNIST", "NIN, Cifar10", (92.3, 91.8, 92.5), (89.4, 84.71)),
    "fashion-vgg": ("small VGG, Fashion-MNIST", "VGG-11, Cifar10", (91.1, 89.4, 91.6), (88.7, 85.2)),
    "fashion-resnet": ("small ResNet, Fashion-MNIST", "ResNet-18, Cifar10", (95.3, 93.1, 95.3), (93.0, 91.3)),
    "superres-srcnn": ("small SRCNN 3x, held-out photographs", "SRCNN 3x, Set5", (32.9, 32.6, 32.9), ()),
    "superres-edsr": ("small EDSR 4x, held-out photographs", "EDSR 4x, Set5", (32.4, 32.2, 32.4), ()),
}
INIT, SCRATCH, TUNED, UNORDERED = "A: INN-init", "A: INN", "B: tuned", "B: tuned, not permuted"
NAIVE = ("C: L1 norm", "C: random")
ALONE, LONGER = "trained at that width", "discrete, trained as long as INN-init"


def load() -> dict[str, Record]:
    """The records at hand, by name."""
    found = (json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")))
    return {record["name"]: record for record in found if "compression" in record}


def full(record: Record) -> float:
    """The discrete network's score: what is converted, cut and tuned."""
    return record["width"][ALONE]["1.00"]


def longer(record: Record) -> float:
    """The discrete network's score after the steps that INN-init adds."""
    return record["width"][LONGER]["1.00"]


def in_db(record: Record) -> bool:
    """Whether the score is a PSNR, else an accuracy in %."""
    return "dB" in record["metric"]


def table_1(records: dict[str, Record]) -> str:
    """Discrete network, INN from scratch and INN-init at full width, the paper's in brackets."""
    rows = []
    for name, (title, theirs, numbers, _) in STUDIES.items():
        if name in records:
            record = records[name]
            ours = (full(record), *(record["compression"][way]["0.00"] for way in (SCRATCH, INIT)))
            cells = [f"{a:.2f} ({b:g})" for a, b in zip(ours, numbers)]
            rows.append([title, cells[0], f"{longer(record):.2f}", *cells[1:], theirs])
    head = ["network", "discrete", "trained as long as INN-init", "INN", "INN-init", "in brackets: the paper's"]
    return table(head, rows)


def table_2(records: dict[str, Record]) -> str:
    """Tuned partitions at 40% compression, with and without the permutation, the paper's in brackets."""
    rows = []
    for name, (title, theirs, _, numbers) in STUDIES.items():
        if name in records:
            ours = [records[name]["compression"][way]["0.40"] for way in (TUNED, UNORDERED)]
            given = [f" ({n:g})" for n in numbers] or ["", ""]
            rows.append([title, *(f"{a:.2f}{b}" for a, b in zip(ours, given)), theirs if numbers else ""])
    return table(["network", "permuted", "not permuted", "in brackets: the paper's"], rows)


def compression(record: Record) -> str:
    """One study's scores against the share of parameters removed."""
    shares = list(record["compression"][INIT])
    ways = sorted(record["compression"].items(), key=lambda item: item[0][0])  # A, B, C
    rows = [[way, *(f"{row[share]:.2f}" for share in shares)] for way, row in ways]
    return table([record["metric"], *(f"{float(share):.0%}" for share in shares)], rows)


def widths(record: Record) -> str:
    """One study's scores against width, beside networks trained for each."""
    shares = list(record["width"][INIT])
    ways = sorted(record["width"].items(), key=lambda item: item[0][0] if item[0][1] == ":" else "")
    rows = [[way, *(f"{row[share]:.2f}" if share in row else "" for share in shares)] for way, row in ways]
    removed = ["parameters removed", *(f"{record['removed'][share]:.0%}" for share in shares)]
    return table([record["metric"] + " at width", *(f"{float(share):.0%}" for share in shares)], [removed, *rows])


def lowest(gains: dict[str, float], of: str) -> tuple[float, str]:
    """The smallest of some gains by share, and where it is."""
    share = min(gains, key=gains.__getitem__)
    return gains[share], f" at {float(share):.0%} {of}"


def claims(records: dict[str, Record]) -> str:
    """Every claim on every study: what was found, and whether the claim holds."""
    rows = []

    def row(claim: str, title: str, gain: float, least: float, unit: str, where: str = "") -> None:
        rows.append([claim, title, f"{gain:+.2f} {unit}{where}", "yes" if gain >= least else "**no**"])

    studies = [(STUDIES[name][0], records[name], records[name]["compression"]) for name in STUDIES if name in records]
    for title, record, scores in studies:
        unit, allowed = ("dB", 0.1) if in_db(record) else ("points", 0.3)
        claim = f"INN-init within {allowed:g} {unit} of the discrete network"
        row(claim, title, scores[INIT]["0.00"] - full(record), -allowed, unit)
        row(f"{claim} trained as long", title, scores[INIT]["0.00"] - longer(record), -allowed, unit)
    for title, record, scores in studies:
        unit = "dB" if in_db(record) else "points"
        row("INN from scratch within one point or dB", title, scores[SCRATCH]["0.00"] - full(record), -1, unit)
    for title, record, scores in studies:
        unit, allowed = ("dB", 0.5) if in_db(record) else ("points", 2)
        claim = f"30% of the parameters removed: at most {allowed:g} {unit} lost"
        for way in (INIT, TUNED):
            row(claim, f"{title}, {way}", scores[way]["0.30"] - full(record), -allowed, unit)
    for title, record, scores in studies:
        unit = "dB" if in_db(record) else "points"
        row("permuting helps (40% removed)", title, scores[TUNED]["0.40"] - scores[UNORDERED]["0.40"], 0, unit)
    for title, record, scores in studies:
        unit = "dB" if in_db(record) else "points"
        for way in (INIT, SCRATCH, TUNED):
            gains = {s: scores[way][s] - max(scores[n][s] for n in NAIVE) for s in scores[way] if float(s) > 0}
            worst, where = lowest(gains, "removed")
            row("better than L1 and random at every compression", f"{title}, {way}", worst, 0, unit, where)
    for title, record, _ in studies:
        alone = record["width"][ALONE]
        for way in (INIT, f"{INIT}, points tuned", SCRATCH, f"{SCRATCH}, points tuned"):
            ours = record["width"].get(way, {})
            gains = {s: ours[s] - alone[s] for s in ours if s in alone and float(s) < 1}
            if len(gains) > 1 and not in_db(record):
                claim = "one network within 5 points of one trained for that width"
                row(claim, f"{title}, {way}", gains["0.50"], -5, "points", " at 50% width")
                worst, where = lowest(gains, "width")
                row(claim, f"{title}, {way}", worst, -5, "points", where)
    return table(["claim", "study", "found", "holds"], rows)


def crepe(record: Record) -> str:
    """CREPE tiny's table."""
    wanted = ("L1", "uniform", "tuned", "tuned, biases and norms too", "cells", "cells, tuned")
    methods = [method for method in wanted if f"{method} at 50%" in record]
    rows = [[method, *(f"{record[f'{method} at {cut}']:.1f}" for cut in ("30%", "50%"))] for method in methods]
    return table([f"raw pitch accuracy [%], full net {record['full']:.1f}", "30% removed", "50% removed"], rows)


def draw(records: dict[str, Record]) -> None:
    """The paper's Figure 1 from our own runs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [records[name] for name in STUDIES if name in records]
    figure, grid = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for axes, record in zip(grid.flat, shown):
        curves.draw(axes, record)
        axes.set_title(STUDIES[record["name"]][0], fontsize=9)
        axes.get_legend().remove()
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    lines = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels())}
    grid.flat[-1].legend(lines.values(), lines.keys(), loc="center", frameon=False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=90, metadata={"Software": None})


def sections(records: dict[str, Record]) -> dict[str, str]:
    """What stands between the markers, by their names."""
    pitch = json.loads((RESULTS / "crepe.json").read_text())
    found = {"claims": claims(records), "table 1": table_1(records), "table 2": table_2(records), "crepe": crepe(pitch)}
    for name in [*STUDIES, "digits-vgg"]:
        if name in records:
            found[name] = compression(records[name])
            if len(records[name]["width"].get(ALONE, {})) > 1:  # it was asked for
                found[f"{name} widths"] = widths(records[name])
    return found | width_tables.sections()


def redrawn(text: str, found: dict[str, str]) -> str:
    """A page with its sections replaced."""
    for name, section in found.items():
        begin, end = BEGIN.format(name), END.format(name)
        if begin in text:
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n{section}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> int:
    """Rewrite the pages and the figure, or with --check only say whether the pages are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing, exit 1 if a page differs from the records"
    )
    options = parser.parse_args()
    records = load()
    found = sections(records)
    pages: dict[Path, str] = {page: redrawn(page.read_text(), found) for page in (PAGE, README)}
    if options.check:
        return int(any(page.read_text() != text for page, text in pages.items()))
    for page, text in pages.items():
        page.write_text(text)
    draw(records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
