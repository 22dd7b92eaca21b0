"""Convert predictions to FHIR R4 resources (4.0.1), DiagnosticReport and Observation, with the codes of the Structured Report.

Both are preliminary, since no person has verified them. Patient and algorithm are contained resources; the study is
referenced by its Study Instance UID. With pseudonymization, the resources contain the stored pseudonyms.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from datetime import date
from typing import Any, Literal

from pydicom.sr.coding import Code

from pneumoscope import __version__
from pneumoscope.core.identity import PATIENT_FIELDS, Identity
from pneumoscope.core.messages import conflict_message, decision_label
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_messages import prediction_message, site_note
from pneumoscope.core.rejection_messages import rejection_label
from pneumoscope.service.dicom.codes import (
    CERTAINTY,
    LOWER_LIMIT,
    MODEL_HASH,
    OPERATING_POINT,
    PNEUMONIA,
    PRESENCE_VALUES,
    PRIVATE_SCHEME,
    PROCEDURE,
    THRESHOLD,
    UPPER_LIMIT,
)
from pneumoscope.service.dicom.header import MANUFACTURER
from pneumoscope.service.storage.outbox_records import derive_uid
from pneumoscope.service.storage.records import StoredPrediction

__all__ = ["FHIR_MEDIA_TYPE", "ResourceType", "capability_statement", "operation_outcome", "resource"]

FHIR_MEDIA_TYPE = "application/fhir+json"
ResourceType = Literal["DiagnosticReport", "Observation"]
Resource = dict[str, Any]

_FHIR_VERSION = "4.0.1"
_CAPABILITIES_DATE = "2026-11-29"  # date of the last change to the capability statement
_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    PRIVATE_SCHEME: "urn:pneumoscope:codes",
}
_HL7 = "http://terminology.hl7.org/CodeSystem"
_UID_SYSTEM, _UNITS = "urn:dicom:uid", "http://unitsofmeasure.org"
_REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
_GENDERS = {"F": "female", "M": "male", "O": "other"}
_UID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")  # valid in urn:oid
_DIGITS = 6  # significant digits of a percentage
# Issue types (http://hl7.org/fhir/issue-type) by HTTP status.
_ISSUE_TYPES = {
    400: "structure", 401: "login", 403: "forbidden", 404: "not-found", 405: "not-supported", 406: "not-supported",
    410: "deleted", 413: "too-long", 415: "not-supported", 422: "invalid", 429: "throttled", 503: "transient",
}  # fmt: skip


def resource(kind: ResourceType, id: str, prediction: StoredPrediction, notice: str, updated: str) -> Resource:
    """Return a prediction as a resource.

    Args:
        kind: Type of the resource.
        id: Id of the resource; see `storage.records.StoredPrediction.report_id`.
        prediction: The prediction.
        notice: Notice of the model.
        updated: Time of the last change, ISO 8601 in UTC.
    """
    content = _report(id, prediction, notice) if kind == "DiagnosticReport" else _observation(prediction, notice)
    content = {"text": _narrative(_message(prediction), _method(prediction), notice), **content}
    version = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    meta = {"versionId": version, "lastUpdated": updated}
    return {"resourceType": kind, "id": id, "meta": meta, "language": "en", **content}


def _observation(prediction: StoredPrediction, notice: str) -> Resource:
    study = prediction.identity and _study_reference(prediction.identity)
    return {
        "contained": [*_contained_patient(prediction), _device(prediction)],
        "status": "preliminary",
        "category": [{"coding": [_coding(f"{_HL7}/observation-category", "imaging", "Imaging")]}],
        "code": _concept(PNEUMONIA, "Presence of pneumonia by the model"),
        **_subject(prediction),
        **_times(prediction),
        **_value(prediction),
        "note": [{"text": _message(prediction)}, {"text": notice}],
        "method": {"text": _method(prediction)},
        "device": {"reference": "#device"},
        **({"derivedFrom": [study]} if study else {}),
        "component": _components(prediction),
    }


def _report(id: str, prediction: StoredPrediction, notice: str) -> Resource:
    identity = prediction.identity or Identity()
    study, order = _study_reference(identity), identity.accession_number
    return {
        **({"contained": patient} if (patient := _contained_patient(prediction)) else {}),
        **({"basedOn": [_order_reference(order)]} if order else {}),
        "status": "preliminary",
        "category": [{"coding": [_coding(f"{_HL7}/v2-0074", "RAD", "Radiology")]}],
        "code": _concept(PROCEDURE, "Detection of pneumonia on a chest radiograph by a model"),
        **_subject(prediction),
        **_times(prediction),
        "result": [{"reference": f"Observation/{id}", "type": "Observation"}],
        **({"imagingStudy": [study]} if study else {}),
        "conclusion": f"{_message(prediction)}\n{_method(prediction)}\n{notice}",
        "conclusionCode": [_conclusion(prediction)],
    }


def _value(prediction: StoredPrediction) -> Resource:
    """Return the presence of pneumonia, or the reason why it was not assessed."""
    assert prediction.decision
    value = PRESENCE_VALUES[prediction.decision]
    if prediction.rejection is None:
        return {"valueCodeableConcept": _concept(value)}
    reason = rejection_label(prediction.rejection.code)
    coding = [
        _coding(f"{_HL7}/data-absent-reason", "not-performed", "Not Performed"),
        *_concept(value)["coding"],
        _coding(_SYSTEMS[PRIVATE_SCHEME], prediction.rejection.code, reason),
    ]
    return {"dataAbsentReason": {"coding": coding, "text": f"Not assessed: {reason}"}}


def _conclusion(prediction: StoredPrediction) -> Resource:
    """Return the code of the conclusion; only the presence of pneumonia has a SNOMED CT code without a qualifier."""
    if prediction.decision == "pneumonia":
        return _concept(PNEUMONIA, "Pneumonia, by the model")
    assert prediction.decision
    value = PRESENCE_VALUES[prediction.decision]
    return {"text": f"Pneumonia: {value.meaning.lower()}, by the model"}


def _components(prediction: StoredPrediction) -> list[Resource]:
    interval = prediction.interval
    percentages: list[tuple[Code, float | None]] = [(CERTAINTY, prediction.probability)]
    if interval:
        percentages += [(LOWER_LIMIT, interval.low), (UPPER_LIMIT, interval.high)]
    percentages.append((THRESHOLD, prediction.threshold))
    return [
        *(
            {"code": _concept(code), "valueQuantity": _percentage(value)}
            for code, value in percentages
            if value is not None
        ),
        {"code": _concept(OPERATING_POINT), "valueString": prediction.operating_point},
        {"code": _concept(MODEL_HASH), "valueString": prediction.model.sha256},
    ]


def _percentage(fraction: float) -> Resource:
    value = float(f"{100 * fraction:.{_DIGITS}g}")
    return {"value": value, "unit": "%", "system": _UNITS, "code": "%"}


def _method(prediction: Prediction) -> str:
    model = prediction.model
    parts = [f"{MANUFACTURER} {model.name} {model.version}", f"operating point {prediction.operating_point}"]
    return ", ".join(filter(None, (*parts, site_note(model))))


def _message(prediction: StoredPrediction) -> str:
    assert prediction.decision
    label = "Not assessed" if prediction.decision == "rejected" else decision_label(prediction.decision)
    conflict = conflict_message("image_of_two_patients") if "image_of_two_patients" in prediction.conflicts else ""
    return ". ".join(each for each in (label, prediction_message(prediction), conflict) if each)


def _narrative(*paragraphs: str) -> Resource:
    """Return the human-readable narrative with these paragraphs."""
    text = "".join(f"<p>{html.escape(each)}</p>" for each in paragraphs)
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{text}</div>'}


def _device(prediction: StoredPrediction) -> Resource:
    model = prediction.model
    return {
        "resourceType": "Device",
        "id": "device",
        "identifier": [{"system": _UID_SYSTEM, "value": f"urn:oid:{derive_uid(f'device {model.sha256}')}"}],
        "manufacturer": MANUFACTURER,
        "deviceName": [{"name": model.name, "type": "model-name"}],
        "type": {"text": "Neural network"},
        "version": [{"type": {"text": "model"}, "value": model.version}],
        "property": [{"type": _concept(MODEL_HASH), "valueCode": [{"text": model.sha256}]}],
    }


def _times(prediction: StoredPrediction) -> Resource:
    """Return the time of the image, as precisely as known, and of the prediction."""
    studied = _date(prediction.identity.study_date if prediction.identity else "")
    return {**({"effectiveDateTime": studied} if studied else {}), "issued": prediction.created}


def _subject(prediction: StoredPrediction) -> Resource:
    return {"subject": {"reference": "#patient"}} if _contained_patient(prediction) else {}


def _contained_patient(prediction: StoredPrediction) -> list[Resource]:
    """Return the patient as a contained resource; empty if no patient data are known."""
    identity = prediction.identity or Identity()
    if not any(getattr(identity, name) for name in PATIENT_FIELDS):
        return []
    patient: Resource = {"resourceType": "Patient", "id": "patient"}
    if identity.patient_id:
        issuer = identity.issuer_of_patient_id
        identifier: Resource = {"type": {"coding": [_coding(f"{_HL7}/v2-0203", "MR", "Medical record number")]}}
        identifier["value"] = identity.patient_id
        patient["identifier"] = [identifier | ({"assigner": {"display": issuer}} if issuer else {})]
    if names := _names(identity.patient_name):
        patient["name"] = names
    if identity.patient_sex in _GENDERS:
        patient["gender"] = _GENDERS[identity.patient_sex]
    if born := _date(identity.patient_birth_date):
        patient["birthDate"] = born
    return [patient]


def _names(text: str) -> list[Resource]:
    """Return the alphabetic, ideographic and phonetic groups of a DICOM name (PS3.5 6.2.1)."""
    names = []
    for form, group in zip(("ABC", "IDE", "SYL"), text.split("="), strict=False):
        parts = [part.strip() for part in group.split("^")]
        family, given, middle, prefix, suffix = (parts + 5 * [""])[:5]
        lists = {"given": [given, middle], "prefix": [prefix], "suffix": [suffix]}
        name: Resource = {"family": family} if family else {}
        name |= {key: found for key, values in lists.items() if (found := [each for each in values if each])}
        if name:
            names.append({"extension": [{"url": _REPRESENTATION, "valueCode": form}], **name})
    return names


def _study_reference(identity: Identity) -> Resource | None:
    uid = identity.study_instance_uid
    if not uid:
        return None
    value = f"urn:oid:{uid}" if _UID.fullmatch(uid) else uid
    return {"type": "ImagingStudy", "identifier": {"system": _UID_SYSTEM, "value": value}}


def _order_reference(number: str) -> Resource:
    kind = {"coding": [_coding(f"{_HL7}/v2-0203", "ACSN", "Accession ID")]}
    return {"type": "ServiceRequest", "identifier": {"type": kind, "value": number}}


def _date(text: str) -> str:
    """Return a date in ISO 8601; empty if the text is not a date."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        return ""


