"""Run the GPU benchmark: python -m bench.gpu [-k TEXT] [--csv FILE] [--dry-run].

Times are the device's, by events around each call with a cold second-level cache; autocast to bfloat16 over float32
nodes. With --dry-run every job runs once on tiny shapes on the CPU and nothing is written: it shows that the script
works.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import integral_nn as inn
from bench.__main__ import measure, record
from bench.harness import RESULTS, Row, Runs, Times, median_ratio, paired_times
from bench.jobs import BF16, SHARES, Bench, Job, layer_job
from bench.providers import Case, conv, grid_sample_weight, linear, relative_error

WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
ROWS = (1, 16, 128, 1024, 8192)
DATAFLOWS = ("auto", "materialize", "factored", "fused")


def device_times(providers: Runs, seconds: float, least: int = 20) -> Times:
    """Seconds of device time of each provider in each round; the cache is overwritten before each call."""
    if not torch.cuda.is_available():
        return paired_times(providers, 0.0, 1)
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    for run in providers.values():
        run()
        run()
    torch.cuda.synchronize()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in providers}
    once = sum(_one_round(providers, events, flush) for _ in range(3)) / 3
    for _ in range(max(least, min(200, int(seconds / max(once, 1e-4))))):
        _one_round(providers, events, flush)
    return {name: [1e-3 * begin.elapsed_time(end) for begin, end in pairs[3:]] for name, pairs in events.items()}


def _one_round(providers: Runs, events: dict[str, list], flush: torch.Tensor) -> float:
    for name, run in providers.items():
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        run()
        end.record()
        events[name].append((begin, end))
    torch.cuda.synchronize()
    return sum(1e-3 * events[name][-1][0].elapsed_time(events[name][-1][1]) for name in providers)


class GpuBench(Bench):
    """`Bench` with the device's clock."""

    def times(self, runs: Runs, base: str) -> tuple[Times, Times]:
        """Times of each provider and those of the base in the same rounds."""
        times = device_times(runs, self.seconds)
        return times, dict.fromkeys(runs, times[base])

    def clock(self, runs: Runs, seconds: float) -> Times:
        """Times of a few providers that run in the same rounds."""
        return device_times(runs, self.seconds)

    def foreach(self, layers: list[tuple[int, int, int]], share: float, title: str) -> list[Row]:
        """Every weight of a network re-discretized: one launch, a launch a layer, and through grid_sample."""
        from inn_kernels.taps import taps_for

        nodes = [torch.randn(o, i, *([k, k] if k > 1 else []), device=self.device) for o, i, k in layers]
        sizes = [(max(round(o * share), 2), max(round(i * share), 2)) for o, i, _ in layers]
        taps = [
            (
                taps_for(k, n.shape[0], device=self.device),
                taps_for(m, n.shape[1], weighted=True, device=self.device),
            )
            for n, (k, m) in zip(nodes, sizes)
        ]
        points = {n: inn.uniform_partition(n, device=self.device) for pair in sizes for n in pair}
        rule = {n: inn.quadrature_weights("trapezoid", p) for n, p in points.items()}

        def through_grid_sample() -> list[torch.Tensor]:
            return [grid_sample_weight(n, points[k], points[m], rule[m]).to(BF16) for n, (k, m) in zip(nodes, sizes)]

        runs: Runs = {
            "copy in place": lambda: [n.copy_(n) for n in nodes],
            "a launch a layer": lambda: [inn.discretize(n, k, m, dtype=BF16) for n, (k, m) in zip(nodes, sizes)],
            "grid_sample": through_grid_sample,
        }
        if self.device == "cuda":
            from inn_kernels.gpu.foreach import discretize_layers

            runs["one launch"] = lambda: discretize_layers(nodes, taps, BF16)
        times, base = self.times(runs, "copy in place")
        moved = sum(4 * n.numel() for n in nodes) + sum(2 * k * m * n[0, 0].numel() for n, (k, m) in zip(nodes, sizes))
        exact = [inn.discretize(n.double(), k, m) for n, (k, m) in zip(nodes, sizes)]
        rows = []
        for name, run in runs.items():
            row = self.row("resize", name, "forward", f"{title} at {share:.0%}", BF16, times[name])
            row.bytes, row.bandwidth_share = moved, 1 / median_ratio(times[name], base[name])
            if name != "copy in place":
                row.error = max(relative_error(w, e) for w, e in zip(run(), exact))  # type: ignore[call-overload]
            rows.append(row)
        return rows


