"""The compiled CPU kernels, called directly: against a dense S in float64, and as a library (symbols, bits, bad input).

The bound on errors is the one that sums have: n terms in precision eps err by at most n * eps * (the sum of absolute
values), and storing adds half a unit in the last place.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import inn_kernels.ops as ops

pytestmark = pytest.mark.skipif(ops.compiled_missing is not None, reason=f"no compiled kernels: {ops.compiled_missing}")

# (M_out, K, M_in, L): equal, prime, one to five, many more points than nodes and the other way round, empty
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 3, 2),
    (3, 1, 5, 7),
    (4, 4, 4, 4),
    (5, 0, 7, 3),
    (7, 13, 17, 5),
    (31, 29, 61, 47),
    (17, 53, 23, 101),
    (64, 9, 130, 11),
    (10, 7, 300, 30),
    (11, 50, 40, 160),
    (9, 0, 8, 0),
    (6, 5, 150, 450),
]
KINDS = ["uniform", "random", "clustered"]
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
]


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_taps(points, nodes, kind="uniform", dtype=torch.float32, seed=0):
    """Taps with random weights (no kernel function is special) at points of the given kind; clustered: in one cell."""
    rng = np.random.default_rng(seed)
    position = {
        "uniform": lambda: np.linspace(0, 1, points),
        "random": lambda: np.sort(rng.random(points)),
        "clustered": lambda: np.sort(0.41 + 1e-4 * rng.random(points)),
    }[kind]()
    start = np.clip(np.floor(position * (nodes - 1)) - 1, 0, max(0, nodes - 4)).astype(np.int32)
    weight = rng.standard_normal((points, 4))
    weight[start[:, None] + np.arange(4) >= nodes] = 0
    return torch.from_numpy(start), torch.from_numpy(weight).to(dtype)


def dense(start, weight, nodes):
    """S [K, M] of the taps, float64."""
    matrix = np.zeros((len(start), nodes + 4))
    for t in range(4):
        matrix[np.arange(len(start)), start.numpy() + t] += weight.double().numpy()[:, t]
    return matrix[:, :nodes]


def values(*shape, dtype, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def in_float64(tensor, *shape):
    return tensor.double().numpy().reshape(shape)


def check(got, want, absolute, terms):
    """`absolute` is the same sum over absolute values, of at most `terms` terms."""
    assert tuple(got.shape) == want.shape
    eps = torch.finfo(accumulator(got.dtype)).eps
    stored = torch.finfo(got.dtype)
    bound = terms * eps * absolute + stored.eps * np.abs(want) + stored.tiny * stored.eps
    error = np.abs(got.double().numpy() - want)
    assert np.all(error <= bound), (
        f"error {error.max():.3g} where {bound.flat[np.argmax(error - bound)]:.3g} is allowed"
    )


def terms_of(matrix):
    return int((matrix != 0).sum(1).max(initial=0)) + 1


@pytest.mark.parametrize("dtype, out_dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("rest", [(), (3,), (3, 3), (17,)], ids=str)
def test_discretize_and_its_gradients(rest, dtype, out_dtype):
    inner = int(np.prod(rest))
    for i, (m_out, k, m_in, n) in enumerate(SIZES):
        # every size and rest meets every kind in some dtype
        kind = KINDS[(i + DTYPES.index((dtype, out_dtype))) % len(KINDS)]
        out_start, out_weight = make_taps(k, m_out, kind, accumulator(dtype), 1)
        in_start, in_weight = make_taps(n, m_in, kind, accumulator(dtype), 2)
        taps = (out_start, out_weight, in_start, in_weight)
        s_out, s_in = dense(out_start, out_weight, m_out), dense(in_start, in_weight, m_in)
        nodes, grad = values(m_out, m_in, *rest, dtype=dtype, seed=3), values(k, n, *rest, dtype=dtype, seed=4)
        exact, exact_grad = in_float64(nodes, m_out, m_in, inner), in_float64(grad, k, n, inner)
        before = nodes.clone(), grad.clone()

        def product(a, middle, b):
            return np.einsum("km,mnt,ln->klt", a, middle, b, optimize=True)

        got = ops.discretize(nodes, *taps, out_dtype)
        shape = (k, n, *rest)
        want, absolute = product(s_out, exact, s_in), product(abs(s_out), abs(exact), abs(s_in))
        assert got.dtype == out_dtype and got.is_contiguous()
        check(got, want.reshape(shape), absolute.reshape(shape), terms_of(s_out) + terms_of(s_in))

        got = ops.discretize_adjoint(grad, *taps, m_out, m_in, out_dtype)
        want = product(s_out.T, exact_grad, s_in.T)
        absolute = product(abs(s_out.T), abs(exact_grad), abs(s_in.T))
        assert got.dtype == out_dtype and got.is_contiguous()
        check(got, want.reshape(nodes.shape), absolute.reshape(nodes.shape), terms_of(s_out.T) + terms_of(s_in.T))

        d_out, d_in = ops.discretize_tap_gradient(nodes, grad, *taps, True, True)
        for got, matrix, start, axis in ((d_out, s_in, out_start, 0), (d_in, s_out, in_start, 1)):
            for t in range(4):
                sums = []
                for f in (lambda x: x, abs):
                    other = np.einsum("mnt,ln->mlt" if axis == 0 else "nmt,ln->lmt", f(exact), f(matrix))
                    pad = [(0, 4) if d == axis else (0, 0) for d in range(3)]
                    picked = np.take(np.pad(other, pad), start.numpy() + t, axis)
                    sums.append((f(exact_grad) * picked).sum((1 - axis, 2)))
                length = exact_grad.shape[1 - axis] * inner + exact.shape[1 - axis] * inner
                check(got[:, t], *sums, length + terms_of(matrix) + terms_of(matrix.T))
        for got, need in zip(ops.discretize_tap_gradient(nodes, grad, *taps, False, True), (d_out[:0], d_in)):
            assert torch.equal(got, need)
        assert torch.equal(nodes, before[0]) and torch.equal(grad, before[1])


@pytest.mark.parametrize("dtype, out_dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("kind", ["uniform", "clustered"])
def test_interpolate_spread_and_tap_gradient(kind, dtype, out_dtype):
    for nodes, points in [(1, 3), (3, 5), (17, 29), (150, 50), (7, 0), (30, 230)]:
        start, weight = make_taps(points, nodes, kind, accumulator(dtype))
        matrix = dense(start, weight, nodes)
        for outer, inner, dim in [
            (1, 1, 0),
            (5, 1, -1),
            (3, 2, 1),
            (3, 7, -2),
            (2, 40, 1),
            (150, 17, 1),
            (0, 1, 1),
            (2, 0, 1),
            (1, 300, 0),
        ]:
            shape = [outer, nodes, inner] if dim in (1, -2) else [nodes, inner] if dim == 0 else [outer, nodes]
            x = values(*shape, dtype=dtype, seed=1)
            exact = in_float64(x, outer, nodes, inner)
            grad_shape = [points if d == dim % len(shape) else size for d, size in enumerate(shape)]
            grad = values(*grad_shape, dtype=dtype, seed=2)
            exact_grad = in_float64(grad, outer, points, inner)
            for got, a, b in (
                (ops.interpolate(x, start, weight, dim, out_dtype), matrix, exact),
                (ops.spread(grad, start, weight, nodes, dim, out_dtype), matrix.T, exact_grad),
            ):
                want, absolute = np.einsum("km,omi->oki", a, b), np.einsum("km,omi->oki", abs(a), abs(b))
                check(got, want.reshape(got.shape), absolute.reshape(got.shape), terms_of(a))
            got = ops.interpolate_tap_gradient(x, grad, start, 4, dim)
            padded = np.pad(exact, ((0, 0), (0, 4), (0, 0)))
            for t in range(4):
                picked = padded[:, start.numpy() + t]
                want = (exact_grad * picked).sum((0, 2))
                check(got[:, t], want, abs(exact_grad * picked).sum((0, 2)), outer * inner + 1)


def layouts(x):
    """The same values in other layouts (rank 4)."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    yield "transposed", x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "every other", wide[..., ::2]
    yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    yield "offset", torch.cat([x[:1], x])[1:]


