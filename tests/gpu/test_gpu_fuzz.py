"""Random calls of the public operators on the Triton kernels, in the interpreter, as in `test_fuzz.py`."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import check_call
from test_fuzz_special import check_not_finite

import fuzzing
import programs
from inn_kernels import gpu
from inn_kernels.gpu.launch import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the interpreter's stand-ins for the CPU operators")
FEW = settings(max_examples=max(1, settings().max_examples // 30))  # the interpreter is slow

SETUP = """
library = torch.library.Library("inn_kernels", "IMPL")
for name in gpu._FILES:
    library.impl(name, gpu._implementation(name), "CPU")
gpu.refusal = lambda device, dtype: None if dtype in gpu.STORAGE else f"it takes no {dtype}"
"""
HEAD = 'import os\nos.environ["TRITON_INTERPRET"] = "1"\n' + programs.HEAD + "from inn_kernels import gpu\n" + SETUP


@pytest.fixture(scope="module", autouse=True)
def kernels_behind_the_operators():
    """The Triton launchers stand in for the CPU implementations, and say so."""
    refusal, scope = gpu.refusal, {"torch": torch, "gpu": gpu}
    exec(SETUP, scope)
    yield
    scope["library"]._destroy()
    gpu.refusal = refusal


@FEW
@given(data=st.data())
def test_operators(data):
    check_call(data.draw(fuzzing.calls("triton"))._replace(head=HEAD, threads=1))


@FEW
@given(data=st.data())
def test_not_finite(data):
    """The adjoint kernels multiply the points of a tile by weights of 0: along an axis a NaN reaches all of them."""
    check_not_finite(data.draw, "triton", anywhere=True)
