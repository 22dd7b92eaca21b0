"""Create DICOM objects in the image's study: common parts, Secondary Capture, Key Object Selection.

`report` creates Structured Reports; `overlays` creates Parametric Maps and presentation states.

UIDs are derived from the image and the prediction, and times are those of the prediction, so that creating an object
twice gives the same object. Patient and study are copied from the image's header, as Unicode text.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import highdicom
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
)

from pneumoscope import __version__
from pneumoscope.core.messages import decision_label
from pneumoscope.core.population import Population
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_codes import Decision
from pneumoscope.core.prediction_messages import notice
from pneumoscope.imaging.image import Radiograph
from pneumoscope.inference.saliency import Heatmap
from pneumoscope.service.dicom.caption import draw_result
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.header import MANUFACTURER
from pneumoscope.service.storage.outbox_records import ObjectKind, derive_uid

__all__ = [
    "SOP_CLASSES",
    "Result",
    "describe",
    "patient_orientation",
    "rejection_note",
    "secondary_capture",
    "series_uid",
]

# Warnings of highdicom quote patient names.
warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")

SOP_CLASSES: Mapping[ObjectKind, UID] = {
    "secondary_capture": SecondaryCaptureImageStorage,
    "structured_report": Comprehensive3DSRStorage,
    "rejection_note": KeyObjectSelectionDocumentStorage,
    "parametric_map": ParametricMapStorage,
    "presentation_state": GrayscaleSoftcopyPresentationStateStorage,
}
_SERIES_OFFSETS: Mapping[ObjectKind, int] = {kind: offset for offset, kind in enumerate(SOP_CLASSES)}
_MODALITIES: Mapping[ObjectKind, str] = {
    "secondary_capture": "OT",
    "structured_report": "SR",
    "rejection_note": "KO",
    "parametric_map": "OT",
    "presentation_state": "PR",
}
_DIRECTION = re.compile(r"[APRLHF]{1,3}")  # of a row or column (PS3.3 C.7.6.1.1.1)
_DATES = (
    "SeriesDate", "ContentDate", "InstanceCreationDate", "DateOfSecondaryCapture", "PresentationCreationDate",
)  # fmt: skip
_TIMES = (
    "SeriesTime", "ContentTime", "InstanceCreationTime", "TimeOfSecondaryCapture", "PresentationCreationTime",
)  # fmt: skip
_NAMES = ("PatientName", "ReferringPhysicianName")
# Further patient and study elements, which highdicom copies only into some objects.
_COPIED = (
    "IssuerOfPatientID", "PatientBirthTime", "OtherPatientIDs", "EthnicGroup", "PatientComments", "StudyDescription",
    "PatientAge", "PatientSize", "PatientWeight", "AdditionalPatientHistory", "OtherPatientNames", "OtherPatientIDsSequence",
    "IssuerOfAccessionNumberSequence", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "ProcedureCodeSequence",
)  # fmt: skip
_DATE_TIMES = ("ObservationDateTime", "ContributionDateTime")


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A result and everything needed to create its DICOM objects.

    Attributes:
        uid: SOP Instance UID of the object.
        prediction: The prediction; it contains a failure if the file could not be read.
        created: Time of the prediction, ISO 8601 in UTC.
        header: Header of the image; see `header.read_header`.
        settings: Series number and description, languages.
        population: Population of the model, for the notice; None if unknown.
        heatmap: Heatmap of the prediction; None if there is none.
        prevalence: See `caption.draw_result`.
    """

    uid: str
    prediction: Prediction
    created: str
    header: Dataset
    settings: ResultSettings
    population: Population | None = None
    heatmap: Heatmap | None = None
    prevalence: float | None = None

    @property
    def decision(self) -> Decision:
        """The decision; "rejected" for a file that could not be read."""
        decision = self.prediction.decision
        # The service does not accept multi-class models, whose decision is "classified".
        return "rejected" if decision is None or decision == "classified" else decision

    @property
    def notice(self) -> str:
        """The notice that accompanies the result, in English."""
        return notice(self.population)

    @property
    def time(self) -> datetime:
        """Time of the prediction, in the time zone of the study if the header has one, or else in the local time zone."""
        zone = self.header.get("TimezoneOffsetFromUTC") or ""
        time = datetime.fromisoformat(self.created)
        return time.astimezone(datetime.strptime(zone, "%z").tzinfo if zone else None)

    def series_description(self, statement: str) -> str:
        """Return the description of a series, ending in `statement`; at most 64 characters."""
        return f"{self.settings.series_description}: {statement}"[:64]

    def source(self) -> Dataset:
        """Return a copy of the header for highdicom without names, since highdicom warns about unusual names; see `encode`."""
        found = copy.deepcopy(self.header)
        for name in _NAMES:
            setattr(found, name, "")
        return found

    def identification(self, kind: ObjectKind) -> dict[str, Any]:
        """Return the arguments of highdicom constructors that identify an object, its series and its software."""
        return {
            "series_instance_uid": series_uid(self.uid),
            "series_number": self.settings.series_number + _SERIES_OFFSETS[kind],
            "sop_instance_uid": self.uid,
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "transfer_syntax_uid": ExplicitVRLittleEndian,
        }

    def encode(self, document: Dataset) -> bytes:
        """Return the encoded DICOM file of an object, with the times of the prediction."""
        prediction, source, time = self.prediction, self.header, self.time
        formats = (
            dict.fromkeys(_DATES, "%Y%m%d")
            | dict.fromkeys(_TIMES, "%H%M%S.%f")
            | dict.fromkeys(_DATE_TIMES, "%Y%m%d%H%M%S.%f%z")
        )
        for element in document.iterall():
            if element.keyword in formats:
                element.value = time.strftime(formats[element.keyword])
        if zone := source.get("TimezoneOffsetFromUTC"):
            document.TimezoneOffsetFromUTC = zone
        document.SpecificCharacterSet = "ISO_IR 192"
        document.ManufacturerModelName, document.SoftwareVersions = prediction.model.name[:64], __version__
        statement = "withdrawn" if document.Modality == "KO" else decision_label(self.decision)
        document.SeriesDescription = self.series_description(statement)
        for name in (*_NAMES, *_COPIED):
            if source.get(name):
                setattr(document, name, source[name].value)
        if document.Modality in ("OT", "PR"):
            if source.get("BodyPartExamined") == "CHEST":  # unpaired, so the series has no laterality
                document.BodyPartExamined = "CHEST"
            else:
                document.Laterality = source.get("Laterality") or ""
        file = io.BytesIO()
        document.save_as(file, enforce_file_format=True)
        return file.getvalue()


