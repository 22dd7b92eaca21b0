"""Pseudonyms: the same for one value, not invertible without the key, and no original anywhere in the storage."""

import dataclasses
import hashlib
import hmac
import io
from datetime import timedelta

import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydicom.uid import UID
from tests import images
from tests.service.conftest import POINTS, post, prediction

from pneumoscope.core.errors import UsageError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import Rejection
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.pseudonyms import Pseudonymizer, read_key, require_no_pseudonyms
from pneumoscope.service.storage.repository import PredictionRepository

KEY = b"k" * 32
PSEUDONYMIZER = Pseudonymizer(KEY)
HEADER = {
    "PatientID": "PATIENT-0077", "IssuerOfPatientID": "HOSPITAL-A", "PatientName": "Canary^Jane", "PatientBirthDate": "20210203",
    "PatientSex": "SEX-CANARY", "AccessionNumber": "ACCESSION-1", "StudyInstanceUID": "1.2.3.77001", "StudyDate": "20250203",
    "StudyDescription": "DESCRIPTION-9", "SeriesInstanceUID": "1.2.3.77002", "SOPInstanceUID": "1.2.3.77003",
    "StationName": "STATION-3", "PatientAge": "004Y", "PatientComments": "COMMENT-4",
}  # fmt: skip
SECRETS = [value for value in HEADER.values() if len(value) > 4] + ["Canary", "2021-02-03", "2025-02-03", "secret name"]


def hmac_of(text, key=KEY):
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:20]


def test_pseudonym_is_an_hmac_of_a_number_and_of_each_word_of_a_name():
    assert PSEUDONYMIZER.number("a1 ") == hmac_of("a1 ")
    assert PSEUDONYMIZER.number("A1") != PSEUDONYMIZER.number("a1")
    words = ("word canary", "word zoe", "word 王", "word 小明")
    assert PSEUDONYMIZER.name("CANARY^Zoë=王^小明") == "^".join(map(hmac_of, words))
    assert (PSEUDONYMIZER.number(""), PSEUDONYMIZER.name("^^")) == ("", "")
    assert Pseudonymizer(b"j" * 32).number("a1") == hmac_of("a1", b"j" * 32) != hmac_of("a1")


def test_identity_has_only_pseudonyms_and_the_sex():
    identity = Identity(
        patient_id="0077", patient_name="Doe^Jane", patient_birth_date="2021-01-31", patient_sex="F", study_date="2026-01-01",
        study_description="chest", study_instance_uid="1.2.3", accession_number="7",
    )  # fmt: skip
    replaced = PSEUDONYMIZER.identity(identity)
    assert {"patient_id", "patient_name", "patient_sex", "study_instance_uid", "accession_number"} == set(
        replaced.stated()
    )
    assert (replaced.patient_sex, replaced.patient_id) == ("F", PSEUDONYMIZER.number("0077"))
    assert UID(replaced.study_instance_uid).is_valid
    assert replaced.study_instance_uid.startswith("2.25.")


def test_stored_image_has_the_same_pixels_and_another_hash_for_another_file():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    first, second = (PSEUDONYMIZER.image(pixels, source) for source in (b"a", b"b"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first))), pixels)
    assert first != second
    assert PSEUDONYMIZER.image(pixels, b"a") == first


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"k" * 31, 0o600, "31 bytes; the minimum is 32"),
        (b"k" * 32, 0o644, "readable by other users"),
        (None, 0, "No such file"),
    ],
    ids=["short", "readable", "missing"],
)
def test_key_file_is_checked(tmp_path, content, mode, words):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
        file.chmod(mode)
    with pytest.raises(UsageError, match=words) as caught:
        read_key(file)
    assert "kkk" not in str(caught.value)


def test_key_is_read_without_the_line_feed(tmp_path):
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    file.chmod(0o600)
    assert read_key(file) == KEY


