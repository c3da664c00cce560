"""The compiled CPU kernels as a library: bits, instruction sets, symbols and memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

import inn_kernels.ops as ops
from csrc_cases import KINDS, accumulator, make_taps, values

pytestmark = pytest.mark.skipif(ops.compiled_missing is not None, reason=f"no compiled kernels: {ops.compiled_missing}")


def digest(seed=0):
    """A hash of every operation's bits at sizes that run on several threads: all dtypes, each with all kinds."""
    total = hashlib.sha256()
    shapes = [(150, 131, 161, 200, ()), (40, 70, 50, 43, (3, 3)), (50, 64, 60, 90, (5,))]
    per_point = [(4, 4), (6, 5), (8, 13), (1, 33)]
    for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16, torch.float64)):
        wide = accumulator(dtype)
        for j, kind in enumerate(KINDS):
            m_out, k, m_in, n, rest = shapes[(i + j) % 3]
            t_out, t_in = per_point[(i + 2 * j) % 4]
            taps = *make_taps(k, m_out, kind, wide, 1, t_out), *make_taps(n, m_in, kind, wide, 2, t_in)
            nodes, grad = values(m_out, m_in, *rest, dtype=dtype, seed=3), values(k, n, *rest, dtype=dtype, seed=4)
            results = [ops.discretize(nodes, *taps, dtype), ops.discretize_adjoint(grad, *taps, m_out, m_in, dtype)]
            results += ops.discretize_tap_gradient(nodes, grad, *taps, True, True)
            for dim in range(nodes.dim()):
                start, weight = make_taps(117, nodes.shape[dim], kind, wide, 5, t_in)
                results.append(ops.interpolate(nodes, start, weight, dim, dtype))
                results.append(ops.interpolate_tap_gradient(nodes, results[-1], start, t_in, dim))
                results.append(ops.spread(results[-2], start, weight, nodes.shape[dim], dim, dtype))
            for result in results:
                total.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    for quadrature in ("simpson", "cells"):
        start, weight = torch.empty(43, dtype=torch.int32), torch.empty(43, 4 if quadrature == "simpson" else 6)
        ops.uniform_taps(start, weight, 64, -0.75, "bspline", "keys", quadrature, 3.0)
        table = torch.empty(68 + 44 + 64 + 64 + 4 + 6 * 64, dtype=torch.int32)
        ops.axis_table(table, start, weight, 64, 6)
        for result in (start, weight, table):
            total.update(result.numpy().tobytes())
    return total.hexdigest()


def test_same_bits_on_any_number_of_threads_and_any_instruction_set():
    threads = torch.get_num_threads()
    try:
        seen = {}
        for n in (1, 3):
            torch.set_num_threads(n)
            seen[f"{n} threads"] = digest()
    finally:
        torch.set_num_threads(threads)
    script = f"import sys; sys.path[:0] = {sys.path!r}; import test_csrc_library as library; print(library.digest())"
    for isa in ("baseline", "avx2", "avx512"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "INN_KERNELS_ISA": isa, "PYTHONPATH": os.path.dirname(__file__)},
            capture_output=True,
            text=True,
        )
        if run.returncode != 0 and "this processor has" in run.stderr:
            continue
        assert run.returncode == 0, run.stderr
        seen[isa] = run.stdout.strip()
    assert len(set(seen.values())) == 1, seen


def library_path():
    paths = [path for path in torch.ops.loaded_libraries if os.path.basename(path).startswith("_C")]
    return next(path for path in paths if "inn_kernels" in path)


def test_instruction_set_is_named():
    name = ctypes.CDLL(library_path()).inn_kernels_instruction_set
    name.restype = ctypes.c_char_p
    assert name() in (b"baseline", b"avx2", b"avx512")


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_symbols_are_those_of_the_stable_abi():
    path = library_path()
    assert path.endswith(".abi3.so")

    def symbols(which):
        lines = subprocess.run(
            ["nm", "-D", which, path], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        return [line.split()[-1].partition("@")[0] for line in lines]

    undefined = symbols("--undefined-only")
    assert not [
        name
        for name in undefined
        if re.match(r"_ZN?K?(St)?\d*(at|c10|torch)\d", name) or re.match(r"_ZNK?(2at|3c10|5torch)", name)
    ]
    assert not [name for name in undefined if name.startswith(("Py", "_Py"))]
    assert not [name for name in symbols("--defined-only") if name.startswith(("Py", "_ZN3inn", "_ZNK3inn"))]


ADJOINT_OF_ONE_POINT = """
import resource
import torch
from inn_kernels import ops
one = torch.zeros(1, dtype=torch.int32), torch.ones(1, 4)
none = torch.zeros(0, dtype=torch.int32), torch.ones(0, 4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
empty = ops.discretize_adjoint(torch.ones(0, 1), *none, *one, 0, 2**31 - 1, torch.float32)
assert empty.shape == (0, 2**31 - 1)
row = ops.discretize_adjoint(torch.ones(1, 1), *one, *one, 1, 2**24, torch.float32)
column = ops.discretize_adjoint(torch.ones(1, 1), *one, *one, 2**24, 1, torch.float32)
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
results = (row.nbytes + column.nbytes) / 1024
assert kilobytes < 2 * results, f"{kilobytes} KB for results of {results} KB"
"""


def test_bands_cost_no_more_memory_than_the_result():
    done = subprocess.run([sys.executable, "-c", ADJOINT_OF_ONE_POINT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
