"""Rows looked up by what they measure, and their numbers as text."""

from __future__ import annotations

from bench.harness import Row

CELLS = "auto, cells"
OURS = ("materialize", "factored", "fused")


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


def line(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def over_dense(row: Row | None) -> str:
    """A time, and over the dense layer's."""
    return "" if row is None else f"{milliseconds(row)} ({row.ratio_to_dense:.2f})"


def both(style: str, ours: float | None, dense: float | None) -> str:
    """A number of ours and the dense layer's."""
    return "" if ours is None or dense is None else f"{style.format(ours)} / {style.format(dense)}"


def error_of(row: Row | None) -> str:
    """An error in one digit."""
    return "" if row is None or row.error is None else f"{row.error:.0e}"
