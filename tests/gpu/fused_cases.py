"""Cases, reference and tolerance of the fused kernels' tests: in Triton's interpreter here, unchanged on a GPU.

The rule for tolerance and its floors are those of `sampler_cases`.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from inn_kernels import reference
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

    @property
    def taps64(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same in float64."""
        return self.out.start, self.out.weight.double(), self.in_.start, self.in_.weight.double()


def points(n: int, clustered: bool) -> Tensor:
    """n increasing points: uniform, or crowded towards 0. float64 [n]."""
    if clustered:
        return torch.rand(n, dtype=torch.float64).sort().values ** 3
    return torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.full([1], 0.3, dtype=torch.float64)


def taps_of(partition: Tensor, nodes: int, weighted: bool) -> Taps:
    """Taps as a layer has them: random quadrature weights on the input axis."""
    multiplier = torch.rand(partition.shape[0]) + 0.5 if weighted else None
    return on_device(make_taps(partition, nodes, multiplier=multiplier, dtype=torch.float32))


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
    """W_q in `dtype`, by the reference."""
    taps = layer.taps64 if dtype == torch.float64 else layer.taps
    nodes = layer.nodes.double() if dtype == torch.float64 else layer.nodes
    return reference.discretize(nodes, *taps, dtype)


def sampled_bias(layer: Layer, dtype: torch.dtype) -> Tensor | None:
    """The bias on the output partition."""
    if layer.bias is None:
        return None
    start, tap = (layer.taps64 if dtype == torch.float64 else layer.taps)[:2]
    return reference.interpolate(layer.bias.to(tap.dtype), start, tap, 0, dtype)


def node_gradients(layer: Layer, d_weight: Tensor, d_bias: Tensor) -> tuple[Tensor, Tensor]:
    """d_nodes and the gradient of the bias nodes from those of the sampled weight and bias."""
    out_nodes, in_nodes = layer.nodes.shape[:2]
    exact = d_weight.dtype == torch.float64
    taps, dtype = (layer.taps64, torch.float64) if exact else (layer.taps, layer.nodes.dtype)
    d_nodes = reference.discretize_adjoint(d_weight, *taps, out_nodes, in_nodes, dtype)
    return d_nodes, reference.spread(d_bias.to(taps[1].dtype), *taps[:2], out_nodes, 0, dtype)


def golden_layer(golden: dict[str, Tensor]) -> Layer:
    """The layer of a golden file, in float32."""
    out_nodes, in_nodes = golden["nodes"].shape[:2]
    q = weights("trapezoid", golden["in_partition"]) * golden["scale"]
    out = on_device(make_taps(golden["out_partition"], out_nodes, dtype=torch.float32))
    in_ = on_device(make_taps(golden["in_partition"], in_nodes, multiplier=q, dtype=torch.float32))
    x, nodes, bias = (golden[key].float().to(DEVICE) for key in ("x", "nodes", "bias"))
    return Layer(x, nodes, bias, out, in_)
