"""torch.ops.inn_kernels.* called with arguments that do not fit: refused by name, in the same words, by the compiled
kernels, by the fallback to the reference and while tracing."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from inn_kernels import ops

M, N, K, L = 7, 9, 5, 6
COMPILED = ("discretize", "discretize_adjoint", "discretize_tap_gradient", "interpolate", "spread",
            "interpolate_tap_gradient")  # fmt: skip


def taps(points, nodes, per_point=4):
    start = (torch.arange(points) * (max(0, nodes - per_point) + 1) // max(points, 1)).to(torch.int32)
    return start, torch.ones(points, per_point)


def zeros(*shape):
    return torch.zeros(shape)


OUT, IN = taps(K, M), taps(L, N)
TAPS = {"out_start": OUT[0], "out_weight": OUT[1], "in_start": IN[0], "in_weight": IN[1]}
WINDOW = {"stride": [1, 2], "padding": [1, 0], "dilation": [2, 1]}  # 3x2 nodes: 8x9 becomes 6x4
GOOD = {
    "discretize": {"nodes": zeros(M, N), **TAPS, "dtype": torch.float32},
    "discretize_adjoint": {"grad": zeros(K, L), **TAPS, "out_nodes": M, "in_nodes": N, "dtype": torch.float32},
    "discretize_tap_gradient": {"nodes": zeros(M, N), "grad": zeros(K, L), **TAPS, "need_out": True, "need_in": True},
    "interpolate": {"x": zeros(3, M), "start": OUT[0], "weight": OUT[1], "dim": 1, "dtype": torch.float32},
    "spread": {"x": zeros(3, K), "start": OUT[0], "weight": OUT[1], "nodes": M, "dim": 1, "dtype": torch.float32},
    "interpolate_tap_gradient": {"x": zeros(3, M), "grad": zeros(3, K), "start": OUT[0], "taps": 4, "dim": 1},
    "weight_gradient": {"grad": zeros(3, K), "x": zeros(3, L)},
    "discretize_foreach": {
        "nodes": [zeros(M, N), zeros(M), zeros(4, N)], "start": [OUT[0], IN[0]], "weight": [OUT[1], IN[1]],
        "out": [0, 0, -1], "in_": [1, -1, 1], "dtype": torch.float32,
    },
    "discretize_foreach_adjoint": {
        "grads": [zeros(K, L), zeros(K), zeros(4, L)], "start": [OUT[0], IN[0]], "weight": [OUT[1], IN[1]],
        "nodes": [M, N], "out": [0, 0, -1], "in_": [1, -1, 1], "dtype": torch.float32,
    },
    "linear": {"x": zeros(3, L), "nodes": zeros(M, N), "bias": zeros(M), **TAPS},
    "linear_backward": {
        "grad": zeros(3, K), "x": zeros(3, L), "nodes": zeros(M, N), **TAPS,
        "need_x": True, "need_nodes": True, "need_bias": True,
    },
    "conv": {"x": zeros(3, L, 8, 9), "nodes": zeros(M, N, 3, 2), "bias": zeros(M), **TAPS, **WINDOW},
    "conv_input_gradient": {
        "grad": zeros(3, K, 6, 4), "nodes": zeros(M, N, 3, 2), **TAPS, "size": [8, 9], **WINDOW
    },
    "conv_node_gradient": {
        "grad": zeros(3, K, 6, 4), "x": zeros(3, L, 8, 9), "nodes": zeros(M, N, 3, 2), **TAPS, **WINDOW,
        "need_nodes": True, "need_bias": True,
    },
    "uniform_taps": {
        "start": torch.zeros(K, dtype=torch.int32), "weight": zeros(K, 6), "nodes": M, "a": -0.5, "kernel": "bspline",
        "boundary": "keys", "quadrature": "cells", "scale": 2.0,
    },
    "axis_table": {
        "table": torch.zeros(8 + 8 + 64 + 64 + 4 + 6 * 64, dtype=torch.int32), "start": OUT[0], "weight": OUT[1],
        "nodes": M, "contributors": 6,
    },
}  # fmt: skip
MAKERS = ("uniform_taps", "axis_table")  # which write what they make into their first arguments


def start_of(*values):
    return torch.tensor(values, dtype=torch.int32)


# What is wrong, in which argument of which operation, and the words of the refusal.
BAD = {
    "weight_gradient": [
        ({"x": zeros(4, L)}, r"grad and x must have shapes \[B, K\] and \[B, L\], got \[3, "),
        ({"x": zeros(3, L).double()}, "grad and x must be of one dtype"),
        ({"grad": zeros(3, K).long()}, "grad must be float32, bfloat16, float16 or float64, got int64"),
    ],
    "discretize_foreach": [
        ({"out": [0, 0]}, "out and in_ must have one position a tensor, got 2 and 3 for 3"),
        ({"out": [0, 0, 2]}, r"a position of taps must be in \[-1, 2\), got 2"),
        ({"in_": [1, -1, -1]}, "tensor 2 has no taps"),
        ({"weight": [OUT[1]]}, "start and weight must be of one length, got 2 and 1"),
        ({"nodes": [zeros(M), zeros(M), zeros(4, N)]}, r"nodes must have shape \[rows, columns, \*kernel\], got \[7\]"),
    ],
    "discretize_foreach_adjoint": [
        ({"nodes": [M]}, "nodes must have one size for each of the taps, got 1 for 2"),
        ({"grads": [zeros(K, L + 1), zeros(K), zeros(4, L)]}, "grad must have shape"),
        ({"in_": [1, -1, -2]}, r"a position of taps must be in \[-1, 2\), got -2"),
    ],
    "discretize": [
        ({"nodes": zeros(M, N).long()}, "nodes must be float32, bfloat16, float16 or float64, got int64"),
        ({"nodes": zeros(M)}, r"nodes must have shape \[rows, columns, \*kernel\], got \[7\]"),
        ({"nodes": zeros()}, r"nodes must have shape \[rows, columns, \*kernel\], got \[\]"),
        ({"nodes": zeros(0, N)}, "out_start has 5 points but there are no nodes"),
        ({"out_start": OUT[0].long()}, "out_start must be int32, got int64"),
        ({"out_start": start_of(0)[0]}, r"out_start must have shape \[K\], got \[\]"),
        ({"in_start": IN[0][None]}, r"in_start must have shape \[K\], got \[1, 6\]"),
        ({"out_weight": OUT[1].double()}, "out_weight must be float32 for such values, got float64"),
        (
            {"in_weight": IN[1][:4]},
            r"in_weight must have shape \[6, T\] with T >= 1 as in_start has 6 points, got \[4, ",
        ),
        ({"in_weight": IN[1][:, :0]}, r"in_weight must have shape \[6, T\] with T >= 1 .*, got \[6, 0\]"),
        ({"in_weight": IN[1][..., None]}, r"in_weight must have shape \[6, T\] with T >= 1 .*, got \[6, 4, 1\]"),
        ({"in_weight": zeros()}, r"in_weight must have shape \[6, T\] with T >= 1 .*, got \[\]"),
        ({"dtype": torch.int32}, "dtype must be float32, bfloat16, float16 or float64, got int32"),
        ({"dtype": torch.float64}, "nodes and dtype must both be float64 or neither"),
    ],
    "discretize_adjoint": [
        ({"grad": zeros(K, M)}, r"grad must have shape \[5, 6\] as the taps say, got \[5, 7\]"),
        ({"out_nodes": -1}, r"out_start: the number of nodes must be in \[0, 2\^31\), got -1"),
        ({"in_nodes": 2**31}, r"in_start: the number of nodes must be in \[0, 2\^31\), got 2147483648"),
        ({"in_nodes": 0}, "in_start has 6 points but there are no nodes"),
        ({"grad": zeros(K)}, r"grad must have shape \[rows, columns"),
    ],
    "discretize_tap_gradient": [
        ({"grad": zeros(K, L, 1)}, r"grad must have shape \[5, 6\] as nodes and taps say, got \[5, 6, 1\]"),
        ({"grad": zeros(K, L).double()}, "nodes and grad must both be float64 or neither"),
        ({"grad": zeros()}, r"grad must have shape \[rows, columns"),
    ],
    "interpolate": [
        ({"dim": 2}, r"dim must be in \[-2, 1\] for x of shape \[3, 7\], got 2"),
        ({"x": zeros(), "dim": 0}, "x must have at least one dimension, got a scalar"),
        ({"start": start_of(0)[0]}, r"start must have shape \[K\], got \[\]"),
        ({"weight": zeros()}, r"weight must have shape \[5, T\] with T >= 1"),
        ({"x": zeros(3, M).bool()}, "x must be float32, bfloat16, float16 or float64"),
    ],
    "spread": [
        ({"x": zeros(3, L)}, "x must have 5 points along dim, one for each of the taps, got 6"),
        ({"nodes": -(2**62)}, r"start: the number of nodes must be in \[0, 2\^31\)"),
        ({"x": zeros(), "dim": 0}, "x must have at least one dimension, got a scalar"),
    ],
    "interpolate_tap_gradient": [
        ({"grad": zeros(3, L)}, r"grad must have shape \[3, 5\] as x and start say, got \[3, 6\]"),
        ({"grad": zeros()}, "grad must have at least one dimension, got a scalar"),
        ({"grad": zeros(3, K).double()}, "x and grad must both be float64 or neither"),
        ({"start": OUT[0][None]}, r"start must have shape \[K\]"),
        ({"taps": 0}, r"taps must be in \[1, 2\^31\), got 0"),
        ({"taps": -(2**40)}, r"taps must be in \[1, 2\^31\), got -1099511627776"),
        ({"taps": 2**31}, r"taps must be in \[1, 2\^31\), got 2147483648"),
    ],
    "linear": [
        ({"x": zeros(3, K)}, r"x must have shape \[B, 6\] as the taps say, got \[3, 5\]"),
        ({"x": zeros()}, r"x must have shape \[B, 6\] as the taps say, got \[\]"),
        ({"nodes": zeros(M, N, 1)}, r"nodes must have shape \[M_out, M_in\], got \[7, 9, 1\]"),
        ({"bias": zeros(K)}, r"bias must have shape \[7\] as nodes say, got \[5\]"),
        ({"bias": zeros(M).double()}, "nodes and bias must both be float64 or neither"),
        ({"x": zeros(3, L).double()}, "nodes and x must both be float64 or neither"),
    ],
    "linear_backward": [
        ({"grad": zeros(2, K)}, r"grad must have shape \[3, 5\] as x and taps say, got \[2, 5\]"),
        ({"grad": zeros(3, L)}, r"grad must have shape \[B, 5\] as the taps say, got \[3, 6\]"),
        ({"nodes": zeros()}, r"nodes must have shape \[M_out, M_in\], got \[\]"),
    ],
    "conv": [
        ({"x": zeros(3, L, 8)}, r"x must have shape \[B, 6, H, W\] as the taps say, got \[3, 6, 8\]"),
        ({"nodes": zeros(M, N, 3)}, r"nodes must have shape \[M_out, M_in, R, S\], got \[7, 9, 3\]"),
        ({"nodes": zeros(M, N, 3, 0)}, r"the kernel of nodes must be two numbers in \[1, 2\^31\), got \[3, 0\]"),
        ({"stride": [0, 1]}, r"stride must be two numbers in \[1, 2\^31\), got \[0, 1\]"),
        ({"padding": [-1, 1]}, r"padding must be two numbers in \[0, 2\^31\), got \[-1, 1\]"),
        ({"dilation": [1, 1, 1]}, r"dilation must be two numbers in \[1, 2\^31\), got \[1, 1, 1\]"),
        ({"dilation": [9, 1]}, r"the kernel of nodes, \[3, 2\], must fit the padded size, \[8, 9\]"),
        ({"bias": zeros()}, r"bias must have shape \[7\] as nodes say, got \[\]"),
    ],
    "conv_input_gradient": [
        ({"size": [8, 8]}, None),  # 8 and 9 columns make four windows: no error
        ({"size": [8, 10]}, r"grad must have shape \[3, 5, 6, 5\] as size, nodes and taps say, got \[3, 5, 6, 4\]"),
        ({"size": [8, -1]}, r"size must be two numbers in \[0, 2\^31\), got \[8, -1\]"),
        ({"grad": zeros(3, K)}, r"grad must have shape \[B, 5, H, W\] as the taps say, got \[3, 5\]"),
    ],
    "conv_node_gradient": [
        ({"grad": zeros(0, K, 6, 4)}, r"grad must have shape \[3, 5, 6, 4\] as x, nodes and taps say, got \[0, 5"),
        ({"x": zeros(0, L, 8, 9)}, r"grad must have shape \[0, 5, 6, 4\] as x, nodes and taps say, got \[3, 5"),
        ({"x": zeros(3, L, 8, 11)}, r"grad must have shape \[3, 5, 6, 5\] as x, nodes and taps say"),
    ],
}
BAD |= {
    "uniform_taps": [
        ({"kernel": "sinc"}, "kernel must be cubic, linear, bspline or conservative, got sinc"),
        ({"boundary": "wrap"}, "boundary must be clamp or keys, got wrap"),
        (
            {"quadrature": "gauss-legendre"},
            "quadrature must be cells, midpoint, trapezoid, simpson, left or right, got gauss-legendre",
        ),
        ({"a": float("nan")}, "a must be finite, got nan"),
        ({"a": -1e6}, r"a must be finite, got -1e\+06"),
        ({"nodes": 0}, r"nodes must be in \[1, 2\^31\), got 0"),
        ({"nodes": 2**31}, r"nodes must be in \[1, 2\^31\), got 2147483648"),
        ({"start": start_of(*range(K)).long()}, "start must be int32, got int64"),
        ({"start": start_of(0)[0]}, r"start must have shape \[K\], got \[\]"),
        ({"start": start_of()}, "start must have at least 1 points, got 0"),
        ({"start": start_of(0), "weight": zeros(1, 12), "quadrature": "simpson"}, "at least 2 points, got 1"),
        ({"weight": zeros(K, 6).half()}, "weight must be float32 or float64, got float16"),
        ({"weight": zeros(K, 4)}, r"weight must have shape \[5, 6\] for such points, got \[5, 4\]"),
        ({"weight": zeros(K - 1, 6)}, r"weight must have shape \[5, 6\] for such points, got \[4, 6\]"),
        ({"quadrature": "left"}, r"weight must have shape \[5, 4\] for such points, got \[5, 6\]"),
    ],
    "axis_table": [
        ({"table": torch.zeros(9, dtype=torch.int32)}, r"table must have shape \[532\] for such taps, got \[9\]"),
        ({"table": zeros(532)}, "table must be int32, got float32"),
        ({"start": OUT[0].long()}, "start must be int32, got int64"),
        ({"weight": OUT[1].double()}, "weight must be float32 for such values, got float64"),
        ({"start": OUT[0][:0], "weight": OUT[1][:0]}, "start must have at least 1 points, got 0"),
        ({"contributors": 0}, r"contributors must be in \[1, 2\^15\), got 0"),
        ({"contributors": 2**15}, r"contributors must be in \[1, 2\^15\), got 32768"),
        ({"nodes": 0}, "start has 5 points but there are no nodes"),
    ],
}
# Refused where the values are known: not while tracing.
BAD_VALUES = {
    "discretize": [
        ({"nodes": zeros(M, N - 3)}, r"in_start must be in \[0, 2\] for 6 nodes and 4 taps a point, got 5 at 5"),
        ({"in_start": IN[0] - 1}, r"in_start must be in \[0, 5\], got -1 at 0"),
        ({"out_start": OUT[0] + 100}, r"out_start must be in \[0, 3\] for 7 nodes and 4 taps a point, got 103 at 4"),
        ({"out_start": start_of(0, 1, 2**30, 3, 3)}, "out_start must not decrease"),
        ({"in_weight": torch.ones(L, 6)}, r"in_start must be in \[0, 3\] for 9 nodes and 6 taps a point, got 5 at 5"),
        ({"out_weight": torch.ones(K, 8)}, r"out_start must be in \[0, 0\] for 7 nodes and 8 taps a point, got 3 at 4"),
    ],
    "spread": [({"nodes": 5}, r"start must be in \[0, 1\] for 5 nodes and 4 taps a point, got 3 at 4")],
    "interpolate_tap_gradient": [
        ({"start": OUT[0].flip(0)}, "start must"),
        ({"taps": 5}, r"start must be in \[0, 2\] for 7 nodes and 5 taps a point, got 3 at 4"),
    ],
    "linear": [({"in_start": IN[0] + 1}, r"in_start must be in \[0, 5\] for 9 nodes and 4 taps a point, got 6 at 5")],
    "conv": [({"out_start": OUT[0] - 1}, r"out_start must be in \[0, 3\], got -1 at 0")],
    "uniform_taps": [  # contiguous once they are on the meta device
        ({"start": start_of(*range(2 * K))[::2]}, "start must be contiguous"),
        ({"weight": zeros(6, K).T}, "weight must be contiguous"),
    ],
    "axis_table": [
        ({"start": OUT[0].flip(0)}, "start must"),
        ({"table": torch.zeros(2 * 532, dtype=torch.int32)[::2]}, "table must be contiguous"),
    ],
}


def listed(table):
    return [(name, changes, message) for name, rows in table.items() for changes, message in rows]


def refused(call, arguments, message):
    if message is None:
        return call(*arguments)
    with pytest.raises(RuntimeError, match=message):
        call(*arguments)


@pytest.fixture(params=["operator", "fallback"])
def call(request):
    """The operator on CPU tensors as it is called, and the reference that stands in where nothing is compiled."""
    return {"operator": lambda name: getattr(ops, name), "fallback": ops._fallback}[request.param]


@pytest.mark.parametrize("name", GOOD)
def test_good_arguments_are_taken(name, call):
    assert set(GOOD) == set(ops.NAMES)
    call(name)(*GOOD[name].values())


@pytest.mark.parametrize("out_taps, in_taps", [(1, 6), (7, 3), (8, 12), (33, 2)])
@pytest.mark.parametrize("name", [name for name in GOOD if name not in ("weight_gradient", *MAKERS)])
def test_any_number_of_taps_is_taken(name, out_taps, in_taps, call):
    """More, too, than there are nodes."""
    arguments, out, into = dict(GOOD[name]), taps(K, M, out_taps), taps(L, N, in_taps)
    if "foreach" in name:
        arguments |= {"start": [out[0], into[0]], "weight": [out[1], into[1]]}
    elif "start" in arguments:
        arguments["start"] = out[0]
        arguments |= {"weight": out[1]} if "weight" in arguments else {"taps": out_taps}
    else:
        arguments |= {"out_start": out[0], "out_weight": out[1], "in_start": into[0], "in_weight": into[1]}
    found, plain = call(name)(*arguments.values()), call(name)(*GOOD[name].values())
    for value, four in zip(*([v] if isinstance(v, torch.Tensor) else v for v in (found, plain)), strict=True):
        assert value.shape[:-1] == four.shape[:-1] and not value.any()
    if name == "discretize_tap_gradient":
        assert [list(value.shape) for value in found] == [[K, out_taps], [L, in_taps]]
    if name == "interpolate_tap_gradient":
        assert list(found.shape) == [K, out_taps]


@pytest.mark.parametrize("name, changes, message", listed(BAD) + listed(BAD_VALUES))
def test_bad_arguments_are_refused(name, changes, message, call):
    refused(call(name), {**GOOD[name], **changes}.values(), message)


@pytest.mark.parametrize("name, changes, message", listed(BAD))
def test_bad_arguments_are_refused_while_tracing(name, changes, message):
    arguments = {**GOOD[name], **changes}.values()
    on_meta = tree_map_only(torch.Tensor, lambda value: value.to("meta"), list(arguments))
    refused(getattr(ops, name), on_meta, message)
    with FakeTensorMode() as mode:
        fake = tree_map_only(torch.Tensor, mode.from_tensor, list(arguments))
        refused(getattr(ops, name), fake, message)


OPERANDS = [
    (name, key) for name, good in GOOD.items() for key, value in good.items() if isinstance(value, torch.Tensor)
]


@pytest.mark.parametrize("name, operand", OPERANDS)
def test_every_operand_must_be_on_the_device_of_the_others(name, operand):
    good = GOOD[name]
    others = {key: value.to("meta") if isinstance(value, torch.Tensor) and key != operand else value
              for key, value in good.items()}  # fmt: skip
    for arguments in ({**good, operand: good[operand].to("meta")}, others):
        with pytest.raises(RuntimeError, match=r"\w+ must be on the device of the other operands, (cpu|meta), got"):
            getattr(ops, name)(*arguments.values())


@pytest.mark.parametrize("name, operand", OPERANDS)
def test_sparse_operands_are_refused(name, operand, call):
    sparse = GOOD[name][operand].to_sparse()
    with pytest.raises(RuntimeError, match=f"{operand} must be a dense"):
        call(name)(*{**GOOD[name], operand: sparse}.values())


@pytest.mark.parametrize("shape, dim", [((1, 2**30 + 8, 2), 1), ((2**31, 1), 0), ((1, 2**28, 15), 1)])
@pytest.mark.skipif(ops.compiled_missing is not None, reason="a bound of the compiled kernels")
def test_elements_beyond_int32_are_refused_before_they_are_copied(shape, dim):
    x, start, weight = torch.zeros(1).expand(shape), start_of(0), torch.ones(1, 4)
    y = x.narrow(dim, 0, 1)
    for call in (
        lambda: ops.interpolate(x, start, weight, dim, torch.float32),
        lambda: ops.interpolate_tap_gradient(x, y, start, 4, dim),
    ):
        with pytest.raises(RuntimeError, match=r"x must have fewer than 2\^31 elements from dim"):
            call()
    many = start.expand(shape[dim])
    with pytest.raises(RuntimeError, match=r"x must have fewer than 2\^31 elements from dim"):
        ops.spread(x, many, weight.expand(len(many), 4), 4, dim, torch.float32)


@pytest.mark.skipif(ops.compiled_missing is not None, reason="a bound of the compiled kernels")
def test_sizes_beyond_int64_are_refused():
    """An empty dimension lets PyTorch take sizes whose product no integer holds."""
    huge = torch.zeros(0, 2**31 - 1, 1).expand(0, 2**31 - 1, 2**40)
    nothing, one = taps(0, 4), (start_of(0), torch.ones(1, 4))
    for call in (
        lambda: ops.discretize(huge, *nothing, *one, torch.float32),
        lambda: ops.discretize_adjoint(huge, *nothing, *one, 4, 4, torch.float32),
        lambda: ops.discretize_tap_gradient(huge, huge, *nothing, *one, True, True),
        lambda: ops.interpolate(huge, *one, 1, torch.float32),
        lambda: ops.spread(huge, *one, 4, 1, torch.float32),
        lambda: ops.interpolate_tap_gradient(huge, huge, one[0], 4, 1),
    ):
        with pytest.raises(RuntimeError, match=r"(nodes|grad|x) must have fewer than 2\^60 elements"):
            call()
    with pytest.raises(RuntimeError, match=r"the result must have fewer than 2\^60 elements"):
        ops.discretize_adjoint(zeros(0, 0, 9), *nothing, *nothing, 2**31 - 1, 2**31 - 1, torch.float32)
