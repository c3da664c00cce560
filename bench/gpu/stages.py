"""Stages of a run on a GPU within a time, each in processes of its own, so that none can take another down.

What a stage prints and measures is on disk as it comes. A stage is given until a share of the deadline has passed: then
its processes are stopped; those of a stage that comes too late are not begun. stages.csv says how each ended.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = Path("tests") / "gpu"
WITHOUT_DEVICE = ("test_gpu_compile.py", "test_sweep.py")  # what a CPU shows as well
SANITIZED = (
    "test_gpu_discretize.py::test_repeatable_bit_for_bit",
    "test_gpu_interpolate.py::test_repeatable_bit_for_bit",
    "test_gpu_foreach.py::test_equals_layers_one_by_one",
    "test_fused_linear.py::test_repeatable_and_layout_does_not_matter[shared tiles]",
    "test_fused_linear.py::test_repeatable_and_layout_does_not_matter[clustered]",
    "test_fused_conv.py::test_repeatable_and_layout_does_not_matter[shared tiles]",
)
DRY_TESTS = ("test_launch.py::test_the_second_launch_is_direct",)
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": (), "synccheck": ()}
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats", "SchedulerStats", "WarpStateStats")
GRACE = 15.0  # seconds after the deadline in which a case that has begun may end
WORKERS, WARMERS = 12, 4  # processes that test, and that compile what is measured


@dataclass
class Command:
    """A program, the file of the run's folder that takes what it prints, and its environment beside ours."""

    name: str
    arguments: Sequence[str]
    file: str
    variables: dict[str, str] = field(default_factory=dict)


@dataclass
class Session:
    """One run: its folder, when it began, and for how long it may begin something."""

    out: Path
    deadline: float
    dry: bool = False
    begun: float = field(default_factory=time.monotonic)
    failed: bool = False  # did any program?

    def left(self, share: float = 1.0) -> float:
        """Seconds until a share of the deadline has passed."""
        return self.begun + share * self.deadline - time.monotonic()

    def run(self, stage: str, commands: Sequence[Command], share: float) -> list[int | None]:
        """Run programs side by side until that share of the deadline. Exit codes; None: stopped or not begun."""
        at = time.monotonic() - self.begun
        if self.left(share) <= 0:
            for command in commands:
                self.note(stage, command.name, at, "not begun: the time is over")
            return [None] * len(commands)
        running: list[subprocess.Popen] = []
        codes: list[int | None] = []
        try:
            running += [self._start(command) for command in commands]
            for command, process in zip(commands, running):
                try:
                    codes.append(process.wait(max(self.left(share), 0.1)))
                except subprocess.TimeoutExpired:
                    codes.append(None)
                    stop(process)
                self.note(stage, command.name, at, "stopped" if codes[-1] is None else f"exit {codes[-1]}")
                self.failed |= codes[-1] not in (0, None)
        finally:
            for process in running:
                stop(process)
        return codes

    def _start(self, command: Command) -> subprocess.Popen:
        with (self.out / command.file).open("ab") as file:
            variables = os.environ | {"PYTHONUNBUFFERED": "1"} | command.variables
            both = {"stdout": file, "stderr": subprocess.STDOUT}
            return subprocess.Popen(command.arguments, env=variables, cwd=ROOT, start_new_session=True, **both)

    def note(self, stage: str, name: str, at: float, outcome: str) -> None:
        """A line of stages.csv, and on the screen."""
        path, took = self.out / "stages.csv", time.monotonic() - self.begun - at
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(["stage", "program", "begun_s", "took_s", "outcome"])
            writer.writerow([stage, name, f"{at:.1f}", f"{took:.1f}", outcome])
        print(f"{at:6.1f} s  {stage}, {name}: {outcome} after {took:.1f} s", flush=True)

    def python(self, *arguments: str) -> list[str]:
        """A module of ours, with what it needs to know of the run."""
        return [sys.executable, "-m", *arguments, *(["--dry-run"] if self.dry else [])]


def stop(process: subprocess.Popen) -> None:
    """End a program and all it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# The stages ------------------------------------------------------------------------------------------------------


def tests(session: Session, share: float) -> None:
    """The kernels' tests on the device, while other processes compile what will be measured."""
    chosen = [str(TESTS / test) for test in DRY_TESTS] if session.dry else [str(TESTS)]
    spread = ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") and not session.dry else []
    left_out = [f"--ignore={TESTS / name}" for name in WITHOUT_DEVICE]
    pytest = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", *spread, *left_out, *chosen]
    commands = [Command("pytest", pytest, "tests.txt")]
    for n in range(1 if session.dry else WARMERS):
        part = f"{n}/{60 if session.dry else WARMERS}"
        arguments = session.python("bench.gpu.measure", "--out", str(session.out), "--warm", part)
        commands.append(Command(f"compile {part}", arguments, "log.txt"))
    session.run("tests", commands, share)


