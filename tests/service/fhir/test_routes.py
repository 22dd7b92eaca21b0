"""The FHIR interface of the service: reading, versions, errors, roles, signatures, and the codes of the Structured Report."""

import base64
import io
import json
from email.utils import parsedate_to_datetime

import pydicom
import pytest
from fastapi.testclient import TestClient
from tests.images import dicom
from tests.service.conftest import TOKEN, png, post, repository_with_token
from tests.service.fhir.test_resources import assert_valid

from pneumoscope.service.app import create_app
from pneumoscope.service.dicom.configuration import DicomConfiguration
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.repository import PredictionRepository

SECRET = bytes(range(32))
PATHS = ("DiagnosticReport", "Observation")
STUDY = {
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.4",
    "PatientID": "7",
    "PatientName": "DOE^JANE",
    "PatientAge": "003Y",
}
UNKNOWN = "ab" * 16


def outcome(response, status, code):
    """Check that a response is an OperationOutcome, and return its issue."""
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/fhir+json")
    document = response.json()
    assert_valid(document)
    (issue,) = document["issue"]
    assert issue["details"]["coding"][0]["code"] == code
    return issue


@pytest.mark.parametrize("kind", PATHS)
def test_prediction_is_read_as_a_resource(client, kind):
    (found,) = post(client, png())
    response = client.get(f"/fhir/{kind}/{found['id']}")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/fhir+json")
    document = response.json()
    assert_valid(document)
    assert (document["resourceType"], document["id"], document["status"]) == (kind, found["id"], "preliminary")
    assert response.headers["ETag"] == f'W/"{document["meta"]["versionId"]}"'
    assert "Signature" not in response.headers


def test_version_and_time_change_with_the_identity(client):
    (found,) = post(client, dicom(100, **STUDY))
    first = client.get(f"/fhir/Observation/{found['id']}")
    assert client.get(f"/fhir/Observation/{found['id']}").headers["ETag"] == first.headers["ETag"]
    client.put(f"/v1/predictions/{found['id']}/identity", json={"patient_id": "8", "study_instance_uid": "1.2.9"})
    second = client.get(f"/fhir/Observation/{found['id']}")
    assert second.headers["ETag"] != first.headers["ETag"]
    assert second.json()["meta"]["lastUpdated"] > first.json()["meta"]["lastUpdated"]
    written = parsedate_to_datetime(second.headers["Last-Modified"])
    assert second.json()["meta"]["lastUpdated"].startswith(written.strftime("%Y-%m-%dT%H:%M:%S"))


def test_client_that_has_the_version_gets_no_body(client):
    (found,) = post(client, png())
    path = f"/fhir/DiagnosticReport/{found['id']}"
    etag = client.get(path).headers["ETag"]
    response = client.get(path, headers={"If-None-Match": f'"other", {etag}'})
    assert (response.status_code, response.content, response.headers["ETag"]) == (304, b"", etag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_unknown_and_deleted_predictions_have_different_statuses(client):
    (found,) = post(client, png())
    client.delete(f"/v1/predictions/{found['id']}")
    for kind in PATHS:
        assert outcome(client.get(f"/fhir/{kind}/{found['id']}"), 410, "gone")["code"] == "deleted"
        for id in (UNKNOWN, "another-kind.of.id"):
            assert outcome(client.get(f"/fhir/{kind}/{id}"), 404, "unknown_name")["code"] == "not-found"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", f"/fhir/Patient/{UNKNOWN}", {}, 404, "unknown_name"),
        ("GET", "/fhir/Observation", {}, 404, "unknown_name"),
        ("POST", f"/fhir/Observation/{UNKNOWN}", {}, 405, "usage"),
        ("GET", f"/fhir/Observation/{'a' * 65}", {}, 422, "usage"),
        ("GET", f"/fhir/Observation/{UNKNOWN}?patient=7", {}, 422, "usage"),
        ("GET", f"/fhir/Observation/{UNKNOWN}?_format=xml", {}, 406, "usage"),
        ("GET", "/fhir/metadata", {"Accept": "application/fhir+xml"}, 406, "usage"),
        ("GET", "/fhir/metadata", {"Accept": "text/html, application/*;q=0"}, 406, "usage"),
        ("GET", "/fhir/metadata", {"Host": "attacker.example"}, 403, "forbidden"),
    ],
)
def test_errors_are_operation_outcomes(client, method, path, headers, status, code):
    outcome(client.request(method, path, headers=headers), status, code)


def test_unexpected_error_is_an_operation_outcome_without_its_message(client, monkeypatch):
    def fail(*_):
        raise RuntimeError("DOE^JANE")

    monkeypatch.setattr("pneumoscope.service.fhir.routes.was_deleted", fail)
    response = client.get(f"/fhir/Observation/{UNKNOWN}")
    assert outcome(response, 500, "internal_error")["code"] == "exception"
    assert "DOE" not in response.text


