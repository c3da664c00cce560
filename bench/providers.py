"""What is timed: our dataflows, the dense layers, and other ways to the same weight.

| provider | what it is |
|---|---|
| auto, materialize, factored, fused | ours: weights sampled at points, cubic convolution |
| auto, cells | ours: weights integrated over cells, cubic B-splines |
| dense | the ordinary layer of the discretized size: the floor of every way that makes its weight |
| dense, node size | the ordinary layer of the size of the nodes: the floor of the ways that multiply with the nodes |
| grid_sample | the authors' dataflow in eager: sample the nodes bicubically on the grid of both partitions, multiply \
by the quadrature element by element, run the ordinary layer |
| grid_sample, compiled | the same under torch.compile |
| TorchIntegral | the authors' package, if it is installed |
| two products | the separable way with PyTorch alone: two products with dense sampling matrices, the ordinary layer |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import integral_nn as inn
from bench import torch_integral
from inn_kernels import cost, dispatch
from inn_kernels.taps import Taps, taps_for

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of outputs and gradients against float64, as norms
GRID_TOLERANCE = 300  # times that: grid_sample keeps positions in float32, and errs with the number of nodes


POINTS = {"quadrature": "midpoint", "kernel": "cubic"}
CELLS = {"quadrature": "cells", "kernel": "bspline"}
"""The rules of networks: points, and cells in the basis that hears most nodes."""


@dataclass(frozen=True)
class Case:
    """One layer: a convolution (image > 0) or a linear layer, nodes [out, in] at points [out, in]."""

    nodes: tuple[int, int]
    points: tuple[int, int]
    batch: int
    kernel: int = 1
    image: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def op(self) -> str:
        """The kind of layer."""
        return "conv2d" if self.image else "linear"

    @property
    def weight(self) -> str:
        """Nodes and points as the tables print them."""
        kernel = f" {self.kernel}x{self.kernel}" if self.image else ""
        return f"{_sides(self.nodes)} nodes at {_sides(self.points)}{kernel}"

    @property
    def shape(self) -> str:
        """The case as the tables print it."""
        image = f" on {self.image}x{self.image}" if self.image else ""
        return f"{self.weight}{image}, batch {self.batch}"

    @property
    def offsets(self) -> int:
        """Kernel positions."""
        return self.kernel**2

    def work(self, training: bool) -> cost.Shape:
        """The sizes that the cost model counts."""
        rows = self.batch * (self.image**2 if self.image else 1)
        sizes = (rows, *self.points, *self.nodes, self.offsets, 4, self.dtype.itemsize)
        return cost.Shape(*sizes, convolution=self.image > 0, training=training)

    def kernel_shape(self) -> list[int]:
        """Dimensions of a weight after the first two."""
        return [self.kernel] * 2 if self.image else []

    def weight_bytes(self) -> int:
        """Bytes a sampler reads and writes: float32 nodes and the discrete weight in the compute dtype."""
        nodes, points = self.nodes[0] * self.nodes[1], self.points[0] * self.points[1]
        return self.offsets * (4 * nodes + self.dtype.itemsize * points)


def _sides(sizes: tuple[int, int]) -> str:
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]}x{sizes[1]}"


def linear(nodes: int, share: float, batch: int, dtype: torch.dtype = torch.float32) -> Case:
    """A square linear layer of `share` as many points as nodes."""
    points = round(share * nodes)
    return Case((nodes, nodes), (points, points), batch, dtype=dtype)


def conv(
    channels: int | tuple[int, int],  # nodes: of both sides, or [out, in]
    kernel: int,
    image: int,
    batch: int,
    share: float = 0.75,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """A convolution with the padding that keeps the image's size."""
    out_nodes, in_nodes = channels if isinstance(channels, tuple) else (channels, channels)
    points = (round(share * out_nodes), round(share * in_nodes))
    return Case((out_nodes, in_nodes), points, batch, kernel, image, dtype)


# Weights ---------------------------------------------------------------------------------------------------------


def grid_sample_weight(nodes: Tensor, out_points: Tensor, in_points: Tensor, quadrature: Tensor) -> Tensor:
    """W_q by bicubic grid_sample. nodes [M_out, M_in] or [M_out, M_in, k, k] -> [K, L, ...]."""
    offsets = nodes.shape[2:]
    image = nodes.reshape(*nodes.shape[:2], -1).permute(2, 0, 1).unsqueeze(0)  # [1, T, M_out, M_in]
    rows, columns = torch.meshgrid(2 * out_points - 1, 2 * in_points - 1, indexing="ij")
    grid = torch.stack([columns, rows], -1).unsqueeze(0)  # [1, K, L, (x, y)]
    sampled = F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=True)
    weight = sampled[0] * quadrature  # [T, K, L]
    return weight.permute(1, 2, 0).reshape(*weight.shape[1:], *offsets)


def _grid_sample_bias(bias: Tensor, points: Tensor) -> Tensor:
    grid = torch.stack([2 * points - 1, torch.zeros_like(points)], -1).reshape(1, 1, -1, 2)
    image = bias.reshape(1, 1, 1, -1)
    return F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=True).flatten()


