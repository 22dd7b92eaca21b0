"""Identities through the HTTP API: fields of uploads, filters, searches, corrections, studies and patients."""

import csv
import logging
import re
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from tests.service.conftest import dicom, images, png, post, problem

from pneumoscope.core.identity import IDENTITY_FIELDS
from pneumoscope.service.audit.verification import verify

CANARY = "CANARY"
# Fields that are checked when they are entered, and their DICOM keywords.
ENTERED = {"patient_birth_date": "PatientBirthDate", "study_date": "StudyDate", "patient_sex": "PatientSex"}
FIELDS = {"patient_id": "77", "patient_name": "Doe^Jane", "accession_number": "ACC1"}
HEADER = {
    "PatientID": "88", "PatientName": "Roe^Ann", "AccessionNumber": "ACC2", "StudyInstanceUID": "1.2.3", "StudyDate": "20260102",
}  # fmt: skip


def upload(client, *contents, **fields):
    response = client.post("/v1/predictions", files=images(*contents), data=fields)
    assert response.status_code == 201, response.text
    return response.json()["predictions"]


def stated(prediction):
    return {name: value for name, value in (prediction["identity"] or {}).items() if value}


def test_fields_of_a_form_are_the_identity_of_images_without_one(client):
    png_prediction, dicom_prediction = upload(client, png(110), dicom(**HEADER), **FIELDS)
    assert stated(png_prediction) == FIELDS
    assert stated(dicom_prediction)["patient_name"] == "Roe^Ann"
    assert stated(dicom_prediction)["patient_id"] == "88"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"patientid": "7"}, "unknown field 'patientid'"),
        ({"patient_id": ["7", "8"]}, "the field 'patient_id' is repeated"),
        ({"patient_id": "x" * 257}, "the field 'patient_id' is not a text of at most 256 characters"),
    ],
)
def test_invalid_fields_are_errors_and_nothing_is_stored(client, data, words):
    document = problem(client.post("/v1/predictions", files=images(png()), data=data), 422, "usage")
    assert words in document["detail"]
    assert client.get("/v1/predictions").json()["total"] == 0


FUTURE = f"{datetime.now(UTC) + timedelta(days=9):%Y-%m-%d}"  # even if midnight passes before the tests run
INVALID = [
    ({"patient_birth_date": "31 Feb"}, {"patient_birth_date": "not_a_date"}),
    ({"patient_birth_date": "2021-02-30"}, {"patient_birth_date": "not_a_date"}),
    ({"patient_birth_date": FUTURE}, {"patient_birth_date": "in_the_future"}),
    ({"study_date": FUTURE, "patient_sex": "X"}, {"study_date": "in_the_future", "patient_sex": "not_a_sex"}),
    ({"patient_birth_date": "2021-01-02", "study_date": "2021-01-01"}, {"study_date": "before_the_birth_date"}),
    (
        {"patient_birth_date": "1800-01-01", "study_date": "2026-01-01"},
        {"patient_birth_date": "too_long_before_the_study"},
    ),
]


@pytest.mark.parametrize(("data", "fields"), INVALID)
def test_impossible_dates_and_sexes_are_one_error_with_a_code_for_each_field(client, data, fields):
    document = problem(client.post("/v1/predictions", files=images(png()), data=data), 422, "invalid_identity")
    assert document["fields"] == fields
    assert client.get("/v1/predictions").json()["total"] == 0
    (found,) = upload(client, png(), **FIELDS)
    document = problem(client.put(f"/v1/predictions/{found['id']}/identity", json=data), 422, "invalid_identity")
    assert document["fields"] == fields
    assert not [value for value in data.values() if value in f"{document['detail']} {document['hint']}"]
    assert stated(client.get(f"/v1/predictions/{found['id']}").json()) == FIELDS


@pytest.mark.parametrize("sex", ["F", "m", "O", ""])
def test_dates_until_today_and_each_sex_are_accepted(client, sex):
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    (found,) = upload(client, png(), patient_id="7", patient_birth_date=today, study_date=today, patient_sex=sex)
    assert found["identity"]["patient_sex"] == sex.upper()


