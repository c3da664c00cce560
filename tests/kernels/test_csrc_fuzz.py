"""Random calls of every CPU operator, `torch.ops.inn_kernels.*`: right where the arguments fit, else refused.

Values and weights are mostly small multiples of 1/4: their sums are exact in float32, so a result must equal the
reference's in float64, rounded once. Others are real numbers, held to the numerics contract of the README. Which
arguments fit is what `inn_kernels.checks` says of the same call. A failure prints its Case: run(Case(...)) repeats it.

INN_KERNELS_FUZZ_CASES=20000 INN_KERNELS_FUZZ_SEED=7 pytest tests/kernels/test_csrc_fuzz.py      more cases, other ones
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import common
from inn_kernels import checks, operands, ops, reference

FUZZ = settings(max_examples=int(os.environ.get("INN_KERNELS_FUZZ_CASES", "500")))  # cheap ones
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 64, 97, 130, 257, 1021, 5003)
LAYOUTS = ("contiguous", "transposed", "sliced", "offset", "expanded", "channels_last", "negative")
TAPS = ("spaced", "random", "repeated", "ends", "middle", "zeros", "padded", "identity")
PER_POINT = (4, 4, 4, 1, 2, 3, 5, 6, 7, 8, 12, 33)
WRITING = ("uniform_taps", "axis_table")  # test_uniform_taps; and foreach calls the others
VALUES = ("exact", "exact", "real", "infinite")


class Case(NamedTuple):
    """A call: sizes, dtypes and kinds, and the seed of everything else."""

    operation: str
    nodes: tuple[int, int]
    points: tuple[int, int]
    per_point: tuple[int, int]  # taps
    rest: tuple[int, ...]
    dim: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    layouts: tuple[str, str]
    taps: tuple[str, str]
    values: str
    threads: int
    seed: int
    broken: int | None  # which argument does not fit, perhaps


@st.composite
def cases(draw: Callable[[st.SearchStrategy], Any], broken: bool) -> Case:
    operation = draw(st.sampled_from([name for name in ops.NAMES if "foreach" not in name and name not in WRITING]))
    size = st.sampled_from(SIZES)
    rest = draw(st.lists(st.sampled_from(SIZES[:12] if "interp" in operation else (0, 1, 2, 3, 5, 9, 17)), max_size=3))
    nodes, points = draw(st.tuples(size, size)), draw(st.tuples(size, size))
    while math.prod(max(n, 1) for n in (*map(max, nodes, points), *rest)) > 2**18:  # keeps a case under some 10 ms
        rest, nodes, points = rest[1:], (nodes[0], nodes[1] // 2), (points[0], points[1] // 2)
    dtype = draw(st.sampled_from(common.DTYPES))
    narrow = [dtype] if dtype == torch.float64 else [d for d in common.DTYPES if d != torch.float64]
    return Case(
        operation,
        nodes,
        tuple(k if n else 0 for n, k in zip(nodes, points)),  # without nodes there is nothing to sample
        draw(st.tuples(st.sampled_from(PER_POINT), st.sampled_from(PER_POINT))),
        tuple(rest),
        draw(st.integers(-len(rest) - 1, len(rest))),
        dtype,
        draw(st.sampled_from(narrow)),
        draw(st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS[:5]))),
        draw(st.tuples(st.sampled_from(TAPS), st.sampled_from(TAPS))),
        draw(st.sampled_from(VALUES)),
        draw(st.sampled_from((1, 2))),
        draw(st.integers(0, 2**31)),
        draw(st.integers(0, 11)) if broken else None,
    )


# From a case to the arguments of its call -------------------------------------------------------------------


class Maker:
    """Random tensors of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(case.seed)
        self.wide = torch.float64 if case.dtype == torch.float64 else torch.float32

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=self.generator))

    def numbers(self, *shape: int) -> Tensor:
        if self.case.values == "real":
            return torch.rand(shape, generator=self.generator, dtype=torch.float64) + 0.5
        return torch.randint(-8, 9, shape, generator=self.generator).double() / 4

    def values(self, *shape: int) -> Tensor:
        x = self.numbers(*shape).to(self.case.dtype)
        if self.case.values == "infinite" and x.numel():
            x.view(-1)[self.integer(0, x.numel())] = float("inf")
        return self.laid_out(x, self.case.layouts[0])

    def taps(self, along: int) -> tuple[Tensor, Tensor]:
        nodes, points, kind = self.case.nodes[along], self.case.points[along], self.case.taps[along]
        taps = self.case.per_point[along]
        last = max(0, nodes - taps)
        weight = self.numbers(points, taps)
        start = torch.randint(0, last + 1, (points,), generator=self.generator)
        if kind == "spaced":
            start = torch.arange(points) * last // max(points - 1, 1)
        elif kind == "repeated":
            start = start[torch.randint(0, 2, (points,), generator=self.generator)] if points > 1 else start
        elif kind == "ends":
            start = torch.where(start < last // 2, start // 8, last - (last - start) // 8)
        elif kind == "middle":
            start = last // 2 + start // 16
        elif kind == "zeros":
            weight[torch.rand(points, generator=self.generator) < 0.5] = 0
        elif kind == "padded":
            ends = torch.randint(0, taps + 1, (2, points, 1), generator=self.generator)
            weight[(torch.arange(taps) < ends[0] // 2) | (torch.arange(taps) >= ends[1])] = 0
        elif kind == "identity" and points == nodes:
            start = (torch.arange(points) - 1).clamp(0, last)
            weight = torch.eye(points + taps, dtype=torch.float64)[torch.arange(points) - start][:, :taps]
        start = start.sort().values.int()
        layout = self.case.layouts[1]
        return self.laid_out(start, layout), self.laid_out(weight.to(self.wide), layout)

    def laid_out(self, x: Tensor, layout: str) -> Tensor:
        """The same values in another layout; `expanded` repeats those at the front of a dimension along it."""
        if x.dim() == 0:
            return x
        at = self.integer(0, x.dim())
        if layout == "transposed":
            return x.transpose(0, at).contiguous().transpose(0, at)
        if layout == "sliced":
            return torch.stack([x, x], at + 1).flatten(at, at + 1)[(slice(None),) * at + (slice(None, None, 2),)]
        if layout == "offset":
            return torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape)
        if layout == "expanded" and x.shape[at] and x.is_floating_point():
            return x.narrow(at, 0, 1).expand(x.shape)
        if layout == "channels_last" and x.dim() in (4, 5):
            return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
        return torch._neg_view(-x) if layout == "negative" else x


def arguments(case: Case) -> dict[str, Any]:
    """The arguments of a case by name, before one is broken."""
    make, (m, n), (k, l), rest = Maker(case), case.nodes, case.points, case.rest
    out, into = make.taps(0), make.taps(1)
    both = dict(zip(("out_start", "out_weight", "in_start", "in_weight"), (*out, *into)))
    one = {"start": out[0], "weight": out[1]}
    at = case.dim % (len(rest) + 1)

    def along(size: int) -> Tensor:
        return make.values(*rest[:at], size, *rest[at:])

    def need() -> bool:
        return make.integer(0, 3) > 0

    name = case.operation
    if name == "discretize":
        return {"nodes": make.values(m, n, *rest), **both, "dtype": case.out_dtype}
    if name == "discretize_adjoint":
        return {"grad": make.values(k, l, *rest), **both, "out_nodes": m, "in_nodes": n, "dtype": case.out_dtype}
    if name == "discretize_tap_gradient":
        values = {"nodes": make.values(m, n, *rest), "grad": make.values(k, l, *rest)}
        return {**values, **both, "need_out": need(), "need_in": need()}
    if name == "interpolate":
        return {"x": along(m), **one, "dim": case.dim, "dtype": case.out_dtype}
    if name == "spread":
        return {"x": along(k), **one, "nodes": m, "dim": case.dim, "dtype": case.out_dtype}
    if name == "interpolate_tap_gradient":
        return {"x": along(m), "grad": along(k), "start": out[0], "taps": case.per_point[0], "dim": case.dim}
    batch = make.integer(0, 4)
    if name == "weight_gradient":
        return {"grad": make.values(batch, k), "x": make.values(batch, l)}
    if name.startswith("linear"):
        x, nodes = make.values(batch, l), make.values(m, n)
        if name == "linear":
            return {"x": x, "nodes": nodes, "bias": make.values(m) if need() else None, **both}
        need_all = {f"need_{what}": need() for what in ("x", "nodes", "bias")}
        return {"grad": make.values(batch, k), "x": x, "nodes": nodes, **both, **need_all}
    kernel, size = [make.integer(1, 4) for _ in "rs"], [make.integer(4, 8) for _ in "hw"]
    window = {what: [make.integer(low, 3) for _ in "hw"] for what, low in (("stride", 1), ("padding", 0))}
    window["dilation"] = [make.integer(1, 3) for _ in "hw"]
    nodes = make.values(m, n, *kernel)
    outputs = operands.window_sizes(size, kernel, *window.values())
    grad = make.values(batch, k, *(max(s, 0) for s in outputs))
    if name == "conv_input_gradient":
        return {"grad": grad, "nodes": nodes, **both, "size": size, **window}
    x = make.values(batch, l, *size)
    if name == "conv":
        return {"x": x, "nodes": nodes, "bias": make.values(m) if need() else None, **both, **window}
    return {"grad": grad, "x": x, "nodes": nodes, **both, **window, "need_nodes": need(), "need_bias": need()}


def break_one(case: Case, given: dict[str, Any]) -> None:
    """Change one argument to something that seldom fits."""
    make = Maker(case)
    assert case.broken is not None
    name = list(given)[case.broken % len(given)]
    value = given[name]
    if isinstance(value, Tensor):
        given[name] = broken_tensor(value, make)
    elif isinstance(value, torch.dtype):
        given[name] = (torch.int32, torch.float64, torch.float32, torch.complex64)[make.integer(0, 4)]
    elif isinstance(value, list):
        given[name] = ([0, 1], [-1, 1], [2**31, 1], [1, 2, 1], [1], [7, 7])[make.integer(0, 6)]
    elif isinstance(value, int) and not isinstance(value, bool):
        given[name] = (-1, -(2**62), 2**31, 2**62, 0, value + 1)[make.integer(0, 6)]


def broken_tensor(x: Tensor, make: Maker) -> Tensor:
    changes: list[Callable[[], Tensor]] = [
        lambda: x.long(),
        lambda: x.to(torch.float64 if x.dtype != torch.float64 else torch.float32),
        lambda: x.new_zeros(()),
        lambda: x[None],
        lambda: x.flatten(),
        lambda: x.to("meta"),
        lambda: x.to_sparse(),
    ]
    if x.dim():
        at = make.integer(0, x.dim())
        changes += [
            lambda: torch.cat([x, x], at),
            lambda: x.narrow(at, 0, max(x.shape[at] - 1, 0)),
            lambda: x.flip(0),
        ]
    if x.dtype == torch.int32:
        changes += [lambda: x - 1, lambda: x + 1, lambda: x + 2**30, lambda: x * -(2**28)]
    return changes[make.integer(0, len(changes))]()


# What must hold ---------------------------------------------------------------------------------------------


def run(case: Case) -> None:
    """Make the call, and check its results or its refusal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        given = arguments(case)
        if case.broken is not None:
            break_one(case, given)
        before = [value.clone() if isinstance(value, Tensor) else value for value in given.values()]
        called = getattr(ops, case.operation)
        try:
            getattr(checks, case.operation)(*given.values())
        except RuntimeError as refusal:
            with pytest.raises(RuntimeError) as found:
                called(*given.values())
            assert str(refusal) in str(found.value)
            return
        found = called(*given.values())
        results = found if isinstance(found, tuple) else (found,)
        assert_right(case, list(given.values()), results)
        for old, new in zip(before, given.values()):
            assert not isinstance(old, Tensor) or torch.equal(old, new), "an argument was written"
    finally:
        torch.set_num_threads(threads)


def assert_right(case: Case, given: list, results: tuple[Tensor, ...]) -> None:
    plain = getattr(reference, case.operation)
    eager = plain(*given)
    wide = [
        torch.float64 if isinstance(v, torch.dtype) else v.double() if floating(v) else v for v in given
    ]  # the same call in float64
    truth, on_meta = plain(*wide), getattr(ops, case.operation)(*[v.to("meta") if tensor(v) else v for v in given])
    eager, truth, on_meta = ((t,) if tensor(t) else t for t in (eager, truth, on_meta))
    for got, same, exact, traced in zip(results, eager, truth, on_meta):
        assert got.shape == traced.shape == exact.shape and got.dtype == traced.dtype and got.device.type == "cpu"
        if case.values == "exact":
            assert torch.equal(got, exact.to(got.dtype)), f"error {common.relative_error(got, exact):.2e}"
        elif case.values == "real":
            assert_accurate(case, got, same.to(got.dtype), exact)
        elif case.operation in ("interpolate", "spread"):  # a product of three may cancel infinities on its way
            heard = torch.full_like(got, True, dtype=torch.bool)
            if case.per_point[0] > 4:  # zeros at the ends of longer rows are not read: 0 inf may be 0
                heard = ~exact.isnan()
            assert torch.equal(got.isnan() & heard, exact.isnan() & heard)
            assert torch.equal(got.isinf() & heard, exact.isinf() & heard)


def assert_accurate(case: Case, got: Tensor, eager: Tensor, exact: Tensor) -> None:
    """The tolerance rule. Gradients of out_weight go through what a node hears of all points, positive terms added in
    order, where the reference adds none: those err as a random walk does."""
    allowed = 2 * common.relative_error(eager, exact) + common.FLOOR[got.dtype]
    if case.operation == "discretize_tap_gradient":
        allowed += torch.finfo(got.dtype).eps * math.sqrt(max(case.points))
    assert common.relative_error(got, exact) <= allowed


def tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@FUZZ
@given(case=cases(broken=False))
def test_results(case: Case) -> None:
    run(case)


@FUZZ
@given(case=cases(broken=True))
def test_refusals(case: Case) -> None:
    run(case)