@pytest.fixture
def pseudonymous(shared_maker, tmp_path, monkeypatch):
    for mode in ("reading_validation_mode", "writing_validation_mode"):  # for an invalid sex
        monkeypatch.setattr(pydicom.config.settings, mode, pydicom.config.IGNORE)
    folder = shared_maker.root / "pseudonymous"
    if not folder.exists():
        shared_maker.bundle(folder, gain=0.05, operating_points=POINTS)
    app = create_app(
        load_model(folder, threads=1), PredictionRepository(tmp_path / "data"),
        Settings(pseudonymizer=PSEUDONYMIZER),
    )  # fmt: skip
    with TestClient(app, base_url="http://127.0.0.1:8000") as opened:
        yield opened


def test_nothing_in_the_storage_or_a_response_names_the_patient(pseudonymous, tmp_path):
    """Neither the database with its journal, nor an image, nor a page."""
    file = images.dicom(100, 64, **HEADER)
    sent = pseudonymous.post(
        "/v1/predictions", files=[("images", ("secret name.dcm", file)), ("images", ("secret name", b"broken"))]
    )
    (found, broken) = sent.json()["predictions"]
    key = found["study_key"]
    pages = [
        "/",
        f"/images/{found['id']}",
        f"/images/{found['id']}/report",
        "/worklist.csv",
        f"/v1/studies/{key}",
        "/v1/unreadable",
    ]
    output = sent.text + "".join(pseudonymous.get(page).text for page in pages)
    stored = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert len(stored) >= 2
    for secret in SECRETS:
        assert secret not in output
        assert [path for path, content in stored.items() if secret.encode() in content or secret in str(path)] == []
    assert found["identity"]["patient_id"] == PSEUDONYMIZER.number("PATIENT-0077")
    assert (found["age"]["years"], found["image"]["format"], broken["decision"]) == (4, "DICOM", None)
    assert broken["failure"]["message"].startswith("the file cannot be read: ")
    assert "error" not in broken["failure"]["reason"]["parameters"]


def test_image_of_two_patients_has_their_pseudonyms_and_a_person_chooses_one(pseudonymous, tmp_path):
    first = {
        name: {"PatientID": "OTHER-0001", "PatientName": "Dove^Mary", "SOPInstanceUID": "1.2.3.88003"}.get(name, value)
        for name, value in HEADER.items()
    }
    post(pseudonymous, images.dicom(100, 64, **first))
    (found,) = post(pseudonymous, images.dicom(100, 64, **HEADER))
    (other,) = found["other_identities"]
    numbers = [each["identity"]["patient_id"] for each in (found, other)]
    assert numbers == [hmac_of("OTHER-0001"), hmac_of("PATIENT-0077")]
    for text in ("OTHER-0001", "dove", "PATIENT-0077", "canary"):
        assert pseudonymous.post("/v1/predictions/search", json={"text": text}).json()["total"] == 1
    decided = pseudonymous.put(f"/v1/predictions/{found['id']}/identity", json=other["identity"]).json()
    assert (decided["identity"], decided["other_identities"]) == (other["identity"], [])  # no pseudonyms of pseudonyms
    stored = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    secrets = [*SECRETS, "OTHER-0001", "Dove", "1.2.3.88003"]
    assert [each for each in secrets if any(each.encode() in content for content in stored.values())] == []


def test_text_that_a_rejection_quotes_is_masked(pseudonymous):
    (found,) = post(pseudonymous, images.dicom(100, 64, BodyPartExamined="DOE JANE 7"))
    assert found["rejection"] == {"code": "body_part_not_chest", "parameters": {"part": "xxx xxxx 9"}}


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ({"rule": "no adults"}, True),  # of the configuration
        ({"code": "decode_timeout"}, True),
        ({"syntax": "JPEG 2000 Image Compression"}, True),  # of the standard
        ({"syntax": "DOE JANE 7"}, False),
        ({"photometric": "DOE JANE 7"}, False),
    ],
)
def test_texts_that_are_not_of_the_header_are_not_masked(parameters, kept):
    rejected = dataclasses.replace(
        prediction(), decision="rejected", probability=None, interval=None, rejection=Rejection("blank", parameters)
    )
    masked = {name: value if kept else "xxx xxxx 9" for name, value in parameters.items()}
    assert PSEUDONYMIZER.prediction(rejected).rejection.parameters == masked


