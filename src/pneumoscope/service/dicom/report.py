"""Create a DICOM Structured Report with the template "Imaging Measurement Report" (PS3.16 TID 1500)."""

from __future__ import annotations

from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pneumoscope.core.prediction_messages import result_title, site_note, warning_messages
from pneumoscope.core.rejection_messages import rejection_label
from pneumoscope.core.unreadable import UnreadableCode
from pneumoscope.service.dicom.codes import (
    CERTAINTY,
    LOWER_LIMIT,
    MODEL_HASH,
    OPERATING_POINT,
    PNEUMONIA,
    PRESENCE_VALUES,
    PRIVATE_SCHEME,
    THRESHOLD,
    UPPER_LIMIT,
)
from pneumoscope.service.dicom.header import MANUFACTURER
from pneumoscope.service.dicom.heatmap_region import Zone, zones
from pneumoscope.service.dicom.results import Result, patient_orientation
from pneumoscope.service.storage.outbox_records import derive_uid

__all__ = ["PRIVATE_CODES", "STANDARD_CODES", "structured_report", "unreadable_code"]

_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")  # from CID 100, which does not contain the code used in FHIR
_PRESENCE = Code("presence", PRIVATE_SCHEME, "Presence of pneumonia by the model")
_REASON = Code("reason", PRIVATE_SCHEME, "Reason of the decision")
_CAUSE = Code("cause", PRIVATE_SCHEME, "Why the image could not be read")
_REGION = Code("heatmap-region", PRIVATE_SCHEME, "Region of the strongest contributions to the prediction")
_EXPLANATION = Code("explanation", PRIVATE_SCHEME, "Explanation of the decision")
_WARNING = Code("warning", PRIVATE_SCHEME, "Warning about the image or the prediction")
_NOTICE = Code("notice", PRIVATE_SCHEME, "Notice")
_LEVELS = {
    "upper": codes.SCT.UpperZoneOfLung, "middle": codes.SCT.MiddleZoneOfLung, "lower": codes.SCT.LowerZoneOfLung,
}  # fmt: skip
_ACRONYMS = ("dicom", "lut", "voi", "vr")  # words in codes of unreadable images that are written in capitals
_SIDES = {"right": codes.SCT.Right, "left": codes.SCT.Left}

PRIVATE_CODES = (
    _PRESENCE, PRESENCE_VALUES["rejected"], _REASON, _CAUSE, LOWER_LIMIT, UPPER_LIMIT, OPERATING_POINT, THRESHOLD, MODEL_HASH,
    _REGION, _EXPLANATION, _WARNING, _NOTICE,
)  # fmt: skip
STANDARD_CODES = (
    PNEUMONIA, _PROCEDURE, *(code for code in PRESENCE_VALUES.values() if code.scheme_designator != PRIVATE_SCHEME), CERTAINTY,
    codes.SCT.Laterality, *_LEVELS.values(), *_SIDES.values(), codes.DCM.ArtificialIntelligence, codes.UCUM.Percent,
)  # fmt: skip


def structured_report(result: Result) -> bytes:
    """Return a Comprehensive 3D SR with decision, probability, interval, algorithm and a reference to the image.

    For "pneumonia" and "uncertain", it contains the lung zones where the heatmap is strongest; for a rejection, the
    reason. Warnings and the notice are always included. The document is preliminary and unverified.
    """
    prediction, source = result.prediction, result.source()
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derive_uid(f"device {prediction.model.sha256}"),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=prediction.model.name,
        ),
    )
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derive_uid(f"tracking identifier {result.uid}"), identifier="pneumonia on the chest radiograph"
        ),
        finding_type=PNEUMONIA,
        algorithm_id=_algorithm(result),
        measurements=_measurements(result) or None,
        qualitative_evaluations=_evaluations(result),
        source_images=[
            sr.SourceImageForMeasurementGroup(
                referenced_sop_class_uid=source.SOPClassUID, referenced_sop_instance_uid=source.SOPInstanceUID
            )
        ],
    )
    group[0].ContentSequence.extend(_texts(result))
    report = sr.Comprehensive3DSR(
        evidence=[source],
        content=sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=device),
            procedure_reported=_PROCEDURE,
            imaging_measurements=[group],
        ),
        is_complete=True,
        is_final=False,
        is_verified=False,
        **result.identification("structured_report"),
    )
    report.CodingSchemeIdentificationSequence = _coding_schemes()
    return result.encode(report)


