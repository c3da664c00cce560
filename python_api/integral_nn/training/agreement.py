"""Whether all ranks of a process group are at the same sizes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.distributed as dist
from torch import nn

from integral_nn.functional import checks
from integral_nn.layers.axis import Axis


def check_sizes(model: nn.Module, group: Any = None) -> None:
    """Raise on every rank where axes of `model` differ between ranks, and name the ranks that differ.

    Ranks at different sizes would average gradients of different networks without a word, or wait for each other where
    a size decides what they send. To look before every call while searching for such a rank:

        model.register_forward_pre_hook(lambda model, inputs: inn.check_sizes(model))

    Args:
        model: any module with axes in it, wrapped or not. Every rank of the group must call this.
        group: a process group whose ranks hold the same axes; default: all ranks.

    Raises:
        RuntimeError: sizes, numbers of trainable points, nodes or rules that differ; or a rank that does not answer
            within the group's timeout.
        TypeError: `model` is not a module.

    Without a process group there is nothing to compare.
    """
    checks.check_module(model, "model")
    if not (dist.is_available() and dist.is_initialized()):
        return
    own = {path: _description(axis) for path, axis in model.named_modules() if isinstance(axis, Axis)}
    everyone: list[Any] = [None] * dist.get_world_size(group)
    try:
        dist.all_gather_object(everyone, own, group=group)
    except RuntimeError as error:
        raise RuntimeError(f"a rank of the group did not tell its sizes, it may have died: {error}") from error
    problems = []
    for path in dict.fromkeys(path for one in everyone for path in one):
        said = [one.get(path, "nothing") for one in everyone]
        usual, _ = Counter(said).most_common(1)[0]
        problems += [
            f"rank {rank} has {path} of {text}, others of {usual}" for rank, text in enumerate(said) if text != usual
        ]
    if problems:
        raise RuntimeError(
            f"axes differ between ranks: {'; '.join(problems)}. Draw sizes by resample(step) with one seed and step"
        )


def _description(axis: Axis) -> str:
    points = "" if axis.delta is None else f", {axis.delta.shape[0]} trainable points"
    basis = axis.basis
    return (
        f"size {axis.size} of {axis.nodes} nodes, {basis.kernel} {axis.quadrature} {basis.boundary} a={basis.a}{points}"
    )
