"""Taps of ints and tables of axes as the library makes them: those of the reference."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from inn_kernels import ops, reference, taps, uniform_taps
from inn_kernels.basis import BOUNDARIES, KERNELS, Basis
from inn_kernels.checks import CLOSED_FORM
from inn_kernels.operands import aligned, table_parts
from inn_kernels.taps import taps_for
from inn_kernels.uniform_taps import Wanted
from test_csrc_fuzz import FUZZ

CPU, F32, F64 = torch.device("cpu"), torch.float32, torch.float64
NODES = (1, 2, 3, 4, 5, 8, 31, 64, 97)
compiled = pytest.mark.skipif(ops.compiled_missing is not None, reason=f"no compiled kernels: {ops.compiled_missing}")


def sizes(nodes):
    return sorted({1, 2, 3, 4, 5, max(1, nodes // 3), max(1, nodes // 2), nodes, nodes + 1, 2 * nodes, 3 * nodes + 1})


def written(wanted, write):
    start = torch.full((wanted.points,), -7, dtype=torch.int32)
    weight = torch.full((wanted.points, wanted.taps), float("nan"), dtype=wanted.dtype)
    a, boundary, kernel = wanted.basis
    write(start, weight, wanted.nodes, a, kernel, boundary, wanted.quadrature, wanted.scale)
    return start, weight


def every(quadratures=CLOSED_FORM, kernels=KERNELS, nodes=NODES):
    for m in nodes:
        for k in sizes(m):
            for quadrature in quadratures:
                for kernel in kernels:
                    for boundary in BOUNDARIES:
                        for scale in (None, 3.7):
                            if scale is None or k > 1 or quadrature not in ("trapezoid", "simpson"):
                                yield Wanted(k, m, Basis(-0.6, boundary, kernel), quadrature, scale, F64)


def assert_alike(wanted):
    """Sums of a few products: fused or not (as PyTorch does it depends on the processor), they differ by round-off."""
    found, exact = written(wanted, ops.uniform_taps), written(wanted, reference.uniform_taps)
    assert torch.equal(found[0], exact[0]), wanted
    largest = exact[1].abs().max()
    allowed = 4 * torch.finfo(F64).eps * largest
    if wanted.dtype == F32:
        allowed = allowed + torch.finfo(F32).eps * exact[1].abs()
    assert bool(((found[1] - exact[1]).abs() <= allowed).all()), wanted


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("quadrature", CLOSED_FORM)
def test_taps_are_the_references(quadrature, kernel, dtype):
    for wanted in every([quadrature], [kernel]):
        assert_alike(wanted._replace(dtype=dtype))


@st.composite
def any_taps(draw):
    quadrature, scale = draw(st.sampled_from(CLOSED_FORM)), draw(st.sampled_from([None, 1.0, 0.3]))
    basis = Basis(
        draw(st.sampled_from([-0.75, -0.5, 0.0, 1.3])),
        draw(st.sampled_from(BOUNDARIES)),
        draw(st.sampled_from(KERNELS)),
    )
    size = st.one_of(st.integers(2, 40), st.integers(2, 6000))
    return Wanted(draw(size), draw(size) - 1, basis, quadrature, scale, draw(st.sampled_from([F32, F64])))


@FUZZ
@given(wanted=any_taps())
def test_fuzz(wanted):
    assert_alike(wanted)


def same_bits():
    for wanted in every(nodes=NODES[:-2]):
        for dtype in (F32, F64):
            w = wanted._replace(dtype=dtype)
            found, exact = written(w, ops.uniform_taps), written(w, reference.uniform_taps)
            assert torch.equal(found[0], exact[0]) and torch.equal(found[1], exact[1]), w


@compiled
@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere PyTorch is compiled to fuse what it adds")
def test_bits_are_those_of_sums_that_are_not_fused():
    script = f"import sys; sys.path[:0] = {sys.path!r}; import test_uniform_taps as it; it.same_bits()"
    plain = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_full_size_is_the_identity(dtype):
    for nodes in NODES:
        for kernel, quadrature in (
            ("conservative", "cells"),
            ("cubic", "left"),
            ("cubic", "midpoint"),
            ("linear", "left"),
        ):
            start, weight = written(
                Wanted(nodes, nodes, Basis(kernel=kernel), quadrature, None, dtype), ops.uniform_taps
            )
            column = start[:, None] + torch.arange(weight.shape[1])
            assert torch.equal(weight, (column == torch.arange(nodes)[:, None]).to(dtype))


def test_rows_sum_to_one_and_constants_integrate():
    for wanted in every():
        _, weight = written(wanted, ops.uniform_taps)
        if wanted.scale is None:
            torch.testing.assert_close(weight.sum(1), torch.ones(wanted.points, dtype=F64), rtol=0, atol=4e-15)
        elif wanted.points > 1 or wanted.quadrature != "right":  # whose one cell ends at 0
            torch.testing.assert_close(weight.sum().item(), wanted.scale, rtol=1e-14, atol=0)


def test_large_sizes_are_located_exactly():
    """Positions of so many points and nodes are no multiples of anything that float64 holds."""
    points, nodes = 3, 2**31 - 1
    start, weight = written(Wanted(points, nodes, Basis(), "trapezoid", None, F64), ops.uniform_taps)
    assert start.tolist() == [0, (nodes - 1) // 2 - 1, nodes - 4]
    assert weight.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    wanted = Wanted(100_003, 2**31 - 1, Basis(), "midpoint", None, F64)
    found, exact = written(wanted, ops.uniform_taps), written(wanted, reference.uniform_taps)
    assert torch.equal(found[0], exact[0])


# Tables ----------------------------------------------------------------------------------------------------------


def windows(points, nodes, width, kind):
    generator = torch.Generator().manual_seed(points + nodes + width)
    start = torch.randint(0, max(nodes - width, 0) + 1, (points,), generator=generator)
    if kind == "clustered":
        start = start // 8
    weight = torch.randn(points, width, generator=generator)
    weight[torch.rand(points, width, generator=generator) < 0.2] = 0
    start = start.sort().values.int()
    weight[start[:, None] + torch.arange(width) >= nodes] = 0
    return start, weight


def test_tables_are_the_references():
    cases = [windows(*case) for case in (
        (1, 1, 1, "even"), (9, 3, 4, "even"), (23, 70, 4, "even"), (64, 64, 8, "clustered"), (300, 65, 6, "clustered"),
        (40, 130, 1, "even"), (7, 500, 33, "even"), (129, 64, 12, "clustered"),
    )]  # fmt: skip
    nodes = [1, 3, 70, 64, 65, 130, 500, 64]
    for wanted in every(["trapezoid", "cells"], ["bspline", "conservative"], NODES[:-1]):
        cases.append(written(wanted._replace(dtype=F32), ops.uniform_taps))
        nodes.append(wanted.nodes)
    for (start, weight), m in zip(cases, nodes, strict=True):
        for contributors in (1, 4, 12):
            size = sum(map(aligned, table_parts(len(start), m, contributors)))
            found, exact = (torch.full((size,), filler, dtype=torch.int32) for filler in (-3, 5))
            ops.axis_table(found, start, weight, m, contributors)
            reference.axis_table(exact, start, weight, m, contributors)
            assert torch.equal(found, exact), (len(start), m, weight.shape[1], contributors)


# The way to a device ---------------------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch):
    """The CPU as if it were a GPU: what was copied there."""
    copied = []
    monkeypatch.setattr(uniform_taps, "copies", lambda device: True)
    monkeypatch.setattr(uniform_taps, "brought", lambda host, device: copied.append(host) or host.clone())
    monkeypatch.setattr(taps, "_of_ints", {})
    return copied


@compiled
def test_taps_of_many_axes_come_by_one_copy(device):
    wanted = [*every(["trapezoid", "cells"], ["cubic"], [1, 5, 31])]
    wanted = [w._replace(dtype=F32 if n % 3 else F64) for n, w in enumerate(wanted)]
    made = uniform_taps.made_together(wanted, CPU)
    assert len(device) == 1
    for w, (start, weight, nodes) in zip(wanted, made, strict=True):
        alone = written(w, ops.uniform_taps)
        assert torch.equal(start, alone[0]) and torch.equal(weight, alone[1]) and nodes == w.nodes
        for tensor in (start, weight):
            assert tensor.data_ptr() % 16 == 0 and tensor.is_contiguous() and tensor._base is None
    assert len({start.untyped_storage().data_ptr() for start, _, _ in made}) == 1


@compiled
def test_taps_made_ahead_are_those_that_are_asked_for(device):
    settings = [(n, 16, Basis(), "simpson", weighted, 2.0, F32, CPU) for n in (5, 9) for weighted in (True, False)]
    taps.taps_ahead(settings * 2)
    assert len(device) == 1 and len(taps._of_ints) == 4
    for points, nodes, basis, quadrature, weighted, scale, dtype, where in settings:
        options = {"quadrature": quadrature, "weighted": weighted, "scale": scale, "dtype": dtype, "device": where}
        start, weight, _ = taps_for(points, nodes, basis, **options)
        wanted = Wanted(points, nodes, basis, quadrature, scale if weighted else None, dtype)
        assert torch.equal(weight, written(wanted, ops.uniform_taps)[1]) and start.shape == (points,)
    taps.taps_ahead(settings)
    assert len(device) == 1
    taps_for(6, 16)
    assert len(device) == 2


def test_nothing_is_made_ahead_where_nothing_is_copied(monkeypatch):
    monkeypatch.setattr(taps, "_of_ints", {})
    taps.taps_ahead([(5, 16, Basis(), "simpson", True, 2.0, F32, CPU)])
    assert not taps._of_ints


@compiled
def test_taps_on_a_device_are_known_on_the_host(device):
    start, weight, _ = taps_for(5, 16)
    other, _, _ = taps_for(5, 17)
    kept = len(uniform_taps._sources)
    found = uniform_taps.on_host(start, weight)
    assert torch.equal(found[0], start) and torch.equal(found[1], weight) and found[1] is not weight
    assert uniform_taps.on_host(other, weight) is None and uniform_taps.on_host(start, weight.clone()) is None
    weight.mul_(2)
    assert uniform_taps.on_host(start, weight) is None
    taps._of_ints.clear()
    del start, weight, other
    assert len(uniform_taps._sources) == kept - 2


def test_a_tensor_on_the_host_is_its_own_copy():
    start, weight, _ = taps_for(5, 16)
    found = uniform_taps.on_host(start, weight)
    assert found[0] is start and found[1] is weight


@compiled
def test_what_has_no_closed_form_or_is_traced_is_left_to_the_reference():
    assert uniform_taps.serves("cells", True, F32, CPU) and uniform_taps.serves(lambda p: p, False, F32, CPU)
    for quadrature, weighted, dtype, where in (
        ("gauss-legendre", False, F32, CPU),
        (lambda p: p, True, F32, CPU),
        ("cells", True, torch.bfloat16, CPU),
        ("cells", True, F32, torch.device("meta")),
    ):
        assert not uniform_taps.serves(quadrature, weighted, dtype, where)
    with FakeTensorMode():
        assert not uniform_taps.serves("cells", True, F32, CPU)
