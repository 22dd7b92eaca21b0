"""A delivered result is sent again by hand: the same object with the same bytes, or none."""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from pneumoscope.core.errors import UnknownNameError, UsageError
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.resending import resend
from pneumoscope.service.storage.retention import Retention

pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
pytest.importorskip("highdicom", reason="[pacs] is not installed")
delivery_tests = pytest.importorskip("tests.service.dicom.test_delivery")
test_commitment = pytest.importorskip("tests.service.dicom.test_commitment")
STUDY = delivery_tests.STUDY
Archive = delivery_tests.Archive
configuration = delivery_tests.configuration
is_done = delivery_tests.is_done
receive = delivery_tests.receive
service = delivery_tests.service
wait_for_delivery = delivery_tests.wait_for_delivery
wait_until = delivery_tests.wait_until


@pytest.fixture
def archive():
    opened = Archive().start()
    yield opened
    opened.stop()


def now():
    return datetime.now(UTC)


def delivered(repository):
    return repository.outbox.find(("delivered",))


@contextmanager
def delivering(model, archive, repository=None, **options):
    """A service that delivered the two results of an image; its client and its repository."""
    with service(model, configuration(archive, **options), repository) as (client, opened):
        receive(client)
        wait_for_delivery(opened, 2)
        yield client, opened


def lose_all(archive):
    """Let the archive lose its objects, and return their bytes by UID."""
    lost = dict(archive.contents)
    archive.contents.clear()
    archive.stored.clear()
    return lost


@pytest.mark.parametrize("by", ["number", "study"])
def test_archive_that_lost_results_gets_the_same_bytes_again(model, archive, by):
    with delivering(model, archive) as (_, repository):
        lost = lose_all(archive)
        first = delivered(repository)[0]
        assert first.study_instance_uid == STUDY["StudyInstanceUID"]
        if by == "number":
            assert resend(repository.engine, [first.number], time=now()) == 1
            lost = {first.result_uid: lost[first.result_uid]}
        else:
            assert resend(repository.engine, study_instance_uid=STUDY["StudyInstanceUID"], time=now()) == 2
        wait_until(lambda: is_done(repository), "results wait")
        assert archive.contents == lost
        assert [(each.state, each.error) for each in delivered(repository)] == 2 * [("delivered", "")]
        (status,) = repository.outbox.status()
        assert status.delivered == 2  # each once
        (entry,) = (row for row in read_rows(repository.engine) if row.event == "delivery_retried")
        assert entry.details == f'{{"delivered": true, "destination": "PACS", "results": {len(lost)}}}'
        verify(repository.engine)


