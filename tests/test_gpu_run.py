"""The run on a GPU, dry: every job runs on a CPU, nothing that fails or dies takes rows with it, and time is kept."""

import csv
import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.gpu import clock, jobs, measure, stages  # noqa: E402
from bench.gpu.rows import DeviceRow, GpuBench, Lost, Trial  # noqa: E402
from bench.harness import append_csv, read_csv  # noqa: E402
from bench.jobs import Job  # noqa: E402


@pytest.fixture
def rows():
    return []


@pytest.fixture
def bench(rows):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield GpuBench("cpu", 0.0, measure.DATAFLOWS[:3], 16, write=rows.append)
    torch.set_num_threads(threads)


def run(bench, todo, ends=math.inf):
    names = []
    measure.measure(list(enumerate(todo)), bench, lambda number, name: names.append(name), ends)
    return names


def test_every_kind_of_job_runs_dry(bench, rows):
    every = jobs.dry_jobs(bench)
    assert len(jobs.gpu_jobs(bench)) > len(every)  # their tensors are made when they run
    run(bench, [job for job in every if "ResNet" not in job.name or job.name.endswith(": auto, eager")])
    assert not [row for row in rows if row.problem]
    assert {row.op for row in rows} == {"machine", "sampling", "foreach", "linear", "conv2d", "network"}
    for row in rows:
        assert row.ms_p50 > 0 and (row.error is None or row.error < 0.2) and str(row).startswith(f"{row.op} ")
    names = {(row.provider, row.mode) for row in rows if row.op == "network" and row.shape.startswith("MLP")}
    assert len(names) == 11 and ("auto, cells", "step, graph") in names and ("auto", "step, compiled") in names
    assert all(row.ratio_to_dense for row in rows if row.shape.startswith("MLP") and row.provider != "dense")


def test_what_fails_is_a_row_and_the_rest_goes_on(bench, rows, tmp_path):
    def fail():
        raise ValueError("no such\nkernel")

    trials = {"good": lambda: Trial(lambda: None), "bad": fail, "last": lambda: Trial(lambda: None)}
    names = run(bench, [Job("broken", fail), Job("mixed", lambda: bench.passes("sampling", "a", lambda: trials))])
    assert names == ["broken", "mixed"]
    found = [(row.op, row.shape, row.provider, row.problem) for row in rows]
    assert found == [
        ("case", "broken", "", "ValueError: no such"),
        ("sampling", "a", "good", ""),
        ("sampling", "a", "bad", "ValueError: no such"),
        ("sampling", "a", "last", ""),
    ]
    assert math.isnan(rows[0].ms_p50) and rows[1].ms_p50 >= 0
    append_csv(rows, tmp_path / "rows.csv", DeviceRow)
    assert [row.problem for row in read_csv(tmp_path / "rows.csv", DeviceRow)] == [row.problem for row in rows]


def test_no_case_is_begun_after_the_deadline(bench):
    assert run(bench, [Job("late", pytest.fail)], time.monotonic() - 1) == []


def test_a_lost_device_ends_the_process_and_another_goes_on(bench, rows, monkeypatch):
    def raise_(*_):
        raise RuntimeError("illegal memory access")

    bench.device = "cuda"
    monkeypatch.setattr(torch.cuda, "synchronize", raise_)
    trials = {"first": lambda: Trial(raise_), "second": lambda: Trial(lambda: None)}
    kernels = Job("kernels", lambda: bench.passes("sampling", "a", lambda: trials))
    with pytest.raises(Lost, match="illegal memory access"):
        run(bench, [kernels, Job("never", pytest.fail)])
    assert [(row.provider, row.problem) for row in rows] == [("first", "RuntimeError: illegal memory access")]
    bench.device, bench.kept = "cpu", {row.key: row for row in rows}  # as another process finds them
    run(bench, [kernels])
    assert [row.provider for row in rows] == ["first", "second"] and not rows[1].problem


# Stages ----------------------------------------------------------------------------------------------------------

MEASURER = """
import sys
from pathlib import Path
out, first = Path(sys.argv[1]), int(sys.argv[sys.argv.index("--first") + 1])
rows, begun = out / "rows.csv", out / "begun.txt"
if not rows.exists():
    rows.write_text("op,shape,ms_p50,ms_p20,ms_p80,problem\\n")
for number, name in list(enumerate(["a", "kills", "b", "hangs", "c"]))[first:]:
    with begun.open("a") as file:
        file.write(f"{number} {name}\\n")
    if name == "kills":
        sys.exit(-9)
    if name == "hangs":
        import time; time.sleep(60)
    with rows.open("a") as file:
        file.write(f"op,{name},1,1,1,\\n")
"""


