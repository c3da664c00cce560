"""The paper's super-resolution study on the photographs that come inside Python packages: PSNR against compression.

    python -m bench.studies.superres --net srcnn     x3, three convolutions on the bicubic picture: ten minutes
    python -m bench.studies.superres --net edsr      x4, residual blocks without norms, pixel shuffle: ten minutes
    python -m bench.studies.superres --quick         half a minute

Held out for the test: astronaut, camera and chelsea of scikit-image and china of scikit-learn. Trained on: flower of
scikit-learn; coffee, rocket, motorcycle (left), coins, brick, ihc and the Hubble deep field of scikit-image. As in the
literature: luminance (Y of YCbCr), low resolution by antialiased bicubic downscaling, PSNR with a border of `scale`
pixels shaved, the mean over the pictures.

Both networks add to the bicubic picture what it misses; with --plain they make the picture themselves (see Upscaler).

Pipelines, tables and files: see `study`. The figure <name>-crop.png is the paper's Fig. 7.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import integral_nn as inn
from bench.studies.options import parse, parser
from bench.studies.study import Make, Study, Task

TRAIN = ("flower", "coffee", "rocket", "motorcycle_left", "coins", "brick", "ihc", "hubble_deep_field")
TEST = ("astronaut", "camera", "chelsea", "china")
MEAN = 0.5
BATCH = 16
CROP = ("astronaut", 24, 176, 120)  # picture, top, left and side of the figure's square
SHOWN = 0.4  # share of the parameters removed in the figure


class Pair(NamedTuple):
    """One picture as a network sees it, and what it should make of it; each [1, 1, height, width]."""

    seen: Tensor
    high: Tensor
    bicubic: Tensor  # what is to be beaten


def luminance(name: str) -> Tensor:
    """Y of YCbCr, [1, 1, height, width] in [0, 1], of a photograph in the wheels of scikit-image and scikit-learn."""
    import skimage
    import sklearn.datasets
    from PIL import Image

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images")
    path = next(p for folder in folders for p in (folder / f"{name}.png", folder / f"{name}.jpg") if p.exists())
    picture = Image.open(path).convert("YCbCr").getchannel("Y")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(1, 1, picture.height, picture.width) / 255


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Bicubic (a = -0.5), antialiased where it shrinks."""
    return F.interpolate(x, (height, width), mode="bicubic", antialias=True)


