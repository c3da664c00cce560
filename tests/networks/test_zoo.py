"""Architectures in their smallest form: converted, permuted, resized, trained and plain again; what is said of it."""

import pytest
import torch
from torch import nn

import zoo.attention
import zoo.convnets
import zoo.fields
import zoo.mixers
import zoo.signals
from bench.zoo import page
from bench.zoo.measure import Architecture, Row, measure
from bench.zoo.ours import ours

ROOMS = (zoo.convnets, zoo.fields, zoo.attention, zoo.mixers, zoo.signals)
FAMILIES = {name: family for room in ROOMS for name, family in room.FAMILIES.items()}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_architecture(name):
    row = measure(Row(name, "ours", FAMILIES[name].kind), ours()[name])
    assert not row.refused and not row.missing, row
    assert row.axes == len(FAMILIES[name].axes)
    assert row.good, row


def test_every_architecture_is_measured():
    assert ours().keys() >= FAMILIES.keys()
    assert len(ours()) >= 60 and len({a.kind for a in ours().values()}) >= 12


class Wrong(nn.Module):
    """Takes another branch for other batches: what holds at conversion does not hold there."""

    def __init__(self, damage):
        super().__init__()
        self.up, self.down, self.damage = nn.Linear(4, 6), nn.Linear(6, 2), damage

    def forward(self, x):
        x = self.up(x).relu()
        if len(x) == 3:
            x = self.damage(x)
        return self.down(x)


def noise(batch):
    return (torch.rand(batch, 4, generator=torch.Generator().manual_seed(batch)),)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda x: x.cumsum(1), "not exact"),
        (lambda x: x.view(-1, 6), "RuntimeError: shape"),
        (lambda x: x.detach() * 0, "do not depend"),
        (lambda x: x, "yes"),
    ],
)
def test_a_row_says_what_is_wrong(damage, said):
    torch.manual_seed(0)
    row = measure(Row("wrong", "ours", "plain"), Architecture("plain", lambda: Wrong(damage), noise))
    assert row.good == (said == "yes")
    assert said in page.table([row]).splitlines()[-1]


def test_what_cannot_be_converted_is_said_in_the_table():
    refused = measure(Row("one", "ours", "plain"), Architecture("plain", lambda: nn.Linear(4, 2), noise))
    text = page.table([refused, Row("two", "timm", "ViT", refused="no | result")])
    assert (
        text.startswith("0 of 2 architectures of 2 kinds") and "no continuous axis" in text and "no \\| result" in text
    )
