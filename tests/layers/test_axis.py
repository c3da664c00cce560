"""Axis: size, random size, trainable points."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import common
import integral_nn as inn
from inn_kernels import quadrature as rules

QUADRATURES = (*common.QUADRATURES, "cells")


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_points_are_the_rules_own(quadrature):
    axis = inn.Axis(12, 7, quadrature=quadrature)
    assert axis.size == 7 and axis.nodes == 12 and not axis.trainable
    assert torch.equal(axis.partition(), rules.partition_for(quadrature, 7, dtype=torch.float64))
    assert axis.partition().shape == (8 if quadrature == "cells" else 7,)  # the edges of cells
    assert list(axis.parameters()) == [] and list(axis.state_dict()) == ["_extra_state"]


def test_an_axis_is_cut_into_cells_of_splines():
    axis = inn.Axis(12, 7)
    expected = inn.Axis(12, 7, quadrature="cells", kernel="bspline")
    assert axis.quadrature == "cells" and axis.basis == expected.basis
    assert axis.resize(1) == 1 and torch.equal(axis.partition(), torch.tensor([0.0, 1.0]).double())  # one cell: all
    taps = axis.taps(weighted=True, scale=12.0, dtype=torch.float64)
    dense = common.cell_matrix(common.equal_edges(1), 12, kernel="bspline")
    torch.testing.assert_close(common.dense_taps(taps.start, taps.weight, 12), 12 * dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(
    "kernel, boundary, a",
    [
        ("cubic", "clamp", -0.75),
        ("cubic", "keys", -0.5),
        ("linear", "clamp", -0.75),
        ("bspline", "clamp", -0.75),
        ("conservative", "keys", -0.75),
    ],
)
def test_taps(kernel, boundary, a, trainable, quadrature):
    axis = inn.Axis(9, 6, quadrature=quadrature, trainable=trainable, kernel=kernel, boundary=boundary, a=a)
    for weighted in (False, True):
        taps = axis.taps(weighted=weighted, scale=3.0, dtype=torch.float64)
        p = axis.partition().detach()
        if quadrature == "cells":
            dense = common.cell_matrix(p, 9, a, boundary, kernel=kernel)
        else:
            dense = common.sampling_matrix(p, 9, a, boundary, centred=quadrature == "midpoint", kernel=kernel)
        if weighted:
            dense = dense * 3.0 * rules.weights(quadrature, p)[:, None]
        torch.testing.assert_close(common.dense_taps(taps.start, taps.weight, 9), dense, rtol=0, atol=1e-12)
        assert taps.weight.requires_grad == trainable


@pytest.mark.parametrize("quadrature", ["left", "right", "trapezoid", "midpoint", "cells"])
def test_unit_scale_gives_unit_interior_weights(quadrature):
    axis = inn.Axis(9, quadrature=quadrature)
    q = rules.weights(quadrature, axis.partition()) * axis.unit_scale()
    torch.testing.assert_close(q[1:-1], torch.ones(7).double(), rtol=0, atol=1e-13)


# Sizes ------------------------------------------------------------------------------------------------------


def test_resize():
    axis = inn.Axis(64)
    assert axis.resize(48) == 48 == axis.size
    assert axis.resize(0.5) == 32 == axis.size
    assert axis.resize(100) == 100 == axis.size
    assert inn.Axis(64, multiple_of=8).resize(0.45) == 32  # 28.8 rounds to 32
    assert inn.Axis(64, multiple_of=8).resize(13) == 13  # an int is taken as it is
    assert inn.Axis(64).resize(1e-9) == 1 and inn.Axis(64, quadrature="trapezoid").resize(1e-9) == 2
    assert inn.Axis(64, multiple_of=8).resize(1e-9) == 8
    assert inn.Axis(10).resize(1.0) == 10


def test_resample_draws_every_size_of_the_range_and_no_other():
    axis = inn.Axis(16, size_range=(5, 9))
    assert {axis.resample(common.generator(seed)) for seed in range(80)} == {5, 6, 7, 8, 9}
    axis = inn.Axis(64, size_range=(15, 42), multiple_of=8)
    assert {axis.resample(common.generator(seed)) for seed in range(80)} == {16, 24, 32, 40}
    assert {inn.Axis(6).resample(common.generator(seed)) for seed in range(80)} == {3, 4, 5, 6}


def test_resample_is_the_generators():
    draws = []
    for _ in range(2):
        axis, rng = inn.Axis(64), common.generator(3)
        state = torch.get_rng_state()
        draws.append([axis.resample(rng) for _ in range(10)])
        assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
        assert axis.size == draws[-1][-1]
    assert draws[0] == draws[1] and len(set(draws[0])) > 3


def test_sizes_that_cannot_be():
    closed = {"quadrature": "trapezoid"}  # points at both ends
    with pytest.raises(ValueError, match="size must be at least 2"):
        inn.Axis(8, **closed).resize(1)
    for quadrature in ("midpoint", "cells"):
        with pytest.raises(ValueError, match="size must be at least 1"):
            inn.Axis(8, quadrature=quadrature).resize(0)
    with pytest.raises(ValueError, match="size"):
        inn.Axis(8).resize(-0.5)
    with pytest.raises(ValueError, match="size"):
        inn.Axis(8).resize(float("nan"))
    with pytest.raises(TypeError, match="size"):
        inn.Axis(8).resize(True)
    with pytest.raises(ValueError, match="multiple_of"):
        inn.Axis(8, size_range=(5, 7), multiple_of=4).resample()
    for bad in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match="size_range"):
            inn.Axis(8, size_range=bad)
    inn.Axis(8, size_range=(1, 4))
    with pytest.raises(ValueError, match="size_range"):
        inn.Axis(8, size_range=(1, 4), **closed)
    for axis, bad in ((inn.Axis(8, 6, **closed), 1), (inn.Axis(8, 6), 0)):
        with pytest.raises(ValueError):
            axis.resize(bad)
        assert axis.size == 6  # unchanged after an error


# Trainable points -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quadrature", [q for q in QUADRATURES if q != "gauss-legendre"])
@pytest.mark.parametrize("size", [2, 3, 9, 50])
def test_trainable_points_start_where_they_were(size, quadrature):
    axis = inn.Axis(12, size, quadrature=quadrature, trainable=True)
    expected = rules.partition_for(quadrature, size, dtype=torch.float64)
    torch.testing.assert_close(axis.partition().detach(), expected, rtol=0, atol=1e-6)
    assert axis.delta.shape == (size,) and axis.delta.dtype == torch.get_default_dtype()


@pytest.mark.parametrize("quadrature", ["trapezoid", "midpoint", "cells"])
def test_trainable_points_stay_a_partition(quadrature):
    axis = inn.Axis(12, 9, quadrature=quadrature, trainable=True)
    for seed in range(20):
        axis.delta.data.copy_(common.rand(9, seed=seed))
        p = axis.partition().detach()
        assert float(p[0]) >= 0 and float(p[-1]) <= 1 and bool((p.diff() > 0).all())
        inn.quadrature_weights("trapezoid", p)


@pytest.mark.parametrize("kernel", ["cubic", "bspline"])
@pytest.mark.parametrize("quadrature", ["left", "right", "trapezoid", "midpoint", "simpson", "cells"])
def test_trainable_points_have_both_derivatives(quadrature, kernel):
    axis = inn.Axis(5, 4, quadrature=quadrature, kernel=kernel, trainable=True).double()
    nodes = common.rand(5)

    def value(delta):
        weight = torch.func.functional_call(Sampler(axis), {"axis.delta": delta}, ())
        return weight @ nodes

    delta = (1 + common.rand(4).abs()).requires_grad_()
    assert gradcheck(value, (delta,)) and gradgradcheck(value, (delta,))


class Sampler(torch.nn.Module):
    """S of an axis, as a module's output."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self):
        taps = self.axis.taps(weighted=True, dtype=torch.float64)
        return common.dense_taps(taps.start, taps.weight, taps.nodes)


