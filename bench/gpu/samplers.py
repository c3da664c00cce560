"""What is timed below a layer: passes over nodes and weights, each on its own tensors in turn, beside a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import integral_nn as inn
from bench.gpu.clock import rotated
from bench.gpu.rows import Trial
from bench.jobs import BF16
from bench.providers import CELLS, Case, grid_sample_weight, relative_error
from inn_kernels import ops
from inn_kernels.basis import Basis
from inn_kernels.taps import Taps, taps_for
from integral_nn.functional.foreach import make_plan

WIDE = torch.float32
Trials = dict[str, Callable[[], Trial]]


def along(points: int, nodes: int, device: str, cells: bool = False, weighted: bool = False) -> Taps:
    """Taps of evenly spread points, or of cells."""
    rule = {"basis": Basis(kernel=CELLS["kernel"]), "quadrature": CELLS["quadrature"]} if cells else {}
    return taps_for(points, nodes, weighted=weighted, device=device, **rule)  # type: ignore[arg-type]


def errors_of(found: Tensor | Sequence[Tensor], exact: Tensor | Sequence[Tensor]) -> float:
    """The largest relative error."""
    pairs = [(found, exact)] if isinstance(found, Tensor) else zip(found, exact)
    return max(relative_error(value, true) for value, true in pairs)  # type: ignore[arg-type]


def checked(call: partial, nbytes: int) -> Trial:
    """An operator's trial; its error is that from the same operator in float64."""

    def wide(argument: object) -> object:
        if isinstance(argument, Tensor):
            return argument.double() if argument.is_floating_point() else argument
        if isinstance(argument, torch.dtype):
            return torch.float64
        return type(argument)(map(wide, argument)) if isinstance(argument, (list, tuple)) else argument

    return Trial(rotated(call), errors_of(call(), call.func(*map(wide, call.args))), nbytes)


def sampling(case: Case, device: str) -> Trials:
    """One weight: discretized, its adjoint and the gradient of its taps, through grid_sample; points and cells."""
    (out_nodes, in_nodes), (out_points, in_points), moved = case.nodes, case.points, case.weight_bytes()
    nodes, grad = torch.randn(case.nodes, device=device), torch.randn(case.points, device=device).to(BF16)
    half = torch.randn(moved // 8, device=device)  # read once, written once
    rows, columns = (inn.uniform_partition(n, device=device) for n in case.points)
    quadrature = inn.quadrature_weights("trapezoid", columns)
    trials: Trials = {
        "copy in place": lambda: Trial(rotated(partial(torch.Tensor.copy_, half.clone(), half)), 0.0, moved)
    }
    for cells in (False, True):
        out, in_ = along(out_points, out_nodes, device, cells), along(in_points, in_nodes, device, cells, True)
        taps = (out.start, out.weight, in_.start, in_.weight)
        calls = {
            "discretize": partial(ops.discretize, nodes, *taps, BF16),
            "adjoint": partial(ops.discretize_adjoint, grad, *taps, out_nodes, in_nodes, WIDE),
            "tap gradient": partial(ops.discretize_tap_gradient, nodes, grad, *taps, True, True),
        }
        name = "{}, cells" if cells else "{}"
        trials |= {name.format(operator): partial(checked, call, moved) for operator, call in calls.items()}
    exact = partial(inn.discretize, nodes.double(), *case.points)
    through = partial(grid_sample_weight, nodes, rows, columns, quadrature)
    trials["grid_sample"] = lambda: Trial(rotated(through), errors_of(through(), exact()), moved)

    def there_and_back(sample: Callable[..., Tensor], leaf: Tensor, grad: Tensor) -> Tensor:
        leaf = leaf.detach().requires_grad_()
        return torch.autograd.grad(sample(leaf), leaf, grad)[0]

    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "discretize, forward and backward": lambda leaf: inn.discretize(leaf, *case.points, dtype=BF16),
        "grid_sample, forward and backward": lambda leaf: grid_sample_weight(leaf, rows, columns, quadrature).to(BF16),
    }
    for name, sample in ways.items():
        call = partial(there_and_back, sample, nodes, grad)
        trials[name] = lambda call=call: Trial(rotated(call), None, 2 * moved)  # type: ignore[misc]
    return trials


def together(layers: Sequence[tuple[int, int, int]], share: float, device: str) -> Trials:
    """Every weight of a network (outputs, inputs, kernel): in one launch, a launch a layer, through grid_sample."""
    nodes = [torch.randn(o, i, *([k, k] if k > 1 else []), device=device) for o, i, k in layers]
    sizes = [(max(round(o * share), 2), max(round(i * share), 2)) for o, i, _ in layers]
    both = [(along(k, o, device), along(m, i, device, weighted=True)) for (o, i, _), (k, m) in zip(layers, sizes)]
    grads = [torch.randn(k, m, *n.shape[2:], device=device).to(BF16) for n, (k, m) in zip(nodes, sizes)]
    plan = make_plan(both)
    points = {n: inn.uniform_partition(n, device=device) for pair in sizes for n in pair}
    rule = {n: inn.quadrature_weights("trapezoid", p) for n, p in points.items()}
    moved = sum(n.nbytes for n in nodes) + sum(g.nbytes for g in grads)
    taps = [(out.start, out.weight, in_.start, in_.weight) for out, in_ in both]

    def one_by_one(nodes: list[Tensor]) -> list[Tensor]:
        return [ops.discretize(n, *t, BF16) for n, t in zip(nodes, taps)]

    def through_grid_sample(nodes: list[Tensor]) -> list[Tensor]:
        return [grid_sample_weight(n, points[k], points[m], rule[m]).to(BF16) for n, (k, m) in zip(nodes, sizes)]

    halves = [torch.randn(moved // 8, device=device) for _ in range(2)]
    there = (plan.start, plan.weight, plan.out, plan.in_, BF16)
    back = (plan.start, plan.weight, plan.nodes, plan.out, plan.in_, WIDE)
    calls = {
        "one launch": partial(ops.discretize_foreach, nodes, *there),
        "one launch, adjoint": partial(ops.discretize_foreach_adjoint, grads, *back),
    }
    trials: Trials = {"copy in place": lambda: Trial(rotated(partial(torch.Tensor.copy_, *halves)), 0.0, moved)}
    trials |= {name: partial(checked, call, moved) for name, call in calls.items()}
    trials["a launch a layer"] = lambda: Trial(rotated(partial(one_by_one, nodes)), None, moved)
    trials["grid_sample"] = lambda: Trial(rotated(partial(through_grid_sample, nodes)), None, moved)
    return trials


def resnet50() -> list[tuple[int, int, int]]:
    """Outputs, inputs and kernel of every weight of a ResNet-50: 25.5 million."""
    layers = [(64, 3, 7)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers += [(width, channels, 1), (width, width, 3), (4 * width, width, 1)]
            layers += [(4 * width, channels, 1)] if block == 0 else []
            channels = 4 * width
    return [*layers, (1000, 2048, 1)]
