"""The elements of a DICOM header that reception, site rules and results need, and their form in the database."""

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

MANUFACTURER = "pneumoscope"  # of the objects that this package writes
# Elements that results share with the image (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2), those that references to it need, and those of
# site rules.
HEADER_ELEMENTS = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientBirthTime", "PatientSex", "PatientAge",
    "OtherPatientIDs", "PatientSize", "PatientWeight", "EthnicGroup", "PatientComments", "AdditionalPatientHistory",
    "OtherPatientNames", "OtherPatientIDsSequence", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "StudyDescription", "ReferringPhysicianName", "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy", "ProcedureCodeSequence", "PatientOrientation", "BodyPartExamined", "Laterality", "Rows",
    "Columns", "ViewPosition", "StationName", "Manufacturer", "TimezoneOffsetFromUTC",
)  # fmt: skip
# Elements of the items of sequences, those first that an item must have (PS3.3 C.7.1.1, tables 8.8-1 and 10-17).
_ITEM_ELEMENTS = {
    "OtherPatientIDsSequence": (("PatientID", "TypeOfPatientID"), ("IssuerOfPatientID",)),
    "IssuerOfAccessionNumberSequence": ((), ("LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType")),
    "ProcedureCodeSequence": (
        ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"), ("CodingSchemeVersion",),
    ),
}  # fmt: skip
_ENTITY_ID_TYPES = ("DNS", "EUI64", "ISO", "URI", "UUID", "X400", "X500")
_PATIENT_ID_TYPES = ("TEXT", "RFID", "BARCODE")
_LAST_ELEMENT = 0x00280011  # Columns: the last of them in a file
# Those that may be empty, and not missing.
_REQUIRED_ELEMENTS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Values that are copied (PS3.5 6.2).
_VALUE_PATTERNS = {
    "DA": r"([0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01]))?",
    "TM": r"(([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?)?",
    "AS": r"([0-9]{3}[DWMY])?",
    "UI": r"([0-9.]{1,64})?",
}
_TIME_ZONE = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]")


def read_header(file: bytes) -> Dataset:
    """Return the elements of a DICOM file that its results need, as Unicode text.

    A value that its value representation does not allow is empty: it would make the results invalid.

    Raises:
        UnreadableImageError: The file is not DICOM or not an image, has more than 4 MiB before the pixels, or states no SOP Class
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
    except Exception as error:  # untrusted bytes: the library raises errors of any type
        raise UnreadableImageError(
            "", UnreadableReason("dicom_header_not_readable", {"error": type(error).__name__})
        ) from error
    for name in ("SOPClassUID", "SOPInstanceUID"):
        if not header.get(name):
            raise UnreadableImageError("", UnreadableReason("element_not_valid", {"element": name}))
    # The last of the elements: pydicom reads the beginning of a file without an error.
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
    """Keep the items of a sequence that have what they must have, with the elements that are copied; else remove the sequence."""
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
    """Set the text of an element to that of `imaging.header_identity`."""
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
    """Return the header of `encode_header`."""
    header = Dataset.from_json(text)
    for name in (*_REQUIRED_ELEMENTS, *_UIDS):
        if header[name].value is None:
            setattr(header, name, "")
    return header


def is_own_result(header: Dataset) -> bool:
    """Return whether an object was written by pneumoscope, on this machine or another: it must not be predicted."""
    return bool(header.get("Manufacturer") == MANUFACTURER)
