"""The benchmark measures every provider, refuses what is wrong, keeps records honestly, and reports what they say."""

import csv
import importlib.machinery
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench import __main__ as command  # noqa: E402
from bench import compare, count, harness, jobs, networks, providers, serving, torch_integral  # noqa: E402
from bench.tables import targets  # noqa: E402
from inn_kernels import ops  # noqa: E402


@pytest.fixture
def bench(monkeypatch):
    bench = jobs.Bench(seconds=0.0)
    limits = count.Limits(bandwidth=1e10, peak=1e11)
    monkeypatch.setattr(bench, "limits", lambda dtype: (limits, []))
    return bench


@pytest.fixture
def case():
    return providers.linear(12, 0.75, 4)


@pytest.fixture
def small_network(monkeypatch):
    """A network that converts in no time in place of the ResNet-18."""

    def build(width, classes=4):
        layers = [torch.nn.Conv2d(3, width, 3), torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
        return torch.nn.Sequential(*layers, torch.nn.Conv2d(width, classes, 3), torch.nn.Flatten())

    monkeypatch.setattr(networks, "ResNet18", build)


def row(**changes):
    values = {"op": "linear", "provider": "auto", "mode": "step", "shape": "a", "dtype": "float32", "device": "cpu"}
    return harness.Row(**(values | {"ms_p50": 2.0, "ms_p20": 1.9, "ms_p80": 2.1} | changes))


@pytest.mark.parametrize("case", [providers.linear(12, 0.75, 4), providers.conv((12, 8), 3, 5, 2)], ids=str)
def test_rows_of_a_layer(bench, case):
    rows = bench.layer(case)
    ours = {"auto", "auto, cells", "materialize", "factored"}
    names = {"dense", "dense, node size", *ours, "two products", "grid_sample"}
    assert [{r.provider for r in rows if r.mode == mode} for mode in ("step", "forward")] == [names, names]
    for r in rows:
        assert r.ms_p20 <= r.ms_p50 <= r.ms_p80 and 0 < r.error < 1e-4
        assert r.bytes > 0 and r.flops > 0 and r.launches > 0 and r.peak_mib > 0
        assert r.ms_p50 * r.bandwidth_share == pytest.approx(1e3 * max(r.bytes / 1e10, r.flops / 1e11))
        assert len(bench.rounds[r.key]) >= 3
    by = {(r.provider, r.mode): r for r in rows}
    weights = case.points[0] * case.points[1] * case.offsets
    assert by["dense", "forward"].flops == 2 * case.batch * max(case.image, 1) ** 2 * weights
    assert by["auto", "step"].launches > by["dense", "step"].launches
    if ops.compiled_missing is None:
        assert by["grid_sample", "step"].launches > by["auto", "step"].launches


def test_sampler_rows_share_a_copys_bandwidth(bench, case):
    rows = {r.provider: r for r in bench.sampler(case)}
    assert rows["copy in place"].bandwidth_share == 1
    assert rows["discretize"].bytes == rows["adjoint, cells"].bytes == 4 * (12 * 12 + 9 * 9)
    assert all(r.bandwidth_share > 0 for r in rows.values())


def test_a_wrong_provider_ends_the_run_and_nothing_is_written(bench, case, monkeypatch, tmp_path):
    wrong = providers.grid_sample_weight
    monkeypatch.setattr(providers, "grid_sample_weight", lambda *args: 1.01 * wrong(*args))
    monkeypatch.setattr(command, "Bench", lambda seconds: bench)
    monkeypatch.setattr(command, "cpu_jobs", lambda bench: [jobs.layer_job(bench, case)])
    monkeypatch.setattr(sys, "argv", ["bench", "--csv", str(tmp_path / "cpu.csv")])
    with pytest.raises(ArithmeticError, match="grid_sample is off by 1"):
        command.main()
    assert not (tmp_path / "cpu.csv").exists()


def test_a_part_replaces_its_own_rows(bench, case, monkeypatch, tmp_path):
    path = tmp_path / "cpu.csv"
    stale = row(shape=case.shape, ms_p50=77.0, **bench.where)
    other = row(shape="another", ms_p50=88.0, **bench.where)
    harness.write_csv([stale, other], path)
    monkeypatch.setattr(command, "Bench", lambda seconds: bench)
    monkeypatch.setattr(command, "cpu_jobs", lambda bench: [jobs.layer_job(bench, case)])
    monkeypatch.setattr(sys, "argv", ["bench", "-k", "linear", "--csv", str(path)])
    command.main()
    times = {r.key: r.ms_p50 for r in harness.read_csv(path)}
    assert times[other.key] == 88 and times[stale.key] != 77 and len(times) == 17


def test_rows_of_two_machines_do_not_mix():
    with pytest.raises(ValueError, match="share their device"):
        harness.merged([row()], [row(device="another")])
    with pytest.raises(ValueError, match="share their torch"):
        harness.merged([row()], [row(torch="3")])


def test_rows_survive_the_file(tmp_path):
    rows = [row(error=1.25e-7, launches=3, bytes=10**12), row(provider="dense", peak_mib=0.5)]
    harness.write_csv(rows, tmp_path / "cpu.csv")
    assert harness.read_csv(tmp_path / "cpu.csv") == rows
    with (tmp_path / "cpu.csv").open() as file:
        columns = csv.DictReader(file).fieldnames
    assert columns[:9] == ["op", "provider", "mode", "shape", "dtype", "ms_p50", "ms_p20", "ms_p80", "ratio_to_dense"]
    assert columns[9:15] == ["bytes", "flops", "launches", "bandwidth_share", "peak_mib", "error"]
    assert columns[15:] == ["device", "torch", "triton", "commit"]


def test_ratios_are_taken_within_a_round():
    assert harness.median_ratio([2.0, 40.0, 6.0], [1.0, 10.0, 3.0]) == 2.0


def test_slow_providers_get_rounds_of_their_own():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in ("dense", "auto", "grid_sample")}
    times, base = harness.cpu_times(runs, "dense", ("grid_sample",), 0.0)
    first = calls.index("grid_sample")
    assert calls[:first].count("auto") == len(times["auto"]) + 1 and "auto" not in calls[first:]
    assert len(base["grid_sample"]) == len(times["grid_sample"]) == 3