def pair(high: Tensor, net: Net) -> Pair:
    """A picture, cut to a multiple of the scale, and its low resolution."""
    height, width = (n // net.scale * net.scale for n in high.shape[2:])
    high = high[:, :, :height, :width]
    low = resized(high, height // net.scale, width // net.scale).clamp(0, 1)
    bicubic = resized(low, height, width).clamp(0, 1)
    return Pair(bicubic if net.upscaled else low, high, bicubic)


def patches(pairs: list[Pair], side: int) -> tuple[Tensor, Tensor]:
    """Inputs [N, 1, side, side], cut out of whole pictures, and what the network should make of them."""

    def cut(x: Tensor, side: int) -> Tensor:
        return x[0, 0].unfold(0, side, side).unfold(1, side, side).reshape(-1, 1, side, side)

    seen = [cut(p.seen, side) for p in pairs]
    high = [cut(p.high, side * p.high.shape[2] // p.seen.shape[2]) for p in pairs]
    return torch.cat(seen), torch.cat(high)


def conv(i: int, o: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(i, o, kernel, padding=kernel // 2, padding_mode="replicate")


def srcnn(w: int) -> nn.Module:
    """Dong et al.: convolutions 9-5-5."""
    return nn.Sequential(conv(1, w, 9), nn.ReLU(), conv(w, w // 2, 5), nn.ReLU(), conv(w // 2, 1, 5))


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def edsr(w: int) -> nn.Module:
    """Lim et al., smaller: four residual blocks within a long skip, pixel shuffle x4."""
    blocks = [Residual(conv(w, w), nn.ReLU(), conv(w, w)) for _ in range(4)]
    return nn.Sequential(conv(1, w), Residual(*blocks, conv(w, w)), conv(w, 4 * w), nn.PixelShuffle(4), conv(w // 4, 1))


class Upscaler(nn.Module):
    """A network that sees pixels less their mean; its output is added to the bicubic picture, or, `plain`, to the mean.

    A sum over channels that is off by a percent after a cut then costs a percent of the detail, not of the brightness.
    """

    def __init__(self, body: nn.Module, scale: int, plain: bool) -> None:
        super().__init__()
        self.body, self.scale, self.plain = body, scale, plain

    def forward(self, x: Tensor) -> Tensor:
        detail = self.body(x - MEAN)
        if self.plain:
            return detail + MEAN
        if self.scale == 1:
            return detail + x
        return detail + F.interpolate(x, scale_factor=float(self.scale), mode="bicubic", antialias=True)


class Net(NamedTuple):
    """A network and what it is for."""

    body: Callable[[int], nn.Module]
    width: int
    scale: int
    upscaled: bool  # it sees the bicubic picture, not the small one
    side: int  # of training patches, in pixels that it sees
    smooth: float  # weight of the nodes' roughness in the loss of INN from scratch
    init_lr: float  # of what is trained on; EDSR has no norms, and 1e-3 undoes what it has learnt

    def build(self, share: float, plain: bool) -> nn.Module:
        """With this share of the width."""
        return Upscaler(self.body(round(share * self.width)), 1 if self.upscaled else self.scale, plain)


NETS = {"srcnn": Net(srcnn, 64, 3, True, 24, 0.01, 1e-3), "edsr": Net(edsr, 32, 4, False, 16, 0.05, 3e-4)}


def batch(data: tuple[Tensor, Tensor], draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches and what the network should make of them, all turned and mirrored alike."""
    chosen = torch.randint(len(data[0]), (BATCH,), generator=draw)
    turns, mirror = torch.randint(4, (2,), generator=draw).tolist()
    x, y = (torch.rot90(t[chosen], turns, (2, 3)).flip(3) if mirror % 2 else t[chosen] for t in data)
    return x, y


@torch.no_grad()
def upscaled(net: nn.Module, pair: Pair) -> Tensor:
    """The network's picture."""
    return net.eval()(pair.seen).clamp(0, 1)


def decibels(made: Tensor, high: Tensor, shave: int = 0) -> float:
    """Peak signal-to-noise ratio of pictures in [0, 1], without a border of `shave` pixels."""
    error = (made - high)[..., shave : high.shape[-2] - shave, shave : high.shape[-1] - shave]
    return -10 * float(error.square().mean().log10())


def psnr(net: nn.Module, pairs: list[Pair], scale: int) -> float:
    """The mean over pictures."""
    return sum(decibels(upscaled(net, p), p.high, scale) for p in pairs) / len(pairs)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, in 128 colours: half the bytes, and no eye sees it."""
    import matplotlib.pyplot as plt
    from PIL import Image

    figure.savefig(path, dpi=100)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


class SuperResolution(Study):
    """The study, with the paper's Fig. 7."""

    def ways(self, net: nn.Module, fresh: nn.Module) -> dict[str, Make]:
        """As in every study; remembered for the figure."""
        self.found = super().ways(net, fresh)
        return self.found

    def crops(self, pair: Pair, path: Path) -> None:
        """Fig. 7: a part of a picture that no network has seen, as each of them makes it."""
        import matplotlib.pyplot as plt

        _, top, left, side = CROP
        full, small = (inn.compressed_sizes(self.model, share) for share in (0.0, SHOWN))
        steps = self.options.init_steps
        nets = {
            "discrete": self.trained("discrete-longer", self.task.build(1.0), steps, self.options.init_lr),
            "INN": self.found["A: INN-init"](full).discretize(),
            f"INN, {SHOWN:.0%} removed": self.found["A: INN-init"](small),
            f"L1 cut, {SHOWN:.0%} removed": self.found["C: L1 norm"](small),
        }
        pictures = {"original": pair.high, "bicubic": pair.bicubic}
        pictures |= {name: upscaled(net, pair) for name, net in nets.items()}
        figure, plots = plt.subplots(1, len(pictures), figsize=(2 * len(pictures), 2.4), layout="constrained")
        for plot, (name, picture) in zip(plots, pictures.items()):
            part, true = (t[0, 0, top : top + side, left : left + side] for t in (picture, pair.high))
            plot.imshow(part, cmap="gray", vmin=0, vmax=1)
            plot.set_title(name if name == "original" else f"{name}\n{decibels(part, true):.2f} dB", fontsize=8)
            plot.set_axis_off()
        save(figure, path)


def study(net: Net, options: argparse.Namespace) -> SuperResolution:
    """The study of one network."""
    names = (TRAIN[:2], TEST[2:3]) if options.quick else (TRAIN, TEST)
    seen, held_out = ([pair(luminance(name), net) for name in part] for part in names)
    data = patches(seen, net.side)
    few = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(0))[: options.samples]
    floor = sum(decibels(p.bicubic, p.high, net.scale) for p in held_out) / len(held_out)
    task = Task(
        name=f"superres-{options.net}" + ("-plain" if options.plain else ""),
        metric="PSNR [dB]",
        build=lambda share: net.build(share, options.plain),
        draw=partial(batch, data),
        criterion=F.mse_loss,
        score=lambda model: psnr(model, held_out, net.scale),
        loss=lambda model, pairs: F.mse_loss(model(pairs[0]), pairs[1]),
        batches=list(zip(data[0][few].split(BATCH), data[1][few].split(BATCH))),
        example=data[0][:2],
        floors={"bicubic": round(floor, 3)},
    )
    return SuperResolution(task, options)


def main() -> None:
    """Parse the options and run the study."""
    options = parser(
        __doc__, steps=2000, init_steps=2000, scratch_steps=4000, lr=1e-3, init_smooth=0.01, tuning=150, samples=256
    )
    options.set_defaults(compressions=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75), widths=(0.5, 1.0))
    options.set_defaults(smooth=None, init_lr=None)  # the network's own
    options.add_argument("--net", choices=NETS, default="srcnn")
    options.add_argument("--plain", action="store_true", help="networks make the picture, not what bicubic misses")
    options.add_argument("--figures", type=Path, help="where the paper's Fig. 7 goes; default: --folder")
    quick = {"steps": 60, "init_steps": 60, "scratch_steps": 60, "tuning": 8, "samples": 32, "compressions": (0.0, 0.4)}
    chosen = parse(options, **quick, widths=(1.0,), figures=None)
    net = NETS[chosen.net]
    for name, value in {"smooth": net.smooth, "init_lr": net.init_lr}.items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    if chosen.quick:
        net = net._replace(width=net.width // 2)
    all_ways = study(net, chosen)
    all_ways.run()
    all_ways.crops(pair(luminance(CROP[0]), net), (chosen.figures or chosen.folder) / f"{all_ways.task.name}-crop.png")


if __name__ == "__main__":
    main()