def test_results_have_the_header_with_which_they_were_delivered(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        uid = receive(client)
        wait_for_delivery(repository, 2)
        lost = lose_all(archive)
        receive(client, SOPInstanceUID=uid, PatientID="MERGED")
        wait_until(lambda: is_done(repository), "the image waits")
        for _ in range(2):
            assert resend(repository.engine, study_instance_uid=STUDY["StudyInstanceUID"], time=now()) == 2
            wait_until(lambda: is_done(repository), "results wait")
            assert archive.contents == lost
            assert {copies[0].PatientID for copies in archive.stored.values()} == {"7"}
            lose_all(archive)


def test_results_are_those_of_the_study_in_which_they_were_delivered(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        uid = receive(client)
        wait_for_delivery(repository, 2)
        receive(client, SOPInstanceUID=uid, StudyInstanceUID="1.2.99")  # the image was moved to another study since
        wait_until(lambda: is_done(repository), "the image waits")
        with pytest.raises(UnknownNameError, match="no study with delivered results"):
            resend(repository.engine, study_instance_uid="1.2.99", time=now())
        assert resend(repository.engine, study_instance_uid=STUDY["StudyInstanceUID"], time=now()) == 2


def test_study_with_a_delivered_rejection_note_is_sent_again_without_it(model, archive):
    """A note keeps no header; the results that hold must not be refused for that."""
    with delivering(model, archive) as (client, repository):
        (stored,) = client.get("/v1/predictions").json()["predictions"]
        assert client.delete(f"/v1/predictions/{stored['id']}").status_code == 204
        receive(client, level=110)
        wait_for_delivery(repository, 5)
        (note,) = (each for each in delivered(repository) if each.kind == "rejection_note")
        with pytest.raises(UsageError, match=f"result {note.number} is a rejection note, whose header") as refused:
            resend(repository.engine, [note.number], time=now())
        assert "If PACS shows" in refused.value.hint
        lost = lose_all(archive)
        assert resend(repository.engine, study_instance_uid=STUDY["StudyInstanceUID"], time=now()) == 2
        wait_until(lambda: is_done(repository), "results wait")
        assert len(archive.contents) == 2
        assert archive.contents == {uid: lost[uid] for uid in archive.contents}


def test_result_that_would_differ_is_not_sent(model, archive, tmp_path, caplog):
    with delivering(model, archive, PredictionRepository(tmp_path / "data")):
        pass
    lose_all(archive)
    others = configuration(archive, results=ResultSettings(series_description="another"))
    with service(model, others, PredictionRepository(tmp_path / "data")) as (_, repository):
        numbers = [each.number for each in delivered(repository)]
        assert resend(repository.engine, numbers, time=now()) == 2
        wait_until(lambda: is_done(repository), "results wait")
        assert {(each.state, each.error) for each in delivered(repository)} == {("delivered", "content_changed")}
        assert archive.contents == {}
        assert "is not sent to PACS again: it would differ" in caplog.text


def test_committed_result_that_is_sent_again_is_committed_again_and_counted_once(model, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.outbox._COMMITMENT_DELAY", timedelta(milliseconds=300))
    archive = test_commitment.CommittingArchive().start()
    try:
        with test_commitment.service(model, archive) as (client, repository):
            receive(client)
            test_commitment.wait_for_commitment(repository, ["committed", "committed"])
            lost = lose_all(archive)
            assert resend(repository.engine, study_instance_uid=STUDY["StudyInstanceUID"], time=now()) == 2
            wait_until(lambda: archive.contents == lost and is_done(repository), "results were not sent")
            test_commitment.wait_for_commitment(repository, ["committed", "committed"])
            (status,) = repository.outbox.status()
            assert (status.delivered, status.committed, status.uncommitted) == (2, 2, 0)
    finally:
        archive.stop()


def test_results_that_no_longer_hold_are_refused(model, archive):
    with delivering(model, archive) as (client, repository):
        numbers = [each.number for each in delivered(repository)]
        (stored,) = client.get("/v1/predictions").json()["predictions"]
        archive.stop()
        assert client.delete(f"/v1/predictions/{stored['id']}").status_code == 204
        with pytest.raises(UsageError, match=f"result {numbers[0]} was withdrawn: its prediction was deleted"):
            resend(repository.engine, numbers, time=now())
        receive(client, level=200, SOPInstanceUID=(other := "1.2.3.4.5"), StudyInstanceUID="1.2.9")
        wait_until(lambda: len(repository.outbox.find()) == 3, "no results wait")  # and the rejection note
        waiting = repository.outbox.find()[-1]
        with pytest.raises(UsageError, match=f"result {waiting.number} has not been delivered"):
            resend(repository.engine, [waiting.number], time=now())
        receive(client, level=50, SOPInstanceUID=other, StudyInstanceUID="1.2.9")
        wait_until(lambda: repository.outbox.find(("cancelled",)), "no result was superseded")
        superseded = repository.outbox.find(("cancelled",))[0]
        with pytest.raises(UsageError, match=f"result {superseded.number} was superseded"):
            resend(repository.engine, [superseded.number], time=now())
        with pytest.raises(UnknownNameError, match="no study with delivered results"):
            resend(repository.engine, study_instance_uid="1.2.9", time=now())
        with pytest.raises(UnknownNameError, match="no result '999'"):
            resend(repository.engine, [999], time=now())


def test_result_whose_identifiers_were_removed_is_refused(model, archive):
    with delivering(model, archive) as (_, repository):
        Retention(repository).expire_identities(timedelta(0))
        first = delivered(repository)[0]
        with pytest.raises(UsageError, match=f"the header of result {first.number} was removed"):
            resend(repository.engine, [first.number], time=now())
        assert delivered(repository)[0] == first


def test_cancelled_attempt_to_send_again_leaves_the_result_delivered(model, archive):
    with delivering(model, archive) as (_, repository):
        before = delivered(repository)
        archive.stop()
        numbers = [each.number for each in before]
        assert resend(repository.engine, numbers, time=now()) == 2
        wait_until(lambda: {each.error for each in repository.outbox.find()} == {"connection_refused"}, "no attempt")
        assert repository.outbox.cancel(numbers[:1], time=now()) == 1
        cancelled, *_ = delivered(repository)
        assert (cancelled.number, cancelled.error, cancelled.finished) == (numbers[0], "cancelled", before[0].finished)
        Retention(repository).expire_identities(timedelta(0))
        assert [each.error for each in delivered(repository)] == ["cancelled", "identity_removed"]
        (status,) = repository.outbox.status()
        assert (status.delivered, status.waiting) == (2, 0)
