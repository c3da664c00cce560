"""What PyTorch may be doing with tensors besides computing: tracing a graph, or transforming a function.

A kernel sees numbers in memory and nothing else. The transforms of torch.func, forward-mode differentiation and
torch.jit.trace follow operations instead, and know those of PyTorch: while one is at work, operations run as
`reference`. torch.compile and torch.export know ours.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transforming() -> bool:
    """Whether a transform follows operations: every one must be PyTorch's own. Costs a tenth of a microsecond."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch.jit.is_tracing()


def immediate() -> bool:
    """Whether nothing of all this goes on: tensors hold numbers, and operations run as they are called."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or faking()
    )


def tracing() -> bool:
    """Whether a graph is traced: sizes may be symbols, and what is computed belongs to the graph."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def faking() -> bool:
    """Whether tensors have shapes and no values (FakeTensorMode), and mix with no others."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
