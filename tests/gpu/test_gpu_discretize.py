"""discretize, its adjoint and its tap gradient against float64, the golden files and themselves."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from inn_kernels import reference
from inn_kernels.gpu import sampler_tile
from inn_kernels.gpu.discretize import discretize
from inn_kernels.gpu.discretize_adjoint import discretize_adjoint
from inn_kernels.gpu.discretize_tap_gradient import discretize_tap_gradient
from inn_kernels.taps import Basis, taps_for
from sampler_cases import CASES, DEVICE, DTYPES, WIDE, Case, check, doubled, random, taps

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("*.npz"))
FIRST = [(name, *dtypes) for name in ("primes", "offsets 9 channels_last") for dtypes in DTYPES]
ALL = FIRST + [(name, *DTYPES[1]) for name in CASES if name not in ("primes", "offsets 9 channels_last")]


def sides(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = taps(case.kind, case.points[0], case.nodes[0])
    in_ = taps(case.kind, case.points[1], case.nodes[1], weighted=True)
    return out.start, out.weight, in_.start, in_.weight


def check_all(case: Case, nodes_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """The three operations on one case."""
    torch.manual_seed(0)
    along = sides(case)
    nodes = random(case.nodes, nodes_dtype, case.channels_last)
    grad = random((*case.points, *case.nodes[2:]), dtype, case.channels_last)

    arguments = (nodes, *along, dtype)
    value = discretize(*arguments)
    check(value, reference.discretize(*arguments), reference.discretize(*doubled(arguments)))
    assert value.is_contiguous(memory_format=torch.channels_last if case.channels_last else torch.contiguous_format)

    arguments = (grad, *along, *case.nodes[:2], nodes_dtype)
    value = discretize_adjoint(*arguments)
    check(value, reference.discretize_adjoint(*arguments), reference.discretize_adjoint(*doubled(arguments)))
    assert value.is_contiguous(memory_format=torch.channels_last if case.channels_last else torch.contiguous_format)

    arguments = (nodes, grad, *along, True, True)
    values = discretize_tap_gradient(*arguments)
    eager = reference.discretize_tap_gradient(*arguments)
    truth = reference.discretize_tap_gradient(*doubled(arguments))
    for triple in zip(values, eager, truth):
        check(*triple)


@pytest.mark.parametrize("name,nodes_dtype,dtype", ALL, ids=str)
def test_against_float64(name: str, nodes_dtype: torch.dtype, dtype: torch.dtype) -> None:
    check_all(CASES[name], nodes_dtype, dtype)


def test_wide_tiles() -> None:
    check_all(WIDE, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("m", range(1, 6))
def test_one_to_five(m: int) -> None:
    for k, kind in itertools.product((1, 2, 5), ("random", "uniform")):
        check_all(Case((m, 6 - m), (k, 6 - k), kind), torch.float32, torch.float32)


@pytest.mark.parametrize("boundary", ("clamp", "keys"))
def test_uniform_partitions_need_four_points_a_node(boundary: str) -> None:
    """With no more points than nodes the adjoint stays out of its loop over clustered points; results are right."""
    torch.manual_seed(0)
    for k in (23, 20):
        along = taps("uniform", k, 23, basis=Basis(boundary=boundary))
        arguments = (random((k, k), torch.float32), *along[:2], *along[:2], 23, 23, torch.float32)
        value, eager = discretize_adjoint(*arguments), reference.discretize_adjoint(*arguments)
        check(value, eager, reference.discretize_adjoint(*doubled(arguments)))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    data = {name: torch.from_numpy(np.asarray(x)).to(DEVICE) for name, x in np.load(path).items()}
    nodes, weight = data["nodes"].float(), data["weight"]
    scale = float(data["scale"])
    options = {"dtype": torch.float32, "device": DEVICE}
    out = taps_for(data["out_partition"], nodes.shape[0], **options)
    in_ = taps_for(data["in_partition"], nodes.shape[1], weighted=True, scale=scale, **options)
    along = (out.start, out.weight, in_.start, in_.weight)
    check(discretize(nodes, *along, torch.float32), reference.discretize(nodes, *along, torch.float32), weight)

    grad_y, x = data["grad_y"], data["x"]
    if nodes.dim() == 4:
        grad = torch.nn.grad.conv2d_weight(x, weight.shape, grad_y, padding=nodes.shape[2] // 2)
    else:
        grad = grad_y.T @ x
    arguments = (grad.float(), *along, nodes.shape[0], nodes.shape[1], torch.float32)
    check(discretize_adjoint(*arguments), reference.discretize_adjoint(*arguments), data["grad_nodes"])


def test_strided_inputs() -> None:
    torch.manual_seed(0)
    case = Case((12, 10, 3, 3), (7, 8))
    along = sides(case)
    nodes = random((10, 12, 3, 3), torch.float32).transpose(0, 1)
    weights = along[1].repeat_interleave(2, 1)[:, ::2], along[3].T.contiguous().T
    strided = (along[0], weights[0], along[2], weights[1])
    value = discretize(nodes, *strided, torch.float32)
    torch.testing.assert_close(value, discretize(nodes.contiguous(), *along, torch.float32), rtol=0, atol=0)
    grad = random((7, 8, 3, 3), torch.float32, channels_last=True)
    both = [discretize_tap_gradient(n, grad, *along, True, True) for n in (nodes, nodes.contiguous())]
    for one, other in zip(*both):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_only_the_needed_tap_gradient() -> None:
    torch.manual_seed(0)
    case = CASES["primes"]
    arguments = (random(case.nodes, torch.float32), random(case.points, torch.float32), *sides(case))
    out, in_ = discretize_tap_gradient(*arguments, True, True)
    one, none = discretize_tap_gradient(*arguments, True, False)
    assert torch.equal(one, out) and none.shape == (0, 4)
    none, one = discretize_tap_gradient(*arguments, False, True)
    assert torch.equal(one, in_) and none.shape == (0, 4)


def test_repeatable_bit_for_bit() -> None:
    torch.manual_seed(0)
    case = CASES["clustered"]
    along = sides(case)
    nodes, grad = random(case.nodes, torch.float32), random(case.points, torch.bfloat16)
    runs = [
        (
            discretize(nodes, *along, torch.bfloat16),
            discretize_adjoint(grad, *along, *case.nodes, torch.float32),
            *discretize_tap_gradient(nodes, grad, *along, True, True),
        )
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_large_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Column numbers are int64 where a row may pass 2^31 elements; here they are made so."""
    plan = sampler_tile.plan
    for launcher in (discretize, discretize_adjoint, discretize_tap_gradient):
        wide = lambda *arguments: plan(*arguments)._replace(index=sampler_tile.tl.int64)  # noqa: E731
        monkeypatch.setitem(launcher.__globals__, "plan", wide)
    check_all(CASES["offsets 9"], torch.float32, torch.float32)


def test_rows_are_skipped() -> None:
    """Rows no point needs are not read: NaN there does not show."""
    along = taps("uniform", 3, 101)
    nodes = random((101, 5), torch.float32)
    needed = (along.start.long()[:, None] + torch.arange(4, device=DEVICE)).flatten()
    spoilt = torch.full_like(nodes, float("nan"))
    spoilt[needed] = nodes[needed]
    in_ = taps("uniform", 4, 5)
    assert discretize(spoilt, *along[:2], *in_[:2], torch.float32).isfinite().all()
