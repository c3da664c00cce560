"""Two ranks for all tests of this folder."""

import pytest

from ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.close()


@pytest.fixture(autouse=True)
def one_thread(threads):
    """For tensors this small a second thread is a hindrance."""
    threads(1)
