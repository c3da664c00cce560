"""What a search for axes says: a table, reasons in few lines, and axes chosen by names and classes."""

from collections import OrderedDict
from xml.etree import ElementTree

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
    assert lines[0].split() == ["axis", "size", "ties", "parameters", "multiply-adds"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert list(rows) == ["stem", "convs.0", "convs.1"]
    size, ties = rows["convs.1"].split(maxsplit=2)[1:]
    assert size == "10" and ties.startswith("convs.1.weight[0], convs.1.bias[0], head.weight[1] ")
    assert ties.split()[-2:] == [f"{10 * 14 * 9 + 10 + 4 * 24:,}", f"{10 * 14 * 9 * 64 + 4 * 24:,}"]
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


def test_drawing(tmp_path):
    """Layers as rows, the parts of their dimensions as bars as long as their shares, an axis a colour."""
    found = find(zoo.images.FAMILIES["dense layers over lists"])
    found.draw(tmp_path / "axes.svg")
    tree = ElementTree.parse(tmp_path / "axes.svg")
    texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert [t for t in texts if t.startswith("convs")] == ["convs.0", "convs.1", "convs.0", "convs.1"]  # row, legend
    bars = {}
    for box in tree.iter("{http://www.w3.org/2000/svg}rect"):
        title = box.find("{http://www.w3.org/2000/svg}title")
        if title is not None:
            bars.setdefault(box.get("y"), []).append((title.text, float(box.get("width")), box.get("fill")))
    convs = next(row for row in bars.values() if row[0][0] == "10 of convs.1")
    assert [title for title, *_ in convs] == ["10 of convs.1", "8 of stem", "6 of convs.0"]
    assert convs[0][1] == 150 and convs[1][1] == pytest.approx(150 * 8 / 14, abs=0.1)
    assert len({fill for _, _, fill in convs}) == 3


def test_a_drawing_escapes_names(tmp_path):
    net = nn.Sequential(OrderedDict({"a<b&c": nn.Linear(3, 8), "act": nn.ReLU(), "out": nn.Linear(8, 2)}))
    inn.find_axes(net, torch.ones(2, 3)).draw(str(tmp_path / "axes.svg"))
    assert "a&lt;b&amp;c" in (tmp_path / "axes.svg").read_text()
    ElementTree.parse(tmp_path / "axes.svg")
