"""Without a GPU: samplers compile for every target within the rules, widths share variants, operators exist."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inn_kernels import gpu, ops
from inn_kernels.gpu import compile, gemm_configs, launch, linear, specs

HERE = Path(__file__).parent
# `interpolate` runs the same kernels, without the taps of one side: the kept table has them.
MODULES = ("discretize", "discretize_adjoint", "discretize_tap_gradient", "foreach", "foreach_adjoint")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user without the interpreter would."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    variables["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run([sys.executable, *arguments], env=variables | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The table of the ahead-of-time harness, for four taps; its own rules hold."""
    path = tmp_path_factory.mktemp("resources") / "resources.csv"
    modules = [f"--module={name}" for name in MODULES]
    done = run("-m", "inn_kernels.gpu.compile", "--check", "--skip", "taps", "--csv", str(path), *modules)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_kernel_on_every_target(resources: list[dict[str, str]]) -> None:
    columns = ["kernel", "config", "target", "registers", "shared_bytes", "spill_bytes", "occupancy", "tensor_core"]
    assert list(resources[0]) == columns
    kernels = {row["kernel"] for row in resources}
    assert kernels == {module.replace("foreach", "discretize_foreach") for module in MODULES}
    for kernel in kernels:
        assert {row["target"] for row in resources if row["kernel"] == kernel} == set(specs.ALL_TARGETS)


def test_no_spills_on_sm_90(resources: list[dict[str, str]]) -> None:
    assert all(row["spill_bytes"] == "0" for row in resources if row["target"] == "sm_90")


