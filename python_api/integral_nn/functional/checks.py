"""Checks of arguments that are not tensors: numbers, counts, names, a convolution's window, what a module must be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

MOST = 2**31 - 1  # kernels count nodes and points in 32 bits
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_instance(value: object, kind: type, name: str) -> None:
    """Raise TypeError unless `value` is of a class."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise TypeError(f"{name} must be {article} {kind.__name__}, got {type(value).__name__}")


def check_count(value: object, name: str, least: int = 1) -> None:
    """Raise unless `value` is an int of at least `least` that kernels can count to."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {value}")


def check_number(value: object, name: str, least: float = -math.inf, above: float = -math.inf) -> None:
    """Raise unless `value` is a finite number, at least `least` and greater than `above`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    if not (math.isfinite(value) and value >= least and value > above):
        bound = f" of at least {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
        raise ValueError(f"{name} must be a finite number{bound}, got {value}")


def check_seed(value: object, name: str = "seed") -> None:
    """Raise unless `value` is an int that a generator of PyTorch takes."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} must fit into 64 bits, got {value}")


def check_optional(value: object, kind: type, name: str) -> None:
    """Raise TypeError unless `value` is None or of a class."""
    if value is not None:
        check_instance(value, kind, name)


def check_dtype(dtype: object, name: str = "dtype") -> None:
    """Raise TypeError unless `dtype` is None or one that nodes can have."""
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating-point torch.dtype of 16 bits or more, got {dtype!r}")


def check_module(net: object, name: str = "net") -> None:
    """Raise TypeError unless `net` is a module."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"{name} must be an nn.Module, got {type(net).__name__}")


def check_example_inputs(example_inputs: object) -> tuple:
    """The positional inputs; raise TypeError unless a tensor or a tuple was given."""
    if not isinstance(example_inputs, (Tensor, tuple)):
        raise TypeError(
            f"example_inputs must be a tensor or a tuple of positional inputs, got {type(example_inputs).__name__}"
        )
    if isinstance(example_inputs, tuple) and len(example_inputs) > 1 and all(type(x) is int for x in example_inputs):
        wanted = "a tensor or a tuple of positional inputs"
        raise TypeError(f"example_inputs must be {wanted}, got a shape: try torch.zeros{example_inputs}")
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def check_kwargs(kwargs: object) -> dict[str, Any]:
    """The inputs by name; raise TypeError unless a mapping from names, or None, was given."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping from names to inputs, got {type(kwargs).__name__}")
    for name in kwargs or {}:
        if not isinstance(name, str):
            raise TypeError(f"kwargs must have names for keys, got {name!r}")
    return dict(kwargs or {})


def names_in(names: Any, argument: str) -> list[str]:
    """Names given as one string or as an iterable of them."""
    given = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"{argument} must be a name or names, got {type(name).__name__}")
    return given


def names_or_classes(names: Any, argument: str) -> list[str | type]:
    """Names and classes of modules, given as one or as an iterable of them."""
    given = list(names) if isinstance(names, Iterable) and not isinstance(names, (str, type)) else [names]
    for name in given:
        if not isinstance(name, str) and not (isinstance(name, type) and issubclass(name, nn.Module)):
            got = f"class {name.__name__}" if isinstance(name, type) else type(name).__name__
            raise TypeError(f"{argument} must be a name or names, or classes of modules, got {got}")
    return given


def check_axis_name(name: object, axes: Collection[str], argument: str) -> None:
    """Raise ValueError unless `name` is that of an axis."""
    if not isinstance(name, str) or name not in axes:
        raise ValueError(f"{argument} names an unknown axis {name!r}; there are {list(axes)}")


def check_share(value: object, argument: str) -> None:
    """Raise unless `value` is one share of every axis's nodes; an int above 1 may be meant as a number of points."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a share or a mapping from axes to sizes, got {type(value).__name__}")
    check_number(value, argument, above=0)
    if isinstance(value, int) and value > 1:
        raise ValueError(
            f"{argument} must be a share or a mapping from axes to sizes, got the int {value}: "
            f"{{axis: {value}}} asks for {value} points, {value}.0 for {value} times the nodes"
        )


