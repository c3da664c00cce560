"""Two ranks for all tests of this folder."""

import pytest

from ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.close()


@pytest.fixture(scope="session")
def four(tmp_path_factory):
    """Four of them."""
    ranks = Ranks(tmp_path_factory.mktemp("four"), 4)
    yield ranks
    ranks.close()


@pytest.fixture(autouse=True)
def one_thread(threads):
    """For tensors this small a second thread is a hindrance."""
    threads(1)
