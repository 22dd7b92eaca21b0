"""The event of each finished study reaches the webhooks: signed, once per revision, after failures and a killed process."""

import base64
import hashlib
import hmac
import json
import signal
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest
from fastapi.testclient import TestClient
from pydicom.uid import generate_uid
from tests.images import dicom
from tests.processes import free_port
from tests.service.conftest import predicted, served

from pneumoscope.core.errors import UsageError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.population import Population
from pneumoscope.core.prediction_messages import population_sentence
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.dicom.configuration import DicomConfiguration, Webhook
from pneumoscope.service.dicom.configuration_file import read_configuration
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.pseudonyms import Pseudonymizer
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention

pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
SECONDS = 60
SECRET = bytes(range(32))
STUDY = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "PatientID": "7", "PatientName": "DOE^JANE",
         "AccessionNumber": "ACC-4711", "PatientAge": "003Y"}  # fmt: skip


class Receiver:
    """An HTTP server that answers with a status, and keeps what it receives."""

    def __init__(self):
        self.requests, self.status, self.headers, self.hold, self.port = [], 204, {}, None, free_port()
        self._server = None

    def start(self):
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.path, dict(self.headers), body))
                if receiver.hold:
                    receiver.hold.wait(SECONDS)
                self.send_response(receiver.status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def do_GET(self):
                receiver.requests.append((self.path, {}, b"GET"))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def stop(self):
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(SECONDS)
            self._server = None

    @property
    def events(self):
        return [json.loads(body) for *_, body in self.requests]


@pytest.fixture
def receiver():
    opened = Receiver().start()
    yield opened
    opened.stop()


@pytest.fixture(autouse=True)
def short_delay(monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.outbox_records._FIRST_DELAY", timedelta(milliseconds=50))


@pytest.fixture
def secret_file(tmp_path):
    file = tmp_path / "webhook-secret"
    file.write_text(f"whsec_{base64.b64encode(SECRET).decode()}\n")
    file.chmod(0o600)
    return file


def webhook(receiver, secret_file, **options):
    return Webhook(name="ris", url=f"http://127.0.0.1:{receiver.port}/hook", secret_file=secret_file, **options)


def configuration(*webhooks, quiet_seconds=0):
    return DicomConfiguration(quiet_seconds=quiet_seconds, destinations=(), webhooks=webhooks)


@contextmanager
def service(model, dicom_configuration, repository=None, **settings):
    repository = repository or PredictionRepository(None)
    app = create_app(model, repository, Settings(dicom=dicom_configuration, **settings), delivery=True)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client, repository


def receive(client, level=100, **elements):
    elements = {"SOPInstanceUID": generate_uid()} | STUDY | elements
    received = client.app.state.processor.receive(dicom(level, **elements), "image", "user")
    assert received.status == 0x0000


def wait_until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def wait_for_events(repository, receiver, count):
    wait_until(lambda: len(repository.outbox.find(("delivered",))) >= count, f"{len(receiver.requests)} requests")
    assert len(repository.outbox.find(("delivered",))) == count


def verify(headers, body, secret=SECRET):
    """Verify a signature as a receiver does, by the text of Standard Webhooks."""
    signed = f"{headers['Webhook-Id']}.{headers['Webhook-Timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert headers["Webhook-Signature"] == f"v1,{expected}"
    assert abs(int(headers["Webhook-Timestamp"]) - time.time()) < SECONDS


# --- content -----------------------------------------------------------------------------------------------------------------


def test_finished_study_is_reported_once_with_its_decision(model, receiver, secret_file):
    with service(model, configuration(webhook(receiver, secret_file), quiet_seconds=3600)) as (client, repository):
        receive(client, 180)
        receive(client, 100)
        receive(client, 120, ViewPosition="LL")
        repository.inbox.release()
        found = {each["id"]: each for each in predicted(client, 3)}
        wait_for_events(repository, receiver, 1)
        ((path, headers, body),) = receiver.requests
        assert (path, headers["Content-Type"]) == ("/hook", "application/json")
        verify(headers, body)
        data = json.loads(body)["data"]
        assert json.loads(body)["type"] == "study.finished"
        highest = max(found.values(), key=lambda each: each["probability"] or 0)
        assert (data["decision"], data["probability"], data["prediction_id"]) == (
            highest["decision"], highest["probability"], highest["id"]
        )  # fmt: skip
        assert set(data["prediction_ids"]) == set(found)
        assert (data["revision"], data["rejections"], data["unreadable"]) == (1, {"lateral_view": 1}, {})
        assert data["study_key"] == highest["study_key"]
        assert client.get(f"/v1/studies/{data['study_key']}").status_code == 200


def test_event_has_no_identifiers_unless_they_are_asked_for(model, receiver, secret_file):
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client)
        wait_for_events(repository, receiver, 1)
    ((_, headers, body),) = receiver.requests
    assert not any(value in f"{headers} {body!r}" for value in ("1.2.3", "DOE^", "^JANE", "ACC-4711"))
    assert "identifiers" not in json.loads(body)["data"]


def test_event_has_the_identifiers_that_are_asked_for(model, receiver, secret_file):
    with service(model, configuration(webhook(receiver, secret_file, identifiers=True))) as (client, repository):
        receive(client)
        wait_for_events(repository, receiver, 1)
    assert receiver.events[0]["data"]["identifiers"] == {
        "patient_id": "7", "patient_name": "DOE^JANE", "study_instance_uid": "1.2.3", "accession_number": "ACC-4711",
    }  # fmt: skip


def test_event_with_a_result_of_an_earlier_model_does_not_state_the_population_of_the_present_one(
    shared_maker, model, receiver, secret_file, tmp_path
):
    receiver.stop()
    there = configuration(webhook(receiver, secret_file))
    with service(model, there, PredictionRepository(tmp_path / "data")) as (client, _):
        receive(client)
        predicted(client)
    population = Population(ages=(18, 90), sites=2, view="PA")
    present = load_model(shared_maker.bundle(tmp_path / "adults", gain=0.04, population=population), threads=1)
    receiver.start()
    with service(present, there, PredictionRepository(tmp_path / "data")) as (client, repository):
        repository.outbox.retry(time=datetime.now(UTC))
        wait_for_events(repository, receiver, 1)
        receive(client, 110, StudyInstanceUID="1.2.9")
        wait_for_events(repository, receiver, 2)
        receive(client, 120)
        wait_for_events(repository, receiver, 3)
    stated = [population_sentence(population) in each["data"]["notice"] for each in receiver.events]
    assert stated == [False, True, False]
    assert population_sentence(model.card.population) in receiver.events[0]["data"]["notice"]
    assert receiver.events[2]["data"]["notice"] == NOTICE  # of results of both


def test_study_without_a_readable_image_is_reported(model, receiver, secret_file):
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client, PixelData=bytes(10))
        wait_for_events(repository, receiver, 1)
    data = receiver.events[0]["data"]
    assert (data["decision"], data["study_key"], data["prediction_ids"]) == ("rejected", None, [])
    assert data["unreadable"] == {"unreadable_image": 1}