def test_regressions_are_those_beyond_noise(tmp_path, capsys, monkeypatch):
    old = row(ratio_to_dense=1.0)
    slower = replace(old, ratio_to_dense=1.3, ms_p50=2.0)
    assert [found.key for found, _, _ in compare.regressions([old], [slower])] == [old.key]
    noisy = replace(slower, ms_p20=1.5, ms_p80=2.5)  # 2 x (5% + 25%) of noise
    assert compare.regressions([old], [noisy]) == []
    slow_machine = replace(old, ms_p50=4.0, ms_p20=3.8, ms_p80=4.2)  # as much slower as the dense layer
    assert compare.regressions([old], [slow_machine]) == []
    assert compare.regressions([replace(old, provider="dense")], [replace(slower, provider="dense")]) == []
    sampler = row(op="discretize", provider="discretize", bandwidth_share=0.5)
    assert len(compare.regressions([sampler], [replace(sampler, bandwidth_share=0.3)])) == 1
    for name, rows in (("old", [old]), ("new", [slower])):
        harness.write_csv(rows, tmp_path / name)
    arguments = ["bench", "--csv", str(tmp_path / "new"), "--compare", str(tmp_path / "old")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert command.main() == 1 and "+30%" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments[:-1], str(tmp_path / "new")])
    assert command.main() == 0


def test_memory_and_launches_are_counted():
    x = torch.zeros(256, 1024)  # 1 MiB
    runs = {"both": lambda: (x + 1) * 2, "one": lambda: (x + 1).mul_(2), "none": lambda: x.add_(1)}
    peaks = count.peak_mib(runs, "cpu")  # the sum lives while the product is made
    assert peaks == pytest.approx({"both": 2, "one": 1, "none": 0}, abs=1e-3)
    assert count.launches({"run": lambda: (x.t() + 1).view(8, 128, 256).sum()}, "cpu") == {"run": 2}


def test_targets_say_what_is_missed():
    ratios = {"dense": 1.0, "auto": 1.6, "materialize": 1.28, "factored": 1.7, "grid_sample": 64.0}
    rows = [row(provider=name, ratio_to_dense=ratio, shape="8 nodes at 6, batch 4") for name, ratio in ratios.items()]
    met = {text: (value, met) for text, _, value, met in targets.targets(rows)}
    assert met["`auto` over the best dataflow, at worst"] == ("1.25", False)
    assert met["`grid_sample` over ours, linear layers, geometric mean"] == ("40.00", True)
    assert met["step over dense, linear layers of at most 64 rows, geometric mean"] == ("1.60", True)


