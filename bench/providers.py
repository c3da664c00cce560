"""What is timed: our dataflows, the dense layers, and the way through grid_sample.

`grid_sample` here is the eager dataflow of the paper written with PyTorch's own operators: sample the nodes bicubically
on the grid of both partitions, multiply by the quadrature element by element, run the ordinary layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import integral_nn as inn


@dataclass(frozen=True)
class Case:
    """One layer: a convolution (image > 0) or a linear layer, M nodes at K points on both sides."""

    nodes: int
    points: int
    batch: int
    kernel: int = 1
    image: int = 0

    @property
    def op(self) -> str:
        return "conv2d" if self.image else "linear"

    @property
    def shape(self) -> str:
        """As the tables print it."""
        image = f" {self.kernel}x{self.kernel} on {self.image}x{self.image}" if self.image else ""
        return f"{self.nodes} nodes at {self.points}{image}, batch {self.batch}"

    @property
    def offsets(self) -> int:
        return self.kernel**2 if self.image else 1

    def node_shape(self) -> list[int]:
        return [self.nodes, self.nodes] + ([self.kernel, self.kernel] if self.image else [])

    def weight_bytes(self, compute: torch.dtype = torch.float32) -> int:
        """Bytes a sampler reads and writes: float32 nodes and the discrete weight in the compute dtype."""
        return self.offsets * (4 * self.nodes**2 + compute.itemsize * self.points**2)

    def flops(self, size: int, training: bool) -> int:
        """Of the dense layer with `size` channels on both sides."""
        rows = self.batch * (self.image**2 if self.image else 1)
        return (3 if training else 1) * 2 * rows * size * size * self.offsets


def grid_sample_weight(nodes: Tensor, out_points: Tensor, in_points: Tensor, quadrature: Tensor) -> Tensor:
    """W_q by bicubic grid_sample. nodes [M_out, M_in] or [M_out, M_in, k, k] -> [K, L, ...]."""
    offsets = nodes.shape[2:]
    image = nodes.reshape(*nodes.shape[:2], -1).permute(2, 0, 1).unsqueeze(0)  # [1, T, M_out, M_in]
    rows, columns = torch.meshgrid(2 * out_points - 1, 2 * in_points - 1, indexing="ij")
    grid = torch.stack([columns, rows], -1).unsqueeze(0)  # [1, K, L, (x, y)]
    sampled = F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=True)
    weight = sampled[0] * quadrature  # [T, K, L]
    return weight.permute(1, 2, 0).reshape(*weight.shape[1:], *offsets)


def layer_steps(
    case: Case,
    dataflows: tuple[str, ...],
    training: bool,
    device: str = "cpu",
    compute: torch.dtype = torch.float32,
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Providers of one layer (a forward pass, or forward and backward), and the relative error of each output.

    Weights and nodes are float32; a narrower `compute` means autocast, and activations of that dtype.
    """
    generator = torch.Generator().manual_seed(0)
    scale = float(case.nodes - 1)
    nodes = torch.randn(case.node_shape(), generator=generator) / (case.nodes * case.offsets) ** 0.5
    bias = torch.randn(case.nodes, generator=generator)
    size = [case.image] * 2 if case.image else []
    x = torch.randn([case.batch, case.points, *size], generator=generator)
    nodes, bias, x = nodes.to(device), bias.to(device), x.to(device, compute)
    weight = inn.discretize(nodes, case.points, case.points, scale=scale)
    dense_bias = inn.discretize(bias, case.points)
    points = inn.uniform_partition(case.points, device=device)
    quadrature = inn.quadrature_weights("trapezoid", points) * scale

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=case.kernel // 2) if case.image else F.linear(x, weight, bias)

    def integral(dataflow: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def run(x: Tensor, nodes: Tensor, bias: Tensor) -> Tensor:
            if case.image:
                return inn.integral_conv2d(
                    x, nodes, bias, case.points, case.points, scale=scale, padding=case.kernel // 2, dataflow=dataflow
                )
            return inn.integral_linear(x, nodes, bias, case.points, case.points, scale=scale, dataflow=dataflow)

        return run

    def through_grid_sample(x: Tensor, nodes: Tensor, bias: Tensor) -> Tensor:
        sampled_bias = F.grid_sample(
            bias.reshape(1, 1, 1, -1),
            torch.stack([2 * points - 1, torch.zeros_like(points)], -1).reshape(1, 1, -1, 2),
            mode="bicubic",
            padding_mode="border",
            align_corners=True,
        ).flatten()
        return plain(x, grid_sample_weight(nodes, points, points, quadrature), sampled_bias)

    layers = {"dense": (plain, weight, dense_bias)}
    layers |= {dataflow: (integral(dataflow), nodes, bias) for dataflow in dataflows}
    layers["grid_sample"] = (through_grid_sample, nodes, bias)

    steps: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    with torch.no_grad():
        exact = integral("materialize")(x.double(), nodes.double(), bias.double())
    for name, (layer, own_weight, own_bias) in layers.items():
        layer = _autocast(layer, device, compute)
        with torch.no_grad():
            error = (layer(x, own_weight, own_bias).double() - exact).norm() / exact.norm()
        errors[name] = float(error)
        steps[name] = _step(layer, x, own_weight, own_bias, training)
    return steps, errors


def _autocast(layer: Callable, device: str, compute: torch.dtype) -> Callable:
    if compute == torch.float32:
        return layer

    def run(*arguments: Tensor) -> Tensor:
        with torch.autocast(device, compute):
            return layer(*arguments)

    return run


def _step(layer: Callable, x: Tensor, weight: Tensor, bias: Tensor, training: bool) -> Callable[[], object]:
    if not training:

        def forward() -> object:
            with torch.no_grad():
                return layer(x, weight, bias)

        return forward
    x, weight, bias = (t.detach().clone().requires_grad_() for t in (x, weight, bias))
    with torch.no_grad():
        grad = torch.randn_like(layer(x, weight, bias))

    def step() -> object:
        x.grad = weight.grad = bias.grad = None
        layer(x, weight, bias).backward(grad)
        return None

    return step


def samplers(
    case: Case, device: str = "cpu", compute: torch.dtype = torch.float32
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """The sampling alone: discretize, its adjoint, both by grid_sample, and plain copies of as many bytes."""
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randn(case.node_shape(), generator=generator).to(device)
    grad = torch.randn([case.points] * 2 + case.node_shape()[2:], generator=generator).to(device, compute)
    points = inn.uniform_partition(case.points, device=device)
    quadrature = inn.quadrature_weights("trapezoid", points)
    leaf = nodes.clone().requires_grad_()
    ours = inn.discretize(leaf, case.points, case.points, dtype=compute)
    theirs = grid_sample_weight(leaf, points, points, quadrature)
    half = torch.randn(case.weight_bytes(compute) // 8, generator=generator).to(device)  # read once, written once
    there = torch.empty_like(half)

    def backward(weight: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(weight, leaf, grad.to(weight.dtype), retain_graph=True)

    runs = {
        "copy": half.clone,
        "copy in place": lambda: there.copy_(half),
        "discretize": lambda: inn.discretize(nodes, case.points, case.points, dtype=compute),
        "adjoint": backward(ours),
        "grid_sample": lambda: grid_sample_weight(nodes, points, points, quadrature),
        "grid_sample backward": backward(theirs),
    }
    wide = nodes.double().requires_grad_()
    exact = inn.discretize(wide, case.points, case.points)
    (exact_gradient,) = torch.autograd.grad(exact, wide, grad.double())

    def error(value: Tensor, true: Tensor) -> float:
        return float((value.double() - true).norm() / true.norm())

    errors = {
        "copy": 0.0,
        "copy in place": 0.0,
        "discretize": error(ours.detach(), exact.detach()),
        "adjoint": error(torch.autograd.grad(ours, leaf, grad, retain_graph=True)[0], exact_gradient),
        "grid_sample": error(theirs.detach(), exact.detach()),
        "grid_sample backward": error(torch.autograd.grad(theirs, leaf, grad, retain_graph=True)[0], exact_gradient),
    }
    return runs, errors
