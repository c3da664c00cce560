"""The paper's three pipelines for any task: one network trained, made integral, cut in every way, measured.

    A   an integral network trained at random widths (Algorithm 1), from the converted discrete one ("INN-init") and
        from scratch ("INN"); then re-discretized
    B   the discrete network converted and cut, only the points of its partitions tuned on a few batches; with and
        without reordering its channels first; and, with no data at all, its points placed by the nodes' curvature
    C   the discrete network cut by the L1 norm of its filters, or at random

Compression is the share of parameters removed; no weight is fine-tuned after a cut. `classify` and `superres` say what
a task is. Every finished training and every measured cell is kept in a folder, and a later run goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

import integral_nn as inn
from bench.studies import curves
from bench.studies.cut import cut

SETTINGS = (
    "steps",
    "init_steps",
    "scratch_steps",
    "lr",
    "init_lr",
    "smooth",
    "init_smooth",
    "range",
    "init_range",
    "tuning",
    "samples",
)
Make = Callable[[dict[str, int]], nn.Module]  # sizes -> a network to score


@dataclass
class Task:
    """What a study needs to know of its network and data."""

    name: str
    """Of the files it leaves."""
    metric: str
    """What `score` returns, as the table and the figure print it."""
    build: Callable[[float], nn.Module]
    """A network with this share of the full width, freshly initialized."""
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    """A batch of inputs and targets to train on."""
    criterion: Callable[[Tensor, Tensor], Tensor]
    """(outputs, targets) -> what training minimizes."""
    score: Callable[[nn.Module], float]
    """Of a network on the test data; more is better."""
    loss: Callable[[nn.Module, Any], Tensor]
    """(network, batch) -> what tuning a partition minimizes."""
    batches: list[Any]
    """The few batches that partitions are tuned on."""
    example: Tensor
    """An input."""
    calibration: list[Tensor] = field(default_factory=list)
    """Inputs on which the norms' statistics are measured after a cut, for networks that have norms."""
    floors: dict[str, float] = field(default_factory=dict)
    """Scores to beat that need no network, by name."""


