"""Results are delivered: by C-STORE and STOW-RS, once, after failures, to each destination."""

import hashlib
import io
import json
import logging
import re
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pydicom
import pytest
from fastapi.testclient import TestClient
from pydicom.uid import generate_uid
from requests.exceptions import SSLError
from tests.images import dicom
from tests.processes import free_port, started
from tests.service.conftest import predicted
from urllib3 import exceptions as urllib3_errors

from pneumoscope.core.errors import UsageError
from pneumoscope.core.population import Population
from pneumoscope.core.prediction_messages import population_sentence
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.dicom import processing
from pneumoscope.service.dicom.configuration import Destination, DicomConfiguration, ResultSettings, SiteRule
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings
from pneumoscope.service.dicom.processing import InstanceProcessor
from pneumoscope.service.dicom.sending import may_have_arrived
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.database import open_database
from pneumoscope.service.storage.inbox import Inbox
from pneumoscope.service.storage.outbox import Outbox
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.received_instances import ReceivedInstance
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention

pynetdicom = pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
delivery = pytest.importorskip("pneumoscope.service.dicom.delivery")
results = pytest.importorskip("pneumoscope.service.dicom.results")
pytestmark = pytest.mark.slow  # objects are exchanged with another node
SECONDS = 60
STUDY = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "PatientID": "7", "PatientName": "王^小明",
         "SpecificCharacterSet": "ISO_IR 192", "AccessionNumber": "A1", "PatientAge": "003Y"}  # fmt: skip


class Archive:
    """A DICOM node that keeps what it receives, or answers with a given status."""

    def __init__(self):
        self.stored, self.received, self.status, self.port = {}, 0, 0x0000, free_port()
        self.contents = {}  # the bytes of each copy by UID
        self._server = None

    def start(self):
        ae = pynetdicom.AE("ARCHIVE")
        for sop_class in results.SOP_CLASSES.values():
            ae.add_supported_context(sop_class)
        handlers = [(pynetdicom.evt.EVT_C_STORE, self._store)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def stop(self):
        if self._server:
            self._server.shutdown()
            self._server = None

    def _store(self, event):
        self.received += 1
        if self.status == 0x0000:
            stored = event.dataset
            stored.file_meta = event.file_meta
            self.stored.setdefault(stored.SOPInstanceUID, []).append(stored)
            self.contents.setdefault(stored.SOPInstanceUID, []).append(event.encoded_dataset())
        return self.status


@pytest.fixture(autouse=True)
def short_delivery_waits(monkeypatch):
    """Look more often for results to deliver: most of these tests wait for a delivery."""
    monkeypatch.setattr(delivery, "_POLL_SECONDS", 0.05)


@pytest.fixture
def archive():
    opened = Archive().start()
    yield opened
    opened.stop()


def configuration(archive, **options):
    peers = (DicomPeer("PACS", "ARCHIVE", "127.0.0.1", archive.port),)
    return DicomConfiguration(
        DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", peers, timeout=5), quiet_seconds=0, **options
    )


@contextmanager
def service(model, dicom_configuration, repository=None):
    """A service that delivers results; its client and its repository."""
    repository = repository or PredictionRepository(None)
    app = create_app(model, repository, Settings(dicom=dicom_configuration), delivery=True)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client, repository


def receive(client, level=100, reply_to="PACS", **elements):
    """Send an image as the peer does, and return its SOP Instance UID."""
    elements = {"SOPInstanceUID": generate_uid()} | STUDY | elements
    received = client.app.state.processor.receive(
        dicom(level, **elements), "image", reply_to or "user", reply_to=reply_to
    )
    assert received.status == 0x0000
    return elements["SOPInstanceUID"]


def wait_until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.05)


def is_done(repository):
    return repository.inbox.status().instances == 0 and all(each.waiting == 0 for each in repository.outbox.status())


def wait_for_delivery(repository, count):
    wait_until(lambda: len(repository.outbox.find(("delivered", "withdrawn"))) >= count, "nothing was delivered")
    assert is_done(repository)


def texts_of(report):
    """Return the texts of a Structured Report, joined."""
    return "\n".join(each.value for each in report.iterall() if each.keyword == "TextValue")


def kinds(archive):
    names = {uid: kind for kind, uid in results.SOP_CLASSES.items()}
    return sorted(names[each.SOPClassUID] for copies in list(archive.stored.values()) for each in copies)