def measurements(session: Session, share: float, only: str = "") -> None:
    """Rows, by one process at a time. After one that died the next does the rest of its case.

    A case that leaves no row before its process dies is done with: it gets a row that says so.
    """
    rows, first, code = session.out / "rows.csv", 0, 1
    while code:
        before = lines_of(rows)
        arguments = session.python("bench.gpu.measure", "--out", str(session.out), "-k", only)
        arguments += ["--first", str(first), "--deadline", f"{max(session.left(share), 0):.1f}"]
        grace = share + GRACE / session.deadline
        (code,) = session.run("measurements", [Command("measure", arguments, "log.txt")], grace)
        begun = last_begun(session.out / "begun.txt")
        if code == 0 or begun is None or begun[0] < first:
            return
        first = begun[0]
        if code is None or lines_of(rows) <= max(before, 1):
            add_lost(rows, begun[1], "stopped" if code is None else f"its process died: exit {code}")
            first += 1


def lines_of(path: Path) -> int:
    """Lines of a file, 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def add_lost(path: Path, name: str, problem: str) -> None:
    """A row of a case that was under way in a process that is no more."""
    with path.open("r+", newline="") as file:
        columns = next(csv.reader(file))
        file.seek(0, os.SEEK_END)
        csv.DictWriter(file, columns, lineterminator="\n").writerow(
            {"op": "case", "shape": name, "problem": problem} | dict.fromkeys(("ms_p50", "ms_p20", "ms_p80"), "nan")
        )


def last_begun(path: Path) -> tuple[int, str] | None:
    """Number and name of the last case that was begun."""
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:
        return None
    number, _, name = lines[-1].partition(" ")
    return int(number), name


def sweep(session: Session, share: float) -> None:
    """Every candidate of the launch configurations: many processes compile, then one at a time measures."""
    program = [sys.executable, "-m", "bench.sweep", *(["--few", "2", "-k", "narrow"] if session.dry else [])]
    variables = {"TRITON_INTERPRET": "1"} if session.dry else {}
    of = 1 if session.dry else WORKERS
    parts = [f"{n}/{of}" for n in range(of)]
    warm = [Command(f"compile {part}", [*program, "--warm", part], "log.txt", variables) for part in parts]
    session.run("sweep", warm, 0.6 * share)
    rows, before, code = session.out / "sweep.csv", -1, 1
    while code and lines_of(rows) > before:
        before = lines_of(rows)
        arguments = [*program, "--out", str(session.out), "--deadline", f"{max(session.left(share), 0):.1f}"]
        command = Command("measure", arguments, "log.txt", variables)
        (code,) = session.run("sweep", [command], share + GRACE / session.deadline)


def tooled(session: Session, share: float, stage: str, tool: Sequence[str], command: Command) -> None:
    """Run a program under a tool (by itself in a dry run), or note that there is no such tool."""
    if session.dry:
        session.run(stage, [command], share)
    elif shutil.which(tool[0]):
        session.run(stage, [replace(command, arguments=[*tool, *command.arguments])], share)
    else:
        session.note(stage, command.name, time.monotonic() - session.begun, f"no {tool[0]} here")


def profiles(session: Session, share: float) -> None:
    """Six kernels under ncu, and what runs in a training step."""
    ncu = ["ncu", "--profile-from-start", "off", "--clock-control", "none"]
    ncu += [word for section in SECTIONS for word in ("--section", section)]
    command = Command("six kernels", session.python("bench.gpu.profiled"), "profiles.txt")
    tooled(session, share, "profiles", ncu, command)
    step = Command("a training step", session.python("bench.gpu.profiled", "--step"), "profiles.txt")
    session.run("profiles", [step], share)


def constants(session: Session, share: float) -> None:
    """The cost model's constants."""
    arguments = session.python("bench.gpu.constants", "--out", str(session.out))
    session.run("constants", [Command("calibrate", arguments, "log.txt")], share)


def sanitizers(session: Session, share: float) -> None:
    """Six tests under each of NVIDIA's sanitizers. Without PyTorch's cache each tensor is an allocation of its own."""
    chosen = [str(TESTS / test) for test in (DRY_TESTS if session.dry else SANITIZED)]
    program = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *chosen]
    for tool, more in TOOLS.items():
        sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *more]
        command = Command(tool, program, "sanitizers.txt", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        tooled(session, share, "sanitizers", sanitizer, command)
