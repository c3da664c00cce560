"""Layers that normalise their weight in every call (weight standardisation): ordinary layers with what they computed.

    y = conv(x, (weight - mean) / deviation * gain)        becomes        y = conv(x, weight)

Means and deviations over channels would be others at another size. Whether a layer does nothing else is tried: the
network must return what it did before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from integral_nn.coupling.calls import Inputs, call
from integral_nn.coupling.groups import failing

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_OPERATIONS = {
    *(torch.conv1d, torch.conv2d, torch.conv3d, F.linear),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
}


class _Weights(TorchFunctionMode):
    """The weights and biases that layers of subclasses of torch.nn's compute with, where they are not their own."""

    def __init__(self, net: nn.Module) -> None:
        self.found: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        self.running: list[tuple[str, nn.Module]] = []
        self.handles = []
        for name, module in net.named_modules():
            if isinstance(module, _LAYERS) and not type(module).__module__.startswith("torch.nn."):
                enter = module.register_forward_pre_hook(lambda m, _, name=name: self.running.append((name, m)))
                self.handles += [enter, module.register_forward_hook(lambda *_: self.running.pop() and None)]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.running and func in _OPERATIONS:
            name, layer = self.running[-1]
            bound = dict(zip(("input", "weight", "bias"), args)) | (kwargs or {})
            weight, own = bound["weight"], layer.weight
            if weight is not own and weight.shape == own.shape:
                self.found.setdefault(name, []).append((weight.detach().clone(), bound.get("bias")))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def bake_computed_weights(net: nn.Module, inputs: Inputs) -> list[str]:
    """Make ordinary layers of those that compute their weight in each call, in place. Returns their names."""
    watched = _Weights(net)
    if not watched.handles:
        return []
    with watched:
        want = call(net, {}, inputs)
    found = {name: calls[0] for name, calls in watched.found.items() if _all_equal([w for w, _ in calls])}

    def unchanged(names: Sequence[str]) -> bool:
        trial = copy.deepcopy(net)
        _bake(trial, {name: found[name] for name in names})
        try:
            have = call(trial, {}, inputs)
        except Exception:
            return False
        alike = all(x.shape == y.shape for x, y in zip(want, have))
        return alike and all((x - y).abs().max() <= 1e-5 * x.abs().max() for x, y in zip(want, have))

    bad = set(failing(list(found), unchanged))
    good = {name: made for name, made in found.items() if name not in bad}
    _bake(net, good)
    return list(good)


def _all_equal(weights: list[Tensor]) -> bool:
    return all(torch.equal(weights[0], other) for other in weights[1:])


def _bake(net: nn.Module, made: dict[str, tuple[Tensor, Tensor | None]]) -> None:
    for name, (weight, bias) in made.items():
        layer: Any = net.get_submodule(name)
        learns = layer.weight.requires_grad
        layer.__class__ = next(c for c in type(layer).__mro__ if c.__module__.startswith("torch.nn."))
        layer._parameters.clear()
        layer._buffers.clear()
        layer.weight = nn.Parameter(weight, learns)
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone(), learns)
