"""Cases and the tolerance rule of the sampler kernels' tests.

    err(kernel, reference64) <= 2 * err(eager in the same dtype, reference64) + FLOOR[dtype]

`err` is the largest error over the largest value; eager is `reference` on the kernel's own inputs, reference64 the same
in float64. The floor is four roundings of float32 and half a unit of what is narrower; the interpreter truncates to
bfloat16 where a device rounds to nearest, so a whole unit there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inn_kernels.gpu.launch import INTERPRETED
from inn_kernels.taps import Basis, Taps, make_taps

DEVICE = "cpu" if INTERPRETED else "cuda"
FLOOR = {torch.float32: 2.0**-21, torch.float16: 2.0**-12, torch.bfloat16: 2.0**-7 if INTERPRETED else 2.0**-9}
DTYPES = (  # nodes, weight
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
)


PLAIN = Basis()


class Case(NamedTuple):
    """Nodes [M_out, M_in, *rest] and points [K, L]."""

    nodes: tuple[int, ...]
    points: tuple[int, int]
    kind: str = "random"
    channels_last: bool = False


CASES = {
    "primes": Case((67, 71), (53, 31)),
    "full size": Case((41, 37), (41, 37), "uniform"),
    "more points": Case((3, 5), (23, 29)),
    "fewer points": Case((101, 89), (3, 2)),
    "clustered": Case((31, 64), (13, 17), "clustered"),
    "offsets 9": Case((13, 11, 3, 3), (9, 17)),
    "offsets 9 channels_last": Case((13, 11, 3, 3), (9, 17), channels_last=True),
    "offsets 25": Case((6, 7, 5, 5), (5, 6), "uniform"),
    "offsets 3": Case((9, 7, 3), (6, 8)),
    "offsets 8 of three": Case((5, 6, 2, 2, 2), (4, 7)),
}
WIDE = Case((61, 620), (57, 600), "uniform") if INTERPRETED else Case((2111, 2309), (1709, 1901), "uniform")
"""Large enough for the wide configurations, on a device and in the interpreter's stand-in for one."""


def partition(kind: str, n: int, nodes: int) -> Tensor:
    """n points: uniform, random, or clustered within the middle node cell."""
    if kind == "uniform":
        return torch.linspace(0, 1, n, dtype=torch.float64)
    points = torch.rand(n, dtype=torch.float64).sort().values
    return points if kind == "random" else (points * 0.9 + nodes // 2) / max(nodes - 1, 1) * (nodes > 1)


def taps(kind: str, n: int, nodes: int, weighted: bool = False, basis: Basis = PLAIN) -> Taps:
    """Taps on the device, float32; `weighted` by factors of the size of a scaled quadrature."""
    multiplier = torch.rand(n, dtype=torch.float64) + 0.5 if weighted else None
    made = make_taps(partition(kind, n, nodes), nodes, basis, multiplier=multiplier, dtype=torch.float32)
    return Taps(made.start.to(DEVICE), made.weight.to(DEVICE), nodes)


def random(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """Normal values on the device."""
    x = torch.randn(shape).to(DEVICE, dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def doubled(arguments: tuple) -> tuple:
    """The same arguments with every floating tensor, and every dtype, float64."""
    return tuple(
        a.double() if isinstance(a, Tensor) and a.is_floating_point()
        else torch.float64 if isinstance(a, torch.dtype)
        else a
        for a in arguments
    )  # fmt: skip


def check(value: Tensor, eager: Tensor, truth: Tensor, dtype: torch.dtype | None = None) -> None:
    """The tolerance rule; shapes, dtypes and layouts must agree too."""
    assert value.shape == truth.shape and value.dtype == eager.dtype
    scale = float(truth.abs().max()) or 1.0
    error, plain = (float((x.double() - truth).abs().max()) / scale for x in (value, eager))
    assert error <= 2 * plain + FLOOR[dtype or value.dtype], f"error {error:.2e}, eager {plain:.2e}"