def two_product_weight(nodes: Tensor, out_matrix: Tensor, in_matrix: Tensor) -> Tensor:
    """W_q by two dense matrix products. nodes [M_out, M_in, *kernel], matrices [K, M_out] and [L, M_in]."""
    points, inputs = out_matrix.shape[0], nodes.shape[1]
    tall = (out_matrix @ nodes.flatten(1)).view(points, inputs, -1).transpose(1, 2).reshape(-1, inputs)  # [K T, M_in]
    weight = (tall @ in_matrix.t()).view(points, -1, in_matrix.shape[0])  # [K, T, L]
    return weight.transpose(1, 2).reshape(points, -1, *nodes.shape[2:])


def dense_taps(taps: Taps) -> Tensor:
    """The sampling matrix [K, M] that taps are the rows of."""
    width = taps.weight.shape[1]
    matrix = taps.weight.new_zeros(taps.points, max(taps.nodes, width))
    matrix.scatter_add_(1, taps.start[:, None].long() + torch.arange(width, device=matrix.device), taps.weight)
    return matrix[:, : taps.nodes].contiguous()


# Layers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Provider:
    """One way to run a layer: a function of (x, weight, bias) and what it is given."""

    layer: Callable[[Tensor, Tensor, Tensor], Tensor]
    x: Tensor
    weight: Tensor
    bias: Tensor
    exact: Callable[[Tensor, Tensor, Tensor], Tensor]  # the same, to be run in float64
    tolerance: float

    def step(self, training: bool) -> Callable[[], object]:
        """A forward pass, or forward and backward with gradients of x, weight and bias."""
        if not training:

            def forward() -> object:
                with torch.no_grad():
                    return self.layer(self.x, self.weight, self.bias)

            return forward
        inputs = [t.detach().clone().requires_grad_() for t in (self.x, self.weight, self.bias)]
        grad = self.cotangent()

        def step() -> object:
            for tensor in inputs:
                tensor.grad = None
            self.layer(*inputs).backward(grad)
            return None

        return step

    def cotangent(self) -> Tensor:
        """The gradient that comes in from above."""
        with torch.no_grad():
            y = self.layer(self.x, self.weight, self.bias)
        return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, y.dtype)

    def errors(self, exact: Sequence[Tensor]) -> tuple[float, float]:
        """Relative errors of the output, and of the worst of the output and the three gradients."""
        found = results(self.layer, (self.x, self.weight, self.bias), self.cotangent())
        each = [relative_error(value, true) for value, true in zip(found, exact)]
        return each[0], max(each)


