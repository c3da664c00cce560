"""The public operators from their definition, in dense matrices: values, gradients, and how large rounding may be.

    W = nodes sampled along each dimension by S [K, M],  S[k, i] = q[k] u(s_k - i)        y = W, or W x + S_out bias

with the mean of u over a cell in place of its value at a point where the rule is "cells".

u, the boundary and q are written out here and in `common`; nothing of `inn_kernels` takes part. y is linear in each of
x, nodes, bias and the matrices S, so the same few lines with absolute values give the sum of the absolute values of all
terms of a value or a gradient: what a unit in the last place is measured by where terms cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import common

Rule = Union[str, Tensor, Callable[[Tensor], Tensor]]
CONVOLUTIONS = {"integral_conv1d": F.conv1d, "integral_conv2d": F.conv2d, "integral_conv3d": F.conv3d}
MOST = 70  # points of a rule through all of them; more are taken to be Legendre's
WINDOW = ("stride", "padding", "dilation", "groups")


# Quadratures: the shares that cells of [0, 1] give to their points -------------------------------------------


def shares(rule: Rule, p: Tensor) -> tuple[Tensor, Tensor]:
    """Points and what they are given, [T] and [T]: q[l] is the sum of the shares of point l. p [n], float64."""
    n, every = p.shape[0], torch.arange(p.shape[0])
    zero, one = p.new_zeros(1), p.new_ones(1)
    if rule == "left":
        return every, torch.cat([p, one]).diff()
    if rule == "right":
        return every, torch.cat([zero, p]).diff()
    if rule == "midpoint":
        return every, torch.cat([zero, (p[:-1] + p[1:]) / 2, one]).diff()
    if rule == "trapezoid" or (rule == "simpson" and n == 2):
        return torch.cat([every[:-1], every[1:]]), (p.diff() / 2).repeat(2)
    if rule == "simpson":
        return _simpson(p)
    if rule == "gauss-legendre" and n > MOST:
        return every, _gauss(2 * n)[1]
    if rule == "gauss-legendre":
        at, weight = _gauss(n)
        return every.repeat(len(at)), (weight[:, None] * _lagrange(at[:, None] - p, p)).flatten()
    return every, (rule if isinstance(rule, Tensor) else rule(p)).double()


def _simpson(p: Tensor) -> tuple[Tensor, Tensor]:
    """Parabolas over pairs of intervals. An interval left over, at the right end or the left, takes its neighbour's
    parabola; the two rules are averaged."""
    intervals = p.shape[0] - 1
    whole, left, right = (0, 2), (0, 1), (1, 2)  # what part of its two intervals a parabola is integrated over
    if intervals % 2 == 0:
        pieces = [(first, whole, 1.0) for first in range(0, intervals, 2)]
    else:
        pieces = [(first, whole, 0.5) for first in range(intervals - 1)]  # 0, 2, .. of one rule, 1, 3, .. of the other
        pieces += [(intervals - 2, right, 0.5), (0, left, 0.5)]
    first = torch.tensor([f for f, _, _ in pieces])
    ends = torch.tensor([e for _, e, _ in pieces])
    share = torch.tensor([s for _, _, s in pieces], dtype=torch.float64)
    points = first[:, None] + torch.arange(3)  # [T, 3]
    low, high = p[first + ends[:, 0]], p[first + ends[:, 1]]
    at, weight = _gauss(3)  # two points: exact for parabolas, and no difference of large numbers
    distance = (high - low)[:, None, None] * at[:, None] - (p[points] - low[:, None])[:, None, :]  # [T, 2, 3]
    value = _lagrange(distance, p[points]) * weight[:, None] * ((high - low) * share)[:, None, None]
    return points[:, None, :].expand(value.shape).flatten(), value.flatten()


def _gauss(n: int) -> tuple[Tensor, Tensor]:
    """Points and weights on [0, 1] that integrate polynomials of degree n - 1 exactly."""
    at, weight = np.polynomial.legendre.leggauss((n + 1) // 2)
    return torch.from_numpy((at + 1) / 2), torch.from_numpy(weight / 2)


def _lagrange(distance: Tensor, p: Tensor) -> Tensor:
    """Lagrange's polynomials of p [..., n] at a point given by its distances to them, [..., n] -> [..., n]."""
    n = p.shape[-1]
    apart = (p[..., :, None] - p[..., None, :]) + torch.eye(n).double()  # [..., j, m]
    factor = distance[..., None, :] / (apart if p.dim() == 1 else apart[:, None])
    return torch.where(torch.eye(n).bool(), 1.0, factor).prod(-1)


