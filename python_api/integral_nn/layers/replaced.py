"""A parameter of another shape that takes an old one's place, in its module and in an optimizer.

Optimizers and autograd keep what they know of a parameter beside it, in its shape. So where the shape changes the
parameter does too, and `move_state` tells an optimizer. One that is not told would go on stepping the old parameter
while the new one stays as it is, without a word: its `step` is refused instead.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

_replaced: Any = WeakIdKeyDictionary()  # parameter -> its module (weakly) and its name there
_watching = False


def move_state(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, stretch: Callable[[Tensor], Tensor]) -> None:
    """Put `new` in the place of `old` in `optimizer`, if it is there, with the state of `old`.

    Tensors of the old parameter's shape (moments) go through `stretch`, single numbers (steps) are kept. State of any
    other kind is dropped: the parameter starts afresh.
    """
    for group in optimizer.param_groups:
        group["params"][:] = [new if p is old else p for p in group["params"]]
    if isinstance(optimizer, torch.optim.LBFGS):  # one history of all parameters together
        optimizer.state.clear()
        optimizer._numel_cache = None
    state = optimizer.state.pop(old, None)
    if state is None:
        return
    moved = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.numel() > 1:
            if value.shape != old.shape or not value.is_floating_point():
                return
            value = stretch(value)
        elif not (value is None or isinstance(value, (int, float, Tensor))):
            return
        moved[key] = value
    optimizer.state[new] = moved


def note(old: nn.Parameter, module: nn.Module, name: str) -> None:
    """Have the `step` of an optimizer refused that holds `old` while `module.<name>` is another parameter."""
    global _watching
    if not _watching:
        register_optimizer_step_pre_hook(_refuse)
        _watching = True
    _replaced[old] = (weakref.ref(module), name)


def check_wrapped(delta: Tensor) -> None:
    """Raise RuntimeError in a call of DistributedDataParallel that was made when an axis had another `delta`."""
    wrapper = nn.parallel.DistributedDataParallel._get_active_ddp_module()
    if wrapper is not None and all(delta is not p for p in wrapper._module_parameters):
        raise RuntimeError(
            f"an axis got other points, delta [{delta.shape[0]}], since DistributedDataParallel wrapped its module, "
            "which would not be trained alike: call make_trainable(keep=True) before, or wrap the module anew"
        )


def _refuse(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _replaced:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for old, (module, name) in list(_replaced.items()):
        current = getattr(module(), name, None) if id(old) in held else None
        if current is not None and current is not old and current.requires_grad:
            raise RuntimeError(
                f"the optimizer holds {name} [{old.shape[0]}], the points of an axis before it got others, {name} "
                f"[{current.shape[0]}], which would not be trained: pass the optimizer to resize or resample, or make "
                "it anew"
            )
