"""Run the CPU benchmark: python -m bench [-k TEXT] [--seconds S] [--csv FILE] [--quick]."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from bench.harness import RESULTS, Row, environment, median_ratio, paired_times, quantiles, write_csv
from bench.providers import Case, layer_steps, samplers

CASES = (
    Case(nodes=256, points=192, kernel=3, image=8, batch=32),
    Case(nodes=512, points=384, kernel=3, image=4, batch=32),
    Case(nodes=1024, points=768, batch=32),
    Case(nodes=4096, points=3072, batch=16),
)
DATAFLOWS = ("auto", "materialize", "factored")


def _times(
    runs: dict[str, Callable[[], object]], base: str, seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Times of each provider, and those of the base in the same rounds.

    grid_sample takes far longer than the others and turns the memory of the allocator over: it gets rounds of its
    own with the base, so that the others see the memory they would see without it.
    """
    apart = {name: run for name, run in runs.items() if "grid_sample" in name}
    near = {name: run for name, run in runs.items() if name not in apart}
    times = paired_times(near, seconds)
    others = paired_times({base: runs[base], **apart}, seconds / 2)
    bases = {name: (others if name in apart else times)[base] for name in runs}
    return {name: others[name] if name in apart else times[name] for name in runs}, bases


def layer_rows(case: Case, training: bool, seconds: float, where: dict[str, str]) -> list[Row]:
    """One layer, all providers; ratios are to the dense layer of the discretized size."""
    runs, errors = layer_steps(case, DATAFLOWS, training)
    times, base = _times(runs, "dense", seconds)
    return [
        Row(
            case.op,
            name,
            "step" if training else "forward",
            case.shape,
            "float32",
            *quantiles(times[name]),
            ratio_to_dense=median_ratio(times[name], base[name]),
            flops=case.flops(case.nodes if name == "factored" else case.points, training),
            error=errors[name],
            **where,
        )
        for name in runs
    ]


def sampler_rows(case: Case, seconds: float, where: dict[str, str]) -> list[Row]:
    """The sampling alone; bandwidth shares are to a plain copy of the same bytes in the same run."""
    runs, errors = samplers(case)
    times, base = _times(runs, "copy", seconds)
    return [
        Row(
            "discretize",
            name,
            "backward" if name in ("adjoint", "grid_sample backward") else "forward",
            case.shape.rpartition(",")[0],
            "float32",
            *quantiles(times[name]),
            bytes=case.weight_bytes(),
            bandwidth_share=1 / median_ratio(times[name], base[name]),
            error=errors[name],
            **where,
        )
        for name in runs
    ]


def main() -> None:
    """Run the cases named on the command line, print them, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="", help="only cases whose name holds this text")
    parser.add_argument("--seconds", type=float, default=8.0, help="time spent on each case and mode")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--csv", type=Path, default=RESULTS / "cpu.csv", help="where the rows are written")
    parser.add_argument("--quick", action="store_true", help="a second a case, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = 1.0 if options.quick else options.seconds
    where = environment()
    jobs = []
    for case in CASES:
        name = f"{case.op} {case.shape}"
        jobs += [(f"sampling {name}", lambda case=case: sampler_rows(case, seconds, where))]
        for training in (True, False):
            label = f"{'step' if training else 'forward'} {name}"
            jobs += [(label, lambda case=case, training=training: layer_rows(case, training, seconds, where))]
    rows: list[Row] = []
    for name, job in tqdm([job for job in jobs if options.k in job[0]], "bench", mininterval=1):
        tqdm.write(f"\n{name}")
        new = job()
        rows += new
        for row in new:
            relation = (
                f"{row.ratio_to_dense:7.2f} x dense"
                if row.ratio_to_dense is not None
                else f"{row.bandwidth_share:7.0%} of copy"
            )
            tqdm.write(f"  {row.provider:<22} {row.ms_p50:9.3f} ms {relation}   error {row.error:.1e}")
    if not options.quick and not options.k:
        write_csv(rows, options.csv)
        print(f"\n{len(rows)} rows in {options.csv}")


if __name__ == "__main__":
    main()
