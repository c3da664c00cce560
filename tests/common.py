"""What the tests share: cases, partitions, the operator straight from its definition, and the one tolerance rule.

    err(kernel, reference64) <= 2 * err(eager in the same dtype, reference64) + floor[dtype]

`err` is the largest error over the largest value; `reference64` is the definition in float64, eager the same
definition in the dtype under test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inn_kernels import ops, quadrature, reference

GOLDEN = Path(__file__).parent / "golden"
QUADRATURES = ("left", "right", "trapezoid", "midpoint", "simpson", "gauss-legendre")
BOUNDARIES = ("clamp", "keys")
DATAFLOWS = ("materialize", "factored")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FLOOR = {dtype: 2 * torch.finfo(dtype).eps for dtype in DTYPES} | {torch.float64: 1e-13}  # eager is the reference there


class Case(NamedTuple):
    """Nodes [M, N], points [K, L]."""

    M: int
    N: int
    K: int
    L: int

    def __str__(self) -> str:
        return f"{self.M}x{self.N}to{self.K}x{self.L}"


CASES = (
    Case(7, 5, 11, 13),  # primes
    Case(17, 13, 17, 13),  # full size
    Case(1, 1, 2, 3),
    Case(2, 1, 1, 2),
    Case(3, 2, 5, 4),
    Case(4, 3, 3, 2),
    Case(5, 4, 2, 5),
    Case(3, 5, 97, 83),  # K >> M
    Case(101, 89, 3, 2),  # K << M
    Case(67, 64, 37, 48),
)
PARTITIONS = ("uniform", "random", "clustered")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def partition(kind: str, n: int, seed: int = 0) -> Tensor:
    """n points in float64: uniform, random gaps, or clustered: most points in a hundredth of [0, 1]. The last two are
    open (they leave room at 0 and 1 for a finite difference)."""
    if kind == "uniform":
        return quadrature.uniform_partition(n, dtype=torch.float64)
    gaps = torch.rand(n + 1, generator=generator(seed), dtype=torch.float64) + 0.3
    if kind == "clustered":
        gaps[1 : max(n - 1, 2)] *= 0.01
    return torch.cumsum(gaps / gaps.sum(), 0)[:-1]


# The definition ---------------------------------------------------------------------------------------------


def kernel_function(distance: Tensor, a: float = -0.75, kernel: str = "cubic") -> Tensor:
    """u of Eq. 5 (R. Keys 1981), the hat, the cubic B-spline, or the conservative basis."""
    d = distance.abs()
    if kernel == "linear":
        return (1 - d).clamp(min=0)
    if kernel == "bspline":
        return torch.where(d <= 1, 2 / 3 - d * d * (1 - d / 2), (2 - d).clamp(min=0) ** 3 / 6)
    if kernel == "conservative":  # of the running integral, known at edges 1/2, 3/2, .. from the node and interpolated
        return keys_slope(-d - 0.5) + keys_slope(-d - 1.5)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))


def keys_slope(distance: Tensor) -> Tensor:
    """u' of Keys' kernel, a = -1/2."""
    d = distance.abs()
    slope = torch.where(d <= 1, d * (9 * d - 10) / 2, torch.where(d < 2, -(3 * d * d - 10 * d + 8) / 2, 0.0))
    return slope * distance.sign()


def extension(nodes: int, boundary: str = "clamp") -> Tensor:
    """E [4, M]: the values of nodes -2, -1, M and M + 1 in terms of the M nodes there are."""
    before = {
        ("clamp", 1): ([1], [1]),
        ("clamp", 2): ([1], [1]),
        ("clamp", 3): ([1], [1]),
        ("keys", 1): ([1], [1]),
        ("keys", 2): ([3, -2], [2, -1]),
        ("keys", 3): ([6, -8, 3], [3, -3, 1]),
    }[boundary, min(nodes, 3)]
    ends = [torch.nn.functional.pad(torch.tensor(row).double(), (0, nodes - len(row))) for row in before]
    return torch.stack([*ends, ends[1].flip(0), ends[0].flip(0)])


def sampling_matrix(
    points: Tensor,
    nodes: int,
    a: float = -0.75,
    boundary: str = "clamp",
    *,
    centred: bool = False,
    kernel: str = "cubic",
) -> Tensor:
    """S [K, M] dense, float64, differentiable in the points: F(P[k]) = sum_i S[k, i] nodes[i]."""
    points = points.double()
    position = points * nodes - 0.5 if centred else points * (nodes - 1)
    node = torch.arange(nodes, dtype=torch.float64)
    outside = torch.tensor([-2, -1, nodes, nodes + 1], dtype=torch.float64)
    inner, outer = (kernel_function(position[:, None] - at, a, kernel) for at in (node, outside))
    return inner + outer @ extension(nodes, boundary)


def cell_matrix(
    edges: Tensor, nodes: int, a: float = -0.75, boundary: str = "clamp", *, kernel: str = "cubic"
) -> Tensor:
    """S [K, M] of the means over cells, float64: Gauss's rule on every stretch between knots, exact for cubics."""
    points, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(4))
    edges = edges.double()
    knots = torch.arange(1, 2 * nodes).double() / (2 * nodes)
    rows = []
    for low, high in zip(edges[:-1], edges[1:]):
        ends = torch.cat([low[None], knots[(knots > low) & (knots < high)], high[None]])
        half, middle = ends.diff() / 2, (ends[1:] + ends[:-1]) / 2
        at = (middle[:, None] + half[:, None] * points).flatten()
        values = sampling_matrix(at, nodes, a, boundary, centred=True, kernel=kernel)
        rows.append((half[:, None] * weights).flatten() @ values / (high - low))
    return torch.stack(rows)


