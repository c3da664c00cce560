"""What the sizes of a network need before they are first used: taps, and compiled kernels."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from integral_nn.layers.held import sample_modules, warm_statistics
from integral_nn.networks.network import IntegralNetwork
from integral_nn.networks.sizes import Size


def warmup(model: IntegralNetwork, sizes: Iterable[Size]) -> None:
    """Make what `model` needs at each of `sizes`, so that its first step there costs no more than later ones.

    Every weight is sampled and its gradient brought back, once a size: taps are made and kept (a few thousand sizes of
    axes are), and on a GPU Triton compiles the kernels of each class of sizes. Call it where training or serving will
    run: on the same device, under the same autocast. The model stays as it is, its gradients and size included.

    Args:
        model: an integral network.
        sizes: shares of the nodes, or mappings from axes to sizes, as `resize` takes them.

    Raises:
        TypeError: `model` is not an IntegralNetwork, `sizes` not an iterable of shares and mappings.
        ValueError: a size that an axis does not allow; nothing is made.

    >>> import torch, integral_nn as inn
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> inn.warmup(inn.convert(net, torch.zeros(1, 4)), [{"0": size} for size in range(16, 33)])
    """
    if not isinstance(model, IntegralNetwork):
        raise TypeError(f"model must be an IntegralNetwork, got {type(model).__name__}")
    if not isinstance(sizes, Iterable) or isinstance(sizes, (str, bytes)):
        raise TypeError(f"sizes must be an iterable of shares and mappings from axes to sizes, got {sizes!r}")
    modules = model._sampling()
    for at in [model._sizes_at(size, "sizes") for size in sizes]:
        with torch.enable_grad():
            values = [value for made in sample_modules(modules, at).values() for value in made.values()]
        reached = [value for value in values if value.requires_grad]
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if reached and wanted:
            torch.autograd.grad(reached, wanted, [torch.zeros_like(v) for v in reached], allow_unused=True)
        warm_statistics(modules, at)


__all__ = ["warmup"]