def resnet50() -> list[tuple[int, int, int]]:
    """Outputs, inputs and kernel of every weight of a ResNet-50: 25.5 million."""
    layers = [(64, 3, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers += [(width, channels, 1), (width, width, 3), (4 * width, width, 1)]
            layers += [(4 * width, channels, 1)] if block == 0 else []
            channels = 4 * width
    return [*layers, (1000, 2048, 1)]


def gpu_jobs(bench: Bench) -> list[Job]:
    """Everything that is measured on a GPU."""
    cases = [linear(width, 0.75, rows, BF16) for width in WIDTHS for rows in ROWS]
    cases += [linear(width, share, rows, BF16) for width in WIDTHS for share in (0.5, 1.0) for rows in (1, 1024)]
    for batch in (1, 32):
        stages = ((64, 56), (128, 28), (256, 14), (512, 7))  # ResNet-18
        cases += [conv(channels, 3, image, batch, dtype=BF16) for channels, image in stages]
        cases += [conv((512, 2048), 1, 7, batch, dtype=BF16), conv(192, 5, 16, batch, dtype=BF16)]  # ResNet-50, NIN
    cases += [conv(256, 3, 48, 16, dtype=BF16)]  # EDSR
    large = [linear(width, share, 1, BF16) for width in (2048, 4096, 8192) for share in SHARES]
    return _jobs(bench, cases, large, resnet50(), (32, 224), 64)


def dry_jobs(bench: Bench) -> list[Job]:
    """One tiny job of each kind."""
    cases = [linear(16, 0.75, 4, BF16), conv(8, 3, 5, 2, dtype=BF16)]
    return _jobs(bench, cases, [linear(16, 0.75, 1, BF16)], [(8, 4, 3), (10, 8, 1)], (2, 32), 8)


def _jobs(
    bench: Bench,
    cases: list[Case],
    sampled: list[Case],
    layers: list[tuple[int, int, int]],
    batch_image: tuple[int, int],
    width: int,
) -> list[Job]:
    assert isinstance(bench, GpuBench)
    batch, image = batch_image
    jobs = [Job("machine bfloat16", lambda: bench.machine(BF16))]
    jobs += [Job(f"sampling {case.weight}", lambda case=case: bench.sampler(case)) for case in sampled]
    jobs += [layer_job(bench, case) for case in cases]
    jobs += [Job(f"resize ResNet-50 at {s:.0%}", lambda s=s: bench.foreach(layers, s, "ResNet-50")) for s in SHARES]
    jobs += [Job(f"resize ResNet-18 at {s:.0%}", lambda s=s: bench.resize(s, width)) for s in SHARES]
    jobs += [Job(f"network step at {s:.0%}", lambda s=s: bench.step(s, batch, image, BF16, width)) for s in SHARES]
    return [*jobs, Job("network latency", lambda: bench.latency(batch, image, BF16, width))]


def main() -> None:
    """Run the jobs named on the command line, print a line each, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only jobs whose name holds this text; their rows replace the old ones")
    parser.add_argument("--seconds", type=float, default=0.25, help="device time spent on each case and mode")
    parser.add_argument("--csv", type=Path, default=RESULTS / "gpu.csv", help="where the rows are written")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, nothing written")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --dry-run shows that the script works")
    if options.dry_run:  # the fused kernels need a GPU
        bench, jobs = GpuBench("cpu", 0.0, DATAFLOWS[:3], 64), dry_jobs
    else:
        bench, jobs = GpuBench("cuda", options.seconds, DATAFLOWS, 8192), gpu_jobs
    rows = measure([job for job in jobs(bench) if options.k in job.name])
    if options.dry_run:
        print(f"{len(rows)} rows, none written")
    else:
        record(rows, options.csv, part=bool(options.k))


if __name__ == "__main__":
    main()
