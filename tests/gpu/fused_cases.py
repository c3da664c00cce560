"""Cases, oracle and tolerance of the fused kernels' tests: in Triton's interpreter here, unchanged on a GPU.

The oracle multiplies by dense matrices: S [K, M] with S[k, start[k] + t] = weight[k, t], whatever the number of taps.
The rule for tolerance and its floors are those of `sampler_cases`.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from inn_kernels.quadrature import weights
from inn_kernels.taps import Taps, make_taps
from sampler_cases import DEVICE, FLOOR

GOLDEN = os.path.join(os.path.dirname(os.path.dirname(__file__)), "golden")
DTYPES = (
    (torch.float32, torch.float32),  # x, nodes
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
)


class Layer(NamedTuple):
    """Tensors of an integral layer."""

    x: Tensor  # [B, L, *size]
    nodes: Tensor  # [M_out, M_in, *kernel]
    bias: Tensor | None  # [M_out]
    out: Taps
    in_: Taps

    @property
    def taps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """out_start, out_weight, in_start, in_weight."""
        return self.out.start, self.out.weight, self.in_.start, self.in_.weight

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """S_out and S_in for an oracle in `dtype`."""
        return dense(self.out, dtype), dense(self.in_, dtype)


def points(n: int, clustered: bool) -> Tensor:
    """n increasing points: uniform, or crowded towards 0. float64 [n]."""
    if clustered:
        return torch.rand(n, dtype=torch.float64).sort().values ** 3
    return torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.full([1], 0.3, dtype=torch.float64)


def taps_of(partition: Tensor, nodes: int, weighted: bool) -> Taps:
    """Taps as a layer has them: random quadrature weights on the input axis."""
    multiplier = torch.rand(partition.shape[0]) + 0.5 if weighted else None
    return on_device(make_taps(partition, nodes, multiplier=multiplier, dtype=torch.float32))


def window_taps(start: Tensor, nodes: int, taps: int) -> Taps:
    """Random weights of `taps` neighbours from each start on, as far as they exist."""
    weight = torch.randn(start.shape[0], taps) * (start[:, None] + torch.arange(taps) < nodes)
    return on_device(Taps(start.int(), weight, nodes))


def windows(kind: str, points: int, nodes: int, taps: int) -> Taps:
    """Windows that advance evenly, start anywhere, or crowd: most at a few starts."""
    last = max(nodes - taps, 0)
    if kind == "even":
        start = torch.linspace(0, last, points).round()
    else:
        start = torch.rand(points).sort().values ** (1 if kind == "random" else 5) * (last + 1)
    return window_taps(start.clamp(max=last).floor(), nodes, taps)


def cell_taps(points: int, nodes: int) -> Taps:
    """The means of a cubic B-spline over equal cells: each sees the nodes whose function reaches into it."""
    edges = torch.linspace(0, 1, points + 1, dtype=torch.float64) * nodes
    t = (edges[:, None] - torch.arange(-2, nodes + 2, dtype=torch.float64) - 0.5).clamp(-2, 2)
    inner, outer = 0.5 + t * (2 / 3 - t**2 / 3 + t**2 * t.abs() / 8), (2 - t.abs()) ** 4 / 24
    running = torch.where(t.abs() <= 1, inner, torch.where(t < 0, outer, 1 - outer))  # the integral up to each edge
    parts = running.diff(dim=0) * points / nodes
    matrix = torch.zeros(points, nodes, dtype=torch.float64)
    matrix.index_add_(1, torch.arange(-2, nodes + 2).clamp(0, nodes - 1), parts)  # beyond an end its node goes on
    heard = matrix > 1e-12
    taps = int(heard.sum(1).max())
    start = heard.int().argmax(1).clamp(max=nodes - taps)
    weight = (matrix * heard).gather(1, start[:, None] + torch.arange(taps))
    return on_device(Taps(start.int(), weight.float(), nodes))


def dense(taps: Taps, dtype: torch.dtype = torch.float64) -> Tensor:
    """S [K, M], in float64 or as wide as the weights are."""
    matrix = taps.weight.new_zeros(taps.points, taps.nodes + taps.weight.shape[1])
    index = taps.start.long()[:, None] + torch.arange(taps.weight.shape[1], device=taps.start.device)
    matrix = matrix.scatter(1, index, taps.weight)[:, : taps.nodes]
    return matrix.double() if dtype == torch.float64 else matrix


def on_device(taps: Taps) -> Taps:
    """Taps where the kernels run."""
    return Taps(taps.start.to(DEVICE), taps.weight.to(DEVICE), taps.nodes)


def error(value: Tensor, exact: Tensor) -> float:
    """Largest error relative to the largest value; infinite where anything is NaN."""
    worst = (value.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)
    return worst.nan_to_num(nan=float("inf")).item()


def check(value: Tensor, eager: Tensor, exact: Tensor, dtype: torch.dtype, what: str) -> None:
    """The one rule for tolerance."""
    assert value.shape == exact.shape, what
    if exact.numel() == 0:
        return
    found, allowed = error(value, exact), 2 * error(eager, exact) + FLOOR[dtype]
    assert found <= allowed, f"{what}: error {found:.2e}, allowed {allowed:.2e}"


def weight(layer: Layer, dtype: torch.dtype) -> Tensor:
    """W_q = S_out nodes S_in^T in `dtype`."""
    out, in_ = layer.matrices(dtype)
    return torch.einsum("ki,ij...,lj->kl...", out, layer.nodes.to(out.dtype), in_).to(dtype)


def sampled_bias(layer: Layer, dtype: torch.dtype) -> Tensor | None:
    """The bias on the output partition."""
    if layer.bias is None:
        return None
    out, _ = layer.matrices(dtype)
    return (out @ layer.bias.to(out.dtype)).to(dtype)


def node_gradients(layer: Layer, d_weight: Tensor, d_bias: Tensor) -> tuple[Tensor, Tensor]:
    """d_nodes and the gradient of the bias nodes from those of the sampled weight and bias."""
    dtype = torch.float64 if d_weight.dtype == torch.float64 else layer.nodes.dtype
    out, in_ = layer.matrices(d_weight.dtype)
    d_nodes = torch.einsum("ki,kl...,lj->ij...", out, d_weight.to(out.dtype), in_)
    return d_nodes.to(dtype), (d_bias.to(out.dtype) @ out).to(dtype)


def golden_layer(golden: dict[str, Tensor]) -> Layer:
    """The layer of a golden file, in float32."""
    out_nodes, in_nodes = golden["nodes"].shape[:2]
    q = weights("trapezoid", golden["in_partition"]) * golden["scale"]
    out = on_device(make_taps(golden["out_partition"], out_nodes, dtype=torch.float32))
    in_ = on_device(make_taps(golden["in_partition"], in_nodes, multiplier=q, dtype=torch.float32))
    x, nodes, bias = (golden[key].float().to(DEVICE) for key in ("x", "nodes", "bias"))
    return Layer(x, nodes, bias, out, in_)