def test_prediction_with_a_rejecting_header_cannot_be_predicted_again(pseudonymous):
    """The stored image has no header that would reject it again."""
    (found,) = post(pseudonymous, images.dicom(100, 64, ViewPosition="LL"))
    assert found["rejection"]["code"] == "lateral_view"
    again = pseudonymous.post(f"/images/{found['id']}", data={"age": "3"}, follow_redirects=False)
    assert again.status_code == 422
    dates = {"patient_birth_date": "2023-01-01", "study_date": "2026-01-01"}
    pseudonymous.post(f"/images/{found['id']}/identity", data=dates)
    assert pseudonymous.get("/v1/predictions").json()["total"] == 1


def test_data_directory_has_the_pseudonyms_of_one_key(tmp_path):
    require_no_pseudonyms(tmp_path)
    with pytest.raises(UsageError, match="created without --pseudonymize"):
        PSEUDONYMIZER.require_key_of(tmp_path, is_empty=False)
    for _ in range(2):
        PSEUDONYMIZER.require_key_of(tmp_path, is_empty=True)
    with pytest.raises(UsageError, match="pseudonyms of another key"):
        Pseudonymizer(b"j" * 32).require_key_of(tmp_path, is_empty=False)
    with pytest.raises(UsageError, match="has pseudonyms"):
        require_no_pseudonyms(tmp_path)


def test_search_with_the_original_finds_the_pseudonym(pseudonymous):
    pseudonymous.post("/v1/predictions", files=[("images", ("secret file.dcm", images.dicom(100, 64, **HEADER)))])
    known = PSEUDONYMIZER.number("PATIENT-0077")
    for text, count in (
        ("PATIENT-0077", 1), ("canary", 1), ("Jane CANARY", 1), ("ACCESSION-1", 1), (known, 1), ("PATIENT-007", 0),
        ("jan", 0), ("7", 0),
        ("secret file.dcm", 1),
    ):  # fmt: skip
        assert pseudonymous.post("/v1/predictions/search", json={"text": text}).json()["total"] == count


def test_corrected_header_moves_the_image(pseudonymous):
    ids = [
        post(pseudonymous, images.dicom(100, 64, **HEADER | changes))[0]
        for changes in ({}, {"PatientID": "PATIENT-0078"})
    ]
    assert ids[0]["id"] == ids[1]["id"]
    assert ids[1]["identity"]["patient_id"] == PSEUDONYMIZER.number("PATIENT-0078")


def test_correction_of_one_field_keeps_the_pseudonyms_of_the_others(pseudonymous):
    (found,) = post(pseudonymous, images.dicom(100, 64, **HEADER))
    identity = found["identity"] | {"patient_name": "Canary^Janet", "patient_sex": "O"}
    changed = pseudonymous.put(f"/v1/predictions/{found['id']}/identity", json=identity).json()["identity"]
    assert changed["patient_name"] == PSEUDONYMIZER.name("Canary^Janet")
    assert changed["patient_sex"] == "O"
    assert changed | {"patient_name": "", "patient_sex": ""} == found["identity"] | {"patient_name": ""}


def test_image_without_its_header_is_predicted_again_with_an_age(pseudonymous):
    file = images.dicom(
        100, 64, **{name: value for name, value in HEADER.items() if name not in ("PatientAge", "PatientBirthDate")}
    )
    (found,) = post(pseudonymous, file)
    response = pseudonymous.post(f"/images/{found['id']}", data={"age": "3"}, follow_redirects=False)
    id = response.headers["Location"].rpartition("/")[2]
    again = pseudonymous.get(f"/v1/predictions/{id}").json()
    assert (again["age"]["years"], again["identity"]) == (3, found["identity"])
    assert (again["image"], again["probability"]) == (found["image"], found["probability"])
    assert pseudonymous.get(f"/v1/predictions/{id}/image.png").status_code == 200


@pytest.mark.parametrize("keep", [None, timedelta(days=31)])
def test_identities_cannot_be_removed_while_stored_files_contain_them(keep):
    with pytest.raises(UsageError, match="--keep-identities needs --keep of at most the same age"):
        Settings(keep=keep, keep_identities=timedelta(days=30))
