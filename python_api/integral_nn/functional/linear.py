"""The fully-connected integral layer.

F_O(x_out) = integral of F_W(x_out, x_in) F_I(x_in) dx_in          (Eq. 3)     y = x W_q^T + b

materialize   W_q = S_out nodes S_in^T,   y = x W_q^T
factored      x' = x S_in,   y' = x' nodes^T,   y = y' S_out^T          (W_q never exists)
fused         the same algebra in one launch (nothing in between reaches memory)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inn_kernels import dispatch
from inn_kernels.quadrature import Quadrature
from inn_kernels.taps import Basis, Partition, Taps
from integral_nn.functional import again, arguments, fused
from integral_nn.functional import linear_step as step
from integral_nn.functional.discretize import sample
from integral_nn.functional.interpolate import interpolate, spread


def integral_linear(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None = None,
    out_partition: Partition | None = None,
    in_partition: Partition | None = None,
    *,
    quadrature: Quadrature = "trapezoid",
    scale: float = 1.0,
    kernel: str = "cubic",
    a: float = -0.75,
    boundary: str = "clamp",
    dataflow: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """The integral of a continuous weight against x: y = x W_q^T + b  (Eq. 3 and 6).

    Args:
        x: [..., L], or [..., L * T] for nodes with taps (channel-major, as a flatten leaves them).
        nodes: [M_out, M_in], or [M_out, M_in, T].
        bias: [M_out] nodes of the bias, sampled along the output axis; or None.
        out_partition: [K] increasing points in [0, 1] ("cells": [K + 1] edges), or K, or None for a discrete dimension.
        in_partition: [L] likewise.
        quadrature, scale, kernel, a, boundary: see `discretize`.
        dataflow: "materialize", "factored", "fused" (GPU, both dimensions continuous), or "auto" for the cheapest by
            the cost model.
        backend: "cpp", "triton", "reference", or None for the fastest that can run.

    Returns:
        [..., K] in x's dtype (autocast's under autocast), differentiable in x, nodes, bias, both partitions and a
        tensor quadrature, twice.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, type, device or range; the message names it.
        RuntimeError: the backend asked for cannot run here, and why.

    >>> import torch, integral_nn as inn
    >>> inn.integral_linear(torch.ones(1, 9), torch.ones(5, 5), None, 3, 9)  # the integral of 1 over [0, 1]
    tensor([[1., 1., 1.]])
    """
    settings = (out_partition, in_partition, quadrature, scale, kernel, a, boundary, dataflow, backend)
    signature = arguments.signature((x, nodes, bias), settings)
    way = None if signature is None else _ways.get(signature)
    if way is None:
        arguments.check_floating(x, "x")
        arguments.check_nodes(nodes, (2, 3), "[M_out, M_in] or [M_out, M_in, T]")
        arguments.check_device(x, nodes, "x")
        arguments.check_bias(bias, nodes)
        arguments.check_dataflow(dataflow)
        wide = arguments.working_dtype(nodes, arguments.compute_dtype(x))
        backend = dispatch.select_backend(backend, nodes.device, nodes.dtype)
        basis = Basis(a, boundary, kernel)
        taps = arguments.weight_taps(nodes, out_partition, in_partition, None, quadrature, scale, basis, wide)
        way = _chosen(x, nodes, bias, taps, dataflow, backend)
        if signature is not None and not arguments.capturing(x.device):
            if len(_ways) >= _KEPT:
                _ways.clear()
            _ways[signature] = way
    return _run(x, nodes, bias, way)


class _Way(NamedTuple):
    """How a layer is computed."""

    taps: Sequence[Taps | None]
    compute: torch.dtype
    dataflow: str
    step: bool  # by one node of autograd
    backend: str


_ways: dict[tuple, _Way] = {}
"""Calls that were checked before, by what decides how they are computed. No tensor of a caller is among it."""

_KEPT = 1024


def linear(
    x: Tensor, nodes: Tensor, bias: Tensor | None, taps: Sequence[Taps | None], dataflow: str, backend: str
) -> Tensor:
    """`integral_linear` on taps [out, in] that were made and checked before."""
    return _run(x, nodes, bias, _chosen(x, nodes, bias, taps, dataflow, backend))


def _chosen(
    x: Tensor, nodes: Tensor, bias: Tensor | None, taps: Sequence[Taps | None], dataflow: str, backend: str
) -> _Way:
    in_taps = taps[1]
    channels = nodes.shape[1] if in_taps is None else in_taps.points
    offsets = nodes.shape[2] if nodes.dim() == 3 else 1
    check_features(x, channels, offsets)
    compute = arguments.compute_dtype(x)
    refusal = "nodes with taps" if offsets > 1 else fused.refusal(nodes, taps, compute, backend)
    if dataflow == "auto":
        rows, training = x.numel() // x.shape[-1], arguments.records_gradient(x, nodes)
        dataflow = dispatch.choose_dataflow(rows, nodes, taps, compute, training, fusable=refusal is None)
    if dataflow == "fused":
        fused.check(refusal)
    one = dataflow != "fused" and step.takes(x, nodes, bias, taps, compute, dataflow, backend)
    return _Way(taps, compute, dataflow, one, backend)


def _run(x: Tensor, nodes: Tensor, bias: Tensor | None, way: _Way) -> Tensor:
    taps, compute, dataflow, one, backend = way
    out_taps, in_taps = taps
    if dataflow == "fused":
        return fused.linear(x.to(compute), nodes, bias, out_taps, in_taps)
    if one:
        return step.linear(x.to(compute), nodes, bias, out_taps, in_taps, dataflow)
    sampled_bias = None if bias is None else sample(bias, [out_taps], compute, backend)
    if dataflow == "materialize":
        weight = again.sampled(lambda nodes: sample(nodes, taps, compute, backend), nodes)
        return F.linear(x, weight.flatten(1), sampled_bias)
    if in_taps is not None:
        offsets = nodes.shape[2] if nodes.dim() == 3 else 1
        grouped = x.unflatten(-1, (in_taps.points, offsets)) if offsets > 1 else x
        x = spread(grouped, in_taps, -2 if offsets > 1 else -1, compute, backend)
        x = x.flatten(-2) if offsets > 1 else x
    y = F.linear(x, nodes.to(compute).flatten(1))
    if out_taps is not None:
        y = interpolate(y, out_taps, -1, compute, backend)
    return y if sampled_bias is None else y + sampled_bias


def check_features(x: Tensor, channels: int, offsets: int) -> None:
    """Raise unless the last dimension of x holds `channels` input points with `offsets` features each."""
    if x.dim() == 0 or x.shape[-1] != channels * offsets:
        each = f" of {offsets} taps each" if offsets > 1 else ""
        raise ValueError(f"x must have {channels} input points{each} as its last dimension, got shape {list(x.shape)}")
