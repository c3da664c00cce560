"""What C++ launches on a replay is what Triton's own launcher launches for the same call.

Run by tests/test_replay.py in a process of its own, in which CPU tensors stand for a GPU's (bench/no_gpu.py).
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.no_gpu import NoGpu
from inn_kernels import ops
from inn_kernels.gpu import launch, replay
from inn_kernels.taps import Taps, make_taps

GPU = NoGpu()
from inn_kernels.gpu import axis_table, discretize, split_sum  # noqa: E402 (they take what it replaces)


@pytest.fixture(autouse=True)
def replaying() -> Iterator[None]:
    yield
    replay.enable(True)


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


class Launched(NamedTuple):
    """A launch: pointers as (whose, offset in bytes)."""

    function: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    parameters: list[object]


def flat(values: Any) -> list[Tensor]:
    """Every tensor of arguments or results."""
    if isinstance(values, Tensor):
        return [values]
    return [x for value in values for x in flat(value)] if isinstance(values, (list, tuple)) else []


def whose(pointer: int, arguments: list[Tensor], results: list[Tensor]) -> object:
    """What a pointer points to. Memory that only a call itself sees may be anywhere, but aligned."""
    for name, tensors in (("argument", arguments), ("result", results)):
        for n, x in enumerate(tensors):
            begin = x.untyped_storage().data_ptr()
            if x.numel() and begin <= pointer < begin + x.untyped_storage().nbytes():
                return (name if name == "argument" else "results", pointer - begin, n if name == "argument" else 0)
    return pointer if pointer in KEPT else ("scratch", pointer % 16)


KEPT: set[int] = {0}


def noted_kernels() -> dict[int, list[str]]:
    """Types of the parameters of every kernel compiled so far, all of which are noted."""
    signatures = {}
    for found in launch._compiled.values():
        kinds = [kind for kind in found.kernel.src.signature.values() if kind != "constexpr"]
        signatures[found.function] = [*kinds, "*global scratch", "*profile scratch"]
        GPU.note(found.function, len(kinds) + 2)
    return signatures


def launches(run: Callable[[], Any], arguments: Any) -> tuple[Any, list[Launched]]:
    """The call's results and what it launched."""
    signatures = noted_kernels()
    before = GPU.launches
    results = run()
    found = []
    for note in GPU.noted(GPU.launches - before):
        kinds = signatures[note.function]
        parameters: list[object] = []
        for kind, value in zip(kinds, note.values):
            if kind[0] == "*":
                parameters.append(whose(value, flat(arguments), flat(results)))
            else:
                parameters.append(value & 0xFFFFFFFF if kind == "i32" else value)
        found.append(Launched(note.function, tuple(note.grid), tuple(note.block), note.shared, parameters))
    return results, found


def form(results: Any) -> list[tuple]:
    """Everything about results but their values."""
    return [(x.dtype, x.shape, x.stride(), x.storage_offset(), x.requires_grad) for x in flat(results)]


def compare(operator: Callable, *arguments: Any) -> None:
    """A replay of the call against the call by Python."""

    def run() -> Any:
        return operator(*arguments)

    replay.enable(False)
    run()  # compiles
    KEPT.update(x.data_ptr() for x in kept_tensors())
    expected, by_python = launches(run, arguments)
    replay.enable(True)
    run()
    run()  # recorded
    before = replay.replays()
    results, by_replay = launches(run, arguments)
    assert replay.replays() == before + 1
    assert by_replay == by_python and by_python
    assert form(results) == form(expected) and type(results) is type(expected)


def kept_tensors() -> Iterator[Tensor]:
    """Tables of taps and workspaces."""
    for tables in axis_table._tables.values():
        for table in tables.values():
            yield from table
    for space in split_sum._workspaces.values():
        yield from space


