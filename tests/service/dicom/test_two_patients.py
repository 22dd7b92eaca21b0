"""Results, events and DICOMweb of the same pixels under two patients: each study has those of its own patient."""

import base64
import dataclasses
import json
from datetime import timedelta

import pydicom
import pytest
from tests.images import dicom as dicom_file
from tests.service.conftest import predicted
from tests.service.storage.identities import store

from pneumoscope.core.prediction import PatientAge
from pneumoscope.imaging.header_identity import read_identity
from pneumoscope.inference.model import load_model
from pneumoscope.service.rendering import as_of_header
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.storage.tables import METADATA

pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
delivery_tests = pytest.importorskip("tests.service.dicom.test_delivery")
webhook_tests = pytest.importorskip("tests.service.dicom.test_webhooks")
Archive = delivery_tests.Archive
configuration = delivery_tests.configuration
kinds = delivery_tests.kinds
receive = delivery_tests.receive
service = delivery_tests.service
wait_for_delivery = delivery_tests.wait_for_delivery
Receiver = webhook_tests.Receiver
wait_for_events = webhook_tests.wait_for_events
webhook = webhook_tests.webhook
webhook_configuration = webhook_tests.configuration
pytestmark = pytest.mark.slow  # objects are exchanged with another node
FIRST = {
    "PatientID": "77-F", "PatientName": "Doe^Jane", "PatientSex": "F", "AccessionNumber": "ACC1", "StudyInstanceUID": "1.2.111",
    "SeriesInstanceUID": "1.2.111.1", "SOPInstanceUID": "1.2.111.1.1", "PatientAge": "003Y", "StationName": "DX1",
}  # fmt: skip
SECOND = {
    "PatientID": "R-204", "PatientName": "Roe^Robert", "PatientSex": "M", "AccessionNumber": "ACC-9",
    "StudyInstanceUID": "1.2.999", "SeriesInstanceUID": "1.2.999.1", "SOPInstanceUID": "1.2.999.1.1", "PatientAge": "004Y",
    "StationName": "DX9",
}  # fmt: skip
PAIR = (FIRST, SECOND)
SAME = ("PatientAge",)  # short values, which UIDs and times may contain


@pytest.fixture
def archive():
    opened = Archive().start()
    yield opened
    opened.stop()


