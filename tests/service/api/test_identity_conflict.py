"""The same pixels under two patients, through the HTTP API and the pages: both are found, and a person decides."""

import csv
import html
import io
import json
import logging
import re

import pytest
from tests import images
from tests.service.conftest import dicom, post, problem

from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.audit.verification import verify

FIRST = {
    "PatientID": "77", "PatientName": "Doe^Jane", "PatientBirthDate": "20220115", "PatientSex": "F", "AccessionNumber": "ACC1",
    "StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1", "SOPInstanceUID": "1.2.1.1.1", "StudyDate": "20260102",
}  # fmt: skip
SECOND = {
    "PatientID": "R-204", "PatientName": "Roe^Robert", "PatientBirthDate": "20220304", "PatientSex": "M",
    "AccessionNumber": "ACC-9", "StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.9.1", "SOPInstanceUID": "1.2.9.1.1",
    "StudyDate": "20260203",
}  # fmt: skip
MESSAGE = "The same image was received under two patients. Check whose it is, and choose the patient"


def two_patients(client):
    post(client, dicom(**FIRST))
    (found,) = post(client, dicom(**SECOND))
    return found


def choose(client, found, identity, etag):
    return client.put(f"/v1/predictions/{found['id']}/identity", json=identity, headers={"If-Match": etag})


def test_prediction_states_the_conflict_and_both_identities(client):
    found = two_patients(client)
    assert found["conflicts"] == ["image_of_two_patients"]
    (other,) = found["other_identities"]
    assert [found["identity"]["patient_name"], other["identity"]["patient_name"]] == ["Doe^Jane", "Roe^Robert"]
    assert other["identity"]["study_instance_uid"] == "1.2.9"
    assert client.get(f"/v1/predictions/{found['id']}").json()["other_identities"] == [other]


@pytest.mark.parametrize("text", ["jane", "77", "acc1", "robert", "r-204", "ACC-9"])
def test_search_by_either_patient_finds_the_image(client, text):
    found = two_patients(client)
    page = client.post("/v1/predictions/search", json={"text": text}).json()
    assert [each["id"] for each in page["predictions"]] == [found["id"]]


def test_studies_and_patients_list_the_image_with_their_own_identity(client):
    found = two_patients(client)
    (other,) = found["other_identities"]
    for each, number in ((found, "77"), (other, "R-204")):
        study = client.get(f"/v1/studies/{each['study_key']}").json()
        assert (study["study"]["identity"]["patient_id"], study["study"]["conflicts"]) == (
            number,
            ["image_of_two_patients"],
        )
        (listed,) = study["predictions"]
        assert (listed["id"], listed["identity"]["patient_id"]) == (found["id"], number)
        patient = client.get(f"/v1/patients/{each['patient_key']}").json()
        assert (patient["identity"]["patient_id"], len(patient["studies"])) == (number, 1)
        page = client.get("/v1/predictions", params={"patient_key": each["patient_key"]}).json()
        assert [(one["id"], one["identity"]["patient_id"]) for one in page["predictions"]] == [(found["id"], number)]


@pytest.mark.parametrize("chosen", ["first", "second"])
def test_person_chooses_a_patient_with_the_entity_tag(client, chosen):
    found = two_patients(client)
    stale = client.get(f"/v1/predictions/{found['id']}").headers["ETag"]
    post(client, dicom(**SECOND | {"StudyDescription": "corrected"}))  # after the client has read the prediction
    (other,) = client.get(f"/v1/predictions/{found['id']}").json()["other_identities"]
    identity = found["identity"] if chosen == "first" else other["identity"]
    problem(choose(client, found, identity, stale), 412, "conflict")
    etag = client.get(f"/v1/predictions/{found['id']}").headers["ETag"]
    decided = choose(client, found, identity, etag)
    assert decided.status_code == 200, decided.text
    assert (decided.json()["identity"], decided.json()["conflicts"], decided.json()["other_identities"]) == (
        identity,
        [],
        [],
    )
    assert decided.headers["ETag"] != etag
    for header in (FIRST, SECOND):
        assert post(client, dicom(**header))[0]["identity"] == identity
    assert client.get("/v1/predictions").json()["total"] == 1
    assert verify(client.app.state.service.repository.engine).predictions == 1


def test_values_of_the_chosen_header_are_not_checked_as_if_they_were_entered(client):
    (found,) = post(client, dicom(**FIRST))
    (found,) = post(client, dicom(**SECOND | {"PatientSex": "T", "StudyDate": ""}))
    identity = found["identity"]  # without a date, the header has no age, so that it has its own prediction
    assert identity["patient_sex"] == "T"
    (first,) = client.get("/v1/predictions", params={"study_key": found["other_identities"][0]["study_key"]}).json()[
        "predictions"
    ]
    decided = client.put(f"/v1/predictions/{first['id']}/identity", json=identity)
    assert (decided.status_code, decided.json()["conflicts"]) == (200, [])
    assert client.get(f"/v1/predictions/{found['id']}").json()["identity"] == identity


