"""Backends explain themselves; the cost model counts what its formulas say and picks the cheapest dataflow."""

import dataclasses
import itertools
import json
import pathlib

import pytest
import torch

import integral_nn as inn
from inn_kernels import calibration, cost, dispatch, ops
from inn_kernels.cost import Shape
from integral_nn.functional import linear

MACHINE = cost.Machine(
    sampler_read_bandwidth=2.0,
    sampler_write_bandwidth=2.0,
    interpolate_bandwidth=3.0,
    gemm_rate=5.0,
    rows_half=7.0,
    gemm_bandwidth=11.0,
    convolution_rate=13.0,
    launch=17.0,
)
SHAPES = [
    Shape(rows, k, k - 1, m, m + 3, offsets, node_bytes, value_bytes, convolution, training)
    for (rows, k, m), (offsets, convolution), (node_bytes, value_bytes), training in itertools.product(
        [(1, 5, 7), (16, 12, 9), (300, 8, 8)], [(1, False), (9, True)], [(4, 4), (4, 2)], [False, True]
    )
]


@pytest.mark.parametrize("s", SHAPES, ids=str)
def test_estimate_counts_what_the_formulas_say(s):
    w = s.out_points * s.in_points * s.offsets
    n = s.out_nodes * s.in_nodes * s.offsets
    rate = 13.0 if s.convolution else 5.0

    def gemm(weights, channels):
        moved = (weights + s.rows * channels) * s.value_bytes
        half = 7 if s.rows > 1 else 0  # a matrix-vector product streams its weight
        return moved, max(2 * weights * (s.rows + half) / rate, moved / 11) + 17

    gemms, passes = (3, 2) if s.training else (1, 1)
    costs = cost.estimate(s, MACHINE)

    sampled = n * s.node_bytes + w * s.value_bytes
    moved, seconds = gemm(w, s.in_points + s.out_points)
    got = costs["materialize"]
    assert (got.bytes, got.flops) == (passes * sampled + gemms * moved, gemms * 2 * s.rows * w)
    assert got.launches == passes + gemms
    assert got.seconds == pytest.approx(passes * (sampled / 2 + 17) + gemms * seconds)

    along = s.rows * (s.in_points + s.in_nodes + s.out_points + s.out_nodes) * s.value_bytes
    cast = n * (s.node_bytes + s.value_bytes) if s.node_bytes != s.value_bytes else 0
    moved, seconds = gemm(n, s.in_nodes + s.out_nodes)
    got = costs["factored"]
    assert (got.bytes, got.flops) == (passes * (along + cast) + gemms * moved, gemms * 2 * s.rows * n)
    assert got.launches == 2 * passes + gemms + (passes if cast else 0)
    casting = passes * (cast / 2 + 17) if cast else 0
    assert got.seconds == pytest.approx(passes * (along / 3 + 34) + gemms * seconds + casting)


@pytest.mark.parametrize("s", SHAPES, ids=str)
def test_explain_marks_the_cheapest(s):
    text = dispatch.explain(s)
    costs = cost.estimate(s, dispatch.machine("cpu"))
    (marked,) = [line.split()[0] for line in text.splitlines() if line.endswith("<- auto")]
    assert marked == min(costs, key=lambda name: costs[name].seconds)
    assert all(f"{1e3 * work.seconds:.3f} ms" in text for work in costs.values())


def test_fused_counts_one_launch_each_way():
    s = SHAPES[5]
    s = s._replace(convolution=False, offsets=1, training=False)
    n = s.out_nodes * s.in_nodes
    machine = dispatch.cost.GPU
    got = cost.estimate(s, machine, fusable=True)["fused"]
    moved = n * s.node_bytes + s.rows * (s.in_points + s.out_points) * s.value_bytes
    assert (got.bytes, got.flops, got.launches) == (moved, 2 * s.rows * n, 1)
    step = cost.estimate(s._replace(training=True), machine, fusable=True)["fused"]
    assert (step.flops, step.launches) == (3 * got.flops, 2)
    assert "fused" not in cost.estimate(s, machine)


