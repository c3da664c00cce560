"""What calls cost the host."""

from __future__ import annotations

from bench.harness import HostRow
from bench.tables.lookup import line


def sections(rows: list[HostRow]) -> list[str]:
    """The section of the page: a table a group."""
    if not rows:
        return []
    first = rows[0]
    commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(row.commit for row in rows))
    where = f"Measured on {first.device}; PyTorch {first.torch}, Triton {first.triton}, commit {commits}."
    lines = ["", "## What a call costs the host", "", where, ""]
    lines += [
        "Microseconds of the thread's CPU time over a driver that does nothing, the least and the median of rounds;",
        "in the last column, the least over that of the dense call.",
    ]
    for group in dict.fromkeys(row.group for row in rows):
        lines += ["", f"| {group} | least | median | our launches | operators | over |", "|---|---|---|---|---|---|"]
        for row in rows:
            if row.group == group:
                over = "" if row.ratio is None else f"{row.ratio:.1f} x {row.dense}"
                numbers = (f"{row.us:.1f}", f"{row.us_p50:.1f}", str(row.launches), str(row.operators))
                lines.append(line(row.call, *numbers, over))
    return lines
