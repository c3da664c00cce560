"""What a `state_dict` keeps of an axis beside its points: its size, and the rule by which its nodes are sampled.

It is a tensor of integers of one shape, whatever the rule, so that checkpoints that are read in place, in shards or by
several processes treat it as they treat any other:

    [size, nodes, quadrature, kernel, boundary, a, keeps]

Names are given by their place in the tuples below, to which names are only ever added at the end; `a` by the bits of
its float64. So is the scale of a layer built by hand, which its state keeps beside its nodes.
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
        kernel, boundary = KERNELS.index(self.basis.kernel), BOUNDARIES.index(self.basis.boundary)
        numbers = [
            self.size,
            self.nodes,
            QUADRATURES.index(self.quadrature),
            kernel,
            boundary,
            _bits(self.basis.a),
            int(self.keeps),
        ]
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
    return AxisState(
        size, nodes, QUADRATURES[quadrature], Basis(_number(bits), BOUNDARIES[boundary], KERNELS[kernel]), bool(keeps)
    )


def packed_scale(scale: float) -> Tensor:
    """The scale of a layer as an integer, on the CPU: whoever casts or averages states leaves it alone."""
    return torch.tensor(_bits(scale), dtype=torch.int64, device="cpu")


def scale_difference(state: object, scale: float) -> str:
    """In what the scale of a layer's saved state differs from that of a layer; "" where they are one."""
    if not isinstance(state, Tensor) or state.dtype != torch.int64 or state.dim() != 0:
        got = f"{state.dtype} {list(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
        return f"_extra_state must be the scale of a layer, one integer, got {got}"
    saved = _number(int(state))
    return "" if saved == scale else f"scale={saved} in the state_dict, {scale} here"


def _bits(number: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _number(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
