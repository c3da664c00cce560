"""The sampled weight: a module's tensors computed from nodes along the axes they share, at the sizes last chosen.

    weight = S_out nodes (S_in diag q)^T

A module that samples has `weight_nodes` among its parameters (or buffers), and its class a property `weight` that
computes the weight. So whatever reads `module.weight`, inside `forward` or not, in any thread, in a recomputation or
with its parameters gathered from shards, gets the tensor of the current sizes with its gradient. It is never stale,
for it is not kept: values are shared between readers for the length of one call at most (`held`).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inn_kernels import transforms
from integral_nn.layers.axis import Axis
from integral_nn.layers.held import CALIBRATED, held, held_of
from integral_nn.layers.module_sizes import size_properties
from integral_nn.layers.numbers import Counted, number_property
from integral_nn.layers.rule import Rule, Sizes
from integral_nn.layers.scheme import NODES, STATISTICS, dtype_of


class Resized(nn.Module):
    """Mixed into the class of a module that follows sizes. `_numbers` are its attributes that count channels."""

    _numbers: dict[str, Counted]
    _sampled_from: tuple[type[nn.Module], tuple[str, ...], tuple[str, ...]] | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._sampled_from is None:
            return super().__reduce_ex__(protocol)
        made: Any = super().__reduce_ex__(protocol)
        _, (_, *arguments), *rest = made
        return _restored, (*self._sampled_from, *arguments), *rest


class Sampled(Resized):
    """Mixed into the class of a module that samples. `_rules` says how, by name of the tensor."""

    _rules: dict[str, Rule]
    _held: Mapping[str, Tensor] | None = None  # what the call that is being compiled holds

    @property
    def joins(self) -> bool:
        """Whether a network samples this module's tensors along with all others when it is called."""
        return True


