"""Layouts: how the channels of continuous axes lie along one dimension of a tensor.

    [axis a]                        a convolution's outputs
    [axis a | axis b | 3]           after a concat of two feature maps and a picture
    [axis a x 16]                   after a flatten of 4 x 4 positions, channel-major: inner = 16
    [16 x axis a]                   channel-minor, or 16 groups of a grouped convolution: outer = 16

A dimension is `outer` copies of its segments in order, each element repeated over `inner` features; a segment is the
same again of one axis, or a constant number of channels. One index map says everything an axis can do to a tensor:
permute it, select from it, refine it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """`outer * nodes * inner` consecutive elements: an axis of `nodes` channels, or (axis None) constant ones."""

    axis: str | None
    nodes: int
    outer: int = 1
    inner: int = 1

    @property
    def size(self) -> int:
        """Elements at full size."""
        return self.outer * self.nodes * self.inner


@dataclass(frozen=True)
class Layout:
    """`outer` copies of `segments`, each element `inner` times."""

    segments: tuple[Segment, ...]
    outer: int = 1
    inner: int = 1

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that run along this dimension, each once."""
        return tuple(dict.fromkeys(s.axis for s in self.segments if s.axis is not None))

    @property
    def size(self) -> int:
        """Elements at full size."""
        return self.outer * self.inner * sum(s.size for s in self.segments)

    @property
    def plain(self) -> bool:
        """One axis, one element a channel."""
        return len(self.segments) == 1 and self.size == self.segments[0].nodes

    def renamed(self, names: Mapping[str, str | None]) -> Layout:
        """The same layout with axes renamed; those that are not in `names`, or renamed to None, become constant."""
        parts = tuple(Segment(names.get(s.axis or ""), s.nodes, s.outer, s.inner) for s in self.segments)
        return Layout(parts, self.outer, self.inner)

    def source(self, orders: Mapping[str, Tensor]) -> Tensor:
        """Which old element each new one is, when axis `name` is replaced by its channels `orders[name]`. Int64."""
        parts, offset = [], 0
        for s in self.segments:
            block = offset + torch.arange(s.size).view(s.outer, s.nodes, s.inner)
            if s.axis is not None and s.axis in orders:
                block = block[:, orders[s.axis]]
            parts.append(block.flatten())
            offset += s.size
        index = torch.cat(parts)
        return torch.arange(self.size).view(self.outer, offset, self.inner)[:, index].flatten()

    def spread(self, values: Mapping[str, Tensor], default: float = 1.0) -> Tensor:
        """One value an element, from one a channel of each axis; `default` on constant segments. Float64."""
        parts = []
        for s in self.segments:
            on_axis = values.get(s.axis) if s.axis is not None else None
            if on_axis is None:
                on_axis = torch.full((s.nodes,), default, dtype=torch.float64)
            parts.append(on_axis.double().cpu()[None, :, None].expand(s.outer, -1, s.inner).flatten())
        return torch.cat(parts)[None, :, None].expand(self.outer, -1, self.inner).flatten()

    def channels(self, tensor: Tensor, dim: int, axis: str) -> list[Tensor]:
        """The slices of `tensor` along each occurrence of `axis`, moved to the front: [nodes, features] each."""
        total = self.size // (self.outer * self.inner)
        pieces = tensor.movedim(dim, 0).reshape(self.outer, total, self.inner, -1)
        found, offset = [], 0
        for s in self.segments:
            if s.axis == axis:
                piece = pieces[:, offset : offset + s.size]
                piece = piece.reshape(self.outer, s.outer, s.nodes, -1)
                found.append(piece.movedim(2, 0).reshape(s.nodes, -1))
            offset += s.size
        return found

    def sample(self, tensor: Tensor, dim: int, along: Callable[[Tensor, int, str], Tensor]) -> Tensor:
        """`tensor` with every axis segment of dimension `dim` sampled by `along(piece, dim, axis)`."""
        if self.plain:
            axis = self.segments[0].axis
            return tensor if axis is None else along(tensor, dim, axis)
        total = self.size // (self.outer * self.inner)
        tensor = tensor.unflatten(dim, (self.outer, total, self.inner))
        pieces = tensor.split([s.size for s in self.segments], dim + 1)
        done = []
        for s, piece in zip(self.segments, pieces):
            if s.axis is not None:
                piece = along(piece.unflatten(dim + 1, (s.outer, s.nodes, s.inner)), dim + 2, s.axis)
                piece = piece.flatten(dim + 1, dim + 3)
            done.append(piece)
        return torch.cat(done, dim + 1).flatten(dim, dim + 2)

    def at(self, sizes: Mapping[str, int]) -> Layout:
        """The layout of the points that the axes have at these sizes."""
        parts = tuple(s if s.axis is None else replace(s, nodes=sizes[s.axis]) for s in self.segments)
        return replace(self, segments=parts)

    def resized(self, sizes: Mapping[str, int]) -> int:
        """Elements when the axes have these sizes."""
        segments = sum(s.outer * s.inner * (s.nodes if s.axis is None else sizes[s.axis]) for s in self.segments)
        return self.outer * self.inner * segments

    def describe(self) -> str:
        """For a printed summary: `conv1`, `stem + branch`, `conv4 x 16`, `2 x conv`."""

        def text(s: Segment) -> str:
            name = str(s.nodes) if s.axis is None else s.axis
            return (f"{s.outer} x " if s.outer > 1 else "") + name + (f" x {s.inner}" if s.inner > 1 else "")

        inside = " + ".join(text(s) for s in self.segments)
        if self.outer == self.inner == 1:
            return inside
        inside = f"({inside})" if len(self.segments) > 1 else inside
        return (f"{self.outer} x " if self.outer > 1 else "") + inside + (f" x {self.inner}" if self.inner > 1 else "")


@dataclass(frozen=True)
class Tie:
    """A dimension of a parameter or buffer that runs along continuous axes.

    `integrated`: the network sums over it, so it takes the quadrature; otherwise it is sampled alone.
    """

    tensor: str
    dim: int
    layout: Layout
    integrated: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes along this dimension."""
        return self.layout.axes
