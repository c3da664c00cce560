"""The examples on whole networks, each with --quick."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_serve(tmp_path):
    command = [sys.executable, str(EXAMPLES / "serve.py"), "--quick", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "40 widths" in done.stdout and "the same answers from one thread: True" in done.stdout