def test_network_rows(bench, small_network):
    resized = {r.provider: r for r in bench.resize(0.75, 8)}
    assert {"copy", "resize", "resize, new size", "resize, cells", "discretize", "grid_sample"} <= set(resized)
    assert resized["resize"].error < 1e-6 and resized["grid_sample"].error < 1e-4
    steps = {r.provider: r for r in bench.step(0.75, 2, 32, torch.float32, 8)}
    assert set(steps) == {"dense", "auto", "auto, cells", "grid_sample"}
    assert steps["auto"].launches > steps["dense"].launches


def test_a_resnet18_has_11_million_weights():
    assert sum(p.numel() for p in networks.ResNet18().parameters()) == 11_689_512


def test_figures_are_the_same_bytes_every_time(tmp_path):
    figures = pytest.importorskip("bench.figures")
    rows = harness.read_csv(harness.RESULTS / "cpu.csv")
    for name in ("a", "b"):
        figures.draw(rows, tmp_path / name)
    assert (tmp_path / "a" / "growth.svg").read_bytes() == (tmp_path / "b" / "growth.svg").read_bytes()


def test_pytest_benchmark_holds_the_same_numbers(tmp_path):
    pytest.importorskip("pytest_benchmark")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "bench", "-q", "--collect-only", "-k", "256 and 8192 and forward"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "test_layer[linear 256 nodes at 192, batch 8192 forward auto]" in found.stdout, found.stdout + found.stderr


def stand_in_for_torch_integral(monkeypatch):
    """Modules that answer the calls which the provider makes of TorchIntegral, as its documentation has them."""

    class Grid:
        def __init__(self, parts):
            self.parts = parts

        def __call__(self):
            return [torch.linspace(-1, 1, size) for size in self.parts.values()]

    class Trapezoid:
        def __init__(self, dims):
            assert dims == [1]

        def __call__(self, weight, grid):
            gaps = torch.nn.functional.pad(grid[1].diff(), (1, 1))
            h = (gaps[1:] + gaps[:-1]) / 2
            return weight * h.reshape([1, -1] + [1] * (weight.dim() - 2))

    class Weights:
        def __init__(self, grid, quadrature, size, discrete=None):
            self.grid, self.quadrature, self.discrete, self.train_volume = grid, quadrature, discrete or [], None

        def __call__(self, planes):
            rows, *columns = self.grid()
            columns = columns[0] if columns else torch.zeros(1)
            points = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)[None]
            found = torch.nn.functional.grid_sample(planes, points, "bicubic", "border", align_corners=True)[0]
            if self.quadrature is None:
                return found.flatten()
            weight = found.permute(1, 2, 0).reshape(*found.shape[1:], *self.discrete)
            return self.quadrature(weight, self.grid()) * self.train_volume

    names = {
        "torch_integral": {},
        "torch_integral.grid": {
            "GridND": Grid,
            "RandomUniformGrid1D": lambda d: d,
            "UniformDistribution": lambda a, b: a,
        },
        "torch_integral.quadrature": {"TrapezoidalQuadrature": Trapezoid},
        "torch_integral.parametrizations": {},
        "torch_integral.parametrizations.interpolation_weights": {
            "GridSampleWeights1D": Weights,
            "GridSampleWeights2D": Weights,
        },
    }
    for name, contents in names.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("case", [providers.linear(16, 0.75, 2), providers.conv(8, 3, 6, 2)], ids=["linear", "conv2d"])
def test_torch_integral_takes_part_where_it_is_installed(bench, case, monkeypatch):
    assert torch_integral.NAME not in {row.provider for row in bench.layer(case)}
    stand_in_for_torch_integral(monkeypatch)
    rows = [row for row in bench.layer(case) if row.provider == torch_integral.NAME]
    assert [row.mode for row in rows] == ["step", "forward"] and all(row.error < 1e-3 for row in rows)


def test_requests_are_served_within_memory(small_network):
    rows = serving.serve(width=4, image=8, requests=4, rounds=2)
    assert [row["room"] for row in rows] == list(serving.ROOMS)
    for row in rows:
        assert row["requests"] == 4 * serving.THREADS and row["bytes"] <= row["max_bytes"]
        assert row["ratio"] > 0 and row["snapshots"] > 0