def taps(points: int, nodes: int, seed: int = 0, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Start and weight of random points."""
    torch.manual_seed(seed)
    if count is None:
        made = make_taps(torch.rand(points).sort().values, nodes, dtype=F32)
        return made.start, made.weight
    start = torch.randint(0, nodes - count + 1, (points,)).sort().values.int()
    return start, torch.rand(points, count)


def off(x: Tensor) -> Tensor:
    """The same values four bytes (or two) past a multiple of 16."""
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)


SHAPES = [((8, 8), (5, 6)), ((16, 12, 3, 3), (9, 12)), ((300, 260), (299, 131))]


@pytest.mark.parametrize("nodes, points", SHAPES)
@pytest.mark.parametrize("stored, dtype", [(F32, F32), (F32, BF16), (BF16, BF16), (F16, F32)])
@pytest.mark.parametrize("aligned", [True, False])
def test_samplers(nodes: tuple, points: tuple, stored: torch.dtype, dtype: torch.dtype, aligned: bool) -> None:
    own = *taps(points[0], nodes[0]), *taps(points[1], nodes[1], 1)
    x, grad = torch.randn(nodes).to(stored), torch.randn(*points, *nodes[2:]).to(dtype)
    if not aligned:
        x, grad = off(x), off(grad)
    compare(ops.discretize, x, *own, dtype)
    compare(ops.discretize_adjoint, grad, *own, *nodes[:2], stored)
    for need in ((True, True), (True, False), (False, True)):
        compare(ops.discretize_tap_gradient, x, grad, *own, *need)
    if len(nodes) == 4:
        compare(ops.discretize, x.contiguous(memory_format=torch.channels_last), *own, dtype)
        compare(ops.discretize_adjoint, grad.contiguous(memory_format=torch.channels_last), *own, *nodes[:2], stored)


@pytest.mark.parametrize("count", [1, 2, 6, 8, 11])
def test_taps_of_other_lengths(count: int) -> None:
    own = *taps(13, 40, 0, count), *taps(21, 30, 1, count)
    compare(ops.discretize, torch.randn(40, 30), *own, BF16)
    compare(ops.discretize_adjoint, torch.randn(13, 21), *own, 40, 30, F32)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("shape", [(9, 10), (7, 8, 130), (9, 9, 3)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_along_one_axis(shape: tuple, dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    start, weight = taps(6, shape[dim])
    compare(ops.interpolate, x, start, weight, dim, dtype)
    short = list(shape)
    short[dim] = 6
    y = torch.randn(short).to(dtype)
    compare(ops.spread, y, start, weight, shape[dim], dim, dtype)
    compare(ops.interpolate_tap_gradient, x, y, start, weight.shape[1], dim)


@pytest.mark.parametrize("rows", [1, 4, 40, 300])
@pytest.mark.parametrize("dtype, stored", [(F32, F32), (BF16, F32), (BF16, BF16)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(rows: int, dtype: torch.dtype, stored: torch.dtype, bias: bool) -> None:
    own = *taps(48, 64), *taps(70, 96, 1)
    x, nodes = torch.randn(rows, 70).to(dtype), torch.randn(64, 96).to(stored)
    compare(ops.linear, x, nodes, torch.randn(64).to(stored) if bias else None, *own)
    for needs in ((True, True, True), (False, True, False), (True, False, False), (False, False, True)):
        compare(ops.linear_backward, torch.randn(rows, 48).to(dtype), x, nodes, *own, *needs)


@pytest.mark.parametrize("window", [([1, 1], [1, 1], [1, 1]), ([2, 1], [0, 2], [1, 2])])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_conv(window: tuple, dtype: torch.dtype) -> None:
    own = *taps(12, 16), *taps(20, 24, 1)
    x, nodes = torch.randn(2, 20, 9, 8).to(dtype), torch.randn(16, 24, 3, 3)
    y = ops.conv(x, nodes, None, *own, *window)
    compare(ops.conv, x, nodes, torch.randn(16), *own, *window)
    compare(ops.conv, x, nodes, None, *own, *window)
    dy = torch.randn(y.shape).to(dtype)
    compare(ops.conv_input_gradient, dy, nodes, *own, [9, 8], *window)
    compare(ops.conv_node_gradient, dy, x, nodes, *own, *window, True, True)
    compare(ops.conv_node_gradient, dy, x, nodes, *own, *window, True, False)


def test_numbers_past_int32() -> None:
    """They are as wide as Triton takes them for."""
    own, dy, nodes = (*taps(12, 16), *taps(20, 24, 1)), torch.empty(2, 12, 9, 8), torch.empty(16, 24, 3, 3)
    for padding in ([2**31 - 1, 1], [2**31, 1], [-(2**31), 1], [-(2**40) - 7, 1]):
        compare(ops.conv_input_gradient, dy, nodes, *own, [9, 8], [1, 1], padding, [1, 1])
    wide = [found.kernel.src.signature for found in launch._compiled.values()]
    assert any("i64" in signature.values() for signature in wide)


def listed(dtypes: list[torch.dtype]) -> tuple[list[Tensor], list[int], list[int]]:
    """Layers of a network, and the positions of their taps."""
    shapes = [(8, 12), (8,), (12, 8, 3, 3), (8, 3, 3, 3), (10, 12)]
    nodes = [torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes)]
    nodes[2] = nodes[2].contiguous(memory_format=torch.channels_last)
    return nodes, [0, 0, 1, 0, -1], [1, -1, 0, -1, 1]


def test_foreach() -> None:
    nodes, out, in_ = listed([F32] * 5)
    kept = taps(5, 8), taps(7, 12)
    starts, weights = [s for s, _ in kept], [w for _, w in kept]
    compare_tables(ops.discretize_foreach, nodes, starts, weights, out, in_, BF16)
    grads = [torch.randn_like(w) for w in ops.discretize_foreach(nodes, starts, weights, out, in_, F32)]
    compare_tables(ops.discretize_foreach_adjoint, grads, starts, weights, [8, 12], out, in_, F32)
    # Two kinds of nodes are two launches, and two tables.
    mixed = listed([F32, F32, BF16, BF16, F32])[0]
    compare_tables(ops.discretize_foreach, mixed, starts, weights, out, in_, F32)


def compare_tables(operator: Callable, layers: list[Tensor], *arguments: Any) -> None:
    """`compare`, with what the tables hold; then of layers elsewhere, whose tables C++ writes."""

    def run(x: list[Tensor]) -> tuple[Any, list[tuple]]:
        before = GPU.launches
        results = operator(x, *arguments)
        found = []
        for note in GPU.noted(GPU.launches - before):
            p_layers, p_tiles, p_out = note.values[:3]
            words = (p_tiles - p_layers) // 8 + note.grid[0]  # tiles are two int32
            table = tuple((ctypes.c_int64 * words).from_address(p_layers))
            out = whose(p_out, [], flat(results))
            found.append((note.function, tuple(note.grid), tuple(note.block), note.shared, table, out))
        return form(results), found

    replay.enable(False)
    operator(layers, *arguments)  # compiles
    noted_kernels()
    elsewhere = [x.clone() for x in layers]
    expected = [run(x) for x in (layers, elsewhere)]
    assert expected[0] != expected[1]
    replay.enable(True)
    run(layers)
    run(layers)
    before = replay.replays()
    for x, wanted in ((layers, expected[0]), (elsewhere, expected[1]), (layers, expected[0])):
        assert run(x) == wanted
    assert replay.replays() == before + 3


# Whose taps, and which calls are recorded ------------------------------------------------------------------------


def replayed(run: Callable[[], Any]) -> bool:
    """Whether the call is a replay."""
    before = replay.replays()
    run()
    return replay.replays() > before


def warm(run: Callable[[], Any]) -> None:
    for _ in range(3):
        run()
    assert replayed(run)


X, NODES = torch.randn(4, 48), torch.randn(64, 64)


def some_taps() -> Taps:
    return Taps(*taps(48, 64), 64)


def linear(own: Taps) -> Tensor:
    return ops.linear(X, NODES, None, own.start, own.weight, own.start, own.weight)


def table_pointers(own: Taps) -> list[int]:
    noted_kernels()
    linear(own)
    return list(GPU.noted(1)[0].values[3:14])


def test_taps_changed_in_place_have_a_new_table() -> None:
    own = some_taps()
    warm(lambda: linear(own))
    before = table_pointers(own)
    own.weight.mul_(2)
    assert not replayed(lambda: linear(own))
    warm(lambda: linear(own))
    assert table_pointers(own) != before


def test_other_taps_at_the_same_address() -> None:
    own = some_taps()
    warm(lambda: linear(own))
    other = Taps(own.start, own.weight.data, 64)  # a tensor of its own, which does not know of changes to the first
    assert other.weight._version == own.weight._version and other.weight.data_ptr() == own.weight.data_ptr()
    assert not replayed(lambda: linear(other))
    assert replayed(lambda: linear(own))


def test_plans_go_with_their_taps() -> None:
    replay.forget()
    start, weight = taps(48, 64)
    identity = weight._cdata

    def run() -> Tensor:
        return ops.linear(X, NODES, None, start, weight, start, weight)

    warm(run)
    assert replay.plans() == 1 and identity in replay._watched
    del weight, run
    gc.collect()
    assert replay.plans() == 0 and identity not in replay._watched


def test_arguments_that_share_memory_are_not_recorded() -> None:
    memory = torch.randn(70)
    own = *taps(5, 8), *taps(6, 8, 1)
    nodes = memory[:64].view(8, 8)
    weight = memory[40:60].view(5, 4)

    def run() -> Tensor:
        return ops.discretize(nodes, own[0], weight, *own[2:], F32)

    for _ in range(6):
        assert not replayed(run)


def test_the_same_tensor_twice_is_recorded() -> None:
    start, weight = taps(5, 8)

    def run(*more: Tensor) -> Tensor:
        return ops.discretize(torch.empty(8, 8), start, weight, *(more or (start, weight)), F32)

    warm(run)
    for _ in range(2):  # the same sizes, but other taps: of another kind
        assert not replayed(lambda: run(start.clone(), weight.clone()))
    assert replayed(run)


def test_copies_are_not_recorded() -> None:
    nodes, own = torch.randn(8, 8).t(), (*taps(5, 8), *taps(6, 8, 1))
    for _ in range(6):
        assert not replayed(lambda: ops.discretize(nodes, *own, F32))


def test_nothing_is_recorded_while_capturing_and_tables_stay_with_python() -> None:
    own, at = (*taps(5, 8), *taps(6, 8, 1)), some_taps()
    warm(lambda: linear(at))
    GPU.set("capturing", 1)
    try:
        for _ in range(4):
            assert not replayed(lambda: ops.discretize(torch.randn(8, 8), *own, F16))
            assert not replayed(lambda: linear(at))
    finally:
        GPU.set("capturing", 0)
    assert replayed(lambda: linear(at))


def test_hooks_of_triton_are_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    own = (*taps(5, 9), *taps(6, 9, 1))
    monkeypatch.setattr(launch, "_hooked", lambda kernel: True)
    for _ in range(4):
        assert not replayed(lambda: ops.discretize(torch.randn(9, 9), *own, F32))


def test_tf32_is_another_kind() -> None:
    own, matmul = some_taps(), torch.backends.cuda.matmul
    warm(lambda: linear(own))
    function = function_of(own)
    matmul.fp32_precision = "tf32"
    try:
        assert not replayed(lambda: linear(own))
        warm(lambda: linear(own))
        assert function_of(own) != function
    finally:
        matmul.fp32_precision = "ieee"
    assert replayed(lambda: linear(own)) and function_of(own) == function


def function_of(own: Taps) -> int:
    linear(own)
    return GPU.noted(1)[0].function


def test_plans_are_bounded() -> None:
    replay.forget()
    own = taps(4, 8)
    for n in range(1, 5000):
        for _ in range(2):
            ops.interpolate(torch.empty(n, 1, 8), *own, 2, F32)
    assert 3000 < replay.plans() <= 4096
    assert replayed(lambda: ops.interpolate(torch.empty(4999, 1, 8), *own, 2, F32))
    assert not replayed(lambda: ops.interpolate(torch.empty(1, 1, 8), *own, 2, F32))


def test_threads() -> None:
    replay.forget()
    own, wrong = some_taps(), []

    def work(seed: int) -> None:
        for n in range(400):
            size = 1 + (n * 7 + seed) % 12
            x, y = torch.empty(size, 64), torch.empty(size, 48)
            if ops.interpolate(x, own.start, own.weight, 1, BF16).shape != (size, 48):
                wrong.append(size)
            if ops.linear(y, NODES, None, own.start, own.weight, own.start, own.weight).shape != (size, 48):
                wrong.append(size)
            if n % 150 == 149:
                replay.forget()

    before, counted = replay.replays(), GPU.launches
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and replay.replays() - before > 3000
    assert counted < GPU.launches  # (the driver's own count is no atomic)


def test_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    own = some_taps()
    warm(lambda: linear(own))
    GPU.set("failing", 700)
    try:
        with pytest.raises(RuntimeError, match="CUDA error 700 at a launch: an error that a test asked for"):
            linear(own)
    finally:
        GPU.set("failing", 0)
    assert replayed(lambda: linear(own))

    def broken(*arguments: Any) -> None:
        raise ValueError("nothing fits")

    monkeypatch.setattr(discretize, "sample", broken)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="^ValueError: nothing fits$"):
            ops.discretize(torch.empty(11, 8), *taps(5, 11), *taps(6, 8, 1), F32)


def test_gradients_and_modes() -> None:
    """Arguments that require gradients change nothing; results are inference tensors where others' are."""
    own = (*taps(5, 8), *taps(6, 8, 1))
    nodes = torch.randn(8, 8)
    warm(lambda: ops.discretize(nodes, *own, F32))
    nodes.requires_grad_()
    assert replayed(lambda: ops.discretize(nodes, *own, F32))
    with torch.inference_mode():
        assert ops.discretize(nodes, *own, F32).is_inference()
    assert torch.is_grad_enabled()
    ops.discretize(torch.randn(13, 8), *taps(5, 13), *own[2:], F32)
    assert torch.is_grad_enabled()