class SampledNorm(Sampled):
    """Mixed into norms that keep running statistics along an axis."""

    running_mean: Any
    running_var: Any
    weight: Any
    bias: Any
    eps: float
    track_running_stats: bool
    _calibrated_at: dict[Axis, int] | None = None  # sizes at which the statistics `.._calibrated` were measured

    def calibrated(self, name: str, sizes: Sizes = None) -> Tensor | None:
        """Statistics measured at the current sizes (or at others), if there are any."""
        if self._calibrated_at is None:
            return None
        kept = self._buffers.get(name + CALIBRATED)
        here = all((axis.size if sizes is None else sizes[axis]) == n for axis, n in self._calibrated_at.items())
        return kept if here else None

    def calibration(self) -> tuple[dict[str, Tensor] | None, dict[Axis, int] | None]:
        """What `calibrate` was given last."""
        kept = {name: self._buffers[name + CALIBRATED] for name in STATISTICS}
        found = {name: value for name, value in kept.items() if value is not None}
        return found or None, self._calibrated_at

    def calibrate(self, values: Mapping[str, Tensor] | None, at: Mapping[Axis, int] | None) -> None:
        """Keep statistics measured at these sizes of the network's axes; None forgets them."""
        self._calibrated_at = None if at is None else dict(at)
        for name in STATISTICS:
            self._buffers[name + CALIBRATED] = None if values is None else values[name]

    def forward(self, x: Tensor) -> Tensor:
        values = held_of(self)
        if values is None:
            with held([self]):
                return self.forward(x)
        mean, var = values.get("running_mean"), values.get("running_var")
        trained = mean is not None and var is not None and (mean.requires_grad or var.requires_grad)
        if trained and torch.is_grad_enabled():
            return self._affine(x, self.running_mean, self.running_var)
        return super().forward(x)

    def _affine(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """w (x - mean) / sqrt(var + eps) + b  written as  g x + c.

        Statistics sampled at trainable points carry gradients, which PyTorch's batch norm does not take through them.
        """
        gain = (var + self.eps).rsqrt()
        gain = gain if self.weight is None else gain * self.weight
        shift = -mean * gain if self.bias is None else self.bias - mean * gain
        shape = [-1] + [1] * (x.dim() - 2)
        return x * gain.view(shape) + shift.view(shape)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in STATISTICS:  # those of other sizes than the ones that are saved with them would mislead
            if self.calibrated(name) is None:
                destination.pop(prefix + name + CALIBRATED, None)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in STATISTICS:  # of whatever size they were measured at
            saved = state_dict.get(prefix + name + CALIBRATED)
            nodes = self._buffers[name + NODES]
            assert nodes is not None
            self._buffers[name + CALIBRATED] = None if saved is None else nodes.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


# Reading --------------------------------------------------------------------------------------------------------


def value_of(module: Any, name: str, dtype: torch.dtype | None = None) -> Any:
    """A sampled tensor of a module: the running call's, or computed now. None if the module has no such nodes.

    Of `dtype`; by default the nodes', or autocast's where it would cast them.
    """
    values = held_of(module)
    value = None if values is None else values.get(name)
    if value is not None and (dtype is None or dtype == value.dtype):
        return value
    rule = module._rules.get(name)
    if rule is None:
        return None
    if isinstance(module, SampledNorm) and name in STATISTICS and (kept := module.calibrated(name)) is not None:
        return kept
    nodes = getattr(module, name + NODES)
    dtype = dtype or dtype_of(module, nodes)
    if torch.compiler.is_compiling():
        return rule.value(nodes, dtype)
    check_not_resized(name, rule)
    # Hooks of saved tensors belong to whoever checkpoints or offloads the module: they count what its own operations
    # save, the same number when its tensors are computed once more as when a call holds them.
    with _HIDDEN if torch.is_grad_enabled() and not transforms.transforming() else _NOTHING:
        return rule.value(nodes, dtype)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


_HIDDEN = torch.autograd.graph.saved_tensors_hooks(
    Tensor.detach, _as_it_is
)  # its node would be kept by the tensor itself
_NOTHING = contextlib.nullcontext()


def check_not_resized(name: str, rule: Rule) -> None:
    """Raise RuntimeError where a backward pass computes a weight once more after its axis was resized.

    Autograd numbers its nodes in the order of the forward pass, thread by thread: a resize notes the number it met.
    """
    if torch._C._current_graph_task_id() == -1:
        return
    node = torch._C._current_autograd_node()
    for axis_name, axis in rule.axes.items():
        thread, number = axis.resized_at
        if node is not None and thread == threading.get_ident() and node._sequence_nr() < number:
            raise RuntimeError(
                f"{name} is computed again in the backward pass of a forward pass that ran before axis {axis_name!r} "
                f"was resized to {axis.size}: resize after the backward pass"
            )


def sampled_property(name: str) -> property:
    """A tensor of a module, computed from its nodes."""

    def get(module: Any) -> Tensor:
        return value_of(module, name)

    def refuse(module: Any, value: object) -> None:
        raise AttributeError(f"{name} is computed from {name}{NODES}, which can be written in its place")

    return property(get, refuse, doc=f"Sampled from `{name}{NODES}` at the current sizes.")


def shape_of(module: Any, name: str, sizes: Sizes = None) -> tuple[int, ...]:
    """The shape of a sampled tensor at the current sizes (or at others)."""
    return module._rules[name].shape(getattr(module, name + NODES).shape, sizes)


# Modules that sample, and back ----------------------------------------------------------------------------------


@functools.cache
def sampled_class(base: Any, names: tuple[str, ...], numbers: tuple[str, ...] = ()) -> Any:
    """A subclass of `base` in which the tensors `names` are computed from nodes, and the module's sizes with them.

    `numbers` are other attributes that follow the sizes of axes.
    """
    norm = issubclass(base, nn.modules.batchnorm._NormBase) and set(STATISTICS) <= set(names)
    body: dict[str, Any] = {name: sampled_property(name) for name in names}
    body |= size_properties(base, names, shape_of)
    body |= {name: number_property(name) for name in numbers}
    if issubclass(base, nn.RNNBase):
        body["_flat_weights"] = property(_flat_weights, lambda module, weights: None)
        body |= {"__getstate__": lambda module: dict(module.__dict__), "__setstate__": nn.Module.__setstate__}
    body |= {"_sampled_from": (base, names, numbers), "__doc__": base.__doc__}
    kind = SampledNorm if norm else Sampled if names else Resized
    return type(f"{'Sampled' if names else 'Resized'}{base.__name__}", (kind, base), body)


def _flat_weights(module: Any) -> list[Tensor]:
    """The list of weights that recurrent modules keep, computed like each of them and kept by none."""
    return [getattr(module, name) for name in module._flat_weights_names]


def _restored(base: Any, names: tuple[str, ...], numbers: tuple[str, ...] = (), *arguments: Any) -> nn.Module:
    made = sampled_class(base, names, numbers)
    return made.__new__(made, *arguments)


def sample_from_nodes(
    module: nn.Module, rules: Mapping[str, Rule], numbers: Mapping[str, Counted] | None = None
) -> None:
    """Make sampled tensors of those parameters and buffers of a module that `rules` names; they hold nodes now.

    `numbers` of the module follow the sizes of axes from now on.
    """
    own = tuple(sorted({*module._parameters, *module._buffers} & set(rules)))
    _rename(module, {name: name + NODES for name in own})
    base: Any = type(module)
    module.__class__ = sampled_class(base, own, tuple(sorted(numbers or {})))
    if numbers:
        module.__dict__["_numbers"] = dict(numbers)
    if own:
        module.__dict__.update(_rules={name: rules[name] for name in own}, _held=None)
    if isinstance(module, SampledNorm):
        for name in STATISTICS:
            module.register_buffer(name + CALIBRATED, None)
    if isinstance(module, nn.RNNBase):
        module.__dict__.pop("_flat_weights", None)
        module._flat_weight_refs = [None] * len(module._flat_weights_names)


def ordinary(module: Any, sizes: Sizes = None) -> None:
    """The reverse, on a module whose nodes were replaced by values of these sizes (by default the current ones)."""
    base, names, numbers = module._sampled_from
    own = {name: module.__dict__[name] for name in size_properties(base, names, shape_of)}
    own |= {name: module._numbers[name].value(sizes) for name in numbers}
    if isinstance(module, SampledNorm):
        for name in STATISTICS:
            del module._buffers[name + CALIBRATED]
    for name in ("_calibrated_at", "_rules", "_held", "_numbers"):
        module.__dict__.pop(name, None)
    _rename(module, {name + NODES: name for name in names})
    module.__class__ = base
    module.__dict__.update(own)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def _rename(module: nn.Module, names: Mapping[str, str]) -> None:
    """Rename parameters and buffers, which keep their order."""
    tables: tuple[Any, Any] = module._parameters, module._buffers
    for table in tables:
        items = [(names.get(name, name), tensor) for name, tensor in table.items()]
        table.clear()
        table.update(items)
    kept = module._non_persistent_buffers_set
    module._non_persistent_buffers_set = {names.get(name, name) for name in kept}