@pytest.mark.parametrize("rest", [(), (3, 3), (5,)], ids=str)
@pytest.mark.parametrize("dtype, out_dtype", DTYPES, ids=str)
def test_identities_pass_through(rest, dtype, out_dtype):
    """As many points as nodes, each on its own: nothing is computed, on either side, and nothing is aliased."""
    torch.manual_seed(0)
    weight = torch.tensor([[0.0, 1, 0, 0]] * 8, dtype=accumulator(dtype))
    start = torch.arange(-1, 7, dtype=torch.int32).clamp(0, 4)
    for k in range(8):
        weight[k] = torch.eye(4)[k - int(start[k])]
    other = make_taps(5, 11, "random", accumulator(dtype))
    square, wide, tall = (torch.randn(*shape, *rest).to(dtype) for shape in ((8, 8), (8, 11), (11, 8)))
    found = ops.discretize(square, start, weight, start, weight, out_dtype)
    assert torch.equal(found, square.to(out_dtype)) and found.data_ptr() != square.data_ptr()
    adjoint = ops.discretize_adjoint(square, start, weight, start, weight, 8, 8, out_dtype)
    assert torch.equal(adjoint, square.to(out_dtype))
    rows = ops.discretize(wide, start, weight, *other, out_dtype)
    assert torch.equal(rows, ops.interpolate(wide, *other, 1, out_dtype))
    columns = ops.discretize(tall, *other, start, weight, out_dtype)
    assert torch.equal(columns, ops.interpolate(tall, *other, 0, out_dtype))
    if len(rest) == 2:
        last = square.to(memory_format=torch.channels_last)
        found = ops.discretize(last, start, weight, start, weight, out_dtype)
        assert torch.equal(found, square.to(out_dtype)) and found.is_contiguous(memory_format=torch.channels_last)
    square[2, 3] = float("nan")
    assert int(ops.discretize(square, start, weight, start, weight, out_dtype).isnan().sum()) == square[2, 3].numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_layouts_give_the_same_bits(dtype):
    taps = *make_taps(13, 20, dtype=accumulator(dtype)), *make_taps(43, 37, dtype=accumulator(dtype))
    nodes, grad = values(20, 37, 3, 3, dtype=dtype, seed=1), values(13, 43, 3, 3, dtype=dtype, seed=2)
    forward, adjoint = ops.discretize(nodes, *taps, dtype), ops.discretize_adjoint(grad, *taps, 20, 37, dtype)
    gradients = ops.discretize_tap_gradient(nodes, grad, *taps, True, True)
    for (name, nodes_like), (_, grad_like) in zip(layouts(nodes), layouts(grad)):
        got = ops.discretize(nodes_like, *taps, dtype)
        assert torch.equal(got, forward), name
        assert got.is_contiguous(
            memory_format=torch.channels_last if name == "channels_last" else torch.contiguous_format
        )
        assert torch.equal(ops.discretize_adjoint(grad_like, *taps, 20, 37, dtype), adjoint), name
        for got, want in zip(ops.discretize_tap_gradient(nodes_like, grad_like, *taps, True, True), gradients):
            assert torch.equal(got, want), name
        for dim in range(4):
            start, weight = make_taps(11, nodes.shape[dim], dtype=accumulator(dtype))
            assert torch.equal(
                ops.interpolate(nodes_like, start, weight, dim, dtype),
                ops.interpolate(nodes, start, weight, dim, dtype),
            )
    expanded = nodes[:, :, :1, :1].expand(-1, -1, 3, 3)
    assert torch.equal(ops.discretize(expanded, *taps, dtype), ops.discretize(expanded.contiguous(), *taps, dtype))
    every_other = torch.stack([taps[1], taps[1]], -1)[..., 0]
    assert torch.equal(ops.discretize(nodes, taps[0], every_other, *taps[2:], dtype), forward)


