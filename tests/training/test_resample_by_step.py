"""Sizes that are a function of seed and step: alike on every rank, after a restart, whatever was drawn before."""

import collections
import copy

import pytest
import torch

import integral_nn as inn
from models import by_hand, converted


def sizes(model, steps=range(12), **options):
    return [model.resample(step, **options) for step in steps]


@pytest.mark.parametrize("common", [False, True])
def test_a_step_has_its_sizes_whatever_was_drawn_before(common):
    model, other = by_hand(), by_hand()
    first = sizes(model, common=common)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert [other.resample(step, common=common) for step in reversed(range(12))] == first[::-1]
    assert sizes(copy.deepcopy(model), common=common) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert sizes(model, common=common, seed=0) == first != sizes(model, common=common, seed=1)


def test_sizes_are_uniform_over_the_range_and_axes_are_drawn_apart():
    model = by_hand()
    drawn = sizes(model, range(3000))
    for name, axis in model.axes.items():
        low, high = axis.size_range
        counts = collections.Counter(one[name] for one in drawn)
        assert set(counts) == set(range(low, high + 1))
        expected = 3000 / (high - low + 1)
        chi = sum((n - expected) ** 2 / expected for n in counts.values())
        assert chi < 2.5 * (high - low)
    assert len({tuple(one.values()) for one in drawn}) == 11 * 8


def test_common_sizes_share_a_ratio():
    model = by_hand()
    low, high = (dict(zip(model.axes, ends)) for ends in ((6, 5), (16, 12)))
    assert low in (drawn := sizes(model, range(400), common=True)) and high in drawn


def test_a_part_of_a_network_draws_what_the_whole_does():
    """As on a stage of a pipeline, which holds some of the axes."""
    whole = converted()
    part = inn.IntegralNetwork(whole.net, whole.found, {"2": whole.axes["2"]})
    for step in range(20):
        size = whole.resample(step)["2"]
        whole.resize(1.0)
        assert part.resample(step) == {"2": size}


def test_an_axis_by_itself():
    axis = inn.Axis(40, size_range=(8, 40), multiple_of=8)
    drawn = [axis.resample(step, seed=5) for step in range(60)]
    assert drawn == [axis.resample(step, seed=5) for step in range(60)]
    assert set(drawn) == {8, 16, 24, 32, 40}


def draw(rank, steps):
    torch.manual_seed(rank)
    model = by_hand()
    found = []
    for step in range(steps):
        torch.rand(rank + 1)
        found.append(model.resample(step))
        inn.check_sizes(model)
    return found


def test_every_rank_draws_the_same(ranks):
    one, other = ranks(draw, 5)
    assert one == other == sizes(by_hand(), range(5))


def draw_apart(rank, change):
    model = by_hand()
    change(model, rank)
    with pytest.raises(RuntimeError) as caught:
        inn.check_sizes(model)
    return str(caught.value)


def seed_apart(model, rank):
    model.resample(3, seed=rank)


def tune_one(model, rank):
    if rank == 1:
        model.axes["2"].make_trainable()


@pytest.mark.parametrize(
    "change, words", [(seed_apart, "rank 1 has net.2.out_axis of size"), (tune_one, "12 trainable points")]
)
def test_ranks_that_differ_are_named_on_every_rank(ranks, change, words):
    one, other = ranks(draw_apart, change)
    assert one == other and words in one and "resample(step)" in one and "rank 0 has" not in one


def test_without_ranks_sizes_agree():
    inn.check_sizes(by_hand())


def test_a_palette_is_drawn_from_by_step_or_generator():
    """One entry for all axes, the same wherever it is drawn by the same step."""
    model = by_hand()
    palette = [0.5, 0.75, 1.0]
    at = [model.resize(entry) for entry in palette]
    drawn = sizes(model, range(60), palette=palette)
    assert all(12 <= drawn.count(entry) <= 28 for entry in at)
    assert sum(drawn.count(entry) for entry in at) == 60
    assert sizes(by_hand(), [7, 3], palette=palette) == [drawn[7], drawn[3]]
    assert sizes(model, range(60), seed=1, palette=palette) != drawn
    assert model.resample(torch.Generator().manual_seed(3), palette=palette) in at
    name = next(iter(model.axes))
    model.resize(1.0)
    assert model.resample(0, palette=[{name: 9}]) == {**at[2], name: 9}
    with pytest.raises(ValueError, match="common is of sizes from each axis's size_range"):
        model.resample(0, palette=palette, common=True)
