"""Results as DICOM objects: validators find no error, and the content is that of the prediction."""

import io
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from tests.conftest import LIMITS, POINTS
from tests.images import dicom, png
from tests.service.conftest import add, problem

from pneumoscope.core.population import Population
from pneumoscope.core.prediction_messages import notice
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.header import decode_header, encode_header, read_header
from pneumoscope.service.storage.repository import PredictionRepository

pytest.importorskip("highdicom", reason="[pacs] is not installed")
results = pytest.importorskip("pneumoscope.service.dicom.results")
report_module = pytest.importorskip("pneumoscope.service.dicom.report")
KINDS = ("secondary-capture", "structured-report")
STUDY = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "StudyID": "1", "StudyTime": "101500"}
PATIENT = {
    "PatientID": "7",
    "IssuerOfPatientID": "NTUH",
    "PatientSex": "F",
    "PatientBirthDate": "20200131",
    "PatientAge": "003Y",
}


def upload(client, **elements):
    """Send a DICOM file, and return it as a data set and its prediction."""
    file = dicom(
        **{"level": 100, "SOPInstanceUID": generate_uid(), "StudyDate": "20240401"} | STUDY | PATIENT | elements
    )
    (found,) = client.post("/v1/predictions", files=[("images", ("a.dcm", file))]).json()["predictions"]
    return pydicom.dcmread(io.BytesIO(file)), found


def fetch(client, found, kind):
    answer = client.get(f"/v1/predictions/{found['id']}/{kind}.dcm")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/dicom"), answer.text
    return answer.content