def test_infinity_stays_in_its_window():
    nodes, points = 40, 333
    for kind in KINDS:
        start, weight = make_taps(points, nodes, kind)
        at = int(start[points // 2]) + 1
        x = values(3, nodes, dtype=torch.float32, seed=1)
        x[:, at] = float("inf")
        touched = (start <= at) & (at <= start + 3)
        assert ops.interpolate(x, start, weight, 1, torch.float32)[:, ~touched].isfinite().all()
        square = ops.discretize(x[0].expand(nodes, nodes).contiguous(), start, weight, start, weight, torch.float32)
        assert square[:, ~touched].isfinite().all()
        y = values(3, points, dtype=torch.float32, seed=1)
        y[:, points // 2] = float("inf")
        reached = torch.zeros(nodes, dtype=torch.bool)
        reached[at - 1 : at + 3] = True
        assert ops.spread(y, start, weight, nodes, 1, torch.float32)[:, ~reached].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage_rounds_as_pytorch_does(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(dtype)
    wide = torch.cat(
        [
            every.float(),
            values(40000, dtype=torch.float32, seed=1) * 1e-6,
            torch.tensor([65519.99, 65520.0, 1e30, 2.0**-25, 3 * 2.0**-26]),
        ]
    )
    one = torch.tensor([0], dtype=torch.int32), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    for source in (every, wide):
        for out_dtype in (dtype, torch.float32):
            got, want = ops.interpolate(source[None], *one, 0, out_dtype)[0], source.to(out_dtype)
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got[~got.isnan()], want[~want.isnan()])


def digest(seed=0):
    """A hash of every operation's bits at sizes that run on several threads: all dtypes, each with all kinds."""
    total = hashlib.sha256()
    shapes = [(150, 131, 161, 200, ()), (40, 70, 50, 43, (3, 3)), (50, 64, 60, 90, (5,))]
    for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16, torch.float64)):
        wide = accumulator(dtype)
        for j, kind in enumerate(KINDS):
            m_out, k, m_in, n, rest = shapes[(i + j) % 3]
            taps = *make_taps(k, m_out, kind, wide, 1), *make_taps(n, m_in, kind, wide, 2)
            nodes, grad = values(m_out, m_in, *rest, dtype=dtype, seed=3), values(k, n, *rest, dtype=dtype, seed=4)
            results = [ops.discretize(nodes, *taps, dtype), ops.discretize_adjoint(grad, *taps, m_out, m_in, dtype)]
            results += ops.discretize_tap_gradient(nodes, grad, *taps, True, True)
            for dim in range(nodes.dim()):
                start, weight = make_taps(117, nodes.shape[dim], kind, wide, 5)
                results.append(ops.interpolate(nodes, start, weight, dim, dtype))
                results.append(ops.interpolate_tap_gradient(nodes, results[-1], start, 4, dim))
                results.append(ops.spread(results[-2], start, weight, nodes.shape[dim], dim, dtype))
            for result in results:
                total.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def test_same_bits_on_any_number_of_threads_and_any_instruction_set():
    threads = torch.get_num_threads()
    try:
        seen = {}
        for n in (1, 3):
            torch.set_num_threads(n)
            seen[f"{n} threads"] = digest()
    finally:
        torch.set_num_threads(threads)
    script = f"import sys; sys.path[:0] = {sys.path!r}; import test_csrc; print(test_csrc.digest())"
    for isa in ("baseline", "avx2", "avx512"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "INN_KERNELS_ISA": isa, "PYTHONPATH": os.path.dirname(__file__)},
            capture_output=True,
            text=True,
        )
        if run.returncode != 0 and "this processor has" in run.stderr:
            continue
        assert run.returncode == 0, run.stderr
        seen[isa] = run.stdout.strip()
    assert len(set(seen.values())) == 1, seen


