"""Networks that run at any width, behind one face: net(x, width) in training, net.at(width) to test.

A width is the number of channels of the first layer; every other layer keeps its ratio to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import integral_nn as inn

Build = Callable[[int], nn.Module]  # width -> a network, freshly initialized


class Alone(nn.Module):
    """An ordinary network: of one width."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, width: int) -> Tensor:
        return self.net(x)

    def at(self, width: int) -> nn.Module:
        """A copy of it."""
        return copy.deepcopy(self.net)


class Slices(nn.Module):
    """An ordinary network of which each width uses the first channels."""

    def __init__(self, net: nn.Module, build: Build) -> None:
        super().__init__()
        self.net, self.build = net, build
        self.shapes: dict[int, dict[str, torch.Size]] = {}

    def tensors(self, width: int) -> dict[str, Tensor]:
        """Parameters and buffers: the first entries along each dimension, as many as a network of this width has."""
        if width not in self.shapes:
            with torch.device("meta"):
                self.shapes[width] = {name: t.shape for name, t in self.build(width).state_dict().items()}
        shapes = self.shapes[width]
        named = [*self.net.named_parameters(), *self.net.named_buffers()]
        return {name: t[tuple(slice(n) for n in shapes[name])] for name, t in named}

    def forward(self, x: Tensor, width: int) -> Tensor:
        return functional_call(self.net, self.tensors(width), (x,))

    def at(self, width: int) -> nn.Module:
        """A network of this width with these weights."""
        net = self.build(width)
        net.load_state_dict(self.tensors(width))
        return net.to(next(self.net.parameters()).device)


class Integral(nn.Module):
    """A network made integral, its norms kept. `how` goes to `inn.convert`; channels stay in their order."""

    def __init__(self, net: nn.Module, full: int, example: Tensor, how: dict[str, Any]) -> None:
        super().__init__()
        self.model = inn.convert(net.eval(), example, fold=False, permute=False, **how)
        self.full = full

    def forward(self, x: Tensor, width: int) -> Tensor:
        self.model.resize(width / self.full)
        return self.model(x)

    def at(self, width: int) -> nn.Module:
        """The plain network of this width."""
        return self.model.discretize(width / self.full)


class Switched(Integral):
    """Trained over B-splines first, which smooths what is learned, then over conservative cells, which do not.

    The change is exact at full size: there, a conservative node is the weight itself.
    """

    def switch(self) -> None:
        """From here on, conservative cells."""
        weights = self.model.discretize(1.0).state_dict()
        for axis in self.model.axes.values():
            axis.basis = axis.basis._replace(kernel="conservative")
        self.model.load_discrete(weights)


AnyWidth = Alone | Slices | Integral
