"""Random calls of every public operator against its definition in float64 (`oracle`), under README's numerics contract.

A failure prints a program to paste. `make fuzz CASES=20000 SEED=7` runs more of them.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import common
import fuzzing
import programs
from oracle import Definition
from programs import Call

PARTITIONS = ("out_partition", "in_partition")


def run(call: Call) -> dict[str, Any]:
    """The program's names once it has run, up to the incoming gradient."""
    scope = programs.namespace()
    exec("\n".join(call.lines()), scope)
    scope["memory"] = {name: bytes_of(scope[name]) for name in call.tensors if isinstance(scope[name], Tensor)}
    exec(call.call(), scope)
    scope["grad"] = eval(call.grad, scope)
    scope["memory"]["grad"] = bytes_of(scope["grad"])
    return scope


def bytes_of(t: Tensor) -> Tensor:
    """All of a tensor's memory, what lies between and around its elements included."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).clone()


def arguments_of(call: Call, scope: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name, as the oracle takes them."""
    tensors = {name: scope[name] for name in call.tensors}
    return tensors | {name: eval(expression, scope) for name, expression in call.options.items()}


def compute_dtype(call: Call, arguments: dict[str, Any]) -> torch.dtype:
    """What a call computes in: x's dtype, or the one that discretize is asked for."""
    return arguments["x"].dtype if "x" in arguments else arguments.get("dtype", arguments["nodes"].dtype)


def check_accuracy(call: Call, scope: dict[str, Any], found: dict[str, Tensor]) -> None:
    """error <= 2 x plain PyTorch's in the same dtype + a few units in the last place, for the value and gradients."""
    arguments = arguments_of(call, scope)
    compute, grad, wanted = compute_dtype(call, arguments), scope["grad"], list(call.trained)
    definition = Definition(call.function, arguments)
    dtypes = {name: t.dtype for name, t in arguments.items() if isinstance(t, Tensor)}
    dtypes |= {name: scope[name].dtype for name in wanted}
    truth = definition.gradients({}, wanted, torch.float64, grad)
    eager = definition.gradients(dtypes, wanted, compute, grad)
    sizes = definition.sizes(wanted, grad, common.FLOOR[compute], torch.finfo(compute).tiny)
    for name, size in sizes.items():  # no overflow on the way to a value that is itself in range
        largest = min(torch.finfo(compute).max, torch.finfo(eager[name].dtype).max)
        assume(bool(size.isfinite().all()) and float(size.sum()) < 0.1 * largest)
    for name, exact in truth.items():
        got, theirs = found[name], eager[name].double()
        assert got.dtype == eager[name].dtype, f"{name} is {got.dtype}, expected {eager[name].dtype}"
        assert got.shape == exact.shape, f"{name} has shape {list(got.shape)}, expected {list(exact.shape)}"
        if exact.numel() == 0:
            continue
        floor = max(common.FLOOR[compute], common.FLOOR[got.dtype])
        worst = float((theirs - exact).abs().max())
        allowed = 2 * worst + floor * sizes[name]
        excess = torch.where(got.isnan(), torch.inf, (got.double() - exact).abs() - allowed)
        at = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        off = abs(float(got[at]) - float(exact[at]))
        wrong = (
            f"{name}{list(at)} is {float(got[at])!r}, by the definition {float(exact[at])!r}: off by {off:.2e}, "
            f"allowed {float(allowed[at]):.2e} (plain PyTorch's error {worst:.2e})"
        )
        assert not float(excess[at]) > 0, wrong


def check_call(call: Call) -> None:
    """Values, gradients, the same bits again, nothing written."""
    with programs.reported(call.program):
        scope = run(call)
        found = {"y": scope["y"].detach()}
        if call.trained:
            exec(call.backward(), scope)
            found |= dict(zip(call.trained, scope["gradients"]))
            exec(call.backward(), scope)
            for name, again in zip(call.trained, scope["gradients"]):
                assert common.same_bits(found[name], again), f"the gradient of {name} differs in a second backward pass"
        exec(call.call(), scope)
        assert common.same_bits(found["y"], scope["y"]), "a second call gives other bits"
        for name, before in scope["memory"].items():
            assert torch.equal(bytes_of(scope[name]), before), f"{name} was written"
        check_accuracy(call, scope, found)


@given(data=st.data())
def test_operators(backend, data):
    check_call(data.draw(fuzzing.calls(backend)))


def results(call: Call) -> dict[str, Tensor]:
    """The value and every gradient asked for."""
    scope = run(call)
    if call.trained:
        exec(call.backward(), scope)
    return {"y": scope["y"].detach(), **dict(zip(call.trained, scope.get("gradients", ())))}


def check_same_bits(draw: Any) -> None:
    """discretize is kernels from end to end: any layout, any number of threads."""
    call = draw(fuzzing.discretize("cpp", rows=2))._replace(threads=1)
    call = call._replace(trained=("nodes", *(name for name in PARTITIONS if name in call.trained)))
    plain = {n: e if "partition" in n else f"({e}).contiguous()" for n, e in call.tensors.items()}
    others = {
        "with two threads": call._replace(threads=2),
        "of contiguous tensors": call._replace(tensors=plain, grad=f"({call.grad}).contiguous()"),
    }
    with programs.reported(call.program):
        first = results(call)
    for how, other in others.items():
        with programs.reported(other.program):
            for name, value in results(other).items():
                assert common.same_bits(value, first[name]), f"{name} differs {how}"


@settings(max_examples=max(1, settings().max_examples // 4))  # large ones
@given(data=st.data())
def test_same_bits(cpp, data):
    check_same_bits(data.draw)
