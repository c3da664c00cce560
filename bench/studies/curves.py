"""Score against compression: a line a way, in the same colour on every figure."""

from __future__ import annotations

from typing import Any

STYLES = {"A": "o-", "B": "s--", "C": "x:"}  # of a pipeline's lines
COLORS = {
    "A: INN-init": "C0",
    "A: INN": "C1",
    "B: tuned": "C2",
    "B: tuned, not permuted": "C3",
    "B: no data": "C4",
    "C: L1 norm": "C5",
    "C: random": "C6",
    "C: L1 norm, norms measured anew": "C8",
}


def draw(axes: Any, record: dict[str, Any]) -> None:
    """Score against compression, a line a way."""
    for way in (way for way in COLORS if way in record["compression"]):
        row = record["compression"][way]
        axes.plot(
            [100 * float(s) for s in row], list(row.values()), STYLES[way[0]], c=COLORS[way], label=way, markersize=4
        )
    for name, value in record["floors"].items():
        axes.axhline(value, color="gray", linewidth=0.8, label=name)
    best = max(max(row.values()) for row in record["compression"].values())
    worst = min(min(row.values()) for row in record["compression"].values())
    axes.set(xlabel="parameters removed [%]", ylabel=record["metric"], title=record["name"])
    axes.set_ylim(worst - 0.05 * (best - worst), best + 0.05 * (best - worst))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
