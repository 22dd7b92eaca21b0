"""FHIR resources are valid by the R4 schema of HL7 and by fhir.resources, and state what the prediction states."""

import dataclasses
import importlib
import json
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
from tests.service.conftest import prediction

from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import ImageInfo, ModelInfo, Rejection
from pneumoscope.service.fhir.resources import capability_statement, operation_outcome, resource
from pneumoscope.service.storage.pseudonyms import Pseudonymizer
from pneumoscope.service.storage.records import StoredPrediction

R4 = json.loads((Path(__file__).parent / "r4.schema.json").read_text(encoding="utf-8"))
HAS_MODELS = find_spec("fhir") is not None
NOTICE = "Not a medical device <b>"
CREATED = "2026-01-31T09:30:00.123456Z"
ID = "0123456789abcdef" * 2
IDENTITY = Identity(
    patient_id="P-1", issuer_of_patient_id="HOSPITAL", patient_name="Wang^XiaoMing^M^Dr^Jr=王^小明", patient_sex="F",
    patient_birth_date="2021-03-04", study_instance_uid="1.2.840.3", accession_number="A-7", study_date="2026-01-30",
)  # fmt: skip


def stored(decision="pneumonia", identity=IDENTITY, **fields):
    probability = None if decision == "rejected" else 0.873456
    found = prediction(probability, decision)
    if decision == "rejected":
        found = dataclasses.replace(found, rejection=Rejection("lateral_view", {"view": "LL"}))
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    values |= {"identity": identity, "model": ModelInfo("gray", "0.1.0", "ab" * 32), "image": ImageInfo(30, 20, "PNG")}
    return StoredPrediction(
        **(values | fields), id=ID, created=CREATED, last_predicted=CREATED, image_sha256="cd" * 32,
        image_bytes=10, image_removed=None, reviews=(),
    )  # fmt: skip


def written(kind, **fields):
    return resource(kind, ID, stored(**fields), NOTICE, CREATED)


def assert_valid(document):
    """Validate by the schema of the specification, and by the models of fhir.resources if it is installed."""
    kind = document["resourceType"]
    definition = {"$schema": R4["$schema"], "definitions": R4["definitions"], "$ref": f"#/definitions/{kind}"}
    jsonschema.Draft6Validator(definition).validate(document)
    for contained in document.get("contained", ()):
        assert_valid(contained)
    if HAS_MODELS:  # R4B, in which these resources are those of R4
        models = importlib.import_module(f"fhir.resources.R4B.{kind.lower()}")
        assert getattr(models, kind).model_validate_json(json.dumps(document))


KINDS = ("DiagnosticReport", "Observation")
DECISIONS = ("pneumonia", "no_pneumonia", "uncertain", "rejected")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("identity", [IDENTITY, None, Identity(station_name="X-RAY-2")])
def test_resource_is_valid_r4(kind, decision, identity):
    assert_valid(written(kind, decision=decision, identity=identity))


def test_schema_rejects_what_r4_does_not_have():
    """The validation can fail."""
    document = written("Observation")
    for change in ({"status": "done"}, {"unknown": 1}, {"component": [{"valueString": 1}]}, {"issued": "yesterday"}):
        with pytest.raises(jsonschema.ValidationError):
            assert_valid(document | change)


@pytest.mark.parametrize(
    ("decision", "system", "code"),
    [
        ("pneumonia", "http://snomed.info/sct", "52101004"),
        ("no_pneumonia", "http://snomed.info/sct", "2667000"),
        ("uncertain", "http://snomed.info/sct", "82334004"),
    ],
)
def test_observation_states_the_presence_of_pneumonia(decision, system, code):
    document = written("Observation", decision=decision)
    (value,) = document["valueCodeableConcept"]["coding"]
    assert (value["system"], value["code"]) == (system, code)
    assert document["code"]["coding"][0]["code"] == "233604007"
    assert (document["status"], "dataAbsentReason" in document) == ("preliminary", False)


def test_rejected_image_has_no_value_and_a_reason():
    document = written("Observation", decision="rejected")
    assert [each["code"] for each in document["dataAbsentReason"]["coding"]] == [
        "not-performed", "not-assessed", "lateral_view",
    ]  # fmt: skip
    assert "Not a frontal view" in document["dataAbsentReason"]["text"]
    assert "valueCodeableConcept" not in document
    report = written("DiagnosticReport", decision="rejected")
    assert report["conclusion"].startswith("Not assessed. The DICOM header specifies the view LL")
    assert report["conclusionCode"] == [{"text": "Pneumonia: not assessed, by the model"}]