def test_results_return_to_the_sender_in_the_study_of_the_image(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        uid = receive(client)
        wait_for_delivery(repository, 2)
        assert kinds(archive) == ["secondary_capture", "structured_report"]
        for (stored,) in archive.stored.values():
            assert (stored.StudyInstanceUID, stored.PatientID, str(stored.PatientName), stored.AccessionNumber) == (
                "1.2.3", "7", "王^小明", "A1"
            )  # fmt: skip
            assert stored.SeriesInstanceUID != "1.2.3.4"
            assert uid in {each.value for each in stored.iterall() if each.keyword == "ReferencedSOPInstanceUID"}


def test_images_are_predicted_and_results_delivered_without_waiting_for_the_next_look(model, archive, monkeypatch):
    monkeypatch.setattr(delivery, "_POLL_SECONDS", 3600)
    monkeypatch.setattr(processing, "_POLL_SECONDS", 3600)
    with service(model, configuration(archive)) as (client, repository):
        for level in (100, 120):
            receive(client, level)
        wait_for_delivery(repository, 4)
    assert not [thread for thread in threading.enumerate() if thread.name == "delivery-PACS"]


def test_delivery_is_in_the_audit_log(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 2)
        (found,) = predicted(client)
        entries = [row for row in read_rows(repository.engine) if row.event == "delivered"]
        sent = {
            kind: client.get(f"/v1/predictions/{found['id']}/{kind.replace('_', '-')}.dcm").content
            for kind in ("secondary_capture", "structured_report")
        }
        assert {(row.user, row.prediction_id, row.details) for row in entries} == {
            ("PACS", found["id"], f'{{"object": "{kind}", "sha256": "{hashlib.sha256(content).hexdigest()}"}}')
            for kind, content in sent.items()
        }
        verify(repository.engine)


def test_objects_are_those_of_the_api(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 2)
        (found,) = predicted(client)
        for kind in ("secondary-capture", "structured-report"):
            expected = pydicom.dcmread(io.BytesIO(client.get(f"/v1/predictions/{found['id']}/{kind}.dcm").content))
            (stored,) = archive.stored[expected.SOPInstanceUID]
            assert pydicom.Dataset(stored) == pydicom.Dataset(expected)


def test_dcmtk_stores_every_kind_of_result(model, tmp_path):
    program = shutil.which("storescp", path="/usr/bin:/usr/local/bin")  # pynetdicom has one of the same name
    if program is None:
        pytest.skip("storescp is not installed (Debian's package dcmtk)")
    port = free_port()
    command = [program, "--aetitle", "ARCHIVE", "--output-directory", tmp_path, str(port)]
    peers = (DicomPeer("PACS", "ARCHIVE", "127.0.0.1", port),)
    settings = DicomConfiguration(
        DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", peers, timeout=5), quiet_seconds=0,
        results=ResultSettings(objects=("secondary_capture", "structured_report", "parametric_map", "presentation_state")),
    )  # fmt: skip
    with started(command, stdout=subprocess.DEVNULL) as process, service(model, settings) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 4)
        (found,) = predicted(client)
        client.delete(f"/v1/predictions/{found['id']}")
        wait_for_delivery(repository, 5)
        process.kill()
    stored = [pydicom.dcmread(file) for file in tmp_path.iterdir()]
    assert {each.SOPClassUID for each in stored} == set(results.SOP_CLASSES.values())
    assert {(each.StudyInstanceUID, str(each.PatientName)) for each in stored} == {("1.2.3", "王^小明")}


