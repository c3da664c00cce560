"""Trainable points that every rank holds whole, beside parameters that are sharded."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from integral_nn.functional import checks
from integral_nn.layers.axis import Axis

_averaged: Any = WeakIdKeyDictionary()  # parameter -> its hook


@torch.no_grad()
def replicate_points(model: nn.Module, group: Any = None) -> set[nn.Parameter]:
    """Keep the trainable points of all axes whole on every rank, and their gradients the mean over ranks.

    `fully_shard` gives each parameter to one block, but an axis belongs to every layer along it: leave the points to
    this function. They are few, and become those of the group's first rank.

        points = inn.replicate_points(model)
        for block in blocks:
            fully_shard(block, ignored_params=points)
        fully_shard(model, ignored_params=points)

    Call it once more where memory is made afterwards (`to_empty`), which makes parameters anew. Under
    DistributedDataParallel there is no need of it.

    Args:
        model: any module with axes in it, not wrapped yet.
        group: the ranks that average gradients; default: all.

    Returns:
        The points, for `ignored_params`.

    Raises:
        ValueError: an axis whose points are another parameter at every size: `make_trainable(keep=True)`.
        TypeError: `model` is not a module.
        RuntimeError: points that are sharded already.
    """
    checks.check_module(model, "model")
    axes = {path: axis for path, axis in model.named_modules() if isinstance(axis, Axis) and axis.delta is not None}
    for path, axis in axes.items():
        if not axis.keeps:
            raise ValueError(f"model has an axis {path} whose points change number: call make_trainable(keep=True)")
        if hasattr(axis.delta, "device_mesh"):
            raise RuntimeError(f"the points of {path} are sharded already: call replicate_points before fully_shard")
    points = {axis.delta for axis in axes.values() if axis.delta is not None}
    if not (dist.is_available() and dist.is_initialized()):
        return points
    for delta in (axis.delta for axis in axes.values()):  # in the same order on every rank
        assert delta is not None
        if delta not in _averaged and not delta.is_meta:
            dist.broadcast(delta.detach(), group=group, group_src=0)
            _averaged[delta] = delta.register_post_accumulate_grad_hook(lambda p: _average(p, group))
    return points


def _average(delta: torch.Tensor, group: Any) -> None:
    """Means stay what they are, so that gradients may be added up over several calls."""
    gradient = delta.grad
    if gradient is not None:
        dist.all_reduce(gradient, group=group)
        gradient /= dist.get_world_size(group)
