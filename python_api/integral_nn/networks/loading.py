"""What there is to do before and after the state of a network is loaded, by itself or as a part of another module."""

from __future__ import annotations

from typing import Any

from torch import nn

from integral_nn.layers.axis import Axis
from integral_nn.layers.sampled import SampledNorm


def level_names(model: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Give each axis that several layers hold one state, that of its first name: it may be the only one there is.

    States that several processes make together have one name of a module alone.
    """
    names: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Axis):
            names.setdefault(module, []).append(f"{prefix}{path}")
    for several in names.values():
        for leaf in ("delta", "_extra_state"):
            keys = [f"{path}.{leaf}" for path in several]
            saved = next((state_dict[key] for key in keys if key in state_dict), None)
            if saved is not None:
                state_dict.update(dict.fromkeys(keys, saved))


def finish_loading(model: nn.Module, _: Any) -> None:
    """Points where the nodes are; measured statistics belong to the sizes that were loaded with them."""
    device = next(iter(model.parameters())).device
    sizes = {}
    for axis in model.modules():
        if isinstance(axis, Axis):
            if axis.delta is not None and axis.delta.device != device:
                axis.to(device)
            sizes[axis] = axis.size
    for norm in model.modules():
        if isinstance(norm, SampledNorm):
            norm.calibrate(norm.calibration()[0], sizes)
