"""How one tensor is computed from its nodes: along which axes its dimensions run, and which of them are integrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch
from torch import Tensor

from inn_kernels import dispatch
from inn_kernels.taps import Taps
from integral_nn.functional import again, arguments
from integral_nn.functional.discretize import sample
from integral_nn.functional.interpolate import interpolate
from integral_nn.layers.axis import Axis
from integral_nn.layers.channels import Tie

Sizes = Union[Mapping[Axis, int], None]
"""Sizes of axes, where they are not the current ones."""

Made = Union[dict[tuple, Any], None]
"""Taps of trainable partitions, and what they are made of, where several tensors of one call share them."""

_TINY = 1e-12  # least variance


class Rule:
    """How one tensor is computed from its nodes.

    Args:
        ties: the dimensions that run along axes.
        axes: by the names that the ties use.
        scales: of the quadrature, by axis.
        geometric: sampled as a geometric mean, as variances are: never negative, whatever the kernel overshoots.
        backend: "cpp", "triton", "reference", or None for the fastest that can run.
    """

    def __init__(
        self,
        ties: Sequence[Tie],
        axes: Mapping[str, Axis],
        scales: Mapping[str, float],
        geometric: bool = False,
        backend: str | None = None,
    ) -> None:
        names = dict.fromkeys(name for tie in ties for name in tie.axes)
        self.ties = tuple(ties)
        self.axes = {name: axes[name] for name in names}
        self.scales = {name: float(scales[name]) for name in names}
        self._traced = {name: f"True {scale}" for name, scale in self.scales.items()}  # floats may be symbols there
        self.geometric = geometric
        self.backend = backend
        self.plain = all(tie.layout.plain and tie.dim < 2 for tie in ties)
        """No dimension but the first two runs along an axis, each along one alone: taps say all there is to say."""
        self._sides = [(tie.dim, tie, tie.axes[0]) for tie in ties if tie.layout.plain]

    @property
    def fixed(self) -> bool:
        """Whether no axis has a trainable partition."""
        return all(axis.delta is None for axis in self.axes.values())

    def along(self, nodes: Tensor, dtype: torch.dtype, sizes: Sizes = None, made: Made = None) -> list[Taps | None]:
        """Taps of the first two dimensions (the first, of a vector) of a plain tensor."""
        wide = arguments.working_dtype(nodes, dtype)
        found: list[Taps | None] = [None] * min(nodes.dim(), 2)
        for dim, tie, name in self._sides:
            found[dim] = self._taps(tie, name, wide, nodes.device, sizes, made)
        return found

    def _taps(self, tie: Tie, name: str, wide: torch.dtype, device: torch.device, sizes: Sizes, made: Made) -> Taps:
        axis = self.axes[name]
        if torch.compiler.is_compiling():
            table = axis._traced_taps(f"{self._traced[name] if tie.integrated else 'False 1.0'} {wide} {device}")
            if table is not None:
                return table
        scale = self.scales[name] if tie.integrated else 1.0
        size = None if sizes is None else sizes[axis]
        if axis.delta is None or made is None:
            return axis.taps(weighted=tie.integrated, scale=scale, dtype=wide, device=device, size=size)
        key = (axis, tie.integrated, scale, wide, device)
        if key not in made:
            made[key] = axis.taps(
                weighted=tie.integrated, scale=scale, dtype=wide, device=device, size=size, _made=made
            )
        return made[key]

    def value(self, nodes: Tensor, dtype: torch.dtype, sizes: Sizes = None, made: Made = None) -> Tensor:
        """The tensor at the current sizes (or at others), differentiable in nodes and trainable points."""
        if not again.at_work():
            return self._value(nodes, dtype, sizes, made)
        then = {axis: axis.whole for axis in self.axes.values()} if sizes is None else sizes
        return again.sampled(lambda nodes: self._value(nodes, dtype, then, None), nodes, self.fixed)

    def _value(self, nodes: Tensor, dtype: torch.dtype, sizes: Sizes, made: Made) -> Tensor:
        backend = dispatch.select_backend(self.backend, nodes.device, nodes.dtype)
        nodes = log(nodes) if self.geometric else nodes
        if self.plain:
            value = sample(nodes, self.along(nodes, dtype, sizes, made), dtype, backend)
        else:
            wide = arguments.working_dtype(nodes, dtype)
            value = nodes.to(wide)
            for tie in self.ties:

                def along_axis(piece: Tensor, dim: int, name: str, tie: Tie = tie) -> Tensor:
                    return interpolate(
                        piece, self._taps(tie, name, wide, piece.device, sizes, made), dim, wide, backend
                    )

                value = tie.layout.sample(value, tie.dim, along_axis)
            value = value.to(dtype)
        return value.exp() if self.geometric else value

    def sizes(self, sizes: Sizes = None) -> dict[str, int]:
        """The current sizes of the axes (or these) by name."""
        return {name: axis.size if sizes is None else sizes[axis] for name, axis in self.axes.items()}

    def full(self, sizes: Sizes = None) -> bool:
        """Whether every axis has as many points as nodes."""
        return all(axis.nodes == (axis.size if sizes is None else sizes[axis]) for axis in self.axes.values())

    def shape(self, nodes: torch.Size, sizes: Sizes = None) -> tuple[int, ...]:
        """The tensor's shape at the current sizes (or at others)."""
        shape, named = list(nodes), self.sizes(sizes)
        for tie in self.ties:
            shape[tie.dim] = tie.layout.resized(named)
        return tuple(shape)


def log(variance: Tensor) -> Tensor:
    """The logarithm of variances, some of which may be zero."""
    return variance.clamp(min=_TINY).log()
