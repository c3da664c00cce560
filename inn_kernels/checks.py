"""What the operators refuse, in the words of the compiled kernels: devices, dtypes, shapes, and values of taps.

The compiled library checks for itself (csrc/tensors.cpp). The shapes for tracing and the fallback to `reference` check
here: one function an operation, with its name and arguments. All raise RuntimeError, as the library and PyTorch's own
operators do. Sizes may be symbols of a tracer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inn_kernels import tap_makers
from inn_kernels.basis import BOUNDARIES, KERNELS, Basis
from inn_kernels.operands import (
    aligned,
    check_alike,
    check_along,
    check_bias,
    check_both_taps,
    check_device,
    check_layer,
    check_matrix,
    check_operand,
    check_output,
    check_shape,
    check_start,
    check_taps,
    check_values,
    check_windows,
    check_written,
    name_of,
    table_parts,
)


def discretize(
    nodes: Tensor, out_start: Tensor, out_weight: Tensor, in_start: Tensor, in_weight: Tensor, dtype: torch.dtype
) -> None:
    """Nodes [M_out, M_in, *rest] and taps of both dimensions."""
    check_matrix(nodes, "nodes")
    check_output(dtype, nodes, "nodes")
    check_both_taps(nodes, out_start, out_weight, in_start, in_weight, nodes.shape[0], nodes.shape[1])


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
    check_matrix(grad, "grad")
    check_output(dtype, grad, "grad")
    check_both_taps(grad, out_start, out_weight, in_start, in_weight, out_nodes, in_nodes)
    check_shape(grad, "grad", [out_start.shape[0], in_start.shape[0], *grad.shape[2:]], "the taps")


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
    check_matrix(nodes, "nodes")
    check_matrix(grad, "grad")
    check_alike(nodes, "nodes", grad, "grad")
    check_both_taps(nodes, out_start, out_weight, in_start, in_weight, nodes.shape[0], nodes.shape[1])
    check_shape(grad, "grad", [out_start.shape[0], in_start.shape[0], *nodes.shape[2:]], "nodes and taps")


def interpolate(x: Tensor, start: Tensor, weight: Tensor, dim: int, dtype: torch.dtype) -> None:
    """x [..., M, ...] along `dim`."""
    check_along(x, dim, "x")
    check_output(dtype, x, "x")
    check_taps(x, start, weight, x.shape[dim], "")


def spread(x: Tensor, start: Tensor, weight: Tensor, nodes: int, dim: int, dtype: torch.dtype) -> None:
    """x [..., K, ...] along `dim`, one for each point of the taps."""
    check_along(x, dim, "x")
    check_output(dtype, x, "x")
    check_taps(x, start, weight, nodes, "")
    points, found = start.shape[0], x.shape[dim]
    torch._check(
        found == points, lambda: f"x must have {points} points along dim, one for each of the taps, got {found}"
    )


def interpolate_tap_gradient(x: Tensor, grad: Tensor, start: Tensor, taps: int, dim: int) -> None:
    """x [..., M, ...] and grad [..., K, ...]."""
    check_along(x, dim, "x")
    check_along(grad, dim, "grad")
    check_alike(x, "x", grad, "grad")
    check_start(x, start, taps, x.shape[dim])
    wanted = list(x.shape)
    wanted[dim] = start.shape[0]
    check_shape(grad, "grad", wanted, "x and start")


def discretize_foreach(
    nodes: Sequence[Tensor],
    start: Sequence[Tensor],
    weight: Sequence[Tensor],
    out: Sequence[int],
    in_: Sequence[int],
    dtype: torch.dtype,
) -> None:
    """Each tensor as `discretize` or `interpolate` takes it; taps by position."""
    _positions(len(nodes), start, weight, out, in_)
    for x, o, i in zip(nodes, out, in_):
        if o >= 0 and i >= 0:
            discretize(x, start[o], weight[o], start[i], weight[i], dtype)
        else:
            interpolate(x, start[max(o, i)], weight[max(o, i)], 0 if o >= 0 else 1, dtype)


def discretize_foreach_adjoint(
    grads: Sequence[Tensor],
    start: Sequence[Tensor],
    weight: Sequence[Tensor],
    nodes: Sequence[int],
    out: Sequence[int],
    in_: Sequence[int],
    dtype: torch.dtype,
) -> None:
    """Each tensor as `discretize_adjoint` or `spread` takes it; taps, and how many nodes they have, by position."""
    _positions(len(grads), start, weight, out, in_)
    torch._check(
        len(nodes) == len(start),
        lambda: f"nodes must have one size for each of the taps, got {len(nodes)} for {len(start)}",
    )
    for x, o, i in zip(grads, out, in_):
        if o >= 0 and i >= 0:
            discretize_adjoint(x, start[o], weight[o], start[i], weight[i], nodes[o], nodes[i], dtype)
        else:
            either = max(o, i)
            spread(x, start[either], weight[either], nodes[either], 0 if o >= 0 else 1, dtype)


def _positions(
    tensors: int, start: Sequence[Tensor], weight: Sequence[Tensor], out: Sequence[int], in_: Sequence[int]
) -> None:
    torch._check(
        len(out) == len(in_) == tensors,
        lambda: f"out and in_ must have one position a tensor, got {len(out)} and {len(in_)} for {tensors}",
    )
    torch._check(
        len(start) == len(weight),
        lambda: f"start and weight must be of one length, got {len(start)} and {len(weight)}",
    )
    for n, positions in enumerate(zip(out, in_)):
        for at in positions:
            torch._check(
                -1 <= at < len(start), lambda at=at: f"a position of taps must be in [-1, {len(start)}), got {at}"
            )
        torch._check(max(positions) >= 0, lambda n=n: f"tensor {n} has no taps")


def weight_gradient(grad: Tensor, x: Tensor) -> None:
    """grad [B, K] and x [B, L]."""
    check_values(grad, "grad")
    check_values(x, "x")
    check_device(grad, x, "x")
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
    check_layer(nodes, "[M_out, M_in]", out_start, out_weight, in_start, in_weight)
    check_operand(x, "x", nodes, in_start)
    check_bias(bias, nodes)


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
    check_layer(nodes, "[M_out, M_in]", out_start, out_weight, in_start, in_weight)
    check_operand(x, "x", nodes, in_start)
    check_operand(grad, "grad", nodes, out_start)
    check_shape(grad, "grad", [x.shape[0], out_start.shape[0]], "x and taps")


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
    check_layer(nodes, "[M_out, M_in, R, S]", out_start, out_weight, in_start, in_weight)
    check_operand(x, "x", nodes, in_start)
    check_bias(bias, nodes)
    check_windows(x.shape[2:], nodes, stride, padding, dilation)


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
    check_layer(nodes, "[M_out, M_in, R, S]", out_start, out_weight, in_start, in_weight)
    check_operand(grad, "grad", nodes, out_start)
    windows = check_windows(size, nodes, stride, padding, dilation)
    check_shape(grad, "grad", [grad.shape[0], out_start.shape[0], *windows], "size, nodes and taps")


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
    check_layer(nodes, "[M_out, M_in, R, S]", out_start, out_weight, in_start, in_weight)
    check_operand(x, "x", nodes, in_start)
    check_operand(grad, "grad", nodes, out_start)
    windows = check_windows(x.shape[2:], nodes, stride, padding, dilation)
    check_shape(grad, "grad", [x.shape[0], out_start.shape[0], *windows], "x, nodes and taps")


CLOSED_FORM = ("cells", "midpoint", "trapezoid", "simpson", "left", "right")
"""Quadratures whose points and weights are fractions."""


def uniform_taps(
    start: Tensor,
    weight: Tensor,
    nodes: int,
    a: float,
    kernel: str,
    boundary: str,
    quadrature: str,
    scale: float | None,
) -> None:
    """start [K] and weight [K, T] that taps are written into: T as the rule, K and nodes say."""
    for name, value, known in (
        ("boundary", boundary, BOUNDARIES),
        ("kernel", kernel, KERNELS),
        ("quadrature", quadrature, CLOSED_FORM),
    ):
        words = " or ".join([", ".join(known[:-1]), known[-1]])
        torch._check(value in known, lambda name=name, words=words, value=value: f"{name} must be {words}, got {value}")
    torch._check(-1e6 < a < 1e6, lambda: f"a must be finite, got {a:g}")
    check_written(start, "start")
    check_written(weight, "weight")
    check_device(start, weight, "weight")
    torch._check(start.dtype == torch.int32, lambda: f"start must be int32, got {name_of(start.dtype)}")
    torch._check(
        weight.dtype in (torch.float32, torch.float64),
        lambda: f"weight must be float32 or float64, got {name_of(weight.dtype)}",
    )
    torch._check(1 <= nodes < 2**31, lambda: f"nodes must be in [1, 2^31), got {nodes}")
    torch._check(start.dim() == 1, lambda: f"start must have shape [K], got {list(start.shape)}")
    points, fewest = start.shape[0], 2 if scale is not None and quadrature in ("trapezoid", "simpson") else 1
    torch._check(points >= fewest, lambda: f"start must have at least {fewest} points, got {points}")
    taps = tap_makers.tap_count(points, nodes, Basis(a, boundary, kernel), quadrature == "cells")
    torch._check(
        weight.dim() == 2 and weight.shape[0] == points and weight.shape[1] == taps,
        lambda: f"weight must have shape [{points}, {taps}] for such points, got {list(weight.shape)}",
    )


def axis_table(table: Tensor, start: Tensor, weight: Tensor, nodes: int, contributors: int) -> None:
    """start [K] and weight [K, T] of float32, and a table to write: int32, of the size that they say."""
    check_written(table, "table")
    torch._check(table.dtype == torch.int32, lambda: f"table must be int32, got {name_of(table.dtype)}")
    check_taps(table, start, weight, nodes, "")
    torch._check(start.shape[0] >= 1, lambda: "start must have at least 1 points, got 0")
    torch._check(1 <= contributors < 2**15, lambda: f"contributors must be in [1, 2^15), got {contributors}")
    size = sum(map(aligned, table_parts(start.shape[0], nodes, contributors)))
    torch._check(
        table.dim() == 1 and table.shape[0] == size,
        lambda: f"table must have shape [{size}] for such taps, got {list(table.shape)}",
    )
