"""The choice of a fused kernel's configuration: by kind of multiplication, then by rows.

Widths are random at every training step and choose nothing but NT, the number of points that `axis_table` lists a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from inn_kernels.gpu.launch import INTERPRETED, TRITON_TYPE, Config, target_of

ANY = 1 << 62
"""Any number of rows, in a table of configurations."""

ConfigTable = Mapping[str, Sequence[tuple[int, Config]]]
"""By kind of multiplication, (most rows, configuration), fewest first."""


def fp32_precision() -> str:
    """How float32 operands are multiplied, "tf32" or "ieee", as PyTorch is told to."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"


DOT_TYPE = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}


def compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """What `tl.dot` multiplies. Triton's interpreter multiplies the bits of bfloat16: there its values, in float32."""
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else DOT_TYPE[TRITON_TYPE[dtype]]


class Flags(NamedTuple):
    """Compile-time arguments of every fused kernel."""

    ALIGNED: bool
    COMPUTE: tl.dtype
    PRECISION: str


def select(table: ConfigTable, x: Tensor, nodes: Tensor, rows: int) -> tuple[Config, Flags]:
    """The first configuration for so many rows, and the compile-time arguments that follow from the tensors."""
    kind = fp32_precision() if x.dtype == torch.float32 else "half"
    config = next(config for most, config in table[kind] if rows <= most).on(target_of(x.device))
    return config, flags(kind, compute_dtype(x.dtype), nodes.shape[1:].numel() % 16 == 0)


def flags(kind: str, compute: tl.dtype, aligned: bool) -> Flags:
    """Compile-time arguments of a kind of multiplication."""
    return Flags(aligned, compute, "tf32" if kind == "tf32" else "ieee")
