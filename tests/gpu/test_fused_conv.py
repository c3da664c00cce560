"""Fused convolution: forward, dx, d_nodes and d_bias against float64, the golden files and themselves."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fused_cases import (
    DTYPES,
    GOLDEN,
    Layer,
    check,
    error,
    golden_layer,
    node_gradients,
    points,
    sampled_bias,
    taps_of,
    weight,
    windows,
)
from inn_kernels.gpu import gemm_configs
from inn_kernels.gpu.conv import Pair, conv, conv_input_gradient
from inn_kernels.gpu.conv_node_gradient import conv_node_gradient
from sampler_cases import DEVICE, FLOOR


class Case(NamedTuple):
    """Sizes of a convolution."""

    batch: int
    points: Pair  # K, L
    nodes: Pair  # M_out, M_in
    size: Pair  # H, W
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    clustered: bool = False
    taps: tuple[int, int, str] | None = None  # T_out, T_in and kind of windows


CASES = {
    "primes": Case(2, (11, 7), (13, 17), (5, 7), (3, 3), padding=(1, 1)),
    "one": Case(1, (1, 1), (1, 1), (1, 1), (1, 1)),
    "stride": Case(1, (5, 6), (7, 5), (7, 6), (3, 2), stride=(2, 3), padding=(1, 0)),
    "dilation": Case(1, (5, 6), (7, 5), (7, 9), (3, 2), padding=(3, 1), dilation=(2, 3)),
    "pointwise": Case(3, (16, 16), (16, 16), (4, 4), (1, 1), stride=(2, 2)),
    "one dimension": Case(2, (9, 5), (8, 67), (1, 11), (1, 5), stride=(1, 2), padding=(0, 2)),
    "more points than nodes": Case(1, (19, 37), (3, 2), (3, 3), (2, 2)),
    "fewer points than nodes": Case(1, (3, 2), (67, 9), (3, 3), (3, 3), padding=(1, 1)),
    "shared tiles": Case(1, (16, 16), (16, 32), (4, 4), (3, 3), padding=(1, 1)),
    "clustered": Case(2, (31, 23), (19, 16), (3, 4), (2, 3), padding=(1, 1), clustered=True),
    "cells": Case(1, (33, 11), (66, 41), (4, 3), (3, 3), padding=(1, 1), taps=(6, 8, "even")),
    "cells and points, strided": Case(1, (9, 36), (23, 67), (5, 6), (3, 2), (2, 1), (1, 0), taps=(8, 4, "random")),
    "fewer nodes than taps": Case(2, (5, 4), (3, 6), (3, 3), (2, 2), taps=(8, 8, "even")),
    "clustered cells": Case(1, (41, 37), (16, 19), (3, 2), (3, 1), taps=(5, 6, "clustered")),
}


def make(
    name: str, dtype: torch.dtype = torch.float32, nodes_dtype: torch.dtype = torch.float32
) -> tuple[Case, Layer, Tensor]:
    """Sizes, a layer and dy, always the same."""
    torch.manual_seed(0)
    case = CASES[name]
    if case.taps is None:
        out, in_ = (taps_of(points(case.points[d], case.clustered), case.nodes[d], d == 1) for d in (0, 1))
    else:
        out, in_ = (windows(case.taps[2], case.points[d], case.nodes[d], case.taps[d]) for d in (0, 1))
    nodes = torch.randn(*case.nodes, *case.kernel).to(DEVICE, nodes_dtype)
    bias = torch.randn(case.nodes[0]).to(DEVICE, nodes_dtype)
    x = torch.randn(case.batch, case.points[1], *case.size).to(DEVICE, dtype)
    layer = Layer(x, nodes, None if name == "one" else bias, out, in_)
    dy = torch.randn(conv(x, nodes, None, *layer.taps, *case[5:8]).shape).to(DEVICE, dtype)
    return case, layer, dy


def eager(case: Case, layer: Layer, dy: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """y and the gradients by PyTorch's convolution with a sampled weight, everything in `dtype`."""
    x = layer.x.to(dtype).requires_grad_()
    w = weight(layer, dtype).requires_grad_()
    y = F.conv2d(x, w, sampled_bias(layer, dtype), *case[5:8])
    dx, dw = torch.autograd.grad(y, (x, w), dy.to(dtype))
    d_nodes, d_bias = node_gradients(layer, dw, dy.to(dtype).sum((0, 2, 3)))
    return {"y": y.detach(), "dx": dx, "d_nodes": d_nodes, "d_bias": d_bias}


