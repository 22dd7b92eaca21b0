"""pynetdicom's sender does not close the socket of a connection that fails; warnings about it say nothing of this package."""

import gc
import warnings

import pytest


def pytest_itemcollected(item):
    """Ignore sockets that are closed by the garbage collector in the tests of this folder."""
    item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(autouse=True)
def collect_sockets():
    """Collect such sockets before the next test, which may be in another folder."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