def equal_edges(cells: int) -> Tensor:
    """The edges of equal cells, float64."""
    return torch.arange(cells + 1).double() / cells


def dense_taps(start: Tensor, weight: Tensor, nodes: int) -> Tensor:
    """S [K, M] dense from taps: S[k, start[k] + t] += weight[k, t]."""
    points, taps = weight.shape
    dense = weight.new_zeros(points, nodes + taps)
    index = start.long()[:, None] + torch.arange(taps)
    return dense.scatter_add(1, index, weight)[:, :nodes]


def eager_discretize(
    nodes: Tensor,
    out_partition: Tensor | None,
    in_partition: Tensor | None,
    *,
    quadrature: str | Tensor | Callable = "trapezoid",
    scale: float = 1.0,
    a: float = -0.75,
    boundary: str = "clamp",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """W_q = S_out nodes (scale q S_in)^T by dense matrices in `dtype`."""
    centred = isinstance(quadrature, str) and quadrature == "midpoint"
    weight = nodes.to(dtype)
    if in_partition is not None:
        q = rules_weights(quadrature, in_partition.double()).double() * scale
        s_in = sampling_matrix(in_partition, nodes.shape[1], a, boundary, centred=centred) * q[:, None]
        weight = torch.einsum("ij...,lj->il...", weight, s_in.to(dtype))
    if out_partition is not None:
        s_out = sampling_matrix(out_partition, nodes.shape[0], a, boundary, centred=centred)
        weight = torch.einsum("ki,i...->k...", s_out.to(dtype), weight)
    return weight


rules_weights = quadrature.weights


# Comparison -------------------------------------------------------------------------------------------------


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest error over largest value. NaN where either has a NaN."""
    assert value.shape == truth.shape, f"shape {list(value.shape)}, expected {list(truth.shape)}"
    if truth.numel() == 0:
        return 0.0
    difference = (value.detach().double() - truth.detach().double()).abs().max()
    return float(difference / truth.detach().double().abs().max().clamp(min=1e-300))


def relative_norm(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth|."""
    assert value.shape == truth.shape, f"shape {list(value.shape)}, expected {list(truth.shape)}"
    return float((value.detach().double() - truth.double()).norm() / truth.double().norm())


def assert_as_accurate(value: Tensor, eager: Tensor, truth: Tensor, name: str = "value") -> None:
    """The tolerance rule."""
    assert value.dtype == eager.dtype, f"{name} is {value.dtype}, expected {eager.dtype}"
    ours, theirs = relative_error(value, truth), relative_error(eager, truth)
    allowed = 2 * theirs + FLOOR[eager.dtype]
    assert ours <= allowed, f"{name}: error {ours:.2e}, eager {theirs:.2e}, allowed {allowed:.2e}"


def gradients(function: Callable[..., Tensor], inputs: Mapping[str, Tensor], seed: int = 7) -> dict[str, Tensor]:
    """The output ("value") and the gradient of <output, random> in every input, by name."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    value = function(**leaves)
    grad = rand(*value.shape, seed=seed, dtype=value.dtype)
    return {"value": value.detach(), **dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), grad)))}


def assert_gradients_as_accurate(
    ours: Callable[..., Tensor], eager: Callable[..., Tensor], inputs: Mapping[str, Tensor]
) -> None:
    """Value and every gradient of `ours` by the tolerance rule; `eager` is run in the inputs' dtypes and in float64."""
    got, dense = gradients(ours, inputs), gradients(eager, inputs)
    truth = gradients(eager, {name: value.double() for name, value in inputs.items()})
    for name in got:
        assert_as_accurate(got[name], dense[name], truth[name], name)


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Equal shapes and equal bits, NaN included."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    plain = (t.detach().clone(memory_format=torch.contiguous_format).view(torch.uint8) for t in (x, y))
    return torch.equal(*plain)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in memory layouts a caller may pass."""
    result = {"contiguous": x.contiguous(), "transposed": x.transpose(0, -1).contiguous().transpose(0, -1)}
    padded = x.new_full([*x.shape[:-1], 2 * x.shape[-1] + 3], float("nan"))
    padded[..., 1 : 2 * x.shape[-1] + 1 : 2] = x
    result["strided"] = padded[..., 1 : 2 * x.shape[-1] + 1 : 2]
    result["offset"] = torch.cat([x.new_full([1], float("nan")), x.flatten()])[1:].view(x.shape)
    if x.dim() == 4:
        result["channels_last"] = x.contiguous(memory_format=torch.channels_last)
    if x.dim() == 5:
        result["channels_last_3d"] = x.contiguous(memory_format=torch.channels_last_3d)
    return result


def implementation(backend: str):
    """The module that holds a backend's operations."""
    return reference if backend == "reference" else ops


def golden(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A golden file: arrays of the authors' own code, in float64."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])).to(dtype) for key in arrays}


def order(errors: Sequence[float], steps: Sequence[float]) -> float:
    """Slope of log error against log step."""
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
