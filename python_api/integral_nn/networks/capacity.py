"""How much width carries the signal: the spectrum of the weights along an axis (paper, section 6).

By Nyquist's theorem a function without frequencies above f half-cycles is told by f + 1 samples. What the nodes of an
axis are at full size is read as samples of such functions, one for each weight the axis ties. The cosine transform is
the Fourier transform of the function reflected at its ends, where a plain one would see a jump:

    c_f = sum_i W[i] cos(pi f (i + 1/2) / M),   f = 0 .. M - 1
"""

from __future__ import annotations

import torch
from torch import Tensor

from integral_nn.functional import checks
from integral_nn.networks.network import IntegralNetwork
from integral_nn.networks.nodes import full_weights
from integral_nn.networks.permute import axis_features


def spectrum(model: IntegralNetwork, axis: str) -> Tensor:
    """Share of the energy of the weights at full size at each frequency along an axis. Float64 [M], sums to 1.

    M is the number of nodes. Entry f counts f half-cycles over the axis; entry 0 is the mean.

    Raises:
        ValueError: an unknown axis.
        TypeError: `model` is not an integral network.
    """
    checks.check_instance(model, IntegralNetwork, "model")
    found = model.axes
    checks.check_axis_name(axis, found, "axis")
    nodes = found[axis].nodes
    features = axis_features(full_weights(model), model.found.ties, axis).double()
    reflected = torch.cat([features, features.flip(0)])
    power = torch.fft.rfft(reflected, dim=0)[:nodes].abs().square().sum(1)
    # An orthonormal cosine transform weighs the mean by half.
    power[0] /= 2
    return power / power.sum()


def capacity(model: IntegralNetwork, share: float = 0.99) -> dict[str, int]:
    """The number of points each axis needs to carry a share of the energy of its weights.

    Args:
        model: an integral network.
        share: of the energy, in (0, 1].

    Returns:
        {axis: points}: the fewest lowest frequencies that hold the share. A rough axis (channels in random order)
        needs nearly all of its nodes, a smooth one few.

    Raises:
        ValueError: `share` is not in (0, 1].
        TypeError: `model` is not an integral network.

    >>> import torch, integral_nn as inn
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> needed = inn.capacity(inn.convert(net, torch.zeros(1, 4)), 0.5)
    >>> 0 < needed["0"] <= 32
    True
    """
    checks.check_instance(model, IntegralNetwork, "model")
    checks.check_number(share, "share")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    result = {}
    for name, axis in model.axes.items():
        held = spectrum(model, name).cumsum(0)
        result[name] = min(int((held < share - 1e-12).sum()) + 1, axis.nodes)
    return result
