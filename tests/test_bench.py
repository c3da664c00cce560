"""The benchmark scripts run, measure every provider, and write what the report reads."""

import csv
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import bench.__main__
    import bench.gpu
    import bench.report

    return bench


def test_rows_of_a_small_layer_reach_the_report(bench, tmp_path):
    case = bench.providers.Case(nodes=12, points=9, batch=4)
    where = bench.harness.environment()
    main = sys.modules["bench.__main__"]
    rows = [*main.layer_rows(case, True, 0.0, where), *main.sampler_rows(case, 0.0, where)]
    providers = {"dense", "auto", "materialize", "factored", "grid_sample", "copy", "adjoint"}
    assert {row.provider for row in rows} >= providers
    assert all(row.ms_p20 <= row.ms_p50 <= row.ms_p80 and row.error < 1e-4 for row in rows)
    bench.harness.write_csv(rows, tmp_path / "cpu.csv")
    with (tmp_path / "cpu.csv").open() as file:
        columns = csv.DictReader(file).fieldnames
    assert columns[:9] == ["op", "provider", "mode", "shape", "dtype", "ms_p50", "ms_p20", "ms_p80", "ratio_to_dense"]
    text = bench.report.render(bench.report.read(tmp_path / "cpu.csv"))
    assert "linear, 12 nodes at 9, batch 4" in text and where["commit"] in text


def test_gpu_script_runs_dry(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--dry-run"])
    bench.gpu.main()
    assert "rows, none written" in capsys.readouterr().out


def test_ratios_are_taken_within_a_round(bench):
    assert bench.harness.median_ratio([2.0, 40.0, 6.0], [1.0, 10.0, 3.0]) == 2.0
