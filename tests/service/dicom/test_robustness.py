"""Robust exchange: corrected instances, a PACS that misbehaves, damaged files, slow clients."""

import socket
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pydicom
import pytest
from fastapi.testclient import TestClient
from pydicom.uid import generate_uid
from sqlalchemy import func, insert, select
from tests.images import dicom
from tests.service.conftest import predicted

from pneumoscope.core.errors import StorageError
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.dicom import processing
from pneumoscope.service.dicom.configuration import DicomConfiguration, SiteRule
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings
from pneumoscope.service.dicom.processing import InstanceProcessor
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.inbox import Inbox
from pneumoscope.service.storage.received_instances import ReceivedInstance
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.tables import outbox, received_instances

pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
delivery_tests = pytest.importorskip("tests.service.dicom.test_delivery")
receiver = pytest.importorskip("pneumoscope.service.dicom.receiver")
Archive, configuration, kinds, receive, service, wait_for_delivery, wait_until = (
    getattr(delivery_tests, name)
    for name in ("Archive", "configuration", "kinds", "receive", "service", "wait_for_delivery", "wait_until")
)
NOW = timedelta(0)
NOW_TEXT = "2026-01-01T00:00:00.000000+00:00"


@pytest.fixture
def archive():
    opened = Archive().start()
    yield opened
    opened.stop()


@pytest.fixture
def at_once(monkeypatch):
    """The next attempt follows at once."""
    monkeypatch.setattr("pneumoscope.service.storage.outbox_records._FIRST_DELAY", timedelta(milliseconds=50))


@pytest.fixture(params=["oldest first", "newest first"])
def order(request, monkeypatch):
    """Instances are predicted one by one, in this order."""
    ready = Inbox.ready

    def reordered(inbox, _, without=()):
        return ready(inbox, 100, without)[:: -1 if request.param == "newest first" else 1][:1]

    monkeypatch.setattr(Inbox, "ready", reordered)


def slow_configuration(archive):
    """Studies are predicted when they are released."""
    return DicomConfiguration(configuration(archive).node, quiet_seconds=3600)


# --- corrections ----------------------------------------------------------------------------------------------------


def test_patient_corrected_before_the_prediction_is_that_of_the_result(model, archive, order):
    with service(model, slow_configuration(archive)) as (client, repository):
        uid = receive(client)
        receive(client, SOPInstanceUID=uid, PatientID="8")
        repository.inbox.release()
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        wait_for_delivery(repository, 2)
        assert [(each.PatientID, len(copies)) for copies in archive.stored.values() for each in copies] == 2 * [
            ("8", 1)
        ]


def test_result_of_a_replaced_image_is_that_of_the_last_pixels(model, archive, order):
    with service(model, slow_configuration(archive)) as (client, repository):
        uid = receive(client, 90)
        receive(client, 110, SOPInstanceUID=uid)
        repository.inbox.release()
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        wait_for_delivery(repository, 2)
        last = max(predicted(client, 2), key=lambda each: each["probability"])
        assert {each.subject.prediction_id for each in repository.outbox.find(("delivered",))} == {last["id"]}
        assert archive.received == 2


def test_result_of_very_many_copies_is_that_of_the_last_one(model, archive, order, monkeypatch):
    for module in ("received_instances", "results"):
        monkeypatch.setattr(f"pneumoscope.service.storage.{module}.MAX_COPIES", 2)
    with service(model, slow_configuration(archive)) as (client, repository):
        uid = receive(client, 80)
        for level in (85, 90, 95, 100, 105):
            receive(client, level, SOPInstanceUID=uid)
        repository.inbox.release()
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        wait_for_delivery(repository, 2)
        last = max(predicted(client, 6), key=lambda each: each["probability"])
        assert {each.subject.prediction_id for each in repository.outbox.find(("delivered",))} == {last["id"]}
        assert archive.received == 2


