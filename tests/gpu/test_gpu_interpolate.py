"""interpolate, spread and the gradient of their weights against float64, along any dimension."""

from __future__ import annotations

import pytest
import torch

from inn_kernels import reference
from inn_kernels.gpu.interpolate import interpolate, interpolate_tap_gradient, spread
from sampler_cases import DEVICE, DTYPES, check, doubled, random, taps

CASES = {  # shape, dimension, points, partition: below 128 elements after the dimension, columns are sampled, else rows
    "last": ((11, 67), 1, 53, "random"),
    "first": ((67, 3), 0, 31, "random"),
    "channels, small image": ((2, 19, 3, 5), 1, 13, "uniform"),
    "channels, rows": ((2, 13, 131), 1, 9, "random"),
    "more points": ((2, 2, 129), -2, 17, "uniform"),
    "fewer points": ((2, 71), -1, 3, "uniform"),
    "clustered columns": ((5, 31), 1, 12, "clustered"),
    "clustered rows": ((2, 31, 128), 1, 12, "clustered"),
    "vector": ((23,), 0, 17, "uniform"),
    "one": ((1,), 0, 1, "uniform"),
    "two": ((2, 2), 1, 5, "random"),
}
ALL = [(name, *DTYPES[0]) for name in CASES]
ALL += [(name, *dtypes) for name in ("last", "channels, rows") for dtypes in DTYPES[1:]]


@pytest.mark.parametrize("name,source,target", ALL, ids=str)
def test_against_float64(name: str, source: torch.dtype, target: torch.dtype) -> None:
    torch.manual_seed(0)
    shape, dim, k, kind = CASES[name]
    start, weight, m = taps(kind, k, shape[dim], weighted=True)
    x = random(shape, source)

    arguments = (x, start, weight, dim, target)
    y = interpolate(*arguments)
    check(y, reference.interpolate(*arguments), reference.interpolate(*doubled(arguments)))

    arguments = (y, start, weight, m, dim, source)
    check(spread(*arguments), reference.spread(*arguments), reference.spread(*doubled(arguments)))

    arguments = (x, y, start, 4, dim)
    truth = reference.interpolate_tap_gradient(*doubled(arguments))
    check(interpolate_tap_gradient(*arguments), reference.interpolate_tap_gradient(*arguments), truth)


def test_strided() -> None:
    torch.manual_seed(0)
    start, weight, m = taps("random", 9, 14)
    x = random((14, 6), torch.float32).T
    one, other = (interpolate(v, start, weight, 1, x.dtype) for v in (x, x.contiguous()))
    assert torch.equal(one, other)
    y = random((9, 6), torch.float32).T
    one, other = (spread(v, start, weight, m, 1, y.dtype) for v in (y, y.contiguous()))
    assert torch.equal(one, other)


@pytest.mark.parametrize("shape,dim", (((0, 14), 1), ((14, 0), 0), ((2, 14, 0), 1)))
def test_no_rows(shape: tuple[int, ...], dim: int) -> None:
    start, weight, m = taps("random", 9, 14)
    x = torch.empty(shape, device=DEVICE)
    y = interpolate(x, start, weight, dim, x.dtype)
    assert y.shape == torch.Size(9 if n == 14 else n for n in shape)
    assert spread(y, start, weight, m, dim, x.dtype).shape == x.shape
    assert torch.equal(interpolate_tap_gradient(x, y, start, 4, dim), torch.zeros(9, 4, device=DEVICE))


def test_repeatable_bit_for_bit() -> None:
    torch.manual_seed(0)
    start, weight, m = taps("clustered", 12, 31)
    x, y = random((4, 31), torch.float32), random((4, 12), torch.float32)
    assert torch.equal(spread(y, start, weight, m, 1, y.dtype), spread(y, start, weight, m, 1, y.dtype))
    assert torch.equal(interpolate_tap_gradient(x, y, start, 4, 1), interpolate_tap_gradient(x, y, start, 4, 1))
