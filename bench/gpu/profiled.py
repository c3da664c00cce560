"""Six kernels at the sizes of the tables, each once, for a profiler; or all kernels of a training step, counted.

ncu --profile-from-start off --clock-control none python -m bench.gpu.profiled [--dry-run]
python -m bench.gpu.profiled --step [--dry-run]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu.networks import KINDS, build
from bench.gpu.samplers import along, resnet50
from bench.jobs import BF16
from inn_kernels import ops
from integral_nn.functional.foreach import make_plan


def kernels(device: str) -> dict[str, partial]:
    """Calls of one kernel each."""
    tiny = device == "cpu"
    nodes, points, rows = (16, 12, 4) if tiny else (4096, 3072, 16)
    few, fewer = (16, 12) if tiny else (1024, 768)
    out, in_ = along(points, nodes, device), along(points, nodes, device, weighted=True)
    small_out, small_in = along(fewer, few, device), along(fewer, few, device, weighted=True)
    taps = (out.start, out.weight, in_.start, in_.weight)
    small = (small_out.start, small_out.weight, small_in.start, small_in.weight)
    weight, grad = torch.randn(nodes, nodes, device=device), torch.randn(points, points, device=device).to(BF16)
    few_nodes = torch.randn(few, few, device=device)
    x, dy = (torch.randn(rows, fewer, device=device).to(BF16) for _ in range(2))
    layers = resnet50()[:4] if tiny else resnet50()
    plan = make_plan([(along(o // 2, o, device), along(-(-i // 2), i, device, weighted=True)) for o, i, _ in layers])
    every = [torch.randn(o, i, *([k, k] if k > 1 else []), device=device) for o, i, k in layers]
    return {
        "discretize": partial(ops.discretize, weight, *taps, BF16),
        "discretize_adjoint": partial(ops.discretize_adjoint, grad, *taps, nodes, nodes, torch.float32),
        "discretize_tap_gradient": partial(ops.discretize_tap_gradient, weight, grad, *taps, True, True),
        "discretize_foreach": partial(ops.discretize_foreach, every, plan.start, plan.weight, plan.out, plan.in_, BF16),
        "linear": partial(ops.linear, x, few_nodes, None, *small),
        "linear_backward": partial(ops.linear_backward, dy, x, few_nodes, *small, True, True, False),
    }


def once_each(device: str) -> None:
    """Warm up, then call each kernel once before the profiler."""
    calls = kernels(device)
    for call in calls.values():
        call()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    for name, call in calls.items():
        print(name, flush=True)
        call()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def one_step(device: str) -> None:
    """Print what runs in a training step of the first network, by the device's time."""
    kind = next(iter(KINDS))
    step = build(kind, device).step("auto", "eager")
    for _ in range(3):
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        step()
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    print(f"A training step, {kind}\n{profiler.key_averages().table(order, row_limit=80, max_name_column_width=70)}")


def main() -> None:
    """Call what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="store_true", help="a training step of a ResNet-18, by PyTorch's own profiler")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    if options.step:
        one_step(device)
    else:
        once_each(device)


if __name__ == "__main__":
    main()
