"""Whether images can be judged and kept: looked at once a second, however many ask."""

import pytest

from pneumoscope.core.errors import StorageError
from pneumoscope.service.predictions import Readiness
from pneumoscope.service.storage.repository import PredictionRepository


def test_it_is_tried_once_a_second_and_what_came_of_it_is_told_until_then(model, monkeypatch):
    now, records, tried = [100.0], PredictionRepository(None), []
    keep = records.try_to_keep
    monkeypatch.setattr(records, "try_to_keep", lambda: tried.append(now[0]) or keep())
    readiness = Readiness(model, records, lambda: now[0])
    for _ in range(5):
        readiness.check()
    assert tried == [100.0]

    def fail():
        raise StorageError("the disk '/secret' is full")

    monkeypatch.setattr(records, "try_to_keep", fail)
    readiness.check()
    for now[0] in (101.1, 101.9):
        with pytest.raises(StorageError, match="images cannot be kept") as caught:
            readiness.check()
        assert "secret" not in str(caught.value)
    monkeypatch.setattr(records, "try_to_keep", keep)
    now[0] = 102.2
    readiness.check()
    records.close()


@pytest.mark.slow
def test_a_locked_database_is_not_ready(model, tmp_path, monkeypatch):
    records = PredictionRepository(tmp_path / "data")
    monkeypatch.setattr("pneumoscope.service.predictions._CHECK_SECONDS", 0)
    readiness = Readiness(model, records)
    readiness.check()
    with records.engine.connect().execution_options(writes=True) as other, other.begin(), pytest.raises(StorageError):
        readiness.check()
    readiness.check()
    records.close()