def test_rows_outlive_a_process_that_dies_and_one_that_hangs(tmp_path, monkeypatch):
    session = stages.Session(tmp_path, 2.5)
    monkeypatch.setattr(stages, "GRACE", 0.0)
    monkeypatch.setattr(session, "python", lambda *arguments: [sys.executable, "-c", MEASURER, str(tmp_path)])
    stages.measurements(session, 1.0)
    with (tmp_path / "rows.csv").open() as file:
        found = [(row["shape"], row["problem"]) for row in csv.DictReader(file)]
    assert found == [("a", ""), ("kills", "its process died: exit 247"), ("b", ""), ("hangs", "stopped")]
    with (tmp_path / "stages.csv").open() as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == ["exit 247", "exit 247", "stopped"]


def test_programs_run_side_by_side_and_are_stopped_with_what_they_started(tmp_path):
    script = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    session = stages.Session(tmp_path, 1.5)
    commands = [stages.Command(name, [sys.executable, "-c", script], "log.txt") for name in "ab"]
    begin = time.monotonic()
    assert session.run("stage", commands, 1.0) == [None, None]
    assert session.run("late", commands, 1.0) == [None, None]
    assert time.monotonic() - begin < 20
    assert (tmp_path / "log.txt").read_text() == "begun\nbegun\n"
    with (tmp_path / "stages.csv").open() as file:
        outcomes = [row["outcome"] for row in csv.DictReader(file)]
    assert outcomes == ["stopped"] * 2 + ["not begun: the time is over"] * 2


def test_a_run_that_ends_early_leaves_its_files_whole(tmp_path):
    out, deadline = tmp_path / "out", 7
    command = [sys.executable, "-m", "bench.gpu", "--out", str(out), "--dry-run", "--deadline", str(deadline)]
    command += ["--only", "measurements", "--only", "sanitizers"]
    begin = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < deadline + stages.GRACE + 5
    rows = read_csv(out / "rows.csv", DeviceRow)
    assert all(row.ms_p50 > 0 and not row.problem for row in rows if row.op != "case")
    with (out / "stages.csv").open() as file:
        assert {row["stage"] for row in csv.DictReader(file)} == {"measurements", "sanitizers"}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 1 and "must be a new or an empty folder" in again.stderr


def test_tests_for_the_sanitizers_are_there():
    for test in (*stages.SANITIZED, *stages.DRY_TESTS):
        name, _, function = test.partition("::")
        assert f"def {function.partition('[')[0]}(" in (ROOT / stages.TESTS / name).read_text()
    assert all((ROOT / stages.TESTS / name).exists() for name in stages.WITHOUT_DEVICE)


# The clock -------------------------------------------------------------------------------------------------------


def test_large_tensors_take_turns():
    nodes, taps = torch.zeros(64, 64), torch.zeros(64)
    rotation = clock.rotated(
        partial(lambda values, taps, size: (values[0].data_ptr(), taps.data_ptr()), [nodes], taps, 3)
    )
    first, second = rotation(), rotation()
    assert first == (nodes.data_ptr(), taps.data_ptr()) and rotation() == first
    assert second[0] != first[0] and second[1] == first[1]
    assert clock.sets_for(2**20, "cuda") == 32 and clock.sets_for(2**27, "cuda") == 2
    assert clock.sets_for(2**30, "cuda") == 1


@pytest.fixture
def device(monkeypatch):
    """A GPU of which each replay takes 4 ms, and each call that is queued 3 ms."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            self.at = 0

        def record(self):
            self.at = sum({"replay": 4, "call": 3}.get(name, 0) for name in log)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    class Capture:
        capturing = True

        def __init__(self, graph, stream):
            pass

        def __enter__(self):
            log.append("capture")

        def __exit__(self, *_):
            pass

    class Stream:
        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    fakes = {
        "Event": Event, "graph": Capture, "Stream": Stream, "stream": lambda stream: stream,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: log.append("replay")), "synchronize": lambda: None,
        "default_stream": Stream, "set_stream": lambda stream: log.append("default"), "_sleep": lambda cycles: None,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake, raising=False)
    return log


def test_graphs_are_timed(device):
    taken = clock.timing(clock.Rotation([lambda: device.append("call")] * 2), "cuda", 0.1)
    assert taken.clock == "graph" and len(taken.seconds) > 9 and taken.host_us > 0
    assert all(seconds == pytest.approx(2e-3) for seconds in taken.seconds)  # two calls a replay


def test_calls_that_cannot_be_captured_are_queued(device):
    def call():
        if device and device[-1] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        device.append("call")

    taken = clock.timing(call, "cuda", 0.01)
    assert taken.clock == "events" and taken.seconds[0] == pytest.approx(3e-3) and "default" in device


def test_steps_follow_each_other(device):
    taken = clock.timing(lambda: device.append("call"), "cuda", 0.01, graph=False)
    assert taken.clock == "eager" and taken.seconds[0] == pytest.approx(3e-3) and "capture" not in device
