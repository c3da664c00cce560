"""The axes of a module that was built of integral layers: what ties along each is read off the layers that share it."""

from __future__ import annotations

from torch import nn

from integral_nn.coupling.axis_set import AxisSet, AxisSpec, Discrete
from integral_nn.layers.axis import Axis
from integral_nn.layers.base import IntegralLayer
from integral_nn.layers.channels import Layout, Segment, Tie


def axes_of_layers(net: nn.Module) -> tuple[AxisSet, dict[str, Axis]]:
    """The axes of the integral layers in `net`, each named after the layer that makes it (or the first that reads it).

    Raises:
        ValueError: `net` has no integral layer along an axis.
    """
    layers = [(path, layer) for path, layer in net.named_modules() if isinstance(layer, IntegralLayer)]
    named: dict[Axis, str] = {}
    for path, layer in layers:
        if layer.out_axis is not None:
            named.setdefault(layer.out_axis, path or "out")
    for path, layer in layers:
        if layer.in_axis is not None:
            named.setdefault(layer.in_axis, f"{path}.in".lstrip("."))
    if not named:
        raise ValueError("net has no integral layer along an axis; convert makes a network of ordinary layers integral")
    ties, discrete = [], []
    for path, layer in layers:
        for name, rule in layer._rules.items():
            tensor = f"{path}.{name}".lstrip(".")
            nodes = getattr(layer, name + "_nodes")
            along = {tie.dim: tie for tie in rule.ties}
            for dim, size in enumerate(nodes.shape[:2] if nodes is not None else ()):
                if dim in along:
                    (own,) = along[dim].axes
                    layout = Layout((Segment(named[rule.axes[own]], size),))
                    ties.append(Tie(tensor, dim, layout, along[dim].integrated))
                else:
                    discrete.append(Discrete(tensor, dim, size, "not along an axis"))
    specs = {name: AxisSpec(name, axis.nodes, axis.multiple_of) for axis, name in named.items()}
    return AxisSet(specs, ties, [], discrete), {name: axis for axis, name in named.items()}
