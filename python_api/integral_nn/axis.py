"""Axis: one continuous dimension, shared by every layer that must resize together."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from torch import Tensor, nn

from inn_kernels import quadrature as rules
from inn_kernels.taps import Basis, Taps, check_basis, make_taps, taps_for


class Axis(nn.Module):
    """A continuous dimension: M nodes, sampled at `size` points.

    Layers that share an axis (one's outputs, the next one's inputs) share its partition, so resizing the axis resizes
    them together. Its points are uniform (as the quadrature wants them), or, `trainable`, cumulated from `delta`.

    Args:
        nodes: M, the number of nodes, at least 1.
        size: K, the number of points; default M.
        quadrature: name of the rule used where the axis is integrated. "midpoint" also centres nodes and points.
        trainable: keep the partition as a parameter `delta` [K] (paper, section 3.2).
        size_range: (smallest, largest) size `resample` may draw; default (half of M, M).
        multiple_of: sizes drawn, or asked for as a share, are multiples of this.
        a: parameter of the cubic convolution kernel.
        boundary: "clamp" or "keys".
        kernel: "cubic" or "linear".

    Raises:
        ValueError, TypeError: a size outside what the quadrature needs, unknown names.

    >>> import torch, integral_nn as inn
    >>> axis = inn.Axis(64, size_range=(16, 64), multiple_of=8)
    >>> axis.resample(torch.Generator().manual_seed(0))
    48
    >>> axis.resize(0.5)
    32
    """

    delta: nn.Parameter | None

    def __init__(
        self,
        nodes: int,
        size: int | None = None,
        *,
        quadrature: str = "trapezoid",
        trainable: bool = False,
        size_range: tuple[int, int] | None = None,
        multiple_of: int = 1,
        a: float = -0.75,
        boundary: str = "clamp",
        kernel: str = "cubic",
    ) -> None:
        super().__init__()
        _check_count(nodes, "nodes", 1)
        _check_count(multiple_of, "multiple_of", 1)
        rules.check_quadrature(quadrature)
        if not isinstance(quadrature, str):
            raise TypeError(f"quadrature of an axis must be a name, got {type(quadrature).__name__}")
        self.nodes = nodes
        self.quadrature = quadrature
        self.multiple_of = multiple_of
        self.basis = Basis(a, boundary, kernel)
        check_basis(self.basis)
        self.register_parameter("delta", None)
        self._changes = 0  # counts resizes, so that a layer knows when its weight is out of date
        self._set_size(nodes if size is None else size)
        if size_range is not None and (
            not isinstance(size_range, (tuple, list)) or [type(n) for n in size_range] != [int, int]
        ):
            raise TypeError(f"size_range must be two ints (low, high), got {size_range!r}")
        self.size_range = size_range
        low, high = self._range()
        fewest = rules.minimum_points(quadrature)
        if not fewest <= low <= high:
            raise ValueError(f"size_range must be (low, high) with {fewest} <= low <= high, got {size_range}")
        if trainable:
            self.make_trainable()

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
    def trainable(self) -> bool:
        """Whether the points are a parameter."""
        return self.delta is not None

    @property
    def version(self) -> tuple:
        """Changes whenever the points do."""
        fixed = (self._changes, self.nodes, self.quadrature, self.basis)
        return fixed if self.delta is None else (*fixed, id(self.delta), self.delta._version)

    def resize(self, size: int | float) -> int:
        """Set the number of points: an int, or a share of the nodes (rounded to `multiple_of`). Returns the size.

        A trainable partition keeps its shape: its points are interpolated to the new number. `delta` changes size with
        it, so an optimizer's state of it (Adam's moments) must be dropped.
        """
        if isinstance(size, float):
            if not 0 < size < float("inf"):
                raise ValueError(f"size must be a positive share of the nodes or an int, got {size}")
            size = self.share(size)
        self._set_size(size)
        return size

    def share(self, part: float) -> int:
        """The size nearest to a share of the nodes: a multiple of `multiple_of`, with points enough for the rule."""
        fewest = rules.minimum_points(self.quadrature)
        step = self.multiple_of
        return max(round(part * self.nodes / step), -(-fewest // step)) * step

    def resample(self, generator: torch.Generator | None = None) -> int:
        """Draw a random size from `size_range`, a multiple of `multiple_of` (Algorithm 1). Returns it."""
        low, high = self._range()
        step = self.multiple_of
        first, last = -(-low // step), high // step
        if first > last:
            raise ValueError(f"size_range {(low, high)} holds no multiple of multiple_of={step}")
        self._set_size(step * int(torch.randint(first, last + 1, (), generator=generator)))
        return self.size

    def make_trainable(self, partition: Tensor | None = None) -> None:
        """Turn the partition into a parameter `delta`, starting at `partition` (default: the current points)."""
        points = self.partition().detach() if partition is None else partition.detach()
        if points.shape[0] < 2:
            raise ValueError(f"a trainable axis must have at least 2 points, got {points.shape[0]}")
        self._set_size(points.shape[0])
        self.delta = nn.Parameter(_deltas_from(points.double(), self.quadrature).to(torch.get_default_dtype()))

    def make_uniform(self) -> None:
        """Forget a trainable partition: the points are those the quadrature wants again, at the current size."""
        if self.delta is not None:
            self.delta = None
            self._changes += 1

    def partition(self, size: int | None = None) -> Tensor:
        """The points [K] in [0, 1] at the current size (or at another one), float64, differentiable in `delta`."""
        size = self.size if size is None else size
        if self.delta is None:
            return rules.partition_for(self.quadrature, size, dtype=torch.float64)
        delta = self.delta.double()
        if size != self.size:
            delta = _resized(delta, size, self.quadrature)
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
    ) -> Taps:
        """The axis's taps; `weighted` folds quadrature and scale in (the axis is integrated over).

        At the current size, or at another one.
        """
        device = device or torch.device("cpu")
        if self.delta is None:
            if size is not None:
                return self._fixed_taps(size, weighted, scale, dtype, device)
            key = (weighted, scale, dtype, device)
            if torch.compiler.is_compiling():
                return self._fixed_taps(self.size, *key)
            table = self._tables.get(key)
            if table is None:
                table = self._fixed_taps(self.size, *key)
                self._keep({**self._tables, key: table})
            return table
        points = self.partition(size)
        multiplier = rules.weights(self.quadrature, points) * scale if weighted else None
        centred = self.quadrature == "midpoint"
        return make_taps(points, self.nodes, self.basis, centred=centred, multiplier=multiplier, dtype=dtype)

    def traced_taps(self, name: str) -> Taps | None:
        """Taps made before for a compiled call, by "weighted scale dtype device"; None where points are trainable."""
        return self._traced.get(name) if self.delta is None else None

    def _keep(self, tables: dict[tuple, Taps]) -> None:
        self._tables = tables
        self._traced = {}
        if "torch._dynamo" in sys.modules:
            # For compiled calls, by names that a tracer can tell. Copies, for axes of equal sizes share their tables,
            # which a tracer would take for a rule.
            starts = {id(table.start): table.start.clone() for table in tables.values()}
            for key, table in tables.items():
                copied = table._replace(start=starts[id(table.start)], weight=table.weight.clone())
                _mark_dynamic(copied.start, copied.weight)
                self._traced[" ".join(map(str, key))] = copied

    def _fixed_taps(self, size: int, weighted: bool, scale: float, dtype: torch.dtype, device: torch.device) -> Taps:
        return taps_for(
            size,
            self.nodes,
            self.basis,
            quadrature=self.quadrature,
            weighted=weighted,
            scale=scale,
            dtype=dtype,
            device=device,
        )

    def unit_scale(self) -> float:
        """The scale that makes the quadrature's interior weights 1 at full size: M - 1, or M for equal cells."""
        return float(self.nodes if self.quadrature == "midpoint" else max(self.nodes - 1, 1))

    def extra_repr(self) -> str:
        parts = [f"nodes={self.nodes}", f"size={self.size}", f"quadrature={self.quadrature!r}"]
        if self.trainable:
            parts.append("trainable=True")
        return ", ".join(parts)

    def _range(self) -> tuple[int, int]:
        if self.size_range is not None:
            low, high = self.size_range
            return low, high
        return max(self.nodes // 2, rules.minimum_points(self.quadrature)), max(
            self.nodes, rules.minimum_points(self.quadrature)
        )

    def _set_size(self, size: int) -> None:
        _check_count(size, "size", 2 if self.delta is not None else rules.minimum_points(self.quadrature))
        if self.delta is not None and size != self.size:
            delta = _resized(self.delta.detach().double(), size, self.quadrature).to(self.delta)
            self.delta.grad = None
            # A graph that is still alive holds on to autograd's record of the parameter, old shape included. Passing
            # through another dtype makes autograd start a new one.
            self.delta.data = delta.to(torch.float32 if delta.dtype == torch.float64 else torch.float64)
            self.delta.data = delta
        if not hasattr(self, "_extent") or size != self.size:
            self.resized_at = threading.get_ident(), torch._C._autograd._get_sequence_nr()
            # Made ahead for whoever asked before: a compiled call finds its tables, of another shape.
            self._keep({key: self._fixed_taps(size, *key) for key in getattr(self, "_tables", {})})
        self._extent = torch.empty(size, 0)
        if "torch._dynamo" in sys.modules:
            _mark_dynamic(self._extent)
        self._changes += 1

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "delta")
        if saved is not None:
            if self.delta is None:
                self.make_trainable()
            self._set_size(saved.shape[0])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _mark_dynamic(*tensors: Tensor) -> None:
    """Let a compiler take the number of points for a symbol of its own: that two sizes are equal is no rule."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _check_count(value: object, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _deltas_from(points: Tensor, quadrature: str) -> Tensor:
    """Deltas whose partition is `points`. Shape [K]."""
    if quadrature != "midpoint":
        return _deltas(points.diff(), quadrature)
    edges = torch.cat([points.new_zeros(1), (points[1:] + points[:-1]) / 2, points.new_ones(1)])
    return _deltas(edges.diff(), quadrature)


def _deltas(gaps: Tensor, quadrature: str) -> Tensor:
    """Deltas [K] of the gaps between points (K - 1) or, midpoint, of the cells (K); their mean square is 1."""
    delta = gaps.clamp(min=1e-12).sqrt()
    if quadrature != "midpoint":
        delta = torch.cat([delta.new_zeros(1), delta])
    return delta / delta.square().mean().sqrt()


def _resized(delta: Tensor, size: int, quadrature: str) -> Tensor:
    """Deltas of `size` points: the points (midpoint: the cells' edges), as a function of k, linearly interpolated."""
    gaps = delta if quadrature == "midpoint" else delta[1:]
    ends = torch.nn.functional.pad(torch.cumsum(gaps.square(), 0), (1, 0))
    count = size + 1 if quadrature == "midpoint" else size
    place = torch.linspace(0, ends.shape[0] - 1, count, dtype=ends.dtype, device=ends.device)
    left = place.floor().clamp(max=ends.shape[0] - 2).long()
    return _deltas(torch.lerp(ends[left], ends[left + 1], place - left).diff() / ends[-1], quadrature)
