"""Place the points of a partition where the network needs them (paper, section 3.2 and pipeline B).

    delta -> P = cumsum(delta^2 / sum delta^2)

By data: nodes stay as they are, and only the deltas are trained on a few batches, so that a converted network loses
channels without any training of its weights. Without data: points are placed where the nodes bend, with density

    p(x) ~ ( |F''(x)| + floor )^(1/3),

which spreads the error h^3 |F''| of a quadrature evenly over its cells (F'' taken over everything the axis ties).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inn_kernels import quadrature as rules
from integral_nn.functional import checks
from integral_nn.layers.axis import Axis
from integral_nn.networks.network import IntegralNetwork
from integral_nn.networks.permute import axis_features

_EXTRAS = ("biases", "norms")


def compressed_sizes(model: IntegralNetwork, compression: float) -> dict[str, int]:
    """Sizes, the same share of every axis, that remove a share `compression` of the network's parameters.

    Args:
        model: an integral network.
        compression: share of the parameters at full size to remove, in [0, 1).

    Raises:
        ValueError: `compression` is out of range, or more than the smallest sizes can remove.
        TypeError: `model` is not an integral network, or `compression` no number.
    """
    checks.check_instance(model, IntegralNetwork, "model")
    checks.check_number(compression, "compression")
    if not 0 <= compression < 1:
        raise ValueError(f"compression must be a share of the parameters in [0, 1), got {compression}")
    axes = model.axes
    full = model.parameter_count({name: axis.nodes for name, axis in axes.items()})

    def sizes(share: float) -> dict[str, int]:
        return {name: axis.share(share) for name, axis in axes.items()}

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if model.parameter_count(sizes(middle)) > (1 - compression) * full:
            high = middle
        else:
            low = middle
    best = min((sizes(low), sizes(high)), key=lambda s: abs(model.parameter_count(s) - (1 - compression) * full))
    removed = 1 - model.parameter_count(best) / full
    if removed < compression - 0.05:
        raise ValueError(f"compression {compression:g} is more than the smallest sizes remove ({removed:.2f})")
    return best


def tune_partitions(
    model: IntegralNetwork,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    batches: Iterable[Any] | None = None,
    *,
    compression: float | None = None,
    sizes: float | Mapping[str, int | float] | None = None,
    also: str | Iterable[str] = (),
    steps: int | None = None,
    lr: float = 0.02,
    extra_lr: float = 1e-3,
    start: str = "uniform",
    progress: bool = False,
) -> list[float]:
    """Tune the points of every axis at given sizes; nothing else changes, unless `also` says so.

    Args:
        model: an integral network. Its axes get trainable partitions, which `state_dict` keeps.
        loss_fn: (model, batch) -> a scalar to minimize. None: place the points by the curvature of the nodes.
        batches: an iterable of batches, gone through again and again.
        compression: share of the parameters to remove; sizes are chosen for it (`compressed_sizes`).
        sizes: or the sizes themselves, as `resize` takes them. Default: the current ones.
        also: "biases", "norms": parameters of one dimension to train along with the points.
        steps: number of optimizer steps; default: 100 passes over the batches, at most 1000 steps.
        lr: of the deltas (whose mean square starts at 1), lowered to zero along a cosine.
        extra_lr: of what `also` names.
        start: "uniform" points, or "curvature".
        progress: show a progress bar.

    Returns:
        The loss at each step (none without `loss_fn`).

    Raises:
        ValueError: both `compression` and `sizes`; batches without loss_fn or the other way round; no batches; an
            unknown name; a number out of range; a loss that is not finite.
        TypeError: an argument, or a loss, of the wrong type; the message names it.

    Whatever is raised, by these checks, the batches or the loss, leaves the model as it was.

    Source: paper, section 3.2; the placement by curvature answers its open question on data-free partitions.
    """
    checks.check_instance(model, IntegralNetwork, "model")
    names = checks.names_in(also, "also")
    for name in names:
        if name not in _EXTRAS:
            raise ValueError(f"also must name some of {list(_EXTRAS)}, got {name!r}")
    if start not in ("uniform", "curvature"):
        raise ValueError(f"start must be 'uniform' or 'curvature', got {start!r}")
    if (loss_fn is None) != (batches is None):
        raise ValueError("loss_fn and batches must be given together, or neither (points by curvature)")
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
    if steps is not None:
        checks.check_count(steps, "steps", 0)
    checks.check_number(lr, "lr", least=0)
    checks.check_number(extra_lr, "extra_lr", least=0)
    if compression is not None and sizes is not None:
        raise ValueError("give compression or sizes, not both")
    if batches is not None:
        checks.check_instance(batches, Iterable, "batches")
    bent = start == "curvature" or loss_fn is None
    device = next(model.net.parameters()).device
    with _all_or_nothing(model):
        for axis in model.axes.values():
            axis.make_uniform()
        if compression is not None:
            model.resize(compressed_sizes(model, compression))
        elif sizes is not None:
            model._sizes_at(sizes, "sizes")
            model.resize(sizes)
        for name, axis in model.axes.items():
            if axis.size > 1:
                axis.make_trainable(curvature_partition(model, name) if bent else None)
                axis.to(device)
        if loss_fn is None or batches is None:
            return []
        kept = list(batches)
        if not kept:
            raise ValueError("batches must hold at least one batch, got none")
        total = min(100 * len(kept), 1000) if steps is None else steps
        with torch.enable_grad():
            return _train(model, loss_fn, kept, names, total, lr, extra_lr, progress)


@contextmanager
def _all_or_nothing(model: IntegralNetwork) -> Iterator[None]:
    """Modes, flags and gradients are afterwards what they were; on an error, sizes, points and values are too."""
    axes = [(axis, axis._state()) for axis in model.axes.values()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    values = [(p, p.detach().clone()) for p in _extras(model, list(_EXTRAS))]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    except BaseException:
        for axis, state in axes:
            axis._restore(state)
        with torch.no_grad():
            for p, value in values:
                p.copy_(value)
        raise
    finally:
        for p, learns, grad in parameters:
            p.requires_grad_(learns)
            p.grad = grad
        for module, mode in modes:
            module.training = mode


def _train(
    model: IntegralNetwork,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batches: list[Any],
    also: list[str],
    steps: int,
    lr: float,
    extra_lr: float,
    progress: bool,
) -> list[float]:
    deltas = [axis.delta for axis in model.axes.values() if axis.delta is not None]
    extras = _extras(model, also)
    for p in model.parameters():
        p.requires_grad_(any(p is q for q in (*deltas, *extras)))
    groups = [{"params": deltas, "lr": lr}, {"params": extras, "lr": extra_lr}]
    optimizer = torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    losses = []
    model.eval()  # statistics and dropout stay as they are: the network is tuned as it will be used
    for step in _counted(steps, progress):
        loss = loss_fn(model, batches[step % len(batches)])
        _check_loss(loss, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    optimizer.zero_grad()
    return losses


def _check_loss(loss: object, step: int) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"loss_fn must return a scalar, got shape {list(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError("loss_fn must return a loss that depends on the model, got one without a gradient")
    if not bool(torch.isfinite(loss)):
        raise ValueError(f"loss_fn returned {float(loss.detach())} at step {step}")


def _extras(model: IntegralNetwork, also: list[str]) -> list[nn.Parameter]:
    """Biases, and the affine parameters of norms."""
    found = []
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    for module in model.net.modules():
        for name, p in module.named_parameters(recurse=False):
            is_norm = isinstance(module, norms)
            if ("norms" in also and is_norm) or ("biases" in also and not is_norm and "bias" in name and p.dim() == 1):
                found.append(p)
    return list(dict.fromkeys(found))


def curvature_partition(model: IntegralNetwork, name: str, floor: float = 0.1) -> Tensor:
    """Points [K] of an axis at its current size, denser where its nodes bend.

    On an axis of cells, the [K + 1] edges of cells in which the nodes vary alike.

    Args:
        model: an integral network.
        name: of the axis.
        floor: share of the mean curvature (or variation) added everywhere, so that flat stretches keep some points.

    Raises:
        ValueError: an unknown axis, a floor that is negative or not finite, nodes that are not finite.
        TypeError: an argument of the wrong type; the message names it.
    """
    checks.check_instance(model, IntegralNetwork, "model")
    checks.check_axis_name(name, model.axes, "name")
    checks.check_number(floor, "floor", least=0)
    axis: Axis = model.axes[name]
    features = axis_features(model.nodes(), model.found.ties, name)
    if axis.nodes < 3:
        return axis.partition().detach()
    order = 1 if rules.is_cells(axis.quadrature) else 2
    bend = features.diff(n=order, dim=0).abs().mean(1).double().cpu()  # [M - order]
    if not bool(torch.isfinite(bend).all()):
        raise ValueError(f"model has NaN or infinite nodes along axis {name!r}")
    bend = torch.cat([bend[:1], (bend[1:] + bend[:-1]) / 2 if order == 1 else bend, bend[-1:]])  # [M]
    density = bend + floor * bend.mean() + 1e-30
    density = density if order == 1 else density.pow(1 / 3)
    if rules.is_centred(axis.quadrature):
        cumulated = torch.cat([density.new_zeros(1), density.cumsum(0)])  # at cell edges
        targets = rules.partition_for(axis.quadrature, axis.size, dtype=torch.float64)
    else:
        cumulated = torch.cat([density.new_zeros(1), ((density[1:] + density[:-1]) / 2).cumsum(0)])  # at nodes
        targets = torch.linspace(0, 1, axis.size, dtype=torch.float64)
    cumulated = cumulated / cumulated[-1]
    right = torch.searchsorted(cumulated, targets).clamp(1, cumulated.numel() - 1)
    left_value, right_value = cumulated[right - 1], cumulated[right]
    part = (targets - left_value) / (right_value - left_value)
    return ((right - 1 + part) / (cumulated.numel() - 1)).clamp(0, 1)


def _counted(steps: int, progress: bool) -> Iterable[int]:
    if not progress:
        return range(steps)
    try:
        from tqdm import trange
    except ImportError:
        return range(steps)
    return trange(steps, desc="tuning partitions", mininterval=0.5)
