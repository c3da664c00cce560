"""What calls cost the host on a GPU, measured without one: python -m bench.host [-k TEXT] [--quick] [--csv FILE].

Over a driver that does nothing (`no_gpu`) what is left of a call is the host's work: the thread's own CPU time, so that
other processes matter little. What is not ours runs on the CPU; it is small, so that little of the time is arithmetic.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import integral_nn as inn
from bench import count, networks
from bench.harness import RESULTS, HostRow, append_csv, environment
from bench.no_gpu import NoGpu, forget_sizes
from inn_kernels import ops
from inn_kernels.taps import taps_for
from integral_nn.networks.network import IntegralNetwork


class Call(NamedTuple):
    """What is measured, and the dense call of its group that it is compared with."""

    group: str
    name: str
    run: Callable[[], object]
    dense: str = ""
    most: int = 1000  # calls a round


NODES, POINTS, BATCH = 64, 48, 4
LARGE = 1024  # nodes that have sizes enough for each call to find its own
ROUNDS = 15
FORWARD, STEP = "F.linear forward", "F.linear step"


def stepped(forward: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """Forward and backward; gradients of the inputs are dropped."""
    grad = forward().detach().clone()

    def run() -> None:
        forward().backward(grad)
        for tensor in inputs:
            tensor.grad = None

    return run


def silent(run: Callable[[], object]) -> Callable[[], object]:
    """The call without gradients."""
    return torch.no_grad()(run)


def operator_calls() -> Iterator[Call]:
    """The operators, as the layers call them, beside the dense operator forward."""
    nodes, bias, x, dy = (torch.randn(*size) for size in ((NODES, NODES), (NODES,), (BATCH, POINTS), (BATCH, POINTS)))
    weight, dense_bias = torch.randn(POINTS, POINTS), torch.randn(POINTS)
    taps = (*taps_for(POINTS, NODES)[:2], *taps_for(POINTS, NODES, weighted=True)[:2])
    start, along = taps[2:]
    filters = torch.randn(NODES, NODES, 3, 3)
    image, d_image = (torch.randn(2, POINTS, 4, 4) for _ in range(2))
    window, size, wide = ([1, 1],) * 3, [4, 4], torch.float32
    calls: dict[str, Callable[[], object]] = {
        FORWARD: lambda: F.linear(x, weight, dense_bias),
        "discretize": lambda: ops.discretize(nodes, *taps, wide),
        "discretize_adjoint": lambda: ops.discretize_adjoint(weight, *taps, NODES, NODES, wide),
        "discretize_tap_gradient": lambda: ops.discretize_tap_gradient(nodes, weight, *taps, True, True),
        "interpolate": lambda: ops.interpolate(nodes, start, along, 1, wide),
        "spread": lambda: ops.spread(x, start, along, NODES, 1, wide),
        "linear (fused)": lambda: ops.linear(x, nodes, bias, *taps),
        "linear_backward": lambda: ops.linear_backward(dy, x, nodes, *taps, True, True, True),
        "conv (fused)": lambda: ops.conv(image, filters, bias, *taps, *window),
        "conv_input_gradient": lambda: ops.conv_input_gradient(d_image, filters, *taps, size, *window),
        "conv_node_gradient": lambda: ops.conv_node_gradient(d_image, image, filters, *taps, *window, True, True),
    }
    for name, run in calls.items():
        yield Call("operators", name, run, "" if name == FORWARD else FORWARD)


def layer_calls() -> Iterator[Call]:
    """One linear layer: fixed points, trainable points, and sizes it never had."""
    nodes, bias, x = torch.randn(NODES, NODES), torch.randn(NODES), torch.randn(BATCH, POINTS)
    weight, dense_bias = torch.randn(POINTS, POINTS), torch.randn(POINTS)
    inputs = [t.requires_grad_() for t in (nodes, bias, x, weight, dense_bias)]

    def dense() -> Tensor:
        return F.linear(x, weight, dense_bias)

    yield Call("linear layer", FORWARD, silent(dense))
    yield Call("linear layer", STEP, stepped(dense, inputs))
    for dataflow in ("materialize", "factored", "fused"):

        def layer(dataflow: str = dataflow) -> Tensor:
            return inn.integral_linear(x, nodes, bias, POINTS, POINTS, dataflow=dataflow)

        yield Call("linear layer", f"{dataflow}, forward", silent(layer), FORWARD)
        yield Call("linear layer", f"{dataflow}, step", stepped(layer, inputs), STEP)

    points = torch.linspace(0, 1, POINTS).requires_grad_()

    def trainable() -> Tensor:
        return inn.integral_linear(x, nodes, bias, points, points, dataflow="materialize")

    yield Call("linear layer", "trainable points, forward", silent(trainable), FORWARD)
    yield Call("linear layer", "trainable points, step", stepped(trainable, [*inputs, points]), STEP)
    large, values = torch.randn(LARGE, LARGE), torch.randn(BATCH * LARGE)
    for dataflow, first in (("materialize", LARGE // 4), ("fused", LARGE // 2)):

        def new_size(dataflow: str = dataflow, sizes: Iterator[int] = itertools.count(first)) -> Tensor:  # noqa: B008
            size = next(sizes)
            x = values[: BATCH * size].view(BATCH, size)
            return inn.integral_linear(x, large, None, size, size, dataflow=dataflow)

        name = f"{dataflow}, sizes never seen, forward"
        yield Call("linear layer", name, silent(new_size), FORWARD, LARGE // 4 // (ROUNDS + 1))


def network_calls(model: IntegralNetwork, width: int) -> Iterator[Call]:
    """Every weight of a ResNet-18, and its training step."""
    model.resize(0.75)
    model.train()
    plain, image = networks.ResNet18(round(0.75 * width)).train(), torch.randn(2, 3, 32, 32)
    shares = itertools.cycle([0.5, 0.625, 0.75, 0.875])
    grads = [torch.randn_like(value) for value in model.sampled().values() if value.requires_grad]

    def sampled_anew() -> object:  # by a network that was of other sizes before
        forget_sizes()
        model.resize(next(shares))
        return model.sampled()

    def sampled_and_back() -> None:
        model.resize(0.75)
        torch.autograd.backward([value for value in model.sampled().values() if value.requires_grad], grads)
        model.zero_grad()

    def step(net: nn.Module) -> Callable[[], object]:
        def run() -> None:
            net(image).sum().backward()
            net.zero_grad()

        return run

    group, forward, dense = "ResNet-18", "dense network, forward", "dense network, step"
    yield Call(group, forward, silent(lambda: plain(image)))
    yield Call(group, dense, step(plain))
    yield Call(group, "all weights, no gradients", silent(model.sampled), forward)
    yield Call(group, "all weights, sizes never seen, no gradients", silent(sampled_anew), forward)
    yield Call(group, "all weights, forward and backward", sampled_and_back, dense)
    yield Call(group, "step", step(model), dense)


# Measuring -------------------------------------------------------------------------------------------------------


def rounds_of(call: Call, seconds: float, rounds: int) -> list[float]:
    """Seconds a call of each round, of the thread's CPU time; the rounds together take about `seconds`."""

    def one_round(calls: int) -> float:
        begin = time.thread_time()
        for _ in range(calls):
            call.run()
        return (time.thread_time() - begin) / calls

    one_round(3)
    calls = max(1, min(call.most, int(seconds / rounds / max(one_round(2), 1e-6))))
    gc.disable()
    try:
        return [one_round(calls) for _ in range(rounds)]
    finally:
        gc.enable()