def lose_file(repository, place=1):
    """Remove the file of a waiting instance, by its place among them, as a failing disk may."""
    columns = received_instances.c
    query = select(columns.image_sha256).where(columns.state == "waiting").order_by(columns.number)
    with read_transaction(repository.engine) as connection:
        repository.inbox.files.remove(connection.execute(query).scalars().all()[place - 1])


def test_image_whose_later_copy_is_lost_has_its_result_with_the_corrected_patient(model, archive, order):
    with service(model, slow_configuration(archive)) as (client, repository):
        uid = receive(client, 90)
        receive(client, 110, SOPInstanceUID=uid, PatientID="8")
        lose_file(repository, 2)
        repository.inbox.release()
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        wait_for_delivery(repository, 2)
        (stored,) = predicted(client)
        assert {each.subject.prediction_id for each in repository.outbox.find(("delivered",))} == {stored["id"]}
        assert [copies[0].PatientID for copies in archive.stored.values()] == ["8", "8"]


def test_image_whose_later_copy_may_have_no_result_has_its_own(model, archive, order):
    rules = (SiteRule(name="lateral", action="exclude", result=False, views=("LL",)),)
    quiet = DicomConfiguration(configuration(archive).node, quiet_seconds=3600, rules=rules)
    with service(model, quiet) as (client, repository):
        uid = receive(client, 90)
        receive(client, 110, SOPInstanceUID=uid, ViewPosition="LL")
        repository.inbox.release()
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        wait_for_delivery(repository, 2)
        (frontal,) = (each for each in predicted(client, 2) if each["decision"] != "rejected")
        assert {each.subject.prediction_id for each in repository.outbox.find(("delivered",))} == {frontal["id"]}


def test_image_that_is_lost_is_reported_as_not_assessed_until_it_is_sent_again(model, archive):
    with service(model, slow_configuration(archive)) as (client, repository):
        uid = receive(client, 90)
        lose_file(repository)
        repository.inbox.release()
        wait_for_delivery(repository, 2)
        (report,) = (copies[0] for copies in archive.stored.values() if copies[0].Modality == "SR")
        values = [str(each.value) for each in report.iterall() if each.keyword == "CodeValue"]
        assert "lost" in values
        receive(client, 90, SOPInstanceUID=uid)
        repository.inbox.release()
        wait_for_delivery(repository, 5)
        assert kinds(archive) == ["rejection_note", *2 * ["secondary_capture"], *2 * ["structured_report"]]


def test_lost_image_that_had_a_result_keeps_it(model, archive):
    rules = (SiteRule(name="all", action="predict"),)
    with service(model, slow_configuration(archive)) as (client, repository):
        uid = receive(client, 90)
        repository.inbox.release()
        wait_for_delivery(repository, 2)
        # Another version of the site rules has the image predicted again, but its file is lost.
        other = InstanceProcessor(
            client.app.state.service, DicomConfiguration(configuration(archive).node, rules=rules)
        )
        sent = dicom(90, **delivery_tests.STUDY | {"SOPInstanceUID": uid})
        assert other.receive(sent, "image", "PACS", reply_to="PACS").status == 0x0000
        lose_file(repository)
        repository.inbox.release()
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        assert repository.outbox.find(("waiting", "withdrawn", "cancelled")) == []
        assert kinds(archive) == ["secondary_capture", "structured_report"]


TWO_PEERS = DicomSettings("127.0.0.1", 0, "N", tuple(DicomPeer(n, n, "127.0.0.1", 104) for n in ("PACS1", "PACS2")))
NO_LATERAL = (SiteRule(name="lateral", action="exclude", result=False, views=("LL",)),)


