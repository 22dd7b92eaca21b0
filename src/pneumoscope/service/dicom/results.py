"""Write results as DICOM objects of the image's study: a Secondary Capture and a Comprehensive 3D SR (TID 1500).

The UIDs of the objects are derived from the prediction and the version of pneumoscope, and their times are those of the
prediction, so that the objects of one version are always the same. Patient and study are copied from the image's header, as
Unicode text.
"""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import highdicom
import numpy as np
from highdicom import sr
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from pneumoscope import __version__
from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.messages import (
    decision_label,
    prediction_message,
    probability_text,
    rejection_label,
    site_note,
)
from pneumoscope.core.prediction import Decision
from pneumoscope.inference.saliency import latin_text, wrap_text
from pneumoscope.service.storage.records import StoredPrediction

__all__ = ["read_source", "secondary_capture", "structured_report"]

_MANUFACTURER = "pneumoscope"
_SERIES_NUMBERS = {"secondary capture": 9101, "structured report": 9102}
# Elements that the objects share with the image (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2) and those that references to it need.
_ELEMENTS = (
    *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *(
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientSex",
        "PatientAge",
        "OtherPatientIDs",
    ),
    *("PatientSize", "PatientWeight", "EthnicGroup", "PatientComments", "AdditionalPatientHistory"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription", "ReferringPhysicianName"),
    *("PatientOrientation", "Laterality", "Rows", "Columns"),
)
# Those that may be empty, and not missing.
_REQUIRED_ELEMENTS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
# Values that are copied (PS3.5 6.2).
_VALUE_PATTERNS = {
    "DA": r"([0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01]))?",
    "TM": r"(([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?)?",
    "AS": r"([0-9]{3}[DWMY])?",
}
_PRIVATE = "99PNEUMOSCOPE"  # coding scheme of terms that no other scheme has
_PNEUMONIA = Code("233604007", "SCT", "Pneumonia")
_PROCEDURE = Code("399208008", "SCT", "Plain chest X-ray")
_PRESENCE = Code("presence", _PRIVATE, "Presence of pneumonia by the model")
# Statements of the decisions about pneumonia.
_VALUES = {
    "pneumonia": Code("52101004", "SCT", "Present"),
    "no_pneumonia": Code("2667000", "SCT", "Absent"),
    "uncertain": Code("82334004", "SCT", "Indeterminate"),
    "rejected": Code("not-assessed", _PRIVATE, "Not assessed"),
}
_REASON = Code("reason", _PRIVATE, "Reason of the decision")
_LOWER = Code("certainty-lower", _PRIVATE, "Lower limit of certainty of finding")
_UPPER = Code("certainty-upper", _PRIVATE, "Upper limit of certainty of finding")
_DIRECTION = re.compile(r"[APRLHF]{1,3}")  # of a row or a column (PS3.3 C.7.6.1.1.1)
_MARGIN = 16  # pixels
_NAMESPACE = uuid.UUID("5f0f6c1e-0f0e-5d55-9c39-8f2f6a3a8f10")  # of the names from which UIDs are derived
_DATES = ("SeriesDate", "ContentDate", "InstanceCreationDate", "DateOfSecondaryCapture")
_TIMES = ("SeriesTime", "ContentTime", "InstanceCreationTime", "TimeOfSecondaryCapture")
_DATE_TIMES = ("ObservationDateTime", "ContributionDateTime")


def read_source(image: bytes, id: str) -> Dataset:
    """Return the elements of an image's header that its results need.

    Args:
        image: The stored file.
        id: Of its prediction, for the error.
    Raises:
        UnknownNameError: The file is not DICOM, or its header has no study, so that there are no results as DICOM objects.
    """
    try:
        source = dcmread(io.BytesIO(image), force=True, stop_before_pixels=True, specific_tags=list(_ELEMENTS))
    except Exception as error:  # untrusted bytes: the library raises errors of any type
        raise _no_objects(id) from error
    if any(not source.get(name) for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")):
        raise _no_objects(id)
    for name in _REQUIRED_ELEMENTS:
        if name not in source:
            setattr(source, name, "")
    source.decode()
    for element in source:
        if (pattern := _VALUE_PATTERNS.get(element.VR)) and not re.fullmatch(pattern, str(element.value or "")):
            element.value = ""  # a value that its value representation does not allow would make the objects invalid
    if source.PatientSex not in ("M", "F", "O"):
        source.PatientSex = ""
    source.SpecificCharacterSet = "ISO_IR 192"
    return source


def secondary_capture(prediction: StoredPrediction, source: Dataset, image: bytes, notice: str) -> bytes:
    """Return a Secondary Capture with the result burned in.

    Args:
        prediction: The prediction.
        source: See `read_source`.
        image: PNG of the image with its heatmap and a legend, or of the image alone if it was rejected.
        notice: Notice of the model.
    """
    with Image.open(io.BytesIO(image)) as opened:
        drawn = opened.convert("RGB")
    if prediction.decision == "rejected":
        drawn = _with_caption(drawn, prediction, notice)
    capture = highdicom.sc.SCImage.from_ref_dataset(
        source,
        pixel_array=np.asarray(drawn),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=_patient_orientation(source),
        series_instance_uid=_uid(prediction, "series of the secondary capture"),
        series_number=_SERIES_NUMBERS["secondary capture"],
        sop_instance_uid=_uid(prediction, "secondary capture"),
        instance_number=1,
        manufacturer=_MANUFACTURER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    capture.BurnedInAnnotation = "YES"
    capture.Laterality = source.get("Laterality") or ""
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.ImageComments = notice[:10_240]
    capture.DerivationDescription = "Result of pneumonia detection, drawn on the image"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    capture.SourceImageSequence = [reference]
    return _encode(capture, prediction, source)


def structured_report(prediction: StoredPrediction, source: Dataset) -> bytes:
    """Return a Comprehensive 3D SR with the decision, the probability and its interval, the algorithm and the image.

    Args:
        prediction: The prediction.
        source: See `read_source`.
    """
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uuid_uid(f"device {prediction.model.sha256}"),
            name=_MANUFACTURER,
            manufacturer_name=_MANUFACTURER,
            model_name=prediction.model.name,
        ),
    )
    model = prediction.model
    parameters = [
        f"operating point {prediction.operating_point}",
        f"threshold {prediction.threshold:.6g}",
        f"model SHA-256 {model.sha256}",
        *([site_note(model)] if model.site else []),
    ]
    values = [sr.QualitativeEvaluation(name=_PRESENCE, value=_VALUES[_decision(prediction)])]
    if prediction.rejection:
        code = prediction.rejection.code
        values.append(sr.QualitativeEvaluation(name=_REASON, value=Code(code, _PRIVATE, rejection_label(code))))
    measured = []
    if prediction.probability is not None:
        numbers = [(codes.DCM.CertaintyOfFinding, prediction.probability)]
        if prediction.interval and prediction.interval.low is not None and prediction.interval.high is not None:
            numbers += [(_LOWER, prediction.interval.low), (_UPPER, prediction.interval.high)]
        measured = [
            sr.Measurement(name=name, value=round(100 * value, 4), unit=codes.UCUM.Percent) for name, value in numbers
        ]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid(prediction, "tracking identifier"), identifier="pneumonia on the chest radiograph"
        ),
        finding_type=_PNEUMONIA,
        algorithm_id=sr.AlgorithmIdentification(
            name=f"{_MANUFACTURER} {model.name}",
            version=model.version,
            parameters=parameters,
            manufacturer=_MANUFACTURER,
        ),
        measurements=measured or None,
        qualitative_evaluations=values,
        source_images=[
            sr.SourceImageForMeasurementGroup(
                referenced_sop_class_uid=source.SOPClassUID, referenced_sop_instance_uid=source.SOPInstanceUID
            )
        ],
    )
    report = sr.Comprehensive3DSR(
        evidence=[source],
        content=sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=device),
            procedure_reported=_PROCEDURE,
            imaging_measurements=[group],
        ),
        series_instance_uid=_uid(prediction, "series of the structured report"),
        series_number=_SERIES_NUMBERS["structured report"],
        sop_instance_uid=_uid(prediction, "structured report"),
        instance_number=1,
        manufacturer=_MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    return _encode(report, prediction, source)


