"""Received instances and results that wait are shown by the API, the metrics and the dashboard, without identifiers."""

import json
import logging
import re
import time
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from pydicom import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import select
from tests.images import dicom
from tests.service.conftest import predicted

from pneumoscope.core.identity import IDENTITY_FIELDS
from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.dicom.configuration import Destination, DicomConfiguration
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.database import read_transaction
from pneumoscope.service.storage.pseudonyms import Pseudonymizer
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.storage.tables import outbox, received_instances

ARCHIVE = Destination(name="archive", url="https://127.0.0.1:1/dicom-web")
STUDY = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4"}
CANARY = "CANARY"


def item(**elements):
    """Return an item of a sequence."""
    created = Dataset()
    for keyword, value in elements.items():
        setattr(created, keyword, value)
    return created


# A value of each field that its representation allows.
HEADER = {
    "PatientID": CANARY, "IssuerOfPatientID": CANARY, "PatientName": f"{CANARY}^A", "PatientBirthDate": "20231111",
    "PatientSex": "F", "AccessionNumber": CANARY, "StudyInstanceUID": "1.2.77777777", "StudyDate": "20261111",
    "StudyDescription": CANARY, "SeriesInstanceUID": "1.2.77777777.1", "SOPInstanceUID": "1.2.77777777.1.1",
    "StationName": CANARY, "PatientBirthTime": "101112.777777", "OtherPatientIDs": CANARY, "OtherPatientNames": f"{CANARY}^B",
    "PatientComments": CANARY, "AdditionalPatientHistory": CANARY, "EthnicGroup": CANARY, "StudyID": CANARY,
    "ReferringPhysicianName": f"{CANARY}^C", "PhysiciansOfRecord": f"{CANARY}^D", "NameOfPhysiciansReadingStudy": f"{CANARY}^E",
    "OtherPatientIDsSequence": [item(PatientID=CANARY, TypeOfPatientID="TEXT", IssuerOfPatientID=CANARY)],
    "IssuerOfAccessionNumberSequence": [item(LocalNamespaceEntityID=CANARY)],
    "ProcedureCodeSequence": [item(CodeValue=CANARY, CodingSchemeDesignator="99X", CodeMeaning=CANARY)],
}  # fmt: skip


@pytest.fixture
def waiting(model):
    """A client of a service whose studies wait, and whose results are not sent."""
    repository = PredictionRepository(None)
    dicom_configuration = DicomConfiguration(quiet_seconds=3600, destinations=(ARCHIVE,))
    app = create_app(model, repository, Settings(dicom=dicom_configuration))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def receive(client, level=100, **elements):
    file = dicom(level, **{"SOPInstanceUID": generate_uid()} | STUDY | elements)
    return client.app.state.processor.receive(file, "image", "PACS").status


def metric(client, name):
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return found and float(found[1])


def test_waiting_instances_and_results_are_counted(waiting):
    exchange = waiting.get("/v1/exchange").json()
    assert exchange == {"inbox": {"instances": 0, "studies": 0, "oldest": None}, "outbox": []}
    assert 'id="exchange"' not in waiting.get("/dashboard").text
    for level, study in ((90, "1.2.3"), (100, "1.2.3"), (110, "1.2.5")):
        assert receive(waiting, level, StudyInstanceUID=study) == 0
    found = waiting.get("/v1/exchange").json()["inbox"]
    assert (found["instances"], found["studies"]) == (3, 2)
    assert metric(waiting, "pneumoscope_inbox_instances") == 3
    assert 0 < metric(waiting, "pneumoscope_inbox_oldest_seconds") < 300
    assert "3 received images wait for their studies" in waiting.get("/dashboard").text

    released = waiting.post("/v1/inbox/release", json={"study_instance_uid": "1.2.5"})
    assert released.json() == {"instances": 1}
    predicted(waiting)
    (found,) = waiting.get("/v1/exchange").json()["outbox"]
    assert (found["destination"], found["waiting"], found["failing"], found["delivered"]) == ("archive", 2, 0, 0)
    assert metric(waiting, 'pneumoscope_outbox_results{destination="archive"}') == 2
    assert metric(waiting, 'pneumoscope_outbox_failing_results{destination="archive"}') == 0
    page = waiting.get("/dashboard").text
    assert "Results for other nodes" in page
    assert "2 received images wait for their studies" in page

    assert waiting.post("/v1/inbox/release", json={}).json() == {"instances": 2}
    predicted(waiting, 3)


@pytest.mark.parametrize("uid", ["1.2/3", "x", 65 * "1", 5])
def test_wrong_study_is_not_released(waiting, uid):
    assert receive(waiting) == 0
    answer = waiting.post("/v1/inbox/release", json={"study_instance_uid": uid})
    assert answer.status_code == 422
    assert waiting.get("/v1/exchange").json()["inbox"]["instances"] == 1


