"""Networks cut as pruning does it: whole channels dropped, those that stay left as they were."""

from __future__ import annotations

import copy

import torch
from torch import nn

import integral_nn as inn
from integral_nn.networks.permute import apply_orders


def cut(net: nn.Module, model: inn.IntegralNetwork, sizes: dict[str, int], random: bool = False) -> nn.Module:
    """`net` with so many channels of each of the model's axes: of the largest L1 norm, or random ones."""
    generator = torch.Generator().manual_seed(0)
    net = copy.deepcopy(net)
    named = [*net.named_parameters(), *net.named_buffers()]
    tensors = {name: t.detach() for name, t in named}
    orders = {}
    for name, size in sizes.items():
        makers = [t for t in model.found.ties_of(name) if not t.integrated and tensors[t.tensor].dim() > 1]
        norms = sum(t.layout.channels(tensors[t.tensor], t.dim, name)[0].abs().sum(1) for t in makers)
        score = torch.rand(norms.shape, generator=generator) if random else norms
        orders[name] = score.topk(size).indices.sort().values
    kept = apply_orders(tensors, model.found, orders)
    for name, old in named:
        old.data = kept.get(name, old.data)
    return net
