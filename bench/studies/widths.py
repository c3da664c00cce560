"""One network for every width: trained from scratch for 25 to 100% of its width, then tested at each.

Every step trains full width with the labels, and three random widths, one of each third of the range, with what full
width returns as soft targets (after US-Nets). All rows are trained so: the first channels of an ordinary network
("slices"), and integral networks by how their weights are sampled. Beside them stand ordinary networks of one width
("alone"). The statistics of norms are measured anew at each width, for every row alike.

A training is one process with one file, so that they can be spread; one that was cut off goes on where it was:

    python -m bench.studies.widths --net vgg --row slices --seed 0 --lr 0.003     train; validation accuracies
    python -m bench.studies.widths --net vgg --row slices --seed 1                 .. at the rate best on validation
    python -m bench.studies.widths --net vgg --row slices --seed 1 --test          .. and measure the test set
    python -m bench.studies.widths --net vgg --merge --results bench/results       one record of all that is finished

Rates are chosen on the last sixth of the training pictures, which no training sees.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from bench.studies.anywidth import Alone, AnyWidth, Build, Integral, Slices, Switched
from bench.studies.nets import NETS
from bench.studies.options import parse
from bench.studies.pictures import Data, accuracy, batch, digits, fashion

FULL = {"vgg": 32, "nin": 24, "resnet": 16}  # channels of the first layer
LOW = 0.25  # of the width: the narrowest that is trained
SHARES = (0.25, 0.3125, 0.375, 0.5, 0.625, 0.75, 0.9, 1.0)  # that are tested, at the nearest width there is
WIDER = 1.25  # integral networks are tested there too
RATES = (1e-3, 3e-3, 1e-2)  # largest learning rates worth trying
KEEP = 100  # steps between two checkpoints
INTEGRAL: dict[str, dict[str, Any]] = {  # how `inn.convert` samples weights
    "points-cubic": {"quadrature": "midpoint", "kernel": "cubic"},
    "points-bspline": {"quadrature": "midpoint", "kernel": "bspline"},
    "cells-conservative": {"quadrature": "cells", "kernel": "conservative"},
    "cells-cubic": {"quadrature": "cells", "kernel": "cubic"},
    "cells-bspline": {"quadrature": "cells", "kernel": "bspline"},
}
SWITCHED = "cells-switched"  # from B-splines to conservative cells, after this share of the steps
SWITCH = 2 / 3
ALONE = {f"alone-{share:.0%}".rstrip("%"): share for share in (0.25, 0.5, 1.0)}
ROWS = ("slices", *INTEGRAL, SWITCHED, *ALONE)

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor]]


def build(options: argparse.Namespace) -> Build:
    """Networks of any width."""
    return lambda width: NETS[options.net](width, 1 if options.quick else 2)


def make(row: str, build: Build, full: int, example: Tensor) -> AnyWidth:
    """A row's network, freshly initialized."""
    if row in ALONE:
        return Alone(build(round(ALONE[row] * full)))
    net = build(full)
    if row == SWITCHED:
        return Switched(net, full, example, INTEGRAL["cells-bspline"])
    return Slices(net, build) if row == "slices" else Integral(net, full, example, INTEGRAL[row])


def stratified(full: int, draw: torch.Generator) -> list[int]:
    """A random width of each third of the range."""
    shares = LOW + (1 - LOW) * (torch.arange(3) + torch.rand(3, generator=draw)) / 3
    return [round(share * full) for share in shares.tolist()]


def backward(net: nn.Module, x: Tensor, y: Tensor, full: int, narrower: list[int]) -> None:
    """Add the gradients of a step: full width learns the labels, others what full width says."""
    out = net(x, full)
    F.cross_entropy(out, y, label_smoothing=0.05).backward()
    soft = out.detach().softmax(1)
    for width in narrower:
        F.cross_entropy(net(x, width), soft).backward()


