"""What sizes do not tell while a network runs on shapes alone: orders of concats, and what fixed a size."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from integral_nn.coupling.values import KnownValues

INPUT = "a size of the inputs"
_CODE = "a number in the code"


class Recorder(TorchDispatchMode):
    """Watches every operation of a run.

    Attributes:
        modules: names of the modules that are running, outermost first.
        orders: sizes that were put together, and their parts in order.
        used: identities of the traced tensors that operations took.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode, self.values = mode, KnownValues()
        self.modules: list[str] = []
        self.orders: list[tuple[Any, tuple[Any, ...]]] = []
        self.used: set[int] = set()
        self.operation = "the forward method"
        self._taken: list[Tensor] = []  # by the operation that is running, if one is

    def given(self, fake: Tensor, real: Tensor) -> None:
        """Note an input: its sizes come from outside, its integers are known."""
        self.values.note(fake, real)
        fake.__dict__["_origins"] = {n: INPUT for n in fake.shape if isinstance(n, int)}

    def why(self, value: sympy.Expr) -> str:
        """What fixes a size now, and where the number comes from."""
        known = (tensor.__dict__.get("_origins", {}) for tensor in self._taken if isinstance(tensor, FakeTensor))
        origin = next((origins[int(value)] for origins in known if int(value) in origins), None)
        if origin == INPUT:
            return f"{self.operation}: {INPUT}"
        operation = self.operation if self._taken else f"the code of {_where(self.modules)}"
        return f"{origin or operation}: {_CODE}"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.aten._local_scalar_dense.default and func.namespace != "prim":
            self.operation = f"{func.overloadpacket.__name__} in {_where(self.modules)}"
        if func.overloadpacket is torch.ops.aten.convolution:
            args = _symbolic_groups(args)
        args = self.values.without_masks(func, args)
        known, value = self.values.of(func, args, kwargs)
        if known and isinstance(value, (bool, int, float)):
            return value
        self._taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.used.update(map(id, self._taken))
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if not known:
                raise
            result = self.mode.from_tensor(value)
        self.values.note(result, value)
        self._note_origins(result)
        self._note_orders(func, args, kwargs, result)
        self._taken = []
        return result

    def _note_origins(self, result: Any) -> None:
        """A size that is a number comes from where those that were taken have it from, or from this operation."""
        inherited: dict[int, str] = {}
        for tensor in self._taken:
            if isinstance(tensor, FakeTensor):
                inherited |= tensor.__dict__.get("_origins", {})
        for made in tree_leaves(result):
            if isinstance(made, FakeTensor):
                sizes = [n for n in made.shape if isinstance(n, int)]
                made.__dict__["_origins"] = {n: inherited.get(n, self.operation) for n in sizes if n > 1}

    def _note_orders(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        if func is torch.ops.aten.cat.default:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            parts = [t for t in args[0] if t.dim() == result.dim()]
            self._note(result.shape[dim], tuple(t.shape[dim] for t in parts))
        elif func is torch.ops.aten.constant_pad_nd.default:
            for i in range(len(args[1]) // 2):
                low, high = args[1][2 * i : 2 * i + 2]
                self._note(result.shape[-1 - i], (low, args[0].shape[-1 - i], high))

    def _note(self, total: Any, parts: tuple[Any, ...]) -> None:
        if isinstance(total, torch.SymInt):
            self.orders.append((total, parts))


def _where(modules: list[str]) -> str:
    return f"module {modules[-1]!r}" if modules and modules[-1] else "the network itself"


def _symbolic_groups(args: tuple) -> tuple:
    """A depthwise convolution called with a number for `groups`: read it off the weight's own shape instead."""
    weight, transposed, groups = args[1], args[6], args[8]
    rows = weight.shape[0]
    hint = rows.node.hint if isinstance(rows, torch.SymInt) else rows
    if (
        isinstance(groups, int)
        and groups > 1
        and hint % groups == 0
        and (hint == groups if transposed else weight.shape[1] == 1)
    ):
        return (*args[:8], rows // (hint // groups), *args[9:])
    return args


class module_names:
    """While active, `stack` holds the names of the modules of `net` that are running."""

    def __init__(self, net: nn.Module, stack: list[str]) -> None:
        self.net, self.stack = net, stack
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self.net.named_modules():
            enter = module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name))
            leave = module.register_forward_hook(self._leave)
            self.handles += [enter, leave]

    def _leave(self, *_: object) -> None:
        self.stack.pop()

    def __exit__(self, *_: object) -> None:
        self.stack.clear()
        for handle in self.handles:
            handle.remove()