def test_rejection_by_the_network_states_the_value_and_the_limit():
    rejected = {"decision": "rejected", "rejection": Rejection("inverted", {"probability": 0.125, "limit": 0.5})}
    reason = "Probability of an upright chest radiograph: 0.125; rejected below 0.500"
    observation, report = written("Observation", **rejected), written("DiagnosticReport", **rejected)
    assert reason in observation["note"][0]["text"]
    assert reason in report["conclusion"]
    assert reason in observation["text"]["div"]


def test_components_are_the_probability_with_its_interval_and_the_operating_point():
    components = {each["code"]["coding"][0]["code"]: each for each in written("Observation")["component"]}
    values = {code: each["valueQuantity"]["value"] for code, each in components.items() if "valueQuantity" in each}
    assert values == {"111012": 87.3456, "certainty-lower": 43.6728, "certainty-upper": 93.6728, "threshold": 40.0}
    units = {
        (each["valueQuantity"]["system"], each["valueQuantity"]["code"])
        for each in components.values()
        if "valueQuantity" in each
    }
    assert units == {("http://unitsofmeasure.org", "%")}
    assert components["operating-point"]["valueString"] == "balanced"
    assert components["model-sha256"]["valueString"] == "ab" * 32


def test_patient_and_study_are_those_of_the_identity():
    document = written("DiagnosticReport")
    (patient,) = (each for each in document["contained"] if each["resourceType"] == "Patient")
    assert document["subject"] == {"reference": f"#{patient['id']}"}
    assert (patient["identifier"][0]["value"], patient["identifier"][0]["assigner"]) == ("P-1", {"display": "HOSPITAL"})
    latin, ideographic = patient["name"]
    assert (latin["family"], latin["given"], latin["prefix"], latin["suffix"]) == (
        "Wang",
        ["XiaoMing", "M"],
        ["Dr"],
        ["Jr"],
    )
    assert (ideographic["family"], ideographic["given"]) == ("王", ["小明"])
    assert (patient["gender"], patient["birthDate"]) == ("female", "2021-03-04")
    assert document["imagingStudy"][0]["identifier"] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.840.3"}
    assert document["basedOn"][0]["identifier"]["value"] == "A-7"
    assert (document["effectiveDateTime"], document["issued"]) == ("2026-01-30", CREATED)
    assert document["result"] == [{"reference": f"Observation/{document['id']}", "type": "Observation"}]


def test_pseudonyms_are_the_only_identifiers():
    pseudonymizer = Pseudonymizer(b"k" * 32)
    for kind in KINDS:
        document = written(kind, identity=pseudonymizer.identity(IDENTITY))
        assert_valid(document)
        text = json.dumps(document, ensure_ascii=False)
        assert not any(
            value in text for value in ("P-1", "HOSPITAL", "Wang", "王", "2021-03-04", "1.2.840.3", "A-7", "2026-01-30")
        )
        assert pseudonymizer.number("P-1") in text


def test_dates_and_uids_that_fhir_does_not_allow_are_left_out_or_plain():
    identity = Identity(
        patient_id="1",
        patient_birth_date="99.99.9999",
        study_date="yesterday",
        study_instance_uid="no uid",
        patient_sex="X",
    )
    document = written("Observation", identity=identity)
    assert_valid(document)
    assert "effectiveDateTime" not in document
    assert document["derivedFrom"][0]["identifier"]["value"] == "no uid"
    assert set(document["contained"][0]) == {"resourceType", "id", "identifier"}


def test_notice_is_in_the_text_for_people_and_escaped():
    for kind in KINDS:
        document = written(kind)
        assert "&lt;b&gt;" in document["text"]["div"]
        assert NOTICE in json.dumps([document.get("conclusion"), document.get("note")])


def test_version_changes_with_the_content_only():
    first, again = written("Observation"), resource("Observation", ID, stored(), NOTICE, "2027-01-01T00:00:00Z")
    assert first["meta"]["versionId"] == again["meta"]["versionId"]
    other = written("Observation", identity=dataclasses.replace(IDENTITY, patient_id="P-2"))
    assert other["meta"]["versionId"] != first["meta"]["versionId"]


def test_capability_statement_and_outcomes_are_valid_r4():
    assert_valid(capability_statement(NOTICE))
    for status in (400, 401, 403, 404, 405, 406, 410, 413, 415, 422, 429, 500, 503):
        assert_valid(operation_outcome(status, "usage", "a problem", "a hint" if status % 2 else ""))