def train(net: AnyWidth, full: int, pictures: Draw, steps: int, lr: float, seed: int, kept: Path) -> float:
    """Adam with a one-cycle rate, from what is `kept` of an earlier process on. Returns the seconds of all steps."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    switch = round(SWITCH * steps) if isinstance(net, Switched) else steps
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule}
    first, seconds = 0, 0.0
    if kept.exists():
        state = torch.load(kept, weights_only=True, map_location="cpu")
        if state["steps"] != steps:
            raise SystemExit(f"{kept} is of a training of {state['steps']} steps, not {steps}: choose a --folder")
        if state["step"] > switch:
            net.switch()  # type: ignore[union-attr]
        for name, part in parts.items():
            part.load_state_dict(state[name])  # type: ignore[attr-defined]
        draw.set_state(state["draw"])
        first, seconds = state["step"], state["seconds"]
    start = time.perf_counter() - seconds
    net.train()
    for step in tqdm(range(first, steps), kept.stem, initial=first, total=steps, mininterval=2):
        if step == switch:
            net.switch()  # type: ignore[union-attr]
        x, y = pictures(draw)
        optimizer.zero_grad()
        backward(net, x, y, full, [] if isinstance(net, Alone) else stratified(full, draw))
        optimizer.step()
        schedule.step()
        if (step + 1) % KEEP == 0 or step + 1 == steps:
            seconds = time.perf_counter() - start
            state = {name: part.state_dict() for name, part in parts.items()}  # type: ignore[attr-defined]
            unfinished = kept.with_suffix(".tmp")
            state |= {"draw": draw.get_state(), "step": step + 1, "steps": steps, "seconds": seconds}
            torch.save(state, unfinished)
            os.replace(unfinished, kept)
    return seconds


def scores(net: AnyWidth, row: str, full: int, data: Data) -> dict[str, float]:
    """Accuracy on the data's test part by width in percent, the norms' statistics measured at each."""
    shares = (ALONE[row],) if row in ALONE else SHARES if row == "slices" else (*SHARES, WIDER)
    found = {}
    for share in shares:
        plain = net.at(round(share * full))
        update_bn(data[0][:2048].split(256), plain)
        found[f"{100 * share:g}"] = round(accuracy(plain, data), 3)
    return found


def parts(data: Data) -> tuple[Data, Data]:
    """Pictures to train on with those held out from training to validate; the same with the test set."""
    x, y, test_x, test_y = data
    rest = len(x) - len(x) // 6
    return (x[:rest], y[:rest], x[rest:], y[rest:]), (x[:rest], y[:rest], test_x, test_y)


def path(folder: Path, net: str, row: str, seed: int, lr: float) -> Path:
    """Where a training leaves its record; its checkpoint is beside it."""
    return folder / f"widths-{net}-{row}-{seed}-{lr:g}.json"


def records(folder: Path, net: str, row: str) -> list[dict[str, Any]]:
    """Of a row's finished trainings."""
    found = (json.loads(path.read_text()) for path in sorted(folder.glob(f"widths-{net}-{row}-*.json")))
    return [record for record in found if record["row"] == row]


def chosen(folder: Path, net: str, row: str) -> float:
    """The row's rate that is best on validation pictures, over all widths, among those tried with the first seed."""
    tried = {record["lr"]: record["validation"] for record in records(folder, net, row) if record["seed"] == 0}
    if not tried:
        raise SystemExit(f"no rate was tried for {net}, {row}: run it with --seed 0 and --lr, as {RATES} one by one")
    return max(tried, key=lambda lr: mean(score for width, score in tried[lr].items() if float(width) <= 100))


def tested(folder: Path, net: str, row: str) -> list[dict[str, Any]]:
    """The row's trainings at the chosen rate that the test set was measured of."""
    found = [record for record in records(folder, net, row) if "test" in record]
    return [record for record in found if record["lr"] == chosen(folder, net, row)]


def merged(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Records of one row as one: the accuracies by width, one a seed, in the order of the seeds."""
    found = sorted(found, key=lambda record: record["seed"])
    by_width = {width: [record["test"][width] for record in found] for width in found[0]["test"]}
    settings = {key: found[0][key] for key in ("lr", "steps") if key in found[0]}
    return {"test": by_width, "seeds": [record["seed"] for record in found], **settings}


def keep(name: str, rows: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write the record of a table from those of its rows."""
    made = {row: merged(found) for row, found in rows.items() if found}
    table = {"name": name, "metric": "test accuracy [%]", "rows": made}
    (folder / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train a row's network, or take it as an earlier process left it, and measure what is asked for."""
    net, row, seed = options.net, options.row, options.seed
    full = 8 if options.quick else FULL[net]
    data = digits(1347) if options.quick else fashion(60000)
    lr = options.lr or chosen(options.folder, net, row)
    held_out, test = (tuple(t.to(options.device) for t in part) for part in parts(data))
    leaves = path(options.folder, net, row, seed, lr)
    torch.manual_seed(seed)
    made = make(row, build(options), full, data[0][:2]).to(options.device)
    seconds = train(made, full, partial(batch, held_out), options.steps, lr, seed, leaves.with_suffix(".pt"))
    record = {"net": net, "row": row, "seed": seed, "lr": lr, "steps": options.steps, "device": options.device}
    record["milliseconds a step"] = round(1000 * seconds / options.steps, 1)
    record |= json.loads(leaves.read_text()) if leaves.exists() else {"validation": scores(made, row, full, held_out)}
    if options.test and "test" not in record:
        record["test"] = scores(made, row, full, test)
    leaves.write_text(json.dumps(record, indent=1) + "\n")
    return record


def main() -> None:
    """Train and measure one network, or merge what is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="vgg")
    parser.add_argument("--row", choices=ROWS, default="slices", help="what is trained")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights, of pictures and widths")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument(
        "--lr", type=float, help="largest learning rate; default: the best on validation of those tried"
    )
    parser.add_argument("--test", action="store_true", help="measure the test set, too")
    parser.add_argument("--merge", action="store_true", help="only gather what is finished")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where everything is kept")
    parser.add_argument("--results", type=Path, help="where --merge leaves its record; default: --folder")
    parser.add_argument("--quick", action="store_true", help="small and short, on digits, in a folder of its own")
    options = parse(parser, steps=60)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.merge:
        rows = {row: tested(options.folder, options.net, row) for row in ROWS}
        keep(f"widths-{options.net}", rows, options.results or options.folder)
    else:
        print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
