"""Integers and truths whose values are known while a network is traced on shapes alone.

Masks, lengths and positions decide what some networks compute next. They come from the inputs or from the code, are
small, and depend on no size that may change: they are computed beside the trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

_MOST_ELEMENTS = 1 << 16
_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
_SCALAR = torch.ops.aten._local_scalar_dense.default


class KnownValues:
    """Real values of fake tensors of integers."""

    def note(self, fake: Any, value: Any) -> None:
        """Remember what traced tensors hold, or that it is not known any more (an operation in place)."""
        if isinstance(fake, (tuple, list)):
            for n, part in enumerate(fake):
                self.note(part, None if value is None else value[n])
        if isinstance(fake, FakeTensor):
            usable = isinstance(value, Tensor) and not value.dtype.is_floating_point and not value.dtype.is_complex
            fake.__dict__["_known"] = value if usable and value.numel() <= _MOST_ELEMENTS else None

    def without_masks(self, func: Any, args: tuple) -> tuple:
        """The arguments of an operation that indexes, masks of known values written as the indices that they select."""
        if func.overloadpacket not in _INDEXING:
            return args
        return (args[0], [index for given in args[1] for index in _opened(given)], *args[2:])

    def of(self, func: Any, args: tuple, kwargs: dict) -> tuple[bool, Any]:
        """Whether an operation's result is known, and the result: tensors, or a number that it reads from one."""
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)) for leaf in leaves):
            return False, None
        if not all(_value(t) is not None for t in tensors):
            return False, None
        with _disable_current_modes():
            real = tree_map(lambda leaf: _value(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            try:
                return True, func(*real[0], **real[1])
            except Exception:  # the trace itself says what is wrong
                return False, None


def _opened(index: Tensor | None) -> list[Tensor | None]:
    known = None if index is None or index.dtype != torch.bool else _value(index)
    if known is None:
        return [index]
    with _disable_current_modes():
        return list(known.nonzero(as_tuple=True))


def _value(tensor: Tensor) -> Tensor | None:
    if isinstance(tensor, FakeTensor):
        return getattr(tensor, "_known", None)
    return None if tensor.is_floating_point() or tensor.numel() > _MOST_ELEMENTS else tensor.detach()