def test_the_kept_table_holds_every_kernel_and_the_page_says_what_it_says() -> None:
    kept = HERE.parent.parent / "bench" / "results" / "resources.csv"
    with open(kept, newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [
        (spec.name, compile.label(spec, config), target)
        for spec in compile.registry()
        for config in spec.configs
        for target in spec.targets
    ]
    assert sorted((r["kernel"], r["config"], r["target"]) for r in rows) == sorted(wanted)
    assert all(row["spill_bytes"] == "0" for row in rows if row["target"] == "sm_90")
    assert compile.summary(str(kept)) in (HERE.parent.parent / "docs" / "gpu.md").read_text()


def test_random_widths_share_variants() -> None:
    """50 random widths compile each kernel once a size class and use, cells for each pair of six and eight taps too.

    Samplers: wide and narrow; foreach one for each most taps. Fused kernels: three classes of rows, and for each axis
    whose points a prologue gathers two of points a node (`contributor_class`: up to 3/4 M points, up to M).
    """
    done = run(str(HERE / "count_variants.py"))
    assert done.returncode == 0, done.stderr
    points, cells = map(json.loads, done.stdout.splitlines())
    assert cells == {
        "discretize_kernel": 4 * 2 + 2 * 2,  # a weight, an activation
        "discretize_adjoint_kernel": 4 * 2 + 2 * 2,
        "discretize_tap_gradient_kernel": 4 * 2,
        "discretize_foreach_kernel": 2,
        "discretize_foreach_adjoint_kernel": 2,
    }
    assert points == {
        "discretize_kernel": 4,  # a weight, an activation
        "discretize_adjoint_kernel": 4,
        "discretize_tap_gradient_kernel": 2,
        "discretize_foreach_kernel": 1,
        "discretize_foreach_adjoint_kernel": 1,
        "linear_kernel": 3 * 2,
        "linear_backward_kernel": 3 * 2 * 2,
        "conv_kernel": 2 * 3 * 2,  # forward, input gradient
        "conv_node_gradient_kernel": 2 * 2,  # one class of pixels
    }


def test_compiled_windows_keep_every_row() -> None:
    """Triton carries a name through a loop if its value differs after one turn: rows that start as one value do not.

    Of each point, the tap gradient sums one product a tap: as many sums are in the code.
    """
    code = (
        "from inn_kernels.gpu import compile, discretize_tap_gradient\n"
        "spec = next(s for s in discretize_tap_gradient.KERNELS if s.variant == 'fp32-bf16 no d_in')\n"
        "print(compile.compile_one(spec, spec.configs[0], 'sm_90').asm['ttir'].count('tt.reduce\"'))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4"]


def test_a_target_takes_what_its_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers and the harness choose by the same call."""
    config = launch.Config("c", {"DEPTH": 32}, num_warps=8, instead={"gfx942": {"DEPTH": 16, "num_warps": 4}})
    assert config.on("sm_90") is config
    assert config.on("gfx942") == launch.Config("c", {"DEPTH": 16}, num_warps=4)
    x = torch.empty(40, 64)
    monkeypatch.setattr(gemm_configs, "target_of", lambda device: "gfx942")
    monkeypatch.setattr(gemm_configs, "fp32_precision", lambda: "tf32")
    there, _ = gemm_configs.select(linear.FORWARD, x, x, 40)
    monkeypatch.setattr(gemm_configs, "target_of", lambda device: "sm_90")
    here, _ = gemm_configs.select(linear.FORWARD, x, x, 40)
    assert (there.constants["DEPTH"], here.constants["DEPTH"]) == (16, 32)


def test_registered() -> None:
    # A GPU's fresh memory costs no page faults; taps of ints are made on the host.
    for name in set(ops.NAMES) - {"weight_gradient", "uniform_taps", "axis_table"}:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"inn_kernels::{name}", "CUDA")


def test_import_is_cheap() -> None:
    code = "import sys, inn_kernels; assert 'triton' not in sys.modules; assert inn_kernels.gpu.missing is None"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_import_without_triton() -> None:
    code = (
        "import importlib.util as u, torch; found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else found(name, *rest)\n"
        "import inn_kernels; assert 'not installed' in inn_kernels.gpu.missing\n"
        "assert 'not installed' in inn_kernels.gpu.refusal(torch.device('cuda'), torch.float32)"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_refusals() -> None:
    assert "on cpu" in gpu.refusal(torch.device("cpu"), torch.float32)
    assert "float64" in gpu.refusal(torch.device("cuda"), torch.float64)
    assert gpu.refusal(torch.device("cuda"), torch.bfloat16) is None


def test_float64_runs_as_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registered function leaves what the kernels cannot store to plain PyTorch, and takes the rest."""
    called = []
    monkeypatch.setattr(gpu, "launcher", lambda name: lambda *arguments: called.append(name))
    start, x = torch.zeros(3, dtype=torch.int32), torch.ones(2, 4, dtype=torch.float64)
    run_op = gpu._implementation("interpolate")
    y = run_op(x, start, torch.ones(3, 4, dtype=torch.float64), 1, torch.float64)
    assert torch.equal(y, torch.full((2, 3), 4.0, dtype=torch.float64)) and not called
    run_op(x.float(), start, torch.ones(3, 4), 1, torch.bfloat16)
    assert called == ["interpolate"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CPU tensors")
def test_cpu_tensors_are_refused_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="run on a GPU"):
        launch.guard(torch.empty(1))


def innermost_loops(sass: str) -> list[list[str]]:
    """Instructions of every loop that holds no other."""
    lines = [re.sub(r"/\*.*?\*/", "", line).strip() for line in sass.splitlines()]
    labels = {line.rstrip(":"): at for at, line in enumerate(lines) if re.fullmatch(r"\.L_\w+:", line)}
    jumps = [
        (labels[to[0]], at) for at, line in enumerate(lines) if (to := re.findall(r"\bBRA\b.*`\((\.L_\w+)\)", line))
    ]
    spans = [(begin, end) for begin, end in jumps if begin < end]
    return [lines[a:b] for a, b in spans if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in spans)]


def test_all_loads_of_the_adjoint_are_in_flight_together() -> None:
    """Four columns a thread, four points each: no value is waited for before the last of the sixteen is asked for."""
    code = (
        "import sys, tempfile\n"
        "from inn_kernels.gpu import compile, discretize_adjoint\n"
        "spec = next(s for s in discretize_adjoint.KERNELS if s.variant == 'bf16-fp32')\n"
        "config = next(c for c in spec.configs if c.name == 'wide ADJACENT=False')\n"
        "with tempfile.NamedTemporaryFile(suffix='.cubin') as file:\n"
        "    file.write(compile.compile_one(spec, config, 'sm_90').asm['cubin'])\n"
        "    file.flush()\n"
        "    print(compile._tool('nvdisasm', '-c', file.name))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    loops = [loop for loop in innermost_loops(done.stdout) if sum("LDG.E.U16" in line for line in loop) == 16]
    assert loops
    for loop in loops:
        loads = {at: line.split("LDG.E.U16 ")[1].split(",")[0] for at, line in enumerate(loop) if "LDG.E.U16" in line}
        asked: set[str] = set()
        for at in range(min(loads), max(loads) + 1):
            assert not asked & set(re.findall(r"\bR\d+\b", loop[at].partition(",")[2])), loop[at]
            asked |= {loads[at]} if at in loads else set()
