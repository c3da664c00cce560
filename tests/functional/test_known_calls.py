"""Calls alike to one that was checked before: checked no more, and as right as it was."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import integral_nn as inn
from integral_nn.functional import linear


def arguments(requires_grad: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*size).requires_grad_(requires_grad) for size in ((3, 7), (10, 9), (10,))]


def known() -> int:
    return len(linear._ways)


def test_a_call_is_known_by_what_decides_it():
    x, nodes, bias = arguments()
    first = inn.integral_linear(x, nodes, bias, 5, 7)
    assert known() == 1
    assert torch.equal(inn.integral_linear(x, nodes, bias, 5, 7), first)
    twice = inn.integral_linear(2 * x, nodes.clone(), bias * 2, 5, 7)
    torch.testing.assert_close(twice, 2 * first)
    assert known() == 1
    centred = {"quadrature": "midpoint"}
    others = [{"scale": 2.0}, {"kernel": "bspline"}, {"a": -0.5}, centred, {**centred, "boundary": "keys"}]
    made = [first]
    for other in others:
        made.append(inn.integral_linear(x, nodes, bias, 5, 7, **other))
        assert known() == len(made)
        assert not any(torch.equal(made[-1], before) for before in made[:-1])
    assert inn.integral_linear(x, nodes, bias, 6, 7).shape == (3, 6)
    assert inn.integral_linear(x, nodes, None, 5, 7).shape == (3, 5)
    assert inn.integral_linear(x[:2], nodes, bias, 5, 7).shape == (2, 5)
    assert inn.integral_linear(x.double(), nodes.double(), bias.double(), 5, 7).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"x": torch.randn(3, 7).int()}, TypeError, "x must be"),
        ({"x": torch.randn(3, 7).to_sparse()}, TypeError, "x must be a dense tensor"),
        ({"x": torch.empty(3, 7, device="meta")}, ValueError, "x must be on"),
        ({"x": torch.randn(3, 8)}, ValueError, "x must have 7"),
        ({"bias": torch.randn(9)}, ValueError, "bias must have shape"),
        ({"bias": 1.0}, TypeError, "bias must be"),
        ({"nodes": torch.randn(10)}, ValueError, "nodes must have shape"),
        ({"scale": True}, TypeError, "scale must be"),
        ({"a": True}, TypeError, "a must be"),
        ({"scale": float("nan")}, ValueError, "scale must be finite"),
        ({"dataflow": "none"}, ValueError, "dataflow must be"),
        ({"backend": "none"}, ValueError, "backend must be"),
        ({"quadrature": ["trapezoid"]}, TypeError, "quadrature must be"),
        ({"in_partition": 7.0}, TypeError, "in_partition must be"),
        ({"out_partition": True}, TypeError, "out_partition must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_refused_after_a_call_that_was_right(change, error, said):
    x, nodes, bias = arguments()
    right = {"x": x, "nodes": nodes, "bias": bias, "out_partition": 1, "in_partition": 7, "scale": 1.0, "a": 1.0}
    for _ in range(2):
        inn.integral_linear(**right)
    for _ in range(2):
        with pytest.raises(error, match=said):
            inn.integral_linear(**{**right, **change})


def test_gradients_are_recorded_where_they_are_asked_for():
    x, nodes, bias = arguments(True)
    with torch.no_grad():
        value = inn.integral_linear(x, nodes, bias, 5, 7)
    assert not value.requires_grad
    with torch.inference_mode():
        inn.integral_linear(x, nodes, bias, 5, 7)
    inn.integral_linear(x.detach(), nodes.detach(), None, 5, 7)
    for wanted in (x, nodes, bias):
        wanted.grad = None
        inn.integral_linear(x, nodes, bias, 5, 7).sum().backward(inputs=[wanted])
        assert wanted.grad is not None
    torch.testing.assert_close(inn.integral_linear(x, nodes, bias, 5, 7), value)


def test_autocast_on_and_off():
    x, nodes, bias = arguments()
    for on in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            made = inn.integral_linear(x, nodes, bias, 5, 7)
        assert made.dtype == (torch.bfloat16 if on else torch.float32)


def test_transforms_and_fake_tensors_go_the_full_way():
    x, nodes, bias = arguments()
    value = inn.integral_linear(x, nodes, bias, 5, 7)
    count = known()
    mapped = torch.func.vmap(lambda row: inn.integral_linear(row, nodes, bias, 5, 7))(x)
    torch.testing.assert_close(mapped, value)
    _, tangent = torch.func.jvp(lambda x: inn.integral_linear(x, nodes, None, 5, 7), (x,), (x,))
    torch.testing.assert_close(tangent, inn.integral_linear(x, nodes, None, 5, 7))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x, nodes, bias)]
        assert inn.integral_linear(*fake, 5, 7).shape == (3, 5)
    assert known() == count + 1  # the call without bias
    assert torch.equal(inn.integral_linear(x, nodes, bias, 5, 7), value)


def test_points_and_rules_that_hold_values_are_looked_at_in_every_call():
    x, nodes, bias = arguments()
    points, rule = torch.linspace(0, 1, 7), torch.ones(7)
    first = inn.integral_linear(x, nodes, None, 5, points, quadrature=rule)
    rule.mul_(2)
    torch.testing.assert_close(inn.integral_linear(x, nodes, None, 5, points, quadrature=rule), 2 * first)
    points.copy_(torch.linspace(0, 1, 7).flip(0))
    with pytest.raises(ValueError, match="in_partition must be strictly increasing"):
        inn.integral_linear(x, nodes, bias, 5, points, quadrature=rule)
    assert known() == 0


def test_no_tensor_of_a_caller_is_kept_and_not_without_end(monkeypatch):
    monkeypatch.setattr(linear, "_KEPT", 3)
    x, nodes, bias = arguments()
    gone = [weakref.ref(t) for t in (x, nodes, bias)]
    for size in range(2, 10):
        inn.integral_linear(x, nodes, bias, size, 7)
        assert known() <= 3
    del x, nodes, bias
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_threads(monkeypatch):
    monkeypatch.setattr(linear, "_KEPT", 3)  # which they empty all the time
    x, nodes, bias = arguments()
    wanted = {size: inn.integral_linear(x, nodes, bias, size, 7) for size in range(2, 10)}
    failures: list[BaseException] = []

    def run(first: int) -> None:
        try:
            for turn in range(100):
                size = 2 + (first + turn) % 8
                assert torch.equal(inn.integral_linear(x, nodes, bias, size, 7), wanted[size])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
