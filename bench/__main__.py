"""Run the benchmark of this CPU: python -m bench [-k TEXT] [--seconds S] [--csv FILE] [--quick] [--compare OLD]."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from bench import compare
from bench.harness import RESULTS, Row, merged, read_csv, write_csv
from bench.jobs import Bench, Job, cpu_jobs


def measure(jobs: list[Job]) -> list[Row]:
    """Run jobs with a progress bar, a line a row."""
    rows: list[Row] = []
    for job in tqdm(jobs, "bench", mininterval=1):
        try:
            new = job.run()
        except torch.OutOfMemoryError:
            tqdm.write(f"\n{job.name}: out of memory, left out")
            continue
        gc.collect()  # what a job leaves behind, not within another's rounds
        tqdm.write(f"\n{job.name}")
        for row in new:
            tqdm.write(f"  {describe(row)}")
        rows += new
    return rows


def describe(row: Row) -> str:
    """A row as one line."""
    relation = (
        f"{row.ratio_to_dense:8.2f} x dense"
        if row.ratio_to_dense is not None
        else f"{row.bandwidth_share:8.0%} of {'its limit' if row.op == 'machine' else 'a copy'}"
    )
    error = "" if row.error is None else f"   error {row.error:.1e}"
    return f"{row.mode:<9} {row.provider:<22} {row.ms_p50:10.3f} ms {relation}{error}"


def record(rows: list[Row], path: Path, part: bool) -> None:
    """Write the rows: over the file, or, when only a part was measured, over its rows of the same keys."""
    rows = merged(read_csv(path), rows) if part and path.exists() else rows
    write_csv(rows, path)
    print(f"\n{len(rows)} rows in {path}")


def main() -> int:
    """Run the jobs named on the command line and write the CSV: all rows or, after an error, none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="", help="only jobs whose name holds this text; their rows replace the old ones")
    parser.add_argument("--seconds", type=float, default=0.8, help="time spent on each case and mode")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--csv", type=Path, default=RESULTS / "cpu.csv", help="where the rows are written")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, nothing written")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="measure nothing: --csv against these older rows")
    options = parser.parse_args()
    if options.compare:
        return compare.report(read_csv(options.compare), read_csv(options.csv))
    torch.set_num_threads(options.threads)
    bench = Bench(seconds=0.1 * options.seconds if options.quick else options.seconds)
    jobs = [job for job in cpu_jobs(bench) if options.k in job.name]
    if not jobs:
        raise SystemExit(f"no job's name holds {options.k!r}")
    if options.csv.exists() and options.k and not options.quick:
        merged(read_csv(options.csv), [Row("", "", "", "", "", 0, 0, 0, **bench.where)])  # refuse before measuring
    rows = measure(jobs)
    if not options.quick:
        record(rows, options.csv, part=bool(options.k))
    return 0


if __name__ == "__main__":
    sys.exit(main())
