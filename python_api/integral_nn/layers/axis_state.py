"""What a `state_dict` keeps of an axis beside its points: its size, and the rule by which its nodes are sampled.

It is a tensor of integers of one shape, whatever the rule, so that checkpoints that are read in place, in shards or by
several processes treat it as they treat any other:

    [size, nodes, quadrature, kernel, boundary, a, keeps]

The scale of a layer built by hand is kept beside its nodes, a float64 (`scale_difference`).

Names are given by their place in the tuples below, to which names are only ever added at the end; `a` by the bits of
its float64.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from inn_kernels.taps import Basis

QUADRATURES = ("cells", "trapezoid", "midpoint", "simpson", "gauss-legendre", "left", "right")
KERNELS = ("bspline", "conservative", "cubic", "linear")
BOUNDARIES = ("clamp", "keys")


class AxisState(NamedTuple):
    """Size and rule of an axis; `keeps` says that its deltas keep their number at every size."""

    size: int
    nodes: int
    quadrature: str
    basis: Basis
    keeps: bool

    def packed(self) -> Tensor:
        """As a tensor of integers, on the CPU."""
        (bits,) = struct.unpack("<q", struct.pack("<d", self.basis.a))
        kernel, boundary = KERNELS.index(self.basis.kernel), BOUNDARIES.index(self.basis.boundary)
        numbers = [self.size, self.nodes, QUADRATURES.index(self.quadrature), kernel, boundary, bits, int(self.keeps)]
        return torch.tensor(numbers, dtype=torch.int64, device="cpu")

    def differences(self, other: AxisState) -> list[str]:
        """In what the rule of a saved state, this one, differs from that of an axis."""
        pairs = {
            "nodes": (self.nodes, other.nodes),
            "quadrature": (self.quadrature, other.quadrature),
            "kernel": (self.basis.kernel, other.basis.kernel),
            "boundary": (self.basis.boundary, other.basis.boundary),
        }
        if self.basis.kernel == other.basis.kernel == "cubic":
            pairs["a"] = (self.basis.a, other.basis.a)
        return [
            f"{name}={saved!r} in the state_dict, {own!r} here" for name, (saved, own) in pairs.items() if saved != own
        ]


def unpacked(state: Tensor) -> AxisState | int:
    """The reverse; a size alone of a state that was saved without the rule.

    Raises:
        ValueError: neither.
    """
    if not isinstance(state, Tensor) or state.is_floating_point() or state.shape not in ((), (7,)):
        got = f"{state.dtype} {list(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
        raise ValueError(f"_extra_state must be 7 integers, or a size alone, got {got}")
    if state.dim() == 0:
        return int(state)
    size, nodes, quadrature, kernel, boundary, bits, keeps = state.tolist()
    named = [(QUADRATURES, quadrature), (KERNELS, kernel), (BOUNDARIES, boundary)]
    if not all(0 <= place < len(names) for names, place in named):
        raise ValueError(f"_extra_state names a rule that this version does not know: {state.tolist()}")
    (a,) = struct.unpack("<d", struct.pack("<q", bits))
    return AxisState(size, nodes, QUADRATURES[quadrature], Basis(a, BOUNDARIES[boundary], KERNELS[kernel]), bool(keeps))


def scale_difference(state: object, scale: float) -> str:
    """In what the scale of a layer's saved state differs from that of a layer; "" where they are one."""
    if not isinstance(state, Tensor) or not state.is_floating_point() or state.dim() != 0:
        got = f"{state.dtype} {list(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
        return f"_extra_state must be the scale of a layer, one float, got {got}"
    return "" if float(state) == scale else f"scale={float(state)} in the state_dict, {scale} here"