def fused(case: Case, layer: Layer, dy: Tensor) -> dict[str, Tensor]:
    """y and the gradients by the kernels."""
    window = case[5:8]
    y = conv(layer.x, layer.nodes, layer.bias, *layer.taps, *window)
    dx = conv_input_gradient(dy, layer.nodes, *layer.taps, case.size, *window)
    d_nodes, d_bias = conv_node_gradient(dy, layer.x, layer.nodes, *layer.taps, *window, True, True)
    return {"y": y, "dx": dx, "d_nodes": d_nodes, "d_bias": d_bias}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_every_gradient(name: str) -> None:
    case, layer, dy = make(name)
    exact, in_dtype = (eager(case, layer, dy, dtype) for dtype in (torch.float64, torch.float32))
    for what, value in fused(case, layer, dy).items():
        check(value, in_dtype[what], exact[what], torch.float32, what)


@pytest.mark.parametrize("dtypes", DTYPES[1:], ids=lambda pair: "-".join(str(d)[6:] for d in pair))
@pytest.mark.parametrize("name", ["primes", "stride", "clustered"])
def test_every_dtype(name: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    case, layer, dy = make(name, *dtypes)
    exact, in_dtype = (eager(case, layer, dy, dtype) for dtype in (torch.float64, dtypes[0]))
    for what, value in fused(case, layer, dy).items():
        assert value.dtype == (dtypes[0] if what in ("y", "dx") else dtypes[1])
        check(value, in_dtype[what], exact[what], dtypes[0], what)


def test_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm_configs, "fp32_precision", lambda: "tf32")
    case, layer, dy = make("primes")
    exact = eager(case, layer, dy, torch.float64)
    for what, value in fused(case, layer, dy).items():
        assert error(value, exact[what]) <= 2.0**-9, what  # operands of 10 bits, roundings in three places


def test_no_images_and_gradients_not_asked_for() -> None:
    case, layer, dy = make("stride")
    found = fused(case, layer._replace(x=layer.x[:0]), dy[:0])
    assert found["y"].shape[0] == 0 and found["dx"].shape == (0, 6, 7, 6)
    assert not found["d_nodes"].any() and not found["d_bias"].any()
    for need_nodes, need_bias in ((True, False), (False, True), (False, False)):
        some = conv_node_gradient(dy, layer.x, layer.nodes, *layer.taps, *case[5:8], need_nodes, need_bias)
        full = fused(case, layer, dy)
        for need, gradient, what in zip((need_nodes, need_bias), some, ("d_nodes", "d_bias")):
            assert torch.equal(gradient, full[what]) if need else gradient.numel() == 0


@pytest.mark.parametrize("name", ["shared tiles", "clustered"])
def test_repeatable_and_layout_does_not_matter(name: str) -> None:
    case, layer, dy = make(name)
    first = fused(case, layer, dy)
    last = torch.channels_last
    strided = layer._replace(x=layer.x.contiguous(memory_format=last), nodes=layer.nodes.contiguous(memory_format=last))
    for what, value in fused(case, strided, dy.contiguous(memory_format=last)).items():
        assert torch.equal(value, first[what]), what


@pytest.mark.parametrize("name", ["conv2d_uniform", "conv2d_nonuniform"])
def test_golden(name: str) -> None:
    path = os.path.join(GOLDEN, f"{name}.npz")
    if not os.path.exists(path):
        pytest.skip("golden files are not in this checkout")
    with np.load(path) as file:
        golden = {key: torch.from_numpy(file[key]) for key in file}
    case = Case(2, (11, 9), (16, 12), (5, 5), (3, 3), padding=(1, 1))
    found = fused(case, golden_layer(golden), golden["grad_y"].float().to(DEVICE))
    for what, key in (("y", "y"), ("dx", "grad_x"), ("d_nodes", "grad_nodes"), ("d_bias", "grad_bias")):
        assert error(found[what].cpu(), golden[key]) <= 8 * FLOOR[torch.float32], what
