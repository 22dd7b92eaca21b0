"""pynetdicom's sender does not close the socket of a connection that fails; warnings about it say nothing of this package."""

import gc
import warnings

import pytest

from pneumoscope.service.dicom import caption


def pytest_itemcollected(item):
    """Ignore sockets that are closed by the garbage collector in the tests of this folder."""
    item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(autouse=True)
def collect_sockets():
    """Collect such sockets before the next test, which may be in another folder.

    Only objects of the test are examined: the modules of a worker have a million others, which take half a second.
    """
    gc.freeze()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    gc.unfreeze()


@pytest.fixture
def drawn(monkeypatch):
    """The texts that are burned into Secondary Captures, one for each."""
    texts, original = [], caption._texts

    def collect(*arguments):
        found = list(original(*arguments))
        texts.append(" ".join(text for text, _ in found))
        return iter(found)

    monkeypatch.setattr(caption, "_texts", collect)
    return texts
