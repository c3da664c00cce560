"""Normalization with statistics: folded into the layer before it where that changes nothing, or measured anew.

Folding turns  y = g (W x + b - mean) / sqrt(var + eps) + beta  into one linear layer. Whether a layer's outputs reach
anything but its norm is not looked up but tried: the folded network must return what it did before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from integral_nn.coupling.calls import Inputs, call, named_tensors
from integral_nn.coupling.groups import failing
from integral_nn.coupling.proof import Probe
from integral_nn.functional import checks
from integral_nn.layers.sampled import SampledNorm
from integral_nn.layers.scheme import STATISTICS
from integral_nn.networks.network import IntegralNetwork

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LINEAR = (nn.modules.conv._ConvNd, nn.Linear)


def fold_norms(net: nn.Module, inputs: Inputs) -> list[str]:
    """Fold batch norms of `net` into the layers before them, in place. Returns the names of those folded.

    A norm stays that reads anything but one linear layer, whose layer feeds anything else, that has no statistics, or
    that does more than normalise (a class with an activation in it).
    """
    pairs = _pairs(net, inputs)
    if not pairs:
        return []
    probe = Probe(net, inputs)

    def unchanged(some: Sequence[tuple[str, str]]) -> bool:
        trial = copy.deepcopy(probe.net)
        values = named_tensors(trial)
        with torch.no_grad():
            for name, value in probe.tensors.items():
                values[name].copy_(value)
            try:
                _fold(trial, some)
                with probe.precision():
                    out = call(trial, {}, probe.inputs)
            except Exception:
                return False
        errors = [(x - y).abs().max() / x.abs().max() for x, y in zip(probe.base, out)]
        return all(float(e) <= probe.tolerance for e in errors)

    bad = set(failing(pairs, unchanged))
    good = [pair for pair in pairs if pair not in bad]
    _fold(net, good)
    return [norm for _, norm in good]


def _pairs(net: nn.Module, inputs: Inputs) -> list[tuple[str, str]]:
    """(layer, norm) where the norm was given the very tensor that the layer returned, each called once."""
    made: list[tuple[str, Tensor]] = []
    pairs: list[tuple[str, str]] = []
    calls = dict.fromkeys(dict(net.named_modules()), 0)
    handles = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, out: Any) -> None:
            calls[name] += 1
            if isinstance(module, _NORMS) and args and module.track_running_stats and _is_plain(module):
                pairs.extend((layer, name) for layer, tensor in made if tensor is args[0])
            elif isinstance(module, _LINEAR) and isinstance(out, Tensor):
                made.append((name, out))

        return hook

    try:
        for name, module in net.named_modules():
            if isinstance(module, (*_NORMS, *_LINEAR)):
                handles.append(module.register_forward_hook(note(name)))
        with torch.no_grad():
            net(*inputs.args, **inputs.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return [(layer, norm) for layer, norm in pairs if calls[layer] == calls[norm] == 1]


def _is_plain(norm: nn.Module) -> bool:
    return type(norm).forward is nn.modules.batchnorm._BatchNorm.forward


def _fold(net: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    for layer_name, norm_name in pairs:
        layer, norm = net.get_submodule(layer_name), net.get_submodule(norm_name)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        if isinstance(layer, nn.Linear):
            fused: nn.Module = fuse_linear_bn_eval(layer, norm)
        else:
            assert isinstance(layer, nn.modules.conv._ConvNd)
            fused = fuse_conv_bn_eval(layer, norm, isinstance(layer, nn.modules.conv._ConvTransposeNd))
        for parameter in fused.parameters():  # a bias made by folding is to be trained like the rest
            parameter.requires_grad_(layer.weight.requires_grad)
        net.set_submodule(layer_name, fused)
        net.set_submodule(norm_name, nn.Identity())


def recalibrate(model: IntegralNetwork, batches: Iterable[Any]) -> None:
    """Measure the running statistics of all norms anew at the current sizes.

    The new statistics serve these sizes, `discretize()` included, and no others; `state_dict` keeps them.

    Args:
        model: an integral network with norms that keep running statistics (`convert(..., fold=False)`).
        batches: inputs; each a tensor or a tuple of positional inputs.

    Raises:
        ValueError: no norm keeps statistics along an axis, there are no batches, or statistics are not finite.
        TypeError: `model` is not an integral network, `batches` not iterable.

    What is raised on the way, by these checks, the batches or the network, leaves the model as it was.
    """
    checks.check_instance(model, IntegralNetwork, "model")
    checks.check_instance(batches, Iterable, "batches")
    modules = list(model.modules())
    sampled = [m for m in modules if isinstance(m, SampledNorm) and m.track_running_stats]
    if not sampled:
        raise ValueError("the model has no norm with running statistics; convert with fold=False to keep them")
    norms: list[Any] = [m for m in modules if isinstance(m, nn.modules.batchnorm._NormBase)]
    modes = {m: m.training for m in modules}
    momenta = {m: m.momentum for m in norms}
    statistics = {b: b.detach().clone() for m in norms for b in m.buffers()}
    before = [(m, m.calibration()) for m in sampled]
    here = {axis: axis.size for axis in model.axes.values()}
    try:
        model.eval()
        with torch.no_grad():
            for own in sampled:
                own.calibrate({name: getattr(own, name).clone() for name in STATISTICS}, here)
        for norm in norms:
            norm.train()
        count = 0
        for count, batch in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = 1.0 / count  # the plain mean over batches
            with torch.no_grad():
                model(*(batch if isinstance(batch, tuple) else (batch,)))
        if count == 0:
            raise ValueError("batches must hold at least one batch, got none")
        for path, module in model.named_modules():
            for name in STATISTICS if isinstance(module, SampledNorm) else ():
                if not bool(torch.isfinite(getattr(module, name)).all()):
                    raise ValueError(f"batches must give finite statistics, got NaN or infinite {path}.{name}")
    except BaseException:
        for own, state in before:
            own.calibrate(*state)
        with torch.no_grad():
            for buffer, value in statistics.items():
                buffer.copy_(value)
        raise
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
