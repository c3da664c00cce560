"""What a conversion must leave as it was: the outputs at full size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from integral_nn.coupling.axis_set import AxisSet
from integral_nn.coupling.calls import ConversionError, Inputs, call
from integral_nn.networks.network import IntegralNetwork


def tolerance_of(net: nn.Module) -> float:
    """The error that 32 roundings of the narrowest parameters make, or 1e-5."""
    return max([1e-5] + [32 * torch.finfo(p.dtype).eps for p in net.parameters() if p.is_floating_point()])


@torch.no_grad()
def check_outputs(net: nn.Module, inputs: Inputs) -> None:
    """Raise where outputs are NaN: nothing could be proved of them."""
    try:
        out = call(net, {}, inputs)
    except Exception:  # tracing says which operation
        return
    for index, value in enumerate(out):
        if not value.is_meta and bool(torch.isnan(value).any()):
            raise ConversionError(f"the network returns NaN for example_inputs (tensor {index} of its outputs)")


def _reordered(tensor: Tensor, dim: int, source: Tensor) -> Tensor:
    return tensor.index_select(dim, source.to(tensor.device))


@torch.no_grad()
def output_error(
    net: nn.Module, model: IntegralNetwork, inputs: Inputs, found: AxisSet, orders: dict[str, Tensor]
) -> float:
    """Largest relative difference of the outputs, on the example inputs and on noise of their shapes."""
    was = {m: m.training for m in net.modules()}
    net.eval(), model.eval()
    generator = torch.Generator().manual_seed(0)
    noise = [
        torch.rand(x.shape, generator=generator).to(x) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in inputs.leaves()
    ]
    worst = 0.0
    try:
        for given in (inputs, inputs.replaced(noise)):
            expected = call(net, {}, given)
            have_inputs = given.leaves()
            for tie in found.ties:
                live = {a: orders[a] for a in tie.axes if a in orders}
                if tie.tensor.startswith("input:") and live:
                    i = int(tie.tensor[6:])
                    have_inputs[i] = _reordered(have_inputs[i], tie.dim, tie.layout.source(live))
            out = call(model, {}, given.replaced(have_inputs))
            for index, dim, layout in found.outputs:
                live = {a: orders[a] for a in layout.axes if a in orders}
                expected[index] = _reordered(expected[index], dim, layout.source(live))
            for want, have in zip(expected, out):
                finite = torch.isfinite(want)
                largest = float(want[finite].abs().max()) if bool(finite.any()) else 0.0
                if largest > 0:
                    error = float((want - have)[finite].abs().max()) / largest
                    worst = worst if error <= worst else error  # NaN stays
    finally:
        for module, mode in was.items():
            module.training = mode
    return worst