def test_late_instance_is_reported_as_the_next_revision(model, receiver, secret_file):
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client, 100)
        wait_for_events(repository, receiver, 1)
        receive(client, 180)
        wait_for_events(repository, receiver, 2)
        receive(client, 180, StudyInstanceUID="1.2.9")
        wait_for_events(repository, receiver, 3)
    assert [each["data"]["revision"] for each in receiver.events] == [1, 2, 1]
    assert [len(each["data"]["prediction_ids"]) for each in receiver.events] == [1, 2, 1]
    assert len({headers["Webhook-Id"] for _, headers, _ in receiver.requests}) == 3


@pytest.mark.parametrize(("first", "decision"), [({"ViewPosition": "LL"}, "rejected"), ({"level": 90}, "no_pneumonia")])
def test_late_frontal_image_changes_the_decision_of_the_study_and_supersedes_its_event(
    model, receiver, secret_file, first, decision
):
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client, **first)
        wait_for_events(repository, receiver, 1)
        receive(client, 180)
        wait_for_events(repository, receiver, 2)
        late = max(predicted(client, 2), key=lambda each: each["probability"] or 0)
        receive(client, 180, StudyInstanceUID="1.2.9")
        wait_for_events(repository, receiver, 3)
    before, after, other = (each["data"] for each in receiver.events)
    ids = [headers["Webhook-Id"] for _, headers, _ in receiver.requests]
    assert (before["decision"], before["supersedes"]) == (decision, None)
    assert (after["decision"], after["prediction_id"], after["supersedes"]) == ("pneumonia", late["id"], ids[0])
    assert other["supersedes"] is None


def test_event_that_may_have_arrived_is_superseded_by_the_next_one(model, receiver, secret_file):
    """A gateway did not wait for the answer."""
    receiver.status = 504
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client, 100)
        wait_until(lambda: any(each.attempts for each in repository.outbox.find()), "no attempt")
        receive(client, 180)
        wait_until(lambda: receiver.events[-1]["data"]["revision"] == 2, "the next one is not sent")
    ids = {each["data"]["revision"]: sent["Webhook-Id"] for each, (_, sent, _) in zip(
        receiver.events, receiver.requests, strict=True
    )}  # fmt: skip
    assert receiver.events[-1]["data"]["supersedes"] == ids[1]


