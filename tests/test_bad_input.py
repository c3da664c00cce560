"""Bad input: a clear error that names the argument, what it got and what it wanted, before anything is computed."""

# ruff: noqa: B023 (every lambda in a loop is called at once)

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import common
import integral_nn as inn
from common import QUADRATURES
from inn_kernels import dispatch, ops

PREPARES = ("uniform_taps",)
HEAVY = ("inn_kernels", "mm", "addmm", "bmm", "linear", "convolution", "index_select", "index_add", "index_add_")


class NothingHeavy(TorchDispatchMode):
    """Fails on any operation that computes the result rather than checks or prepares it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        assert name in PREPARES or (func.namespace != "inn_kernels" and name not in HEAVY), (
            f"computed {func} before the error"
        )
        return func(*args, **(kwargs or {}))


def raises(error, *words):
    """The error, its message in the order of `words`."""
    return pytest.raises(error, match=".*".join(re.escape(w) for w in words))


def refused(error, words, call):
    with NothingHeavy(), raises(error, *words):
        call()


NODES, BIAS = torch.ones(7, 6), torch.ones(7)
KERNELS = torch.ones(7, 6, 3, 3)
X, IMAGE = torch.ones(2, 5), torch.ones(2, 5, 8, 8)
META = torch.ones(5, device="meta")


def linear(x=X, nodes=NODES, bias=BIAS, out_partition=4, in_partition=5, **options):
    return inn.integral_linear(x, nodes, bias, out_partition, in_partition, **options)


def conv(x=IMAGE, nodes=KERNELS, bias=BIAS, out_partition=4, in_partition=5, **options):
    return inn.integral_conv2d(x, nodes, bias, out_partition, in_partition, **options)


def sample(nodes=NODES, out_partition=4, in_partition=5, **options):
    return inn.discretize(nodes, out_partition, in_partition, **options)


CALLS = {"integral_linear": linear, "integral_conv2d": conv, "discretize": sample}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def test_the_good_input_is_good():
    for call in CALLS.values():
        call()


# Partitions -------------------------------------------------------------------------------------------------

PARTITIONS = {
    "falling": (torch.tensor([0.0, 0.5, 0.4, 0.9, 1.0]), ValueError, ["strictly increasing", "0.5", "0.4", "point 1"]),
    "repeated": (torch.tensor([0.0, 0.5, 0.5, 0.9, 1.0]), ValueError, ["strictly increasing", "point 1"]),
    "below 0": (torch.tensor([-0.1, 0.3, 0.5, 0.9, 1.0]), ValueError, ["[0, 1]", "-0.1"]),
    "above 1": (torch.tensor([0.0, 0.3, 0.5, 0.9, 1.5]), ValueError, ["[0, 1]", "1.5"]),
    "NaN": (torch.tensor([0.0, 0.3, float("nan"), 0.9, 1.0]), ValueError, ["finite", "NaN"]),
    "NaN first": (torch.tensor([float("nan"), 0.3, 0.5, 0.9, 1.0]), ValueError, ["finite", "NaN"]),
    "infinite": (torch.tensor([0.0, 0.3, 0.5, 0.9, float("inf")]), ValueError, ["finite"]),
    "minus infinite": (torch.tensor([-float("inf"), 0.3, 0.5, 0.9, 1.0]), ValueError, ["finite"]),
    "integers": (torch.arange(5), TypeError, ["floating-point", "int64"]),
    "bool tensor": (torch.zeros(5, dtype=torch.bool), TypeError, ["floating-point", "bool"]),
    "complex": (torch.zeros(5, dtype=torch.complex64), TypeError, ["floating-point", "complex64"]),
    "rank 2": (torch.zeros(5, 1), ValueError, ["[K]", "[5, 1]"]),
    "rank 0": (torch.tensor(0.5), ValueError, ["[K]", "[]"]),
    "empty": (torch.zeros(0), ValueError, ["at least 1 point", "empty"]),
    "zero": (0, ValueError, ["at least 1 point", "0"]),
    "negative": (-3, ValueError, ["at least 1 point", "-3"]),
    "float": (5.0, TypeError, ["int", "float"]),
    "bool": (True, TypeError, ["int", "bool"]),
    "list": ([0.0, 0.5, 1.0], TypeError, ["tensor", "list"]),
    "string": ("uniform", TypeError, ["tensor", "str"]),
    "elsewhere": (META, ValueError, ["device", "cpu", "meta"]),
}


@every_call
@pytest.mark.parametrize("name", ["out_partition", "in_partition"])
@pytest.mark.parametrize("bad", PARTITIONS)
def test_partitions(bad, name, call):
    value, error, words = PARTITIONS[bad]
    refused(error, [name, *words], lambda: call(**{name: value}))


@pytest.mark.parametrize("bad", [name for name in PARTITIONS if name != "elsewhere"])
def test_partitions_of_other_functions(bad):
    value, error, words = PARTITIONS[bad]
    refused(error, ["spatial_partitions[1]", *words], lambda: conv(spatial_partitions=[None, value]))
    if not isinstance(value, list):  # a list holds partitions here
        refused(error, ["partitions[0]", *words], lambda: inn.integrate(torch.exp, [value]))
    if isinstance(value, torch.Tensor):
        refused(error, ["partition", *words], lambda: inn.quadrature_weights("left", value))


@every_call
@pytest.mark.parametrize("rule", ["trapezoid", "simpson"])
def test_one_point_for_a_closed_rule(rule, call):
    for one in (1, torch.tensor([0.5])):
        refused(
            ValueError,
            ["in_partition", "at least 2", "closed", rule, "1"],
            lambda one=one: call(in_partition=one, quadrature=rule),
        )
    refused(ValueError, ["partition", "at least 2", rule], lambda: inn.quadrature_weights(rule, torch.tensor([0.5])))
    refused(ValueError, ["partition", "at least 2", rule], lambda: inn.integrate(torch.exp, 1, quadrature=rule))
    sample(in_partition=5, out_partition=1, quadrature=rule)  # nothing is integrated along the output


@pytest.mark.parametrize("rule", [r for r in QUADRATURES if r not in ("trapezoid", "simpson")])
def test_one_point_is_enough_for_an_open_rule(rule):
    assert sample(in_partition=1, quadrature=rule).shape == (4, 1)


def test_spatial_partitions():
    for bad in ([3], [3, 3, 3], 3, torch.ones(3)):
        refused(ValueError, ["spatial_partitions", "2"], lambda bad=bad: conv(spatial_partitions=bad))
    refused(ValueError, ["spatial_partitions"], lambda: sample(spatial_partitions=[3]))
    refused(ValueError, ["in_partition", "rank 2"], lambda: inn.discretize(BIAS, 4, 5))


# Quadratures ------------------------------------------------------------------------------------------------


@every_call
def test_quadratures(call):
    refused(ValueError, ["quadrature", "trapezoid", "'gauss'"], lambda: call(quadrature="gauss"))
    refused(TypeError, ["quadrature", "3"], lambda: call(quadrature=3))
    refused(TypeError, ["quadrature", "NoneType"], lambda: call(quadrature=None))
    for wrong in (torch.ones(4), torch.ones(6), torch.ones(0)):
        refused(ValueError, ["quadrature", "[5]", f"[{len(wrong)}]"], lambda wrong=wrong: call(quadrature=wrong))
        refused(
            ValueError, ["quadrature", "[5]", f"[{len(wrong)}]"], lambda wrong=wrong: call(quadrature=lambda p: wrong)
        )
    refused(ValueError, ["quadrature", "shape", "[5, 1]"], lambda: call(quadrature=torch.ones(5, 1)))
    refused(
        TypeError, ["quadrature", "floating-point", "int64"], lambda: call(quadrature=torch.ones(5, dtype=torch.int64))
    )
    refused(
        TypeError,
        ["quadrature", "floating-point", "int64"],
        lambda: call(quadrature=lambda p: torch.ones(5, dtype=torch.int64)),
    )
    refused(TypeError, ["quadrature", "tensor", "list"], lambda: call(quadrature=lambda p: [0.2] * 5))
    refused(ValueError, ["quadrature", "device", "meta"], lambda: call(quadrature=META))


def test_other_quadratures():
    refused(ValueError, ["quadrature", "'gauss'"], lambda: inn.quadrature_weights("gauss", torch.rand(5).sort().values))
    refused(ValueError, ["quadrature", "'gauss'"], lambda: inn.integrate(torch.exp, 5, quadrature="gauss"))
    refused(ValueError, ["quadrature", "2", "3"], lambda: inn.integrate(torch.add, [5, 5], quadrature=["left"] * 3))
    refused(ValueError, ["quadrature", "'gauss'"], lambda: inn.Axis(8, quadrature="gauss"))
    refused(TypeError, ["quadrature", "Tensor"], lambda: inn.Axis(8, quadrature=torch.ones(8)))


# Tensors ----------------------------------------------------------------------------------------------------


@every_call
def test_nodes(call):
    for shape in ((), (7,), (7, 6, 3, 3, 3, 3)):
        if call is sample and shape != ():
            continue
        refused(
            ValueError, ["nodes", "[M_out, M_in", str(list(shape))], lambda shape=shape: call(nodes=torch.ones(shape))
        )
    for shape in ((0, 6), (7, 0)):
        nodes = torch.ones(*shape, 3, 3) if call is conv else torch.ones(shape)
        refused(ValueError, ["nodes", "empty"], lambda nodes=nodes: call(nodes=nodes))
    refused(TypeError, ["nodes", "floating-point", "int64"], lambda: call(nodes=torch.ones(7, 6, 3, 3).long()))
    refused(TypeError, ["nodes", "floating-point", "complex64"], lambda: call(nodes=torch.ones(7, 6, 3, 3).cfloat()))
    refused(TypeError, ["nodes", "tensor", "list"], lambda: call(nodes=[[1.0]]))
    refused(TypeError, ["nodes", "tensor", "NoneType"], lambda: call(nodes=None))


def test_conv_ranks():
    for function, rank in ((inn.integral_conv1d, 1), (inn.integral_conv2d, 2), (inn.integral_conv3d, 3)):
        for other in (0, rank + 1):
            x, nodes = torch.ones(2, 5, *[4] * rank), torch.ones(7, 6, *[3] * other)
            refused(
                ValueError,
                ["nodes", "[M_out, M_in" + ", k" * rank + "]", str(list(nodes.shape))],
                lambda: function(x, nodes, None, 4, 5),
            )
        for shape in ((2, 5, *[4] * (rank + 1)), (5,) * (rank - 1), (2, 2, 5, *[4] * rank)):
            refused(
                ValueError,
                ["x", str(list(shape))],
                lambda: function(torch.ones(shape), torch.ones(7, 6, *[3] * rank), None, 4, 5),
            )


@pytest.mark.parametrize("call, good", [(linear, X), (conv, IMAGE)])
def test_x(call, good):
    refused(ValueError, ["x", "5", str(list(good[:, :4].shape))], lambda: call(x=good[:, :4]))
    refused(ValueError, ["x", "6", str(list(good.shape))], lambda: call(in_partition=None))
    refused(TypeError, ["x", "floating-point", "int64"], lambda: call(x=good.long()))
    refused(TypeError, ["x", "floating-point", "uint8"], lambda: call(x=good.to(torch.uint8)))
    refused(TypeError, ["x", "tensor", "list"], lambda: call(x=[1.0]))
    refused(ValueError, ["x", "device", "cpu", "meta"], lambda: call(x=good.to("meta")))
    refused(ValueError, ["x", "[]"], lambda: call(x=torch.tensor(1.0)))


def test_x_with_taps():
    refused(
        ValueError,
        ["x", "5 input points", "4 taps", "[2, 19]"],
        lambda: linear(x=torch.ones(2, 19), nodes=torch.ones(7, 6, 4)),
    )


@pytest.mark.parametrize("call", [linear, conv])
def test_bias(call):
    refused(ValueError, ["bias", "[7]", "[6]"], lambda: call(bias=torch.ones(6)))
    refused(ValueError, ["bias", "[M_out]", "[7, 1]"], lambda: call(bias=torch.ones(7, 1)))
    refused(TypeError, ["bias", "floating-point", "int64"], lambda: call(bias=torch.ones(7).long()))
    refused(ValueError, ["bias", "device", "cpu", "meta"], lambda: call(bias=torch.ones(7, device="meta")))
    refused(TypeError, ["bias", "bool"], lambda: call(bias=True))


# Groups, dataflows, backends --------------------------------------------------------------------------------


def test_groups():
    refused(ValueError, ["groups", "4", "3"], lambda: conv(x=torch.ones(2, 15, 8, 8), groups=3))  # 4 outputs
    refused(ValueError, ["x", "5 input points", "2 groups", "[2, 5, 8, 8]"], lambda: conv(groups=2))
    for bad in (0, -1):
        refused(ValueError, ["groups", str(bad)], lambda bad=bad: conv(groups=bad))
    for bad in (2.0, "2", True):
        refused(TypeError, ["groups", type(bad).__name__], lambda bad=bad: conv(groups=bad))
    refused(
        ValueError,
        ["dataflow", "factored", "groups"],
        lambda: conv(x=torch.ones(2, 10, 8, 8), groups=2, dataflow="factored"),
    )
    refused(
        ValueError,
        ["dataflow", "factored", "spatial_partitions"],
        lambda: conv(spatial_partitions=[2, 2], dataflow="factored"),
    )


@pytest.mark.parametrize("call", [linear, conv])
@pytest.mark.parametrize("bad", ["eager", "", None, 1])
def test_dataflow(bad, call):
    refused(ValueError, ["dataflow", "materialize", repr(bad)], lambda: call(dataflow=bad))


@pytest.mark.filterwarnings("ignore:inn_kernels runs on plain PyTorch")
@every_call
def test_backend(call, monkeypatch):
    refused(ValueError, ["backend", "reference", "'cuda'"], lambda: call(backend="cuda"))
    refused(ValueError, ["backend", "3"], lambda: call(backend=3))
    refused(RuntimeError, ["backend 'triton' cannot run here"], lambda: call(backend="triton"))
    monkeypatch.setattr(ops, "compiled_missing", "the library was not built")
    refused(RuntimeError, ["backend 'cpp' cannot run here", "the library was not built"], lambda: call(backend="cpp"))
    call(backend=None)


@pytest.mark.filterwarnings("ignore:inn_kernels runs on plain PyTorch")
def test_backend_by_device_and_dtype(monkeypatch):
    monkeypatch.setattr(ops, "compiled_missing", None)
    for device, dtype, words in (("meta", torch.float32, ["meta"]), ("cpu", torch.float8_e5m2, ["float8_e5m2"])):
        with raises(RuntimeError, "backend 'cpp' cannot run here", *words):
            dispatch.can_run("cpp", torch.device(device), dtype, raise_error=True)
        assert not dispatch.can_run("cpp", torch.device(device), dtype)
        assert dispatch.select_backend(None, torch.device(device), dtype) != "cpp"
    assert dispatch.can_run("reference", torch.device("meta"), torch.float64)


@every_call
def test_basis_and_scale(call):
    refused(ValueError, ["boundary", "clamp", "keys", "'zero'"], lambda: call(boundary="zero"))
    refused(TypeError, ["a must", "str"], lambda: call(a="-0.75"))
    refused(ValueError, ["a must", "nan"], lambda: call(a=float("nan")))
    refused(TypeError, ["scale", "str"], lambda: call(scale="1"))
    refused(TypeError, ["scale", "NoneType"], lambda: call(scale=None))
    for bad in (float("nan"), float("inf")):
        refused(ValueError, ["scale", "finite", str(bad)], lambda bad=bad: call(scale=bad))


def test_dtype_of_discretize():
    refused(TypeError, ["dtype", "int32"], lambda: sample(dtype=torch.int32))
    refused(TypeError, ["dtype", "'float32'"], lambda: sample(dtype="float32"))


# Partitions and modules -------------------------------------------------------------------------------------


def test_partition_makers():
    for make in (inn.uniform_partition, inn.midpoint_partition, inn.gauss_legendre_partition):
        refused(ValueError, ["n must be", "0"], lambda make=make: make(0))
        for bad in (3.0, "3", True, None):
            refused(TypeError, ["n must be an int", type(bad).__name__], lambda make=make, bad=bad: make(bad))
    refused(ValueError, ["delta", "n >= 2", "[1]"], lambda: inn.partition_from_deltas(torch.ones(1)))
    refused(ValueError, ["delta", "[2, 2]"], lambda: inn.partition_from_deltas(torch.ones(2, 2)))
    refused(TypeError, ["delta", "int64"], lambda: inn.partition_from_deltas(torch.ones(3).long()))
    refused(TypeError, ["delta", "list"], lambda: inn.partition_from_deltas([1.0, 2.0]))


def test_integrate():
    refused(TypeError, ["function", "callable", "int"], lambda: inn.integrate(3, 5))
    refused(TypeError, ["function", "tensor", "float"], lambda: inn.integrate(lambda x: 1.0, 5))
    refused(ValueError, ["function", "[5]", "[4]"], lambda: inn.integrate(lambda x: x[1:], 5))
    refused(ValueError, ["function", "[5, 6]", "[5]"], lambda: inn.integrate(lambda x, y: x[:, 0], [5, 6]))
    refused(ValueError, ["partitions", "empty"], lambda: inn.integrate(lambda: 1.0, []))


def test_axes():
    for name, bad, error in (
        ("nodes", 0, ValueError),
        ("nodes", 8.0, TypeError),
        ("size", 0, ValueError),
        ("size", 4.0, TypeError),
        ("multiple_of", 0, ValueError),
        ("multiple_of", 2.0, TypeError),
        ("boundary", "zero", ValueError),
        ("kernel", "quintic", ValueError),
        ("a", "x", TypeError),
        ("a", float("inf"), ValueError),
    ):
        refused(
            error, [name, repr(bad) if isinstance(bad, str) else str(bad)], lambda: inn.Axis(**{"nodes": 8, name: bad})
        )
    refused(ValueError, ["size", "at least 2", "1"], lambda: inn.Axis(8, 1, quadrature="trapezoid"))
    for bad in (4, (4,), (4, 8, 9), ("4", "8"), (4.5, 8)):
        with raises((ValueError, TypeError), "size_range"):
            inn.Axis(8, size_range=bad)


def test_layers():
    refused(TypeError, ["in_axis", "str"], lambda: inn.IntegralLinear("8", 4))
    refused(ValueError, ["out_axis", "0"], lambda: inn.IntegralLinear(8, 0))
    refused(TypeError, ["taps", "float"], lambda: inn.IntegralLinear(8, 4, taps=2.0))
    refused(ValueError, ["dataflow", "'eager'"], lambda: inn.IntegralLinear(8, 4, dataflow="eager"))
    refused(ValueError, ["backend", "'cuda'"], lambda: inn.IntegralLinear(8, 4, backend="cuda"))
    refused(ValueError, ["groups", "3"], lambda: inn.IntegralConv2d(8, 4, 3, groups=3))
    refused(ValueError, ["groups", "2"], lambda: inn.IntegralConv2d(inn.Axis(8), 4, 3, groups=2))
    axis = inn.Axis(8, 5)
    for layer, x in (
        (inn.IntegralLinear(axis, 4), torch.ones(2, 6)),
        (inn.IntegralConv2d(axis, 4, 3), torch.ones(2, 6, 8, 8)),
    ):
        for training in (True, False):
            layer.train(training)
            with torch.set_grad_enabled(training):
                layer(x[:, :5])
                refused(ValueError, ["x", "5", str(list(x.shape))], lambda: layer(x))
                refused(TypeError, ["x", "int64"], lambda: layer(x.long()))
                refused(ValueError, ["x", "device", "meta"], lambda: layer(x.to("meta")))


def test_a_backend_that_cannot_run_is_not_replaced_in_a_layer(monkeypatch):
    layer = inn.IntegralLinear(inn.Axis(8), 4, backend="triton")
    for training in (True, False):
        layer.train(training)
        with torch.no_grad():
            refused(RuntimeError, ["backend 'triton' cannot run here"], lambda: layer(torch.ones(2, 8)))


def test_nothing_is_left_behind_by_an_error():
    """The same call with good input works after a bad one."""
    p = common.partition("random", 5).float()
    p[2] = float("nan")
    with pytest.raises(ValueError):
        sample(in_partition=p)
    p[2] = float((p[1] + p[3]) / 2)
    assert bool(sample(in_partition=p).isfinite().all())
