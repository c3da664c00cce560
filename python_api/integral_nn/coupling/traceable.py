"""Operations that read sizes as numbers, replaced while a network is traced by others that tie the same sizes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from integral_nn.coupling.grouped import GROUPED, grouped_shapes

_FILLED = {torch.zeros, torch.ones, torch.empty, torch.full}
_NORMS = {torch.instance_norm, F.instance_norm}
_GATES = {torch.lstm_cell: 4, torch.gru_cell: 3, torch.rnn_tanh_cell: 1, torch.rnn_relu_cell: 1}


class traceable(TorchFunctionMode):
    """While active, results have the shapes that they would have, and other values.

    Caches that are keyed by shapes take symbols, each of which is equal to none but itself.
    """

    def __enter__(self) -> Any:
        self.hash = torch.SymInt.__hash__
        torch.SymInt.__hash__ = lambda size: hash(id(size.node))  # type: ignore
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.SymInt.__hash__ = self.hash  # type: ignore

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _NORMS:
            x, *vectors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            for vector in vectors:
                x = x + vector.reshape(vector.shape + (1,) * (x.dim() - 2))
            return x
        if func in _GATES:
            return _cell(_GATES[func], *args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in GROUPED:
            return grouped_shapes(*args, **kwargs)
        if func in _FILLED:  # sizes that tensors hold
            args = tree_map(lambda x: int(x) if isinstance(x, Tensor) else x, args)
        return func(*args, **kwargs)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *_: Any, **options: Any
) -> Tensor:
    """Fused kernels do not compare the heads of what they take."""
    mask = options.get("attn_mask", mask)
    if options.get("enable_gqa"):
        key, value = (t.unsqueeze(-3).expand(*_shared(t, query)).flatten(-4, -3) for t in (key, value))
    weights = query @ key.transpose(-2, -1)
    return (weights if mask is None else weights + mask) @ value


def _shared(one: Tensor, query: Tensor) -> tuple[Any, ...]:
    """The shape of keys or values with a copy for each of the queries that share them."""
    return (*one.shape[:-2], query.shape[-3] // one.shape[-3], *one.shape[-2:])


def _cell(
    count: int,
    x: Tensor,
    state: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    """A step of a recurrent cell with so many gates: what all of them have in common."""
    states = state if isinstance(state, (tuple, list)) else [state]
    gates = F.linear(x, w_ih, b_ih) + F.linear(states[0], w_hh, b_hh)
    result = sum([*gates.chunk(count, 1), *states])
    return (result, result) if len(states) > 1 else result
