"""Calls of a network: inputs by position and by name, outputs of any structure, every run with the same noise."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout, torch.dropout_}

_STEADY = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RNNBase)


class ConversionError(ValueError):
    """A network that cannot be converted: which operation, in which module, and why."""


class Inputs(NamedTuple):
    """What a network is called with."""

    args: tuple
    kwargs: dict[str, Any]

    def leaves(self) -> list[Any]:
        """Everything in the inputs, lists and dicts opened, in an order of its own."""
        return tree_flatten(self)[0]

    def replaced(self, leaves: list[Any]) -> Inputs:
        """The same structure of other leaves."""
        return tree_unflatten(leaves, tree_flatten(self)[1])

    def positions(self) -> list[int]:
        """The place among the leaves of each positional input's first leaf."""
        counts = [len(tree_flatten(arg)[0]) for arg in self.args]
        return [sum(counts[:i]) for i in range(len(counts))]


def tensors_in(out: Any) -> Iterator[Tensor]:
    """The floating-point tensors of outputs: in lists, mappings, dataclasses, one in another; complex ones as real."""
    if isinstance(out, Tensor):
        if out.is_floating_point() or out.is_complex():
            yield torch.view_as_real(out.resolve_conj()) if out.is_complex() else out
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from tensors_in(value)
    elif isinstance(out, (list, tuple)):
        for value in out:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(out) and not isinstance(out, type):
        for field in dataclasses.fields(out):
            yield from tensors_in(getattr(out, field.name))


def named_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Every parameter, then every buffer, by name; one that several modules have, by the names it has in each."""
    modules = list(net.named_modules())
    tables = ([(path, m._parameters) for path, m in modules], [(path, m._buffers) for path, m in modules])
    own: Any = ((path, leaf, t) for table in tables for path, there in table for leaf, t in there.items())
    return {f"{path}.{leaf}" if path else leaf: tensor for path, leaf, tensor in own if tensor is not None}


def call(net: nn.Module, tensors: dict[str, Tensor], inputs: Inputs) -> list[Tensor]:
    """Floating-point outputs of `net` with `tensors` in place of its parameters and buffers, random numbers seeded."""
    devices = sorted({p.device.index for p in net.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return list(tensors_in(functional_call(net, tensors, inputs.args, inputs.kwargs, tie_weights=False)))


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Every floating-point tensor of `inputs` in `dtype`."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


@contextlib.contextmanager
def training(net: nn.Module) -> Iterator[None]:
    """While active, `net` is in training mode, but for its norms and dropouts: what else it does then is seen."""
    was = {module: module.training for module in net.modules()}
    for module in was:
        module.training = not isinstance(module, _STEADY)
    try:
        with _NoDropout():
            yield
    finally:
        for module, mode in was.items():
            module.training = mode


class _NoDropout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS and args:
            return args[0]
        if func is F.scaled_dot_product_attention:
            args = args[:4] + (0.0,) * len(args[4:5]) + args[5:]
            kwargs |= {"dropout_p": 0.0} if "dropout_p" in kwargs else {}
        return func(*args, **kwargs)
