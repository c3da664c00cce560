"""Find the continuous axes of any network: trace its sizes, then search and prove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Union

import torch
from torch import Tensor, nn

from integral_nn.coupling.attributes import numbers_of
from integral_nn.coupling.axis_set import AxisSet
from integral_nn.coupling.calls import ConversionError, Inputs, named_tensors
from integral_nn.coupling.equations import Place, SymbolicSizes
from integral_nn.coupling.plain import plain_copy
from integral_nn.coupling.proof import fast_paths_off
from integral_nn.coupling.search import Search
from integral_nn.coupling.symbolic import trace_sizes
from integral_nn.coupling.work import multiply_adds_of
from integral_nn.functional import checks
from integral_nn.layers.axis import Axis

Names = Union[str, type, Iterable[Union[str, type]]]
"""Names of axes, layers or tensors, with wildcards, and classes of modules."""


def find_axes(
    net: nn.Module,
    example_inputs: Tensor | tuple,
    kwargs: Mapping[str, Any] | None = None,
    *,
    ignore: Names = (),
    only: Names | None = None,
    continuous_inputs: bool | Mapping[int, int] = False,
    continuous_outputs: bool = False,
    seed: int = 0,
) -> AxisSet:
    """The continuous axes of `net`, each proved by permuting and refining it.

    Args:
        net: any module; it is not changed. It is run in eval mode on `example_inputs`.
        example_inputs: a tensor, or a tuple of positional inputs; lists and dicts in it are opened.
        kwargs: inputs by name.
        ignore: axes to leave discrete, by the name of the axis, of a layer whose outputs lie along it, or of a tensor
            it ties; wildcards as in a shell. Or by a class: of such a layer, or of a module it lies in.
        only: if given, the only axes to look for, by the name of the axis or the class of the layer that makes it (or
            of a module that lies in).
        continuous_inputs: let the channels of the inputs be continuous too (dimension 1, or {input: dimension}).
        continuous_outputs: let the sizes of the outputs be continuous too.
        seed: of the random weights and orders of the proof.

    Returns:
        What `convert` would make continuous; `print` shows a table, `summary()` every dimension, `draw` a picture.

    Raises:
        ConversionError: the network cannot be traced or run; the message names the operation.
        ValueError: a name in `ignore` or `only` that matches no axis, an input or dimension that there is not.
        TypeError: an argument of the wrong type; the message names it.
    """
    check_network(net)
    inputs = Inputs(checks.check_example_inputs(example_inputs), checks.check_kwargs(kwargs))
    ignored = checks.names_or_classes(ignore, "ignore")
    wanted = None if only is None else checks.names_or_classes(only, "only")
    free = checks.check_continuous_inputs(continuous_inputs, inputs.args)
    checks.check_seed(seed)
    with fast_paths_off():
        return find_axes_of(plain_copy(net, inputs)[0], inputs, ignored, wanted, free, continuous_outputs, seed)


def find_axes_of(
    net: nn.Module,
    inputs: Inputs,
    ignore: list[str | type],
    only: list[str | type] | None,
    continuous_inputs: Mapping[int, int],
    continuous_outputs: bool,
    seed: int,
) -> AxisSet:
    """`find_axes` of a network with ordinary weights, in eval mode."""
    tensors = {n: t for n, t in named_tensors(net).items() if t.is_floating_point() and t.dim()}
    places = [(f"input:{inputs.positions()[i]}", d) for i, d in continuous_inputs.items()]
    sizes = _traced(net, inputs, tensors, places)
    shapes = {**{n: tuple(t.shape) for n, t in tensors.items()}}
    shapes |= {f"input:{i}": tuple(x.shape) for i, x in enumerate(inputs.leaves()) if isinstance(x, Tensor)}
    found = Search(net, inputs, sizes, shapes, ignore, only, continuous_outputs, seed).run()
    return replace(found, multiply_adds=multiply_adds_of(net, inputs))


def _traced(net: nn.Module, inputs: Inputs, tensors: dict[str, Tensor], places: list[Place]) -> SymbolicSizes:
    """Sizes with the numbers in modules as symbols; as numbers, where code cannot run with symbols."""
    numbers = numbers_of(net)
    if numbers:
        try:
            return trace_sizes(net, inputs, tensors, places, numbers)
        except ConversionError:
            pass
    return trace_sizes(net, inputs, tensors, places)


def check_network(net: object) -> None:
    """Raise unless `net` is a discrete network that has its parameters."""
    checks.check_module(net)
    assert isinstance(net, nn.Module)
    if isinstance(net, torch.jit.ScriptModule):
        raise TypeError("net must be an ordinary nn.Module, got a ScriptModule, whose sizes are compiled in")
    if any(isinstance(module, Axis) for module in net.modules()):
        raise TypeError("net must be a discrete network, got one with integral layers; discretize it first")
    for name, parameter in net.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"net has uninitialized parameters ({name!r}): run it once first")
