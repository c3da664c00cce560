"""Fixtures. Set INN_KERNELS_REQUIRE_CPP=1 where the compiled kernels must be there: a missing library then fails.

INN_KERNELS_FUZZ_CASES is the number of random cases of each property, instead of the few of an ordinary run;
INN_KERNELS_FUZZ_SEED draws others than an ordinary run's, which are always the same.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # tests/gpu run in Triton's interpreter, which its first import decides

from inn_kernels import ops
from integral_nn.functional import linear

try:
    import hypothesis
except ImportError:  # tests without random cases run all the same
    hypothesis = None  # type: ignore[assignment]

FUZZ_CASES = int(os.environ.get("INN_KERNELS_FUZZ_CASES", "150"))
FUZZ_SEED = os.environ.get("INN_KERNELS_FUZZ_SEED")

if hypothesis is not None:
    hypothesis.settings.register_profile(
        "fuzz",
        max_examples=FUZZ_CASES,
        derandomize=FUZZ_SEED is None,
        database=None,
        deadline=None,
        phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain],
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("fuzz")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Seed the random cases."""
    if hypothesis is None or FUZZ_SEED is None:
        return
    for function in {item.function for item in items if isinstance(item, pytest.Function)}:
        if hypothesis.is_hypothesis_test(function):
            hypothesis.seed(int(FUZZ_SEED))(function)


_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, (os.cpu_count() or 1) // _WORKERS))


@pytest.fixture(autouse=True)
def calls_are_new() -> None:
    """No call is known to be alike one that another test made, under its own patches."""
    linear._ways.clear()


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