class Study:
    """Train, cut and measure; `run` fills the table."""

    def __init__(self, task: Task, options: argparse.Namespace) -> None:
        self.task, self.options = task, options
        self.folder: Path = options.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{task.name}.json"
        settings = {key: getattr(options, key) for key in SETTINGS}
        self.record: dict[str, Any] = {"name": task.name, "metric": task.metric, "settings": settings}
        self.record |= {"floors": task.floors, "compression": {}, "width": {}, "removed": {}, "training_seconds": {}}
        if self.path.exists():
            earlier = json.loads(self.path.read_text())
            if earlier["settings"] != settings:
                raise SystemExit(
                    f"{self.path} is of a run with {earlier['settings']}, not {settings}: choose a --folder"
                )
            self.record |= earlier

    def trained(self, key: str, net: nn.Module, steps: int, lr: float, smooth: float | None = None) -> nn.Module:
        """The network after training, or as an earlier run left it."""
        path = self.folder / f"{self.task.name}-{key}.pt"
        if path.exists():
            net.load_state_dict(torch.load(path, weights_only=True))
            return net.eval()
        start = time.perf_counter()
        train(net, self.task, steps, lr, smooth, f"{self.task.name}: training {key}")
        torch.save(net.state_dict(), path)
        self.record["training_seconds"][key] = round(time.perf_counter() - start)
        self.keep()
        return net.eval()

    def cell(self, part: str, way: str, share: float, make: Make, sizes: dict[str, int]) -> None:
        """Fill one cell of a table ("compression" or "width"), unless an earlier run did."""
        row = self.record[part].setdefault(way, {})
        if f"{share:.2f}" not in row:
            row[f"{share:.2f}"] = round(self.task.score(make(sizes)), 3)
            self.keep()

    def keep(self) -> None:
        """Write what is known so far."""
        self.path.write_text(json.dumps(self.record, indent=1) + "\n")

    def run(self) -> dict[str, Any]:
        """All pipelines, the table and the figure; returns what was written."""
        task, options = self.task, self.options
        torch.manual_seed(0)
        fresh = task.build(1.0)
        net = self.trained("discrete", copy.deepcopy(fresh), options.steps, options.lr)
        ways = self.ways(net, fresh)
        longer = self.trained("discrete-longer", copy.deepcopy(net), options.init_steps, options.init_lr)
        self.cell("width", "discrete, trained as long as INN-init", 1.0, lambda _: longer, {})
        for share in options.compressions:
            for way, make in ways.items():
                self.cell("compression", way, share, make, inn.compressed_sizes(self.model, share))
        full = self.model.parameter_count(self.sizes(1.0))
        for share in options.widths:
            sizes = self.sizes(share)
            self.record["removed"][f"{share:.2f}"] = round(1 - self.model.parameter_count(sizes) / full, 4)
            self.cell("width", "trained at that width", share, lambda _, share=share: self.alone(net, share), sizes)
            for way, make in {**ways, **self.retuned}.items():
                self.cell("width", way, share, make, sizes)
        self.keep()
        self.show()
        if options.results:
            (options.results / self.path.name).write_text(self.path.read_text())
        return self.record

    def ways(self, net: nn.Module, fresh: nn.Module) -> dict[str, Make]:
        """Everything that makes a network of given sizes out of the trained one, by its name in the tables."""
        task, options = self.task, self.options

        def integral(net: nn.Module, quadrature: str = "midpoint", **how: Any) -> inn.IntegralNetwork:
            return inn.convert(net, task.example, quadrature=quadrature, kernel="cubic", **how)

        # Norms are kept for training: random widths need them, and their statistics are measured anew at each size.
        init = integral(net, fold=False, size_range=tuple(options.init_range))
        scratch = integral(fresh.eval(), fold=False, size_range=tuple(options.range))
        self.trained("inn-init", init, options.init_steps, options.init_lr, options.init_smooth)
        self.trained("inn", scratch, options.scratch_steps, options.lr, options.smooth)
        tuned = integral(net, quadrature="trapezoid")
        unordered = integral(net, quadrature="trapezoid", permute=False)
        folded = integral(net, permute=False)
        plain = folded.discretize()  # C cuts the layers that B cuts
        self.model = tuned
        found: dict[str, Make] = {
            "A: INN-init": lambda sizes: self.resized(init, sizes),
            "A: INN": lambda sizes: self.resized(scratch, sizes),
            "B: tuned": lambda sizes: self.tuned(tuned, sizes),
            "B: tuned, not permuted": lambda sizes: self.tuned(unordered, sizes),
            "B: no data": lambda sizes: self.bent(tuned, sizes),
            "C: L1 norm": lambda sizes: cut(plain, folded, sizes),
            "C: random": lambda sizes: cut(plain, folded, sizes, random=True),
        }
        trained = {"A: INN-init": init, "A: INN": scratch}
        self.retuned = {f"{way}, points tuned": self.retune(model) for way, model in trained.items()}
        if task.calibration:
            found["C: L1 norm, norms measured anew"] = lambda sizes: self.measured(cut(net, init, sizes))
        return found

    def sizes(self, share: float) -> dict[str, int]:
        """Each axis at this share of its full size."""
        return {name: axis.share(share) for name, axis in self.model.axes.items()}

    def alone(self, net: nn.Module, share: float) -> nn.Module:
        """A discrete network of this width, trained on its own."""
        torch.manual_seed(0)
        return (
            net
            if share == 1
            else self.trained(f"{share:.2f}", self.task.build(share), self.options.steps, self.options.lr)
        )

    def resized(self, model: inn.IntegralNetwork, sizes: dict[str, int]) -> inn.IntegralNetwork:
        """An integral network at other sizes, its norms' statistics measured there."""
        model.resize(sizes)
        if self.task.calibration:
            inn.recalibrate(model, self.task.calibration)
        return model

    def tuned(self, model: inn.IntegralNetwork, sizes: dict[str, int]) -> nn.Module:
        """A network at other sizes, its points tuned; each from the same start, whatever was tuned before."""
        model = copy.deepcopy(model)
        steps = self.options.tuning if sizes != self.sizes(1.0) else 0
        inn.tune_partitions(model, self.task.loss, self.task.batches, sizes=sizes, steps=steps, lr=0.02)
        return model

    def retune(self, model: inn.IntegralNetwork) -> Make:
        """A trained integral network at other sizes, its points tuned there."""
        return lambda sizes: self.tuned(self.resized(model, sizes), sizes)

    def bent(self, model: inn.IntegralNetwork, sizes: dict[str, int]) -> nn.Module:
        """A converted network at other sizes, its points placed by the curvature of the nodes."""
        model = copy.deepcopy(model)
        inn.tune_partitions(model, sizes=sizes)
        return model

    def measured(self, net: nn.Module) -> nn.Module:
        """A plain network, its norms' statistics measured as for the integral ones."""
        update_bn(self.task.calibration, net)
        return net

    def show(self) -> None:
        """Print the tables and draw the figure."""
        print(f"\n{self.task.name}: {self.task.metric}; no weight is fine-tuned after a cut")
        for name, value in self.task.floors.items():
            print(f"{name:34}{value:8.2f}")
        for part, what in (("compression", "parameters removed"), ("width", "of the full width")):
            rows: dict[str, dict[str, float]] = self.record[part]
            columns = sorted({share for row in rows.values() for share in row})
            print(f"{what:34}" + "".join(f"{float(share):>8.0%}" for share in columns))
            for way, row in rows.items():
                print(f"{way:34}" + "".join(f"{row[s]:8.2f}" if s in row else f"{'':8}" for s in columns))
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
        curves.draw(axes, self.record)
        figure.savefig(self.folder / f"{self.task.name}.png", dpi=150)
        plt.close(figure)


def train(net: nn.Module, task: Task, steps: int, lr: float, smooth: float | None, title: str) -> None:
    """Adam with a one-cycle rate.

    `smooth`: for an integral network, the weight of its nodes' roughness in the loss. It is trained at random widths
    (Algorithm 1) at every other step and at full width between, the two partitions of the paper's equation 8.
    """
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    net.train()
    for step in tqdm(range(steps), title, mininterval=2):
        x, y = task.draw(draw)
        if smooth is not None:
            net.resample(draw) if step % 2 else net.resize(1.0)  # type: ignore[operator]
        loss = task.criterion(net(x), y)
        if smooth is not None:
            loss = loss + smooth * net.roughness()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
