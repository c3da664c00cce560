"""Fused linear layer: forward, dx, d_nodes and d_bias against float64, the golden files and themselves."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor

from fused_cases import (
    DTYPES,
    GOLDEN,
    Layer,
    cell_taps,
    check,
    dense,
    error,
    golden_layer,
    node_gradients,
    points,
    sampled_bias,
    taps_of,
    weight,
    windows,
)
from inn_kernels.gpu import axis_table, gemm_configs, split_sum
from inn_kernels.gpu.launch import INTERPRETED, cdiv
from inn_kernels.gpu.linear import linear
from inn_kernels.gpu.linear_backward import linear_backward
from inn_kernels.taps import taps_for
from sampler_cases import DEVICE, FLOOR

# name: B, K, L, M_out, M_in, clustered
CASES = {
    "primes": (5, 53, 31, 67, 71, False),
    "one": (1, 1, 1, 1, 1, False),
    "two nodes": (3, 2, 3, 3, 2, False),
    "many rows": (37, 16, 16, 16, 16, False),
    "more points than nodes": (2, 47, 61, 3, 7, False),
    "fewer points than nodes": (2, 3, 2, 131, 67, False),
    "shared tiles": (3, 40, 64, 48, 320, False),
    "shared tiles of dx": (3, 64, 24, 272, 24, False),
    "shared rows of d_nodes": (101, 24, 30, 28, 36, False),
    "clustered": (4, 59, 83, 61, 64, True),
}
# name: B, K, L, M_out, M_in, T_out, T_in, kind
WINDOWS = {
    "cells": (5, 53, 31, 131, 67, 6, 8, "even"),
    "points beside cells": (3, 19, 37, 61, 96, 4, 6, "even"),
    "cells beside points": (17, 37, 19, 96, 67, 8, 4, "random"),
    "odd": (3, 40, 24, 67, 71, 5, 7, "random"),
    "one": (2, 9, 12, 66, 70, 1, 3, "random"),
    "a window at every node, in two tiles": (2, 114, 112, 121, 119, 8, 8, "even"),
    "fewer nodes than taps": (2, 7, 5, 3, 6, 8, 8, "even"),
    "more points than nodes": (2, 47, 83, 11, 9, 6, 5, "random"),
    "clustered": (4, 59, 83, 61, 64, 8, 6, "clustered"),
}


def make(
    name: str,
    dtype: torch.dtype = torch.float32,
    nodes_dtype: torch.dtype = torch.float32,
    bias: bool = True,
) -> tuple[Layer, Tensor]:
    """A layer and dy, always the same."""
    torch.manual_seed(0)
    if name.startswith("T: "):
        b, k, n, m_out, m_in, t_out, t_in, kind = WINDOWS[name[3:]]
        out, in_ = windows(kind, k, m_out, t_out), windows(kind, n, m_in, t_in)
    else:
        b, k, n, m_out, m_in, clustered = CASES[name]
        out, in_ = taps_of(points(k, clustered), m_out, False), taps_of(points(n, clustered), m_in, True)
    nodes, biases = torch.randn(m_out, m_in).to(DEVICE, nodes_dtype), torch.randn(m_out).to(DEVICE, nodes_dtype)
    x, dy = torch.randn(b, n).to(DEVICE, dtype), torch.randn(b, k).to(DEVICE, dtype)
    return Layer(x, nodes, biases if bias else None, out, in_), dy


def eager(layer: Layer, dy: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """y and the gradients by a sampled weight, everything in `dtype`."""
    x, dy, w, bias = layer.x.to(dtype), dy.to(dtype), weight(layer, dtype), sampled_bias(layer, dtype)
    y = x @ w.T if bias is None else x @ w.T + bias
    d_nodes, d_bias = node_gradients(layer, dy.T @ x, dy.sum(0))
    return {"y": y, "dx": dy @ w, "d_nodes": d_nodes, "d_bias": d_bias}


def fused(layer: Layer, dy: Tensor) -> dict[str, Tensor]:
    """y and the gradients by the kernels."""
    y = linear(layer.x, layer.nodes, layer.bias, *layer.taps)
    gradients = linear_backward(dy, layer.x, layer.nodes, *layer.taps, True, True, True)
    return {"y": y, **dict(zip(("dx", "d_nodes", "d_bias"), gradients))}


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(str(d)[6:] for d in pair))
@pytest.mark.parametrize("name", CASES)
def test_forward_and_every_gradient(name: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    layer, dy = make(name, *dtypes, bias=name != "two nodes")
    exact, in_dtype = eager(layer, dy, torch.float64), eager(layer, dy, dtypes[0])
    for what, value in fused(layer, dy).items():
        assert value.dtype == (dtypes[0] if what in ("y", "dx") else dtypes[1])
        check(value, in_dtype[what], exact[what], dtypes[0], what)


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_of_any_width(name: str) -> None:
    layer, dy = make(f"T: {name}")
    exact, in_dtype = eager(layer, dy, torch.float64), eager(layer, dy, torch.float32)
    for what, value in fused(layer, dy).items():
        check(value, in_dtype[what], exact[what], torch.float32, what)


def test_cells() -> None:
    """Means over equal cells, fewer and more than nodes."""
    torch.manual_seed(0)
    out, in_ = cell_taps(33, 66), cell_taps(45, 40)
    x, nodes, bias, dy = (torch.randn(s).to(DEVICE) for s in ((3, 45), (66, 40), (66,), (3, 33)))
    layer = Layer(x, nodes, bias, out, in_)
    exact, in_dtype = eager(layer, dy, torch.float64), eager(layer, dy, torch.float32)
    for what, value in fused(layer, dy).items():
        check(value, in_dtype[what], exact[what], torch.float32, what)
    ones = layer._replace(nodes=torch.ones_like(nodes), bias=None)  # whose means are 1
    assert error(linear(x, *ones[1:3], *ones.taps), x.sum(1, True).double().expand(3, 33)) <= FLOOR[torch.float32]


def test_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm_configs, "fp32_precision", lambda: "tf32")
    layer, dy = make("primes")
    exact = eager(layer, dy, torch.float64)
    for what, value in fused(layer, dy).items():
        assert error(value, exact[what]) <= 2.0**-9, what  # operands of 10 bits, roundings in three places


def test_gradients_not_asked_for_are_empty() -> None:
    layer, dy = make("primes")
    full = linear_backward(dy, layer.x, layer.nodes, *layer.taps, True, True, True)
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        some = linear_backward(dy, layer.x, layer.nodes, *layer.taps, *wanted)
        for need, gradient, expected in zip(wanted, some, full):
            assert torch.equal(gradient, expected) if need else gradient.numel() == 0


def test_no_rows() -> None:
    layer, dy = make("primes")
    empty = layer._replace(x=layer.x[:0])
    found = fused(empty, dy[:0])
    assert found["y"].shape == (0, 53) and found["dx"].shape == (0, 31)
    assert not found["d_nodes"].any() and not found["d_bias"].any()


@pytest.mark.parametrize("name", ["shared tiles", "shared tiles of dx", "clustered"])
def test_repeatable_and_layout_does_not_matter(name: str) -> None:
    layer, dy = make(name)
    first = fused(layer, dy)
    strided = layer._replace(x=layer.x.T.contiguous().T, nodes=layer.nodes.T.contiguous().T)
    for what, value in fused(strided, dy.T.contiguous().T).items():
        assert torch.equal(value, first[what]), what


def test_programs_share_a_tile() -> None:
    """A case above does take the path where several programs add up one tile, and its tickets return to zero."""
    layer, _ = make("shared tiles")
    linear(layer.x, layer.nodes, layer.bias, *layer.taps)
    fused(*make("shared rows of d_nodes"))
    if INTERPRETED:
        assert split_sum.split_count(1, 320 // 16, 2, layer.x.device) > 1
        assert split_sum.split_count(1, cdiv(101, 16), 2, layer.x.device) == 3
    assert all(not space.ticket.any() for space in split_sum._workspaces.values())


def test_a_table_goes_with_either_of_its_taps() -> None:
    """Tables are found by the identity of two tensors, which a later one may have."""
    taps = taps_of(points(9, False), 7, True)
    kept = len(axis_table._tables)
    start = taps.start.repeat_interleave(2)[::2]
    table = axis_table.cached_table(start, taps.weight, 7)
    assert axis_table.cached_table(start, taps.weight, 7) is table and len(axis_table._tables) == kept + 1
    del start
    assert len(axis_table._tables) == kept


def test_rows_do_not_see_each_other() -> None:
    layer, dy = make("clustered")
    layer.x[1, 5], dy[2, 7] = float("inf"), float("nan")
    found = fused(layer, dy)
    assert torch.isfinite(found["y"][[0, 2, 3]]).all() and torch.isfinite(found["dx"][[0, 1, 3]]).all()


@pytest.mark.parametrize("quadrature", ["trapezoid", "midpoint"])
@pytest.mark.parametrize("nodes", [16, 67, 256, 1024])
def test_uniform_points_are_never_crowded(nodes: int, quadrature: str) -> None:
    """Up to 2.75 points a node the tables hold all there is, so that the second loop of the kernels is empty."""
    for share in (0.05, 0.25, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 1, 1.2, 1.25, 1.3, 1.5, 1.75, 2, 2.5, 2.75):
        for partition in (max(int(share * nodes), 2), torch.linspace(0, 1, max(int(share * nodes), 2))):
            table = axis_table.axis_table(*taps_for(partition, nodes, quadrature=quadrature)[:2], nodes)
            begin, end = table.crowded.tolist()
            assert begin >= end, (share, table.contributors, int((table.hi - table.lo).max()))


@pytest.mark.parametrize("nodes", [32, 67, 256])
def test_even_cells_are_never_crowded(nodes: int) -> None:
    """Wide cells see many nodes and are few: a node hears no more of them than of points."""
    for share in (0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 1, 1.2, 1.25, 1.3, 1.5, 1.75, 2, 2.5, 2.75):
        count = max(int(share * nodes), 2)
        table = axis_table.axis_table(*cell_taps(count, nodes))
        begin, end = table.crowded.tolist()
        assert begin >= end, (share, table.contributors, int((table.hi - table.lo).max()))


@pytest.mark.parametrize("taps", [1, 4, 5, 8, 12])
def test_a_table_holds_every_tap(taps: int) -> None:
    """S from the coefficients, and where they leave something out from the weights, is S from the taps."""
    torch.manual_seed(0)
    for count, nodes, kind in ((23, 70, "even"), (40, 33, "random"), (29, 20, "clustered"), (6, 3, "even")):
        along = windows(kind, count, nodes, taps)
        table = axis_table.axis_table(*along)
        found = torch.zeros(count, nodes)
        for j in range(nodes):
            lo, hi = int(table.lo[j]), int(table.hi[j])
            for n in range(min(table.contributors, count)):
                found[lo + n, j] = table.coefficient[n, j]
            for point in range(lo + table.contributors, hi):
                assert table.crowded[0] <= j < table.crowded[1]
                found[point, j] = table.weight.flatten()[table.skew[point] + j]
        assert torch.equal(found, dense(along, torch.float32).cpu())


@pytest.mark.parametrize("name", ["linear_uniform", "linear_nonuniform", "linear_upsample"])
def test_golden(name: str) -> None:
    path = os.path.join(GOLDEN, f"{name}.npz")
    if not os.path.exists(path):
        pytest.skip("golden files are not in this checkout")
    with np.load(path) as file:
        golden = {key: torch.from_numpy(file[key]) for key in file}
    layer = golden_layer(golden)
    found = fused(layer, golden["grad_y"].float().to(DEVICE))
    for what, key in (("y", "y"), ("dx", "grad_x"), ("d_nodes", "grad_nodes"), ("d_bias", "grad_bias")):
        assert error(found[what].cpu(), golden[key]) <= 8 * FLOOR[torch.float32], what


@pytest.mark.skipif(INTERPRETED, reason="needs 5 GB and a GPU")
def test_offsets_beyond_32_bits() -> None:
    rows, width = (1 << 20) + 3, 2051
    out, in_ = taps_of(points(3, False), 4, False), taps_of(points(width, False), 1024, True)
    nodes = torch.randn(4, 1024, device=DEVICE)
    x = torch.randn(rows, width, device=DEVICE, dtype=torch.bfloat16)
    last = Layer(x[-5:], nodes, None, out, in_)
    y = linear(x, nodes, None, *last.taps)
    exact, in_dtype = (x[-5:].to(d) @ weight(last, d).T for d in (torch.float64, torch.bfloat16))
    check(y[-5:], in_dtype, exact, torch.bfloat16, "y")


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_streams_and_graphs() -> None:
    """Launches on two streams at once, and replays of a graph, do not meet in the workspace of shared tiles."""
    layer, dy = make("shared tiles", torch.bfloat16)
    expected = fused(layer, dy)
    torch.cuda.synchronize()
    found = []
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for stream in streams * 20:
        with torch.cuda.stream(stream):
            found.append(fused(layer, dy))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fused(layer, dy)
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    for values in (*found, captured):
        for what, value in values.items():
            assert torch.equal(value, expected[what]), what