def results(layer: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Output and gradients of a layer."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = layer(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def relative_error(value: Tensor, true: Tensor) -> float:
    """|value - true| / |true|, in float64."""
    return float((value.double() - true).norm() / true.norm())


def layer_names(case: Case, dataflows: Sequence[str], compiled: bool, device: str = "cpu") -> list[str]:
    """The providers of one layer: all but those that would take longer than the case is worth."""
    names = ["dense", "dense, node size", *dataflows, "auto, cells"]
    slow = ["two products", "grid_sample", *([torch_integral.NAME] if torch_integral.installed() else [])]
    names += [name for name in slow if device != "cpu" or modelled_seconds(name, case) < 2]
    return [*names, "grid_sample, compiled"] if compiled else names


def layer_providers(case: Case, names: Sequence[str], device: str = "cpu") -> dict[str, Provider]:
    """Providers of one layer. Weights and nodes are float32; a narrower dtype means autocast and such activations."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    (out_nodes, in_nodes), (out_points, in_points) = case.nodes, case.points
    scale, size = float(in_nodes - 1), [case.image] * 2 if case.image else []
    nodes = random(out_nodes, in_nodes, *case.kernel_shape()) / (in_nodes * case.offsets) ** 0.5
    bias = random(out_nodes)
    x = random(case.batch, in_points, *size).to(case.dtype)
    wide_x = random(case.batch, in_nodes, *size).to(case.dtype)
    weight, dense_bias = inn.discretize(nodes, out_points, in_points, scale=scale), inn.discretize(bias, out_points)
    rows, columns = (inn.uniform_partition(n, device=device) for n in case.points)
    quadrature = inn.quadrature_weights("trapezoid", columns) * scale
    in_taps = taps_for(in_points, in_nodes, weighted=True, scale=scale, device=device)
    out_matrix, in_matrix = dense_taps(taps_for(out_points, out_nodes, device=device)), dense_taps(in_taps)
    padding = case.kernel // 2

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=padding) if case.image else F.linear(x, weight, bias)

    def integral(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        dataflow, *cells = name.split(", ")
        rule: dict[str, Any] = {"scale": scale, "dataflow": dataflow} | (CELLS if cells else {})

        def run(x: Tensor, nodes: Tensor, bias: Tensor) -> Tensor:
            if not case.image:
                return inn.integral_linear(x, nodes, bias, *case.points, **rule)
            return inn.integral_conv2d(x, nodes, bias, *case.points, padding=padding, **rule)

        return run

    def through_grid_sample(x: Tensor, nodes: Tensor, bias: Tensor) -> Tensor:
        return plain(x, grid_sample_weight(nodes, rows, columns, quadrature), _grid_sample_bias(bias, rows))

    def two_products(x: Tensor, nodes: Tensor, bias: Tensor) -> Tensor:
        return plain(x, two_product_weight(nodes, out_matrix, in_matrix), out_matrix @ bias)

    def through_torch_integral() -> Provider:
        sample, sample_bias = torch_integral.weights(case.nodes, case.points, case.kernel_shape())

        def run(x: Tensor, nodes: Tensor, bias: Tensor) -> Tensor:
            return plain(x, sample(nodes), sample_bias(bias))

        return Provider(run, x, torch_integral.as_they_keep_it(nodes), bias, exact, loose)

    exact, tolerance = integral("materialize"), TOLERANCE[case.dtype]
    loose = GRID_TOLERANCE * tolerance
    found = {}
    for name in names:
        if name == "dense":
            provider = Provider(plain, x, weight, dense_bias, plain, tolerance)
        elif name == "dense, node size":
            provider = Provider(plain, wide_x, nodes, bias, plain, tolerance)
        elif name == "two products":
            provider = Provider(two_products, x, nodes, bias, exact, tolerance)
        elif name == "grid_sample":
            provider = Provider(through_grid_sample, x, nodes, bias, exact, loose)
        elif name == torch_integral.NAME:
            provider = through_torch_integral()
        elif name == "grid_sample, compiled":
            provider = Provider(
                torch.compile(through_grid_sample, fullgraph=True, dynamic=False), x, nodes, bias, exact, loose
            )
        else:
            true = integral("materialize, cells") if "cells" in name else exact
            provider = Provider(integral(name), x, nodes, bias, true, tolerance)
        found[name] = provider if case.dtype == torch.float32 else _autocast(provider, device, case.dtype)
    return found


def _autocast(provider: Provider, device: str, compute: torch.dtype) -> Provider:
    def run(*arguments: Tensor) -> Tensor:
        with torch.autocast(device, compute):
            return provider.layer(*arguments)

    return replace(provider, layer=run)


SLOW = ("grid_sample", "grid_sample, compiled", "two products", "grid_sample backward", torch_integral.NAME)
"""Providers that take several times as long as the others, and get rounds of their own."""


def checked(providers: dict[str, Provider]) -> dict[str, tuple[float, float]]:
    """Errors of each provider's output and of its whole step against float64.

    Raises:
        ArithmeticError: an error beyond the tolerance: what is wrong is not timed.
    """
    errors: dict[str, tuple[float, float]] = {}
    exact: dict[tuple, list[Tensor]] = {}
    for name, provider in providers.items():
        kind = (provider.exact, provider.x.data_ptr(), provider.weight.data_ptr())
        if kind not in exact:
            inputs = [t.double() for t in (provider.x, provider.weight, provider.bias)]
            exact[kind] = results(provider.exact, inputs, provider.cotangent().double())
        errors[name] = provider.errors(exact[kind])
        if not max(errors[name]) <= provider.tolerance:
            raise ArithmeticError(f"{name} is off by {max(errors[name]):.1e}, more than {provider.tolerance:.0e}")
    return errors


def counted(name: str, case: Case, training: bool, device: str = "cpu") -> cost.Cost:
    """Bytes and operations of a provider by the formulas of the cost model."""
    shape, machine = case.work(training), dispatch.machine(device)
    if name == "dense":
        return cost.dense(shape, machine)
    if name == "dense, node size":
        return cost.dense(shape._replace(out_points=shape.out_nodes, in_points=shape.in_nodes), machine)
    costs = cost.estimate(shape, machine, fusable=device == "cuda")
    if name in costs:
        return costs[name]
    if name.startswith("auto"):
        return min(costs.values(), key=lambda found: found.seconds)
    weights = case.points[0] * case.points[1] * case.offsets
    passes = 2 if training else 1
    base = costs["materialize"]
    if name == "two products":
        tall = case.points[0] * case.nodes[1] * case.offsets  # W after the first product
        flops = 2 * tall * (case.nodes[0] + case.points[1])
        return base._replace(bytes=base.bytes + passes * 8 * tall, flops=base.flops + passes * flops)
    # grid_sample: 16 taps and their weights; the grid is read, the quadrature and the layout are passes of their own.
    extra, grid = 2 * (weights + weights) * case.dtype.itemsize, 8 * case.points[0] * case.points[1]
    return base._replace(bytes=base.bytes + passes * (extra + grid), flops=base.flops + passes * 2 * 16 * weights)


def modelled_seconds(name: str, case: Case) -> float:
    """A step of one of the slow ways on a small CPU, to leave out what would take all the time there is."""
    weights = case.points[0] * case.points[1] * case.offsets
    return counted(name, case, True).flops / 120e9 if name == "two products" else 90e-9 * weights
