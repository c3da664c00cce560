"""Imports run one way and need nothing optional; the examples in docstrings run."""

import ast
import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import inn_kernels
import integral_nn

PACKAGES = {package.__name__: Path(package.__file__).parent for package in (inn_kernels, integral_nn)}


def modules_in(package, folder):
    """Every module of a package but its kernels, which need Triton, and its compiled library."""
    inside = (module.name for module in pkgutil.walk_packages([str(folder)], f"{package}."))
    return [package, *(name for name in inside if ".gpu." not in name and not name.endswith("._C"))]


MODULES = [name for package, folder in PACKAGES.items() for name in modules_in(package, folder)]


def imported(path):
    """Top-level names of the modules a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.partition(".")[0]


def test_imports_run_one_way():
    allowed = {
        "inn_kernels": {"inn_kernels", "torch", "numpy"},
        "integral_nn": {"integral_nn", "inn_kernels", "torch", "numpy", "scipy", "sympy"},  # sympy comes with torch
    }
    for package, folder in PACKAGES.items():
        files = list(folder.rglob("*.py"))
        assert files
        for path in files:
            foreign = {name for name in imported(path) if name not in sys.stdlib_module_names} - allowed[package]
            if path.parent.name == "gpu":
                foreign -= {"triton"}
            if path.name in ("permute.py", "tune.py"):  # an extra of the package, imported where it is called
                foreign -= {"fast_tsp", "tqdm"}
            assert not foreign, f"{path} imports {foreign}"


ROOMS = ("functional", "layers", "coupling", "networks", "training")  # each may import from those before it


def test_rooms_import_one_way():
    for path in PACKAGES["integral_nn"].glob("*/*.py"):
        allowed = ROOMS[: ROOMS.index(path.parent.name) + 1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("integral_nn"):
                _, _, inside = node.module.partition(".")
                assert inside.partition(".")[0] in allowed, f"{path}:{node.lineno} imports {node.module}"


def test_kernels_know_neither_autograd_nor_modules():
    for path in PACKAGES["inn_kernels"].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("Module", "autograd", "Function"), f"{path}:{node.lineno} uses {node.attr}"


IMPORT = """
import sys, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ImportError(name + " is refused")
sys.meta_path.insert(0, Refuse())
import torch
from inn_kernels import ops
import integral_nn as inn
assert ops.compiled_missing is not None
assert not {{"triton", "sklearn", "matplotlib", "tqdm"}} & set(sys.modules)
nodes = torch.ones(4, 4, requires_grad=True)
inn.integral_linear(torch.ones(2, 6), nodes, None, 3, 6).sum().backward()
inn.IntegralConv2d(inn.Axis(4), inn.Axis(5), 3)(torch.ones(1, 4, 5, 5))
try:
    inn.discretize(nodes, 3, 3, backend="cpp")
except RuntimeError as error:
    print(error)
"""


def test_both_import_and_run_without_triton_and_without_the_compiled_library():
    refused = ("triton", "sklearn", "matplotlib", "tqdm", "scipy")
    command = [sys.executable, "-W", "ignore", "-c", IMPORT.format(refused=refused)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert "backend 'cpp' cannot run here" in done.stdout


def environment():
    return {
        **os.environ,
        "INN_KERNELS_LIBRARY": "",
        "PYTHONPATH": ":".join(sorted({str(folder.parent) for folder in PACKAGES.values()})),
    }


def test_public_names():
    import integral_nn as inn

    assert sorted(inn.__all__) == inn.__all__
    contract = """Axis IntegralConv1d IntegralConv2d IntegralConv3d IntegralLinear discretize integral_conv1d
        integral_conv2d integral_conv3d integral_linear integrate midpoint_partition
        partition_from_deltas quadrature_weights uniform_partition"""
    assert set(contract.split()) <= set(inn.__all__)
    for name in inn.__all__:
        assert getattr(inn, name).__doc__, f"{name} has no docstring"
    helpers = {name for name in vars(inn) if not name.startswith("_")} - set(inn.__all__)
    assert {type(getattr(inn, name)).__name__ for name in helpers} <= {"module"}, "helpers leak to the top level"


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert doctest.testmod(module).failed == 0


def test_public_calls_have_examples():
    import integral_nn as inn

    finder = doctest.DocTestFinder(recurse=False)
    for name in (
        "discretize",
        "integral_linear",
        "integral_conv2d",
        "quadrature_weights",
        "integrate",
        "Axis",
        "IntegralLinear",
        "IntegralConv2d",
    ):
        tests = finder.find(getattr(inn, name), name)
        assert any(test.examples for test in tests), f"{name} has no example"
