"""Readiness: whether images can be scored and stored, checked at most once a second."""

import pytest

from pneumoscope.core.errors import StorageError
from pneumoscope.service.predictions import Readiness
from pneumoscope.service.storage.repository import PredictionRepository


def test_readiness_is_checked_once_a_second_and_the_result_is_reused(model, monkeypatch):
    now, repository, checks = [100.0], PredictionRepository(None), []
    keep = repository.storage.check_writable
    monkeypatch.setattr(repository.storage, "check_writable", lambda: checks.append(now[0]) or keep())
    readiness = Readiness(model, repository, lambda: now[0])
    for _ in range(5):
        readiness.check()
    assert checks == [100.0]

    def fail():
        raise StorageError("the disk '/secret' is full")

    monkeypatch.setattr(repository.storage, "check_writable", fail)
    readiness.check()
    for now[0] in (101.1, 101.9):
        with pytest.raises(StorageError, match="images cannot be stored") as caught:
            readiness.check()
        assert "secret" not in str(caught.value)
    monkeypatch.setattr(repository.storage, "check_writable", keep)
    now[0] = 102.2
    readiness.check()
    repository.close()


@pytest.mark.slow
def test_locked_database_is_not_ready(model, tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    readiness = Readiness(model, repository, check_seconds=0)
    readiness.check()
    with (
        repository.engine.connect().execution_options(writes=True) as other,
        other.begin(),
        pytest.raises(StorageError),
    ):
        readiness.check()
    readiness.check()
    repository.close()