def quadrature(rule: Rule, p: Tensor) -> Tensor:
    """q [n] in float64, differentiable in p."""
    index, value = shares(rule, p.double())
    return value.new_zeros(p.shape[0]).index_add(0, index, value)


def quadrature_size(rule: Rule, p: Tensor) -> Tensor:
    """The sum of the absolute values of each weight's shares."""
    index, value = shares(rule, p.double())
    size = value.new_zeros(p.shape[0]).index_add(0, index, value.abs())
    if rule == "gauss-legendre" and p.shape[0] <= MOST:  # the points themselves are rounded in float64
        moved = torch.autograd.functional.jacobian(lambda p: quadrature(rule, p), p.double()).abs().sum(1)
        size = size + moved * torch.finfo(torch.float64).eps / common.FLOOR[torch.float64]
    return size


def quadrature_slopes(rule: Rule, p: Tensor) -> Tensor:
    """How strongly q[l] depends on p[m], [l, m]. Shares that are ratios of gaps change by their size over a gap."""
    n = p.shape[0]
    if rule in ("simpson", "gauss-legendre") and n > 1:
        slopes = torch.autograd.functional.jacobian(lambda p: quadrature(rule, p), p).abs()
        gap = torch.cat([p.new_ones(1), p.diff(), p.new_ones(1)]).unfold(0, 2, 1).amin(1)
        return slopes + (slopes > 0) * quadrature_size(rule, p)[:, None] / gap
    if isinstance(rule, str):  # edges of cells are points, or halfway between two
        return torch.ones(n, n).double().triu(-1).tril(1)
    p = p.detach().requires_grad_()
    return torch.autograd.grad((quadrature(rule, p) + 0 * p).sum(), p)[0].abs().diag()  # of a function of each point


def uniform(n: int) -> Tensor:
    return torch.arange(n).double() / max(n - 1, 1)


def midpoint(n: int) -> Tensor:
    return (torch.arange(n).double() + 0.5) / n


def legendre(n: int) -> Tensor:
    return _gauss(2 * n)[0]


def points_of(rule: Rule, n: int) -> Tensor:
    """The points that n asks for, or the edges of cells."""
    named = rule if isinstance(rule, str) else ""
    if named == "cells":
        return common.equal_edges(n)
    return {"midpoint": midpoint, "gauss-legendre": legendre}.get(named, uniform)(n)


# The operators ----------------------------------------------------------------------------------------------


