"""Run the GPU benchmark: python -m bench.gpu [-k TEXT] [--csv FILE] [--dry-run].

Times are the device's, by events around each call with a cold second-level cache; autocast to bfloat16 over float32
nodes. With --dry-run every job runs once on tiny shapes on the CPU and nothing is written: it shows that the script
works.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import integral_nn as inn
from bench.harness import RESULTS, Row, environment, median_ratio, paired_times, quantiles, write_csv
from bench.providers import Case, grid_sample_weight, layer_steps, samplers

WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
ROWS = (1, 16, 128, 1024, 8192)
SHARES = (0.5, 0.75, 1.0)
CONVOLUTIONS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and image of ResNet-18's stages
DATAFLOWS = ("auto", "materialize", "factored", "fused")
BF16 = torch.bfloat16


def device_times(providers: dict[str, Callable[[], object]], seconds: float, least: int = 20) -> dict[str, list[float]]:
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


def _one_round(providers: dict[str, Callable[[], object]], events: dict[str, list], flush: torch.Tensor) -> float:
    for name, run in providers.items():
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        run()
        end.record()
        events[name].append((begin, end))
    torch.cuda.synchronize()
    return sum(1e-3 * events[name][-1][0].elapsed_time(events[name][-1][1]) for name in providers)


class Bench:
    """Jobs by name, on one device."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self.where = environment()
        if device == "cuda":
            self.where["device"] = torch.cuda.get_device_name()

    def layer(self, case: Case, training: bool) -> list[Row]:
        """One layer through every dataflow, beside the dense layer under autocast and grid_sample."""
        dataflows = DATAFLOWS if self.device == "cuda" else DATAFLOWS[:3]  # the fused kernels need a GPU
        runs, errors = layer_steps(case, dataflows, training, self.device, BF16)
        times = device_times(runs, self.seconds)
        rows = []
        for name, run in runs.items():
            rows.append(
                Row(
                    case.op,
                    name,
                    "step" if training else "forward",
                    case.shape,
                    "bfloat16",
                    *quantiles(times[name]),
                    ratio_to_dense=median_ratio(times[name], times["dense"]),
                    flops=case.flops(case.nodes if name in ("factored", "fused") else case.points, training),
                    peak_mib=self.peak(run),
                    error=errors[name],
                    **self.where,
                )
            )
        return rows

    def sampler(self, case: Case) -> list[Row]:
        """The sampling alone, nodes float32 to a bfloat16 weight, beside a copy of the same bytes."""
        runs, errors = samplers(case, self.device, BF16)
        times = device_times(runs, self.seconds)
        return [
            Row(
                "discretize",
                name,
                "backward" if name in ("adjoint", "grid_sample backward") else "forward",
                case.shape.rpartition(",")[0],
                "bfloat16",
                *quantiles(times[name]),
                bytes=case.weight_bytes(BF16),
                bandwidth_share=1 / median_ratio(times[name], times["copy in place"]),
                error=errors[name],
                **self.where,
            )
            for name in runs
        ]

    def resize(self, layers: list[tuple[int, int, int]], share: float, title: str) -> list[Row]:
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

        runs: dict[str, Callable[[], object]] = {
            "copy in place": lambda: [n.copy_(n) for n in nodes],
            "a launch a layer": lambda: [inn.discretize(n, k, m, dtype=BF16) for n, (k, m) in zip(nodes, sizes)],
            "grid_sample": through_grid_sample,
        }
        if self.device == "cuda":
            from inn_kernels.gpu.foreach import discretize_foreach

            runs["one launch"] = lambda: discretize_foreach(nodes, taps, BF16)
        times = device_times(runs, self.seconds)
        moved = sum(4 * n.numel() for n in nodes) + sum(2 * k * m * n[0, 0].numel() for n, (k, m) in zip(nodes, sizes))
        exact = [inn.discretize(n.double(), k, m) for n, (k, m) in zip(nodes, sizes)]
        rows = []
        for name in runs:
            error = None
            if name != "copy in place":
                out = runs[name]()
                error = max(float((w.double() - e).norm() / e.norm()) for w, e in zip(out, exact))  # type: ignore[call-overload]
            rows.append(
                Row(
                    "resize",
                    name,
                    "forward",
                    f"{title} at {share:.0%}",
                    "bfloat16",
                    *quantiles(times[name]),
                    bytes=moved,
                    error=error,
                    **self.where,
                )
            )
        return rows

    def network(self, batch: int, image: int) -> list[Row]:
        """Steps of a ResNet-18-shaped stack of convolutions: dense, integral, and through grid_sample."""
        widths = [64, 64, 128, 128, 256, 256, 512, 512] if self.device == "cuda" else [8, 8]
        strides = [1, 1, 2, 1, 2, 1, 2, 1][: len(widths)]
        shapes = list(zip(widths, [3, *widths[:-1]], strides))
        x = torch.randn(batch, 3, image, image, device=self.device)
        nodes = [(torch.randn(o, i, 3, 3, device=self.device) * (9 * i) ** -0.5).requires_grad_() for o, i, _ in shapes]
        dense = [n.detach().clone().requires_grad_() for n in nodes]
        points = {n: inn.uniform_partition(n, device=self.device) for n in {3, *widths}}

        def integral(x: torch.Tensor) -> torch.Tensor:
            for n, (o, i, stride) in zip(nodes, shapes):
                inputs = None if i == 3 else i
                x = F.relu(inn.integral_conv2d(x, n, None, o, inputs, scale=i - 1.0, stride=stride, padding=1))
            return x

        def plain(x: torch.Tensor) -> torch.Tensor:
            for w, (_, _, stride) in zip(dense, shapes):
                x = F.relu(F.conv2d(x, w, None, stride, 1))
            return x

        def through_grid_sample(x: torch.Tensor) -> torch.Tensor:
            for n, (o, i, stride) in zip(nodes, shapes):
                rule = inn.quadrature_weights("trapezoid", points[i]) * (i - 1)
                x = F.relu(F.conv2d(x, grid_sample_weight(n, points[o], points[i], rule), None, stride, 1))
            return x

        def step(net: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
            def run() -> object:
                for parameter in (*nodes, *dense):
                    parameter.grad = None
                with torch.autocast(self.device, BF16):
                    y = net(x)
                return y.float().square().mean().backward()

            return run

        runs = {"dense": step(plain), "auto": step(integral), "grid_sample": step(through_grid_sample)}
        times = device_times(runs, self.seconds)
        return [
            Row(
                "network",
                name,
                "step",
                f"ResNet-18-shaped convolutions, {image}x{image}, batch {batch}",
                "bfloat16",
                *quantiles(times[name]),
                ratio_to_dense=median_ratio(times[name], times["dense"]),
                peak_mib=self.peak(run),
                **self.where,
            )
            for name, run in runs.items()
        ]

    def peak(self, run: Callable[[], object]) -> float | None:
        """MiB allocated at most during a call, beyond what is allocated before it."""
        if self.device != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


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


def jobs(bench: Bench, tiny: bool) -> list[tuple[str, Callable[[], list[Row]]]]:
    """Every job by name."""
    widths, rows_of = ((16,), (4,)) if tiny else (WIDTHS, ROWS)
    cases = [Case(m, round(m * share), rows) for m in widths for share in SHARES for rows in rows_of]
    cases += (
        [Case(8, 6, 2, 3, 5)] if tiny else [Case(c, round(0.75 * c), b, 3, i) for c, i in CONVOLUTIONS for b in (1, 32)]
    )
    large = (Case(16, 12, 1),) if tiny else tuple(Case(m, round(m * s), 1) for m in (2048, 4096, 8192) for s in SHARES)
    found: list[tuple[str, Callable[[], list[Row]]]] = []
    found += [(f"sampling {case.shape}", lambda case=case: bench.sampler(case)) for case in large]
    for training in (True, False):
        name = "step" if training else "forward"
        found += [
            (f"{name} {case.op} {case.shape}", lambda case=case, training=training: bench.layer(case, training))
            for case in cases
        ]
    layers = [(8, 4, 3), (10, 8, 1)] if tiny else resnet50()
    found += [
        (f"resize ResNet-50 at {share:.0%}", lambda share=share: bench.resize(layers, share, "ResNet-50"))
        for share in (1.0, 0.75)
    ]
    batch, image = (2, 8) if tiny else (32, 56)
    return [*found, ("network ResNet-18", lambda: bench.network(batch, image))]


def main() -> None:
    """Run the jobs named on the command line, print a line each, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only jobs whose name holds this text")
    parser.add_argument("--seconds", type=float, default=0.25, help="device time spent on each job")
    parser.add_argument("--csv", type=Path, default=RESULTS / "gpu.csv", help="where the rows are written")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, nothing written")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --dry-run shows that the script works")
    bench = Bench("cpu" if options.dry_run else "cuda", options.seconds)
    rows: list[Row] = []
    chosen = [(name, job) for name, job in jobs(bench, options.dry_run) if options.k in name]
    for name, job in tqdm(chosen, "bench", mininterval=1):
        try:
            new = job()
        except torch.OutOfMemoryError:
            tqdm.write(f"{name}: out of memory, left out")
            continue
        rows += new
        best = min(
            (row for row in new if row.provider not in ("dense", "copy", "copy in place")), key=lambda r: r.ms_p50
        )
        others = "  ".join(f"{row.provider} {row.ms_p50:.4f}" for row in new)
        tqdm.write(f"{name}: {others}  [ms; fastest of ours and theirs: {best.provider}]")
    if options.dry_run:
        print(f"{len(rows)} rows, none written")
    else:
        write_csv(rows, options.csv)
        print(f"{len(rows)} rows in {options.csv}")


if __name__ == "__main__":
    main()
