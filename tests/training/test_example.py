"""The example of a training on several processes, in a quick form: two leave a checkpoint, one goes on from it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_distributed.py"


def accuracies(text):
    widths = re.findall(r"width +(\d+)%: accuracy ([\d.]+)%", text)
    assert [int(width) for width, _ in widths] == [100, 75, 50, 25], text
    return [float(accuracy) for _, accuracy in widths]


def test_two_processes_then_one(tmp_path, monkeypatch, capsys, threads):
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, EXAMPLE, "--steps=3", f"--folder={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    accuracies(done.stdout)

    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["example", "--shard", "--steps=40", f"--folder={folder}"])
    spec = importlib.util.spec_from_file_location("train_distributed", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    threads(1)
    example.main()
    said = capsys.readouterr()
    assert "/37 " in said.err  # steps that were left
    assert min(accuracies(said.out)) > 30  # chance is 10