def library_path():
    paths = [path for path in torch.ops.loaded_libraries if os.path.basename(path).startswith("_C")]
    return next(path for path in paths if "inn_kernels" in path)


def test_instruction_set_is_named():
    name = ctypes.CDLL(library_path()).inn_kernels_instruction_set
    name.restype = ctypes.c_char_p
    assert name() in (b"baseline", b"avx2", b"avx512")


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_symbols_are_those_of_the_stable_abi():
    path = library_path()
    assert path.endswith(".abi3.so")

    def symbols(which):
        lines = subprocess.run(
            ["nm", "-D", which, path], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        return [line.split()[-1].partition("@")[0] for line in lines]

    undefined = symbols("--undefined-only")
    assert not [
        name
        for name in undefined
        if re.match(r"_ZN?K?(St)?\d*(at|c10|torch)\d", name) or re.match(r"_ZNK?(2at|3c10|5torch)", name)
    ]
    assert not [name for name in undefined if name.startswith(("Py", "_Py"))]
    assert not [name for name in symbols("--defined-only") if name.startswith(("Py", "_ZN3inn", "_ZNK3inn"))]


def test_an_adjoint_of_no_points_is_zero():
    start, weight = make_taps(0, 9)
    full = make_taps(5, 9)
    for out_taps, in_taps in (((start, weight), full), (full, (start, weight))):
        grad = torch.zeros(len(out_taps[0]), len(in_taps[0]), 3)
        got = ops.discretize_adjoint(grad, *out_taps, *in_taps, 9, 9, torch.bfloat16)
        assert got.shape == (9, 9, 3) and not got.any()
    assert not ops.spread(torch.zeros(2, 0), start, weight, 9, 1, torch.float32).any()


def test_nodes_far_from_any_point_are_zero():
    """Rows of several tiles in which whole vectors of nodes, or whole tiles, see no point."""
    for points, nodes, low, high in [(10000, 20000, 0, 9900), (900, 20000, 19000, 19900), (600, 9000, 4000, 4500)]:
        start = torch.linspace(low, high, points).int()
        weight = torch.ones(points, 4)
        for rows, inner in [(64, 1), (5, 3), (7, 9)]:
            x = torch.ones(rows, points, inner)
            want = torch.bincount((start.long()[:, None] + torch.arange(4)).flatten(), minlength=nodes).float()
            got = ops.spread(x, start, weight, nodes, 1, torch.float32)
            assert torch.equal(got, want[None, :, None].expand_as(got))
            identity = torch.arange(rows).clamp(max=rows - 4).int()
            picked = torch.eye(4)[torch.arange(rows) - identity]
            got = ops.discretize_adjoint(x, identity, picked, start, weight, rows, nodes, torch.float32)
            assert torch.equal(got, want[None, :, None].expand_as(got))
            grad = torch.ones(rows, points, inner)
            d_out, _ = ops.discretize_tap_gradient(
                torch.ones(rows, nodes, inner), grad, identity, picked, start, weight, True, False
            )
            assert torch.equal(d_out, torch.full([rows, 4], 4.0 * points * inner))


@pytest.mark.parametrize("inner", [1, 12])
def test_a_long_dimension_is_made_of_pieces(inner):
    """More outputs than one band holds, along either dimension of either direction."""
    nodes, at = 2**20 + 37, torch.tensor([0, 2**20 - 2, 2**20 - 1, 2**20 + 33], dtype=torch.int32)
    weight, one = values(4, 4, dtype=torch.float32, seed=1), (torch.zeros(1, dtype=torch.int32), torch.ones(1, 4))
    x = values(4, inner, dtype=torch.float32, seed=2)
    want = torch.zeros(nodes, inner)
    for k in range(4):
        for t in range(4):
            want[int(at[k]) + t] += weight[k, t] * x[k]
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(ops.spread(x, at, weight, nodes, 0, torch.float32), want, **close)
    for taps, grad, shape in (
        ((at, weight, *one), x[:, None], (nodes, 1)),
        ((*one, at, weight), x[None], (1, nodes)),
    ):
        got = ops.discretize_adjoint(grad, *taps, *shape, torch.float32)
        torch.testing.assert_close(got, want.reshape(got.shape), **close)
    many = torch.zeros(nodes, dtype=torch.int32)
    sampled = ops.interpolate(x, many, weight[:1].expand(nodes, 4), 0, torch.bfloat16)
    assert torch.equal(sampled, sampled[:1].expand(nodes, inner))


ADJOINT_OF_ONE_POINT = """
import resource
import torch
from inn_kernels import ops
one = torch.zeros(1, dtype=torch.int32), torch.ones(1, 4)
none = torch.zeros(0, dtype=torch.int32), torch.ones(0, 4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
empty = ops.discretize_adjoint(torch.ones(0, 1), *none, *one, 0, 2**31 - 1, torch.float32)
assert empty.shape == (0, 2**31 - 1)
row = ops.discretize_adjoint(torch.ones(1, 1), *one, *one, 1, 2**24, torch.float32)
column = ops.discretize_adjoint(torch.ones(1, 1), *one, *one, 2**24, 1, torch.float32)
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
results = (row.nbytes + column.nbytes) / 1024
assert kilobytes < 2 * results, f"{kilobytes} KB for results of {results} KB"
"""


def test_bands_cost_no_more_memory_than_the_result():
    done = subprocess.run([sys.executable, "-c", ADJOINT_OF_ONE_POINT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
