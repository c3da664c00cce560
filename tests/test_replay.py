"""Calls that C++ replays launch what Triton would, shown over a driver that does nothing (tests/no_gpu)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inn_kernels import ops

pytest.importorskip("triton")
if ops.compiled_missing is not None:
    pytest.skip("the compiled library has the launcher", allow_module_level=True)

TESTS = Path(__file__).parent


@pytest.mark.parametrize("cases", ["launch_cases.py", "kind_cases.py"])
def test_over_no_gpu(cases):
    """In a process of its own: it takes CPU tensors for a GPU's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_INTERPRET", "PYTEST"))}
    paths = [str(TESTS.parent), *sys.path]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", cases]
    variables = kept | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=TESTS / "no_gpu", env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
