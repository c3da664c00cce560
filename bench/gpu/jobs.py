"""What is measured on a GPU, the most telling first; and a tiny list of the same kinds for a CPU."""

from __future__ import annotations

import itertools
from functools import partial

from bench.gpu import samplers
from bench.gpu.networks import HOWS, KINDS, SHARE
from bench.gpu.rows import GpuBench
from bench.jobs import BF16, Job, layer_job
from bench.providers import Case, conv, linear

WIDTHS, ROWS = (1024, 2048, 4096), (16, 256, 4096)
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and image of a ResNet-18
RESNET18 = [(c, i, 3) for (c, _), more in zip(STAGES, (4, 3, 3, 3)) for i in [c] * more]


def gpu_jobs(bench: GpuBench) -> list[Job]:
    """Everything that is measured on a GPU."""
    sampled = [linear(width, 0.75, 1, BF16) for width in WIDTHS]
    cases = [linear(width, 0.75, rows, BF16) for rows in ROWS for width in WIDTHS]
    cases += [conv(channels, 3, image, 32, dtype=BF16) for channels, image in STAGES]
    return _jobs(bench, sampled, {"ResNet-50": samplers.resnet50(), "3x3 of a ResNet-18": RESNET18}, cases)


def dry_jobs(bench: GpuBench) -> list[Job]:
    """One tiny job of each kind."""
    cases = [linear(16, 0.75, 4, BF16), conv(8, 3, 5, 2, dtype=BF16)]
    return _jobs(bench, [linear(16, 0.75, 1, BF16)], {"two layers": [(8, 4, 3), (10, 8, 1)]}, cases)


def _jobs(
    bench: GpuBench, sampled: list[Case], networks: dict[str, list[tuple[int, int, int]]], cases: list[Case]
) -> list[Job]:
    jobs = [Job("machine", partial(bench.machine, BF16))]
    for case in sampled:
        trials = partial(samplers.sampling, case, bench.device)
        jobs.append(Job(f"sampling {case.weight}", partial(bench.passes, "sampling", case.weight, trials)))
    for name, layers in networks.items():
        shape, trials = f"{name} at {SHARE:.0%}", partial(samplers.together, layers, SHARE, bench.device)
        jobs.append(Job(f"foreach {shape}", partial(bench.passes, "foreach", shape, trials)))
    jobs += [layer_job(bench, case) for case in cases]
    for how, ways in HOWS.items():
        for kind, way in itertools.product(KINDS, ways):
            jobs.append(Job(f"{kind}: {way}, {how}", partial(bench.network_step, kind, way, how)))
    return jobs
