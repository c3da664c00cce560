"""A wheel installs without a compiler and runs README's lines on the compiled kernels; the sdist can be compiled.

The wheel is made of the library that is loaded here, or is the one that INN_KERNELS_WHEEL names (make test-wheel).
"""

import glob
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import inn_kernels
from inn_kernels import ops

ROOT = Path(__file__).parents[1]
WITHOUT_COMPILER = {**os.environ, "CC": "false", "CXX": "false", "PIP_NO_INDEX": "1", "PYTHONPATH": ""}
BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"
README_LINES = """
import doctest, re, sys
import inn_kernels, integral_nn
from importlib.metadata import version
from inn_kernels import ops
assert ops.compiled_missing is None, ops.compiled_missing
assert all(m.__file__.startswith(sys.prefix) for m in (inn_kernels, integral_nn))
assert version("inn-kernels") == inn_kernels.__version__ == integral_nn.__version__
blocks = re.findall(r"```python\\n(.*?)```", open(sys.argv[1]).read(), re.S)
lines = doctest.DocTestParser().get_doctest("\\n".join(blocks), {}, "README", "README.md", 0)
sys.exit(doctest.DocTestRunner().run(lines).failed)
"""


def run(*command, env=WITHOUT_COMPILER, cwd=ROOT):
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source folder by links, so that what a build leaves behind is left elsewhere."""
    folder = tmp_path_factory.mktemp("source")
    for name in (
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "csrc",
        "inn_kernels",
        "python_api",
    ):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    if given := os.environ.get("INN_KERNELS_WHEEL"):
        return Path(given)
    if ops.compiled_missing is not None:
        pytest.skip(ops.compiled_missing)
    (library,) = glob.glob(str(Path(inn_kernels.__file__).parent / "_C*.so"))
    out = tmp_path_factory.mktemp("wheel")
    env = WITHOUT_COMPILER | {"INN_KERNELS_LIBRARY": library}
    return out / run(sys.executable, "-c", BUILD, "build_wheel", out, env=env, cwd=source).split()[-1]


def test_a_wheel_holds_everything(wheel):
    assert re.fullmatch(rf"inn_kernels-{re.escape(inn_kernels.__version__)}-cp310-abi3-\w*linux\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        metadata = archive.read(next(n for n in held if n.endswith("dist-info/METADATA"))).decode()
    for package in (ROOT / "inn_kernels", ROOT / "python_api" / "integral_nn"):
        files = {f"{package.name}/{p.relative_to(package)}" for p in [*package.rglob("*.py"), package / "py.typed"]}
        assert files <= held
    assert "inn_kernels/_C.abi3.so" in held and any(n.endswith("licenses/LICENSE") for n in held)
    assert {n.split("/")[0].split("-")[0] for n in held} == {"inn_kernels", "integral_nn"}
    for line in ("License-Expression: Apache-2.0", "Classifier: Typing :: Typed", "Requires-Python: >=3.10"):
        assert line in metadata


def test_it_installs_without_a_compiler_and_runs_readmes_lines(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "torch.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # its own .pth files are not read: nothing of ours
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    run(python, "-W", "error::UserWarning:inn_kernels", "-c", README_LINES, ROOT / "README.md", cwd=tmp_path)


def test_an_sdist_holds_what_is_compiled(source, tmp_path):
    name = run(sys.executable, "-c", BUILD, "build_sdist", tmp_path, cwd=source).split()[-1]
    with tarfile.open(tmp_path / name) as archive:
        held = {member.partition("/")[2] for member in archive.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*")}
    assert sources | {"setup.py", "pyproject.toml", "LICENSE", "inn_kernels/py.typed"} <= held
    assert not any(name.endswith(".so") for name in held)