def check_window(rank: int, stride: Any, padding: Any, dilation: Any) -> None:
    """Raise unless stride, padding and dilation are what a convolution over `rank` dimensions takes."""
    if type(stride) is type(padding) is type(dilation) is int and stride > 0 <= padding and dilation > 0:
        return  # nearly always, and cheap to tell
    check_extent(stride, rank, "stride", 1)
    check_extent(dilation, rank, "dilation", 1)
    if not isinstance(padding, str):
        check_extent(padding, rank, "padding", 0, " or 'valid' or 'same'")
    elif padding not in ("valid", "same"):
        raise ValueError(f"padding must be 'valid', 'same' or numbers, got {padding!r}")
    elif padding == "same" and any(s != 1 for s in (stride if isinstance(stride, (tuple, list)) else [stride])):
        raise ValueError(f"padding='same' needs stride 1, got stride {stride}")


def check_extent(value: Any, rank: int, name: str, least: int, others: str = "") -> None:
    """Raise unless `value` is an int of at least `least`, or one of them for each of `rank` dimensions."""
    if type(value) is tuple and len(value) == rank:
        for number in value:
            if type(number) is not int or number < least:
                break
        else:
            return
    each = value if isinstance(value, (tuple, list)) else [value]
    for number in each:
        if isinstance(number, bool) or not isinstance(number, (Integral, torch.SymInt)):
            raise TypeError(f"{name} must be an int, {rank} ints{others}, got {value!r}")
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if isinstance(value, (tuple, list)) and len(value) not in (1, rank):
        raise ValueError(f"{name} must be an int or {rank} ints, one a dimension, got {value!r}")


def check_continuous_inputs(value: object, inputs: tuple) -> dict[int, int]:
    """The dimension of each input that is continuous, read off True, False or {input: dimension}."""
    tensors = {i: x.dim() for i, x in enumerate(inputs) if isinstance(x, Tensor)}
    if isinstance(value, bool):
        return {i: 1 for i, rank in tensors.items() if rank > 1} if value else {}
    if not isinstance(value, Mapping):
        raise TypeError(f"continuous_inputs must be a bool or {{input: dimension}}, got {type(value).__name__}")
    for i, dim in value.items():
        if i not in tensors:
            raise ValueError(f"continuous_inputs names input {i!r}; the tensors among the inputs are {list(tensors)}")
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"continuous_inputs must give a dimension for input {i}, got {dim!r}")
        if not 0 <= dim < tensors[i]:
            raise ValueError(f"continuous_inputs gives input {i} of {tensors[i]} dimensions dimension {dim}")
    return dict(value)


def try_loading(module: nn.Module, state_dict: Mapping[str, Any], strict: bool, assign: bool) -> None:
    """Raise what `load_state_dict` would raise, out of a shell of the module that has no memory of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied into it
        nn.Module.load_state_dict(_shell(module, {}), state_dict, strict, assign)


def _shell(module: nn.Module, made: dict[int, Any]) -> Any:
    """A module of the same class and attributes, whose tensors are on the meta device.

    No deep copy, which modules with shards refuse: nothing that loading writes is written in place but tensors.
    """

    def empty(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        meta = torch.empty_like(tensor, device="meta")
        return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta

    if id(module) not in made:
        shell = made[id(module)] = object.__new__(type(module))
        tables = {kind: {k: empty(t) for k, t in getattr(module, kind).items()} for kind in ("_parameters", "_buffers")}
        children = {k: None if m is None else _shell(m, made) for k, m in module._modules.items()}
        shell.__dict__.update({**module.__dict__, **tables, "_modules": children, "_is_shell": True})
    return made[id(module)]


def is_shell(module: nn.Module) -> bool:
    """Whether `try_loading` made the module."""
    return "_is_shell" in module.__dict__
