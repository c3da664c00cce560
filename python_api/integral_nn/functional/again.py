"""Sampled tensors that autograd would keep for the backward pass, computed once more there instead.

`fully_shard` gathers the nodes of a block for as long as it is at work, forward and again backward. What was sampled of
them lives as long, and no longer: a network in shards never has the sampled weights of two blocks at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint


class _Sampled(NamedTuple):
    """A tensor that was sampled in the running call, which may be freed by now, and how to compute it again."""

    storage: StorageWeakRef  # while it is here, no other storage has its address
    compute: Callable[[Tensor], Tensor]
    nodes: Tensor
    version: int  # of the nodes


class _Again(NamedTuple):
    """A view of one, in place of a saved tensor."""

    of: _Sampled
    size: torch.Size
    stride: tuple[int, ...]
    offset: Any


class _Kept(NamedTuple):
    """A saved tensor as it is."""

    tensor: Tensor
    version: int


_sampled: ContextVar[dict[int, _Sampled] | None] = ContextVar("sampled", default=None)


@contextlib.contextmanager
def sampled_again() -> Iterator[None]:
    """Keep no sampled tensor for the backward pass of what is called in here.

    Where hooks of saved tensors are at work already, as in activation checkpointing, they do what they do instead.
    """
    if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        yield
        return
    known: dict[int, _Sampled] = {}
    token = _sampled.set(known)
    try:
        with saved_tensors_hooks(lambda tensor: _pack(known, tensor), _unpack):
            yield
    finally:
        _sampled.reset(token)


def at_work() -> bool:
    """Whether the running call keeps no sampled tensors."""
    return not torch.compiler.is_compiling() and _sampled.get() is not None


def sampled(compute: Callable[[Tensor], Tensor], nodes: Tensor, fixed: bool = True) -> Tensor:
    """`compute(nodes)`, which may be computed once more, for calls in `sampled_again`.

    Where points are not `fixed`, what leads from them to taps is not kept either.
    """
    known = None if torch.compiler.is_compiling() else _sampled.get()
    if known is None or not isinstance(nodes, nn.Parameter):  # statistics move during the call
        return compute(nodes)
    value: Tensor = (
        compute(nodes) if fixed else checkpoint(compute, nodes, use_reentrant=False, preserve_rng_state=False)
    )
    storage = value.untyped_storage()
    if storage._cdata != nodes.untyped_storage()._cdata:
        known[storage._cdata] = _Sampled(StorageWeakRef(storage), compute, nodes, nodes._version)
    return value


def _pack(known: dict[int, _Sampled], tensor: Tensor) -> Any:
    if type(tensor) is Tensor:
        found = known.get(tensor.untyped_storage()._cdata)
        if found is not None:
            return _Again(found, tensor.size(), tensor.stride(), tensor.storage_offset())
    # Not the tensor itself: its node would keep it, and be kept by it.
    return _Kept(tensor.detach(), tensor._version)


def _unpack(saved: Any) -> Tensor:
    nodes, version = (saved.of.nodes, saved.of.version) if isinstance(saved, _Again) else saved
    if nodes._version != version:  # which autograd does not look at where there are hooks
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"{list(nodes.shape)} is at version {nodes._version}, expected version {version}"
        )
    if isinstance(saved, _Kept):
        return saved.tensor
    with torch.no_grad():
        return saved.of.compute(nodes).as_strided(saved.size, saved.stride, saved.offset)