def _coding(system: str, code: str, display: str) -> Resource:
    return {"system": system, "code": code, "display": display}


def _concept(code: Code, text: str = "") -> Resource:
    coding = _coding(_SYSTEMS[code.scheme_designator], code.value, code.meaning)
    return {"coding": [coding], "text": text or code.meaning}


def operation_outcome(status: int, code: str, detail: str, hint: str) -> Resource:
    """Return an error as an OperationOutcome resource.

    Args:
        status: HTTP status.
        code: Stable error code.
        detail: The problem.
        hint: What to do next; may be empty.
    """
    issue_type = _ISSUE_TYPES.get(status, "exception" if status >= 500 else "processing")
    details = {"coding": [{"system": "urn:pneumoscope:error", "code": code}], "text": detail}
    issue = {"severity": "error", "code": issue_type, "details": details}
    return {"resourceType": "OperationOutcome", "issue": [issue | ({"diagnostics": hint} if hint else {})]}


def capability_statement(notice: str) -> Resource:
    """Return the capability statement of the FHIR interface.

    Args:
        notice: Notice of the model.
    """
    kinds: tuple[ResourceType, ...] = ("DiagnosticReport", "Observation")
    resources = [
        {
            "type": kind,
            "interaction": [{"code": "read"}],
            "versioning": "versioned",
            "readHistory": False,
            "conditionalRead": "not-match",
        }
        for kind in kinds
    ]
    security = {"description": "A token of the service with the role reader, as a bearer token (RFC 6750)"}
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": _CAPABILITIES_DATE,
        "kind": "instance",
        "software": {"name": MANUFACTURER, "version": __version__},
        "implementation": {"description": notice},
        "fhirVersion": _FHIR_VERSION,
        "format": [FHIR_MEDIA_TYPE],
        "rest": [{"mode": "server", "security": security, "resource": resources}],
    }
