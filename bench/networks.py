"""A ResNet-18-shaped network: what its resize and its training step cost, and what being smaller gains."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import integral_nn as inn
from bench.harness import Runs
from bench.providers import GRID_TOLERANCE, TOLERANCE, relative_error
from inn_kernels import taps
from integral_nn.networks.network import IntegralNetwork


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or inputs != width:
            self.short = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))


class ResNet18(nn.Module):
    """ResNet-18 for images of any size; `width` 64 and 1000 classes are 11.7 million weights. Or its first stages."""

    def __init__(self, width: int = 64, classes: int = 1000, stages: int = 4) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        widths = [2**stage * width for stage in range(stages) for _ in range(2)]
        strides = [2 if stage and first else 1 for stage in range(stages) for first in (True, False)]
        self.blocks = nn.Sequential(*(Block(i, o, s) for i, o, s in zip([width, *widths], widths, strides)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


class MLP(nn.Module):
    """The feed-forward halves of a transformer, one after the other, between two projections to 64 features."""

    def __init__(self, width: int = 1024, hidden: int = 4096, blocks: int = 6, features: int = 64) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(features, width), nn.Linear(width, features)
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Residual sums."""
        x = self.embed(x)
        for up, down in zip(self.up, self.down):
            x = x + down(F.gelu(up(x)))
        return self.head(x)


def as_integral(net: nn.Module, example: Tensor, **rule: Any) -> IntegralNetwork:
    """The network as an integral one, channels in their old order: what is timed does not depend on it."""
    return inn.convert(net, example, permute=False, fold=False, **rule)


def converted(net: nn.Module, image: int, **rule: Any) -> IntegralNetwork:
    """The network of images as an integral one."""
    return as_integral(net, torch.zeros(1, 3, image, image), **rule)


def grid_sample_tensor(nodes: Tensor, shape: torch.Size) -> Tensor:
    """Nodes at cell centres resized to a weight's shape by grid_sample, inputs weighted by the midpoint rule."""

    def centres(size: int) -> Tensor:
        return (2 * torch.arange(size, device=nodes.device, dtype=nodes.dtype) + 1) / size - 1

    if nodes.dim() == 1:
        rows, columns, image = torch.zeros(1, device=nodes.device), centres(shape[0]), nodes[None, None, None]
    else:
        rows, columns = centres(shape[0]), centres(shape[1])
        image = nodes.reshape(*nodes.shape[:2], -1).permute(2, 0, 1).unsqueeze(0)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).unsqueeze(0)
    sampled = F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False)[0]
    if nodes.dim() == 1:
        return sampled.flatten()
    weighted = sampled * torch.full_like(columns, nodes.shape[1] / shape[1])
    return weighted.permute(1, 2, 0).reshape(shape)


