"""The authors' own code, recorded in float64: values and all five gradients, every backend and dataflow.

Relative norms, 1e-12 in float64 and 1e-5 in float32.
"""

import pytest
import torch

import common
import integral_nn as inn
from common import DATAFLOWS

FILES = ("linear_uniform", "linear_nonuniform", "linear_upsample", "conv2d_uniform", "conv2d_nonuniform")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
INPUTS = ("x", "nodes", "bias", "out_partition", "in_partition")


def test_every_file_is_read():
    assert sorted(path.stem for path in common.GOLDEN.glob("*.npz")) == sorted(FILES)


def assert_close(value, truth, dtype, name):
    assert value.dtype == dtype
    error = common.relative_norm(value, truth)
    assert error <= TOLERANCE[dtype], f"{name}: relative norm {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("file", FILES)
def test_weight_and_bias(file, dtype, backend):
    given, truth = common.golden(file, dtype), common.golden(file)
    weight = inn.discretize(
        given["nodes"], given["out_partition"], given["in_partition"], scale=float(truth["scale"]), backend=backend
    )
    bias = inn.discretize(given["bias"], given["out_partition"], backend=backend)
    assert_close(weight, truth["weight"], dtype, "weight")
    assert_close(bias, truth["bias_sampled"], dtype, "bias")


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("file", FILES)
def test_layer_and_five_gradients(file, dtype, dataflow, backend):
    given, truth = common.golden(file, dtype), common.golden(file)
    inputs = {name: given[name].requires_grad_() for name in INPUTS}
    options = {"scale": float(truth["scale"]), "dataflow": dataflow, "backend": backend}
    y = (
        inn.integral_linear(**inputs, **options)
        if "linear" in file
        else inn.integral_conv2d(**inputs, **options, padding=1)
    )
    assert_close(y, truth["y"], dtype, "y")
    y.backward(given["grad_y"])
    for name, value in inputs.items():
        assert_close(value.grad, truth[f"grad_{name}"], dtype, f"grad_{name}")


@pytest.mark.parametrize("file", ["linear_uniform", "conv2d_uniform"])
def test_an_int_is_the_uniform_partition(file, backend):
    truth = common.golden(file)
    k, n = truth["weight"].shape[:2]
    assert_close(
        inn.discretize(truth["nodes"], k, n, scale=float(truth["scale"]), backend=backend),
        truth["weight"],
        torch.float64,
        "weight",
    )
