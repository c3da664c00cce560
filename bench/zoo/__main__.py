"""Convert architectures one by one: bench/results/zoo.csv, docs/zoo.md. See bench/zoo.

Each runs in a process of its own, on one thread, within a time; a row is on disk as soon as it is measured.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import queue
import resource
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from bench.harness import append_csv, write_csv
from bench.zoo import page
from bench.zoo.measure import Architecture, Row, measure
from bench.zoo.ours import ours
from bench.zoo.packages import available


def _child(answers: Any, row: Row, architecture: Architecture, limit: float) -> None:
    warnings.filterwarnings("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
    answers.put(measure(row, architecture))


def measured(row: Row, architecture: Architecture, limit: float) -> Row:
    """The row, filled in by a process of its own; if that ends or takes too long, this is its `refused`."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_child, args=(answers, row, architecture, limit), daemon=True)
    process.start()
    deadline = time.monotonic() + 6 * limit
    while True:
        try:
            row = answers.get(timeout=1)
            break
        except queue.Empty:
            if time.monotonic() > deadline:
                row.refused = f"no result in {limit:g} seconds"
                break
            if not process.is_alive() and answers.empty():
                late = process.exitcode == -signal.SIGXCPU
                row.refused = f"no result in {limit:g} seconds" if late else f"exit code {process.exitcode}"
                break
    process.kill()
    process.join()
    return row


def told(row: Row, wall: float) -> str:
    """A line for the terminal."""
    verdict = "yes" if row.good else "NO "
    errors = " ".join(f"{value:.0e}" for value in (row.error, row.permuted, row.resized))
    numbers = f"{row.axes} axes, {row.share:.0%}, {row.seconds:.1f} s of {wall:.0f}, errors {errors}"
    missing = f"; no axis {row.missing}" if row.missing else ""
    return f"{verdict} {row.source}: {row.name}: {numbers}{missing}{'; ' if row.refused else ''}{row.refused}"


def main() -> int:
    """Measure what is asked for, then rewrite the page; exit 1 if something does not convert that should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures or where they are from, wildcards as in a shell")
    parser.add_argument("--missing", action="store_true", help="those alone that bench/results/zoo.csv has no row of")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=150, help="seconds of a core that each may take")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = {"ours": ours(), **available()}
    for package in tables.keys() - {"ours"}:
        __import__(package)  # once, for all processes
    known = {(row.source, row.name) for row in page.rows()}
    wanted = [
        (Row(name, source, architecture.kind), architecture)
        for source, table in tables.items()
        for name, architecture in table.items()
        if not options.names or any(fnmatch.fnmatch(n, p) for n in (name, source) for p in options.names)
        if not options.report and not (options.missing and (source, name) in known)
    ]

    def run(item: tuple[Row, Architecture]) -> Row:
        start = time.monotonic()
        row = measured(*item, options.limit)
        print(told(row, time.monotonic() - start), flush=True)
        return row

    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(run, wanted):
            append_csv([row], page.CSV, Row)
    order = {(source, name): n for n, (source, name) in enumerate((s, n) for s, t in tables.items() for n in t)}
    rows = sorted(page.rows(), key=lambda row: order.get((row.source, row.name), len(order)))
    write_csv(rows, page.CSV, Row)
    page.redraw()
    print(f"{sum(row.good for row in rows)} of {len(rows)} architectures convert: docs/zoo.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
