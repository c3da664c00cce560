"""Taps of ints, by the compiled library: a loop over points on the host, where PyTorch takes some forty operations.

For a GPU they are made on the host too and brought there by one copy that nobody waits for: every start and weight of
however many axes is a part of one buffer.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inn_kernels import ops, transforms
from inn_kernels import quadrature as rules
from inn_kernels.basis import Basis
from inn_kernels.checks import CLOSED_FORM
from inn_kernels.operands import aligned
from inn_kernels.quadrature import Quadrature
from inn_kernels.tap_makers import Taps, tap_count

AVAILABLE = ops.compiled_missing is None
"""Whether the compiled library was loaded."""


class Wanted(NamedTuple):
    """What taps are made of: all that decides them."""

    points: int
    nodes: int
    basis: Basis
    quadrature: str  # "trapezoid" where it only says that points are uniform
    scale: float | None  # of the quadrature; None: sampled alone
    dtype: torch.dtype

    @property
    def taps(self) -> int:
        """T."""
        return tap_count(self.points, self.nodes, self.basis, rules.is_cells(self.quadrature))

    def written(self, start: Tensor, weight: Tensor) -> None:
        """Write them, on the host."""
        a, boundary, kernel = self.basis
        ops.uniform_taps(start, weight, self.nodes, a, kernel, boundary, self.quadrature, self.scale)


def serves(quadrature: Quadrature, weighted: bool, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the library makes such taps: of a rule in closed form, where nothing traces, fakes or captures."""
    return has(quadrature, weighted, dtype) and at_hand(device)


def has(quadrature: Quadrature, weighted: bool, dtype: torch.dtype) -> bool:
    """Whether the library can make such taps."""
    known = quadrature in CLOSED_FORM if isinstance(quadrature, str) else not weighted
    return known and dtype in (torch.float32, torch.float64)


def at_hand(device: torch.device) -> bool:
    """Whether it may make taps for a device now."""
    return (
        AVAILABLE
        and (device.type == "cpu" or (device.type == "cuda" and not torch.cuda.is_current_stream_capturing()))
        and not transforms.tracing()
        and not transforms.faking()
    )


def copies(device: torch.device) -> bool:
    """Whether what the library writes must be copied to a device."""
    return device.type != "cpu"


def made(wanted: Wanted, device: torch.device) -> Taps:
    """Taps on a device."""
    return made_together([wanted], device)[0] if copies(device) else _on_host(wanted)


def _on_host(wanted: Wanted) -> Taps:
    start = torch.empty(wanted.points, dtype=torch.int32, device="cpu")
    weight = torch.empty((wanted.points, wanted.taps), dtype=wanted.dtype, device="cpu")
    wanted.written(start, weight)
    return Taps(start, weight, wanted.nodes)


def made_together(wanted: Sequence[Wanted], device: torch.device) -> list[Taps]:
    """Taps of many axes, brought to their device by one copy."""
    places, total = [], 0
    for w in wanted:
        weight_at = total + aligned(w.points)
        places.append((total, weight_at, w.taps))
        total = weight_at + aligned(w.points * w.taps * w.dtype.itemsize // 4)
    host = host_memory(total, device)
    for w, (start, weight) in zip(wanted, _parts(host, wanted, places)):
        w.written(start, weight)
    found = []
    for w, (start, weight) in zip(wanted, _parts(brought(host, device), wanted, places)):
        _remember(start, weight, w)
        found.append(Taps(start, weight, w.nodes))
    return found


def host_memory(ints: int, device: torch.device) -> Tensor:
    """Host memory that is copied to a device without waiting for it. int32 [ints]"""
    return torch.empty(ints, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")


def brought(host: Tensor, device: torch.device) -> Tensor:
    """The same on a device, on its current stream. (PyTorch keeps pinned memory until the copy is done.)"""
    return host.to(device, non_blocking=True)


_TRACKED = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)  # what notes that tensors share memory


def _parts(
    memory: Tensor, wanted: Sequence[Wanted], places: Sequence[tuple[int, int, int]]
) -> list[tuple[Tensor, Tensor]]:
    """start and weight of each, from these places in memory on: tensors of their own on one storage, no views."""
    parts = []
    with torch._C._ExcludeDispatchKeyGuard(_TRACKED):
        words = {dtype: memory.view(dtype) for dtype in {w.dtype for w in wanted}}
        for (points, _, _, _, _, dtype), (start_at, weight_at, taps) in zip(wanted, places):
            start = torch.as_strided(memory, (points,), (1,), start_at)
            weight_at //= dtype.itemsize // 4
            parts.append((start, torch.as_strided(words[dtype], (points, taps), (taps, 1), weight_at)))
    return parts


# What taps on a device were made of: whoever needs them on the host makes them once more, sooner than they are read.
_sources: dict[int, tuple[weakref.ref, weakref.ref, Wanted]] = {}


def _remember(start: Tensor, weight: Tensor, wanted: Wanted) -> None:
    name = id(weight)
    _sources[name] = weakref.ref(start), weakref.ref(weight, lambda _: _sources.pop(name, None)), wanted


def on_host(start: Tensor, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """The same taps on the host, if that needs no wait for a device: theirs, or taps made here of an int."""
    if not copies(weight.device):
        return start, weight
    source = _sources.get(id(weight))
    if source is None or source[0]() is not start or source[1]() is not weight or start._version or weight._version:
        return None
    return _on_host(source[2])[:2]