def run(program, *files):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([path, *map(str, files)], capture_output=True, timeout=60, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def errors(output):
    return [line for line in output.splitlines() if line.startswith("Error")]


def values(report, meaning):
    """Return the values of content items by the meaning of their concept."""
    found = []
    for item in report.iterall():
        if item.keyword != "ContentSequence":
            continue
        for content in item.value:
            concept = content.get("ConceptNameCodeSequence")
            if concept and concept[0].CodeMeaning == meaning:
                measured, coded = content.get("MeasuredValueSequence"), content.get("ConceptCodeSequence")
                found.append(
                    float(measured[0].NumericValue)
                    if measured
                    else coded[0].CodeMeaning
                    if coded
                    else content.get("TextValue")
                )
    return found


@pytest.mark.parametrize("elements", [{}, {"ViewPosition": "LL"}, {"PatientAge": "040Y"}, {"Laterality": "L"}])
def test_validators_find_no_error(client, tmp_path, elements):
    sent, found = upload(client, **elements)
    sent.save_as(tmp_path / "image.dcm")
    for kind in KINDS:
        (tmp_path / f"{kind}.dcm").write_bytes(fetch(client, found, kind))
        assert errors(run("dciodvfy", tmp_path / f"{kind}.dcm")) == []
    assert errors(run("dcentvfy", *(tmp_path / f"{name}.dcm" for name in ("image", *KINDS)))) == []
    assert (
        "Certainty of Finding" in run("dsrdump", tmp_path / "structured-report.dcm") or found["decision"] == "rejected"
    )


def test_report_states_the_prediction_and_refers_to_the_image(client):
    sent, found = upload(client)
    report = pydicom.dcmread(io.BytesIO(fetch(client, found, "structured-report")))
    expected = {"pneumonia": "Present", "no_pneumonia": "Absent", "uncertain": "Indeterminate"}[found["decision"]]
    assert values(report, "Presence of pneumonia by the model") == [expected]
    assert values(report, "Certainty of Finding") == [pytest.approx(100 * found["probability"], abs=1e-3)]
    assert values(report, "Algorithm Version") == [found["model"]["version"]]
    assert f"model SHA-256 {found['model']['sha256']}" in values(report, "Algorithm Parameters")
    references = [each.value for each in report.iterall() if each.keyword == "ReferencedSOPInstanceUID"]
    assert set(references) == {sent.SOPInstanceUID}
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")


def test_report_states_the_interval_of_the_probability():
    stored, _ = add(PredictionRepository(None))
    header = read_header(dicom(100, **STUDY))
    result = results.Result("1.2.3", stored, stored.created, header, ResultSettings())
    report = pydicom.dcmread(io.BytesIO(report_module.structured_report(result)))
    for meaning, value in (
        ("Certainty of Finding", 75), ("Lower limit of certainty of finding", 37.5), ("Upper limit of certainty of finding", 87.5)
    ):  # fmt: skip
        assert values(report, meaning) == [value]


def test_rejected_image_has_results_with_the_reason(client):
    _, found = upload(client, ViewPosition="LL")
    report = pydicom.dcmread(io.BytesIO(fetch(client, found, "structured-report")))
    assert values(report, "Presence of pneumonia by the model") == ["Not assessed"]
    assert values(report, "Reason of the decision") == ["Not a frontal view"]
    assert values(report, "Certainty of Finding") == []
    capture = pydicom.dcmread(io.BytesIO(fetch(client, found, "secondary-capture")))
    assert capture.SeriesDescription == "pneumoscope: Rejected"
    assert capture.pixel_array[640:].max() == 240  # the text below the image


def test_capture_shows_the_heatmap_and_the_text_of_the_prediction(client):
    _, found = upload(client)
    capture = pydicom.dcmread(io.BytesIO(fetch(client, found, "secondary-capture")))
    picture = Image.open(io.BytesIO(client.get(f"/v1/predictions/{found['id']}/heatmap.png").content)).convert("RGB")
    side = 640  # of the square image
    assert np.array_equal(capture.pixel_array[:side], np.asarray(picture)[:side])
    assert capture.pixel_array[side:].max() == 240  # the text
    assert (capture.BurnedInAnnotation, capture.ImageType[0]) == ("YES", "DERIVED")
    assert capture.ImageComments == notice(Population())


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 192", "王^小明"),
        ("GB18030", "王^小明"),
        ("ISO_IR 100", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_patient_and_study_are_those_of_the_image(client, character_set, name):
    sent, found = upload(
        client, SpecificCharacterSet=character_set, PatientName=name, AccessionNumber="A-1", StudyDescription="Thorax"
    )
    for kind in KINDS:
        result = pydicom.dcmread(io.BytesIO(fetch(client, found, kind)))
        assert str(result.PatientName) == name
        for keyword in (
            *PATIENT,
            *STUDY.keys() - {"SeriesInstanceUID"},
            "StudyDate",
            "AccessionNumber",
            "StudyDescription",
        ):
            if keyword == "PatientAge" and keyword not in result:
                continue
            assert result[keyword].value == sent[keyword].value, keyword
        assert result.SeriesInstanceUID != sent.SeriesInstanceUID


def test_objects_are_always_the_same(client, model):
    sent, found = upload(client)
    again = [fetch(client, found, kind) for kind in KINDS]
    assert again == [fetch(client, found, kind) for kind in KINDS]
    uids = {pydicom.dcmread(io.BytesIO(each)).SOPInstanceUID for each in again} | {sent.SOPInstanceUID}
    assert len(uids) == 3
    _, other = upload(client, level=110)
    assert pydicom.dcmread(io.BytesIO(fetch(client, other, KINDS[0]))).SOPInstanceUID not in uids


def test_capture_shows_the_stored_prediction_at_another_operating_point(shared_maker, tmp_path):
    """The service may have been started again at another operating point."""
    folder = shared_maker.root / "served"
    if not folder.exists():
        shared_maker.bundle(folder, gain=0.05, operating_points=POINTS, rejection_limits=LIMITS)
    pictures = []
    for point in ("balanced", "rule_out"):
        repository = PredictionRepository(tmp_path / "data")
        app = create_app(load_model(folder, threads=1, operating_point=point), repository)
        with TestClient(app, base_url="http://127.0.0.1:8000") as client:
            if not pictures:
                _, found = upload(client)
            pictures.append((fetch(client, found, "secondary-capture"), fetch(client, found, "structured-report")))
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientSex": "W"}, {"PatientSex": "m"}, {"PatientBirthDate": "12.03.1970"}, {"PatientBirthDate": "00000000"},
        {"StudyDate": "2024-01-01"}, {"StudyTime": "10:10:10"}, {"StudyTime": "25"}, {"PatientName": "A" * 70},
        {"AccessionNumber": "12345678901234567890"}, {"PatientOrientation": ["L", "Q"]}, {"Laterality": "X"},
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_irregular_header_has_results_without_its_invalid_values(client, elements):
    _, found = upload(client, **elements)
    for kind in KINDS:
        result = pydicom.dcmread(io.BytesIO(fetch(client, found, kind)))
        assert result.PatientID == "7"


def test_results_count_as_views(model):
    repository = PredictionRepository(None)
    with TestClient(create_app(model, repository), base_url="http://127.0.0.1:8000") as client:
        _, found = upload(client)
        fetch(client, found, "structured-report")
        assert [row.event for row in read_rows(repository.engine)] == ["predicted", "viewed"]


@pytest.mark.parametrize("kind", KINDS)
def test_image_without_a_study_has_no_objects(client, kind):
    for name, content in (("a.png", png(100)), ("a.dcm", dicom(110)), ("b.dcm", dicom(115, StudyInstanceUID="1.2"))):
        (found,) = client.post("/v1/predictions", files=[("images", (name, content))]).json()["predictions"]
        answer = problem(client.get(f"/v1/predictions/{found['id']}/{kind}.dcm"), 404, "unknown_name")
        assert "not DICOM with a study" in answer["hint"]


@pytest.mark.parametrize(
    ("name", "stated", "kept"),
    [
        ("OtherPatientIDsSequence", {"PatientID": "N-7", "TypeOfPatientID": "TEXT"}, True),
        ("OtherPatientIDsSequence", {"PatientID": "N-7"}, False),
        ("OtherPatientIDsSequence", {"PatientID": "N-7", "TypeOfPatientID": "CARD"}, False),
        ("IssuerOfAccessionNumberSequence", {"LocalNamespaceEntityID": "HIS"}, True),
        ("IssuerOfAccessionNumberSequence", {"UniversalEntityID": "1.2.3"}, False),
        ("IssuerOfAccessionNumberSequence", {}, False),
        ("ProcedureCodeSequence", {"CodeValue": "1", "CodingSchemeDesignator": "L", "CodeMeaning": "Chest"}, True),
        ("ProcedureCodeSequence", {"CodeValue": "1", "CodeMeaning": "Chest"}, False),
    ],
)  # fmt: skip
def test_items_of_sequences_are_copied_only_if_they_are_valid(name, stated, kept):
    item = Dataset()
    for keyword, value in stated.items():
        setattr(item, keyword, value)
    header = read_header(dicom(100, **STUDY | {name: [item]}))
    assert (name in header) == kept
    if kept:
        assert [{each.keyword: each.value for each in one} for one in header[name].value] == [stated]
        assert decode_header(encode_header(header))[name].value == header[name].value


def test_text_of_a_sequence_is_read_in_the_character_set_of_the_file():
    item = Dataset()
    item.PatientID, item.TypeOfPatientID, item.IssuerOfPatientID = "1", "TEXT", "醫院"
    header = read_header(
        dicom(100, **STUDY | {"SpecificCharacterSet": "ISO_IR 192", "OtherPatientIDsSequence": [item]})
    )
    assert header.OtherPatientIDsSequence[0].IssuerOfPatientID == "醫院"