def test_no_identifier_is_in_a_log_line_a_metric_or_an_error(waiting, caplog):
    caplog.set_level(logging.DEBUG)
    assert receive(waiting, **HEADER) == 0
    (row,) = instances(waiting.app.state.service.repository)
    assert str(dict(row)).count(CANARY) == 20  # all of them are kept until the results are sent
    output = waiting.get("/v1/exchange").text
    waiting.post("/v1/inbox/release", json={"study_instance_uid": HEADER["StudyInstanceUID"]})
    (found,) = predicted(waiting)
    assert found["identity"].keys() >= set(IDENTITY_FIELDS)
    assert json.dumps(found["identity"]).count(CANARY) == 6
    assert receive(waiting, **HEADER | {"Rows": 0}) == 0xC000
    output += waiting.get("/dashboard").text + waiting.get("/metrics").text
    output += waiting.post("/v1/inbox/release", json={"study_instance_uid": "1.2.77777777.", "x": CANARY}).text
    output += repr(waiting.app.state.service.repository.outbox.find())
    output += "".join(each.getMessage() for each in caplog.records if each.name.startswith("pneumoscope"))
    assert CANARY not in output
    assert "777777" not in output


def test_expired_identities_leave_no_identifier_of_received_instances(model):
    repository = PredictionRepository(None)
    settings = Settings(dicom=DicomConfiguration(quiet_seconds=0, destinations=(ARCHIVE,)))
    with TestClient(create_app(model, repository, settings), base_url="http://127.0.0.1:8000") as client:
        receive(client, **HEADER)
        predicted(client)
        receive(client, **HEADER | {"PixelData": bytes(10), "SOPInstanceUID": "1.2.77777777.1.2"})
        receive(client, **HEADER | {"Manufacturer": "pneumoscope", "SOPInstanceUID": "1.2.77777777.1.3"})
        predicted(client, 1, "/v1/unreadable")
        Retention(repository).expire_identities(timedelta(0))
        rows = exchange_rows(repository)
        assert len(rows) == 3 + 2 * 2  # received instances; a picture and a report of each image
        assert not any(CANARY in row or "777777" in row for row in rows)
        logged = audit_rows(repository)
        assert [each["event"] for each in logged].count(
            "instance_identity_removed"
        ) == 2  # a result of this service is recorded without
        (cancelled,) = (each for each in logged if each["event"] == "delivery_cancelled")
        assert (cancelled["user"], json.loads(cancelled["details"])) == (
            "retention", {"destination": "archive", "results": 4}
        )  # fmt: skip
        assert not any(CANARY in str(row) or "777777" in str(row) for row in logged)


def test_results_that_no_longer_hold_are_in_the_audit_log(waiting):
    receive(waiting, **HEADER)
    waiting.post("/v1/inbox/release", json={})
    (found,) = predicted(waiting)
    repository = waiting.app.state.service.repository
    delivered, unsent = repository.outbox.find()
    repository.outbox.record_delivered([delivered], datetime.now(UTC))
    assert waiting.delete(f"/v1/predictions/{found['id']}").status_code == 204
    logged = audit_rows(repository)
    ended = {each["event"]: each for each in logged if each["event"] in ("result_withdrawn", "result_superseded")}
    assert {
        event: (each["user"], each["prediction_id"], json.loads(each["details"])["object"])
        for event, each in ended.items()
    } == {
        "result_withdrawn": ("archive", found["id"], delivered.kind),
        "result_superseded": ("archive", found["id"], unsent.kind),
    }
    assert [each["event"] for each in logged].count("result_withdrawn") == 1
    assert not any(CANARY in str(row) or "777777" in str(row) for row in logged)


def test_lost_instance_is_in_the_audit_log(waiting):
    receive(waiting, **HEADER)
    repository = waiting.app.state.service.repository
    (instance,) = instances(repository)
    repository.inbox.files.remove(instance["image_sha256"])
    waiting.post("/v1/inbox/release", json={})
    deadline = time.monotonic() + 60
    while repository.inbox.status().instances:
        assert time.monotonic() < deadline, "it waits"
        time.sleep(0.05)
    ((event, user, sha256),) = ((each["event"], each["user"], each["image_sha256"]) for each in audit_rows(repository))
    assert (event, user, sha256) == ("instance_lost", "PACS", instance["image_sha256"])


def test_deleted_prediction_leaves_no_record_of_its_instance(waiting):
    receive(waiting, **HEADER)
    waiting.post("/v1/inbox/release", json={})
    (found,) = predicted(waiting)
    repository = waiting.app.state.service.repository
    assert waiting.delete(f"/v1/predictions/{found['id']}").status_code == 204
    assert {each.state for each in repository.outbox.find(("waiting", "cancelled"))} == {"cancelled"}
    assert not any(CANARY in row for row in exchange_rows(repository))


def audit_rows(repository):
    return [row._asdict() for row in read_rows(repository.engine)]


def instances(repository):
    with read_transaction(repository.engine) as connection:
        return connection.execute(select(received_instances)).mappings().all()


def exchange_rows(repository):
    """Return the rows of the inbox and the outbox as text."""
    with read_transaction(repository.engine) as connection:
        return [
            str(dict(row))
            for table in (received_instances, outbox)
            for row in connection.execute(table.select()).mappings()
        ]


def test_pseudonymized_service_keeps_no_identifier_of_a_received_instance(model):
    repository = PredictionRepository(None)
    settings = Settings(dicom=DicomConfiguration(quiet_seconds=0), pseudonymizer=Pseudonymizer(b"k" * 32))
    with TestClient(create_app(model, repository, settings), base_url="http://127.0.0.1:8000") as client:
        assert receive(client, **HEADER) == 0
        predicted(client)
        rows = exchange_rows(repository)
        assert len(rows) == 1
        assert CANARY not in rows[0]
        assert "777777" not in rows[0]
        receive(client, **HEADER)
        assert repository.inbox.status().instances == 0