@pytest.mark.parametrize("quadrature", ["left", "trapezoid", "midpoint", "cells"])
def test_uniform_trainable_points_stay_uniform(quadrature):
    axis = inn.Axis(16, 11, quadrature=quadrature, trainable=True)
    for size in (21, 6, 11, 2):
        assert axis.resize(size) == size == axis.size == axis.delta.shape[0] and axis.delta.requires_grad
        expected = rules.partition_for(quadrature, size, dtype=torch.float64)
        torch.testing.assert_close(axis.partition().detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quadrature", ["trapezoid", "midpoint", "cells"])
def test_resize_keeps_the_shape_of_trainable_points(quadrature):
    axis = inn.Axis(16, 41, quadrature=quadrature, trainable=True)
    axis.delta.data.copy_(torch.linspace(0.5, 1.5, 41).sqrt())
    before = axis.partition().detach()
    for size in (81, 30, 41):
        axis.resize(size)
        place = rules.partition_for(quadrature, size, dtype=torch.float64)
        knots = rules.partition_for(quadrature, 41, dtype=torch.float64)
        expected = torch.from_numpy(np.interp(place, knots, before))[1:-1]
        assert float((axis.partition().detach()[1:-1] - expected).abs().max()) < 2e-3


@pytest.mark.parametrize("quadrature", ["left", "cells"])
def test_resizing_trainable_points_below_two_is_refused(quadrature):
    axis = inn.Axis(16, 4, quadrature=quadrature, trainable=True)
    with pytest.raises(ValueError, match="size must be at least 2"):
        axis.resize(1)
    assert axis.size == 4 == axis.delta.shape[0]


@pytest.mark.parametrize("quadrature", ["left", "cells"])
def test_trainable_points_are_never_drawn_below_two(quadrature):
    axis = inn.Axis(16, 4, quadrature=quadrature, trainable=True, size_range=(1, 3))
    assert {axis.resample(common.generator(seed)) for seed in range(40)} == {2, 3}


@pytest.mark.parametrize("quadrature, size", [("trapezoid", 7), ("cells", 6)])
def test_make_trainable_starts_at_given_points(quadrature, size):
    p = torch.cat([torch.zeros(1), common.partition("random", 5), torch.ones(1)]).double()
    axis = inn.Axis(9, 4, quadrature=quadrature)
    axis.make_trainable(p)
    assert axis.size == size  # as many points, or the cells between so many edges
    torch.testing.assert_close(axis.partition().detach(), p, rtol=0, atol=1e-6)


def test_resize_between_steps_with_the_last_loss_alive():
    """The gradient of resized deltas has their new shape, even while an old graph holds on to the parameter."""
    axis = inn.Axis(16, 11, trainable=True)
    layer = inn.IntegralLinear(axis, 3)
    losses = []
    for size in (11, 7, 13):
        axis.resize(size)
        losses.append(layer(common.rand(2, size, dtype=torch.float32)).sum())
        losses[-1].backward()
        assert axis.delta.grad.shape == (size,)


def test_zero_gradient_does_not_greet_training():
    axis = inn.Axis(16, 8, trainable=True)
    layer = inn.IntegralLinear(axis, 3)
    layer(common.rand(4, 8, dtype=torch.float32)).square().sum().backward()
    assert float(axis.delta.grad[1:].abs().max()) > 1e-4


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_deltas_that_make_no_partition(quadrature):
    for bad in (0.0, float("nan"), float("inf")):
        axis = inn.Axis(9, 5, quadrature=quadrature, trainable=True)
        layer = inn.IntegralLinear(axis, 3)
        axis.delta.data[2] = bad
        with pytest.raises(ValueError, match=f"delta must be finite and not 0, got {bad} at 2"):
            layer(torch.ones(1, 5))
        axis.delta.data[2] = -1.0
        assert bool(layer(torch.ones(1, 5)).isfinite().all())


@pytest.mark.parametrize("trainable", [False, True])
def test_taps_are_where_they_are_asked_for(trainable):
    assert inn.Axis(9, 5, trainable=trainable).taps(weighted=True, device=torch.device("meta")).weight.is_meta


# Copies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [False, True])
def test_copies(trainable):
    axis = inn.Axis(16, 11, quadrature="midpoint", trainable=trainable, boundary="keys", multiple_of=2)
    for other in (copy.deepcopy(axis), pickle.loads(pickle.dumps(axis))):
        assert torch.equal(other.partition(), axis.partition()) and other.basis == axis.basis
        other.resize(5)
        assert axis.size == 11 and other.size == 5


@pytest.mark.parametrize("size", [11, 7, 20])
def test_state_dict_restores_trainable_points_of_another_size(size):
    saved = inn.Axis(16, 11, trainable=True)
    saved.delta.data.copy_(1 + common.rand(11).abs())
    for fresh in (inn.Axis(16, size, trainable=True), inn.Axis(16, size)):
        fresh.load_state_dict(saved.state_dict())
        assert fresh.size == 11 and torch.equal(fresh.partition(), saved.partition())


def test_a_bad_delta_within_a_network_is_said_and_not_loaded():
    axis = inn.Axis(16, 11, trainable=True)
    model = torch.nn.Sequential(inn.IntegralLinear(3, axis), inn.IntegralLinear(axis, 2))
    old, points = axis.delta, axis.partition().detach()
    name = "0.out_axis.delta"
    for bad in (torch.zeros(4), torch.ones(4, 1), torch.full((4,), float("nan"))):
        with pytest.raises(RuntimeError, match=name):
            model.load_state_dict({**model.state_dict(), name: bad, "1.in_axis.delta": bad})
        assert axis.delta is old and axis.size == 11 and torch.equal(axis.partition(), points)


def test_repr():
    assert repr(inn.Axis(8, 6)) == "Axis(nodes=8, size=6, quadrature='cells', kernel='bspline')"
    assert "quadrature='trapezoid', kernel='cubic'" in repr(inn.Axis(8, 6, quadrature="trapezoid", kernel="cubic"))
    assert "trainable=True" in repr(inn.Axis(8, trainable=True))