def test_values_of_a_header_that_are_not_understood_stay_when_another_field_is_corrected(client):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = post(client, dicom(**HEADER | {"PatientBirthDate": "1.1.21?", "PatientSex": "W"}))
    corrected = stated(found) | {"patient_name": "Roe^Anna"}
    assert client.put(f"/v1/predictions/{found['id']}/identity", json=corrected).status_code == 200
    corrected["patient_birth_date"] = "1.1.22?"
    document = problem(client.put(f"/v1/predictions/{found['id']}/identity", json=corrected), 422, "invalid_identity")
    assert document["fields"] == {"patient_birth_date": "not_a_date"}


def test_contradictory_age_is_in_json_and_csv(client):
    header = HEADER | {"PatientAge": "004Y"}
    (found,) = post(client, dicom(**header))
    assert "age" not in found["message"].lower().split()
    entered = stated(found) | {"patient_birth_date": "1990-01-02"}
    found = client.put(f"/v1/predictions/{found['id']}/identity", json=entered).json()
    words = "Contradictory age: 4 years stated, 36 years by birth date and study date"
    assert found["message"].startswith(words)
    assert found["conflicts"] == ["age_contradicts_dates"]
    (row,) = csv.DictReader(client.get("/worklist.csv").text.removeprefix("\ufeff").splitlines())
    assert row["message"].startswith(words)
    assert row["age_contradicts_dates"] == "True"


def test_dates_state_the_age_of_an_image_without_one(client):
    (found,) = upload(client, png(), patient_birth_date="2021-01-31", study_date="2026-01-31")
    assert found["age"] == {"years": pytest.approx(5, abs=0.01), "source": "entered", "stated": ""}


def test_predictions_are_filtered_by_study_and_patient(client):
    first, second, _ = *upload(client, png(), png(110), **FIELDS), *upload(client, png(120))
    for name in ("study_key", "patient_key"):
        found = client.get("/v1/predictions", params={name: first[name]}).json()["predictions"]
        assert {each["id"] for each in found} == {first["id"], second["id"]}
    problem(client.get("/v1/predictions", params={"study_key": "x"}), 422, "usage")


def test_search_finds_a_patient_and_pages(client):
    upload(client, png(), png(110), png(120), **FIELDS)
    upload(client, png(130), patient_name="Roe^Ann")
    body = {"text": "jane DOE"}
    first = client.post("/v1/predictions/search", json=body, params={"limit": 2}).json()
    rest = client.post("/v1/predictions/search", json=body, params={"limit": 2, "after": first["next"]}).json()
    assert (first["total"], len(first["predictions"]), len(rest["predictions"])) == (3, 2, 1)
    assert client.post("/v1/predictions/search", json={"text": "acc1"}).json()["total"] == 3
    narrowed = client.post("/v1/predictions/search", json=body, params={"decision": "uncertain"})
    assert narrowed.json()["total"] == 0
    problem(client.post("/v1/predictions/search", json={"text": ""}), 422, "usage")
    problem(client.post("/v1/predictions/search", content="text"), 415, "usage")


def test_study_has_its_images_its_decision_and_the_priors_of_the_patient(client):
    first, rejected = upload(client, png(180), png(30), **FIELDS)
    (prior,) = upload(client, png(150), patient_id="77", accession_number="ACC0", study_date="2020-01-01")
    document = client.get(f"/v1/studies/{first['study_key']}").json()
    assert [each["id"] for each in document["predictions"]] == [first["id"], rejected["id"]]
    study = document["study"]
    assert (study["decision"], study["probability"], study["images"]) == (first["decision"], first["probability"], 2)
    assert list(study["rejections"].values()) == [1]
    assert [each["study_key"] for each in document["priors"]] == [prior["study_key"]]
    patient = client.get(f"/v1/patients/{first['patient_key']}").json()
    assert [each["study_key"] for each in patient["studies"]] == [first["study_key"], prior["study_key"]]
    assert (patient["identity"]["patient_name"], patient["identity"]["accession_number"]) == ("Doe^Jane", "")


def test_identity_is_corrected_and_another_version_is_not_overwritten(client):
    (found,) = upload(client, png(), **FIELDS)
    path = f"/v1/predictions/{found['id']}/identity"
    etag = client.get(f"/v1/predictions/{found['id']}").headers["ETag"]
    corrected = client.put(path, json=FIELDS | {"patient_id": " 78\t"}, headers={"If-Match": etag})
    assert stated(corrected.json()) == FIELDS | {"patient_id": "78"}
    assert corrected.headers["ETag"] != etag
    problem(client.put(path, json=FIELDS, headers={"If-Match": etag}), 412, "conflict")
    problem(client.put(path, json={"name": "x"}), 422, "usage")
    problem(client.put(path, json={"patient_id": "x" * 257}), 422, "usage")
    problem(client.put(f"/v1/predictions/{'ab' * 16}/identity", json=FIELDS), 404, "unknown_name")
    assert client.put(path, json={}).json()["identity"] is None


