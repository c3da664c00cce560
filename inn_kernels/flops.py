"""Flop formulas of the operations that multiply matrices, for torch.utils.flop_counter.

Two a multiply-add of the product, which the fused operations form between nodes, as PyTorch counts mm and convolutions.
Sampling is not counted: a few taps a value are elementwise work, of which PyTorch counts none either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from inn_kernels import ops  # noqa: F401 (defines the operations)

Size = Sequence[int]
_operations = torch.ops.inn_kernels


@register_flop_formula(_operations.weight_gradient)
def weight_gradient(grad: Size, x: Size, *_: Any, **__: Any) -> int:
    """grad [B, K], x [B, L]."""
    return 2 * math.prod(grad) * x[1]


@register_flop_formula(_operations.linear)
def linear(x: Size, nodes: Size, *_: Any, **__: Any) -> int:
    """x [B, L], nodes [M_out, M_in]: x' nodes^T."""
    return 2 * x[0] * math.prod(nodes)


@register_flop_formula(_operations.linear_backward)
def linear_backward(grad: Size, x: Size, nodes: Size, *rest: Any, **_: Any) -> int:
    """dy' nodes and dy'^T x', each if needed; nothing for the bias."""
    need_x, need_nodes, _need_bias = rest[-3:]
    return (need_x + need_nodes) * 2 * x[0] * math.prod(nodes)


@register_flop_formula(_operations.conv)
def conv(x: Size, nodes: Size, *_: Any, out_shape: Size, **__: Any) -> int:
    """nodes [M_out, M_in, R, S] at every position of the output [B, K, P, Q]."""
    return _positions(out_shape) * 2 * math.prod(nodes)


@register_flop_formula(_operations.conv_input_gradient)
def conv_input_gradient(grad: Size, nodes: Size, *_: Any, **__: Any) -> int:
    """grad [B, K, P, Q]: each position's dy' through the nodes."""
    return _positions(grad) * 2 * math.prod(nodes)


@register_flop_formula(_operations.conv_node_gradient)
def conv_node_gradient(grad: Size, x: Size, nodes: Size, *rest: Any, **__: Any) -> int:
    """dy' times the window of x' at each position; nothing for the bias."""
    need_nodes = rest[-2]
    return need_nodes * _positions(grad) * 2 * math.prod(nodes)


def _positions(image: Size) -> int:
    batch, _, *size = image
    return batch * math.prod(size)
