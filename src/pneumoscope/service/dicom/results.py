"""Write results as DICOM objects of the image's study: Secondary Capture, Comprehensive 3D SR (TID 1500), Key Object Selection.

The UIDs of the objects are derived from the image and the prediction, and their times are those of the prediction, so that
an object that is written twice is the same object. Patient and study are copied from the image's header, as Unicode text.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import highdicom
import numpy as np
from highdicom import sr
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
)

from pneumoscope import __version__
from pneumoscope.core.messages import (
    decision_label,
    prediction_message,
    probability_text,
    rejection_label,
    site_note,
)
from pneumoscope.core.prediction import Decision, Prediction
from pneumoscope.inference.saliency import latin_text, wrap_text
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.header import MANUFACTURER
from pneumoscope.service.storage.outbox import ObjectKind, derive_uid

__all__ = ["SOP_CLASSES", "Result", "rejection_note", "secondary_capture", "structured_report"]

# Warnings of highdicom quote names of patients.
warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")

SOP_CLASSES: Mapping[ObjectKind, UID] = {
    "secondary_capture": SecondaryCaptureImageStorage,
    "structured_report": Comprehensive3DSRStorage,
    "rejection_note": KeyObjectSelectionDocumentStorage,
}
_SERIES_OFFSETS: Mapping[ObjectKind, int] = {"secondary_capture": 0, "structured_report": 1, "rejection_note": 2}

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
_DATES = ("SeriesDate", "ContentDate", "InstanceCreationDate", "DateOfSecondaryCapture")
_TIMES = ("SeriesTime", "ContentTime", "InstanceCreationTime", "TimeOfSecondaryCapture")
_DATE_TIMES = ("ObservationDateTime", "ContributionDateTime")


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The result that an object states.

    Attributes:
        uid: SOP Instance UID of the object.
        prediction: The prediction, with a failure if the file could not be read.
        created: Time of the prediction, ISO 8601 in UTC.
        header: Header of the image; see `header.read_header`.
        settings: Number and description of the series.
    """

    uid: str
    prediction: Prediction
    created: str
    header: Dataset
    settings: ResultSettings

    @property
    def decision(self) -> Decision:
        """The decision; a file that could not be read is not assessed, either."""
        return self.prediction.decision or "rejected"

    def series_number(self, kind: ObjectKind) -> int:
        """Return the number of the series of a kind of object."""
        return self.settings.series_number + _SERIES_OFFSETS[kind]


