"""Every operation with taps of any number a point, out of step with the nodes there are: against the dense S.

S[k, start[k] + t] = weight[k, t]. Taps beyond the last node hold NaN here: they are never read.
"""

from __future__ import annotations

import pytest
import torch

import common
from common import DTYPES, implementation, rand

TAPS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 33)
KINDS = ("spread", "random", "clustered", "padded", "one wide")
SIZES = [(1, 3), (2, 5), (5, 97), (7, 7), (40, 11), (130, 97), (257, 64)]  # nodes, points
RESTS = ((), (3,), (3, 3), (20,))
RUNS = [("reference", torch.float64), *(("cpp", dtype) for dtype in DTYPES)]  # elsewhere the reference is what is right


@pytest.fixture(params=RUNS, ids=str)
def run_in(request):
    """A module of operations and the dtype to run them in."""
    backend, dtype = request.param
    return implementation(request.getfixturevalue("cpp") if backend == "cpp" else backend), dtype


def make_taps(nodes, points, taps, kind, dtype, seed=0):
    """start [K] and random weight [K, T]. Padded: zeros at both ends of each row, those of all rows but one where only
    one is wide."""
    generator = common.generator(seed)
    last = max(0, nodes - taps)
    start = torch.randint(0, last + 1, (points,), generator=generator).sort().values
    if kind == "spread":
        start = torch.arange(points) * last // max(points - 1, 1)
    elif kind == "clustered":
        start = last // 2 + start // 16
    weight = rand(points, taps, seed=seed)
    if kind in ("padded", "one wide") and taps > 1:
        begin = torch.randint(0, taps // 2 + 1, (points, 1), generator=generator)
        end = begin + torch.randint(0, 4, (points, 1), generator=generator)
        if kind == "one wide":
            begin[points // 2], end[points // 2] = 0, taps
        t = torch.arange(taps)
        weight = torch.where((t >= begin) & (t < end), weight, 0.0)
    weight[start[:, None] + torch.arange(taps) >= nodes] = float("nan")
    return start.int(), weight.to(torch.float64 if dtype == torch.float64 else torch.float32)


def dense(taps, nodes):
    return common.dense_taps(taps[0], taps[1].double().nan_to_num(), nodes)


def windows_of(product, start, taps):
    """[K, T] from [K, M]: product[k, start[k] + t], zero beyond the last node."""
    index = start.long()[:, None] + torch.arange(taps)
    return torch.nn.functional.pad(product, (0, taps)).gather(1, index)


def both(function, *values, dtype):
    """In the dtype under test and in float64."""
    return (function(*(v.to(t) for v in values)) for t in (dtype, torch.float64))


@pytest.mark.parametrize("taps", TAPS)
def test_along_a_dimension(taps, run_in):
    run, dtype = run_in
    for i, (nodes, points) in enumerate(SIZES):
        for kind in (KINDS[(i + taps) % 5], KINDS[(i + taps + 2) % 5]):
            before, after = (3,) * (i % 2), RESTS[i % 4]
            dim = len(before)
            start, weight = own = make_taps(nodes, points, taps, kind, dtype, i)
            x, y = rand(*before, nodes, *after, dtype=dtype), rand(*before, points, *after, seed=1, dtype=dtype)

            def along(matrix, x, dim=dim):
                return torch.tensordot(matrix, x, ([1], [dim])).movedim(0, dim)

            def gradient(x, y, dim=dim, start=start):
                rows = [v.movedim(dim, 0).reshape(v.shape[dim], -1) for v in (y, x)]
                return windows_of(rows[0] @ rows[1].T, start, taps)

            matrix = dense(own, nodes)
            got = run.interpolate(x, start, weight, dim, dtype)
            common.assert_as_accurate(got, *both(along, matrix, x, dtype=dtype), f"interpolate, {kind}")
            got = run.spread(y, start, weight, nodes, dim, dtype)
            common.assert_as_accurate(got, *both(along, matrix.T, y, dtype=dtype), f"spread, {kind}")
            got = run.interpolate_tap_gradient(x, y, start, taps, dim)
            assert got.dtype == weight.dtype
            common.assert_as_accurate(got.to(dtype), *both(gradient, x, y, dtype=dtype), f"tap gradient, {kind}")


@pytest.mark.parametrize(
    "out_taps, in_taps", [(1, 6), (2, 1), (3, 5), (5, 3), (6, 7), (7, 2), (8, 8), (12, 33), (33, 4)]
)
def test_both_dimensions(out_taps, in_taps, run_in):
    run, dtype = run_in
    for i, (m, k) in enumerate(SIZES):
        (n, l), rest, kind = SIZES[-1 - i], RESTS[i % 4], KINDS[(i + out_taps) % 5]
        out, into = make_taps(m, k, out_taps, kind, dtype, 1), make_taps(n, l, in_taps, kind, dtype, 2)
        s_out, s_in = dense(out, m), dense(into, n)
        nodes, grad = rand(m, n, *rest, dtype=dtype), rand(k, l, *rest, seed=1, dtype=dtype)

        def product(a, x, b):
            return torch.einsum("km,mn...,ln->kl...", a, x, b)

        got = run.discretize(nodes, *out, *into, dtype)
        common.assert_as_accurate(got, *both(product, s_out, nodes, s_in, dtype=dtype), "discretize")
        got = run.discretize_adjoint(grad, *out, *into, m, n, dtype)
        common.assert_as_accurate(got, *both(product, s_out.T, grad, s_in.T, dtype=dtype), "adjoint")

        def of_out(x, grad, s_in, out=out):
            sampled = torch.einsum("mn...,ln->ml...", x, s_in)
            return windows_of(grad.flatten(1) @ sampled.flatten(1).T, out[0], out_taps)

        def of_in(x, grad, s_out, into=into):
            sampled = torch.einsum("km,mn...->nk...", s_out, x)
            return windows_of(grad.transpose(0, 1).flatten(1) @ sampled.flatten(1).T, into[0], in_taps)

        d_out, d_in = run.discretize_tap_gradient(nodes, grad, *out, *into, True, True)
        common.assert_as_accurate(d_out.to(dtype), *both(of_out, nodes, grad, s_in, dtype=dtype), "d_out")
        common.assert_as_accurate(d_in.to(dtype), *both(of_in, nodes, grad, s_out, dtype=dtype), "d_in")


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("dtype, out_dtype", [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)], ids=str)
def test_identities_pass_through(taps, dtype, out_dtype, backend):
    """As many points as nodes, each on its own: nothing is computed, so a NaN stays where it is."""
    run = implementation(backend)
    for nodes in (3, 9, 40):
        start = (torch.arange(nodes) - taps // 3).clamp(0, max(0, nodes - taps)).int()
        weight = torch.nn.functional.pad(torch.eye(nodes), (0, taps)).double()
        weight = weight.gather(1, start.long()[:, None] + torch.arange(taps)).to(dtype)
        four = (start, weight, start, weight)
        for rest in ((), (3, 3)):
            x = rand(nodes, nodes, *rest, dtype=dtype)
            assert torch.equal(run.discretize(x, *four, out_dtype), x.to(out_dtype))
            assert torch.equal(run.discretize_adjoint(x, *four, nodes, nodes, out_dtype), x.to(out_dtype))
            if backend == "cpp":
                x[1, 2] = float("nan")
                assert int(run.discretize(x, *four, out_dtype).isnan().sum()) == x[1, 2].numel()


@pytest.mark.parametrize("taps", TAPS)
def test_rows_of_zeros_are_no_identity(taps, backend):
    """As many points as nodes and no weight where it should not be, but points that hear nothing."""
    run = implementation(backend)
    nodes = 40
    start, weight = torch.zeros(nodes, dtype=torch.int32), torch.zeros(nodes, taps)
    heard = min(taps, nodes)
    weight[:heard, :heard] = torch.eye(heard)
    x = rand(nodes, nodes, dtype=torch.float32)
    want = torch.zeros_like(x)
    want[:heard, :heard] = x[:heard, :heard]
    assert torch.equal(run.discretize(x, start, weight, start, weight, torch.float32), want)
    assert torch.equal(run.discretize_adjoint(x, start, weight, start, weight, nodes, nodes, torch.float32), want)


@pytest.mark.parametrize("taps", TAPS)
def test_infinity_stays_in_its_window(taps, cpp):
    nodes, points = 60, 333
    for kind in KINDS[:3]:
        start, weight = make_taps(nodes, points, taps, kind, torch.float32)
        middle = points // 2
        at = int(start[middle])
        x = rand(3, nodes, seed=1, dtype=torch.float32)
        x[:, at] = float("inf")
        touched = (start <= at) & (at < start + taps)
        run = implementation(cpp)
        assert run.interpolate(x, start, weight, 1, torch.float32)[:, ~touched].isfinite().all()
        square = x[0].expand(nodes, nodes).contiguous()
        assert run.discretize(square, start, weight, start, weight, torch.float32)[:, ~touched].isfinite().all()
        y = rand(3, points, seed=1, dtype=torch.float32)
        y[:, middle] = float("inf")
        spread = run.spread(y, start, weight, nodes, 1, torch.float32)
        assert spread[:, :at].isfinite().all() and spread[:, at + taps :].isfinite().all()
        assert not spread[:, at : at + taps].isfinite().any()