def _encode(result: Dataset, prediction: StoredPrediction, source: Dataset) -> bytes:
    """Return the file of an object, with the times of the prediction."""
    time = datetime.fromisoformat(prediction.created).astimezone(UTC)
    formats = (
        dict.fromkeys(_DATES, "%Y%m%d")
        | dict.fromkeys(_TIMES, "%H%M%S.%f")
        | dict.fromkeys(_DATE_TIMES, "%Y%m%d%H%M%S.%f")
    )
    for element in result.iterall():
        if element.keyword in formats:
            element.value = time.strftime(formats[element.keyword])
    result.TimezoneOffsetFromUTC = "+0000"
    result.SpecificCharacterSet = "ISO_IR 192"
    result.ManufacturerModelName, result.SoftwareVersions = prediction.model.name[:64], __version__
    result.SeriesDescription = f"pneumoscope: {decision_label(_decision(prediction))}"[:64]
    if source.get("IssuerOfPatientID"):
        result.IssuerOfPatientID = source.IssuerOfPatientID
    if source.get("StudyDescription"):
        result.StudyDescription = source.StudyDescription
    file = io.BytesIO()
    result.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _decision(prediction: StoredPrediction) -> Decision:
    assert prediction.decision is not None  # stored predictions have one
    return prediction.decision


