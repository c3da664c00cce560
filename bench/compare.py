"""Whether newer rows are slower than older ones, beyond what the machine's own noise explains."""

from __future__ import annotations

from bench.harness import Row

LEAST = 0.08  # differences below this are never called regressions: another run's memory layout alone can make them
FLOORS = ("dense", "dense, node size", "copy", "copy in place")  # not ours: they move with the machine and PyTorch


def spread(row: Row) -> float:
    """Half the distance of the 20th from the 80th percentile, over the median."""
    return (row.ms_p80 - row.ms_p20) / (2 * row.ms_p50)


def slowdown(old: Row, new: Row) -> tuple[float, float]:
    """How much slower, relative to the floor timed in the same rounds where there is one, and the margin of noise."""
    values = (old.ratio_to_dense, new.ratio_to_dense)
    if None in values and old.op in ("discretize", "resize") and old.bandwidth_share and new.bandwidth_share:
        values = (1 / old.bandwidth_share, 1 / new.bandwidth_share)
    if None in values:
        values = (old.ms_p50, new.ms_p50)
    before, after = values
    assert before is not None and after is not None
    return after / before - 1, max(LEAST, 2 * (spread(old) + spread(new)))


def regressions(old: list[Row], new: list[Row]) -> list[tuple[Row, float, float]]:
    """Rows of ours that got slower: with the slowdown and the margin it exceeds."""
    before = {row.key: row for row in old}
    found = []
    for row in new:
        if row.key not in before or row.provider in FLOORS or row.provider.startswith(("grid_sample", "two ")):
            continue
        slower, margin = slowdown(before[row.key], row)
        if slower > margin and row.op != "machine":
            found.append((row, slower, margin))
    return found


def report(old: list[Row], new: list[Row]) -> int:
    """Print regressions; 1 if there are any, else 0. Rows of different devices are not compared."""
    devices = {row.device for row in (*old, *new)}
    if len(devices) > 1:
        raise ValueError(f"both files must come from one device, got {sorted(devices)}")
    found = regressions(old, new)
    for row, slower, margin in found:
        print(f"{row.op} {row.shape} {row.dtype} {row.mode} {row.provider}: {slower:+.0%} (noise: {margin:.0%})")
    both = len({row.key for row in old} & {row.key for row in new})
    print(f"{len(found)} of {both} rows slower beyond noise")
    return int(bool(found))
