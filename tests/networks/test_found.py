"""What a search for axes says: a table, reasons in few lines, and axes chosen by names and classes."""

import pytest
import torch
from torch import nn

import integral_nn as inn
import zoo.images
import zoo.sequences
from zoo import build

DECODER = zoo.sequences.FAMILIES["an embedding tied to the head"]


def find(family, **options):
    return inn.find_axes(build(family), family.inputs(1), **options)


def test_table():
    lines = str(find(zoo.images.FAMILIES["dense layers over lists"])).splitlines()
    assert lines[0].split() == ["axis", "size", "ties", "parameters"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert list(rows) == ["stem", "convs.0", "convs.1"]
    size, ties = rows["convs.1"].split(maxsplit=2)[1:]
    assert size == "10" and ties.startswith("convs.1.weight[0], convs.1.bias[0], head.weight[1] ")
    assert ties.endswith(f" {10 * 14 * 9 + 10 + 4 * 24:,}")
    assert " more " in rows["stem"]


class Deep(nn.Module):
    """Many layers, each with widths that numbers in the code fix."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(40))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).view(len(x), 4, 2).flatten(1).tanh()
        return x


def test_reasons_name_the_operation_and_are_few():
    net = nn.Sequential(nn.Linear(3, 8), Deep(), nn.Linear(8, 2))
    with pytest.raises(inn.ConversionError) as error:
        inn.convert(net, torch.ones(2, 3))
    lines = str(error.value).splitlines()
    assert len(lines) <= 20
    assert lines[1] == "123 sizes in *, *.layers.*: fixed by view in module '1': a number in the code"


def test_a_size_of_the_inputs_is_said_to_be_one():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    reasons = {f"{d.tensor}[{d.dim}]": d.reason for d in inn.find_axes(net, torch.ones(1, 3)).discrete}
    assert reasons["0.weight[1]"] == "fixed by addmm in module '0': a size of the inputs"


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        ({"ignore": zoo.sequences.GroupedQueries}, {"blocks.0.gate"}),
        ({"ignore": [nn.Embedding, "blocks.*.gate"]}, {"blocks.0.attend.query"}),
        ({"only": zoo.sequences.GroupedQueries}, {"blocks.0.attend.query"}),
        ({"only": ["blocks.*.gate", nn.Embedding]}, {"embed", "blocks.0.gate"}),
    ],
)
def test_axes_by_name_and_class(options, axes):
    assert set(find(DECODER, **options).specs) == axes


def test_a_class_that_there_is_not():
    with pytest.raises(ValueError, match="LSTM matches no continuous axis"):
        find(DECODER, ignore=nn.LSTM)
