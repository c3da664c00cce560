"""Symbolic sizes: which dimensions of a network's tensors must be equal, read off one run on tensors without data.

Every parameter and buffer gets a symbol for each of its sizes, and the network runs once on fake tensors that carry
shapes alone. An operation that needs two sizes to agree says so as an equation:

    conv1.weight [a, 3, 3, 3]   bn.weight [b]   conv2.weight [c, d, 3, 3]        bn: a = b    conv2: d = a

The sizes that `equations` solves them for are what `search` reads: one symbol, one axis; a sum, consecutive segments (a
concat); a multiple, an axis whose channels carry several features (a flatten); a number, a discrete dimension. What
sizes cannot tell, the order of a sum, is recorded where it is made (concat and padding).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext
from torch.utils._python_dispatch import TorchDispatchMode

from integral_nn.coupling.calls import ConversionError, Inputs, tensors_in
from integral_nn.coupling.equations import Place, SymbolicSizes, solve
from integral_nn.coupling.size_env import SizeEnv
from integral_nn.coupling.traceable import traceable
from integral_nn.coupling.values import KnownValues
from integral_nn.layers.module_sizes import update_sizes
from integral_nn.layers.numbers import NumberPlace, put_numbers

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


@dataclass
class _Recorder(TorchDispatchMode):
    """Notes what sizes do not tell while the network runs: concat orders, and which operation fixed a size."""

    mode: FakeTensorMode
    modules: list[str]
    orders: list[tuple[Any, tuple[Any, ...]]] = field(default_factory=list)
    operation: str = "the forward method"
    values: KnownValues = field(default_factory=KnownValues)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not torch.ops.aten._local_scalar_dense.default:
            self.operation = f"{func.overloadpacket.__name__} in {_where(self.modules)}"
        if func.overloadpacket is torch.ops.aten.convolution:
            args = _symbolic_groups(args)
        args = self.values.without_masks(func, args)
        known, value = self.values.of(func, args, kwargs or {})
        if known and isinstance(value, (bool, int, float)):
            return value
        try:
            result = func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException):
            if not known:
                raise
            result = self.mode.from_tensor(value)
        self.values.note(result, value)
        if func is torch.ops.aten.cat.default:
            dim = args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)
            parts = [t for t in args[0] if t.dim() == result.dim()]
            self._note(result.shape[dim], tuple(t.shape[dim] for t in parts))
        elif func is torch.ops.aten.constant_pad_nd.default:
            for i in range(len(args[1]) // 2):
                low, high = args[1][2 * i : 2 * i + 2]
                self._note(result.shape[-1 - i], (low, args[0].shape[-1 - i], high))
        return result

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


def trace_sizes(
    net: nn.Module,
    inputs: Inputs,
    tensors: dict[str, Tensor],
    inputs_free: Iterable[Place] = (),
    numbers: Mapping[NumberPlace, int] | None = None,
) -> SymbolicSizes:
    """Run `net` once on shapes alone and solve for the sizes of `tensors` (its parameters and buffers).

    Args:
        net: the network, in eval mode.
        inputs: example inputs; their shapes stay numbers, but for those in `inputs_free`.
        tensors: by name, as `functional_call` takes them.
        inputs_free: places ("input:0", dim) of inputs whose size is a symbol too.
        numbers: attributes of modules that are tried as symbols.

    Raises:
        ConversionError: an operation cannot run on shapes alone: values decide what is computed.
    """
    from torch._dynamo.source import ConstantSource  # takes a second to import, which only a conversion should pay

    env = SizeEnv()
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    mode.cache_enabled = False  # its keys cost more than what it saves: sizes that differ each time
    owners = dict(net.named_modules())
    shapes: dict[Place, Any] = {}

    def fake(name: str, tensor: Tensor, dims: Iterable[int]) -> Tensor:
        free = set(dims)
        kinds = [DimDynamic.DYNAMIC if d in free and n > 1 else DimDynamic.STATIC for d, n in enumerate(tensor.shape)]
        source = ConstantSource(f"t{len(shapes)}_" + "".join(c if c.isalnum() else "_" for c in name))
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        result = mode.from_tensor(tensor.detach(), source=source, symbolic_context=context)
        for d, size in enumerate(result.shape):
            shapes[name, d] = size
        return result

    fakes = {}
    for name, tensor in tensors.items():
        kernel = isinstance(owners.get(name.rpartition(".")[0]), _CONVOLUTIONS)
        fakes[name] = fake(name, tensor, range(min(2, tensor.dim()) if kernel else tensor.dim()))
    flat = inputs.leaves()
    free_dims = {name: [d for other, d in inputs_free if other == name] for name, _ in inputs_free}
    fake_inputs = [
        fake(f"input:{i}", x, free_dims.get(f"input:{i}", ())) if isinstance(x, Tensor) else x
        for i, x in enumerate(flat)
    ]
    recorder = _Recorder(mode, [])
    for fake_input, given in zip(fake_inputs, flat):
        recorder.values.note(fake_input, given)
    env.cause = lambda value: recorder.operation
    sized = copy.deepcopy(net)
    counts = {place: _symbol(env, place, value) for place, value in (numbers or {}).items()}
    put_numbers(sized, counts)
    update_sizes(sized, {name: tuple(t.shape) for name, t in fakes.items()})  # modules' own numbers are symbols too
    with (
        _module_names(sized, recorder.modules),
        traceable(),
        enable_python_dispatcher(),
        mode,
        recorder,
        torch.no_grad(),
    ):
        try:
            out = functional_call(sized, fakes, *inputs.replaced(fake_inputs))
        except Exception as error:
            raise ConversionError(
                f"the network cannot be traced on shapes alone; it stops after {recorder.operation}: {_cause(error)}"
            ) from error
        leaves = list(tensors_in(out))
    if not leaves:
        raise ConversionError("the network returns no floating-point tensor")
    outputs = [(i, d, n) for i, t in enumerate(leaves) for d, n in enumerate(t.shape) if isinstance(n, torch.SymInt)]
    return solve(env, shapes, outputs, recorder.orders, counts)


def _symbol(env: SizeEnv, place: NumberPlace, value: int) -> Any:
    """A number of a module as a symbol."""
    from torch._dynamo.source import ConstantSource

    source = ConstantSource("n_" + "_".join(str(part) for part in place).replace(".", "_"))
    symbol = env.create_symbol(value, source, DimDynamic.DYNAMIC)
    env.numbers.add(symbol)
    return env.create_symintnode(symbol, hint=value, source=source)


def _cause(error: Exception) -> str:
    if "DataDependent" in type(error).__name__:
        return "values of a tensor decide what is computed next (an `if`, `.item()` or the like)"
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


class _module_names:
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
        for handle in self.handles:
            handle.remove()
