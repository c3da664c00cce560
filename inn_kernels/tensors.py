"""What is asked of a tensor that is handed in: can it be computed with, may its values be read, are they fixed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor, is_gradtrackingtensor
from torch.autograd.forward_ad import unpack_dual

from inn_kernels import transforms

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def describe(value: object) -> str:
    """A value in words, for errors."""
    return f"a tensor of dtype {value.dtype}" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r}"


def check_real(value: Tensor, name: str) -> None:
    """Raise TypeError unless a tensor is dense and of a floating-point dtype that PyTorch computes in."""
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be a floating-point tensor (float64, float32, bfloat16 or float16), got dtype {value.dtype}"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")


def is_readable(value: Tensor) -> bool:
    """Whether Python may look at the values: not while a graph is traced, not under vmap, not on the meta device."""
    if transforms.tracing() or value.is_meta:
        return False
    return not is_batchedtensor(without_gradient(value))


def is_checked(value: Tensor) -> bool:
    """Whether values are checked whenever they are used: where Python may look at them without waiting for a device."""
    return value.device.type == "cpu" and is_readable(value)


def is_constant(value: Tensor) -> bool:
    """Whether nothing is differentiated or mapped through a tensor."""
    return not value.requires_grad and not is_functorch_wrapped_tensor(value) and unpack_dual(value).tangent is None


def without_gradient(value: Tensor) -> Tensor:
    """The tensor inside the wrappers of torch.func's grad and jvp."""
    while is_gradtrackingtensor(value):
        value = get_unwrapped(value)
    return value