@pytest.mark.parametrize(
    "accept", ["application/fhir+json; fhirVersion=4.0", "application/json", "*/*", "text/html, application/*;q=0.5"]
)
def test_json_is_negotiated(client, accept):
    assert client.get("/fhir/metadata", headers={"Accept": accept}).status_code == 200
    assert client.get("/fhir/metadata?_format=json", headers={"Accept": "text/html"}).status_code == 200


def test_capability_statement_lists_the_resources(client):
    document = client.get("/fhir/metadata").json()
    assert_valid(document)
    listed = {
        each["type"]: [interaction["code"] for interaction in each["interaction"]]
        for each in document["rest"][0]["resource"]
    }
    assert (document["fhirVersion"], listed) == ("4.0.1", {kind: ["read"] for kind in PATHS})


def test_reader_may_read_and_views_are_logged(model):
    app = create_app(model, repository_with_token("me", "reader"), Settings(loopback=False), require_token=True)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app) as client:
        (found,) = client.post("/v1/predictions", files=[("images", ("a", png()))], headers=bearer).json()[
            "predictions"
        ]
        assert outcome(client.get(f"/fhir/Observation/{found['id']}"), 401, "authentication")["code"] == "login"
        assert client.get(f"/fhir/Observation/{found['id']}", headers=bearer).status_code == 200
        with app.state.service.repository.engine.connect() as connection:
            rows = connection.exec_driver_sql('SELECT "user", event, prediction_id FROM audit_log').all()
        assert ("me", "viewed", found["id"]) in [tuple(row) for row in rows]


def test_sender_may_not_read(model):
    app = create_app(model, repository_with_token("me", "sender"), Settings(loopback=False), require_token=True)
    with TestClient(app) as client:
        response = client.get(f"/fhir/Observation/{UNKNOWN}", headers={"Authorization": f"Bearer {TOKEN}"})
        outcome(response, 403, "forbidden")


@pytest.fixture
def signing_client(model, tmp_path):
    file = tmp_path / "secret"
    file.write_text(f"whsec_{base64.b64encode(SECRET).decode()}")
    file.chmod(0o600)
    app = create_app(model, PredictionRepository(None), Settings(dicom=DicomConfiguration(fhir_secret_file=file)))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as opened:
        yield opened, file


def test_resource_is_signed_as_rfc_9421_says(signing_client):
    signatures = pytest.importorskip("http_message_signatures", reason="http-message-signatures is not installed")

    class Keys(signatures.HTTPSignatureKeyResolver):
        def resolve_public_key(self, key_id):
            assert key_id == "pneumoscope"
            return SECRET

    client, _ = signing_client
    (found,) = post(client, png())
    response = client.get(f"/fhir/Observation/{found['id']}")
    verifier = signatures.HTTPMessageVerifier(
        signature_algorithm=signatures.algorithms.HMAC_SHA256, key_resolver=Keys()
    )
    (result,) = verifier.verify(response)
    assert {'"@status"', '"content-digest"', '"etag"', '"last-modified"', '"content-type"'} <= set(
        result.covered_components
    )
    response.headers["ETag"] = 'W/"another"'
    with pytest.raises(signatures.InvalidSignature):
        verifier.verify(response)


def test_nothing_unsigned_is_sent_if_the_secret_is_gone(signing_client):
    client, file = signing_client
    (found,) = post(client, png())
    file.unlink()
    issue = outcome(client.get(f"/fhir/Observation/{found['id']}"), 503, "storage")
    assert str(file) not in json.dumps(issue)


@pytest.mark.parametrize("elements", [{}, {"ViewPosition": "LL"}])
def test_codes_are_those_of_the_structured_report(client, elements):
    """A receiver that knows one knows the other."""
    pytest.importorskip("highdicom", reason="[pacs] is not installed")
    (found,) = post(client, dicom(100, **STUDY, **elements))
    report = pydicom.dcmread(io.BytesIO(client.get(f"/v1/predictions/{found['id']}/structured-report.dcm").content))
    stated = {(item.CodingSchemeDesignator, item.CodeValue, item.CodeMeaning) for item in _codes(report)}
    observation = client.get(f"/fhir/Observation/{found['id']}").json()
    systems = {
        "http://snomed.info/sct": "SCT",
        "http://dicom.nema.org/resources/ontology/DCM": "DCM",
        "urn:pneumoscope:codes": "99PNEUMOSCOPE",
    }
    concepts = [
        observation["code"],
        *([observation["valueCodeableConcept"]] if not elements else [observation["dataAbsentReason"]]),
    ]
    concepts += [
        each["code"]
        for each in observation["component"]
        if "valueQuantity" in each and "threshold" not in str(each["code"])
    ]
    for concept in concepts:
        for coding in concept["coding"]:
            if coding["system"] in systems:
                assert (systems[coding["system"]], coding["code"], coding["display"]) in stated
    assert observation["contained"][-1]["identifier"][0]["value"].removeprefix("urn:oid:") in {
        str(each.value) for each in report.iterall() if each.VR == "UI"
    }


def _codes(report):
    return [
        item
        for element in report.iterall()
        if element.VR == "SQ"
        for item in element.value
        if "CodeValue" in item and "CodeMeaning" in item
    ]
