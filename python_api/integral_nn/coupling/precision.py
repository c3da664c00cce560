"""A network computed in float64 from end to end, whatever it casts on the way.

Norms and softmaxes that compute in float32 cost an error of 1e-7, in which a proof to 1e-9 would drown.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from integral_nn.coupling.grouped import GROUPED, grouped_product

_NARROW = {torch.float32, torch.float16, torch.bfloat16}
_CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}
_TYPES = {"torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"}


class double_throughout(TorchFunctionMode):
    """While active, every narrower dtype asked for is float64, and so is the default."""

    def __enter__(self) -> Any:
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self.default)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in _CASTS:
            return args[0].double()
        if func in GROUPED and args[0].dtype == torch.float64:  # no kernel takes it
            return grouped_product(*args, **(kwargs or {}))
        args = tuple(map(_widened, args))
        return func(*args, **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _NARROW else value
    return "torch.DoubleTensor" if isinstance(value, str) and value in _TYPES else value
