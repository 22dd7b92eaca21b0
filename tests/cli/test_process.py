"""The process of a command: no garbage is collected while large packages are imported."""

import gc

import pytest

from pneumoscope.cli.process import garbage_collection_paused


def test_objects_of_an_import_are_never_examined_by_collections():
    frozen = gc.get_freeze_count()
    with garbage_collection_paused():
        assert not gc.isenabled()
        imported = [[] for _ in range(10_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(imported)
    gc.unfreeze()


def test_collections_continue_after_a_failed_import():
    with pytest.raises(ImportError), garbage_collection_paused():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()