def secondary_capture(result: Result, image: Radiograph | None) -> bytes:
    """Return a Secondary Capture: the image, with its heatmap if there is one, and the result burned in.

    Args:
        result: The result.
        image: The decoded image; None if it cannot be decoded, in which case only the reason is drawn.
    Raises:
        OSError: The font in the settings cannot be read.
    """
    source, settings = result.source(), result.settings
    pixels = draw_result(
        result.prediction,
        image,
        result.heatmap,
        result.population,
        prevalence=result.prevalence,
        languages=settings.languages,
        font=settings.font,
    )
    capture = highdicom.sc.SCImage.from_ref_dataset(
        source,
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=patient_orientation(source),
        **result.identification("secondary_capture"),
    )
    capture.BurnedInAnnotation = "YES"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.ImageComments = result.notice[:10_240]
    capture.DerivationDescription = (
        "Result of pneumonia detection, drawn on the image"
        if image
        else "Why there is no result of pneumonia detection"
    )
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    capture.SourceImageSequence = [reference]
    return result.encode(capture)


def describe(result: Result, kind: ObjectKind) -> Dataset:
    """Return the series and instance elements of an object that searches match, without creating the object."""
    identification, time = result.identification(kind), result.time
    description = Dataset()
    description.SOPClassUID, description.SOPInstanceUID = SOP_CLASSES[kind], result.uid
    description.SeriesInstanceUID, description.Modality = identification["series_instance_uid"], _MODALITIES[kind]
    description.SeriesNumber, description.InstanceNumber = identification["series_number"], 1
    description.SeriesDescription = result.series_description(decision_label(result.decision))
    description.SeriesDate, description.SeriesTime = time.strftime("%Y%m%d"), time.strftime("%H%M%S.%f")
    description.Manufacturer = MANUFACTURER
    return description


def rejection_note(result: Result, withdrawn_uids: Mapping[ObjectKind, str]) -> bytes:
    """Return a Key Object Selection, titled "Rejected for Quality Reasons", that withdraws previously delivered objects.

    Args:
        result: The withdrawn result.
        withdrawn_uids: UIDs of the withdrawn objects by kind.
    Source: IHE Radiology, Imaging Object Change Management.
    """
    withdrawn = []
    for kind, uid in withdrawn_uids.items():
        item = result.source()
        item.SOPClassUID, item.SOPInstanceUID, item.SeriesInstanceUID = SOP_CLASSES[kind], uid, series_uid(uid)
        item.Modality = _MODALITIES[kind]
        if kind in ("structured_report", "presentation_state"):  # otherwise, highdicom would refer to an image
            for name in ("Rows", "Columns"):
                if name in item:
                    delattr(item, name)
        withdrawn.append(item)
    note = highdicom.ko.KeyObjectSelectionDocument(
        evidence=withdrawn,
        content=highdicom.ko.KeyObjectSelection(
            document_title=codes.DCM.RejectedForQualityReasons,
            referenced_objects=withdrawn,
            description="The result was withdrawn or replaced by another one",
        ),
        **result.identification("rejection_note"),
    )
    for item in note.ContentSequence:
        if item.ValueType in ("IMAGE", "COMPOSITE"):  # TID 2010 does not allow a purpose of reference
            del item.ConceptNameCodeSequence
    return result.encode(note)


def patient_orientation(source: Dataset) -> tuple[str, str]:
    """Return the patient orientation of the image; that of a frontal radiograph if the header has no valid one."""
    stated = source.get("PatientOrientation")
    if isinstance(stated, Sequence) and len(stated) == 2 and all(_DIRECTION.fullmatch(str(each)) for each in stated):
        return str(stated[0]), str(stated[1])
    return "L", "F"


def series_uid(uid: str) -> str:
    """Return the Series Instance UID of an object; each object has a separate series."""
    return derive_uid(f"series {uid}")