def test_instance_that_is_sent_again_causes_no_event(model, receiver, secret_file):
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client, SOPInstanceUID="1.2.3.4.5")
        wait_for_events(repository, receiver, 1)
        receive(client, SOPInstanceUID="1.2.3.4.5")
        time.sleep(1)
        wait_for_events(repository, receiver, 1)
    assert len(receiver.requests) == 1


def test_pseudonymized_study_has_revisions_too(model, receiver, secret_file):
    settings = {"pseudonymizer": Pseudonymizer(b"k" * 32)}
    with service(model, configuration(webhook(receiver, secret_file)), **settings) as (client, repository):
        receive(client, 100)
        wait_for_events(repository, receiver, 1)
        receive(client, 180)
        wait_for_events(repository, receiver, 2)
    assert [each["data"]["revision"] for each in receiver.events] == [1, 2]
    assert len(receiver.events[1]["data"]["prediction_ids"]) == 2


def test_deleted_study_is_not_reported(model, receiver, secret_file):
    receiver.stop()
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client)
        (found,) = predicted(client)
        wait_until(lambda: any(each.attempts for each in repository.outbox.find()), "no attempt")
        client.delete(f"/v1/predictions/{found['id']}")
        receiver.start()
        wait_until(lambda: not repository.outbox.find(), "it waits")
        assert [each.error for each in repository.outbox.find(("cancelled",))] == ["unknown_name"]
    assert receiver.requests == []


def test_deletion_of_what_was_reported_is_reported(model, receiver, secret_file):
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client, 100)
        wait_for_events(repository, receiver, 1)
        receive(client, 180)
        wait_for_events(repository, receiver, 2)
        for deleted in predicted(client, 2):
            client.delete(f"/v1/predictions/{deleted['id']}")
        wait_until(lambda: receiver.events[-1]["data"]["decision"] is None, "the deletion is not reported")
        wait_until(lambda: not repository.outbox.find(), "it waits")
    last = receiver.events[-1]["data"]
    assert (last["revision"], last["study_key"], last["prediction_ids"]) == (4, None, [])


def test_event_that_waits_is_replaced_by_the_next_one(model, receiver, secret_file):
    receiver.stop()
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client, 100)
        predicted(client, 1)
        receive(client, 180)
        predicted(client, 2)
        wait_until(lambda: len(repository.outbox.find(("cancelled",))) == 1, "two wait")
        receiver.start()
        wait_for_events(repository, receiver, 1)
    assert [(each["data"]["revision"], each["data"]["supersedes"]) for each in receiver.events] == [(2, None)]


def test_identities_that_expire_cancel_what_could_not_be_delivered(model, receiver, secret_file):
    receiver.stop()
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client)
        predicted(client)
        time.sleep(0.01)
        Retention(repository).expire_identities(timedelta(0))
        assert [each.error for each in repository.outbox.find(("cancelled",))] == ["identity_removed"]
        with repository.engine.connect() as connection:
            for table in ("outbox", "received_instances"):
                uids = connection.exec_driver_sql(f"SELECT study_instance_uid FROM {table}").scalars().all()
                assert set(uids) == {""}


# --- failures ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 400, 404, 410, 429, 302])
def test_event_that_is_not_confirmed_is_sent_again_with_the_same_id(model, receiver, secret_file, status):
    receiver.status, receiver.headers = status, {"Location": f"http://127.0.0.1:{receiver.port}/elsewhere"}
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client)
        wait_until(lambda: len(receiver.requests) >= 2, "no second attempt")
        wait_until(lambda: {each.error for each in repository.outbox.find()} == {f"http_{status}"}, "no error")
        receiver.status = 200
        wait_for_events(repository, receiver, 1)
    for path, headers, body in receiver.requests:
        assert path == "/hook"  # no redirect is followed
        verify(headers, body)
    assert len({headers["Webhook-Id"] for _, headers, _ in receiver.requests}) == 1
    assert len({body for *_, body in receiver.requests}) == 1