@contextmanager
def two_copies(model, lost, first=None, second=None, *, rules=()):
    """Two peers send other pixels under one UID, and the file of a copy is lost; yield what each gets of which copy."""
    settings = DicomConfiguration(TWO_PEERS, quiet_seconds=3600, rules=rules)
    repository = PredictionRepository(None)
    with TestClient(
        create_app(model, repository, Settings(dicom=settings)), base_url="http://127.0.0.1:8000"
    ) as client:
        uid = receive(client, 90, "PACS1", **(first or {}))
        receive(client, 110, "PACS2", SOPInstanceUID=uid, **(second or {}))
        lose_file(repository, lost)
        repository.inbox.release()
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")

        def results():
            found = repository.outbox.find()
            return {(each.destination, each.subject.failure_code, bool(each.subject.prediction_id)) for each in found}

        yield results, client


@pytest.mark.parametrize("lost", [1, 2])
def test_lost_image_is_reported_to_its_sender_though_another_sender_has_a_result(model, order, lost):
    with two_copies(model, lost) as (results, _):
        assert results() == {(f"PACS{lost}", "lost", False), (f"PACS{3 - lost}", "", True)}


@pytest.mark.parametrize("lost", [1, 2])
def test_lost_image_is_reported_though_a_site_rule_gives_the_other_copy_no_result(model, order, lost):
    options = {"ViewPosition": "LL"}
    copies = {"first": options} if lost == 2 else {"second": options}
    with two_copies(model, lost, rules=NO_LATERAL, **copies) as (results, _):
        assert results() == {(f"PACS{lost}", "lost", False)}


def test_lost_image_is_not_reported_if_a_site_rule_gives_it_no_result(model):
    with two_copies(model, 1, first={"ViewPosition": "LL"}, rules=NO_LATERAL) as (results, _):
        assert results() == {("PACS2", "", True)}


def test_copy_of_another_sender_sends_no_result_by_earlier_settings(model):
    """After an update, the results of the earlier copy are those of the earlier model: it would have to be sent again."""
    with two_copies(model, 2) as (results, client):
        service = client.app.state.service
        with write_transaction(service.repository.engine) as connection:
            connection.execute(outbox.delete())
            connection.execute(
                received_instances.update().where(received_instances.c.number == 1).values(settings="old")
            )
            copies = [
                ReceivedInstance.from_row(row) for row in connection.execute(select(received_instances)).mappings()
            ]
            client.app.state.processor.outcomes.enqueue_copies(connection, copies[1], NOW_TEXT)
        assert results() == set()
        with write_transaction(service.repository.engine) as connection:
            current = received_instances.c.number == 1
            connection.execute(received_instances.update().where(current).values(settings=copies[1].settings))
            client.app.state.processor.outcomes.enqueue_copies(connection, copies[1], NOW_TEXT)
        assert results() == {("PACS1", "", True)}


