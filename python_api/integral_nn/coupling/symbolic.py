"""Symbolic sizes: which dimensions of a network's tensors must be equal, read off one run on tensors without data.

Every parameter and buffer gets a symbol for each of its sizes, and the network runs once on fake tensors that carry
shapes alone. An operation that needs two sizes to agree says so as an equation:

    conv1.weight [a, 3, 3, 3]   bn.weight [b]   conv2.weight [c, d, 3, 3]        bn: a = b    conv2: d = a

The sizes that `equations` solves them for are what `search` reads: one symbol, one axis; a sum, consecutive segments (a
concat); a multiple, an axis whose channels carry several features (a flatten); a number, a discrete dimension. What
sizes cannot tell, the order of a sum, is recorded where it is made (concat and padding).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

from integral_nn.coupling.calls import ConversionError, Inputs, tensors_in, training
from integral_nn.coupling.equations import Place, SymbolicSizes, solve
from integral_nn.coupling.recorder import Recorder, module_names
from integral_nn.coupling.size_env import SizeEnv, expression
from integral_nn.coupling.traceable import traceable
from integral_nn.layers.module_sizes import update_sizes
from integral_nn.layers.numbers import NumberPlace, put_numbers

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


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
        tensors: by name, as `functional_call` takes them; one that several modules have under all its names.
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
    _tie(env, tensors, fakes)
    flat = inputs.leaves()
    free_dims = {name: [d for other, d in inputs_free if other == name] for name, _ in inputs_free}
    fake_inputs = [
        fake(f"input:{i}", x, free_dims.get(f"input:{i}", ())) if isinstance(x, Tensor) else x
        for i, x in enumerate(flat)
    ]
    recorder = Recorder(mode)
    for fake_input, given in zip(fake_inputs, flat):
        if isinstance(given, Tensor):
            recorder.given(fake_input, given)
    env.cause = recorder.why
    sized = copy.deepcopy(net)
    counts = {place: _symbol(env, place, value) for place, value in (numbers or {}).items()}
    put_numbers(sized, counts)
    update_sizes(sized, {name: tuple(t.shape) for name, t in fakes.items()})  # modules' own numbers are symbols too
    with traceable(), enable_python_dispatcher(), mode, recorder, torch.no_grad():
        leaves = _run(sized, fakes, inputs.replaced(fake_inputs), recorder)
        unused = _unused(tensors, fakes, recorder)
        trains = False
        if unused:  # in eval mode
            with training(sized), contextlib.suppress(ConversionError):
                leaves += _run(sized, fakes, inputs.replaced(fake_inputs), recorder)
                unused, trains = _unused(tensors, fakes, recorder), True
    if not leaves:
        raise ConversionError("the network returns no floating-point tensor")
    outputs = [(i, d, n) for i, t in enumerate(leaves) for d, n in enumerate(t.shape) if isinstance(n, torch.SymInt)]
    sizes = solve(env, shapes, outputs, recorder.orders, counts)
    return dataclasses.replace(sizes, unused=unused, trains=trains)


def _run(net: nn.Module, fakes: dict[str, Tensor], inputs: Inputs, recorder: Recorder) -> list[Tensor]:
    """Floating-point outputs."""
    with module_names(net, recorder.modules):
        try:
            return list(tensors_in(functional_call(net, fakes, *inputs, tie_weights=False)))
        except Exception as error:
            raise ConversionError(
                f"the network cannot be traced on shapes alone; it stops after {recorder.operation}: {_cause(error)}"
            ) from error


def _tie(env: SizeEnv, tensors: dict[str, Tensor], fakes: dict[str, Tensor]) -> None:
    """A tensor that several modules have is of one size in all."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        other = fakes[first.setdefault(id(tensor), name)]
        for one, two in zip(fakes[name].shape, other.shape):
            env.equate(expression(env, one) - expression(env, two))


def _unused(tensors: dict[str, Tensor], fakes: dict[str, Tensor], recorder: Recorder) -> list[str]:
    used = {id(tensors[name]) for name, fake in fakes.items() if id(fake) in recorder.used}
    return [name for name, tensor in tensors.items() if id(tensor) not in used]


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