def test_each_fused_kernel_has_its_rate():
    s = SHAPES[5]._replace(training=True, rows=10**6)
    rates = dict.fromkeys(("rate", "input_rate", "node_rate"), 1e12)
    rates |= {f"convolution_{name}": 1e12 for name in rates}
    machine = dataclasses.replace(
        dispatch.cost.GPU, launch=0.0, fused_bandwidth=1e30, **{f"fused_{name}": rate for name, rate in rates.items()}
    )
    for convolution, own in ((False, ""), (True, "convolution_")):
        shape = s._replace(convolution=convolution)
        base = cost.estimate(shape, machine, fusable=True)["fused"].seconds
        for name in rates:
            slower = dataclasses.replace(machine, **{f"fused_{name}": 0.5e12})
            mine = name.startswith("convolution") == convolution
            found = cost.estimate(shape, slower, fusable=True)["fused"].seconds
            assert found == pytest.approx(base * (4 / 3 if mine else 1))
        forward = dataclasses.replace(machine, **{f"fused_{own}rate": 0.5e12})
        alone = shape._replace(training=False)
        assert cost.estimate(alone, forward, fusable=True)["fused"].seconds == pytest.approx(2 * base / 3)


def test_a_kernel_that_was_not_calibrated_is_not_taken(tmp_path):
    """Constants kept by an earlier version lack some: `auto` takes no kernel by the rate of another."""
    path = cost.save_machine("cuda", cost.GPU, tmp_path / "machine.json")
    saved = json.loads(path.read_text())
    del saved["cuda"]["fused_node_rate"]
    path.write_text(json.dumps(saved))
    machine = cost.load_machines(path)["cuda"]
    s = Shape(16, 512, 512, 1024, 1024, value_bytes=2)
    costs = cost.estimate(s, machine, fusable=True)
    assert min(costs, key=lambda name: costs[name].seconds) != "fused"
    forward = cost.estimate(s._replace(training=False), machine, fusable=True)
    assert forward["fused"] == cost.estimate(s._replace(training=False), cost.GPU, fusable=True)["fused"]


def test_the_documented_table_is_the_models():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    assert dispatch.table() in page


def test_auto_is_the_cheapest_dataflow_bit_for_bit(monkeypatch):
    x, nodes = torch.randn(3, 12), torch.randn(16, 16)
    monkeypatch.setattr(dispatch, "_cheapest", lambda *sizes: "factored")
    auto = inn.integral_linear(x, nodes, None, 12, 12)
    assert torch.equal(auto, inn.integral_linear(x, nodes, None, 12, 12, dataflow="factored"))
    monkeypatch.setattr(dispatch, "_cheapest", lambda *sizes: "materialize")
    linear._ways.clear()
    auto = inn.integral_linear(x, nodes, None, 12, 12)
    assert torch.equal(auto, inn.integral_linear(x, nodes, None, 12, 12, dataflow="materialize"))


def test_calibrated_constants_are_kept_and_read(tmp_path):
    path = cost.save_machine("cpu", MACHINE, tmp_path / "deep" / "machine.json")
    machines = cost.load_machines(path)
    assert machines == {"cpu": MACHINE, "cuda": cost.GPU}
    assert cost.load_machines(tmp_path / "none.json") == {"cpu": cost.CPU, "cuda": cost.GPU}
    path.write_text('{"cpu": {"launch": 1}}')
    with pytest.raises(ValueError, match=r"machine\.json does not hold machine constants"):
        cost.load_machines(path)


def test_calibration_measures_what_it_says(monkeypatch):
    """With a clock that says every call takes half a second, rates are the counted work, doubled."""
    calls = []

    def clock(run, rounds, calls_a_round):
        calls.append(run())
        return 0.5

    m, k, rows, few, batch, channels, side = 24, 18, 7, 3, 2, 5, 4
    found = calibration.calibrate("cpu", calibration.Sizes(m, k, rows, few, (batch, channels, side)), clock)
    assert [tuple(result.shape) for result in calls] == [
        (1, k), (k, k), (m, m), (rows, k), (1, m), (few, m), (rows, m), (batch, channels, side, side),
    ]  # fmt: skip
    assert found == cost.Machine(
        sampler_read_bandwidth=pytest.approx(2 * 4 * (m * m + k * k)),
        sampler_write_bandwidth=pytest.approx(2 * 4 * (m * m + k * k)),
        interpolate_bandwidth=2 * 4 * rows * (m + k),
        gemm_rate=2 * 2 * rows * m * m,
        rows_half=rows - few,  # as slow as all rows
        gemm_bandwidth=2 * 4 * m * m,
        convolution_rate=2 * 2 * batch * side**2 * channels**2 * 9,
        launch=0.5,
    )


