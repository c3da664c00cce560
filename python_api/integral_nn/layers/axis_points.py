"""What an axis is sampled with: its points or cells, and taps of them."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from inn_kernels import quadrature as rules
from inn_kernels.taps import Basis, Taps, make_cell_taps, make_taps, taps_for
from integral_nn.functional import checks
from integral_nn.functional.arguments import check_scale
from integral_nn.layers.deltas import resized
from integral_nn.layers.replaced import check_wrapped

_CPU = torch.device("cpu")


class Points(nn.Module):
    """The points of an axis of M `nodes` by a rule and a basis, uniform or cumulated from `delta`, and their taps.

    Those of the current size are kept. `Axis` adds how the size changes.
    """

    nodes: int
    quadrature: str
    basis: Basis
    delta: nn.Parameter | None
    keeps: bool  # `delta` is of one shape at every size
    resized_at: tuple[int, int]  # the thread, and the number of autograd's next node there
    _replicated: bool  # `delta` is a DTensor that every rank has all of
    _extent: Tensor  # [K, 0]
    _tables: dict[tuple, Taps]
    _traced: dict[str, Taps]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("nodes", "quadrature", "basis") and "_tables" in self.__dict__:
            self._keep({})

    @property
    def size(self) -> int:
        """K, the current number of points."""
        # Read off a tensor of no bytes, which a tracer takes as dynamic; an int attribute would be a constant to it.
        return self._extent.shape[0]

    @property
    def whole(self) -> int:
        """The same: a part of an axis (`AxisPart`) has fewer points than the whole of it."""
        return self.size

    @property
    def trainable(self) -> bool:
        """Whether the points are a parameter."""
        return self.delta is not None

    def partition(self, size: int | None = None) -> Tensor:
        """The points [K] in [0, 1] at the current size (or at another one), float64, differentiable in `delta`.

        On an axis of cells, their [K + 1] edges.
        """
        if size is None:
            size = self.size
        else:
            self._check_size(size)
        if self.delta is None:
            return rules.partition_for(self.quadrature, size, dtype=torch.float64)
        delta: Any = self.delta
        if not torch.compiler.is_compiling():
            if not self.keeps:
                check_wrapped(delta)
            delta = delta.full_tensor() if hasattr(delta, "full_tensor") else delta
        elif self._replicated:
            delta = delta.to_local()
        delta = delta.double()
        self._check_delta(delta.detach())
        if (self.keeps and torch.compiler.is_compiling()) or size != delta.shape[0]:  # there, no branch on the size
            delta = resized(delta, size, self.quadrature)
        if rules.is_cells(self.quadrature):
            return rules.partition_from_deltas(torch.nn.functional.pad(delta, (1, 0)))
        if self.quadrature == "midpoint":  # deltas are the cells, points their centres
            cells = delta.square() / delta.square().sum()
            return torch.cumsum(cells, 0) - cells / 2
        return rules.partition_from_deltas(delta)

    def taps(
        self,
        *,
        weighted: bool,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        size: int | None = None,
        _made: dict[tuple, Any] | None = None,
    ) -> Taps:
        """The axis's taps on `device`; `weighted` folds quadrature and scale in (the axis is integrated over).

        At the current size, or at another one. Where a call keeps what was `_made`, weighted taps of trainable points
        are made of the same as others.
        """
        key, tables = (weighted, scale, dtype, device), self._tables
        if not torch.compiler.is_compiling():
            table = tables.get(key) if size is None else None
            if table is not None:
                return table
            check_scale(scale)
            checks.check_dtype(dtype)
            if size is not None:
                self._check_size(size)
        if self.delta is None:
            table = self._fixed_taps(self.size if size is None else size, *key)
            if size is None and not torch.compiler.is_compiling():
                tables[key] = table
                if tables is self._tables:  # no other thread has resized
                    self._keep_traced(key, table)
            return table
        known = None if _made is None else _made.get((self, size, device))
        points, plain = known or self._trained_taps(size, device)
        if _made is not None:
            _made[self, size, device] = points, plain
        return plain.times(rules.weights(self.quadrature, points) * scale if weighted else None, dtype)

    def _trained_taps(self, size: int | None, device: torch.device | None) -> tuple[Tensor, Taps]:
        """Points of `delta`, and taps that only sample there, in float64."""
        points = self.partition(size).to(device)
        if rules.is_cells(self.quadrature):
            return points, make_cell_taps(points, self.nodes, self.basis)
        return points, make_taps(points, self.nodes, self.basis, centred=rules.is_centred(self.quadrature))

    def _traced_taps(self, name: str) -> Taps | None:
        """Taps made before for a compiled call, by "weighted scale dtype device"; None where points are trainable."""
        return self._traced.get(name) if self.delta is None else None

    def _keep(self, tables: dict[tuple, Taps]) -> None:
        """Keep the taps of the current size."""
        self.__dict__.update(_tables=tables, _traced={})
        for key, table in tables.items():
            self._keep_traced(key, table)

    def _keep_traced(self, key: tuple, table: Taps) -> None:
        """For compiled calls, by a name that a tracer can tell.

        As tensors of the axis's own, for axes of equal sizes share their tables, which a tracer would take for a rule.
        (That all taps of an axis on a device have one `start` is one.)
        """
        if "torch._dynamo" in sys.modules:
            device, weight = table.start.device, table.weight.detach()
            start = next((kept.start for kept in self._traced.values() if kept.start.device == device), None)
            if start is None:
                start = table.start.detach()
                mark_dynamic(start)
            mark_dynamic(weight, (0, 1))  # points, and taps of a cell
            self._traced[" ".join(map(str, key))] = Taps(start, weight, table.nodes)

    def _fixed_taps(
        self, size: int, weighted: bool, scale: float, dtype: torch.dtype, device: torch.device | None = None
    ) -> Taps:
        """Taps of so many of the points that the quadrature wants, whatever the axis's own."""
        return taps_for(
            size,
            self.nodes,
            self.basis,
            quadrature=self.quadrature,
            weighted=weighted,
            scale=scale,
            dtype=dtype,
            device=device or "cpu",
        )

    def _fixed_settings(self, size: int) -> list[tuple]:
        """What the taps are made of that are kept of the current size, at another one: see `taps_ahead`."""
        if self.delta is not None:
            return []
        at = size, self.nodes, self.basis, self.quadrature
        return [(*at, weighted, scale, dtype, where or _CPU) for weighted, scale, dtype, where in list(self._tables)]

    def unit_scale(self) -> float:
        """The scale that makes the quadrature's interior weights 1 at full size: M - 1, or M for equal cells."""
        return float(self.nodes if rules.is_centred(self.quadrature) else max(self.nodes - 1, 1))

    def spread(self) -> float:
        """How much nodes that vary independently vary by, for weights at full size to vary by 1."""
        with _disable_current_modes():  # a number, where layers are made of fake tensors too
            weight = self._fixed_taps(self.nodes, False, 1.0, torch.float64).weight
            return float(weight.square().sum(1).mean().rsqrt())

    def _check_delta(self, delta: Tensor) -> None:
        """Raise where a gap is 0 or no number: on a CPU (a GPU would have to be waited for), where values are known."""
        if delta.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return
        gaps = (delta if rules.is_centred(self.quadrature) else delta[1:]).square()
        good = (gaps > 0) & (gaps < float("inf"))
        if not bool(good.all()):
            bad = int(good.int().argmin()) + delta.shape[0] - good.shape[0]
            raise ValueError(f"delta must be finite and not 0, got {float(delta[bad])} at {bad}")

    def _check_size(self, size: int, name: str = "size") -> None:
        checks.check_count(size, name, 2 if self.delta is not None else rules.minimum_points(self.quadrature))


def mark_dynamic(tensor: Tensor, dims: tuple[int, ...] = (0,)) -> None:
    """Let a compiler take a new tensor's sizes for symbols of their own: that two sizes are equal is no rule.

    What `maybe_mark_dynamic` leaves on a tensor is copied from one that it marked: every resize marks dozens.
    """
    for name, value in _marks(dims):
        tensor.__dict__[name] = set(value) if isinstance(value, set) else value


@functools.cache
def _marks(dims: tuple[int, ...]) -> list[tuple[str, Any]]:
    tensor = torch.empty([0] * (max(dims) + 1))
    torch._dynamo.maybe_mark_dynamic(tensor, dims)
    return list(tensor.__dict__.items())
