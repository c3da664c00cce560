"""A copy of a network whose parameters are plain tensors: what a conversion starts from."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from integral_nn.coupling.calls import ConversionError, Inputs
from integral_nn.coupling.computed import bake_computed_weights


def plain_copy(net: nn.Module, inputs: Inputs) -> tuple[nn.Module, list[str]]:
    """A copy in eval mode whose layers have ordinary weights, with tensors of its own.

    Also the names of layers that had computed their weights in forward.
    """
    plain = copied(net).eval()
    bake_parametrizations(plain)
    try:
        return plain, bake_computed_weights(plain, inputs)
    except Exception:  # of the network itself: tracing says which operation
        return plain, []


def copied(net: nn.Module) -> nn.Module:
    """The network with tensors of its own."""
    # A hook that computes a weight (the older weight norm) leaves it as an attribute, which is no leaf to be copied.
    values = [v for module in net.modules() for v in vars(module).values() if isinstance(v, Tensor) and not v.is_leaf]
    try:
        return copy.deepcopy(net, {id(value): value.detach().clone() for value in values})
    except Exception as error:
        raise ConversionError(f"the network cannot be copied: {type(error).__name__}: {error}") from error


def bake_parametrizations(net: nn.Module) -> None:
    """Replace parametrized weights (weight norm and the like, by either kind of it) by their current values."""
    for module in list(net.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            # Not by `remove_parametrizations`: it edits the class, which the copy shares with the original.
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore
            del module._modules["parametrizations"]
            module.__class__ = type(module).__bases__[0]
            hooks = module._load_state_dict_pre_hooks
            for key in [k for k, hook in hooks.items() if "weight_norm" in str(getattr(hook, "hook", hook))]:
                del hooks[key]  # it would look for the parametrization
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