class Dimension(NamedTuple):
    """One sampled dimension of the nodes."""

    dim: int
    name: str  # of its partition
    nodes: int
    rule: Rule | None  # None: sampled, not integrated
    scale: float
    basis: dict[str, Any]
    cells: bool  # points are the edges of cells

    def sampling(self, points: Tensor) -> Tensor:
        """u(s_k - i), [K, M], without the quadrature."""
        if self.cells:
            return common.cell_matrix(points, self.nodes, **self.basis)
        return common.sampling_matrix(points, self.nodes, **self.basis)

    @property
    def rounding(self) -> float:
        """Of u in float64: its terms are a few times 1 + |a|, and so is its slope; positions are as large as M."""
        return (8 + self.nodes) * (1 + abs(self.basis["a"])) * torch.finfo(torch.float64).eps

    def weights(self, points: Tensor, rule: Rule | None) -> Tensor:
        """q times scale, [K]."""
        if rule is None:
            return points.new_ones(points.shape[0] - self.cells)
        return (points.diff() if self.cells else quadrature(rule, points)) * self.scale

    def slopes(self, points: Tensor, floor: float) -> list[Tensor]:
        """How strongly u(s_k - i) depends on a point: of each row on its own point, or of a cell's on either edge.

        Of cells, W' = (F(e) - W) / width where that is small, else the slope of F: the mean of a narrow cell has that
        of its middle. What cancels there is rounded in float64 where a knot lies inside.
        """
        h = 1e-4 / self.nodes
        left, here, right = (self.sampling(p).abs() for p in (points - h, points, points + h))
        touched = left + here + right > 0
        rounding = touched * self.nodes * self.rounding / floor
        if not self.cells:
            return [(self.sampling(points + h) - self.sampling(points - h)).abs() / (2 * h) + rounding]
        at = {name: value for name, value in self.basis.items() if name != "centred"}
        value = common.sampling_matrix(points, self.nodes, centred=True, **at).abs()
        width, steepest = points.diff()[:, None], 3 * self.nodes * (1 + abs(self.basis["a"]))
        cancelled = (points[1:] * self.nodes * 2).ceil() - (points[:-1] * self.nodes * 2).floor() > 1  # a knot inside
        found = []
        for edge in (value[:-1], value[1:]):
            far = (edge + here) / width
            limit = steepest * ((edge + here > 0) | touched)
            lost = cancelled[:, None] * far * torch.finfo(torch.float64).eps * 8 / floor
            found.append(torch.minimum(far, limit) + rounding + lost)
        return found


def dimensions(arguments: Mapping[str, Any]) -> list[Dimension]:
    """The sampled dimensions of a call, the input's and spatial ones integrated, the first of those scaled."""
    rule, scale = arguments.get("quadrature", "trapezoid"), arguments.get("scale", 1.0)
    defaults = {"a": -0.75, "boundary": "clamp", "kernel": "cubic"}
    basis = {name: arguments.get(name, default) for name, default in defaults.items()}
    cells = isinstance(rule, str) and rule == "cells"
    if not cells:
        basis["centred"] = isinstance(rule, str) and rule == "midpoint"
    spatial = arguments.get("spatial_partitions") or []
    names = ["out_partition", "in_partition", *(f"spatial_partition_{i}" for i in range(len(spatial)))]
    result = []
    for dim, (name, partition) in enumerate(zip(names, [*map(arguments.get, names[:2]), *spatial])):
        if partition is None:
            continue
        own = None if dim == 0 else rule if dim == 1 or isinstance(rule, str) else "trapezoid"
        result.append(Dimension(dim, name, arguments["nodes"].shape[dim], own, scale if dim else 1.0, basis, cells))
        scale = 1.0 if dim else scale
    return result


def points(arguments: Mapping[str, Any], dimension: Dimension) -> Tensor:
    """The points of a dimension in float64."""
    spatial = arguments.get("spatial_partitions") or []
    given = arguments[dimension.name] if dimension.dim < 2 else spatial[dimension.dim - 2]
    if isinstance(given, Tensor):
        return given.detach().double()
    return points_of(arguments.get("quadrature", "trapezoid"), given)


def multiply(function: str, tensors: Mapping[str, Tensor | None], matrices: Mapping[int, Tensor], window: tuple) -> Any:
    """y from its factors. `matrices` [K, M] by dimension of the nodes."""
    weight, bias, x = tensors["nodes"], tensors.get("bias"), tensors.get("x")
    for dim, matrix in matrices.items():
        weight = torch.tensordot(matrix, weight, ([1], [dim])).movedim(0, dim)
    if function == "discretize":
        return weight
    if bias is not None and 0 in matrices:
        bias = matrices[0] @ bias
    if function == "integral_linear":
        return F.linear(x, weight.flatten(1), bias)
    return CONVOLUTIONS[function](x, weight, bias, *window)


