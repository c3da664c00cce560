"""The sweep of configurations, dry: every candidate of a kernel runs and gives the present choice's result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


def sweep(*arguments: str, **environment: str) -> str:
    """What `python -m bench.sweep` prints."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "bench.sweep", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_candidate_of_a_sampler_runs() -> None:
    printed = sweep("-k", "discretize narrow", TRITON_INTERPRET="1").splitlines()
    assert printed[0].startswith("discretize narrow, 12 nodes at 9: present choice is number")
    assert printed[0].endswith("of 25") and printed[1].split()[:2] == ["candidate", "present"]
    assert all(line.endswith("error 0.0") for line in printed[1:])


def test_rows_come_one_by_one_and_those_there_are_stay(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    columns = "kernel,size_class,shape,candidate,target,ms_p50,error,registers,shared_bytes,spill_bytes,occupancy,"
    columns += "tensor_core,resident,in_flight,problem,device,torch,triton"
    there = "discretize,narrow,12 nodes at 9,SUB=1 LANES=64 num_warps=2 max_registers=None,sm_90" + 9 * "," + ",lost,,,"
    path.write_text(f"{columns}\n{there}\n")
    sweep("-k", "discretize narrow", "--few", "2", "--out", str(tmp_path), TRITON_INTERPRET="1")
    kept, first, second = path.read_text().splitlines()[1:]
    assert kept == there and first.startswith("discretize,narrow,12 nodes at 9,present,sm_90,")
    assert second.startswith("discretize,narrow,12 nodes at 9,SUB=1 LANES=64 num_warps=2 max_registers=40,sm_90,")


def test_resources_rank_without_a_gpu() -> None:
    printed = sweep("--resources", "--target", "sm_90", "-k", "tap_gradient narrow", "--few", "2").splitlines()
    assert printed[0].startswith("discretize_tap_gradient narrow, 512 nodes at 384: present choice is number")
    assert all("registers" in line and "spill_bytes 0" in line for line in printed[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_times_need_a_gpu() -> None:
    with pytest.raises(AssertionError, match="no GPU here"):
        sweep()
