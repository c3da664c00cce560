"""What the operators refuse, in the words of the compiled kernels: devices, dtypes, shapes, and values of taps.

The compiled library checks for itself (csrc/tensors.cpp). The shapes for tracing and the fallback to `reference` check
here: one function an operation, with its name and arguments. All raise RuntimeError, as the library and PyTorch's own
operators do. Sizes may be symbols of a tracer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def discretize(
    nodes: Tensor, out_start: Tensor, out_weight: Tensor, in_start: Tensor, in_weight: Tensor, dtype: torch.dtype
) -> None:
    """Nodes [M_out, M_in, *rest] and taps of both dimensions."""
    _matrix(nodes, "nodes")
    _output(dtype, nodes, "nodes")
    _both_taps(nodes, out_start, out_weight, in_start, in_weight, nodes.shape[0], nodes.shape[1])


def discretize_adjoint(
    grad: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    out_nodes: int,
    in_nodes: int,
    dtype: torch.dtype,
) -> None:
    """grad [K, L, *rest], one row and column for each point of the taps."""
    _matrix(grad, "grad")
    _output(dtype, grad, "grad")
    _both_taps(grad, out_start, out_weight, in_start, in_weight, out_nodes, in_nodes)
    _shape(grad, "grad", [out_start.shape[0], in_start.shape[0], *grad.shape[2:]], "the taps")


def discretize_tap_gradient(
    nodes: Tensor,
    grad: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    need_out: bool,
    need_in: bool,
) -> None:
    """Nodes [M_out, M_in, *rest] and grad [K, L, *rest]."""
    _matrix(nodes, "nodes")
    _matrix(grad, "grad")
    _alike(nodes, "nodes", grad, "grad")
    _both_taps(nodes, out_start, out_weight, in_start, in_weight, nodes.shape[0], nodes.shape[1])
    _shape(grad, "grad", [out_start.shape[0], in_start.shape[0], *nodes.shape[2:]], "nodes and taps")


def interpolate(x: Tensor, start: Tensor, weight: Tensor, dim: int, dtype: torch.dtype) -> None:
    """x [..., M, ...] along `dim`."""
    _along(x, dim, "x")
    _output(dtype, x, "x")
    _taps(x, start, weight, x.shape[dim], "")


def spread(x: Tensor, start: Tensor, weight: Tensor, nodes: int, dim: int, dtype: torch.dtype) -> None:
    """x [..., K, ...] along `dim`, one for each point of the taps."""
    _along(x, dim, "x")
    _output(dtype, x, "x")
    _taps(x, start, weight, nodes, "")
    points, found = start.shape[0], x.shape[dim]
    torch._check(
        found == points, lambda: f"x must have {points} points along dim, one for each of the taps, got {found}"
    )


def interpolate_tap_gradient(x: Tensor, grad: Tensor, start: Tensor, dim: int) -> None:
    """x [..., M, ...] and grad [..., K, ...]."""
    _along(x, dim, "x")
    _along(grad, dim, "grad")
    _alike(x, "x", grad, "grad")
    _start(x, start, x.shape[dim], "start")
    wanted = list(x.shape)
    wanted[dim] = start.shape[0]
    _shape(grad, "grad", wanted, "x and start")


def weight_gradient(grad: Tensor, x: Tensor) -> None:
    """grad [B, K] and x [B, L]."""
    _values(grad, "grad")
    _values(x, "x")
    _on_device_of(grad, x, "x")
    torch._check(grad.dtype == x.dtype, lambda: "grad and x must be of one dtype")
    torch._check(
        grad.dim() == x.dim() == 2 and grad.shape[0] == x.shape[0],
        lambda: f"grad and x must have shapes [B, K] and [B, L], got {list(grad.shape)} and {list(x.shape)}",
    )


def linear(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
) -> None:
    """x [B, L], nodes [M_out, M_in], bias [M_out]."""
    _layer(nodes, "[M_out, M_in]", out_start, out_weight, in_start, in_weight)
    _operand(x, "x", nodes, in_start)
    _bias(bias, nodes)


def linear_backward(
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
) -> None:
    """grad [B, K], x [B, L], nodes [M_out, M_in]."""
    _layer(nodes, "[M_out, M_in]", out_start, out_weight, in_start, in_weight)
    _operand(x, "x", nodes, in_start)
    _operand(grad, "grad", nodes, out_start)
    _shape(grad, "grad", [x.shape[0], out_start.shape[0]], "x and taps")


def conv(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """x [B, L, H, W], nodes [M_out, M_in, R, S], bias [M_out]."""
    _layer(nodes, "[M_out, M_in, R, S]", out_start, out_weight, in_start, in_weight)
    _operand(x, "x", nodes, in_start)
    _bias(bias, nodes)
    _windows(x.shape[2:], nodes, stride, padding, dilation)


def conv_input_gradient(
    grad: Tensor,
    nodes: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """grad [B, K, P, Q], nodes [M_out, M_in, R, S]; `size` is x's H and W."""
    _layer(nodes, "[M_out, M_in, R, S]", out_start, out_weight, in_start, in_weight)
    _operand(grad, "grad", nodes, out_start)
    windows = _windows(size, nodes, stride, padding, dilation)
    _shape(grad, "grad", [grad.shape[0], out_start.shape[0], *windows], "size, nodes and taps")


