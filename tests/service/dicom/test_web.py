"""STOW-RS: a DICOMweb client stores instances, and the response lists those that were stored and those that were not."""

import io

import pydicom
import pytest
from fastapi.testclient import TestClient
from pydicom.uid import generate_uid
from tests.images import dicom
from tests.service.conftest import TOKEN, insert_token_of_service, predicted, problem, repository_with_token, served

from pneumoscope.core.errors import StorageError
from pneumoscope.service.app import create_app
from pneumoscope.service.settings import Settings

TYPE = 'multipart/related; type="application/dicom"; boundary=x'


def instance(level=100, **elements):
    return dicom(level, SOPInstanceUID=generate_uid(), PatientID="7", **elements)


def body(*contents, part_type=b"application/dicom"):
    parts = [b"--x\r\nContent-Type: " + part_type + b"\r\n\r\n" + content + b"\r\n" for content in contents]
    return b"".join(parts) + b"--x--\r\n"


def store(client, *contents, **headers):
    return client.post("/dicom-web/studies", content=body(*contents), headers={"Content-Type": TYPE} | headers)


def uid(content):
    return pydicom.dcmread(io.BytesIO(content)).file_meta.MediaStorageSOPInstanceUID


def items(answer, keyword):
    """Return (instance UID, failure reason) of the items of a sequence."""
    found = pydicom.Dataset.from_json(answer.json())
    return [(each.ReferencedSOPInstanceUID, each.get("FailureReason")) for each in found.get(keyword, [])]


def test_instances_are_stored_and_listed(client):
    first, second = instance(90), instance(110)
    answer = store(client, first, second)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/dicom+json")
    assert items(answer, "ReferencedSOPSequence") == [(uid(first), None), (uid(second), None)]
    assert items(answer, "FailedSOPSequence") == []
    found = predicted(client, 2)
    assert {each["path"] for each in found} == {uid(first), uid(second)}
    assert found[0]["identity"]["patient_id"] == "7"


def test_failed_instance_is_listed_with_its_reason(client):
    good, broken = instance(), instance(SOPClassUID="")
    answer = store(client, good, broken)
    assert answer.status_code == 202
    assert items(answer, "ReferencedSOPSequence") == [(uid(good), None)]
    assert items(answer, "FailedSOPSequence") == [(uid(broken), 0xC000)]
    assert client.get("/v1/unreadable").json()["total"] == 1


@pytest.mark.parametrize("content", [b"", b"no DICOM", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 300])
def test_only_failures_are_a_conflict(client, content):
    answer = store(client, content)
    assert answer.status_code == 409
    assert items(answer, "FailedSOPSequence") == [("", 0xC000)]


def test_service_without_room_reports_it(client, monkeypatch):
    def fail(*_, **__):
        raise StorageError("full")

    monkeypatch.setattr(type(client.app.state.service.repository.inbox), "submit", fail)
    sent = instance()
    answer = store(client, sent)
    assert (answer.status_code, items(answer, "FailedSOPSequence")) == (409, [(uid(sent), 0xA700)])


def test_duplicate_is_acknowledged_and_not_predicted_again(client, monkeypatch):
    sent = instance()
    assert store(client, sent).status_code == 200
    predicted(client)
    answer = store(client, sent)
    assert (answer.status_code, items(answer, "ReferencedSOPSequence")) == (200, [(uid(sent), None)])
    assert client.app.state.service.repository.inbox.status().instances == 0


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [
        ("multipart/form-data; boundary=x", body(b"a"), 415),
        ('multipart/related; type="application/dicom+xml"; boundary=x', body(b"a"), 415),
        ("application/dicom", b"a", 415),
        ("", b"a", 415),
        (TYPE, body(b"a", part_type=b"image/jpeg"), 415),
        ('multipart/related; type="application/dicom"', body(b"a"), 422),
        (TYPE, b"", 422),
        (TYPE, b"--x--\r\n", 422),
        (TYPE, body(b"a")[:-10], 422),
        (TYPE, b"nothing of the kind", 422),
        (TYPE, b"--x\r\nContent-Type: " + 5000 * b"a" + b"\r\n\r\n--x--\r\n", 422),
        (TYPE, body(b"a", b"b", b"c", b"d"), 413),
        (TYPE, body(bytes(200_000)), 413),
    ],
)
def test_malformed_request_stores_nothing(client, content_type, content, status):
    answer = client.post("/dicom-web/studies", content=content, headers={"Content-Type": content_type})
    problem(answer, status, {413: "too_large"}.get(status, "usage"))
    assert client.get("/v1/predictions").json()["total"] == 0


@pytest.mark.parametrize(
    ("accept", "status"),
    [("application/dicom+xml", 406), ("application/*;q=0", 406), ("*/*", 200), ("application/dicom+json", 200)],
)
def test_response_is_json_only(client, accept, status):
    assert store(client, instance(), Accept=accept).status_code == status


def test_client_needs_a_token(model):
    app = create_app(model, repository_with_token("scanner-1", "sender"), Settings(loopback=False), require_token=True)
    with TestClient(app) as client:
        problem(store(client, instance()), 401, "authentication")
        assert store(client, instance(), Authorization=f"Bearer {TOKEN}").status_code == 200


@pytest.mark.slow
def test_dicomweb_client_stores_instances(bundle, tmp_path):
    api = pytest.importorskip("dicomweb_client.api", reason="dicomweb-client is not installed")
    insert_token_of_service(tmp_path, "archive", role="sender")
    with served(bundle, tmp_path) as (_, client):
        web = api.DICOMwebClient(f"{client.base_url}/dicom-web", headers={"Authorization": f"Bearer {TOKEN}"})
        sent = [pydicom.dcmread(io.BytesIO(instance(level))) for level in (90, 110)]
        stored = web.store_instances(sent)
        assert [each.ReferencedSOPInstanceUID for each in stored.ReferencedSOPSequence] == [
            each.SOPInstanceUID for each in sent
        ]
