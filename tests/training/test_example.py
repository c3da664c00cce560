"""The example of a training on several processes, in a quick form: two that leave a checkpoint, one that goes on."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_distributed.py"


def run(processes, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", EXAMPLE]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    widths = re.findall(r"width +(\d+)%: accuracy ([\d.]+)%", done.stdout)
    assert [int(width) for width, _ in widths] == [100, 75, 50, 25]
    return done, [float(accuracy) for _, accuracy in widths]


def test_two_processes_then_one(tmp_path):
    folder = tmp_path / "run"
    run(2, "--steps=3", f"--folder={folder}")
    assert (folder / ".metadata").exists()
    done, accuracies = run(1, "--shard", "--steps=40", f"--folder={folder}")
    assert "/37 " in done.stderr  # steps that were left
    assert min(accuracies) > 30  # chance is 10
