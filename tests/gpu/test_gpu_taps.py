"""Samplers on taps of any number of neighbours, against dense matrices in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import common
from inn_kernels import reference
from inn_kernels.basis import KERNELS
from inn_kernels.gpu.discretize import discretize
from inn_kernels.gpu.discretize_adjoint import discretize_adjoint
from inn_kernels.gpu.discretize_tap_gradient import discretize_tap_gradient
from inn_kernels.gpu.foreach import discretize_layers
from inn_kernels.gpu.interpolate import interpolate, interpolate_tap_gradient, spread
from inn_kernels.taps import Basis, Taps, make_cell_taps
from sampler_cases import DEVICE, check, doubled, random

F32, BF16 = torch.float32, torch.bfloat16
COUNTS = (1, 3, 4, 5, 6, 7, 8, 12)


def window_taps(taps: int, points: int, nodes: int, kind: str = "random") -> Taps:
    """Random weights on windows that start anywhere, advance evenly, share a start, or end in taps of no weight."""
    last = max(nodes - taps, 0)
    start = torch.randint(0, last + 1, (points,)).sort().values
    if kind == "clustered":
        start = torch.full([points], last // 2)
    elif kind in ("even", "padded"):
        start = (torch.arange(points) * nodes // points - taps // 2).clamp(0, last)
    weight = torch.randn(points, taps)
    weight[start[:, None] + torch.arange(taps) >= nodes] = 0
    if kind == "padded":
        weight[:, -(-3 * taps // 4) :] = 0
    return Taps(start.int().to(DEVICE), weight.to(DEVICE), nodes)


def matrix(taps: Taps) -> Tensor:
    """S [K, M], float64."""
    return common.dense_taps(taps.start.cpu(), taps.weight.cpu().double(), taps.nodes).to(DEVICE)


class Sides(NamedTuple):
    """Taps of both axes, nodes and points of both, where windows lie, kernel offsets."""

    taps: tuple[int, int]
    nodes: tuple[int, int] = (19, 17)
    points: tuple[int, int] = (9, 11)
    kind: str = "random"
    rest: tuple[int, ...] = ()
    channels_last: bool = False


CASES = {
    **{f"{n} taps": Sides((n, n)) for n in COUNTS},
    **{f"{out} and {in_} taps": Sides((out, in_)) for out, in_ in ((4, 12), (12, 6), (8, 5), (1, 8), (17, 9))},
    "fewer nodes": Sides((6, 8), (5, 3), (4, 7)),
    "fewer nodes than long taps": Sides((12, 20), (10, 3), (4, 7)),
    "one node": Sides((6, 12), (1, 1), (3, 2)),
    "more points": Sides((6, 8), (9, 10), (31, 37), "even"),
    "as many points": Sides((6, 6), (21, 140), (21, 140), "padded"),
    "cells at a half": Sides((6, 6), (40, 44), (20, 22), "even"),
    "cells at a quarter": Sides((8, 8), (40, 44), (10, 11), "padded"),
    "clustered": Sides((6, 8), (19, 17), (9, 11), "clustered"),
    "clustered long": Sides((12, 12), (19, 17), (5, 6), "clustered"),
    "offsets": Sides((6, 8), (9, 10), (5, 6), rest=(3, 3)),
    "offsets channels_last": Sides((8, 6), (9, 10), (5, 6), rest=(3, 3), channels_last=True),
    "offsets of long taps": Sides((12, 12), (13, 14), (3, 4), rest=(2, 2), channels_last=True),
}


@pytest.mark.parametrize("name", CASES)
def test_both_axes(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    out, in_ = (window_taps(*side, case.kind) for side in zip(case.taps, case.points, case.nodes))
    s_out, s_in, along = matrix(out), matrix(in_), (*out[:2], *in_[:2])
    nodes = random((*case.nodes, *case.rest), F32, case.channels_last)
    grad = random((*case.points, *case.rest), BF16, case.channels_last)

    arguments = (nodes, *along, BF16)
    truth = torch.einsum("ki,lj,ij...->kl...", s_out, s_in, nodes.double())
    check(discretize(*arguments), reference.discretize(*arguments), truth)

    arguments = (grad, *along, *case.nodes, F32)
    truth = torch.einsum("ki,lj,kl...->ij...", s_out, s_in, grad.double())
    check(discretize_adjoint(*arguments), reference.discretize_adjoint(*arguments), truth)

    arguments = (nodes, grad, *along, True, True)
    truths = reference.discretize_tap_gradient(*doubled(arguments))
    for triple in zip(discretize_tap_gradient(*arguments), reference.discretize_tap_gradient(*arguments), truths):
        check(*triple)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("power", [1, 1.5])
def test_cells(kernel: str, power: float) -> None:
    """Against dense integration of the weight function."""
    torch.manual_seed(0)
    nodes = random((40, 33), F32)
    edges = [common.equal_edges(k) ** power for k in (15, 45)]
    sides = [make_cell_taps(e, m, Basis(kernel=kernel), dtype=F32) for e, m in zip(edges, nodes.shape)]
    s_out, s_in = (common.cell_matrix(e, m, kernel=kernel).to(DEVICE) for e, m in zip(edges, nodes.shape))
    arguments = (nodes, *(t.to(DEVICE) for side in sides for t in side[:2]), F32)
    check(discretize(*arguments), reference.discretize(*arguments), s_out @ nodes.double() @ s_in.T)


@pytest.mark.parametrize("taps", COUNTS)
@pytest.mark.parametrize("shape,dim", (((3, 19), 1), ((19, 130), 0), ((5, 3), 0)), ids=str)
def test_one_axis(shape: tuple[int, ...], dim: int, taps: int) -> None:
    torch.manual_seed(0)
    along = window_taps(taps, 11, shape[dim], "even")
    x = random(shape, F32)
    y = random((*shape[:dim], 11, *shape[dim + 1 :]), F32)
    dense, letters = matrix(along), ("ki,ai->ak" if dim else "ki,ia->ka")

    arguments = (x, *along[:2], dim, F32)
    check(interpolate(*arguments), reference.interpolate(*arguments), torch.einsum(letters, dense, x.double()))
    arguments = (y, *along, dim, F32)
    letters = "ki,ak->ai" if dim else "ki,ka->ia"
    check(spread(*arguments), reference.spread(*arguments), torch.einsum(letters, dense, y.double()))
    arguments = (x, y, along.start, taps, dim)
    truth = reference.interpolate_tap_gradient(*doubled(arguments))
    check(interpolate_tap_gradient(*arguments), reference.interpolate_tap_gradient(*arguments), truth)


LAYERS = (  # nodes, taps and points of each axis (None: discrete), channels_last
    ((16, 3, 3, 3), ((6, 9), None), False),
    ((30, 16, 1, 1), ((8, 20), (6, 9)), False),
    ((17, 13, 3, 3), ((6, 11), (8, 10)), True),
    ((10, 37), (None, (4, 21)), False),
    ((30,), ((8, 20),), False),
    ((5, 4), ((6, 7), (8, 6)), False),
    ((10,), (None,), False),
)
LONG = (((40, 37), ((12, 5), (6, 9)), False), ((40,), ((16, 4),), False), ((9, 8), (None, (3, 5)), False))


@pytest.mark.parametrize("layers", (LAYERS, LAYERS[3:4], LAYERS + LONG), ids=("six and eight", "four", "long"))
def test_foreach(layers: tuple) -> None:
    """Layers of unlike taps in one launch, those of more than eight in another."""
    torch.manual_seed(0)
    nodes = [random(shape, F32, last) for shape, _, last in layers]
    along = []
    for x, (_, sides, _) in zip(nodes, layers):
        pair = [side and window_taps(*side, m, "even") for side, m in zip(sides, x.shape)]
        along.append((*pair, None)[:2])
    for x, sides, value in zip(nodes, along, discretize_layers(nodes, along, F32)):
        plain, truth = x, x.double()
        for dim, side in enumerate(sides):
            if side is not None:
                plain = reference.interpolate(plain, *side[:2], dim, F32)
                truth = torch.tensordot(matrix(side), truth, ([1], [dim])).movedim(0, dim)
        check(value, plain, truth)


BAD = (float("nan"), float("inf"))


def held(taps: Taps) -> Tensor:
    """Whether a window holds a node, [K, M]."""
    return matrix(taps._replace(weight=torch.ones_like(taps.weight))) > 0


@pytest.mark.parametrize("taps", (3, 4, 6, 8, 12))
@pytest.mark.parametrize("kind", ("even", "random", "clustered"))
def test_not_finite_keeps_to_windows(kind: str, taps: int) -> None:
    """One bad node reaches points whose windows hold it and nothing else; one bad point nodes of its window of rows."""
    torch.manual_seed(0)
    out, in_ = window_taps(taps, 7, 23, kind), window_taps(taps, 9, 29, kind)
    windows, along = (held(out), held(in_)), (*out[:2], *in_[:2])
    for bad in BAD:
        nodes, grad = random((23, 29), F32), random((7, 130), F32)
        nodes[11, 14] = grad[3, 4] = bad
        reached = windows[0][:, 11, None] & windows[1][:, 14]
        assert torch.equal(~discretize(nodes, *along, F32).isfinite(), reached)
        assert torch.equal(~discretize_layers([nodes], [(out, in_)], F32)[0].isfinite(), reached)
        rows = spread(grad, *out, 0, F32)
        assert torch.equal(~rows[:, 4].isfinite(), windows[0][3]) and rows[:, 5:].isfinite().all()


def test_narrow_layer_among_wide_ones_reads_its_windows_alone() -> None:
    """Taps of five in a launch for eight: a bad row before or after a window does not show."""
    torch.manual_seed(0)
    narrow, wide = window_taps(5, 7, 23, "even"), window_taps(8, 7, 23, "even")
    nodes = random((23, 6), F32)
    for row in (0, 9, 22):
        spoilt = nodes.clone()
        spoilt[row] = float("nan")
        value, _ = discretize_layers([spoilt, nodes], [(narrow, None), (wide, None)], F32)
        assert torch.equal(~value[:, 0].isfinite(), held(narrow)[:, row])
