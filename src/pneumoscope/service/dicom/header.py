"""Read the DICOM header elements needed for reception, site rules and results, and convert them to and from JSON."""

from __future__ import annotations

import json
import re

from pydicom import DataElement, Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.imaging.dicom_elements import MAX_HEADER_BYTES, read_first_elements
from pneumoscope.imaging.header_identity import repair_text

__all__ = [
    "MANUFACTURER",
    "decode_header",
    "encode_header",
    "is_own_result",
    "read_header",
]

MANUFACTURER = "pneumoscope"  # value of Manufacturer in objects written by this package
# Elements that results copy from the image (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2), and those needed for references and site
# rules.
HEADER_ELEMENTS = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientBirthTime", "PatientSex", "PatientAge",
    "OtherPatientIDs", "PatientSize", "PatientWeight", "EthnicGroup", "PatientComments", "AdditionalPatientHistory",
    "OtherPatientNames", "OtherPatientIDsSequence", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "StudyDescription", "ReferringPhysicianName", "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy", "ProcedureCodeSequence", "PatientOrientation", "BodyPartExamined", "Laterality", "Rows",
    "Columns", "ViewPosition", "StationName", "Manufacturer", "TimezoneOffsetFromUTC",
)  # fmt: skip
# Elements of sequence items: required ones, then optional ones (PS3.3 C.7.1.1, tables 8.8-1 and 10-17).
_ITEM_ELEMENTS = {
    "OtherPatientIDsSequence": (("PatientID", "TypeOfPatientID"), ("IssuerOfPatientID",)),
    "IssuerOfAccessionNumberSequence": ((), ("LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType")),
    "ProcedureCodeSequence": (
        ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"), ("CodingSchemeVersion",),
    ),
}  # fmt: skip
_ENTITY_ID_TYPES = ("DNS", "EUI64", "ISO", "URI", "UUID", "X400", "X500")
_PATIENT_ID_TYPES = ("TEXT", "RFID", "BARCODE")
_LAST_ELEMENT = 0x00280011  # Columns: the last one in file order
# Elements that must be present, but may be empty.
_REQUIRED_ELEMENTS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Allowed values (PS3.5 6.2).
_VALUE_PATTERNS = {
    "DA": r"([0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01]))?",
    "TM": r"(([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?)?",
    "AS": r"([0-9]{3}[DWMY])?",
    "UI": r"([0-9.]{1,64})?",
}
_TIME_ZONE = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]")


def read_header(file: bytes) -> Dataset:
    """Return the header elements of a DICOM file that its results need, as Unicode text.

    Values that violate their value representation are emptied, because they would make the results invalid.

    Raises:
        UnreadableImageError: The file is not a DICOM image, has more than 4 MiB before the pixels, or has no SOP Class
            UID or SOP Instance UID.
    """
    try:
        header = read_first_elements(file[:MAX_HEADER_BYTES], list(HEADER_ELEMENTS), _LAST_ELEMENT)
        character_set = header.get("SpecificCharacterSet")
        header.decode()
        for name in _ITEM_ELEMENTS:
            _keep_valid_items(header, name, character_set)
        for element in header:
            _repair(element, character_set)
            if (pattern := _VALUE_PATTERNS.get(element.VR)) and not re.fullmatch(pattern, str(element.value or "")):
                element.value = ""
    except Exception as error:  # untrusted bytes: pydicom may raise any type of error
        raise UnreadableImageError(
            "", UnreadableReason("dicom_header_not_readable", {"error": type(error).__name__})
        ) from error
    for name in ("SOPClassUID", "SOPInstanceUID"):
        if not header.get(name):
            raise UnreadableImageError("", UnreadableReason("element_not_valid", {"element": name}))
    # Rows is near the end; pydicom reads a truncated file without an error.
    if not header.get("Rows") and not is_own_result(header):
        raise UnreadableImageError("", UnreadableReason("rows_not_found"))
    for name in (*_REQUIRED_ELEMENTS, *_UIDS):
        if name not in header:
            setattr(header, name, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    if "TimezoneOffsetFromUTC" in header and not _TIME_ZONE.fullmatch(header.TimezoneOffsetFromUTC or ""):
        header.TimezoneOffsetFromUTC = ""
    header.SpecificCharacterSet = "ISO_IR 192"
    return header


def _keep_valid_items(header: Dataset, name: str, character_set: object) -> None:
    """Keep the valid items of a sequence, reduced to the copied elements; remove the sequence if none is valid."""
    required, optional = _ITEM_ELEMENTS[name]
    kept = []
    for item in header.get(name) or ():
        copied = Dataset()
        for element in (item[each] for each in (*required, *optional) if item.get(each)):
            _repair(element, character_set)
            copied.add(element)
        is_entity = "UniversalEntityID" in copied
        is_valid = (
            len(copied) > 0
            and all(each in copied for each in required)
            and copied.get("TypeOfPatientID", "TEXT") in _PATIENT_ID_TYPES
            and is_entity == ("UniversalEntityIDType" in copied)
            and copied.get("UniversalEntityIDType", "ISO") in _ENTITY_ID_TYPES
        )
        if is_valid:
            kept.append(copied)
    if kept:
        setattr(header, name, kept)
    elif name in header:
        delattr(header, name)


def _repair(element: DataElement, character_set: object) -> None:
    """Repair the text of an element in the same way as `imaging.header_identity`."""
    texts = list(element.value) if isinstance(element.value, MultiValue) else [element.value]
    if not all(isinstance(text, str | PersonName) for text in texts):
        return
    repaired = [repair_text(str(text), character_set) for text in texts]
    if repaired != list(map(str, texts)):
        element.value = repaired if isinstance(element.value, MultiValue) else repaired[0]


def encode_header(header: Dataset) -> str:
    """Return a header as DICOM JSON (PS3.18 F)."""
    return json.dumps(header.to_json_dict(), ensure_ascii=False)


def decode_header(text: str) -> Dataset:
    """Return the header encoded by `encode_header`."""
    header = Dataset.from_json(text)
    for name in (*_REQUIRED_ELEMENTS, *_UIDS):
        if header[name].value is None:
            setattr(header, name, "")
    return header


def is_own_result(header: Dataset) -> bool:
    """Return whether pneumoscope, on any machine, wrote the object, which must then not be predicted."""
    return bool(header.get("Manufacturer") == MANUFACTURER)
