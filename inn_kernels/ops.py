"""The operations as PyTorch operators, `torch.ops.inn_kernels.*`: schemas, shapes for tracing, and their kernels.

Each operation has one schema. The compiled library (csrc) implements it for CPU tensors; where it is missing, and on
devices without a kernel, the operator falls back to `reference`, so that an exported graph runs anywhere. None of
these knows autograd: `integral_nn` adds it, in terms of the same operations.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inn_kernels import checks, operands, reference

_SCHEMAS = (
    "discretize(Tensor nodes, Tensor out_start, Tensor out_weight, Tensor in_start, Tensor in_weight, "
    "ScalarType dtype) -> Tensor",
    "discretize_adjoint(Tensor grad, Tensor out_start, Tensor out_weight, Tensor in_start, Tensor in_weight, "
    "SymInt out_nodes, SymInt in_nodes, ScalarType dtype) -> Tensor",
    "discretize_tap_gradient(Tensor nodes, Tensor grad, Tensor out_start, Tensor out_weight, Tensor in_start, "
    "Tensor in_weight, bool need_out, bool need_in) -> (Tensor, Tensor)",
    "interpolate(Tensor x, Tensor start, Tensor weight, int dim, ScalarType dtype) -> Tensor",
    "spread(Tensor x, Tensor start, Tensor weight, SymInt nodes, int dim, ScalarType dtype) -> Tensor",
    "interpolate_tap_gradient(Tensor x, Tensor grad, Tensor start, int taps, int dim) -> Tensor",
    "discretize_foreach(Tensor[] nodes, Tensor[] start, Tensor[] weight, int[] out, int[] in_, ScalarType dtype) "
    "-> Tensor[]",
    "discretize_foreach_adjoint(Tensor[] grads, Tensor[] start, Tensor[] weight, SymInt[] nodes, int[] out, int[] in_, "
    "ScalarType dtype) -> Tensor[]",
    "weight_gradient(Tensor grad, Tensor x) -> Tensor",
    "uniform_taps(Tensor(a!) start, Tensor(b!) weight, SymInt nodes, float a, str kernel, str boundary, "
    "str quadrature, float? scale) -> ()",
    "axis_table(Tensor(a!) table, Tensor start, Tensor weight, SymInt nodes, int contributors) -> ()",
    "linear(Tensor x, Tensor nodes, Tensor? bias, Tensor out_start, Tensor out_weight, Tensor in_start, "
    "Tensor in_weight) -> Tensor",
    "linear_backward(Tensor grad, Tensor x, Tensor nodes, Tensor out_start, Tensor out_weight, Tensor in_start, "
    "Tensor in_weight, bool need_x, bool need_nodes, bool need_bias) -> (Tensor, Tensor, Tensor)",
    "conv(Tensor x, Tensor nodes, Tensor? bias, Tensor out_start, Tensor out_weight, Tensor in_start, "
    "Tensor in_weight, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation) -> Tensor",
    "conv_input_gradient(Tensor grad, Tensor nodes, Tensor out_start, Tensor out_weight, Tensor in_start, "
    "Tensor in_weight, SymInt[2] size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation) -> Tensor",
    "conv_node_gradient(Tensor grad, Tensor x, Tensor nodes, Tensor out_start, Tensor out_weight, Tensor in_start, "
    "Tensor in_weight, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool need_nodes, bool need_bias) "
    "-> (Tensor, Tensor)",
)
NAMES = tuple(schema.partition("(")[0] for schema in _SCHEMAS)


def _layout(x: Tensor) -> torch.memory_format:
    """The kernels' layout of a result: channels_last if x is (and not also contiguous), else contiguous."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _fallback(name: str) -> Callable:
    """The reference of an operation: its arguments checked, its result in the layout that the kernels write."""
    run, check = getattr(reference, name), getattr(checks, name)
    keeps_layout = name in ("discretize", "discretize_adjoint")

    def checked(*arguments: Any) -> Any:
        check(*arguments)
        result = run(*arguments)
        if keeps_layout:
            return result.contiguous(memory_format=_layout(arguments[0]))
        if isinstance(result, list):
            both = [min(positions) >= 0 for positions in zip(*arguments[-3:-1])]  # taps of both dimensions
            layouts = [_layout(x) if b else torch.contiguous_format for x, b in zip(arguments[0], both)]
            return [value.contiguous(memory_format=layout) for value, layout in zip(result, layouts)]
        return result

    return checked


_library = torch.library.Library("inn_kernels", "DEF")
for _schema, _name in zip(_SCHEMAS, NAMES):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _fallback(_name), "CompositeExplicitAutograd")


def _load_compiled() -> str | None:
    """Load the CPU kernels. Returns None when they are there, else why they are not.

    INN_KERNELS_LIBRARY names another build of the library (one with sanitizers), or, empty, none at all.
    """
    path = os.environ.get("INN_KERNELS_LIBRARY")
    found = glob.glob(os.path.join(os.path.dirname(__file__), "_C*.so")) if path is None else [path] if path else []
    if not found:
        return (
            "the C++ library was not built, for want of a compiler or of torch; install both, then run "
            "pip install --no-build-isolation --no-deps --force-reinstall . in the folder of inn-kernels"
        )
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        return f"the C++ library does not load: {error}"
    return None


compiled_missing: str | None = _load_compiled()
"""Why the compiled CPU kernels are absent, or None when they are loaded."""


