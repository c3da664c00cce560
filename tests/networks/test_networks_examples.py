"""The examples on whole networks, made short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(tmp_path, script, *options):
    command = [sys.executable, str(EXAMPLES / script), *options, "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_serve(tmp_path):
    printed = run(tmp_path, "serve.py", "--quick")
    assert "40 widths" in printed and "the same answers from one thread: True" in printed


def test_digits_ends_in_a_table(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    lines = run(tmp_path, "digits.py", "--steps", "10").splitlines()
    assert len(lines) <= 12 and lines[0].split()[0] == "width"
    table = [line.split() for line in lines[1:8]]
    assert [row[0] for row in table] == ["100%", "90%", "75%", "62%", "50%", "38%", "25%"]
    assert all(len(row) == 5 and float(row[1].rstrip("%")) > 0 for row in table)
    counts = [int(row[3].replace(",", "")) for row in table]
    assert counts == sorted(counts, reverse=True)
    assert (tmp_path / "digits.png").exists() and "Total time" in lines[-2]
