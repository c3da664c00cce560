"""Parameters and multiplications of a network, before and after a change of size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from inn_kernels import flops  # noqa: F401 (what the counter makes of this package's operations)
from integral_nn.functional import checks
from integral_nn.networks.network import IntegralNetwork


@dataclass(frozen=True)
class Count:
    """Size of a network."""

    parameters: int
    macs: int
    """Multiply-adds of matrix products and convolutions in one call."""


def count(net: nn.Module, example_inputs: Tensor | tuple) -> Count:
    """Parameters, and multiply-adds of one call. An integral network is counted at its current sizes, as discretized.

    Args:
        net: any module.
        example_inputs: a tensor, or a tuple of positional inputs.

    Raises:
        TypeError: neither; the message names the argument.

    >>> import torch, integral_nn as inn
    >>> inn.count(torch.nn.Linear(8, 4), torch.zeros(2, 8))
    Count(parameters=36, macs=64)
    """
    checks.check_module(net)
    inputs = checks.check_example_inputs(example_inputs)
    if isinstance(net, IntegralNetwork):
        net = net.discretize()
    was = {m: m.training for m in net.modules()}
    net.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(*inputs)
    finally:
        for module, mode in was.items():
            module.training = mode
    return Count(sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2)
