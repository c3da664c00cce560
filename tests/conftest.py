"""Fixtures. Set INN_KERNELS_REQUIRE_CPP=1 where the compiled kernels must be there: a missing library then fails."""

import os

import pytest
import torch

from inn_kernels import ops

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, (os.cpu_count() or 1) // _WORKERS))


@pytest.fixture
def cpp() -> str:
    """The compiled backend, which must be there."""
    if ops.compiled_missing is not None:
        if os.environ.get("INN_KERNELS_REQUIRE_CPP") == "1":
            pytest.fail(f"INN_KERNELS_REQUIRE_CPP=1, but {ops.compiled_missing}")
        pytest.skip(ops.compiled_missing)
    return "cpp"


@pytest.fixture(params=["reference", "cpp"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that can run here."""
    return request.getfixturevalue("cpp") if request.param == "cpp" else request.param


@pytest.fixture
def threads():
    """Set the number of threads for one test: threads(2)."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def fresh_compiler():
    """No compiled code from another test, none left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