def _like(x: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """An empty result in the kernels' layout."""
    return x.new_empty(shape, dtype=dtype).contiguous(memory_format=_layout(x))


def _fake(name: str) -> Callable:
    """Registers what makes the shapes of an operation's results; its arguments are checked before."""
    check = getattr(checks, name)

    def register(results: Callable) -> Callable:
        def checked(*arguments: Any) -> Any:
            check(*arguments)
            return results(*arguments)

        torch.library.register_fake(f"inn_kernels::{name}", checked)
        return results

    return register


@_fake("discretize")
def _(
    nodes: Tensor, out_start: Tensor, out_weight: Tensor, in_start: Tensor, in_weight: Tensor, dtype: torch.dtype
) -> Tensor:
    return _like(nodes, [out_start.shape[0], in_start.shape[0], *nodes.shape[2:]], dtype)


@_fake("discretize_adjoint")
def _(
    grad: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    out_nodes: int,
    in_nodes: int,
    dtype: torch.dtype,
) -> Tensor:
    return _like(grad, [out_nodes, in_nodes, *grad.shape[2:]], dtype)


@_fake("discretize_tap_gradient")
def _(
    nodes: Tensor,
    grad: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    need_out: bool,
    need_in: bool,
) -> tuple[Tensor, Tensor]:
    k = out_start.shape[0] if need_out else 0
    n = in_start.shape[0] if need_in else 0
    return out_weight.new_empty(k, out_weight.shape[1]), in_weight.new_empty(n, in_weight.shape[1])


@_fake("interpolate")
def _(x: Tensor, start: Tensor, weight: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty(_replaced(x, dim, start.shape[0]), dtype=dtype)


@_fake("spread")
def _(x: Tensor, start: Tensor, weight: Tensor, nodes: int, dim: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty(_replaced(x, dim, nodes), dtype=dtype)


@_fake("interpolate_tap_gradient")
def _(x: Tensor, grad: Tensor, start: Tensor, taps: int, dim: int) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(start.shape[0], taps, dtype=wide)


@_fake("discretize_foreach")
def _(
    nodes: list[Tensor], start: list[Tensor], weight: list[Tensor], out: list[int], in_: list[int], dtype: torch.dtype
) -> list[Tensor]:
    points = [s.shape[0] for s in start]
    return [_listed(x, points, o, i, dtype) for x, o, i in zip(nodes, out, in_)]


@_fake("discretize_foreach_adjoint")
def _(
    grads: list[Tensor],
    start: list[Tensor],
    weight: list[Tensor],
    nodes: list[int],
    out: list[int],
    in_: list[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    return [_listed(x, nodes, o, i, dtype) for x, o, i in zip(grads, out, in_)]


def _listed(x: Tensor, sizes: list[int], out: int, in_: int, dtype: torch.dtype) -> Tensor:
    """An empty result for x with the sizes at these positions (-1: its own) in its first two dimensions."""
    shape = [n if at < 0 else sizes[at] for n, at in zip(x.shape, (out, in_))] + list(x.shape[2:])
    return _like(x, shape, dtype) if out >= 0 and in_ >= 0 else x.new_empty(shape, dtype=dtype)


@_fake("weight_gradient")
def _(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1])


@_fake("uniform_taps")
@_fake("axis_table")
def _(*arguments: Any) -> None:
    pass


@_fake("linear")
def _(x: Tensor, nodes: Tensor, bias: Tensor | None, out_start: Tensor, *taps: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], out_start.shape[0])


@_fake("linear_backward")
def _(
    grad: Tensor,
    x: Tensor,
    nodes: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    need_x: bool,
    need_nodes: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if need_x else [0])
    return dx, *_node_gradients(nodes, need_nodes, need_bias)


@_fake("conv")
def _(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    size = operands.window_sizes(x.shape[2:], nodes.shape[2:], stride, padding, dilation)
    return x.new_empty(x.shape[0], out_start.shape[0], *size)


@_fake("conv_input_gradient")
def _(
    grad: Tensor,
    nodes: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    return grad.new_empty(grad.shape[0], in_start.shape[0], *size)


@_fake("conv_node_gradient")
def _(
    grad: Tensor,
    x: Tensor,
    nodes: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    need_nodes: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    return _node_gradients(nodes, need_nodes, need_bias)


def _node_gradients(nodes: Tensor, need_nodes: bool, need_bias: bool) -> tuple[Tensor, Tensor]:
    return nodes.new_empty(nodes.shape if need_nodes else [0]), nodes.new_empty(nodes.shape[0] if need_bias else 0)


def _replaced(x: Tensor, dim: int, size: int) -> list[int]:
    shape = list(x.shape)
    shape[dim] = size
    return shape


discretize = torch.ops.inn_kernels.discretize.default
discretize_adjoint = torch.ops.inn_kernels.discretize_adjoint.default
discretize_tap_gradient = torch.ops.inn_kernels.discretize_tap_gradient.default
interpolate = torch.ops.inn_kernels.interpolate.default
spread = torch.ops.inn_kernels.spread.default
interpolate_tap_gradient = torch.ops.inn_kernels.interpolate_tap_gradient.default
discretize_foreach = torch.ops.inn_kernels.discretize_foreach.default
discretize_foreach_adjoint = torch.ops.inn_kernels.discretize_foreach_adjoint.default
weight_gradient = torch.ops.inn_kernels.weight_gradient.default
uniform_taps = torch.ops.inn_kernels.uniform_taps.default
axis_table = torch.ops.inn_kernels.axis_table.default
linear = torch.ops.inn_kernels.linear.default
linear_backward = torch.ops.inn_kernels.linear_backward.default
conv = torch.ops.inn_kernels.conv.default
conv_input_gradient = torch.ops.inn_kernels.conv_input_gradient.default
conv_node_gradient = torch.ops.inn_kernels.conv_node_gradient.default