def test_copy_that_is_sent_again_replaces_the_result_of_another_in_the_study_of_each(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        first = {"SOPInstanceUID": "1.2.9", "PatientID": "7"}
        receive(client, 90, **first)
        wait_for_delivery(repository, 2)
        receive(client, 110, **first | {"PatientID": "8", "StudyInstanceUID": "1.2.8"})
        wait_for_delivery(repository, 5)
        other = InstanceProcessor(
            client.app.state.service,
            DicomConfiguration(configuration(archive).node, rules=(SiteRule(name="all", action="predict"),)),
        )
        sent = dicom(90, **delivery_tests.STUDY | first)
        assert other.receive(sent, "image", "PACS", reply_to="PACS").status == 0x0000
        repository.inbox.release()
        wait_for_delivery(repository, 8)
        rows = repository.outbox.find(("delivered", "withdrawn"))
        patients = {each.number: archive.stored[each.result_uid][0].PatientID for each in rows}
        studies = {each.number: archive.stored[each.result_uid][0].StudyInstanceUID for each in rows}
        assert [(each.kind == "rejection_note", each.state) for each in rows] == [
            (False, "withdrawn"), (False, "withdrawn"), (True, "delivered"),
            (False, "withdrawn"), (False, "withdrawn"), (True, "delivered"), (False, "delivered"), (False, "delivered"),
        ]  # fmt: skip
        assert list(patients.values()) == ["7", "7", "7", "8", "8", "8", "7", "7"]
        assert list(studies.values()) == 3 * ["1.2.3"] + 3 * ["1.2.8"] + 2 * ["1.2.3"]


def test_later_copy_without_a_study_leaves_the_header_of_an_earlier_one(model, archive, order):
    with service(model, slow_configuration(archive)) as (client, repository):
        uid = receive(client)
        receive(client, SOPInstanceUID=uid, StudyInstanceUID="", SeriesInstanceUID="")
        repository.inbox.release()
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        wait_for_delivery(repository, 2)
        assert {copies[0].StudyInstanceUID for copies in archive.stored.values()} == {"1.2.3"}


def test_age_entered_for_replaced_pixels_after_an_upgrade_replaces_no_result(child_bundle, archive, tmp_path):
    model = load_model(child_bundle, threads=1, require_age="always")
    with service(model, configuration(archive), PredictionRepository(tmp_path / "data")) as (client, repository):
        receive(client, 180, SOPInstanceUID="1.2.9", PatientAge="")
        wait_for_delivery(repository, 2)
        (replaced,) = predicted(client)
        receive(client, 170, SOPInstanceUID="1.2.9", PatientAge="")
        wait_for_delivery(repository, 5)
        last = [each.result_uid for each in repository.outbox.find(("delivered",)) if each.kind != "rejection_note"]
    rules = (SiteRule(name="all", action="predict"),)
    repository = PredictionRepository(tmp_path / "data")
    with service(model, configuration(archive, rules=rules), repository) as (client, _):
        answer = client.post(
            f"/images/{replaced['id']}", data={"age": "3"}, headers={"Origin": "http://127.0.0.1:8000"},
            follow_redirects=False,
        )  # fmt: skip
        assert answer.status_code == 303, answer.text
        predicted(client, 3)
        found = repository.outbox.find(("waiting", "delivered"))
        assert [each.result_uid for each in found if each.kind != "rejection_note"] == last


def test_images_without_a_study_do_not_wait_for_each_other(model, archive):
    with service(model, slow_configuration(archive)) as (client, _):
        receive(client, StudyInstanceUID="")
        predicted(client)


# --- a PACS that misbehaves -----------------------------------------------------------------------------------------


class AbortingArchive(Archive):
    """Aborts the association instead of answering to some objects; `keeps` says whether it stores them first."""

    keeps = False
    aborts = staticmethod(lambda dataset: True)

    def _store(self, event):
        if self.aborts(event.dataset):
            if self.keeps:
                super()._store(event)
            event.assoc.abort(block=False)
            return 0x0000
        return super()._store(event)


@pytest.fixture
def aborting():
    opened = AbortingArchive().start()
    yield opened
    opened.stop()


def test_object_on_which_the_pacs_aborts_delays_no_other(model, aborting, at_once):
    aborting.aborts = lambda dataset: dataset.Modality != "SR"
    with service(model, configuration(aborting)) as (client, repository):
        for level in (90, 100, 110):
            receive(client, level)
        wait_until(lambda: kinds(aborting) == 3 * ["structured_report"], "reports wait for captures")
        # The archive has a report a moment before the service knows.
        wait_until(lambda: {each.kind for each in repository.outbox.find()} == {"secondary_capture"}, "reports wait")


def test_object_that_cannot_be_written_delays_no_other(model, archive, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.dicom.delivery._BATCH", 1)
    with service(model, slow_configuration(archive)) as (client, repository):
        renderer = client.app.state.renderer
        write = renderer.result_object

        def fail_once(delivery):
            if delivery.number == 1:
                raise ValueError("a value of the header")
            return write(delivery)

        monkeypatch.setattr(renderer, "result_object", fail_once)
        receive(client, 90)
        receive(client, 100)
        repository.inbox.release()
        wait_until(lambda: len(archive.stored) == 3, "the others wait")
        wait_until(lambda: len(repository.outbox.find()) == 1, "the others are not recorded")
        (failed,) = repository.outbox.find()
        assert (failed.number, failed.error) == (1, "internal_error")


def test_result_that_may_have_arrived_is_withdrawn_with_its_prediction(model, aborting, at_once):
    aborting.keeps = True
    with service(model, configuration(aborting)) as (client, repository):
        receive(client)
        wait_until(lambda: len(aborting.stored) == 2, "nothing was sent")
        wait_until(lambda: all(each.attempts for each in repository.outbox.find()), "no attempt")
        sent = set(aborting.stored)
        (found,) = predicted(client)
        client.delete(f"/v1/predictions/{found['id']}")
        aborting.aborts = lambda dataset: False
        wait_until(lambda: len(aborting.stored) == 3, "no rejection note")
        (note,) = (copies[0] for copies in aborting.stored.values() if copies[0].Modality == "KO")
        assert sent == {each.value for each in note.iterall() if each.keyword == "ReferencedSOPInstanceUID"}


def test_object_that_may_have_arrived_is_sent_again_with_the_same_content(model, aborting, at_once):
    aborting.keeps = True
    with service(model, configuration(aborting)) as (client, repository):
        uid = receive(client)
        wait_until(lambda: len(aborting.stored) == 2, "nothing was sent")
        receive(client, SOPInstanceUID=uid, PatientID="8")
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        aborting.aborts = lambda dataset: False
        wait_for_delivery(repository, 2)
        assert len(aborting.stored) == 2
        for copies in aborting.stored.values():
            assert len(copies) > 1
            assert all(pydicom.Dataset(each) == pydicom.Dataset(copies[0]) for each in copies)


@pytest.mark.slow
@pytest.mark.parametrize("count", [70_000])
def test_more_results_than_a_statement_has_parameters_wait_for_a_pacs_that_is_away(repository, count):
    row = {
        "destination": "PACS", "kind": "structured_report", "prediction_id": "a", "failure_code": "", "model_sha256": "b",
        "operating_point": "balanced", "sop_instance_uid": "1", "header": "{}", "withdrawn_uids": "{}", "created": "", "due": "",
        "attempts": 0, "state": "waiting", "error": "", "maybe_delivered": False, "finished": None,
    }  # fmt: skip
    with write_transaction(repository.engine) as connection:
        for start in range(0, count, 1000):
            connection.execute(insert(outbox), [row | {"result_uid": str(start + place)} for place in range(1000)])
    now = datetime.now(UTC)
    repository.outbox.record_unreachable("PACS", "unreachable", now)
    assert repository.outbox.due("PACS", now, 1) == []
    with read_transaction(repository.engine) as connection:
        assert connection.execute(select(func.count()).where(outbox.c.attempts == 1)).scalar() == count
    assert repository.outbox.retry(time=now) == count
    assert len(repository.outbox.due("PACS", now, 1)) == 1
    assert repository.outbox.cancel(time=now) == count


def test_report_of_an_earlier_copy_states_the_reason_when_the_file_of_a_later_one_is_lost(model, archive, order):
    with service(model, slow_configuration(archive)) as (client, repository):
        uid = receive(client, NumberOfFrames=12)
        files = repository.inbox.files
        earlier = set(files.staging_files())
        receive(client, SOPInstanceUID=uid)
        (later,) = set(files.staging_files()) - earlier
        files.remove(later)
        repository.inbox.release()
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        wait_for_delivery(repository, 2)
        (report,) = (copies[0] for copies in archive.stored.values() if copies[0].Modality == "SR")
        assert "the file has 12 frames, not 1" in delivery_tests.texts_of(report)


# --- the inbox ------------------------------------------------------------------------------------------------------


def submit(repository, number, settings="s"):
    instance = ReceivedInstance("PACS", "PACS", f"1.{number}", f"2.{number}", "{}")
    return repository.inbox.submit(instance, b"file %d" % number, NOW, settings).result(30)


def test_damaged_file_delays_no_other_and_is_replaced_when_it_is_sent_again(model, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(processing, "_BATCH", 1)
    monkeypatch.setattr(processing, "_UNREADABLE_SECONDS", 2)
    repository = PredictionRepository(tmp_path / "data")
    with service(model, slow_configuration(archive), repository) as (client, _):
        uid = receive(client, 90)
        (first,) = (tmp_path / "data/inbox/staging").iterdir()
        receive(client, 100)
        first.write_bytes(b"damaged")
        repository.inbox.release()
        predicted(client)
        assert repository.inbox.status().instances == 1
        receive(client, 90, SOPInstanceUID=uid)
        predicted(client, 2)


def test_instance_is_not_acknowledged_when_the_data_directory_was_replaced(tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    submit(repository, 1)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(StorageError, match="was moved, removed or replaced"):
        submit(repository, 2)
    assert not (tmp_path / "data").exists()
    repository.close()


def test_file_of_a_failed_transaction_is_removed_by_the_next_one(repository, monkeypatch):
    def fail(*_):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("pneumoscope.service.storage.inbox.replace_header", fail)
        with pytest.raises(StorageError):
            submit(repository, 1)
    assert len(repository.inbox.files.staging_files()) == 1
    submit(repository, 2)
    (waiting,) = repository.inbox.ready(10)
    assert repository.inbox.files.staging_files() == [waiting.image_sha256]


# --- silent and slow clients ----------------------------------------------------------------------------------------


def node(model, **settings):
    options = {"host": "127.0.0.1", "port": 0, "ae_title": "PNEUMOSCOPE", "timeout": 1} | settings
    opened_settings = DicomSettings(peers=(DicomPeer("PACS", "ORTHANC", "127.0.0.1", 4242),), **options)
    opened = receiver.DicomReceiver(opened_settings)
    dicom_configuration = DicomConfiguration(opened_settings, quiet_seconds=0)
    app = create_app(model, PredictionRepository(None), Settings(dicom=dicom_configuration), dicom_receiver=opened)
    return TestClient(app, base_url="http://127.0.0.1:8000"), opened


def test_pdu_that_arrives_byte_by_byte_is_cut_off(model):
    client, opened = node(model)
    with client, socket.create_connection(("127.0.0.1", opened.port), timeout=30) as slow:
        slow.sendall(b"\x01\x00\x00\x00\x10\x00")
        slow.settimeout(0.3)
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, "the connection stays open"
            try:
                slow.sendall(b"x")
                if not slow.recv(100):
                    break
            except TimeoutError:
                continue
            except OSError:
                break


def test_connections_above_the_limit_are_closed(model):
    client, opened = node(model, max_associations=2, timeout=60)
    with client:
        connections = [socket.create_connection(("127.0.0.1", opened.port), timeout=30) for _ in range(10)]
        deadline = time.monotonic() + 45
        open_ones = 10
        while open_ones > 4 and time.monotonic() < deadline:
            open_ones = sum(is_open(each) for each in connections)
        assert 0 < open_ones <= 4
        for each in connections:
            each.close()


def is_open(connection):
    connection.settimeout(0.1)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_image_of_a_hostile_name_is_answered(model, archive):
    """A name that no result can state does not keep the result back."""
    with service(model, configuration(archive)) as (client, repository):
        name = "A" * 60_000
        content = dicom(100, **delivery_tests.STUDY | {"SOPInstanceUID": generate_uid(), "PatientName": "NAME"})
        assert content.count(b"PN\x04\x00NAME") == 1
        content = content.replace(b"PN\x04\x00NAME", b"PN" + len(name).to_bytes(2, "little") + name.encode())
        assert client.app.state.processor.receive(content, "image", "PACS", reply_to="PACS").status == 0x0000
        wait_for_delivery(repository, 2)