def test_image_that_is_sent_again_has_no_second_result(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        uid = receive(client)
        wait_for_delivery(repository, 2)
        receive(client, SOPInstanceUID=uid)
        receive(client, SOPInstanceUID=uid, StationName="another header")
        wait_until(lambda: is_done(repository), "it waits")
        predicted(client)
        assert [len(copies) for copies in archive.stored.values()] == [1, 1]
        assert archive.received == 2


def test_rejected_and_unreadable_images_have_results(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        receive(client, ViewPosition="LL")
        wait_for_delivery(repository, 2)
        receive(client, PixelData=bytes(10))
        wait_for_delivery(repository, 4)
        reports = [copies[0] for copies in archive.stored.values() if copies[0].Modality == "SR"]
        assert sorted(each.SeriesDescription for each in reports) == ["pneumoscope: Rejected", "pneumoscope: Rejected"]
        meanings = [{each.value for each in report.iterall() if each.keyword == "CodeMeaning"} for report in reports]
        assert all("Not assessed" in each for each in meanings)
        assert {"Not a frontal view", "The image could not be read"} <= set.union(*meanings)


def test_results_of_an_unreadable_image_state_the_reason(model, archive, drawn):
    with service(model, configuration(archive)) as (client, repository):
        receive(client, NumberOfFrames=12)
        wait_for_delivery(repository, 2)
        objects = {copies[0].Modality: copies[0] for copies in archive.stored.values()}
        assert set(objects) == {"SR", "OT"}
        (text,) = drawn
        assert text.startswith("Not assessed: the image cannot be read: the file has 12 frames, not 1")
        report = objects["SR"]
        (record,) = client.get("/v1/unreadable").json()["files"]
        assert record["failure"]["reason"] == {"code": "multiple_frames", "parameters": {"frames": 12}}
        elements = list(report.iterall())
        codes = {each.value for each in elements if each.keyword in ("CodeValue", "LongCodeValue")}
        assert {"unreadable_image", "multiple_frames"} <= codes
        assert "Not assessed: the image cannot be read: the file has 12 frames, not 1" in texts_of(report).splitlines()


def test_result_of_an_earlier_model_states_the_population_of_that_model(shared_maker, model, archive, tmp_path):
    archive.stop()
    with service(model, configuration(archive), PredictionRepository(tmp_path / "data")) as (client, _):
        receive(client)
        predicted(client)
    population = Population(ages=(18, 90), sites=2, view="PA")
    folder = shared_maker.root / "adults delivering"
    present = load_model(shared_maker.bundle(folder, gain=0.04, population=population), threads=1)
    archive.start()
    with service(present, configuration(archive), PredictionRepository(tmp_path / "data")) as (client, repository):
        repository.outbox.retry(time=datetime.now(UTC))
        wait_for_delivery(repository, 2)
        receive(client, 110)
        wait_for_delivery(repository, 4)
    reports = [copies[0] for copies in archive.stored.values() if copies[0].Modality == "SR"]
    earlier = population_sentence(model.card.population)
    stated = {
        each.value: tuple(text in texts_of(report) for text in (earlier, population_sentence(population)))
        for report in reports
        for each in report.iterall()
        if each.value in (model.facts.sha256, present.facts.sha256)
    }
    assert stated == {model.facts.sha256: (True, False), present.facts.sha256: (False, True)}


def test_late_frontal_image_has_its_own_result_beside_that_of_a_rejected_one(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        lateral = receive(client, 100, ViewPosition="LL")
        wait_for_delivery(repository, 2)
        frontal = receive(client, 110)
        wait_for_delivery(repository, 4)
        assert repository.outbox.find(("withdrawn", "cancelled", "waiting")) == []
    assert kinds(archive) == 2 * ["secondary_capture"] + 2 * ["structured_report"]
    reports = [copies[0] for copies in archive.stored.values() if copies[0].Modality == "SR"]
    images = [
        each.value for report in reports for each in report.iterall() if each.keyword == "ReferencedSOPInstanceUID"
    ]
    assert set(images) == {lateral, frontal}
    assert {each.StudyInstanceUID for each in reports} == {STUDY["StudyInstanceUID"]}


def test_results_wait_while_the_destination_is_away(model, archive, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "pneumoscope.service")
    monkeypatch.setattr("pneumoscope.service.storage.outbox_records._FIRST_DELAY", timedelta(milliseconds=50))
    archive.stop()
    with service(model, configuration(archive)) as (client, repository):
        for level in (90, 100, 110):
            receive(client, level)
        predicted(client, 3)
        wait_until(lambda: all(each.attempts for each in repository.outbox.find()), "no attempt")
        assert {each.error for each in repository.outbox.find()} == {"connection_refused"}
        archive.start()
        wait_for_delivery(repository, 6)
    assert [len(copies) for copies in archive.stored.values()] == 6 * [1]
    assert [each.getMessage() for each in caplog.records].count("Results are delivered to PACS again") == 1


@pytest.mark.parametrize("status", [0xA700, 0xC000, 0x0122])
def test_object_that_is_refused_is_sent_again(model, archive, monkeypatch, status):
    monkeypatch.setattr("pneumoscope.service.storage.outbox_records._FIRST_DELAY", timedelta(milliseconds=50))
    archive.status = status
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        wait_until(lambda: archive.received >= 4, "no second attempt")
        assert {each.error for each in repository.outbox.find()} - {"interrupted"} == {f"status_{status:04x}"}
        archive.status = 0x0000
        wait_for_delivery(repository, 2)


def test_object_that_the_destination_has_already_is_delivered(model, archive):
    archive.status = 0x0111
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 2)
        assert archive.received == 2


def test_destination_that_always_fails_delays_no_other(model, archive):
    away = DicomPeer("AWAY", "AWAY", "127.0.0.1", 1)
    peers = (DicomPeer("PACS", "ARCHIVE", "127.0.0.1", archive.port), away)
    both = DicomConfiguration(
        DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", peers, timeout=5), quiet_seconds=0,
        destinations=(Destination(peer="AWAY"), Destination(peer="PACS")),
    )  # fmt: skip
    with service(model, both) as (client, repository):
        receive(client, reply_to="")
        wait_until(lambda: len(archive.stored) == 2, "nothing arrived")
        wait_until(lambda: all(each.attempts for each in repository.outbox.find()), "no attempt")
        status = {each.destination: each for each in repository.outbox.status()}
        assert (status["PACS"].delivered, status["PACS"].waiting) == (2, 0)
        assert (status["AWAY"].delivered, status["AWAY"].waiting, status["AWAY"].failing) == (0, 2, 2)


def test_failures_and_age_of_waiting_results_are_in_the_metrics_and_on_the_dashboard(model, archive):
    archive.stop()
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        wait_until(lambda: [bool(each.attempts) for each in repository.outbox.find()] == [True, True], "no attempt")
        metrics, page = client.get("/metrics").text, client.get("/dashboard").text
        (status,) = repository.outbox.status()
        assert 'pneumoscope_outbox_failing_results{destination="PACS"} 2.0' in metrics
        (age,) = re.findall(r'^pneumoscope_outbox_oldest_seconds\{destination="PACS"\} (\S+)$', metrics, re.MULTILINE)
        assert 0 < float(age) < SECONDS
        (row,) = re.findall(r'<tr><th scope="row">PACS</th>(.*?)</tr>', page, re.DOTALL)
        shown = re.sub("<[^>]*>", " ", row).split()
        assert shown == ["0", "2", "▲", "2", *status.oldest[:16].split("T")]


def test_own_results_are_acknowledged_and_not_predicted(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 2)
        for (stored,) in archive.stored.values():
            file = io.BytesIO()
            stored.save_as(file, enforce_file_format=True)
            answer = client.app.state.processor.receive(file.getvalue(), "image", "PACS", reply_to="PACS")
            assert answer.status == 0x0000
        wait_until(lambda: is_done(repository), "it waits")
        predicted(client)
        assert client.get("/v1/unreadable").json()["total"] == 0
        assert archive.received == 2


def test_result_of_another_installation_is_acknowledged_and_not_predicted(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        receive(client, Manufacturer="pneumoscope")
        assert repository.inbox.status().instances == 0
        receive(client, 110, Manufacturer="another")
        predicted(client)


def test_corrected_patient_before_the_delivery_is_that_of_the_result(model, archive):
    archive.stop()
    with service(model, configuration(archive)) as (client, repository):
        uid = receive(client)
        predicted(client)
        receive(client, SOPInstanceUID=uid, PatientID="8")
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        archive.start()
        repository.outbox.retry(time=datetime.now(UTC))
        wait_for_delivery(repository, 2)
        assert [(each.PatientID, len(copies)) for copies in archive.stored.values() for each in copies] == 2 * [
            ("8", 1)
        ]


def test_deleted_prediction_is_withdrawn_by_a_rejection_note(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 2)
        (found,) = predicted(client)
        client.delete(f"/v1/predictions/{found['id']}")
        wait_for_delivery(repository, 3)
        (note,) = (copies[0] for copies in archive.stored.values() if copies[0].Modality == "KO")
        assert note.ConceptNameCodeSequence[0].CodeMeaning == "Rejected for Quality Reasons"
        withdrawn = {each.value for each in note.iterall() if each.keyword == "ReferencedSOPInstanceUID"}
        assert withdrawn == archive.stored.keys() - {note.SOPInstanceUID}
        assert (note.StudyInstanceUID, note.PatientID) == ("1.2.3", "7")


def test_deleted_prediction_that_was_not_delivered_is_never_sent(model, archive):
    archive.stop()
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        (found,) = predicted(client)
        client.delete(f"/v1/predictions/{found['id']}")
        assert {each.state for each in repository.outbox.find(("cancelled", "waiting"))} == {"cancelled"}
        archive.start()
        receive(client, 110)
        wait_for_delivery(repository, 2)
        assert len(archive.stored) == 2


def test_prediction_with_an_entered_age_replaces_the_result(child_bundle, archive):
    model = load_model(child_bundle, threads=1, require_age="always")
    with service(model, configuration(archive)) as (client, repository):
        receive(client, 180, PatientAge="")
        wait_for_delivery(repository, 2)
        (found,) = predicted(client)
        assert found["rejection"]["code"] == "age_required"
        answer = client.post(f"/images/{found['id']}", data={"age": "3"}, headers={"Origin": "http://127.0.0.1:8000"})
        assert answer.status_code == 200, answer.text
        wait_for_delivery(repository, 5)
        assert kinds(archive) == [
            "rejection_note", "secondary_capture", "secondary_capture", "structured_report", "structured_report",
        ]  # fmt: skip


def test_image_whose_identity_was_removed_is_predicted_again_with_other_rules(model, archive):
    repository = PredictionRepository(None)
    elements = {"SOPInstanceUID": "1.2.9"}
    with service(model, configuration(archive), repository) as (client, _):
        receive(client, **elements)
        wait_for_delivery(repository, 2)
        Retention(repository).expire_identities(timedelta(0))
        assert repository.outbox.find(("delivered",))[0].subject.sop_instance_uid == ""
        rules = DicomConfiguration(
            configuration(archive).node, quiet_seconds=0, rules=(SiteRule(name="none", action="exclude", min_age=90),)
        )
        again = InstanceProcessor(client.app.state.service, rules)
        assert again.receive(dicom(100, **STUDY | elements), "image", "PACS", reply_to="PACS").status == 0x0000
        (waiting,) = repository.inbox.ready(10)
        assert (waiting.sop_instance_uid, waiting.study_instance_uid) == ("1.2.9", "1.2.3")
        wait_until(lambda: is_done(repository), "it waits")
        assert [len(copies) for copies in archive.stored.values()] == [1, 1]  # the destination has the results


def test_prediction_of_an_earlier_operating_point_is_withdrawn_when_it_is_deleted(
    shared_maker, model, archive, tmp_path
):
    for point, count in (("balanced", 2), ("rule_out", 4)):
        repository = PredictionRepository(tmp_path / "data")
        other = load_model(shared_maker.root / "served", threads=1, operating_point=point)
        with service(other, configuration(archive), repository) as (client, _):
            receive(client, SOPInstanceUID="1.2.9")
            wait_for_delivery(repository, count)
            if point == "rule_out":
                stored = repository.find(Filter()).predictions
                (earlier,) = (each for each in stored if each.operating_point == "balanced")
                assert client.delete(f"/v1/predictions/{earlier.id}").status_code == 204
                wait_for_delivery(repository, 5)
    assert kinds(archive).count("rejection_note") == 1


def test_cancelled_result_of_a_deleted_prediction_keeps_no_header(model, archive):
    archive.stop()
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        (found,) = predicted(client)
        repository.outbox.cancel(destination="PACS", time=datetime.now(UTC))
        client.delete(f"/v1/predictions/{found['id']}")
        assert {each.subject.header for each in repository.outbox.find(("cancelled",))} == {""}
        events = [row.event for row in read_rows(repository.engine)]
        assert events.count("delivery_cancelled") == 1


def test_result_that_may_have_arrived_is_withdrawn_although_a_later_attempt_failed(model, archive):
    archive.stop()
    app = create_app(model, PredictionRepository(None), Settings(dicom=configuration(archive)))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        receive(client)
        (found,) = predicted(client)
        outbox, now = app.state.service.repository.outbox, datetime.now(UTC)
        first, second = outbox.find()
        outbox.record_failure([outbox.begin(first.number)], "association_aborted", now, maybe_delivered=True)
        outbox.record_failure([outbox.begin(first.number)], "http_503", now)
        outbox.record_failure([outbox.begin(second.number)], "status_c000", now)
        client.delete(f"/v1/predictions/{found['id']}")
        (note,) = outbox.find()
        assert (note.kind, list(note.withdrawn_uids.values())) == ("rejection_note", [first.result_uid])
        assert [each.number for each in outbox.find(("cancelled",))] == [second.number]


@pytest.mark.parametrize("corrected_before", [False, True])
def test_cancelled_result_that_may_have_arrived_is_replaced_by_that_of_the_corrected_patient(
    model, archive, corrected_before
):
    """The way out of an answer http_500 to an object with the wrong patient; see docs/how-to/pacs.md."""
    archive.stop()
    app = create_app(model, PredictionRepository(None), Settings(dicom=configuration(archive)))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        uid = receive(client)
        (found,) = predicted(client)
        repository = app.state.service.repository
        outbox, now = repository.outbox, datetime.now(UTC)
        wrong = outbox.find()
        outbox.record_failure([outbox.begin(each.number) for each in wrong], "http_500", now, maybe_delivered=True)
        if corrected_before:
            receive(client, SOPInstanceUID=uid, PatientID="8")
            wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
            assert {json.loads(each.subject.header)["00100020"]["Value"][0] for each in outbox.find()} == {"7"}
        outbox.cancel([each.number for each in wrong], time=now)
        if corrected_before:
            client.delete(f"/v1/predictions/{found['id']}")
        receive(client, SOPInstanceUID=uid, PatientID="8")
        wait_until(lambda: repository.inbox.status().instances == 0, "it waits")
        waiting = [(each.kind, json.loads(each.subject.header)["00100020"]["Value"]) for each in outbox.find()]
        assert sorted(waiting) == [
            ("rejection_note", ["7"]), ("secondary_capture", ["8"]), ("structured_report", ["8"]),
        ]  # fmt: skip
        assert not {each.result_uid for each in outbox.find()} & {each.result_uid for each in wrong}


def test_site_rule_applies_to_an_image_that_is_predicted_again(child_bundle, archive):
    model = load_model(child_bundle, threads=1, require_age="always")
    rules = (SiteRule(name="babies", action="exclude", max_age=3, result=False),)
    with service(model, configuration(archive, rules=rules)) as (client, repository):
        receive(client, 180, PatientAge="")
        wait_for_delivery(repository, 2)
        (found,) = predicted(client)
        client.post(f"/images/{found['id']}", data={"age": "2"}, headers={"Origin": "http://127.0.0.1:8000"})
        again = next(each for each in predicted(client, 2) if each["id"] != found["id"])
        assert again["rejection"]["code"] == "excluded_by_site_rule"
        time.sleep(1.5)  # longer than the interval of deliveries
        assert kinds(archive) == ["secondary_capture", "structured_report"]


# --- site rules, quiet period ------------------------------------------------------------------------------------------------


def test_site_rule_excludes_an_image_with_a_result_or_without(model, archive):
    rules = (
        SiteRule(name="adults", action="exclude", min_age=16),
        SiteRule(name="portable", action="exclude", result=False, stations=("PORTABLE-2",)),
    )
    with service(model, configuration(archive, rules=rules)) as (client, repository):
        receive(client, 90, PatientAge="040Y")
        receive(client, 100, StationName="portable-2")
        receive(client, 110)
        found = {each["rejection"] and each["rejection"]["parameters"].get("rule") for each in predicted(client, 3)}
        assert found == {"adults", "portable", None}
        wait_for_delivery(repository, 4)
        assert kinds(archive) == 2 * ["secondary_capture"] + 2 * ["structured_report"]


@pytest.mark.parametrize(
    ("condition", "elements"),
    [
        ({"modalities": ("OT",)}, {"Modality": "OT"}),
        ({"views": ("LL",)}, {"ViewPosition": "LL"}),
        ({"stations": ("SCANNER",)}, {"StationName": "scanner"}),
        ({"senders": ("PACS",)}, {}),
        ({"min_age": 16}, {"PatientAge": "040Y"}),
        ({"until": date(2025, 12, 31)}, {"StudyDate": "20250401"}),
    ],
)
def test_site_rule_without_results_holds_for_a_file_that_cannot_be_read(model, archive, condition, elements):
    rules = (SiteRule(name="none", action="exclude", result=False, **condition),)
    with service(model, configuration(archive, rules=rules)) as (client, repository):
        receive(client, PixelData=bytes(10), **elements)
        (found,) = predicted(client, 1, "/v1/unreadable")
        assert found["failure"]["code"] == "unreadable_image"
        assert repository.outbox.find() == []


def test_site_rule_of_other_images_leaves_a_file_that_cannot_be_read_its_results(model, archive):
    rules = (SiteRule(name="none", action="exclude", result=False, modalities=("OT",)),)
    with service(model, configuration(archive, rules=rules)) as (client, repository):
        receive(client, PixelData=bytes(10))
        wait_for_delivery(repository, 2)
        assert kinds(archive) == ["secondary_capture", "structured_report"]


def test_study_is_quiet_after_its_last_instance():
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    inbox = Inbox(open_database(None), None, now=lambda: clock[0])

    def submit(uid, study="1.2"):
        instance = ReceivedInstance("PACS", "PACS", study, uid, "{}")
        inbox.submit(instance, uid.encode(), timedelta(seconds=60), "settings").result(SECONDS)

    def ready(seconds):
        clock[0] = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
        return [each.sop_instance_uid for each in inbox.ready(10)]

    submit("1")
    assert ready(40) == []
    submit("2")
    submit("3", study="1.3")
    assert ready(99) == []
    submit("4")
    assert ready(100) == ["3"]
    assert ready(158) == ["3"]
    assert ready(159) == ["1", "2", "3", "4"]
    assert ready(-365 * 86400) == ["1", "2", "3", "4"]  # the clock was set back
    inbox.close()


def test_study_is_not_quiet_after_a_small_correction_of_the_clock():
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    inbox = Inbox(open_database(None), None, now=lambda: clock[0])
    instance = ReceivedInstance("PACS", "PACS", "1.2", "1.2.3", "{}")
    inbox.submit(instance, b"1", timedelta(hours=1), "settings").result(SECONDS)
    clock[0] -= timedelta(seconds=10)
    assert inbox.ready(10) == []
    clock[0] += timedelta(hours=1, seconds=10)
    assert len(inbox.ready(10)) == 1
    inbox.close()


def test_study_is_predicted_when_released(model, archive):
    waiting = DicomConfiguration(configuration(archive).node, quiet_seconds=3600)
    with service(model, waiting) as (client, repository):
        receive(client)
        receive(client, 110, StudyInstanceUID="1.2.4")
        assert repository.inbox.release("1.2.3") == 1
        predicted(client)
        assert repository.inbox.status().instances == 1
        assert repository.inbox.release() == 1
        predicted(client, 2)


# --- DICOMweb ----------------------------------------------------------------------------------------------------------------


@contextmanager
def web_server(
    status=200, reason=None, content_type="application/dicom+json", location=None, answered=None, stalls=False
):
    """A DICOMweb server that answers STOW-RS, or stops in the middle of its answer; yields its address and the requests."""
    requests, stopped = [], Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
            while "Content-Length" not in self.headers and (size := int(self.rfile.readline(), 16)):  # chunked
                body += self.rfile.read(size)
                self.rfile.readline()
            if "Content-Length" not in self.headers:
                self.rfile.readline()
            requests.append((self.path, dict(self.headers), body))
            item = {"00081150": {"vr": "UI", "Value": ["1.2"]}, "00081155": {"vr": "UI", "Value": ["1.3"]}}
            if reason is not None:
                item["00081197"] = {"vr": "US", "Value": [reason]}
            answer = {"00081199" if reason is None else "00081198": {"vr": "SQ", "Value": [item]}}
            content = json.dumps(answer).encode() if answered is None else answered
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:1] if stalls else content)
            if stalls:
                stopped.wait(SECONDS)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web", requests
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join(SECONDS)


def web_destination(url, **options):
    return DicomConfiguration(quiet_seconds=0, destinations=(Destination(name="archive", url=url, **options),))


def test_results_are_delivered_by_stow_rs_with_a_token(model, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    with (
        web_server() as (url, requests),
        service(model, web_destination(url, token_file=tmp_path / "token")) as (client, repository),
    ):
        receive(client, reply_to="")
        wait_for_delivery(repository, 2)
        assert [(path, headers["Authorization"]) for path, headers, _ in requests] == 2 * [
            ("/dicom-web/studies", "Bearer s3cret")
        ]
        assert all(b"DICM" in body for *_, body in requests)


@pytest.mark.parametrize(
    ("status", "reason", "content_type", "error"),
    [
        (503, None, "application/dicom+json", "http_503"),
        (401, None, "application/dicom+json", "http_401"),
        (400, None, "application/dicom+json", "http_400"),
        (409, 0xA700, "application/dicom+json", "status_a700"),
        (202, 0xC000, "application/dicom+json", "status_c000"),
        (200, None, "text/html", "response_not_understood"),
    ],
)
def test_failure_of_a_dicomweb_server_is_recorded(model, status, reason, content_type, error):
    with (
        web_server(status, reason, content_type) as (url, _),
        service(model, web_destination(url)) as (client, repository),
    ):
        receive(client, reply_to="")
        wait_until(lambda: any(each.attempts for each in repository.outbox.find()), "no attempt")
        assert {each.error for each in repository.outbox.find() if each.attempts} == {error}


@pytest.mark.parametrize(
    ("status", "answered", "error", "maybe"),
    [
        (200, b"{}", "response_not_understood", True),  # it has stored the object, perhaps
        (200, b"", "response_not_understood", True),
        (200, b"{", "response_not_understood", True),
        (500, None, "http_500", True),
        (502, None, "http_502", True),
        (504, None, "http_504", True),
        (520, None, "http_520", True),
        (527, None, "http_527", True),
        (503, None, "http_503", False),
        (400, None, "http_400", False),
        (409, b"conflict", "response_not_understood", False),
    ],
)
def test_object_may_have_arrived_unless_the_response_of_the_server_excludes_it(model, status, answered, error, maybe):
    """A patient who is corrected meanwhile would otherwise be in another object under the same UID."""
    with (
        web_server(status, answered=answered) as (url, _),
        service(model, web_destination(url)) as (client, repository),
    ):
        receive(client, reply_to="")

        def failed():
            return [each for each in repository.outbox.find() if each.error == error]

        wait_until(failed, "no attempt")
        sent = min(failed(), key=lambda each: each.number)
        assert (sent.attempts, sent.maybe_delivered) == (1, maybe)


def test_object_may_have_arrived_if_the_server_stops_in_the_middle_of_its_answer(model, monkeypatch):
    monkeypatch.setattr(delivery, "HTTP_SECONDS", 3)
    with web_server(stalls=True) as (url, _), service(model, web_destination(url)) as (client, repository):
        receive(client, reply_to="")

        def failed():
            return [each for each in repository.outbox.find() if each.error == "association_aborted"]

        wait_until(failed, "no attempt")
        assert {(each.attempts, each.maybe_delivered) for each in failed()} == {(1, True)}


@pytest.mark.parametrize(
    ("cause", "maybe"),
    [
        (urllib3_errors.MaxRetryError(None, "/studies", urllib3_errors.SSLError("certificate verify failed")), False),
        (urllib3_errors.SSLError("decryption failed or bad record mac"), True),  # in the body of the response
    ],
)
def test_object_may_have_arrived_if_tls_fails_in_the_answer_but_not_before(cause, maybe):
    assert may_have_arrived(SSLError(cause)) is maybe


@pytest.mark.parametrize(
    "content_type", ["application/dicom+json; charset=utf-8", "Application/DICOM+JSON;charset=UTF-8"]
)
def test_answer_with_parameters_of_its_media_type_is_understood(model, content_type):
    with (
        web_server(content_type=content_type) as (url, sent),
        service(model, web_destination(url)) as (client, repository),
    ):
        receive(client, reply_to="")
        wait_for_delivery(repository, 2)
        assert len(sent) == 2


def test_log_names_the_address_of_a_dicomweb_server_without_its_path(model, caplog):
    with web_server(503) as (url, _), service(model, web_destination(f"{url}/key")) as (client, _):
        receive(client, reply_to="")
        line = f"Results cannot be delivered to archive ({url.removesuffix('/dicom-web')}): http_503"
        wait_until(lambda: line in [each.getMessage() for each in caplog.records], "nothing was logged")
    assert "/key" not in caplog.text


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_a_failure_and_sends_nothing_to_another_address(model, status):
    with (
        web_server() as (elsewhere, redirected),
        web_server(status, location=f"{elsewhere}/studies") as (url, _),
        service(model, web_destination(url)) as (client, repository),
    ):
        receive(client, reply_to="")
        wait_until(lambda: any(each.attempts for each in repository.outbox.find()), "no attempt")
        assert {each.error for each in repository.outbox.find() if each.attempts} == {f"http_{status}"}
        assert redirected == []


@pytest.mark.parametrize("status", [409, 200])
def test_instance_that_a_dicomweb_server_has_already_is_delivered(model, status):
    with web_server(status, 0x0111) as (url, _), service(model, web_destination(url)) as (client, repository):
        receive(client, reply_to="")
        wait_for_delivery(repository, 2)


# --- outbox ------------------------------------------------------------------------------------------------------------------


def test_delay_doubles_up_to_15_minutes_and_survives_a_clock_that_is_set_back(model, archive):
    archive.stop()
    start = datetime(2026, 1, 1, tzinfo=UTC)
    app = create_app(model, PredictionRepository(None), Settings(dicom=configuration(archive)))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        receive(client)
        predicted(client)
        outbox = Outbox(app.state.service.repository.engine)
        outbox.retry(time=datetime.now(UTC))
        now, delays = start, []
        for _ in range(12):
            due = outbox.due("PACS", now, 10)
            assert len(due) == 2
            outbox.record_failure(due, "unreachable", now)
            waited = next(s for s in range(1, 2000) if outbox.due("PACS", now + timedelta(seconds=s), 10))
            delays.append(waited)
            now += timedelta(seconds=waited)
        assert delays == [5, 10, 20, 40, 80, 160, 320, 640, 900, 900, 900, 900]
        assert len(outbox.due("PACS", start - timedelta(days=365), 10)) == 2


def test_waiting_results_are_cancelled_and_retried(model, archive):
    archive.stop()
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        predicted(client)
        outbox, now = repository.outbox, datetime.now(UTC)
        numbers = [each.number for each in outbox.find()]
        assert outbox.cancel(numbers[:1], time=now) == 1
        assert [each.number for each in outbox.find(("cancelled",))] == numbers[:1]
        with pytest.raises(UsageError, match="it was cancelled at"):
            outbox.cancel(numbers[:1], time=now)
        assert outbox.retry(numbers[:1], time=now) == 1
        archive.start()
        outbox.retry(time=datetime.now(UTC))
        wait_for_delivery(repository, 2)
        with pytest.raises(UsageError, match="it was delivered at"):
            outbox.retry(numbers[:1], time=now)


def test_identities_that_expire_cancel_what_could_not_be_delivered(model, archive):
    archive.stop()
    with service(model, configuration(archive)) as (client, repository):
        receive(client)
        predicted(client)
        time.sleep(0.01)
        Retention(repository).expire_identities(timedelta(0))
        (status,) = repository.outbox.status()
        assert status.waiting == 0
        cancelled = repository.outbox.find(("cancelled",))
        assert {(each.error, each.subject.header, each.subject.sop_instance_uid) for each in cancelled} == {
            ("identity_removed", "", "")
        }
        with pytest.raises(UsageError, match="header"):
            repository.outbox.retry([cancelled[0].number], time=datetime.now(UTC))


def test_series_are_numbered_and_described_by_the_site(model, archive):
    settings = ResultSettings(objects=("structured_report",), series_number=77, series_description="AI chest")
    with service(model, configuration(archive, results=settings)) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 1)
        ((report,),) = archive.stored.values()
        assert report.SeriesNumber == 78
        assert report.SeriesDescription.startswith("AI chest: ")


ALL_KINDS = ("secondary_capture", "structured_report", "parametric_map", "presentation_state")


def test_every_kind_of_object_is_delivered_and_withdrawn(model, archive):
    settings = ResultSettings(objects=ALL_KINDS)
    with service(model, configuration(archive, results=settings)) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 4)
        assert kinds(archive) == sorted(ALL_KINDS)
        delivered = set(archive.stored)
        (found,) = predicted(client)
        assert client.delete(f"/v1/predictions/{found['id']}").status_code == 204
        wait_for_delivery(repository, 5)
        (note,) = [copies[0] for copies in archive.stored.values() if copies[0].Modality == "KO"]
        referenced = {each.value for each in note.iterall() if each.keyword == "ReferencedSOPInstanceUID"}
        assert referenced == delivered


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        (ALL_KINDS, ["presentation_state", "secondary_capture", "structured_report"]),
        (("parametric_map",), ["structured_report"]),
    ],
)
def test_rejected_image_has_a_result_of_some_kind_but_no_map(model, archive, objects, expected):
    settings = ResultSettings(objects=objects)
    with service(model, configuration(archive, results=settings)) as (client, repository):
        receive(client, ViewPosition="LL")
        wait_for_delivery(repository, len(expected))
        assert kinds(archive) == expected
