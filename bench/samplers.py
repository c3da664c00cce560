"""What is timed below and above a layer: the sampling alone, and several layers one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import integral_nn as inn
from bench.harness import Runs
from bench.providers import CELLS, GRID_TOLERANCE, TOLERANCE, Case, grid_sample_weight, modelled_seconds, relative_error


def samplers(case: Case, device: str = "cpu") -> tuple[Runs, dict[str, float]]:
    """The sampling alone: discretize, its adjoint, both by grid_sample, and plain copies of as many bytes."""
    generator = torch.Generator().manual_seed(0)
    compute, kernel = case.dtype, case.kernel_shape()
    nodes = torch.randn([*case.nodes, *kernel], generator=generator).to(device)
    grad = torch.randn([*case.points, *kernel], generator=generator).to(device, compute)
    rows, columns = (inn.uniform_partition(n, device=device) for n in case.points)
    quadrature = inn.quadrature_weights("trapezoid", columns)
    half = torch.randn(case.weight_bytes() // 8, generator=generator).to(device)  # read once, written once
    there = torch.empty_like(half)
    leaf = nodes.clone().requires_grad_()

    def backward(weight: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(weight, leaf, grad.to(weight.dtype), retain_graph=True)

    runs: Runs = {"copy": half.clone, "copy in place": lambda: there.copy_(half)}
    errors = {"copy": 0.0, "copy in place": 0.0}
    wide = nodes.double().requires_grad_()

    def add(suffix: str, rule: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Both ways by one rule. Returns what is exact of each."""
        ours = inn.discretize(leaf, *case.points, dtype=compute, **rule)
        runs[f"discretize{suffix}"] = lambda: inn.discretize(nodes, *case.points, dtype=compute, **rule)
        runs[f"adjoint{suffix}"] = backward(ours)
        exact = inn.discretize(wide, *case.points, **rule)
        (gradient,) = torch.autograd.grad(exact, wide, grad.double())
        (found,) = torch.autograd.grad(ours, leaf, grad, retain_graph=True)
        errors[f"discretize{suffix}"] = relative_error(ours.detach(), exact.detach())
        errors[f"adjoint{suffix}"] = relative_error(found, gradient)
        return exact.detach(), gradient

    exact, exact_gradient = add("", {})
    add(", cells", CELLS)
    limits = dict.fromkeys(errors, TOLERANCE[compute])
    if device != "cpu" or modelled_seconds("grid_sample", case) < 2:
        theirs = grid_sample_weight(leaf, rows, columns, quadrature)
        runs["grid_sample"] = lambda: grid_sample_weight(nodes, rows, columns, quadrature)
        runs["grid_sample backward"] = backward(theirs)
        errors["grid_sample"] = relative_error(theirs.detach(), exact)
        (their_gradient,) = torch.autograd.grad(theirs, leaf, grad.to(theirs.dtype), retain_graph=True)
        errors["grid_sample backward"] = relative_error(their_gradient, exact_gradient)
        limits |= dict.fromkeys(("grid_sample", "grid_sample backward"), GRID_TOLERANCE * TOLERANCE[compute])
    wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
    if wrong:
        raise ArithmeticError(f"errors beyond their tolerance: {wrong}")
    return runs, errors


# Stacks ----------------------------------------------------------------------------------------------------------


def stack(case: Case, layers: int, device: str = "cpu") -> Runs:
    """Steps of as many square layers one after the other: dense, ours, and through grid_sample."""
    generator = torch.Generator().manual_seed(0)
    size, scale = case.points[0], float(case.nodes[1] - 1)
    shape = [layers, *case.nodes]
    nodes = [(n / case.nodes[1] ** 0.5).to(device).requires_grad_() for n in torch.randn(shape, generator=generator)]
    weights = [inn.discretize(n.detach(), size, size, scale=scale).requires_grad_() for n in nodes]
    x = torch.randn(case.batch, size, generator=generator).to(device)
    points = inn.uniform_partition(size, device=device)
    quadrature = inn.quadrature_weights("trapezoid", points) * scale

    def step(layer: Callable[[Tensor, Tensor], Tensor], own: list[Tensor]) -> Callable[[], object]:
        def run() -> object:
            y = x
            for weight in own:
                y = F.relu(layer(y, weight))
            y.sum().backward()
            for weight in own:
                weight.grad = None
            return None

        return run

    return {
        "dense": step(F.linear, weights),
        "auto": step(lambda y, n: inn.integral_linear(y, n, None, size, size, scale=scale), nodes),
        "grid_sample": step(lambda y, n: F.linear(y, grid_sample_weight(n, points, points, quadrature)), nodes),
    }
