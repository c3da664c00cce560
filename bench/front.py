"""Redraw README's picture and its three numbers from bench/results: python -m bench.front [--check | --measure].

The networks of the picture are plain ones of their width, whoever they come from, and take the same time: --measure
takes it, on one thread of a CPU, and keeps it in bench/results/latency.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.harness import RESULTS, ROOT, Row, environment, paired_times, read_csv
from bench.studies.nets import NETS

README, FIGURE = ROOT / "README.md", ROOT / "docs" / "figures" / "front.svg"
LATENCY = RESULTS / "latency.json"
BATCH, CHANNELS = 64, 32  # pictures in a call that is timed; of the first layer at full width
BEGIN, END = "<!-- front: written by bench/front.py -->", "<!-- end of front -->"
NETWORK = "ResNet-18 at 75%, 64x64, batch 8"
EVERY, ALONE, CUT = "A: INN", "trained at that width", "C: L1 norm, norms measured anew"
LINES: dict[str, tuple[str, dict[str, Any], str, tuple[int, int]]] = {
    ALONE: (
        "five networks, each trained for its width",
        {"marker": "D", "color": "0.25", "ls": "none", "mfc": "none", "mew": 1.5, "ms": 12},
        "0.38",
        (0, 14),
    ),
    EVERY: (
        "one integral network,\nat every width",
        {"marker": "o", "color": "#0b5fa5", "lw": 2.5, "ms": 7},
        "0.75",
        (9, -44),
    ),
    CUT: (
        "an ordinary network, channels cut",
        {"marker": "s", "color": "#c8501e", "ls": "--", "ms": 8},
        "0.50",
        (11, -6),
    ),
}
"""By a record's name: the picture's name, its look, and where that name stands: beside which width, how far off."""
TEXT = """\
- **{every_half:.1f}%** of Fashion-MNIST right at half the width ({left:.0%} of the parameters), nothing trained again:
  a network trained for that width alone has {alone_half:.1f}%, an ordinary one cut to it by L1 norm {cut_half:.1f}%.
  At full width it is {every_full:.1f}%, of a network trained for that alone {alone_full:.1f}%.
- **{tuned:.1f}%** of pitches right with 30% of the channels of CREPE tiny, a published network, removed without labels,
  none of its weights trained; where the channels of largest L1 norm are kept, {l1:.1f}%.
- **{ours:.1f} times** the dense network's time for a training step of a ResNet-18 at 75% of its width on a CPU;
  by `grid_sample`, as the method's authors sample, {theirs:.1f} times. On a GPU: not yet measured."""
SETTINGS = {"svg.hashsalt": "inn-kernels", "svg.fonttype": "path", "font.size": 12, "axes.spines.top": False,
            "axes.spines.right": False}  # fmt: skip
Record = dict[str, Any]


def measure(shares: list[str], seconds: float = 20.0) -> Record:
    """Microseconds a picture of the networks of these widths, the median of calls in random order on one thread."""
    torch.set_num_threads(1)
    pictures = torch.randn(BATCH, 1, 28, 28)
    nets = {share: NETS["vgg"](round(float(share) * CHANNELS), 2).eval() for share in shares}
    with torch.inference_mode():
        times = paired_times({share: partial(net, pictures) for share, net in nets.items()}, seconds)
    found = {share: round(1e6 * median(taken) / BATCH, 2) for share, taken in times.items()}
    where = {key: value for key, value in environment().items() if key in ("device", "torch", "commit")}
    return {"microseconds a picture": found, "batch": BATCH, **where}


def records() -> tuple[Record, Record, list[Row]]:
    """The study that is drawn, the pitch tracker's, and the benchmark's rows."""
    study, pitch = (json.loads((RESULTS / name).read_text()) for name in ("fashion-vgg.json", "crepe.json"))
    return study, pitch, read_csv(RESULTS / "cpu.csv")


def numbers(study: Record, pitch: Record, rows: list[Row]) -> str:
    """The three numbers, as a list in Markdown."""
    every, alone, cut = (study["width"][way] for way in (EVERY, ALONE, CUT))
    steps = {r.provider: r.ratio_to_dense for r in rows if (r.op, r.mode, r.shape) == ("network", "step", NETWORK)}
    return TEXT.format(
        every_half=every["0.50"],
        every_full=every["1.00"],
        alone_half=alone["0.50"],
        alone_full=alone["1.00"],
        cut_half=cut["0.50"],
        left=1 - study["removed"]["0.50"],
        tuned=pitch["tuned at 30%"],
        l1=pitch["L1 at 30%"],
        ours=steps["auto, cells"],
        theirs=steps["grid_sample"],
    )


def draw(study: Record, latency: Record, path: Path) -> None:
    """Accuracy against time: one integral network, networks trained for one width each, and one that is cut."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    took = latency["microseconds a picture"]
    widths, times = [float(share) for share in took], list(took.values())
    low = study["settings"]["range"][0]
    nearest = max(share for share in widths if share < low)
    after = min(share for share in widths if share >= low)
    begin, end = (times[widths.index(share)] for share in (nearest, after))
    edge = begin + (end - begin) * (low - nearest) / (after - nearest)
    with matplotlib.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        axes.axvspan(0, edge, color="0.93", linewidth=0)
        axes.text(edge * 0.03, 3, "narrower than it\nwas trained at", color="0.3", fontsize=10)
        for way, (label, look, share, offset) in LINES.items():
            score = study["width"][way]
            axes.plot([took[s] for s in score], list(score.values()), clip_on=False, **look)
            at = (took[share], score[share])
            axes.annotate(label, at, offset, textcoords="offset points", color=look["color"], weight="bold")
        axes.set(xlabel="time of the network [µs a picture]", ylabel=study["metric"], xlim=(0, 1.03 * max(times)))
        axes.set(ylim=(0, 108), yticks=range(0, 101, 20))
        axes.grid(axis="y", alpha=0.3)
        above = axes.secondary_xaxis("top")
        above.set_xticks(times, [f"{100 * share:g}" for share in widths], fontsize=10)
        above.set_xlabel("its width [%]")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def redrawn(readme: str) -> str:
    """README's text with its numbers replaced."""
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{numbers(*records())}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Rewrite README's numbers and the picture, or with --check only say whether the numbers are up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="take the networks' time first, half a minute")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if README differs")
    options = parser.parse_args()
    old = README.read_text()
    new = redrawn(old)
    if options.check:
        return int(old != new)
    study = records()[0]
    if options.measure:
        LATENCY.write_text(json.dumps(measure(list(study["width"][EVERY])), indent=1) + "\n")
    README.write_text(new)
    draw(study, json.loads(LATENCY.read_text()), FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