def test_study_and_patient_are_deleted(client, app):
    first, _, later = *upload(client, png(), png(110), **FIELDS), *upload(client, png(120), patient_id="77")
    assert client.delete(f"/v1/studies/{first['study_key']}").status_code == 204
    problem(client.get(f"/v1/studies/{first['study_key']}"), 404, "unknown_name")
    assert client.delete(f"/v1/patients/{later['patient_key']}").status_code == 204
    problem(client.get(f"/v1/patients/{later['patient_key']}"), 404, "unknown_name")
    problem(client.delete(f"/v1/patients/{later['patient_key']}"), 404, "unknown_name")
    assert client.get("/v1/predictions").json()["total"] == 0
    assert verify(app.state.service.repository.engine).predictions == 0


def test_resent_image_with_a_corrected_header_is_the_same_prediction(client):
    (first,) = post(client, dicom(**HEADER))
    (second,) = post(client, dicom(**HEADER | {"PatientID": "89"}))
    assert (first["id"], second["identity"]["patient_id"]) == (second["id"], "89")
    assert first["patient_key"] != second["patient_key"]
    assert client.get("/v1/predictions").json()["total"] == 1


def test_entered_age_keeps_a_corrected_identity(client):
    """The stored file still has the former header."""
    (found,) = post(client, dicom(**HEADER))
    client.put(f"/v1/predictions/{found['id']}/identity", json=found["identity"] | {"patient_id": "89"})
    again = client.post(f"/images/{found['id']}", data={"age": "3"}, follow_redirects=False)
    id = again.headers["Location"].rpartition("/")[2]
    assert id != found["id"]
    assert client.get(f"/v1/predictions/{id}").json()["identity"]["patient_id"] == "89"


@pytest.mark.parametrize("field", IDENTITY_FIELDS)
def test_no_field_is_in_a_log_line_a_metric_an_error_or_a_url(client, caplog, field):
    caplog.set_level(logging.DEBUG)
    if field in ENTERED:  # a value that cannot be entered; a header can have any
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = dicom(**{ENTERED[field]: CANARY})
        caplog.clear()  # pydicom quoted the value when this test wrote the file
        (found,) = post(client, file)
        output = client.post("/v1/predictions", files=images(png()), data={field: CANARY}).text
        output += client.put(f"/v1/predictions/{found['id']}/identity", json={field: CANARY + "X"}).text
    else:
        (found,) = upload(client, png(), **{field: CANARY})
        output = ""
    assert stated(found)[field] == CANARY
    id, study = found["id"], found["study_key"]
    output += client.post("/v1/predictions", files=images(b"broken"), data={field: CANARY}).text
    output += client.post("/v1/predictions", files=images(png()), data={field: [CANARY, CANARY]}).text
    output += client.post("/v1/predictions", files=images(png()), data={field: CANARY + "x" * 300}).text
    output += client.get("/v1/predictions", params={"study_key": CANARY}).text
    for body in ({field: CANARY + "x" * 300}, {field: [CANARY]}, {field: CANARY, "other": CANARY}):
        output += client.put(f"/v1/predictions/{id}/identity", json=body).text
    output += client.put(f"/v1/predictions/{'ab' * 16}/identity", json={field: CANARY}).text
    output += client.post("/v1/predictions/search", json={"text": CANARY + "x" * 300}).text
    output += client.post("/v1/predictions/search", json={"text": CANARY}, params={"after": "x"}).text
    for path, data in (("/search", {"text": CANARY}), (f"/images/{id}/identity", {field: CANARY})):
        output += client.post(path, data=data, follow_redirects=False).headers["Location"]
    for value in (
        CANARY + "x" * 300,
        CANARY + "Y",
    ):  # the page repeats the form, as nothing that is entered may be lost
        page = client.post(f"/images/{id}/identity", data={field: value}, follow_redirects=False).text
        output += "".join(re.findall(r'<p class="error.*?</p>', page, re.DOTALL))
    output += client.post(f"/images/{'ab' * 16}/identity", data={field: CANARY}).text
    pages = (f"/images/{id}", f"/images/{id}/report", "/", "/worklist.csv", f"/v1/studies/{study}")
    assert all(CANARY in client.get(page).text for page in pages[:1])
    for page in pages:
        client.get(page)
    client.delete(f"/v1/studies/{study}")
    logged = [
        each.getMessage() for each in caplog.records if not each.name.startswith("httpx")
    ]  # the client of the test
    assert len(logged) > 10
    output += client.get("/metrics").text + "".join(logged)
    assert CANARY not in output