def secondary_capture(result: Result, image: bytes, notice: str, *, with_legend: bool) -> bytes:
    """Return a Secondary Capture with the result burned in.

    Args:
        result: The result.
        image: PNG of the image.
        notice: Notice of the model.
        with_legend: Whether the result is already drawn on the image, as `Model.draw_heatmap` does.
    """
    source = result.header
    with Image.open(io.BytesIO(image)) as opened:
        drawn = opened.convert("RGB")
    if not with_legend:
        drawn = _with_caption(drawn, result, notice)
    capture = highdicom.sc.SCImage.from_ref_dataset(
        source,
        pixel_array=np.asarray(drawn),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=_patient_orientation(source),
        series_instance_uid=_series_uid(result.uid),
        series_number=result.series_number("secondary_capture"),
        sop_instance_uid=result.uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
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
    return _encode(capture, result)


def structured_report(result: Result) -> bytes:
    """Return a Comprehensive 3D SR with the decision, the probability and its interval, the algorithm and the image."""
    prediction, source = result.prediction, result.header
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derive_uid(f"device {prediction.model.sha256}"),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=prediction.model.name,
        ),
    )
    model = prediction.model
    parameters = [
        f"operating point {prediction.operating_point}",
        *([f"threshold {prediction.threshold:.6g}"] if prediction.threshold is not None else []),
        f"model SHA-256 {model.sha256}",
        *([site_note(model)] if model.site else []),
    ]
    values = [sr.QualitativeEvaluation(name=_PRESENCE, value=_VALUES[result.decision])]
    if prediction.rejection:
        reason = Code(prediction.rejection.code, _PRIVATE, rejection_label(prediction.rejection.code))
        values.append(sr.QualitativeEvaluation(name=_REASON, value=reason))
    if prediction.failure:
        reason = Code(prediction.failure.code, _PRIVATE, "The image could not be read")
        values.append(sr.QualitativeEvaluation(name=_REASON, value=reason))
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
            uid=derive_uid(f"tracking identifier {result.uid}"), identifier="pneumonia on the chest radiograph"
        ),
        finding_type=_PNEUMONIA,
        algorithm_id=sr.AlgorithmIdentification(
            name=f"{MANUFACTURER} {model.name}",
            version=model.version,
            parameters=parameters,
            manufacturer=MANUFACTURER,
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
        series_instance_uid=_series_uid(result.uid),
        series_number=result.series_number("structured_report"),
        sop_instance_uid=result.uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    return _encode(report, result)


def rejection_note(result: Result, withdrawn_uids: Mapping[ObjectKind, str]) -> bytes:
    """Return a Key Object Selection, titled "Rejected for Quality Reasons", that withdraws objects delivered before.

    Args:
        result: The result that the objects stated.
        withdrawn_uids: Their UIDs by kind.
    Source: IHE Radiology, Imaging Object Change Management.
    """
    withdrawn = []
    for kind, uid in withdrawn_uids.items():
        item = copy.deepcopy(result.header)
        item.SOPClassUID, item.SOPInstanceUID, item.SeriesInstanceUID = SOP_CLASSES[kind], uid, _series_uid(uid)
        item.Modality = "OT" if kind == "secondary_capture" else "SR"
        withdrawn.append(item)
    note = highdicom.ko.KeyObjectSelectionDocument(
        evidence=withdrawn,
        content=highdicom.ko.KeyObjectSelection(
            document_title=codes.DCM.RejectedForQualityReasons,
            referenced_objects=withdrawn,
            description="The result was withdrawn or replaced by another one",
        ),
        series_instance_uid=_series_uid(result.uid),
        series_number=result.series_number("rejection_note"),
        sop_instance_uid=result.uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    return _encode(note, result)


def _encode(document: Dataset, result: Result) -> bytes:
    """Return the file of an object, with the times of the prediction."""
    prediction, source = result.prediction, result.header
    time = datetime.fromisoformat(result.created).astimezone(UTC)
    formats = (
        dict.fromkeys(_DATES, "%Y%m%d")
        | dict.fromkeys(_TIMES, "%H%M%S.%f")
        | dict.fromkeys(_DATE_TIMES, "%Y%m%d%H%M%S.%f")
    )
    for element in document.iterall():
        if element.keyword in formats:
            element.value = time.strftime(formats[element.keyword])
    document.TimezoneOffsetFromUTC = "+0000"
    document.SpecificCharacterSet = "ISO_IR 192"
    document.ManufacturerModelName, document.SoftwareVersions = prediction.model.name[:64], __version__
    statement = "withdrawn" if document.Modality == "KO" else decision_label(result.decision)
    document.SeriesDescription = f"{result.settings.series_description}: {statement}"[:64]
    if source.get("IssuerOfPatientID"):
        document.IssuerOfPatientID = source.IssuerOfPatientID
    if source.get("StudyDescription"):
        document.StudyDescription = source.StudyDescription
    file = io.BytesIO()
    document.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _series_uid(uid: str) -> str:
    return derive_uid(f"series {uid}")


def _patient_orientation(source: Dataset) -> tuple[str, str]:
    """Return the orientation of the image; as a frontal radiograph is displayed if the header states none."""
    stated = source.get("PatientOrientation")
    if isinstance(stated, Sequence) and len(stated) == 2 and all(_DIRECTION.fullmatch(str(each)) for each in stated):
        return str(stated[0]), str(stated[1])
    return "L", "F"


def _with_caption(picture: Image.Image, result: Result, notice: str) -> Image.Image:
    """Return an image with the decision, the reason, the model and the notice below."""
    prediction = result.prediction
    picture.thumbnail((1024, 1024))
    width = max(picture.width, 480)
    large, small = ImageFont.load_default(24), ImageFont.load_default(16)
    draw = ImageDraw.Draw(picture)
    probability = "" if prediction.probability is None else f" {probability_text(prediction.probability)}"
    texts = [
        (f"{decision_label(result.decision)}{probability}", large, 32),
        (_explanation(result), small, 22),
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


def _explanation(result: Result) -> str:
    message = prediction_message(result.prediction)
    return (
        f"Not assessed. {message}"
        if result.decision == "rejected"
        else f"{message} No heatmap: the model was replaced."
    )