def test_reading_and_writing_are_told_apart():
    read, written = 40e9, 10e9
    times = [a / read + b / written for a, b in ((4000, 1000), (1000, 4000))]
    assert calibration._read_and_write_rates(4000, 1000, *times) == pytest.approx((read, written))
    assert calibration._read_and_write_rates(4000, 1000, 1.0, 5.0)[0] == pytest.approx(
        8 * 10000 / 6.0
    )  # less than nothing


def test_calibration_takes_a_gpus_constants_too(monkeypatch):
    """The GPU's part, its tensors on the CPU: bfloat16 work, the fused kernels and float32's share of the rate."""
    randn, taps_for = torch.randn, calibration.taps_for
    monkeypatch.setattr(torch, "randn", lambda *size, device, **options: randn(*size, **options))
    monkeypatch.setattr(calibration, "taps_for", lambda *arguments, device, **options: taps_for(*arguments, **options))
    # After the others: float32 with its cast, the cast, fused of few rows, three products of linear layers, three of
    # convolutions.
    times = iter([1.0] * 8 + [9.0, 1.0, 0.5, 2.0, 4.0, 8.0, 1.0, 2.0, 4.0])
    found = calibration.calibrate(
        "cuda", calibration.Sizes(24, 18, 7, 3, (2, 5, 4)), lambda run, *_: (run(), next(times))[1]
    )
    assert found.sampler_read_bandwidth == pytest.approx(4 * 24**2 + 2 * 18**2)
    assert found.sampler_write_bandwidth == pytest.approx(4 * 24**2 + 2 * 18**2)
    assert found.gemm_bandwidth == 2 * 24**2
    flops, convolution = 2 * 7 * 24**2, 2 * 2 * 4**2 * 5**2 * 9
    assert found.fused_bandwidth == 4 * 24**2 / 0.5
    assert (found.fused_rate, found.fused_input_rate, found.fused_node_rate) == (flops / 2, flops / 4, flops / 8)
    assert found.fused_convolution_rate == convolution
    assert found.fused_convolution_input_rate == convolution / 2
    assert found.fused_convolution_node_rate == convolution / 4
    assert found.float32_share == 1 / 8


def test_stopwatch_and_copies_take_time():
    assert 0 < calibration.stopwatch("cpu")(lambda: sum(range(1000)), 3, 2) < 1
    assert 1e6 < calibration.copy_bandwidth("cpu", 2**16) < 1e13


def test_float32_products_are_slower_where_rates_are_bfloat16s():
    narrow = Shape(8192, 512, 512, 512, 512, value_bytes=2)
    machine = dataclasses.replace(MACHINE, float32_share=0.25, launch=0.0, gemm_bandwidth=1e30)
    wide = cost.dense(narrow._replace(node_bytes=4, value_bytes=4), machine)
    assert wide.seconds == pytest.approx(4 * cost.dense(narrow._replace(node_bytes=2), machine).seconds)


def test_settings_path_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("INN_KERNELS_MACHINE", str(tmp_path / "m.json"))
    assert cost.settings_path() == tmp_path / "m.json"
    monkeypatch.delenv("INN_KERNELS_MACHINE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cost.settings_path() == tmp_path / "inn_kernels" / "machine.json"


def test_can_run_explains_a_refusal(monkeypatch):
    cpu, f32 = torch.device("cpu"), torch.float32
    assert dispatch.can_run("reference", cpu, torch.float64)
    with pytest.raises(ValueError, match="backend must be one of"):
        dispatch.can_run("cuda", cpu, f32)
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run here"):
        dispatch.can_run("triton", cpu, f32, raise_error=True)
    monkeypatch.setattr(ops, "compiled_missing", "no compiler")
    assert not dispatch.can_run("cpp", cpu, f32)
    with pytest.raises(RuntimeError, match="backend 'cpp' cannot run here: no compiler"):
        dispatch.select_backend("cpp", cpu, f32)


def test_falling_back_is_said_once(monkeypatch):
    monkeypatch.setattr(ops, "compiled_missing", "no compiler was found")
    dispatch._say_once.cache_clear()
    with pytest.warns(UserWarning, match="plain PyTorch: no compiler was found") as said:
        for _ in range(3):
            assert dispatch.select_backend(None, torch.device("cpu"), torch.float32) == "reference"
    assert len(said) == 1
    dispatch._say_once.cache_clear()
