"""What calls cost the host is measured without a GPU: every call runs, its launches are counted, rows are kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench import harness  # noqa: E402
from bench.tables import host  # noqa: E402

pytest.importorskip("triton")


def measured(*arguments):
    command = [sys.executable, "-m", "bench.host", *arguments]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables = kept | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_call_has_a_row(tmp_path):
    path = tmp_path / "host.csv"
    printed = measured("--seconds", "0", "--csv", str(path))
    rows = harness.read_csv(path, harness.HostRow)
    assert [row.call for row in rows] == [line[: len(row.call)] for line, row in zip(printed, rows, strict=True)]
    names = {row.call for row in rows}
    assert len(rows) == len({(row.group, row.call) for row in rows})
    for row in rows:
        assert 0 < row.us <= row.us_p50 and row.operators > 0 and row.torch and row.triton
        dense = "dense" in row.call or row.call.startswith("F.linear")
        assert (row.launches == 0) == dense  # the driver was asked for every kernel of ours, and for no other
        assert (row.ratio is None) == (row.dense == "") == dense and row.dense in names | {""}
    by = {row.call: row for row in rows if row.group != "operators"}
    assert by["fused, forward"].launches == 1 and by["fused, step"].launches == 2
    assert by["all weights, no gradients"].launches < 5 < by["dense network, forward"].operators
    text = "\n".join(host.sections(rows))
    assert all(row.call in text for row in rows) and f"Triton {rows[0].triton}" in text
