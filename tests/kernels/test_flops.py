"""FlopCounterMode counts the products of every dataflow as it counts the dense ones."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import common
import integral_nn as inn
from common import rand
from inn_kernels import ops
from inn_kernels.taps import make_taps

M, N, K, L, B = 7, 5, 4, 6, 3
OUT, INTO = make_taps(common.partition("random", K), M), make_taps(common.partition("random", L), N)
TAPS = (OUT.start, OUT.weight, INTO.start, INTO.weight)


def count(run, *arguments):
    with FlopCounterMode(display=False) as counter:
        run(*arguments)
    return counter.get_total_flops()


def step(run, *inputs):
    run(*(z.requires_grad_() for z in inputs)).sum().backward()


@pytest.mark.parametrize("need", [(True, True), (True, False), (False, True)], ids=str)
def test_fused_linear(need):
    """Of the dense layer between nodes."""
    x, nodes = rand(B, L), rand(M, N)
    dense = count(F.linear, rand(B, N), nodes)
    assert count(ops.linear, x, nodes, rand(M), *TAPS) == dense
    assert count(ops.linear_backward, rand(B, K), x, nodes, *TAPS, *need, True) == sum(need) * dense


def test_fused_conv():
    """Of the dense convolution between nodes: each gradient as many as the value."""
    nodes, window = rand(M, N, 3, 2), ([2, 1], [1, 1], [1, 2])
    x = rand(B, L, 8, 9)
    dense = count(F.conv2d, rand(B, N, 8, 9), nodes, None, *window)
    assert dense > 0
    assert count(ops.conv, x, nodes, rand(M), *TAPS, *window) == dense
    dy = ops.conv(x, nodes, None, *TAPS, *window)
    assert count(ops.conv_input_gradient, dy, nodes, *TAPS, x.shape[2:], *window) == dense
    for need in (True, False):
        assert count(ops.conv_node_gradient, dy, x, nodes, *TAPS, *window, need, True) == need * dense


def test_weight_gradient():
    assert count(ops.weight_gradient, rand(B, K), rand(B, L)) == count(torch.mm, rand(K, B), rand(B, L))


def test_every_product_has_a_formula():
    sampling = {"discretize", "interpolate", "spread", "uniform", "axis"}
    for name in ops.NAMES:
        counted = getattr(torch.ops.inn_kernels, name) in flop_registry
        assert counted != (name.split("_")[0] in sampling), name


def test_public_functions():
    """A step of a layer: three products, of sampled weights or of nodes."""
    sizes = (None, K, L)
    for dataflow, dense in (("materialize", (L, K)), ("factored", (N, M))):
        want = count(step, F.linear, rand(B, dense[0]), rand(*dense[::-1]))
        got = count(
            step, lambda x, w, flow=dataflow: inn.integral_linear(x, w, *sizes, dataflow=flow), rand(B, L), rand(M, N)
        )
        assert got == want == 3 * 2 * B * dense[0] * dense[1]
        want = count(step, F.conv1d, rand(B, dense[0], 8), rand(*dense[::-1], 3))
        got = count(
            step,
            lambda x, w, flow=dataflow: inn.integral_conv1d(x, w, *sizes, dataflow=flow),
            rand(B, L, 8),
            rand(M, N, 3),
        )
        assert got == want
