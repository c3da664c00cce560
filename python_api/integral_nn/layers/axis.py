"""Axis: one continuous dimension, shared by every layer that must resize together."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inn_kernels import quadrature as rules
from inn_kernels.taps import Basis, Taps, check_basis, check_partition
from integral_nn.functional import checks
from integral_nn.layers import replaced
from integral_nn.layers.axis_points import Points, mark_dynamic
from integral_nn.layers.axis_state import AxisState, unpacked
from integral_nn.layers.deltas import deltas_from, resized, stretched
from integral_nn.layers.draws import Draw, check_draw, ratio


class Axis(Points):
    """A continuous dimension: M nodes, sampled at `size` points.

    Layers that share an axis (one's outputs, the next one's inputs) share its partition, so resizing the axis resizes
    them together. Its points are uniform (as the quadrature wants them), or, `trainable`, cumulated from `delta`.
    A change of the size of trainable points makes `delta` a new parameter (see `resize`), and so does loading a
    `state_dict` of another size: load before you make an optimizer. A load that fails leaves the axis as it is.

    Args:
        nodes: M, the number of nodes, at least 1.
        size: K, the number of points; default M.
        quadrature: "cells" takes means and integrals of the weight function over cells; every other rule takes its
            values at points, and where the axis is integrated weighs them. "midpoint" also centres nodes and points.
        trainable: keep the partition as a parameter `delta` [K] (paper, section 3.2).
        size_range: (smallest, largest) size `resample` may draw; default (half of M, M).
        multiple_of: sizes drawn, or asked for as a share, are multiples of this.
        a: parameter of the cubic convolution kernel.
        boundary: "clamp" or "keys".
        kernel: "bspline", which learns smooth functions; "conservative", "cubic" or "linear" (see `discretize`).

    Raises:
        ValueError, TypeError: a size outside what the quadrature needs, unknown names.

    >>> import torch, integral_nn as inn
    >>> axis = inn.Axis(64, size_range=(16, 64), multiple_of=8)
    >>> axis.resample(torch.Generator().manual_seed(0))
    48
    >>> axis.resize(0.5)
    32
    """

    def __init__(
        self,
        nodes: int,
        size: int | None = None,
        *,
        quadrature: str = "cells",
        trainable: bool = False,
        size_range: tuple[int, int] | None = None,
        multiple_of: int = 1,
        a: float = -0.75,
        boundary: str = "clamp",
        kernel: str = "bspline",
    ) -> None:
        super().__init__()
        checks.check_count(nodes, "nodes", 1)
        checks.check_count(multiple_of, "multiple_of", 1)
        rules.check_quadrature(quadrature)
        if not isinstance(quadrature, str):
            raise TypeError(f"quadrature of an axis must be a name, got {type(quadrature).__name__}")
        self.nodes = nodes
        self.quadrature = quadrature
        self.multiple_of = multiple_of
        self.basis = Basis(a, boundary, kernel)
        check_basis(self.basis)
        self.register_parameter("delta", None)
        self._tables: dict[tuple, Taps] = {}
        self._traced: dict[str, Taps] = {}
        size = nodes if size is None else size
        self._check_size(size)
        self.size_range = size_range
        self._range()
        self._set(size)
        if trainable:
            self.make_trainable()

    def resize(self, size: int | float, optimizer: Optimizer | None = None) -> int:
        """Set the number of points: an int, or a share of the nodes (rounded to `multiple_of`). Returns the size.

        A trainable partition keeps its shape: its points are interpolated to the new number, and `delta` becomes a new
        parameter. An `optimizer` that holds the old one gets the new one in its place, and the state of the old one
        (moments interpolated, step counts kept). An optimizer that is not given here refuses its next step, for it
        would leave the new points untrained without a word. A module wrapped in DistributedDataParallel must be
        wrapped anew. Deltas that keep their number (see `make_trainable`) stay as they are. The present size changes
        nothing.

        Raises:
            ValueError, TypeError: a size that is not finite or less than the quadrature needs; not an optimizer.
            RuntimeError: `delta` is a shard, which cannot get another number.
        """
        checks.check_optional(optimizer, Optimizer, "optimizer")
        size = self._size_at(size)
        self._resize(size, optimizer)
        return size

    def share(self, part: float) -> int:
        """The size nearest to a share of the nodes: a multiple of `multiple_of`, with points enough for the rule."""
        checks.check_number(part, "part", least=0)
        return self._share(part)

    def _share(self, part: float) -> int:
        fewest = rules.minimum_points(self.quadrature)
        step = self.multiple_of
        return max(round(part * self.nodes / step), -(-fewest // step)) * step

    def resample(self, generator: Draw = None, optimizer: Optimizer | None = None, *, seed: int | None = None) -> int:
        """Draw a random size from `size_range`, a multiple of `multiple_of` (Algorithm 1). Returns it.

        Args:
            generator: where it is drawn from (default: PyTorch's global one); or the number of the training step:
                the size is then a function of `seed` and the step alone. Axes drawn one by one want a seed each.
            optimizer: as in `resize`.
            seed: of sizes drawn by step; default 0.
        """
        check_draw(generator, seed)
        checks.check_optional(optimizer, Optimizer, "optimizer")
        if isinstance(generator, int):
            self._resize(self._between(ratio(generator, seed, "")), optimizer)
        else:
            self._resize(self._drawn(generator), optimizer)
        return self.size

    def make_trainable(self, partition: Tensor | None = None, *, keep: bool = False) -> None:
        """Turn the partition into a parameter `delta`, starting at `partition` (default: the current points).

        Args:
            partition: [K] increasing points in [0, 1], K >= 2. The first and last are taken to be 0 and 1; on a
                midpoint axis, points are taken to be the centres of cells whose edges lie halfway between them. On an
                axis of cells, their [K + 1] edges.
            keep: `delta` stays this parameter of K deltas at every size; points of another number are interpolated from
                it at each call. Whatever takes note of parameters once (an optimizer, DistributedDataParallel,
                `fully_shard`) then needs no word of a resize.

        Raises:
            ValueError, TypeError: not such points; the axis is as it was.
        """
        if partition is None:
            points = self.partition().detach()
        else:
            checks.check_instance(partition, Tensor, "partition")
            if partition.is_meta:
                raise ValueError("partition must hold points, got a tensor on the meta device")
            check_partition(partition, "partition", edges=rules.is_cells(self.quadrature))
            points = partition.detach()
        delta = deltas_from(points.double(), self.quadrature).to(torch.get_default_dtype())
        if delta.shape[0] < 2:
            raise ValueError(f"partition of a trainable axis must have at least 2 points, got {delta.shape[0]}")
        self._set(delta.shape[0], nn.Parameter(delta), keep)

    def make_uniform(self) -> None:
        """Forget a trainable partition: the points are those the quadrature wants again, at the current size."""
        if self.delta is not None:
            self._set(self.size)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start trainable points anew, uniform, in the parameter there is (whose memory may be new)."""
        own: Any = self.delta
        if own is not None:
            points = rules.partition_for(self.quadrature, own.shape[0], dtype=torch.float64)
            delta = deltas_from(points, self.quadrature).to(own.device, own.dtype)
            if hasattr(own, "device_mesh"):
                from torch.distributed.tensor import distribute_tensor

                delta = distribute_tensor(delta, own.device_mesh, own.placements)
            own.copy_(delta)

    def extra_repr(self) -> str:
        parts = [f"nodes={self.nodes}", f"size={self.size}", f"quadrature={self.quadrature!r}"]
        parts.append(f"kernel={self.basis.kernel!r}")
        if self.trainable:
            parts.append("trainable=True" + (", keep=True" if self.keeps else ""))
        return ", ".join(parts)

    def _range(self) -> tuple[int, int]:
        """`size_range`, or its default; raises unless it is a range of sizes."""
        fewest = rules.minimum_points(self.quadrature)
        if self.size_range is None:
            return max(self.nodes // 2, fewest), max(self.nodes, fewest)
        given = self.size_range
        if not isinstance(given, (tuple, list)) or [type(n) for n in given] != [int, int]:
            raise TypeError(f"size_range must be two ints (low, high), got {given!r}")
        low, high = given
        if not fewest <= low <= high <= checks.MOST:
            raise ValueError(f"size_range must be (low, high) with {fewest} <= low <= high, got {given}")
        return low, high

    def _steps(self) -> tuple[int, int]:
        """Sizes in `size_range`, as the first and last multiple of `multiple_of`."""
        low, high = self._range()
        low = max(low, 2) if self.trainable else low
        first, last = -(-low // self.multiple_of), high // self.multiple_of
        if first > last:
            raise ValueError(f"size_range {(low, high)} holds no multiple of multiple_of={self.multiple_of}")
        return first, last

    def _drawn(self, generator: torch.Generator | None) -> int:
        """A random size of those that `resample` draws from."""
        first, last = self._steps()
        return self.multiple_of * int(torch.randint(first, last + 1, (), generator=generator))

    def _between(self, ratio: float) -> int:
        """The size that lies at a ratio in [0, 1) of those that `resample` draws from."""
        first, last = self._steps()
        return self.multiple_of * (first + min(int(ratio * (last - first + 1)), last - first))

    def _size_at(self, size: int | float, name: str = "size") -> int:
        """A size or a share of the nodes as a size that the axis can take."""
        if isinstance(size, float):
            checks.check_number(size, name, above=0)
            size = self._share(size)
        self._check_size(size, name)
        return size

    def _resize(self, size: int, optimizer: Optimizer | None) -> None:
        old = self.delta
        if size == self.size:
            return
        if old is None or self.keeps:
            self._set(size, old, self.keeps)
            return
        if hasattr(old, "device_mesh"):
            raise RuntimeError(
                f"the {self.size} deltas of a trainable axis are a shard, of which {size} cannot be made: call "
                "make_trainable(keep=True) before the model is sharded"
            )
        with torch.no_grad():
            delta = resized(old.double(), size, self.quadrature).to(old)
            new = nn.Parameter(delta, old.requires_grad)
            self._set(size, new)
            if optimizer is not None:
                replaced.move_state(optimizer, old, new, lambda t: stretched(t, size, self.quadrature))

    def _set(self, size: int, delta: nn.Parameter | None = None, keeps: bool = False) -> None:
        """Take up a size and its deltas, if any. Nothing of it is written in place: `_state` undoes it."""
        old = self.delta
        if old is not delta:
            if old is not None:
                replaced.note(old, self, "delta")
            self.delta = delta
        placements = getattr(delta, "placements", ())
        extent = torch.empty(size, 0)
        if "torch._dynamo" in sys.modules:
            mark_dynamic(extent)
        self.__dict__.update(  # sooner than one by one
            resized_at=(threading.get_ident(), torch._C._autograd._get_sequence_nr()),
            keeps=keeps,
            _replicated=bool(placements) and all(placement.is_replicate() for placement in placements),
            _extent=extent,
        )
        # Made ahead for whoever asked before: a compiled call finds its tables, of another shape.
        self._keep({key: self._fixed_taps(size, *key) for key in list(self._tables)} if delta is None else {})

    def _state(self) -> tuple[int, nn.Parameter | None, bool]:
        return self.size, self.delta, self.keeps

    def _restore(self, state: tuple[int, nn.Parameter | None, bool]) -> None:
        self._set(*state)

    # state -------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """The size and the rule, for `state_dict`."""
        return self._described().packed()

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: the size is taken up before the points are."""

    def _described(self) -> AxisState:
        return AxisState(self.size, self.nodes, self.quadrature, self.basis, self.keeps)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool, missing: list, unexpected: list,
        errors: list,
    ) -> None:  # fmt: skip
        extra = state_dict.setdefault(prefix + "_extra_state", torch.tensor(self.size))  # of a state without: this one
        try:
            self._take_up(extra, state_dict.get(prefix + "delta"))
        except ValueError as error:
            errors.append(f"{prefix}{error}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def _take_up(self, extra: Tensor, saved: Any) -> None:
        """Take up the size of a saved state, and room for its deltas; raise ValueError unless it is of this axis."""
        state = unpacked(extra)
        if isinstance(state, AxisState):
            differences = state.differences(self._described())
            if differences:
                raise ValueError(f"{'; '.join(differences)}: build the network by the rule it was saved with")
        else:
            warnings.warn(
                f"the state_dict does not say by which rule it was saved; it is loaded into {self}", stacklevel=2
            )
            state = self._described()._replace(size=state, keeps=False)
        if not isinstance(saved, Tensor):
            if state.size != self.size:
                self._check_size(state.size)
                self._resize(state.size, None)
            return
        if saved.dim() != 1 or saved.shape[0] < 2 or not saved.is_floating_point():
            raise ValueError(f"delta must be [K] floating-point deltas of K >= 2 points, got {list(saved.shape)}")
        size = state.size if state.keeps else saved.shape[0]
        checks.check_count(size, "size", 2)
        if not hasattr(saved, "device_mesh"):
            self._check_delta(saved.detach().double())
        delta = self.delta
        if delta is None or delta.shape != saved.shape:
            like = torch.empty(0, dtype=torch.get_default_dtype()) if delta is None else delta
            delta = nn.Parameter(saved.detach().to(like, copy=True), delta is None or delta.requires_grad)
        if delta is not self.delta or (size, state.keeps) != (self.size, self.keeps):
            self._set(size, delta, state.keeps)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As that of any module; another size makes `delta` a new parameter, a load that fails changes nothing."""
        checks.try_loading(self, state_dict, strict, assign)
        return super().load_state_dict(state_dict, strict, assign)