def _algorithm(result: Result) -> sr.AlgorithmIdentification:
    """Return the identification of the model (TID 4019)."""
    prediction, model = result.prediction, result.prediction.model
    parameters = [
        f"operating point {prediction.operating_point}",
        *([f"threshold {prediction.threshold:.6g}"] if prediction.threshold is not None else []),
        f"model SHA-256 {model.sha256}",
        *([note] if (note := site_note(model)) else []),
    ]
    return sr.AlgorithmIdentification(
        name=f"{MANUFACTURER} {model.name}",
        version=model.version,
        parameters=parameters,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )


def _measurements(result: Result) -> list[sr.Measurement]:
    """Return the probability, its interval and the threshold in percent; empty without a probability."""
    prediction = result.prediction
    if prediction.probability is None:
        return []
    numbers = [(CERTAINTY, prediction.probability)]
    interval = prediction.interval
    if interval and interval.low is not None and interval.high is not None:
        numbers += [(LOWER_LIMIT, interval.low), (UPPER_LIMIT, interval.high)]
    if prediction.threshold is not None:
        numbers.append((THRESHOLD, prediction.threshold))
    return [sr.Measurement(name=name, value=round(100 * value, 4), unit=codes.UCUM.Percent) for name, value in numbers]


def _evaluations(result: Result) -> list[sr.QualitativeEvaluation]:
    """Return the decision, the reason for a rejection or failure, and the zones of the heatmap."""
    prediction = result.prediction
    found = [sr.QualitativeEvaluation(name=_PRESENCE, value=PRESENCE_VALUES[result.decision])]
    if prediction.rejection:
        reason = Code(prediction.rejection.code, PRIVATE_SCHEME, rejection_label(prediction.rejection.code))
        found.append(sr.QualitativeEvaluation(name=_REASON, value=reason))
    if prediction.failure:
        reason = Code(prediction.failure.code, PRIVATE_SCHEME, "The image could not be read")
        found.append(sr.QualitativeEvaluation(name=_REASON, value=reason))
        if cause := prediction.failure.reason:
            found.append(sr.QualitativeEvaluation(name=_CAUSE, value=unreadable_code(cause.code)))
    if result.heatmap and result.decision in ("pneumonia", "uncertain"):
        found += map(_region, zones(result.heatmap, patient_orientation(result.header)))
    return found


def unreadable_code(code: UnreadableCode) -> Code:
    """Return the coded reason why an image could not be read; its message is the explanation in the report."""
    first, *others = (word.upper() if word in _ACRONYMS else word for word in code.split("_"))
    return Code(code, PRIVATE_SCHEME, " ".join([first[:1].upper() + first[1:], *others]))


def _region(zone: Zone) -> sr.QualitativeEvaluation:
    evaluation = sr.QualitativeEvaluation(name=_REGION, value=_LEVELS[zone.level])
    side = sr.CodeContentItem(
        name=codes.SCT.Laterality, value=_SIDES[zone.side], relationship_type=sr.RelationshipTypeValues.HAS_CONCEPT_MOD
    )
    evaluation[0].ContentSequence = sr.ContentSequence([side])
    return evaluation


def _texts(result: Result) -> list[sr.TextContentItem]:
    """Return the operating point, the model hash, the result as a phrase, each warning, and the notice."""
    prediction = result.prediction
    texts = [
        (OPERATING_POINT, prediction.operating_point),
        (MODEL_HASH, prediction.model.sha256),
        (_EXPLANATION, _printable(result_title(prediction))),
        *((_WARNING, _printable(each)) for each in warning_messages(prediction)),
        (_NOTICE, result.notice),
    ]
    return [
        sr.TextContentItem(name=name, value=value, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        for name, value in texts
    ]


def _printable(text: str) -> str:
    """Return a text, which may quote the header, without characters that DICOM does not allow (PS3.5 6.2)."""
    return "".join(each if each.isprintable() else " " for each in text)


def _coding_schemes() -> list[Dataset]:
    """Return the description of the private coding scheme (PS3.3 C.12.1)."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator = PRIVATE_SCHEME
    scheme.CodingSchemeName = "Terms of pneumoscope"
    scheme.CodingSchemeResponsibleOrganization = "pneumoscope contributors"
    return [scheme]
