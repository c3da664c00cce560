"""Checkpoints of `torch.distributed.checkpoint`, looked at before they are read into a model's own memory."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from integral_nn.functional import checks
from integral_nn.layers.axis import Axis
from integral_nn.layers.axis_state import AxisState, scale_difference, unpacked
from integral_nn.layers.base import IntegralLayer

_OLD = "dcp_to_torch_save makes a file of the checkpoint that load_state_dict takes"


def check_checkpoint(model: nn.Module, checkpoint_id: str | os.PathLike) -> None:
    """Raise unless a checkpoint folder holds the parameters and axes of `model`, sampled by the same rule.

    `torch.distributed.checkpoint.load` writes into the model's parameters while it reads, so that `load_state_dict`
    would find a mistake too late. Call this before it; every rank for itself, for nothing is sent.

        inn.check_checkpoint(model, folder)
        dcp.load(state, checkpoint_id=folder)

    Args:
        model: any module with axes in it, sharded or not, as it is before the load.
        checkpoint_id: the folder that `dcp.save` or `dcp.async_save` wrote; names in it may have a prefix ("model.").

    Raises:
        ValueError: parameters of other names or shapes, other axes, another rule or scale; all of them. The model is as
            it was.
        TypeError: `model` is not a module, `checkpoint_id` not a path.
    """
    import torch.distributed.checkpoint as dcp  # takes long, and few need it

    checks.check_module(model, "model")
    if not isinstance(checkpoint_id, (str, os.PathLike)):
        raise TypeError(f"checkpoint_id must be a path, got {type(checkpoint_id).__name__}")
    if not os.path.exists(os.path.join(checkpoint_id, ".metadata")):
        raise ValueError(f"checkpoint_id must be a folder with a finished checkpoint, got {os.fspath(checkpoint_id)!r}")
    saved: dict[str, Any] = dict(dcp.FileSystemReader(checkpoint_id).read_metadata().state_dict_metadata)
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    problems = []
    for name, p in model.named_parameters():
        found = _of_name(saved, name)
        if not found:
            problems.append(f"{name} is not there")
        problems += [
            f"{name} is {list(saved[key].size)} there, {list(p.shape)} here"
            for key in found[:1]
            if saved[key].size != p.shape
        ]
    for path, module in model.named_modules():
        if isinstance(module, Axis):
            problems += _differences(path, module, saved, checkpoint_id)
        elif isinstance(module, IntegralLayer):
            problems += _scales(path, module, saved, checkpoint_id)
    if problems:
        raise ValueError(f"checkpoint_id {os.fspath(checkpoint_id)!r} is of another network: {'; '.join(problems)}")


def _of_name(saved: dict[str, Any], name: str) -> list[str]:
    """Keys of a tensor, whatever comes before its name; the shortest first, for optimizers have longer ones."""
    return sorted((key for key in saved if key == name or key.endswith(f".{name}")), key=len)


def _differences(path: str, axis: Axis, saved: dict[str, Any], folder: str | os.PathLike) -> list[str]:
    keys = _of_name(saved, f"{path}._extra_state".lstrip("."))
    if not keys:
        return [f"there is no axis {path}"]
    if not saved[keys[0]].size:
        return [f"{path} does not say its rule: {_OLD}"]
    said = unpacked(_read(keys[0], torch.empty(saved[keys[0]].size, dtype=torch.int64), folder))
    assert isinstance(said, AxisState)
    return [f"{path}: {difference}" for difference in said.differences(axis._described())]


def _scales(path: str, layer: IntegralLayer, saved: dict[str, Any], folder: str | os.PathLike) -> list[str]:
    keys = _of_name(saved, f"{path}._extra_state".lstrip("."))
    if not keys:
        named = _of_name(saved, f"{path}.weight_nodes".lstrip("."))
        return [f"{path} does not say its scale: {_OLD}"] if named else []
    difference = scale_difference(_read(keys[0], layer.get_extra_state(), folder), layer.scale)
    return [f"{path}: {difference}"] if difference else []


def _read(key: str, into: Tensor, folder: str | os.PathLike) -> Tensor:
    import torch.distributed.checkpoint as dcp

    state = {key: into}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state[key]
