"""The machine's limits, and layers alone and one after the other."""

from __future__ import annotations

from bench import torch_integral
from bench.tables.lookup import CELLS, OURS, Table, both, error_of, milliseconds, over_dense


def sections(table: Table) -> list[str]:
    """The sections of the page."""
    lines = _limits(table)
    for op, title in (("linear", "Linear layers"), ("conv2d", "Convolutions")):
        for mode, text in (("step", "training step"), ("forward", "forward")):
            for dtype in table.dtypes():
                lines += _layers(table, op, mode, dtype, f"{title}: {text}, {dtype}")
    return lines + _growth(table)


def _limits(table: Table) -> list[str]:
    lines = ["", "## Limits of the machine", "", "| | dtype | size | time | rate |", "|---|---|---|---|---|"]
    for row in table.rows:
        if row.op == "machine":
            work, unit = (row.flops, "GFLOP/s") if row.flops else (row.bytes, "GB/s")
            assert work is not None
            rate = f"{work / row.ms_p50 / 1e6:.0f} {unit}"
            lines.append(f"| {row.provider} | {row.dtype} | {row.shape} | {milliseconds(row)} | {rate} |")
    return lines


def _layers(table: Table, op: str, mode: str, dtype: str, title: str) -> list[str]:
    shapes = table.shapes(op, mode, dtype)
    if not shapes:
        return []
    ways = [name for name in (CELLS, *OURS, "two products", "grid_sample", "grid_sample, compiled", torch_integral.NAME)
            if any(table.get(op, name, mode, shape, dtype) for shape in shapes)]  # fmt: skip
    lines = [
        "",
        f"## {title}",
        "",
        "| | dense | dense, node size | `auto` | " + " | ".join(ways),
        "|---" * (6 + len(ways)),
    ]
    lines = [*lines[:-2], lines[-2] + " | roof | MiB | error (ours / dense) |", lines[-1] + "|---|"]
    for shape in shapes:
        found = {name: table.get(op, name, mode, shape, dtype) for name in ("dense", "dense, node size", "auto", *ways)}
        dense, auto = found["dense"], found["auto"]
        assert dense is not None and auto is not None
        cells = [milliseconds(dense), *(over_dense(row) for name, row in found.items() if name != "dense")]
        cells += [both("{:.0%}", auto.bandwidth_share, dense.bandwidth_share)]
        cells.append(both("{:.1f}", auto.peak_mib, dense.peak_mib))
        lines.append(f"| {shape} | " + " | ".join(cells) + f" | {error_of(auto)} / {error_of(dense)} |")
    return lines


def _growth(table: Table) -> list[str]:
    shapes = table.shapes("stack", "step")
    lines = [
        "",
        "## Layers one after the other: training step",
        "",
        "| | dense | `auto` | grid_sample |",
        "|---|---|---|---|",
    ]
    for shape in shapes:
        dense, auto, theirs = (table.get("stack", name, "step", shape) for name in ("dense", "auto", "grid_sample"))
        assert dense is not None
        lines.append(f"| {shape} | {milliseconds(dense)} | {over_dense(auto)} | {over_dense(theirs)} |")
    return [*lines, "", "![time against width, rows and layers](figures/growth.svg)"] if shapes else []
