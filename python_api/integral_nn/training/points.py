"""Trainable points that every rank holds whole, beside parameters that are sharded."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from integral_nn.functional import checks
from integral_nn.layers.axis import Axis

_averaged: Any = WeakIdKeyDictionary()  # parameter -> its hook


def replicate_points(model: nn.Module, mesh: Any = None) -> set[nn.Parameter]:
    """Keep the trainable points of all axes whole on every rank, and their gradients the mean over ranks.

    `fully_shard` gives each parameter to one block, but an axis belongs to every layer along it: leave the points to
    this function. They become replicated DTensors, with the values of the mesh's first rank: optimizers, clipping and
    checkpoints treat them as they treat the shards::

        points = inn.replicate_points(model, mesh)
        for block in blocks:
            fully_shard(block, mesh=mesh, ignored_params=points)
        fully_shard(model, mesh=mesh, ignored_params=points)

    Call it once more where memory is made afterwards (`to_empty`), which makes parameters anew. Under
    DistributedDataParallel there is no need of it.

    Args:
        model: any module with axes in it, not sharded yet.
        mesh: the DeviceMesh that parameters are sharded over; default: all ranks.

    Returns:
        The points, for `ignored_params`; without a process group, as they are.

    Raises:
        ValueError: an axis whose points are another parameter at every size: `make_trainable(keep=True)`.
        TypeError: `model` is not a module, `mesh` not a DeviceMesh.
        RuntimeError: points that are sharded already.
    """
    checks.check_module(model, "model")
    axes = {path: axis for path, axis in model.named_modules() if isinstance(axis, Axis) and axis.delta is not None}
    for path, axis in axes.items():
        if not axis.keeps:
            raise ValueError(f"model has an axis {path} whose points change number: call make_trainable(keep=True)")
        if not all(placement.is_replicate() for placement in getattr(axis.delta, "placements", ())):
            raise RuntimeError(f"the points of {path} are sharded already: call replicate_points before fully_shard")
    if mesh is not None:
        checks.check_instance(mesh, dist.DeviceMesh, "mesh")
    if axes and dist.is_available() and dist.is_initialized():
        mesh = _all_ranks() if mesh is None else mesh
        for axis in axes.values():
            _replicate(axis, mesh)
    return {axis.delta for axis in axes.values() if axis.delta is not None}


def _all_ranks() -> Any:
    device = torch.accelerator.current_accelerator() if dist.get_backend() != "gloo" else None
    return dist.init_device_mesh("cpu" if device is None else device.type, (dist.get_world_size(),))


def _replicate(axis: Axis, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    delta = axis.delta
    assert delta is not None
    if not hasattr(delta, "device_mesh"):
        copies = distribute_tensor(delta.detach(), mesh, [Replicate()] * mesh.ndim)
        delta = nn.Parameter(copies, delta.requires_grad)
        axis._set(axis.size, delta, True)
    if delta not in _averaged and not delta.is_meta:
        _averaged[delta] = delta.register_post_accumulate_grad_hook(_average)


def _average(delta: Any) -> None:
    """Means stay what they are, so that gradients may be added up over several calls."""
    mesh, gradient = delta.device_mesh, delta.grad
    if gradient is not None:
        local: Tensor = gradient.to_local()
        for dim in range(mesh.ndim):
            dist.all_reduce(local, group=mesh.get_group(dim))
        local /= mesh.size()