def test_age_by_the_dates_is_not_that_of_another_patient(client):
    """The form names patient 77; the header of the second file names another one."""
    dates = {"patient_birth_date": "2023-01-01", "study_date": "2026-01-01"}
    first, second = upload(client, png(110), dicom(**HEADER), patient_id="77", **dates)
    assert first["age"]["years"] == pytest.approx(3, abs=0.01)
    assert (second["age"], second["identity"]["patient_birth_date"]) == (None, "")


def test_dates_and_sex_are_normalized_as_those_of_headers(client):
    (found,) = upload(
        client, png(), patient_id="7", patient_birth_date="31.01.2021", study_date="20260131", patient_sex="f"
    )
    assert stated(found) == {
        "patient_id": "7", "patient_birth_date": "2021-01-31", "study_date": "2026-01-31", "patient_sex": "F",
    }  # fmt: skip
    assert found["age"]["years"] == pytest.approx(5, abs=0.01)


def test_form_of_an_outdated_page_does_not_undo_a_correction(client):
    (found,) = upload(client, png(), **FIELDS)
    page = client.get(f"/images/{found['id']}").text
    tag = re.search('name="tag" value="([^"]+)"', page)[1]
    client.put(f"/v1/predictions/{found['id']}/identity", json=FIELDS | {"patient_id": "78"})
    answer = client.post(f"/images/{found['id']}/identity", data=FIELDS | {"tag": tag, "study_description": "my text"})
    assert answer.status_code == 412
    assert "changed in the meantime" in answer.text
    assert "my text" in answer.text  # what was entered is not lost
    assert client.get(f"/v1/predictions/{found['id']}").json()["identity"]["patient_id"] == "78"


def test_form_is_saved_after_the_image_was_read_on_the_same_page(client):
    """A reading changes the entity tag of the prediction, but neither patient nor study."""
    (found,) = upload(client, png(), **FIELDS)
    tag = re.search('name="tag" value="([^"]+)"', client.get(f"/images/{found['id']}").text)[1]
    client.put(f"/v1/predictions/{found['id']}/review", json={"label": "pneumonia"})
    entered = FIELDS | {"tag": tag, "study_description": "CHEST"}
    answer = client.post(f"/images/{found['id']}/identity", data=entered, follow_redirects=False)
    assert answer.status_code == 303
    assert stated(client.get(f"/v1/predictions/{found['id']}").json())["study_description"] == "CHEST"


def test_age_form_does_not_override_a_stated_age(client):
    (found,) = post(client, dicom(**HEADER, PatientAge="070Y"))
    answer = client.post(f"/images/{found['id']}", data={"age": "3"}, follow_redirects=False)
    assert answer.status_code == 422
    assert client.get("/v1/predictions").json()["total"] == 1


def test_other_fields_of_a_search_do_not_reach_the_url(client):
    answer = client.post(
        "/search", data={"text": "x", "patient_name": CANARY, "order": "newest"}, follow_redirects=False
    )
    assert re.fullmatch("/\\?order=newest&search=[0-9a-f]{32}", answer.headers["Location"])


@pytest.mark.parametrize("text", [",", "^", " , = "])
def test_search_without_a_word_is_an_error(client, text):
    upload(client, png(), **FIELDS)
    problem(client.post("/v1/predictions/search", json={"text": text}), 422, "usage")


def test_python_api_prints_no_value_of_a_header(tmp_path):
    """pydicom warns of invalid values and quotes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = dicom(
            **HEADER | {"SOPInstanceUID": "CANARYUID", "PatientBirthDate": "CANARY", "PatientSex": "canary sex"}
        )
    (tmp_path / "file.dcm").write_bytes(file)
    script = "import sys, pneumoscope; print(pneumoscope.load_model().predict(sys.argv[1]).identity)"
    ran = subprocess.run(
        [sys.executable, "-c", script, "file.dcm"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert ran.stdout.startswith("Identity(patient_id, ")
    assert "CANARY" not in (ran.stdout + ran.stderr).upper()