def _grid_sampled(model: IntegralNetwork, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    tensors = dict(model.net.named_parameters()) | model.nodes()
    return {name: grid_sample_tensor(tensors[name], shape) for name, shape in shapes.items()}


def forget(model: IntegralNetwork) -> None:
    """Sizes are new to the network, and to all: their partitions, quadratures and bases are to be made first."""
    taps._of_ints.clear()
    for axis in model.axes.values():
        axis._keep({})


def resizes(model: IntegralNetwork, cells: IntegralNetwork, share: float) -> tuple[Runs, dict[str, float], int]:
    """Every weight of the network at another size, beside copies of the nodes; errors, and bytes that must move.

    `cells` is the same network with its axes cut into cells.
    """
    parameters = list(model.net.parameters())
    tensors = [*parameters, *model.net.buffers()]
    there = [t.detach().clone() for t in tensors]

    def resize(model: IntegralNetwork = model) -> dict[str, Tensor]:
        with torch.no_grad():
            model.resize(share)
            return model.sampled()

    def resize_anew(model: IntegralNetwork = model) -> object:
        forget(model)
        return resize(model)

    def discretize() -> object:
        model.resize(share)
        return model.discretize()

    def copy_in_place() -> None:
        with torch.no_grad():
            for to, tensor in zip(there, tensors):
                to.copy_(tensor)

    sampled = resize()
    nodes = model.nodes()
    shapes = {name: value.shape for name, value in sampled.items() if isinstance(nodes[name], nn.Parameter)}

    def through_grid_sample() -> object:
        with torch.no_grad():
            return _grid_sampled(model, shapes)

    runs: Runs = {
        "copy": lambda: [t.detach().clone() for t in tensors],
        "copy in place": copy_in_place,
        "resize": resize,
        "resize, new size": resize_anew,
        "resize, cells": functools.partial(resize, cells),
        "resize, cells, new size": functools.partial(resize_anew, cells),
        "discretize": discretize,
        "grid_sample": through_grid_sample,
    }
    moved = sum(t.numel() * t.element_size() for t in tensors)
    moved += sum(t.numel() * t.element_size() for t in sampled.values())
    exact = _exact(model, share)
    errors = {"copy": 0.0, "copy in place": 0.0}
    for name, network in (("resize", model), ("resize, cells", cells)):
        found, true = resize(network), _exact(network, share)
        errors[name] = errors[f"{name}, new size"] = max(relative_error(found[n], t) for n, t in true.items())
    errors["discretize"] = errors["resize"]
    theirs = _grid_sampled(model, shapes)
    errors["grid_sample"] = max(relative_error(value.detach(), exact[name]) for name, value in theirs.items())
    return runs, _within(errors), moved


def _exact(model: IntegralNetwork, share: float) -> dict[str, Tensor]:
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        wide.resize(share)
        return wide.sampled()


def _within(errors: dict[str, float], amplified: int = 1) -> dict[str, float]:
    tolerance = amplified * TOLERANCE[torch.float32]
    limits = {name: tolerance * (GRID_TOLERANCE if "grid" in name else 1) for name in errors}
    wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
    if wrong:
        raise ArithmeticError(f"errors beyond their tolerance: {wrong}")
    return errors


def ways(model: IntegralNetwork, share: float) -> dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]]:
    """The network at one size, to be trained: plain, ours, weights through grid_sample. And what holds parameters."""
    model.resize(share)
    model.train()
    plain = model.discretize().train()
    shapes = {name: t.shape for name, t in plain.named_parameters()}

    def through_grid_sample(x: Tensor) -> Tensor:
        return functional_call(plain, _grid_sampled(model, shapes), (x,))

    return {"dense": (plain, plain), "auto": (model, model), "grid_sample": (through_grid_sample, model)}


def training_step(
    net: Callable[[Tensor], Tensor], holder: nn.Module, x: Tensor, compute: torch.dtype
) -> Callable[[], object]:
    """Forward, under autocast to a narrower dtype, and backward; gradients are dropped."""

    def run() -> object:
        with torch.autocast(x.device.type, compute, enabled=compute != torch.float32):
            y = net(x)
        y.float().square().mean().backward()
        for parameter in holder.parameters():
            parameter.grad = None
        return None

    return run


def steps(
    model: IntegralNetwork,
    cells: IntegralNetwork,
    share: float,
    batch: int,
    image: int,
    compute: torch.dtype = torch.float32,
) -> tuple[Runs, dict[str, float]]:
    """Training steps at one size: the plain network, ours, and weights through grid_sample. Errors of the outputs.

    `cells` is the same network with its axes cut into cells.
    """
    nets = ways(model, share) | {"auto, cells": ways(cells, share)["auto"]}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, image, image, generator=generator).to(next(model.parameters()).device)
    errors = {}
    with torch.no_grad():
        exact, of_cells = (network.discretize().double().train()(x.double()) for network in (model, cells))
        for name, (net, _) in nets.items():
            errors[name] = relative_error(net(x), of_cells if "cells" in name else exact)
    runs: Runs = {name: training_step(net, holder, x, compute) for name, (net, holder) in nets.items()}
    return runs, _within(errors, amplified=100)  # twenty layers with batch norm amplify what a single one rounds


def latencies(
    model: IntegralNetwork, shares: tuple[float, ...], batch: int, image: int, compute: torch.dtype = torch.float32
) -> Runs:
    """Inference of the plain networks that `discretize` gives at each share of the widths."""
    device = next(model.parameters()).device
    x = torch.randn(batch, 3, image, image, device=device)

    def run(net: nn.Module) -> Callable[[], object]:
        def forward() -> object:
            with torch.no_grad(), torch.autocast(device.type, compute, enabled=compute != torch.float32):
                return net(x)

        return forward

    model.eval()
    runs: Runs = {}
    for share in shares:
        model.resize(share)
        runs[f"{share:.0%}"] = run(model.discretize())
    return runs
