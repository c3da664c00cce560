"""Jobs: a case, checked against float64, timed and counted, becomes rows. The CPU's and the GPU's lists of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bench import count, networks
from bench.harness import Row, Runs, Times, cpu_times, environment, median_ratio, paired_times, quantiles
from bench.providers import CELLS, POINTS, SLOW, Case, checked, conv, counted, layer_names, layer_providers, linear
from bench.samplers import samplers, stack
from integral_nn.networks.network import IntegralNetwork

BF16 = torch.bfloat16
SHARES = (1.0, 0.75, 0.5)


class Job(NamedTuple):
    """A name to choose by, and what measures it."""

    name: str
    run: Callable[[], list[Row]]


@dataclass(eq=False)
class Bench:
    """Measures on one device. `seconds` is what the providers of one case and mode are given together."""

    device: str = "cpu"
    seconds: float = 1.0
    dataflows: Sequence[str] = ("auto", "materialize", "factored")
    limit_size: int = 2048  # of the product and the copy that show the machine's limits

    def __post_init__(self) -> None:
        self.where = environment(self.device)
        self.rounds: dict[tuple[str, ...], Sequence[float]] = {}  # of each row, the seconds it is made of

    def times(self, runs: Runs, base: str) -> tuple[Times, Times]:
        """Times of each provider and those of the base in the same rounds."""
        return cpu_times(runs, base, SLOW, self.seconds)

    def clock(self, runs: Runs, seconds: float) -> Times:
        """Times of a few providers that run in the same rounds."""
        return paired_times(runs, seconds)

    @functools.cache  # noqa: B019 (once a run)
    def limits(self, dtype: torch.dtype) -> tuple[count.Limits, list[Row]]:
        """The machine's limits in a dtype, measured once in this run."""
        return count.measure_limits(dtype, self.device, self.clock, self.where, self.limit_size)

    def machine(self, dtype: torch.dtype) -> list[Row]:
        """Rows of the limits."""
        return self.limits(dtype)[1]

    def layer(self, case: Case) -> list[Row]:
        """One layer, all providers, step and forward; ratios are to the dense layer of the discretized size."""
        names = layer_names(case, self.dataflows, case in COMPILED, self.device)
        providers = layer_providers(case, names, self.device)
        errors = checked(providers)
        limits, _ = self.limits(case.dtype)
        rows = []
        for training in (True, False):
            runs = {name: provider.step(training) for name, provider in providers.items()}
            costs = self.costs(runs)
            times, base = self.times(runs, "dense")
            for name in runs:
                work, middle = counted(name, case, training, self.device), quantiles(times[name])
                row = self.row(case.op, name, "step" if training else "forward", case.shape, case.dtype, times[name])
                row.ratio_to_dense = median_ratio(times[name], base[name])
                row.bytes, row.flops, row.error = work.bytes, work.flops, errors[name][training]
                row.bandwidth_share = limits.share(middle[0] / 1e3, work.bytes, work.flops)
                row.launches, row.peak_mib = costs[name]
                rows.append(row)
        return rows

    def costs(self, runs: Runs) -> dict[str, tuple[int | None, float]]:
        """Launches and peak memory of each call. They run twice for it, which warms them up for the clock."""
        launched, peaks = count.launches(runs, self.device), count.peak_mib(runs, self.device)
        return {name: (launched[name], peaks[name]) for name in runs}

    def row(self, op: str, provider: str, mode: str, shape: str, dtype: torch.dtype, times: Sequence[float]) -> Row:
        """A row with its times."""
        name = str(dtype).removeprefix("torch.")
        row = Row(op, provider, mode, shape, name, *quantiles(times), **self.where)
        self.rounds[row.key] = times
        return row

    def sampler(self, case: Case) -> list[Row]:
        """The sampling alone; bandwidth shares are to a plain copy of the same bytes in the same rounds."""
        runs, errors = samplers(case, self.device)
        costs = self.costs(runs)
        times, base = self.times(runs, "copy in place")
        rows = []
        for name in runs:
            mode = "backward" if "adjoint" in name or "backward" in name else "forward"
            row = self.row("discretize", name, mode, case.weight, case.dtype, times[name])
            row.bytes, row.error = case.weight_bytes(), errors[name]
            row.bandwidth_share = 1 / median_ratio(times[name], base[name])
            row.launches, row.peak_mib = costs[name]
            rows.append(row)
        return rows

    @functools.cache  # noqa: B019 (two networks a run)
    def network(self, width: int, cells: bool = False) -> IntegralNetwork:
        """The integral ResNet-18: sampled at points, or integrated over cells."""
        torch.manual_seed(0)
        rule = CELLS if cells else POINTS
        return networks.converted(networks.ResNet18(width), 32, **rule).to(self.device)

    def stack(self, case: Case, layers: int) -> list[Row]:
        """A step of several layers one after the other."""
        runs = stack(case, layers, self.device)
        costs = self.costs(runs)
        times, base = self.times(runs, "dense")
        rows = []
        for name in runs:
            row = self.row("stack", name, "step", f"{layers} layers, {case.shape}", case.dtype, times[name])
            row.ratio_to_dense = median_ratio(times[name], base[name])
            row.launches, row.peak_mib = costs[name]
            rows.append(row)
        return rows

    def resize(self, share: float, width: int = 64) -> list[Row]:
        """Every weight of the network at another size, beside copies of it."""
        model, cells = self.network(width).eval(), self.network(width, True).eval()
        runs, errors, moved = networks.resizes(model, cells, share)
        costs = self.costs(runs)
        times, base = self.times(runs, "copy in place")
        rows = []
        for name in runs:
            row = self.row("resize", name, "forward", f"ResNet-18 at {share:.0%}", torch.float32, times[name])
            row.bytes, row.error = moved, errors[name]
            row.bandwidth_share = 1 / median_ratio(times[name], base[name])
            row.launches, row.peak_mib = costs[name]
            rows.append(row)
        return rows

    def step(self, share: float, batch: int, image: int, compute: torch.dtype, width: int = 64) -> list[Row]:
        """A training step of the network: dense, ours, and through grid_sample."""
        runs, errors = networks.steps(self.network(width), self.network(width, True), share, batch, image, compute)
        costs = self.costs(runs)
        times, base = self.times(runs, "dense")
        rows = []
        for name in runs:
            row = self.row(
                "network",
                name,
                "step",
                f"ResNet-18 at {share:.0%}, {image}x{image}, batch {batch}",
                compute,
                times[name],
            )
            row.ratio_to_dense, row.error = median_ratio(times[name], base[name]), errors[name]
            row.launches, row.peak_mib = costs[name]
            rows.append(row)
        return rows

    def latency(self, batch: int, image: int, compute: torch.dtype, width: int = 64) -> list[Row]:
        """Inference of the plain resized networks; ratios are to the full one."""
        runs = networks.latencies(self.network(width), SHARES, batch, image, compute)
        times = self.clock(runs, 2 * self.seconds)
        rows = []
        for name in runs:
            shape = f"ResNet-18 at {name}, {image}x{image}, batch {batch}"
            row = self.row("network", "discretized", "forward", shape, compute, times[name])
            row.ratio_to_dense = median_ratio(times[name], times["100%"])
            rows.append(row)
        return rows