def conv_node_gradient(
    grad: Tensor,
    x: Tensor,
    nodes: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_nodes: bool,
    need_bias: bool,
) -> None:
    """grad [B, K, P, Q], x [B, L, H, W], nodes [M_out, M_in, R, S]."""
    _layer(nodes, "[M_out, M_in, R, S]", out_start, out_weight, in_start, in_weight)
    _operand(x, "x", nodes, in_start)
    _operand(grad, "grad", nodes, out_start)
    windows = _windows(x.shape[2:], nodes, stride, padding, dilation)
    _shape(grad, "grad", [x.shape[0], out_start.shape[0], *windows], "x, nodes and taps")


def window_sizes(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The spatial sizes of a convolution's output."""
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dense(tensor: Tensor, name: str) -> None:
    torch._check(tensor.layout == torch.strided, lambda: f"{name} must be a dense (strided) tensor")


def _values(tensor: Tensor, name: str) -> None:
    _dense(tensor, name)
    _storable(tensor.dtype, name)


def _storable(dtype: torch.dtype, name: str) -> None:
    torch._check(dtype in _STORAGE, lambda: f"{name} must be float32, bfloat16, float16 or float64, got {_name(dtype)}")


def _on_device_of(first: Tensor, tensor: Tensor, name: str) -> None:
    torch._check(
        tensor.device == first.device,
        lambda: f"{name} must be on the device of the other operands, {first.device}, got {tensor.device}",
    )


def _same_precision(first: torch.dtype, first_name: str, second: torch.dtype, second_name: str) -> None:
    torch._check(
        (first == torch.float64) == (second == torch.float64),
        lambda: f"{first_name} and {second_name} must both be float64 or neither, got float64 for only one of them",
    )


def _alike(first: Tensor, first_name: str, second: Tensor, second_name: str) -> None:
    _on_device_of(first, second, second_name)
    _same_precision(first.dtype, first_name, second.dtype, second_name)


def _output(dtype: torch.dtype, tensor: Tensor, name: str) -> None:
    _storable(dtype, "dtype")
    _same_precision(tensor.dtype, name, dtype, "dtype")


def _matrix(tensor: Tensor, name: str) -> None:
    _values(tensor, name)
    torch._check(
        tensor.dim() >= 2, lambda: f"{name} must have shape [rows, columns, *kernel], got {list(tensor.shape)}"
    )


def _along(tensor: Tensor, dim: int, name: str) -> None:
    _values(tensor, name)
    rank = tensor.dim()
    torch._check(rank > 0, lambda: f"{name} must have at least one dimension, got a scalar")
    torch._check(
        -rank <= dim < rank,
        lambda: f"dim must be in [{-rank}, {rank - 1}] for {name} of shape {list(tensor.shape)}, got {dim}",
    )


def _shape(tensor: Tensor, name: str, wanted: Sequence[int], source: str) -> None:
    same = tensor.dim() == len(wanted)
    for found, size in zip(tensor.shape, wanted):
        same = same and found == size
    torch._check(same, lambda: f"{name} must have shape {list(wanted)} as {source} say, got {list(tensor.shape)}")


def _start(first: Tensor, start: Tensor, nodes: int, name: str) -> None:
    torch._check(0 <= nodes < 2**31, lambda: f"{name}: the number of nodes must be in [0, 2^31), got {nodes}")
    _dense(start, name)
    _on_device_of(first, start, name)
    torch._check(start.dtype == torch.int32, lambda: f"{name} must be int32, got {_name(start.dtype)}")
    torch._check(start.dim() == 1, lambda: f"{name} must have shape [K], got {list(start.shape)}")
    points = start.shape[0]
    torch._check(points == 0 or nodes > 0, lambda: f"{name} has {points} points but there are no nodes")
    _start_values(start, nodes, name)


def _start_values(start: Tensor, nodes: int, name: str) -> None:
    """Every tap addresses nodes there are, in order. Looked at where that waits for nothing: not on a GPU."""
    if type(start) is not Tensor or start.device.type != "cpu" or start.shape[0] == 0:
        return
    last = max(0, nodes - 4)
    low, high = int(start[0]), int(start[-1])
    torch._check(low >= 0, lambda: f"{name} must be in [0, {last}], got {low} at 0")
    torch._check(bool((start[1:] >= start[:-1]).all()), lambda: f"{name} must not decrease")
    torch._check(
        high <= last, lambda: f"{name} must be in [0, {last}] for {nodes} nodes, got {high} at {start.shape[0] - 1}"
    )


def _taps(first: Tensor, start: Tensor, weight: Tensor, nodes: int, prefix: str) -> None:
    _start(first, start, nodes, f"{prefix}start")
    name = f"{prefix}weight"
    _dense(weight, name)
    _on_device_of(first, weight, name)
    wanted = torch.float64 if first.dtype == torch.float64 else torch.float32
    torch._check(
        weight.dtype == wanted,
        lambda: f"{name} must be {_name(wanted)} for such values, got {_name(weight.dtype)}",
    )
    points = start.shape[0]
    torch._check(
        weight.dim() == 2 and weight.shape[0] == points and weight.shape[1] == 4,
        lambda: f"{name} must have shape [{points}, 4] as {prefix}start has {points} points, got {list(weight.shape)}",
    )


def _both_taps(
    first: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    out_nodes: int,
    in_nodes: int,
) -> None:
    _taps(first, out_start, out_weight, out_nodes, "out_")
    _taps(first, in_start, in_weight, in_nodes, "in_")


def _layer(
    nodes: Tensor, wanted: str, out_start: Tensor, out_weight: Tensor, in_start: Tensor, in_weight: Tensor
) -> None:
    """Nodes of the shape that `wanted` spells, and taps of both dimensions."""
    _values(nodes, "nodes")
    torch._check(
        nodes.dim() == wanted.count(",") + 1, lambda: f"nodes must have shape {wanted}, got {list(nodes.shape)}"
    )
    _both_taps(nodes, out_start, out_weight, in_start, in_weight, nodes.shape[0], nodes.shape[1])


def _operand(tensor: Tensor, name: str, nodes: Tensor, start: Tensor) -> None:
    """[B, points] or [B, points, H, W], as nodes have two or four dimensions."""
    _values(tensor, name)
    _alike(nodes, "nodes", tensor, name)
    points, rest = start.shape[0], ", H, W" if nodes.dim() == 4 else ""
    torch._check(
        tensor.dim() == nodes.dim() and tensor.shape[1] == points,
        lambda: f"{name} must have shape [B, {points}{rest}] as the taps say, got {list(tensor.shape)}",
    )


def _bias(bias: Tensor | None, nodes: Tensor) -> None:
    if bias is None:
        return
    _values(bias, "bias")
    _alike(nodes, "nodes", bias, "bias")
    _shape(bias, "bias", nodes.shape[:1], "nodes")


def _windows(
    size: Sequence[int], nodes: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The spatial sizes of the output."""
    for name, least, values in (
        ("size", 0, size),
        ("the nodes", 1, nodes.shape[:2]),
        ("the kernel of nodes", 1, nodes.shape[2:]),
        ("stride", 1, stride),
        ("padding", 0, padding),
        ("dilation", 1, dilation),
    ):
        torch._check(
            len(values) == 2 and all(least <= value < 2**31 for value in values),
            lambda name=name, least=least, values=values: (
                f"{name} must be two numbers in [{least}, 2^31), got {list(values)}"
            ),
        )
    windows = window_sizes(size, nodes.shape[2:], stride, padding, dilation)
    torch._check(
        windows[0] > 0 and windows[1] > 0,
        lambda: (
            f"the kernel of nodes, {list(nodes.shape[2:])}, must fit the padded size, {list(size)} with padding "
            f"{list(padding)} and dilation {list(dilation)}"
        ),
    )
    return windows