def measured(call: Call, gpu: NoGpu, dense: dict[str, float], seconds: float, rounds: int) -> HostRow:
    """The row of a call. `dense` has the least times, in microseconds, of the calls before it."""
    times = rounds_of(call, seconds, rounds)
    operators, before = count.operators(call.run).every, gpu.launches
    call.run()
    launched = gpu.launches - before
    row = HostRow(call.group, call.name, 1e6 * min(times), 1e6 * statistics.median(times), launched, operators)
    dense[call.name] = row.us
    if call.dense:
        row.dense, row.ratio = call.dense, row.us / dense[call.dense]
    return row


def main() -> None:
    """Measure the calls, print and write a row as each is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only calls whose group and name hold this text; nothing written")
    parser.add_argument("--seconds", type=float, default=1.5, help="CPU time spent on each call")
    parser.add_argument("--quick", action="store_true", help="a round each, nothing written")
    parser.add_argument("--csv", type=Path, default=RESULTS / "host.csv", help="where the rows are written")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # results are what memory held
    width = 8
    model = networks.converted(networks.ResNet18(width), 32)  # of real numbers
    gpu, where, dense = NoGpu(), environment(), {}
    whole = not (options.quick or options.k)
    if whole:
        options.csv.unlink(missing_ok=True)
    seconds, rounds = (0.0, 1) if options.quick else (options.seconds, ROUNDS)
    for call in itertools.chain(operator_calls(), layer_calls(), network_calls(model, width)):
        if call.dense and options.k not in f"{call.group} {call.name}":
            continue
        row = measured(call, gpu, dense, seconds, rounds)
        ratio = f"{row.ratio:6.1f} x {row.dense}" if row.ratio else ""
        counts = f"{row.launches:4} launches {row.operators:4} operators"
        print(f"{row.call:<46}{row.us:10.1f} us {counts} {ratio}", flush=True)
        if whole:
            append_csv([HostRow(**{**row.__dict__, **where})], options.csv, HostRow)


if __name__ == "__main__":
    main()
