"""The sampling alone, and a whole network."""

from __future__ import annotations

from bench.tables.lookup import CELLS, Table, error_of, milliseconds, over_dense


def sections(table: Table) -> list[str]:
    """The sections of the page."""
    return _sampling(table) + _networks(table)


def _sampling(table: Table) -> list[str]:
    lines = [
        "",
        "## The sampling alone",
        "",
        "In brackets, the share of the bandwidth of a copy of the same bytes within memory that was there before; the",
        "first copy is into fresh memory, as the samplers write, and pays for its pages too.",
        "",
        "| nodes | copy | copy in place | `discretize` | adjoint | over cells | adjoint | `grid_sample` | backward |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("copy", "copy in place", "discretize", "adjoint", "discretize, cells", "adjoint, cells", "grid_sample",
             "grid_sample backward")  # fmt: skip
    samples = [row for row in table.rows if row.op == "discretize"]
    for shape in dict.fromkeys(row.shape for row in samples):
        by = {row.provider: row for row in samples if row.shape == shape}
        cells = [f"{milliseconds(by[name])} ({by[name].bandwidth_share:.0%})" if name in by else "" for name in names]
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return lines if samples else []


def _networks(table: Table) -> list[str]:
    names = ("copy", "copy in place", "resize", "resize, new size", "resize, cells", "resize, cells, new size",
             "discretize", "grid_sample")  # fmt: skip
    lines = [
        "",
        "## A whole network",
        "",
        "Every weight of a ResNet-18 (11.7 million) at another size; in brackets, over the first copy. `resize, new",
        "size` makes partitions and quadratures never asked for before; `discretize` also builds the plain network.",
        "",
        "| | " + " | ".join(names) + " | error |",
        "|---" * (len(names) + 2) + "|",
    ]
    for shape in table.shapes("resize", "forward"):
        found = [table.get("resize", name, "forward", shape) for name in names]
        copied = found[0]
        if copied is not None:
            cells = [f"{milliseconds(row)} ({row.ms_p50 / copied.ms_p50:.2f})" if row else "" for row in found]
            lines.append(f"| {shape} | " + " | ".join(cells) + f" | {error_of(found[2])} |")
    lines += [
        "",
        "Its training step, and inference of the plain network that `discretize` gives (over the full one).",
        "",
    ]
    lines += [
        "| | dense | `auto` | `auto`, cells | `grid_sample` | discretized, inference |",
        "|---|---|---|---|---|---|",
    ]
    ways = ("auto", CELLS, "grid_sample")
    for dtype in table.dtypes():
        shapes = dict.fromkeys([*table.shapes("network", "step", dtype), *table.shapes("network", "forward", dtype)])
        for shape in shapes:
            dense = table.get("network", "dense", "step", shape, dtype)
            cells = [milliseconds(dense) if dense else ""]
            cells += [over_dense(table.get("network", name, "step", shape, dtype)) for name in ways]
            cells.append(over_dense(table.get("network", "discretized", "forward", shape, dtype)))
            lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return lines