def cpu_cases() -> list[Case]:
    """What is measured on a CPU, chosen so that all of it takes some ten minutes on two cores.

    Growth: widths 256 to 8192 and rows 1 to 8192 at 3/4 of the nodes, as long as a dense step stays within 26 GFLOP.
    Ratios of points to nodes at two widths. Convolutions of ResNet-18 and -50, EDSR and NIN at batch 1 and 32.
    bfloat16 where its rates differ most.
    """
    grid = [linear(width, 0.75, rows) for width in (256, 512, 1024, 2048, 4096, 8192) for rows in (1, 8, 64, 512, 8192)]
    cases = [case for case in grid if 6 * case.batch * case.nodes[0] ** 2 <= 26e9]
    cases += [linear(width, share, rows) for width in (1024, 4096) for share in (0.25, 0.5, 1, 1.5) for rows in (1, 64)]
    for batch in (1, 32):
        cases += [conv(c, 3, image, batch) for c, image in ((64, 56), (128, 28), (256, 14), (512, 7))]  # ResNet-18
        cases += [conv(c, 1, image, batch) for c, image in (((64, 256), 56), ((256, 1024), 14), ((512, 2048), 7))]
        cases += [conv(192, 5, 16, batch), conv((96, 192), 1, 16, batch)]  # NIN
    cases += [conv(64, 3, 48, 16), conv(256, 3, 48, 1)]  # EDSR, baseline and full
    cases += [conv(256, 3, 14, 32, share) for share in (0.5, 1, 1.5)]
    cases += [linear(width, 0.75, rows, BF16) for width in (1024, 4096) for rows in (8, 64)]
    return [*cases, conv(256, 3, 14, 32, dtype=BF16)]


COMPILED = (linear(1024, 0.75, 64), conv(256, 3, 14, 32))
"""Cases in which the authors' dataflow is compiled too: compiling takes longer than measuring."""


def cpu_jobs(bench: Bench) -> list[Job]:
    """Everything that is measured on a CPU."""
    jobs = [Job(f"machine {dtype}", lambda dtype=dtype: bench.machine(dtype)) for dtype in (torch.float32, BF16)]
    sampled = [linear(width, 0.75, 1) for width in (256, 512, 1024, 2048, 4096, 8192)]
    sampled += [linear(2048, 1.5, 1), conv(64, 3, 56, 1), conv(256, 3, 14, 1), conv(512, 3, 7, 1), conv(192, 5, 16, 1)]
    jobs += [Job(f"sampling {case.weight}", lambda case=case: bench.sampler(case)) for case in sampled]
    jobs += [layer_job(bench, case) for case in cpu_cases()]
    stacked = linear(1024, 0.75, 64)
    jobs += [
        Job(f"stack of {layers}", lambda layers=layers: bench.stack(stacked, layers)) for layers in (1, 2, 4, 8, 16)
    ]
    jobs += [Job(f"resize at {share:.0%}", lambda share=share: bench.resize(share)) for share in SHARES]
    jobs += [Job(f"network step at {s:.0%}", lambda s=s: bench.step(s, 8, 64, torch.float32)) for s in SHARES]
    return [
        *jobs,
        *(Job(f"network latency batch {b}", lambda b=b: bench.latency(b, 128, torch.float32)) for b in (1, 8)),
    ]


def layer_job(bench: Bench, case: Case) -> Job:
    """The job of one layer."""
    return Job(case_name(case), lambda: bench.layer(case))


def case_name(case: Case) -> str:
    """What -k chooses a layer by."""
    return f"{case.op} {case.shape}" + ("" if case.dtype == torch.float32 else " bfloat16")