def test_image_is_not_deleted_with_one_patient_before_a_person_decides(client):
    found = two_patients(client)
    (other,) = found["other_identities"]
    for each in (found, other):
        for kind in ("study", "patient"):
            path = f"/v1/{'studies' if kind == 'study' else 'patients'}/{each[f'{kind}_key']}"
            document = problem(client.delete(path), 409, "image_of_two_patients")
            assert "under another patient" in document["detail"]
    client.put(f"/v1/predictions/{found['id']}/identity", json=other["identity"])
    assert client.delete(f"/v1/patients/{other['patient_key']}").status_code == 204
    assert client.get("/v1/predictions").json()["total"] == 0


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def test_pages_show_the_conflict_and_the_other_patient(client):
    found = two_patients(client)
    (other,) = found["other_identities"]
    pages = (
        "/",
        f"/?patient_key={other['patient_key']}",
        f"/images/{found['id']}",
        f"/images/{found['id']}/report",
    )
    for page in pages:
        text = text_of(client.get(page).text)
        assert all(each in text for each in (MESSAGE, "Doe Jane", "Roe Robert", "R-204", "77")), page
    chinese = client.get("/", headers={"Accept-Language": "zh-Hant"}).text
    assert "同一影像以兩位病人的身分收到" in chinese
    assert "另一位病人" in chinese


def test_prior_with_the_image_is_marked(client):
    found = two_patients(client)
    (own,) = post(client, images.dicom(130, **SECOND | {"StudyInstanceUID": "1.2.8", "SOPInstanceUID": "1.2.8.1"}))
    page = client.get(f"/images/{own['id']}").text
    assert f'href="/images/{found["id"]}"' in page
    assert "Image of two patients" in page
    assert "Doe" not in page  # the other patient is stated where the image is opened


def test_csv_has_the_conflict_and_the_other_identity(client):
    two_patients(client)
    lines = client.get("/worklist.csv").text.removeprefix("\ufeff")
    (row,) = csv.DictReader(io.StringIO(lines))
    assert (row["patient_id"], row["image_of_two_patients"]) == ("77", "True")
    assert [each["identity"]["patient_id"] for each in json.loads(row["other_identities"])] == ["R-204"]


def test_fhir_resource_of_each_study_has_its_own_patient(client):
    found = two_patients(client)
    (other,) = found["other_identities"]
    for id, number, uid in (
        (found["id"], "77", "1.2.1"),
        (found["id"] + found["study_key"], "77", "1.2.1"),
        (found["id"] + other["study_key"], "R-204", "1.2.9"),
    ):
        for kind in ("DiagnosticReport", "Observation"):
            response = client.get(f"/fhir/{kind}/{id}")
            assert response.status_code == 200, response.text
            document = response.json()
            assert (document["id"], document["contained"][0]["identifier"][0]["value"]) == (id, number)
            (study,) = document["imagingStudy" if kind == "DiagnosticReport" else "derivedFrom"]
            assert study["identifier"]["value"] == f"urn:oid:{uid}"
            assert MESSAGE in json.dumps(document)
            others = {"Doe", "Jane", "1.2.1"} if number != "77" else {"Roe", "Robert", "1.2.9"}
            assert not [each for each in others if f'"{each}"' in response.text]
    assert client.get(f"/fhir/DiagnosticReport/{found['id'] + 'ab' * 16}").status_code == 404


CANARY = "CANARY"


def test_second_identity_reaches_no_log_metric_error_or_address(client, caplog):
    caplog.set_level(logging.DEBUG)
    post(client, dicom(**FIRST))
    file = dicom(
        **SECOND | {"PatientID": CANARY, "PatientName": f"{CANARY}^A", "AccessionNumber": CANARY, "StationName": CANARY}
    )
    caplog.clear()  # pydicom quoted the values when this test wrote the file
    (found,) = post(client, file)
    (other,) = found["other_identities"]
    assert json.dumps(other["identity"]).count(CANARY) == 4
    output = client.delete(f"/v1/patients/{other['patient_key']}").text
    output += client.delete(f"/v1/studies/{found['study_key']}").text
    output += choose(client, found, other["identity"], '"old"').text
    for page in ("/", f"/images/{found['id']}", f"/images/{found['id']}/report", "/worklist.csv", "/dashboard"):
        answer = client.get(page)
        output += "".join(re.findall(r'(?:href|action|src)="[^"]*"', answer.text)) + str(dict(answer.headers))
    form = {**other["identity"], "tag": "old"}
    page = client.post(f"/images/{found['id']}/identity", data={k: v for k, v in form.items() if v}).text
    output += "".join(re.findall(r'<p class="error.*?</p>', page, re.DOTALL))
    output += "".join(each.details for each in audit_rows(client))
    client.put(f"/v1/predictions/{found['id']}/identity", json=found["identity"])
    output += "".join(each.details for each in audit_rows(client)) + client.get("/metrics").text
    logged = [each.getMessage() for each in caplog.records if not each.name.startswith("httpx")]
    assert len(logged) >= 4
    assert CANARY not in output + "".join(logged)
    assert CANARY not in client.get("/v1/predictions").text


def audit_rows(client):
    return list(read_rows(client.app.state.service.repository.engine))
