"""The tables of `widths` and `converted` for docs/paper.md."""

from __future__ import annotations

import json
from statistics import mean, stdev
from typing import Any

from bench.harness import RESULTS

ALONE = "alone-"
TITLES = {
    "slices": "first channels of an ordinary network",
    "points-cubic": "points, cubic",
    "points-bspline": "points, B-spline",
    "cells-conservative": "cells, conservative",
    "cells-cubic": "cells, cubic",
    "cells-bspline": "cells, B-spline",
    "cells-switched": "cells, B-spline, conservative in the last third of training",
    "l1-cut": "channels of largest L1 norm",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def cell(scores: list[float] | None) -> str:
    """The mean over seeds, and their standard deviation."""
    if not scores:
        return ""
    return f"{mean(scores):.1f}" + (f" ± {stdev(scores):.1f}" if len(scores) > 1 else "")


def by_width(record: dict[str, Any]) -> str:
    """Accuracy by width and the largest learning rate, a line a row; networks of one width share a line."""
    rows: dict[str, dict[str, list[float]]] = {}
    rates: dict[str, dict[str, None]] = {}
    for row, found in record["rows"].items():
        title = "a network for each width, trained alone" if row.startswith(ALONE) else TITLES[row]
        rows.setdefault(title, {}).update(found["test"])
        if "lr" in found:
            rates.setdefault(title, {})[f"{found['lr']:g}"] = None
    shares = list(dict.fromkeys(width for row in rows.values() for width in row))
    shares.sort(key=float, reverse=record["name"].startswith("converted"))
    lines = [[title, *(cell(row.get(width)) for width in shares)] for title, row in rows.items()]
    head = [f"{record['metric']} at width", *(f"{float(width):g}%" for width in shares)]
    if rates:
        lines = [[*line, ", ".join(rates[line[0]])] for line in lines]
        head.append("rate")
    return table(head, lines)


def sections() -> dict[str, str]:
    """What stands between the markers, by their names."""
    found = (
        json.loads(path.read_text()) for kind in ("widths", "converted") for path in RESULTS.glob(f"{kind}-*.json")
    )
    return {record["name"]: by_width(record) for record in found}
