"""Grouped matrix products, by which experts are computed, where PyTorch has no kernel: on shapes, in float64."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPED = {getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)} - {None}


def grouped_shapes(a: Tensor, b: Tensor, **options: Any) -> Tensor:
    """A tensor of the product's shape, which ties what the product ties: rows [N, I] of experts [E, I, O] to [N, O]."""
    return _with_bias(a @ (b.sum(0) if a.dim() < b.dim() else b), options)


def grouped_product(a: Tensor, b: Tensor, **options: Any) -> Tensor:
    """The product itself, group by group."""
    if a.dim() < b.dim():
        ends = options["offs"].tolist()
        parts = [a[start:end] @ expert for start, end, expert in zip([0, *ends], ends, b)]
        rest = a.new_zeros(len(a) - ends[-1], b.shape[-1])
        return _with_bias(torch.cat([*parts, rest]), options)
    return _with_bias(a @ b, options)


def _with_bias(product: Tensor, options: dict[str, Any]) -> Tensor:
    bias = options.get("bias")
    return product if bias is None else product + bias