def _uid(prediction: StoredPrediction, kind: str) -> str:
    """Return the UID of an object of a prediction."""
    return _uuid_uid(f"{kind} {prediction.id} {__version__}")


def _uuid_uid(name: str) -> str:
    """Return the UID of a name, by a name-based UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def _patient_orientation(source: Dataset) -> tuple[str, str]:
    """Return the orientation of the image; as a frontal radiograph is displayed if the header states none."""
    stated = source.get("PatientOrientation")
    if isinstance(stated, Sequence) and len(stated) == 2 and all(_DIRECTION.fullmatch(str(each)) for each in stated):
        return str(stated[0]), str(stated[1])
    return "L", "F"


def _with_caption(picture: Image.Image, prediction: StoredPrediction, notice: str) -> Image.Image:
    """Return an image with the decision, the reason, the model and the notice below."""
    picture.thumbnail((1024, 1024))
    width = max(picture.width, 480)
    large, small = ImageFont.load_default(24), ImageFont.load_default(16)
    draw = ImageDraw.Draw(picture)
    probability = "" if prediction.probability is None else f" {probability_text(prediction.probability)}"
    texts = [
        (f"{decision_label(_decision(prediction))}{probability}", large, 32),
        (f"Not assessed. {prediction_message(prediction)}", small, 22),
        (
            f"{prediction.model.name} {prediction.model.version}, operating point {prediction.operating_point}",
            small,
            22,
        ),
        (latin_text(notice), small, 22),
    ]
    lines = [
        (line, font, height)
        for text, font, height in texts
        for line in wrap_text(draw, text, font, width - 2 * _MARGIN)
    ]
    drawn = Image.new("RGB", (width, picture.height + sum(height for *_, height in lines) + 2 * _MARGIN))
    drawn.paste(picture, ((width - picture.width) // 2, 0))
    draw, y = ImageDraw.Draw(drawn), picture.height + _MARGIN
    for line, font, height in lines:
        draw.text((_MARGIN, y), line, "white", font)
        y += height
    return drawn


def _no_objects(id: str) -> UnknownNameError:
    return UnknownNameError(
        "DICOM result of prediction",
        id,
        (),
        hint="The stored file is not DICOM with a study: it has no results as DICOM objects",
    )
