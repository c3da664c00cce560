"""docs/zoo.md and its figure, from bench/results: what was converted, what was not and why."""

from __future__ import annotations

import json
from pathlib import Path

from bench.harness import RESULTS, ROOT, read_csv
from bench.zoo.measure import Row

PAGE, FIGURE = ROOT / "docs" / "zoo.md", ROOT / "docs" / "figures" / "zoo-depth.svg"
CSV, PRETRAINED = RESULTS / "zoo.csv", RESULTS / "pretrained-transformer.json"
BEGIN, END = "<!-- {}: written by bench/zoo -->", "<!-- end of {} -->"
DEPTHS = {n: f"LLaMA, {n} layers of 256" for n in (2, 4, 8, 16)}
_LONGEST_REASON = 240


def rows() -> list[Row]:
    """The rows of the CSV, of several of one architecture the last."""
    found: dict[tuple[str, str], Row] = {}
    for row in read_csv(CSV, Row) if CSV.exists() else []:
        found[row.source, row.name] = row
    return list(found.values())


def table(measured: list[Row]) -> str:
    """What there is of every kind, then a line an architecture."""
    kinds = list(dict.fromkeys(row.kind for row in measured))
    good = [row for row in measured if row.good]
    lines = [
        f"{len(good)} of {len(measured)} architectures of {len(kinds)} kinds convert, with all that is promised of it.",
        "",
        "| architecture | from | kind | parameters | axes | resizable | seconds | error | permuted | resized | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(measured, key=lambda row: (kinds.index(row.kind), row.source, row.name)):
        lines.append(f"| {' | '.join(_cells(row))} |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    head = [row.name, row.source, row.kind, f"{row.parameters:,}"]
    if row.refused and not row.axes:
        return [*head, *[""] * 6, _short(row.refused)]
    errors = [f"{value:.0e}" for value in (row.error, row.permuted, row.resized)]
    said = _short(row.refused) if row.refused else f"no axis {row.missing}" if row.missing else ""
    said = said or ("yes" if row.good else "not exact" if row.trains else "does not train")
    return [*head, str(row.axes), f"{row.share:.0%}", f"{row.seconds:.1f}", *errors, said]


def _short(reason: str) -> str:
    text = " ".join(reason.split()).replace("|", "\\|")
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON].rpartition(" ")[0] + " .."


def times(measured: list[Row]) -> str:
    """Seconds of the networks that are named for them, and the figure."""
    by_name = {row.name: row for row in measured}
    named = [name for name in ("ResNet-50", "Swin-T", DEPTHS[8]) if name in by_name]
    said = [f"{name} {by_name[name].seconds:.1f} s" for name in named]
    depths = [f"{n} layers {by_name[name].seconds:.1f} s" for n, name in DEPTHS.items() if name in by_name]
    figure = "![seconds against depth](figures/zoo-depth.svg)"
    return f"{', '.join(said)}. LLaMA of width 256: {', '.join(depths)}.\n\n{figure}"


def pretrained() -> str:
    """The pre-trained transformer's cosines."""
    record = json.loads(PRETRAINED.read_text())
    tests = list(next(iter(record["cosine"].values())))
    lines = [f"| at {record['width']:.0%} | {' | '.join(tests)} |", "|---" * (len(tests) + 1) + "|"]
    for name, cosines in record["cosine"].items():
        lines.append(f"| {name} | {' | '.join(f'{cosines[test]:.4f}' for test in tests)} |")
    return "\n".join(lines)


def redraw() -> None:
    """Rewrite the page and the figure."""
    measured = rows()
    text = PAGE.read_text()
    sections = {"zoo": table(measured), "times": times(measured)}
    if PRETRAINED.exists():
        sections["pretrained"] = pretrained()
    for name, section in sections.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{section}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text)
    draw(measured, FIGURE)


def draw(measured: list[Row], path: Path) -> None:
    """Seconds to convert a transformer against its number of layers, and a line through the first and last."""
    try:
        import matplotlib
    except ImportError:  # the page says the numbers
        return
    from bench.figures import SETTINGS, plt

    seconds = {row.name: row.seconds for row in measured if not row.refused}
    known = {n: seconds[name] for n, name in DEPTHS.items() if name in seconds}
    if len(known) < 2:
        return
    with matplotlib.rc_context(SETTINGS):
        figure, panel = plt.subplots(figsize=(4.5, 3), layout="constrained")
        depths, values = list(known), list(known.values())
        slope = (values[-1] - values[0]) / (depths[-1] - depths[0])
        panel.plot(depths, [values[0] + slope * (n - depths[0]) for n in depths], "k:", linewidth=1, label="a line")
        panel.plot(depths, values, "o-", color="tab:blue", markersize=4, label="convert, one thread")
        panel.set(xlabel="layers of width 256", ylabel="seconds", ylim=(0, None), title="LLaMA, grouped queries")
        panel.legend()
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close("all")