@pytest.fixture
def receiver(monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.outbox_records._FIRST_DELAY", timedelta(milliseconds=50))
    opened = Receiver().start()
    yield opened
    opened.stop()


def of_study(archive, header):
    uid = header["StudyInstanceUID"]
    return [each for copies in archive.stored.values() for each in copies if each.StudyInstanceUID == uid]


def test_results_of_each_study_state_their_own_patient_and_nothing_of_the_other(model, archive, drawn):
    with service(model, configuration(archive)) as (client, repository):
        receive(client, **FIRST)
        wait_for_delivery(repository, 2)
        receive(client, **SECOND)
        wait_for_delivery(repository, 4)
        (found,) = predicted(client)
        assert found["conflicts"] == ["image_of_two_patients"]
        assert kinds(archive) == ["secondary_capture"] * 2 + ["structured_report"] * 2
        for header, other in (PAIR, PAIR[::-1]):
            results = of_study(archive, header)
            assert {each.SOPClassUID for each in results} == {
                each.SOPClassUID for copies in archive.stored.values() for each in copies
            }
            for each in results:
                assert {name: str(each[name].value) for name in ("PatientID", "PatientName", "AccessionNumber")} == {
                    name: header[name] for name in ("PatientID", "PatientName", "AccessionNumber")
                }
                references = {one.value for one in each.iterall() if one.keyword == "ReferencedSOPInstanceUID"}
                assert header["SOPInstanceUID"] in references
                if "PixelData" in each:
                    del each.PixelData
                text = str(each)
                assert [
                    value for name, value in other.items() if name not in (*SAME, "PatientSex") and value in text
                ] == []
        texts = " ".join(drawn)
        assert drawn
        assert [value for each in PAIR for name, value in each.items() if len(value) > 3 and value in texts] == []


def test_result_of_the_second_patient_states_no_age_of_the_first(model, archive, drawn):
    """A person has corrected the birth date of the first patient, so that it contradicts the age."""
    with service(model, configuration(archive)) as (client, repository):
        receive(client, **FIRST)
        wait_for_delivery(repository, 2)
        (found,) = predicted(client)
        dates = {"patient_birth_date": "2010-01-01", "study_date": "2026-01-01"}
        corrected = client.put(f"/v1/predictions/{found['id']}/identity", json=found["identity"] | dates)
        assert corrected.json()["conflicts"] == ["age_contradicts_dates"]
        drawn.clear()
        receive(client, **SECOND)
        wait_for_delivery(repository, 4)
    assert drawn
    assert not any("Contradictory age" in text or "16 years" in text for text in drawn)


def test_rejected_result_of_the_second_patient_states_its_own_age(child_bundle, archive, drawn):
    with service(load_model(child_bundle, threads=1), configuration(archive)) as (client, repository):
        receive(client, 180, **FIRST | {"PatientAge": "030Y"})
        wait_for_delivery(repository, 2)
        assert "age of 30 years" in drawn[-1]
        receive(client, 180, **SECOND | {"PatientAge": "044Y"})
        wait_for_delivery(repository, 4)
    assert "age of 44 years" in drawn[-1]
    assert "30 years" not in drawn[-1]


def test_age_that_is_entered_for_the_first_patient_replaces_no_result_of_the_second(child_bundle, archive):
    model = load_model(child_bundle, threads=1, require_age="always")
    with service(model, configuration(archive)) as (client, repository):
        for count, header in enumerate(PAIR, 1):
            receive(client, 180, **header | {"PatientAge": ""})
            wait_for_delivery(repository, 2 * count)
        (found,) = predicted(client)
        answer = client.post(f"/images/{found['id']}", data={"age": "3"}, headers={"Origin": "http://127.0.0.1:8000"})
        assert answer.status_code == 200, answer.text
        wait_for_delivery(repository, 7)
        assert len(of_study(archive, FIRST)) == 5  # two results, a rejection note, and two new results
        assert len(of_study(archive, SECOND)) == 2


def test_event_of_each_study_reports_its_own_patient_and_report(model, receiver, tmp_path):
    secret_file = tmp_path / "webhook-secret"
    secret_file.write_text(f"whsec_{base64.b64encode(bytes(range(32))).decode()}\n")
    secret_file.chmod(0o600)
    webhooks = webhook_configuration(webhook(receiver, secret_file, identifiers=True))
    with service(model, webhooks) as (client, repository):
        for count, header in enumerate(PAIR, 1):
            receive(client, **header)
            wait_for_events(repository, receiver, count)
            data = receiver.events[-1]["data"]
            assert data["identifiers"]["patient_id"] == header["PatientID"]
            assert data["identifiers"]["study_instance_uid"] == header["StudyInstanceUID"]
            report = client.get(f"/fhir/DiagnosticReport/{data['report_id']}").json()
            assert report["contained"][0]["identifier"][0]["value"] == header["PatientID"]
            assert report["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{header['StudyInstanceUID']}"
            assert data["report_ids"] == [data["report_id"]]
            assert data["prediction_ids"] == [data["prediction_id"]]
        first, second = (json.dumps(each["data"]) for each in receiver.events)
    assert not [value for name, value in SECOND.items() if len(value) > 4 and value in first]
    assert not [value for name, value in FIRST.items() if len(value) > 4 and value in second]


def test_event_and_report_of_the_second_study_state_the_rejection_by_its_header(child_bundle, receiver, tmp_path):
    secret_file = tmp_path / "webhook-secret"
    secret_file.write_text(f"whsec_{base64.b64encode(bytes(range(32))).decode()}\n")
    secret_file.chmod(0o600)
    webhooks = webhook_configuration(webhook(receiver, secret_file, identifiers=True))
    with service(load_model(child_bundle, threads=1), webhooks) as (client, repository):
        for count, header in enumerate((FIRST, SECOND | {"PatientAge": "030Y"}), 1):
            receive(client, 180, **header)
            wait_for_events(repository, receiver, count)
        first, second = (each["data"] for each in receiver.events)
        assert (first["decision"] != "rejected", first["rejections"]) == (True, {})
        assert (second["decision"], second["rejections"]) == ("rejected", {"outside_age_range": 1})
        report = client.get(f"/fhir/Observation/{second['report_id']}").json()
        assert "dataAbsentReason" in report
        assert report["contained"][0]["identifier"][0]["value"] == "R-204"
        assert client.get(f"/fhir/Observation/{second['prediction_id']}").json()["contained"] == report["contained"]
        report = client.get(f"/fhir/Observation/{first['report_id']}").json()
        assert "valueCodeableConcept" in report
        crossed = first["prediction_id"] + second["study_key"], second["prediction_id"] + first["study_key"]
        assert [client.get(f"/fhir/Observation/{id}").status_code for id in crossed] == [404, 404]


def header_of(**changes):
    header = pydicom.Dataset()
    for name, value in (FIRST | changes).items():
        setattr(header, name, value)
    return header


def test_result_states_the_age_of_a_newborn_and_not_that_of_the_other_patient(repository):
    identity = read_identity(header_of())
    stored = store(repository, "a", identity, age=PatientAge(30.0), code="outside_age_range")
    rejection = dataclasses.replace(stored.rejection, parameters={"age": 30.0, "minimum": 1.0})
    stored = dataclasses.replace(stored, rejection=rejection)
    shown = as_of_header(stored, header_of(**SECOND | {"PatientAge": "000D"}))
    assert (shown.age.years, shown.rejection.parameters["age"], shown.rejection.parameters["minimum"]) == (
        0.0,
        0.0,
        1.0,
    )


def test_result_of_another_instance_of_the_patient_states_the_entered_age(repository):
    stored = store(repository, "a", read_identity(header_of(PatientAge="")), age=PatientAge(3, "entered"))
    same = as_of_header(stored, header_of(PatientAge="", SOPInstanceUID="1.2.111.1.2"))
    assert (same.age, same.identity.sop_instance_uid) == (PatientAge(3, "entered"), "1.2.111.1.2")
    assert as_of_header(stored, header_of(**SECOND | {"PatientAge": ""})).age is None


def test_image_with_an_entered_age_only_is_predicted_without_it_for_another_patient(child_bundle):
    model = load_model(child_bundle, threads=1, require_age="always")
    with service(model, configuration(Archive())) as (client, repository):
        file = {"images": ("a.dcm", dicom_file(180, **FIRST | {"PatientAge": ""}))}
        (found,) = client.post("/v1/predictions?age=3", files=file).json()["predictions"]
        assert found["decision"] != "rejected"
        other = {**found["identity"], "patient_id": "R-204", "patient_name": "Roe^Robert"}
        assert client.put(f"/v1/predictions/{found['id']}/identity", json=other).status_code == 200
        (current,) = repository.find(Filter(latest=True)).predictions
        assert (current.rejection.code, current.age, current.identity.patient_id) == ("age_required", None, "R-204")
        assert (
            client.put(f"/v1/predictions/{current.id}/identity", json=other | {"station_name": "DX2"}).status_code
            == 200
        )
        assert repository.find(Filter()).total == 2


def test_search_and_retrieval_offer_the_stored_file_in_its_own_study_only(model):
    """The file of the second instance is not stored, as its pixels are: that of the first one names another patient."""
    with service(model, configuration(Archive())) as (client, _):
        for header in PAIR:
            receive(client, reply_to="", **header)
            predicted(client)
        found = [pydicom.Dataset.from_json(each) for each in client.get("/dicom-web/studies").json()]
        assert [(each.StudyInstanceUID, each.PatientID) for each in found] == [("1.2.111", "77-F")]
        assert client.get("/dicom-web/studies", params={"PatientID": "R-204"}).json() == []
        assert client.get("/dicom-web/studies/1.2.999/metadata").status_code == 404
        assert client.get("/dicom-web/studies/1.2.111/metadata").status_code == 200


def test_expired_identities_leave_no_header_of_either_patient(model, archive):
    with service(model, configuration(archive)) as (client, repository):
        for count, header in enumerate(PAIR, 1):
            receive(client, **header)
            wait_for_delivery(repository, 2 * count)
        values = [value for header in PAIR for value in header.values() if len(value) > 4]
        assert [value for value in values if value not in stored_text(repository)] == []
        assert Retention(repository).expire_identities(timedelta(0)) == 1
        assert [value for value in values if value in stored_text(repository)] == []


def stored_text(repository):
    """Return all values in the database."""
    with repository.storage.read_transaction() as connection:
        return "\n".join(str(row) for table in METADATA.sorted_tables for row in connection.execute(table.select()))
