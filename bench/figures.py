"""Figures of docs/figures, drawn from rows, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from bench.harness import Row

matplotlib.use("svg")
from matplotlib import pyplot as plt

STYLE = {
    "grid_sample": ("the authors' way, by grid_sample", "tab:red", "s"),
    "materialize": ("ours, materialize", "tab:cyan", "v"),
    "factored": ("ours, factored", "tab:olive", "^"),
    "auto": ("ours, auto", "tab:blue", "o"),
    "dense": ("dense layer of the same size", "black", "D"),
}
SETTINGS = {"svg.hashsalt": "inn-kernels", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


def draw(rows: list[Row], folder: Path) -> None:
    """Write every figure."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(SETTINGS):
        growth(rows).savefig(folder / "growth.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close("all")


def growth(rows: list[Row]) -> plt.Figure:
    """Time of a training step against width, rows and layers, with the machine's limits."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    steps = [row for row in rows if row.op == "linear" and row.mode == "step" and row.dtype == "float32"]
    widths = {width: f"{width} nodes at {width * 3 // 4}, batch 8" for width in _powers(256, 8192)}
    batches = {batch: f"1024 nodes at 768, batch {batch}" for batch in _powers(1, 8192)}
    against = [  # axis label, title, the rows of the panel by what is on its axis
        ("nodes of a side", "batch 8, points at 3/4 of the nodes", widths),
        ("rows (batch)", "1024 nodes at 768 points", batches),
    ]
    for panel, (label, title, shapes) in zip(panels, against):
        _lines(panel, steps, shapes)
        panel.set(xlabel=label, title=title, xscale="log", yscale="log")
    layers = {n: f"{n} layers, 1024 nodes at 768, batch 64" for n in _powers(1, 16)}
    _lines(panels[2], [row for row in rows if row.op == "stack"], layers)
    panels[2].set(xlabel="layers", title="layers of 1024 nodes at 768, batch 64", xscale="log")
    panels[0].set_ylabel("training step, ms")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _powers(low: int, high: int) -> list[int]:
    return [low << i for i in range((high // low).bit_length())]


def _lines(panel: plt.Axes, rows: list[Row], shapes: dict[int, str]) -> None:
    by_key = {(row.provider, row.shape): row for row in rows}
    for provider, (label, colour, marker) in STYLE.items():
        found = {at: by_key[provider, shape] for at, shape in shapes.items() if (provider, shape) in by_key}
        if not found:
            continue
        times = [row.ms_p50 for row in found.values()]
        below = [row.ms_p50 - row.ms_p20 for row in found.values()]
        above = [row.ms_p80 - row.ms_p50 for row in found.values()]
        look = {"label": label, "color": colour, "marker": marker, "markersize": 3, "linewidth": 1}
        panel.errorbar(list(found), times, [below, above], **look)
    dense = {at: by_key["dense", shape] for at, shape in shapes.items() if ("dense", shape) in by_key}
    limit = {at: row.ms_p50 * row.bandwidth_share for at, row in dense.items() if row.bandwidth_share is not None}
    if limit:  # the time in which the machine could do the dense step, by its bandwidth and its peak
        panel.plot(list(limit), list(limit.values()), "k:", linewidth=1, label="roofline of the dense layer")