def test_receiver_that_does_not_answer_is_tried_again(model, receiver, secret_file, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.dicom.webhooks._READ_SECONDS", 0.5)
    receiver.hold = Event()
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        receive(client)
        wait_until(lambda: len(receiver.requests) >= 2, "no second attempt")
        wait_until(lambda: {each.error for each in repository.outbox.find()} == {"timeout"}, "no error")
        receiver.hold.set()
        wait_for_events(repository, receiver, 1)


def test_webhook_that_is_away_delays_no_other(model, receiver, secret_file):
    away = Webhook(name="away", url="http://127.0.0.1:1/", secret_file=secret_file)
    with service(model, configuration(away, webhook(receiver, secret_file))) as (client, repository):
        receive(client)
        wait_for_events(repository, receiver, 1)
        status = {each.destination: each for each in repository.outbox.status()}
        assert (status["ris"].delivered, status["away"].waiting) == (1, 1)


def test_changed_secret_is_used_and_a_missing_one_is_waited_for(model, receiver, secret_file):
    with service(model, configuration(webhook(receiver, secret_file))) as (client, repository):
        text = secret_file.read_text()
        secret_file.unlink()
        receive(client)
        wait_until(lambda: any(each.attempts for each in repository.outbox.find()), "no attempt")
        wait_until(lambda: {each.error for each in repository.outbox.find()} == {"secret_unreadable"}, "no error")
        other = b"another secret of 32 bytes......"
        secret_file.write_text(f"whsec_{base64.b64encode(other).decode()}")
        secret_file.chmod(0o600)
        wait_for_events(repository, receiver, 1)
        assert text != secret_file.read_text()
    verify(*receiver.requests[0][1:], secret=other)


@pytest.mark.slow
def test_killed_service_sends_the_event_when_it_starts_again(bundle, tmp_path, receiver, secret_file):
    """The receiver got the event, and the process was killed before it learned so: the same event comes again."""
    receiver.hold = Event()
    file = tmp_path / "dicom.toml"
    file.write_text(
        f'quiet_seconds = 0\ndestinations = []\n[[webhooks]]\nname = "ris"\nsecret_file = "{secret_file.name}"\n'
        f'url = "http://127.0.0.1:{receiver.port}/hook"\n'
    )
    options = ("--dicom-config", str(file))
    boundary = "==b=="
    part = dicom(100, SOPInstanceUID="1.2.3.4.5", **STUDY)
    body = (
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + part + f"\r\n--{boundary}--\r\n".encode()
    )
    with served(bundle, tmp_path, *options) as (process, client):
        content_type = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
        assert (
            client.post("/dicom-web/studies", content=body, headers={"Content-Type": content_type}).status_code == 200
        )
        wait_until(lambda: receiver.requests, "no event")
        process.send_signal(signal.SIGKILL)
        process.wait(SECONDS)
    receiver.hold.set()
    with served(bundle, tmp_path, *options):
        wait_until(lambda: len(receiver.requests) >= 2, "it was lost")
        time.sleep(2)
    first, second = receiver.requests
    verify(*second[1:])
    assert (second[1]["Webhook-Id"], second[2]) == (first[1]["Webhook-Id"], first[2])


# --- configuration -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('url = "http://ris.example/hook"\nsecret_file = "webhook-secret"', "must be an https:// address"),
        ('url = "https://u:p@ris.example/hook"\nsecret_file = "webhook-secret"', "must not contain a user name"),
        ('url = "https://ris.example/hook#a"\nsecret_file = "webhook-secret"', "must not contain a fragment"),
        ('url = "https://ris.example/hook"', "secret_file is missing"),
        ('url = "https://ris.example/hook"\nsecret_file = "nowhere"', "cannot read the secret file"),
    ],
)
def test_invalid_webhook_is_an_error_at_the_start(tmp_path, secret_file, text, words):
    file = tmp_path / "dicom.toml"
    file.write_text(f'destinations = []\n[[webhooks]]\nname = "ris"\n{text}\n')
    with pytest.raises(UsageError, match=words):
        read_configuration(file)


def test_webhook_and_fhir_secret_are_relative_to_the_configuration(tmp_path, secret_file):
    file = tmp_path / "dicom.toml"
    hook = '[[webhooks]]\nname = "ris"\nurl = "https://ris.example/hook"\nsecret_file = "webhook-secret"\nidentifiers = true\n'
    file.write_text(f'destinations = []\n{hook}[fhir]\nsecret_file = "webhook-secret"\n')
    found = read_configuration(file)
    assert (found.webhooks[0].secret_file, found.webhooks[0].identifiers) == (secret_file, True)
    assert found.fhir_secret_file == secret_file
    with pytest.raises(UsageError, match="have the name 'ris'"):
        DicomConfiguration(destinations=(), webhooks=2 * found.webhooks)
