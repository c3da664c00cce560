"""The process that measures: each case once it has begun is noted, each row is on disk as soon as there is one.

A process that dies (of one kernel a context may) is followed by another, which finds the rows there are and goes on:
`stages.measurements`.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.gpu.jobs import dry_jobs, gpu_jobs
from bench.gpu.rows import DeviceRow, GpuBench, Lost, check_device, described
from bench.harness import append_csv, read_csv
from bench.jobs import Job

ROWS, BEGUN = "rows.csv", "begun.txt"
DATAFLOWS = ("auto", "materialize", "factored", "fused")


def failed(name: str, error: Exception, where: dict[str, str]) -> DeviceRow:
    """The row of a case that came to none of its own."""
    nothing = math.nan
    return DeviceRow("case", "", "", name, "bfloat16", nothing, nothing, nothing, problem=described(error), **where)


def measure(jobs: Sequence[tuple[int, Job]], bench: GpuBench, begin: Callable[[int, str], None], ends: float) -> None:
    """Run jobs until `ends` on the monotonic clock. One that fails is a row, and the next is run."""
    for number, job in jobs:
        if time.monotonic() >= ends:
            print(f"{job.name} and what follows: not begun", flush=True)
            break
        begin(number, job.name)
        try:
            job.run()
        except Lost:
            raise
        except Exception as error:
            traceback.print_exc()
            bench.write(failed(job.name, error, bench.where))
            check_device(bench.device)
        gc.collect()
        if bench.device == "cuda":
            torch.cuda.empty_cache()


def main() -> int:
    """Measure, from the case that is asked for on; 1 where the device was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of rows.csv and begun.txt")
    parser.add_argument("-k", default="", help="only cases whose name holds this text")
    parser.add_argument("--first", type=int, default=0, help="number of the case to begin with")
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds after which no case is begun")
    parser.add_argument("--seconds", type=float, default=0.1, help="device time of each row")
    parser.add_argument("--warm", default="", metavar="N/OF", help="a share of the cases, once; nothing written")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args()
    ends, begun = time.monotonic() + options.deadline, options.out / BEGUN

    def write(row: DeviceRow) -> None:
        if not options.warm:
            append_csv([row], options.out / ROWS, DeviceRow)
        print(f"  {row}", flush=True)

    def begin(number: int, name: str) -> None:
        print(f"{name}", flush=True)
        if not options.warm:
            with begun.open("a") as file:
                file.write(f"{number} {name}\n")

    if options.dry_run:
        torch.set_num_threads(1)
    ways = DATAFLOWS[:3] if options.dry_run else DATAFLOWS
    device, seconds = "cpu" if options.dry_run else "cuda", 0.0 if options.warm else options.seconds
    bench = GpuBench(device, seconds, ways, 64 if options.dry_run or options.warm else 8192, write=write)
    if not options.warm:
        append_csv([], options.out / ROWS, DeviceRow)  # what follows a process that dies finds the columns there
        bench.kept = {row.key: row for row in read_csv(options.out / ROWS, DeviceRow)}
    jobs = list(enumerate(dry_jobs(bench) if options.dry_run else gpu_jobs(bench)))[options.first :]
    jobs = [(number, job) for number, job in jobs if options.k in job.name]
    if options.warm:
        part, of = map(int, options.warm.split("/"))
        jobs = jobs[part::of]
    try:
        measure(jobs, bench, begin, ends)
    except Lost as error:
        print(f"the device is lost to this process: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