class Definition:
    """A call straight from the definition: its tensors, sampled dimensions and points, in float64."""

    def __init__(self, function: str, arguments: Mapping[str, Any]):
        self.function, self.dimensions = function, dimensions(arguments)
        given = {name: arguments.get(name) for name in ("x", "nodes", "bias")}
        self.tensors = {name: t.detach() for name, t in given.items() if t is not None}
        self.points = {d.name: points(arguments, d) for d in self.dimensions}
        rule = arguments.get("quadrature")
        self.own = {"quadrature": rule.detach()} if isinstance(rule, Tensor) else {}
        first = (1, 0, 1, 1)
        self.window = tuple(arguments.get(name, value) for name, value in zip(WINDOW, first))

    def run(self, leaves: Mapping[str, Tensor], compute: torch.dtype) -> Tensor:
        """y with every factor cast to `compute`; float64 for the truth, the call's own dtype for plain PyTorch."""
        matrices = {}
        for d in self.dimensions:
            p = leaves.get(d.name, self.points[d.name]).double()
            rule = leaves["quadrature"].double() if isinstance(d.rule, Tensor) else d.rule
            matrices[d.dim] = (d.sampling(p) * d.weights(p, rule)[:, None]).to(compute)
        tensors = {name: leaves[name].to(compute) for name in self.tensors}
        return multiply(self.function, tensors, matrices, self.window)

    def gradients(
        self, dtypes: Mapping[str, torch.dtype], wanted: list[str], compute: torch.dtype, grad: Tensor
    ) -> dict[str, Tensor]:
        """The value "y" and the gradient of <y, grad> in each of `wanted`; leaves in the dtypes given, else float64."""
        every = self.tensors | self.points | self.own
        leaves = {name: t.to(dtypes.get(name, torch.float64)).detach().clone() for name, t in every.items()}
        y = self.run({name: t.requires_grad_(name in wanted) for name, t in leaves.items()}, compute)
        found = torch.autograd.grad(y, [leaves[name] for name in wanted], grad.to(compute)) if wanted else ()
        return {"y": y.detach(), **dict(zip(wanted, found))}

    def sizes(self, wanted: list[str], grad: Tensor, floor: float, smallest: float) -> dict[str, Tensor]:
        """The sum of the absolute values of the terms of each element of y and of the gradients.

        A sampling weight is counted as at least `smallest`, below which a dtype loses digits, and as at least the
        rounding of u and of a position in float64, in units of `floor`.
        """
        tensors = {name: t.double().abs().requires_grad_() for name, t in self.tensors.items()}
        rules = {
            d.name: self.own["quadrature"].double() if isinstance(d.rule, Tensor) else d.rule for d in self.dimensions
        }
        bare, weight, matrices = {}, {}, {}
        for d in self.dimensions:
            p, rule, h = self.points[d.name], rules[d.name], 1e-4 / d.nodes
            left, here, right = map(d.sampling, (p - h, p, p + h))
            touched = left.abs() + here.abs() + right.abs() > 0
            bare[d.name] = here.abs() + touched * d.rounding / floor
            if d.cells:
                weight[d.name] = d.weights(p, rule).abs()
            else:
                weight[d.name] = p.new_ones(len(p)) if rule is None else quadrature_size(rule, p) * abs(d.scale)
            matrix = bare[d.name] * weight[d.name][:, None] + touched * smallest
            matrices[d.dim] = matrix.requires_grad_()
        y = multiply(self.function, tensors, matrices, self.window)
        found = torch.autograd.grad(y, [*tensors.values(), *matrices.values()], grad.double().abs())
        result = {"y": y.detach(), **dict(zip(tensors, found))}
        for d, size in zip(self.dimensions, found[len(tensors) :]):  # size [K, M]: of the gradient in S
            p, rule = self.points[d.name], rules[d.name]
            of_weight = (bare[d.name] * size).sum(1) * abs(d.scale)
            rows = [(slope * size).sum(1) * weight[d.name] for slope in d.slopes(p, floor)]
            if d.cells:  # each edge bounds two cells
                ends = [row + (0 if rule is None else of_weight) for row in rows]
                result[d.name] = F.pad(ends[0], (0, 1)) + F.pad(ends[1], (1, 0))
                continue
            result[d.name] = rows[0]
            if rule is not None and not isinstance(rule, Tensor) and d.name in wanted:
                result[d.name] = result[d.name] + of_weight @ quadrature_slopes(rule, p)
            if isinstance(rule, Tensor):
                result["quadrature"] = of_weight
        return {name: result[name] for name in ("y", *wanted)}
