"""The dataflow `fused`: one launch forward, one or two backward; neither W_q nor interpolated activations reach memory.

    forward    x' = x S_in        y' = x' nodes^T + bias        y = y' S_out^T
    backward   dy' = dy S_out     dx = dy' nodes S_in^T         d_nodes = dy'^T x'        d_bias = sum dy'

The kernels give no gradient of the tap weights: where a partition or quadrature is trained, and where the backward pass
must itself be differentiated, backward runs through `factored`, the same algebra in differentiable steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from inn_kernels import gpu, ops
from inn_kernels.taps import Taps
from integral_nn.functional.interpolate import apply, interpolate, kernels, spread


class Linear(Function):
    """y = (x S_in nodes^T + bias) S_out^T."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [B, L]
        nodes: Tensor,  # [M_out, M_in]
        bias: Tensor | None,  # [M_out]
        out_start: Tensor,
        out_weight: Tensor,
        in_start: Tensor,
        in_weight: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, nodes, bias, out_start, out_weight, in_start, in_weight)
        return ops.linear(x, nodes, bias, out_start, out_weight, in_start, in_weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, nodes, _, *taps = ctx.saved_tensors
        need = ctx.needs_input_grad
        if torch.is_grad_enabled() or need[4] or need[6]:
            return _through_factored(ctx, grad, lambda x, w: F.linear(x, w), -1)
        dx, d_nodes, d_bias = kernels().linear_backward(grad, x, nodes, *taps, *need[:3])
        return (*(g if n else None for g, n in zip((dx, d_nodes, d_bias), need)), None, None, None, None)


class Conv(Function):
    """y = S_out (nodes * (S_in^T x) + bias), two spatial dimensions."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [B, L, H, W]
        nodes: Tensor,  # [M_out, M_in, R, S]
        bias: Tensor | None,
        out_start: Tensor,
        out_weight: Tensor,
        in_start: Tensor,
        in_weight: Tensor,
        *window: Sequence[int],  # stride, padding, dilation
    ) -> Tensor:
        ctx.window = window
        ctx.save_for_backward(x, nodes, bias, out_start, out_weight, in_start, in_weight)
        return ops.conv(x, nodes, bias, out_start, out_weight, in_start, in_weight, *window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, nodes, _, *taps = ctx.saved_tensors
        need, window = ctx.needs_input_grad, ctx.window
        if torch.is_grad_enabled() or need[4] or need[6]:
            return (*_through_factored(ctx, grad, lambda x, w: F.conv2d(x, w, None, *window), 1), None, None, None)
        dx = d_nodes = d_bias = None
        if need[0]:
            dx = kernels().conv_input_gradient(grad, nodes, *taps, x.shape[2:], *window)
        if need[1] or need[2]:
            d_nodes, d_bias = kernels().conv_node_gradient(grad, x, nodes, *taps, *window, *need[1:3])
        return (dx, d_nodes if need[1] else None, d_bias if need[2] else None, *[None] * 7)


def _through_factored(ctx: Any, grad: Tensor, multiply: Callable[[Tensor, Tensor], Tensor], channels: int) -> tuple:
    """Gradients by autograd through the factored dataflow, differentiable themselves where they must be."""
    again = torch.is_grad_enabled()
    inputs = ctx.saved_tensors
    with torch.enable_grad():
        if not again:
            inputs = [t if t is None else t.detach().requires_grad_(n) for t, n in zip(inputs, ctx.needs_input_grad)]
        x, nodes, bias, out_start, out_weight, in_start, in_weight = inputs
        out_taps, in_taps = Taps(out_start, out_weight, nodes.shape[0]), Taps(in_start, in_weight, nodes.shape[1])
        x_nodes = spread(x, in_taps, channels, x.dtype, "")
        y = multiply(x_nodes, nodes.to(x.dtype))
        if bias is not None:
            y = y + bias.to(x.dtype).reshape([-1] + [1] * (x.dim() - 2 if channels == 1 else 0))
        y = interpolate(y, out_taps, channels, x.dtype, "")
        wanted = [t for t, n in zip(inputs, ctx.needs_input_grad) if n]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=again))
    return tuple(next(found) if n else None for n in ctx.needs_input_grad[:7])


def refusal(nodes: Tensor, taps: Sequence[Taps | None], compute: torch.dtype, backend: str) -> str | None:
    """Why the fused kernels cannot run a layer, or None."""
    if backend != "triton":
        return f"backend {backend!r}"
    if any(along is None for along in taps):
        return "a discrete dimension"
    widest = max(along.weight.shape[-1] for along in taps if along is not None)
    if widest > gpu.FUSED_TAPS:
        return f"points that see more than {gpu.FUSED_TAPS} nodes, got {widest}"
    return gpu.refusal(nodes.device, nodes.dtype) or gpu.refusal(nodes.device, compute)


def check(reason: str | None) -> None:
    """Raise RuntimeError with the reason if there is one."""
    if reason is not None:
        raise RuntimeError(
            f"dataflow 'fused' cannot run this layer: its kernels (backend 'triton') do not take {reason}; "
            "'auto' chooses among those that can"
        )


def linear(x: Tensor, nodes: Tensor, bias: Tensor | None, out_taps: Taps | None, in_taps: Taps | None) -> Tensor:
    """The fused linear layer. x [..., L], nodes [M_out, M_in] -> [..., K]."""
    assert out_taps is not None and in_taps is not None
    taps = (out_taps.start, out_taps.weight, in_taps.start, in_taps.weight)
    y = apply(Linear, "linear", x.reshape(-1, x.shape[-1]), nodes, bias, *taps)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def conv(
    x: Tensor,
    nodes: Tensor,
    bias: Tensor | None,
    out_taps: Taps | None,
    in_taps: Taps | None,
    window: Sequence[Sequence[int]],
) -> Tensor:
    """The fused convolution, one or two spatial dimensions, batched or not. `window`: stride, padding, dilation.

    x [B, L, H, W] or [B, L, W], nodes [M_out, M_in, R, S] or [M_out, M_in, S].
    """
    assert out_taps is not None and in_taps is not None
    taps = (out_taps.start, out_taps.weight, in_taps.start, in_taps.weight)
    single, line = x.dim() == nodes.dim() - 1, nodes.dim() == 3
    x = x.unsqueeze(0) if single else x
    if line:  # a 1-D convolution is a 2-D one of height 1
        x, nodes = x.unsqueeze(2), nodes.unsqueeze(2)
        window = [[one, *size] for one, size in zip((1, 0, 1), window)]
    y = apply(Conv, "conv", x, nodes, bias, *taps, *window)
    y = y.squeeze(2) if line else y
    return y.squeeze(0) if single else y
