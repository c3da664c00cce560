"""A case, checked and timed, becomes rows, each handed on as soon as it is there. What fails is a row that says so."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from bench import count
from bench.gpu import networks
from bench.gpu.clock import Call, Rotation, sets_for, timing
from bench.harness import Row, Runs, Times, quantiles
from bench.jobs import BF16, Bench
from bench.providers import Case, Provider, checked, counted, layer_names, layer_providers


@dataclass
class DeviceRow(Row):
    """A row of a GPU: times are the device's (NaN: none), the host's beside them."""

    host_us: float | None = None
    clock: str = ""  # see `clock.Timing`
    problem: str = ""  # why there is no time

    def __str__(self) -> str:
        what = f"{self.op} {self.shape} {self.mode} {self.provider}"
        if self.problem:
            return f"{what}: {self.problem}"
        numbers = [f"{1e3 * self.ms_p50:.1f} us"]
        numbers += [] if self.host_us is None else [f"host {self.host_us:.0f} us"]
        numbers += [] if self.ratio_to_dense is None else [f"{self.ratio_to_dense:.2f} x dense"]
        numbers += [] if self.bandwidth_share is None else [f"{self.bandwidth_share:.0%} of the limit"]
        numbers += [] if self.error is None else [f"error {self.error:.0e}"]
        return f"{what}: {', '.join(numbers)}"


@dataclass
class Trial:
    """What is timed, and what is known of it."""

    run: Call
    error: float | None = None
    bytes: int | None = None
    flops: int | None = None
    graph: bool = True  # as replays of a graph; else as calls one after the other


class Lost(Exception):
    """The device takes no more calls from this process."""


def check_device(device: str) -> None:
    """Raise Lost after an error that ends a process's use of the device."""
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise Lost(described(error)) from None


@dataclass(eq=False)
class GpuBench(Bench):
    """Measures a GPU in bfloat16 over float32 nodes; with no seconds, or on a CPU, runs everything once."""

    write: Callable[[DeviceRow], None] = field(default=print, kw_only=True)
    kept: dict[tuple[str, ...], DeviceRow] = field(default_factory=dict, kw_only=True)  # by key; not measured again

    def clock(self, runs: Runs, seconds: float) -> Times:
        """Times of what shows the machine's limits."""
        return {name: timing(run, self.device, self.seconds).seconds for name, run in runs.items()}

    def trial(
        self, op: str, provider: str, mode: str, shape: str, make: Callable[[], Trial], base: DeviceRow | None = None
    ) -> DeviceRow:
        """The row of what `make` makes; `base` is that of the dense layer or network."""
        row = DeviceRow(op, provider, mode, shape, "bfloat16", math.nan, math.nan, math.nan, **self.where)
        if row.key in self.kept:
            return self.kept[row.key]
        try:
            trial = make()
            row.error, row.bytes, row.flops = trial.error, trial.bytes, trial.flops
            taken = timing(trial.run, self.device, self.seconds, trial.graph)
            row.ms_p50, row.ms_p20, row.ms_p80 = quantiles(taken.seconds)
            row.clock, row.host_us = taken.clock, taken.host_us
            if trial.bytes is not None:
                limits, _ = self.limits(BF16)
                row.bandwidth_share = limits.share(row.ms_p50 / 1e3, trial.bytes, trial.flops or 0)
            if taken.clock != "once":
                row.peak_mib = count.peak_mib({provider: trial.run}, self.device)[provider]
        except Exception as error:
            row.problem = described(error)
        if base is not None:
            row.ratio_to_dense = row.ms_p50 / base.ms_p50
        self.kept[row.key] = row
        self.write(row)
        check_device(self.device)
        return row

    def machine(self, dtype: torch.dtype) -> list[Row]:
        """The limits, written."""
        for row in self.limits(dtype)[1]:
            self.write(DeviceRow(**vars(row)))
        return []

    def passes(self, op: str, shape: str, trials: Callable[[], Mapping[str, Callable[[], Trial]]]) -> list[Row]:
        """Passes over memory."""
        for name, make in trials().items():
            self.trial(op, name, "forward", shape, make)
        return []

    def layer(self, case: Case) -> list[Row]:
        """One layer, all providers, step and forward; ratios are to the dense layer of the discretized size."""
        names = [n for n in layer_names(case, self.dataflows, False, self.device) if n != "two products"]
        providers = layer_providers(case, names, self.device)
        errors = functools.cache(lambda name: checked({name: providers[name]})[name])
        for mode, training in (("step", True), ("forward", False)):
            base = None
            for name, provider in providers.items():

                def make(name: str = name, provider: Provider = provider, training: bool = training) -> Trial:
                    error, work = errors(name)[training], counted(name, case, training, self.device)
                    return Trial(in_rotation(provider, training, self.device), error, work.bytes, work.flops)

                row = self.trial(case.op, name, mode, case.shape, make, base)
                base = base or row
        return []

    @functools.cache  # noqa: B019 (two a run)
    def built(self, kind: str) -> networks.Built:
        """A network at three quarters of its widths, or a tiny one on a CPU."""
        return networks.build(kind, self.device)

    def network_step(self, kind: str, way: str, how: str) -> list[Row]:
        """A training step of a network: "eager", "compiled" or as a "graph"; ratios are to the plain one's."""

        def make() -> Trial:
            built = self.built(kind)
            return Trial(built.step(way, how), built.error(way), graph=how == "graph")

        dense = self.kept.get(("network", "dense", f"step, {how}", kind, "bfloat16"))
        self.trial("network", way, f"step, {how}", kind, make, dense)
        return []


def in_rotation(provider: Provider, training: bool, device: str) -> Rotation:
    """The provider's step on copies of its tensors."""
    tensors = {name: getattr(provider, name) for name in ("x", "weight", "bias")}
    sets = sets_for(sum(t.nbytes for t in tensors.values()), device)
    copies = ({name: t.clone() for name, t in tensors.items()} for _ in range(sets))
    return Rotation([replace(provider, **copied).step(training) for copied in copies])


def described(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
