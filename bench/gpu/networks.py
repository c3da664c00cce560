"""Training steps of whole networks on a GPU: plain, ours, through grid_sample; eager, compiled, as a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.networks import MLP, ResNet18, as_integral, training_step, ways
from bench.providers import CELLS, POINTS, relative_error
from integral_nn.networks.network import IntegralNetwork

SHARE = 0.75
CELLS_WAY = "auto, cells"
HOWS = {
    "eager": ("dense", "auto", CELLS_WAY, "grid_sample"),
    "graph": ("dense", "auto", CELLS_WAY, "grid_sample"),
    "compiled": ("dense", "auto", "grid_sample"),
}
"""Ways to the weights, by how the step runs."""


class Kind(NamedTuple):
    """A network, a tiny one like it for a CPU, and the shapes of what they are given."""

    net: Callable[[], nn.Module]
    tiny: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tiny_shape: tuple[int, ...]


KINDS = {
    "ResNet-18, 224x224, batch 64": Kind(ResNet18, lambda: ResNet18(8, 4, 1), (64, 3, 224, 224), (2, 3, 16, 16)),
    "MLP, 6 blocks of 1024 and 4096, 4096 rows": Kind(MLP, lambda: MLP(8, 16, 1), (4096, 64), (4, 64)),
}


@dataclass
class Built:
    """A network at one size in each way, and a batch."""

    nets: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]]  # and what holds the parameters
    x: Tensor
    exact: dict[str, Tensor]  # outputs in float64

    def step(self, way: str, how: str) -> Callable[[], object]:
        """A training step under autocast."""
        net, holder = self.nets[way]
        if how == "compiled":
            net = torch.compile(net, dynamic=False, backend="inductor" if self.x.is_cuda else "eager")
        return training_step(net, holder, self.x, torch.bfloat16)

    @torch.no_grad()
    def error(self, way: str) -> float:
        """Of the output."""
        with torch.autocast(self.x.device.type, torch.bfloat16):
            y = self.nets[way][0](self.x)
        return relative_error(y, self.exact[way])


def build(kind: str, device: str) -> Built:
    """The network of a kind; on a CPU the tiny one."""
    torch.manual_seed(0)
    chosen = KINDS[kind]
    make, shape = (chosen.tiny, chosen.tiny_shape) if device == "cpu" else (chosen.net, chosen.shape)
    net, example = make(), torch.zeros(1, *shape[1:])
    points, cells = (as_integral(net, example, **rule).to(device) for rule in (POINTS, CELLS))
    x = torch.randn(shape, device=device)
    nets = ways(points, SHARE) | {CELLS_WAY: ways(cells, SHARE)["auto"]}
    with torch.no_grad():
        exact = {True: true_output(cells, x), False: true_output(points, x)}
    return Built(nets, x, {way: exact[way == CELLS_WAY] for way in nets})


def true_output(model: IntegralNetwork, x: Tensor) -> Tensor:
    """What the network gives in float64."""
    return model.discretize().double().train()(x.double())
