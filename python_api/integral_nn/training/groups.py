"""The parameters of a network in the groups that an optimizer should treat apart."""

from __future__ import annotations

from typing import Any

from torch import nn

from integral_nn.functional import checks
from integral_nn.layers.axis import Axis


def parameter_groups(
    model: nn.Module, weight_decay: float = 0.01, *, points_lr: float | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimizer: "weights" that decay, "vectors" and "points" that do not.

    Weights are nodes, and other parameters, of two dimensions or more; vectors are biases and what scales and shifts
    norms, nodes or not; points are the deltas of trainable axes, whose scale means nothing. Parameters that do not
    learn are in none, nor is an empty group.

    Args:
        model: any module, wrapped or not.
        weight_decay: of the weights.
        points_lr: learning rate of the points; default: that of the optimizer.

    Raises:
        ValueError, TypeError: a number that is negative or none, `model` is not a module.

    >>> import torch, integral_nn as inn
    >>> layer = inn.IntegralLinear(8, inn.Axis(32, trainable=True))
    >>> optimizer = torch.optim.AdamW(inn.parameter_groups(layer, 0.1), lr=1e-3)
    >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
    [('weights', 0.1), ('vectors', 0.0), ('points', 0.0)]
    """
    checks.check_module(model, "model")
    checks.check_number(weight_decay, "weight_decay", least=0)
    if points_lr is not None:
        checks.check_number(points_lr, "points_lr", least=0)
    points = {id(axis.delta) for axis in model.modules() if isinstance(axis, Axis)}
    groups: dict[str, dict[str, Any]] = {
        "weights": {"weight_decay": float(weight_decay)},
        "vectors": {"weight_decay": 0.0},
        "points": {"weight_decay": 0.0} | ({} if points_lr is None else {"lr": points_lr}),
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for p in model.parameters():
        if p.requires_grad:
            members["points" if id(p) in points else "weights" if p.dim() > 1 else "vectors"].append(p)
    return [{"params": members[name], "name": name, **groups[name]} for name in groups if members[name]]
