"""What one operand, or one with another, must be: device, dtype, shape, and the values of taps.

`checks` puts these together, a function an operation. The words are those of csrc/tensors.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def window_sizes(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The spatial sizes of a convolution's output."""
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)]


def aligned(ints: int) -> int:
    """So many int32 filled up to a multiple of 16 bytes: kernels read what lies behind as fast as what stands alone."""
    return -(-ints // 4) * 4


PAD = 64
"""Nodes that the table of an axis is padded to a multiple of."""


def table_parts(points: int, nodes: int, contributors: int) -> list[int]:
    """Sizes in int32 of what the table of an axis holds (`gpu.axis_table`): first, skew, lo, hi, crowded, coefficient.

    Each begins behind the one before it, `aligned`.
    """
    padded = -(-nodes // PAD) * PAD
    return [nodes + 1, points, padded, padded, 2, contributors * padded]


def name_of(dtype: torch.dtype) -> str:
    """The name that users write."""
    return str(dtype).removeprefix("torch.")


def check_dense(tensor: Tensor, name: str) -> None:
    """A dense tensor."""
    torch._check(tensor.layout == torch.strided, lambda: f"{name} must be a dense (strided) tensor")


def check_written(tensor: Tensor, name: str) -> None:
    """A tensor that is filled in order."""
    check_dense(tensor, name)
    torch._check(tensor.is_contiguous(), lambda: f"{name} must be contiguous")


def check_values(tensor: Tensor, name: str) -> None:
    """A dense tensor of a dtype that kernels read and write."""
    check_dense(tensor, name)
    check_storable(tensor.dtype, name)


def check_storable(dtype: torch.dtype, name: str) -> None:
    """A dtype that kernels read and write."""
    torch._check(
        dtype in _STORAGE, lambda: f"{name} must be float32, bfloat16, float16 or float64, got {name_of(dtype)}"
    )


def check_device(first: Tensor, tensor: Tensor, name: str) -> None:
    """A tensor where the first one is."""
    torch._check(
        tensor.device == first.device,
        lambda: f"{name} must be on the device of the other operands, {first.device}, got {tensor.device}",
    )


def check_same_precision(first: torch.dtype, first_name: str, second: torch.dtype, second_name: str) -> None:
    """float64 goes with float64 only; the other dtypes mix."""
    torch._check(
        (first == torch.float64) == (second == torch.float64),
        lambda: f"{first_name} and {second_name} must both be float64 or neither, got float64 for only one of them",
    )


def check_alike(first: Tensor, first_name: str, second: Tensor, second_name: str) -> None:
    """Two tensors that an operation reads together."""
    check_device(first, second, second_name)
    check_same_precision(first.dtype, first_name, second.dtype, second_name)


def check_output(dtype: torch.dtype, tensor: Tensor, name: str) -> None:
    """A dtype that results made of `tensor` may have."""
    check_storable(dtype, "dtype")
    check_same_precision(tensor.dtype, name, dtype, "dtype")


def check_matrix(tensor: Tensor, name: str) -> None:
    """[rows, columns, *kernel]."""
    check_values(tensor, name)
    torch._check(
        tensor.dim() >= 2, lambda: f"{name} must have shape [rows, columns, *kernel], got {list(tensor.shape)}"
    )


def check_along(tensor: Tensor, dim: int, name: str) -> None:
    """A tensor with a dimension `dim`."""
    check_values(tensor, name)
    rank = tensor.dim()
    torch._check(rank > 0, lambda: f"{name} must have at least one dimension, got a scalar")
    torch._check(
        -rank <= dim < rank,
        lambda: f"dim must be in [{-rank}, {rank - 1}] for {name} of shape {list(tensor.shape)}, got {dim}",
    )


def check_shape(tensor: Tensor, name: str, wanted: Sequence[int], source: str) -> None:
    """The shape that other arguments (`source`) say."""
    same = tensor.dim() == len(wanted)
    for found, size in zip(tensor.shape, wanted):
        same = same and found == size
    torch._check(same, lambda: f"{name} must have shape {list(wanted)} as {source} say, got {list(tensor.shape)}")


def check_start_form(first: Tensor, start: Tensor, nodes: int, name: str) -> None:
    """Everything about start but its values."""
    torch._check(0 <= nodes < 2**31, lambda: f"{name}: the number of nodes must be in [0, 2^31), got {nodes}")
    check_dense(start, name)
    check_device(first, start, name)
    torch._check(start.dtype == torch.int32, lambda: f"{name} must be int32, got {name_of(start.dtype)}")
    torch._check(start.dim() == 1, lambda: f"{name} must have shape [K], got {list(start.shape)}")
    points = start.shape[0]
    torch._check(points == 0 or nodes > 0, lambda: f"{name} has {points} points but there are no nodes")


def check_start_values(start: Tensor, taps: int, nodes: int, name: str) -> None:
    """Every tap addresses nodes there are, in order. Looked at where that waits for nothing: not on a GPU."""
    if type(start) is not Tensor or start.device.type != "cpu" or start.shape[0] == 0:
        return
    last = max(0, nodes - taps)
    low, high = int(start[0]), int(start[-1])
    torch._check(low >= 0, lambda: f"{name} must be in [0, {last}], got {low} at 0")
    torch._check(bool((start[1:] >= start[:-1]).all()), lambda: f"{name} must not decrease")
    torch._check(
        high <= last,
        lambda: (
            f"{name} must be in [0, {last}] for {nodes} nodes and {taps} taps a point, got {high} at "
            f"{start.shape[0] - 1}"
        ),
    )


def check_start(first: Tensor, start: Tensor, taps: int, nodes: int) -> None:
    """For an operation that makes the gradient of weights [K, taps] and reads only start."""
    check_start_form(first, start, nodes, "start")
    torch._check(1 <= taps < 2**31, lambda: f"taps must be in [1, 2^31), got {taps}")
    check_start_values(start, taps, nodes, "start")


def check_taps(first: Tensor, start: Tensor, weight: Tensor, nodes: int, prefix: str) -> None:
    """start [K] and weight [K, T] over so many nodes; `prefix` says which dimension's."""
    check_start_form(first, start, nodes, f"{prefix}start")
    name = f"{prefix}weight"
    check_dense(weight, name)
    check_device(first, weight, name)
    wanted = torch.float64 if first.dtype == torch.float64 else torch.float32
    torch._check(
        weight.dtype == wanted,
        lambda: f"{name} must be {name_of(wanted)} for such values, got {name_of(weight.dtype)}",
    )
    points = start.shape[0]
    torch._check(
        weight.dim() == 2 and weight.shape[0] == points and weight.shape[1] >= 1,
        lambda: (
            f"{name} must have shape [{points}, T] with T >= 1 as {prefix}start has {points} points, got "
            f"{list(weight.shape)}"
        ),
    )
    check_start_values(start, weight.shape[1], nodes, f"{prefix}start")


def check_both_taps(
    first: Tensor,
    out_start: Tensor,
    out_weight: Tensor,
    in_start: Tensor,
    in_weight: Tensor,
    out_nodes: int,
    in_nodes: int,
) -> None:
    """Taps of the first two dimensions, for values like `first`."""
    check_taps(first, out_start, out_weight, out_nodes, "out_")
    check_taps(first, in_start, in_weight, in_nodes, "in_")


def check_layer(
    nodes: Tensor, wanted: str, out_start: Tensor, out_weight: Tensor, in_start: Tensor, in_weight: Tensor
) -> None:
    """Nodes of the shape that `wanted` spells, and taps of both dimensions."""
    check_values(nodes, "nodes")
    torch._check(
        nodes.dim() == wanted.count(",") + 1, lambda: f"nodes must have shape {wanted}, got {list(nodes.shape)}"
    )
    check_both_taps(nodes, out_start, out_weight, in_start, in_weight, nodes.shape[0], nodes.shape[1])


def check_operand(tensor: Tensor, name: str, nodes: Tensor, start: Tensor) -> None:
    """[B, points] or [B, points, H, W], as nodes have two or four dimensions."""
    check_values(tensor, name)
    check_alike(nodes, "nodes", tensor, name)
    points, rest = start.shape[0], ", H, W" if nodes.dim() == 4 else ""
    torch._check(
        tensor.dim() == nodes.dim() and tensor.shape[1] == points,
        lambda: f"{name} must have shape [B, {points}{rest}] as the taps say, got {list(tensor.shape)}",
    )


def check_bias(bias: Tensor | None, nodes: Tensor) -> None:
    """[M_out], or none."""
    if bias is None:
        return
    check_values(bias, "bias")
    check_alike(nodes, "nodes", bias, "bias")
    check_shape(bias, "bias", nodes.shape[:1], "nodes")


def check_windows(
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
