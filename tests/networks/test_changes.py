"""`model.report` after a resize: every layer before and after, its parameters and multiply-adds."""

import copy
import pickle

import pytest
import torch
from torch import nn

import integral_nn as inn
import zoo.convnets
import zoo.sequences
import zoo.signals
from zoo import build

torch.set_num_threads(1)


def converted(family):
    return inn.convert(build(family), family.inputs(2), family.kwargs(2), permute=False)


@pytest.mark.parametrize(
    "family", [zoo.convnets.FAMILIES["MobileNet"], zoo.signals.FAMILIES["VAE of pictures"]], ids=["mobile", "vae"]
)
def test_totals_are_those_of_the_plain_networks(family):
    model = converted(family)
    full = inn.count(model, family.inputs(2))
    model.resize({name: 0.5 for name in list(model.axes)[::2]})
    half = inn.count(model, family.inputs(2))
    changes = model.report.changes
    assert changes.parameters == (full.parameters, half.parameters)
    assert changes.multiply_adds == (full.macs, half.macs)


def test_layers():
    net = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.ConvTranspose1d(8, 4, 2, 2), nn.Conv1d(4, 2, 1))
    model = inn.convert(net, torch.ones(2, 3, 9), permute=False)
    assert "from full size" not in str(model.report)
    model.resize({"0": 6})
    first, second, last = model.report.changes
    assert (first.layer, first.shapes, first.parameters) == ("0", ((8, 3, 3), (6, 3, 3)), (80, 60))
    assert first.multiply_adds == (8 * 9 * 2 * 7, 6 * 9 * 2 * 7)
    assert second.multiply_adds == (8 * 4 * 2 * 2 * 7, 6 * 4 * 2 * 2 * 7)
    assert last.shapes[0] == last.shapes[1] and last.parameters == (10, 10)
    lines = str(model.report).splitlines()[-4:]
    assert lines[0].split() == ["layer", "weight", "parameters", "multiply-adds"]
    assert "8 x 3 x 3 -> 6 x 3 x 3  80 -> 60 (75%)" in lines[1]
    assert lines[3].startswith("all layers")


def test_a_copy_tells_of_itself():
    model = converted(zoo.convnets.FAMILIES["RepVGG"])
    before, full = model.report.changes.parameters
    assert before == full
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.resize(0.5)
        assert copied.report.changes.parameters == (full, copied.parameter_count())
        assert model.report.changes.parameters == (full, full)


def test_a_tensor_that_two_layers_have_counts_once():
    model = converted(zoo.sequences.FAMILIES["an embedding tied to the head"])
    rows = {change.layer: change for change in model.report.changes}
    assert rows["head"].parameters[0] == 17 and rows["embed"].parameters[0] == 17 * 16
    assert rows["head"].multiply_adds[0] == 2 * 5 * 17 * 16
    assert model.report.changes.parameters[0] == sum(p.numel() for p in model.parameters())
