"""Nodes from ordinary weights: those whose sample at full size is the weight, or the nearest to it.

With as many nodes as channels full size is exact: `solve_along` for any basis and rule (which divides by the quadrature
where nodes are sampled one by one). With more or fewer, nodes are the least-squares solution of
S_out nodes (S_in diag q)^T = weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inn_kernels import quadrature as rules
from inn_kernels import reference
from integral_nn.functional.nodes_from import solve_along
from integral_nn.layers.axis import Axis
from integral_nn.layers.base import IntegralLayer
from integral_nn.layers.rule import Rule, log
from integral_nn.layers.scheme import NODES
from integral_nn.networks.network import IntegralNetwork


def nodes_from(weight: Tensor, rule: Rule, channels: Mapping[str, int]) -> Tensor:
    """The nodes of a weight whose axes have so many channels (by the names that the rule uses).

    Trainable points play no part: nodes belong to the points that the quadrature wants.
    """
    exact = all(axis.nodes == channels[name] for name, axis in rule.axes.items())
    logarithms = rule.geometric and not (exact and all(_alone(axis) for axis in rule.axes.values()))
    nodes = log(weight.double()) if logarithms else weight.double()
    for tie in rule.ties:

        def fit(piece: Tensor, dim: int, name: str, integrated: bool = tie.integrated) -> Tensor:
            taps = _taps(rule, name, channels[name], integrated)
            return solve_along(piece, dim, taps) if exact else _least_squares(piece, dim, rule.axes[name], taps)

        nodes = tie.layout.at(channels).sample(nodes, tie.dim, fit)
    nodes = nodes.exp() if logarithms else nodes
    return nodes.to(weight.dtype)


@torch.no_grad()
def full_weights(model: IntegralNetwork) -> dict[str, Tensor]:
    """Every tensor that runs along an axis at full size, float64, by name: what `nodes_from` makes its nodes of."""
    found = {}
    for path, module, leaf in model._places():
        rule = module._rules[leaf]
        nodes = getattr(module, leaf + NODES).double()
        value = log(nodes) if rule.geometric else nodes
        for tie in rule.ties:

            def sample(
                piece: Tensor, dim: int, name: str, rule: Rule = rule, integrated: bool = tie.integrated
            ) -> Tensor:
                taps = _taps(rule, name, rule.axes[name].nodes, integrated)
                start, weight = taps.start.to(piece.device), taps.weight.to(piece.device)
                return reference.interpolate(piece, start, weight, dim, torch.float64)

            value = tie.layout.sample(value, tie.dim, sample)
        found[path] = value.exp() if rule.geometric else value
    return found


def _alone(axis: Axis) -> bool:
    """Whether each point at full size sees its own node alone."""
    return int((_full(axis).weight != 0).sum()) == axis.nodes


def _taps(rule: Rule, name: str, points: int, integrated: bool) -> Any:
    scale = rule.scales[name] if integrated else 1.0
    return rule.axes[name]._fixed_taps(points, integrated, scale, torch.float64)


def _full(axis: Axis) -> Any:
    return axis._fixed_taps(axis.nodes, False, 1.0, torch.float64)


def _least_squares(values: Tensor, dim: int, axis: Axis, taps: Any) -> Tensor:
    """Nodes along `dim` whose sample is nearest to `values`; of those, the nearest to a plain interpolation."""
    eye = torch.eye(axis.nodes, dtype=torch.float64)
    matrix = reference.interpolate(eye, taps.start, taps.weight, 0, torch.float64)  # [K, M]
    channels = values.movedim(dim, 0)
    flat = channels.reshape(channels.shape[0], -1)
    weights = taps.weight.sum(1, keepdim=True).to(flat)
    start = torch.nn.functional.interpolate(
        (flat / weights).T[None], axis.nodes, mode="linear", align_corners=not rules.is_centred(axis.quadrature)
    )[0].T
    matrix = matrix.to(flat)
    nodes = start + torch.linalg.pinv(matrix) @ (flat - matrix @ start)
    return nodes.reshape(axis.nodes, *channels.shape[1:]).movedim(0, dim)


@torch.no_grad()
def load_discrete(model: IntegralNetwork, state_dict: Mapping[str, Tensor]) -> None:
    """Load a checkpoint of the ordinary network: nodes are made of its weights, in the order of the model's channels.

    Args:
        model: an integral network, converted from a network of the same architecture or built by hand.
        state_dict: of the ordinary network at full width, named as there.

    Raises:
        TypeError: not an integral network, or not a mapping.
        ValueError: names and shapes that do not fit, all of them; the model is as it was.
    """
    channels = {axis: model.found.specs[name].nodes for name, axis in model.axes.items()}
    places = {name: (module, leaf) for name, module, leaf in model._places()}
    shapes = model.shapes({name: channels[axis] for name, axis in model.axes.items()})
    values = _fitting(
        model, dict(state_dict), shapes, {n: isinstance(m, IntegralLayer) for n, (m, _) in places.items()}
    )
    reordered = {} if model.report is None else {name: r.order for name, r in model.report.reordered.items()}
    own = dict(model.net.named_parameters()) | dict(model.net.named_buffers())
    for name, value in values.items():
        if name not in places:
            own[name].copy_(value)
            continue
        module, leaf = places[name]
        rule = module._rules[leaf]
        of_axes = {axis_name: channels[axis] for axis_name, axis in rule.axes.items()}
        for tie in rule.ties:
            orders = {axis: reordered[axis] for axis in tie.axes if axis in reordered}
            if orders:
                value = value.index_select(tie.dim, tie.layout.at(of_axes).source(orders).to(value.device))
        nodes = getattr(module, leaf + NODES)
        nodes.copy_(nodes_from(value.to(nodes.device), rule, of_axes))


def _fitting(
    model: IntegralNetwork, given: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], by_hand: Mapping[str, bool]
) -> dict[str, Tensor]:
    """The tensors of a checkpoint in the shapes the model has at full size; raises and names those that do not fit."""
    folded = set() if model.report is None else set(model.report.folded)
    problems = [f"{name} is missing" for name in shapes if name not in given]
    for name in given.keys() - shapes.keys():
        norm = name.rpartition(".")[0] in folded
        problems.append(f"{name} has no place" + (" (its norm was folded: convert with fold=False)" if norm else ""))
    values = {}
    for name, shape in shapes.items():
        value = given.get(name)
        if value is None:
            continue
        alike = value.numel() == torch.Size(shape).numel() and value.shape[:1] == shape[:1]
        if tuple(value.shape) != shape and not (by_hand.get(name) and alike):  # features that ride along are flattened
            problems.append(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
        else:
            values[name] = value.reshape(shape)
    if problems:
        hint = " (nodes are loaded by load_state_dict)" if any(name.endswith("_nodes") for name in given) else ""
        raise ValueError(f"state_dict does not fit the network{hint}: " + "; ".join(sorted(problems)))
    return values
