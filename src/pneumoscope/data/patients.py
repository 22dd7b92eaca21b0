"""Find patient identifiers in file names of the public pediatric data set and in columns of a CSV file.

Each series is numbered separately: `person100_bacteria` and `person100_virus` are different patients, as are `IM-0115` and
`NORMAL2-IM-0115`. The patient identifier is therefore (series, number). By number alone, 264 patients would wrongly appear to
be in both train and test.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence

from pneumoscope.core.errors import ManifestError

__all__ = [
    "FileNameInfo",
    "find_patient_column",
    "is_patient_column",
    "parse_file_name",
    "parse_nih_patient",
    "parse_patient",
]


@dataclasses.dataclass(frozen=True, slots=True)
class FileNameInfo:
    """Patient and etiology parsed from a file name.

    Attributes:
        patient: Patient identifier "<series>-<number>"; "" if unknown.
        etiology: "normal", "bacteria", "virus", or "" if unknown.
    """

    patient: str
    etiology: str


_UNKNOWN = FileNameInfo("", "")
# Version 2, which Kaggle redistributes: person100_bacteria_475.jpeg, person1_virus_6_2.jpeg.
_VERSION_2_PNEUMONIA = re.compile(r"person(?P<number>\d+)_(?P<etiology>bacteria|virus)_\d+(_\d+)?")
# Version 2, normal: IM-0115-0001.jpeg, NORMAL2-IM-0115-0001-0002.jpeg.
_VERSION_2_NORMAL = re.compile(r"(?P<series>(NORMAL2-)?IM)-(?P<number>\d+)-\d+(-\d+)?")
# Version 3: BACTERIA-1008087-0001.jpeg. Identifiers stay upper case, because the numbers differ from version 2.
_VERSION_3 = re.compile(r"(?P<series>BACTERIA|VIRUS|NORMAL)-(?P<number>\d+)-\d+")
# NIH ChestX-ray14: 00000013_005.png, optionally with a prefix, nih-00000013_005.jpeg.
_NIH = re.compile(r"(?P<patient>(?:.*\D)?\d{8})_\d{3}")
# Columns that identify patients, in lower case without other characters: "Patient ID" is "patientid".
_PATIENT_COLUMNS = {
    *("patient", "patientid", "patientidentifier", "patientkey", "patientnumber"),
    *("participant", "participantid", "subject", "subjectid"),
}
# Other columns that may identify patients; those matching the second pattern are properties of patients.
_ABOUT_PATIENTS = re.compile(r"patient|participant|\bsubject\b|\bmrn\b|\bpid\b|\bpat id\b")
_PATIENT_PROPERTY = re.compile(
    r"age|sex|gender|birth|dob|weight|height|size|orientation|position|race|ethnic|comment|history|status"
)
_PATIENT = re.compile(r"(?P<series>.*?)-?(?P<number>\d+)")


def parse_file_name(name: str) -> FileNameInfo:
    """Return the patient and etiology in a file name; both are empty if its pattern is unknown.

    Args:
        name: File name without folders; the extension is ignored.
    """
    stem = name.partition(".")[0]
    if match := _VERSION_2_PNEUMONIA.fullmatch(stem):
        return FileNameInfo(f"{match['etiology']}-{match['number']}", match["etiology"])
    if match := _VERSION_2_NORMAL.fullmatch(stem):
        return FileNameInfo(f"{match['series']}-{match['number']}", "normal")
    if match := _VERSION_3.fullmatch(stem):
        return FileNameInfo(f"{match['series']}-{match['number']}", match["series"].lower())
    return _UNKNOWN


def parse_patient(patient: str) -> tuple[str, int] | None:
    """Return the series and number of a patient identifier: "NORMAL2-IM-0381" is ("NORMAL2-IM", 381).

    None if the identifier does not end in a number.
    """
    match = _PATIENT.fullmatch(patient)
    return (match["series"], int(match["number"])) if match else None


def parse_nih_patient(name: str) -> str:
    """Return the patient in an NIH ChestX-ray14 file name, or "" if the name has a different pattern."""
    match = _NIH.fullmatch(name.partition(".")[0])
    return match["patient"] if match else ""


def is_patient_column(column: str) -> bool:
    """Return whether a column, by its name, identifies patients or may do so; see `find_patient_column`."""
    return _is_known(column) or _may_identify(column)


def _is_known(column: str) -> bool:
    return re.sub(r"[\W_]", "", column.lower()) in _PATIENT_COLUMNS


def _may_identify(column: str) -> bool:
    words = re.sub(r"[\W_]+", " ", column.lower())
    return bool(_ABOUT_PATIENTS.search(words)) and not _PATIENT_PROPERTY.search(words)


def find_patient_column(
    columns: Sequence[str], rows: Sequence[Mapping[str, str]], lines: Sequence[int], name: str, *, option: str = ""
) -> str:
    """Return the column of a CSV file that identifies patients, or "" if there is none or it is empty.

    Case and punctuation of column names are ignored: "PatientID" and "patient_id" are equivalent.

    Args:
        columns: Column names.
        rows: Rows of the file; values may be missing.
        lines: Line number of each row, for messages.
        name: Name of the file for messages.
        option: Option that selects the column, for hints; empty if there is none.

    Raises:
        ManifestError: Two such columns differ, or a column with an unknown name seems to identify patients.
    """

    def values(column: str) -> list[str]:
        return [(row.get(column) or "").strip() for row in rows]

    used = [column for column in columns if any(values(column))]
    known = [column for column in used if _is_known(column)]
    for other in known[1:]:
        for line, a, b in zip(lines, values(known[0]), values(other), strict=True):
            if a != b:
                raise ManifestError(
                    f"{name} has two columns that identify patients, and in line {line} {known[0]!r} is {a!r} and"
                    f" {other!r} is {b!r}",
                    hint=f"Choose one with {option} {shlex.quote(known[0])}, or remove one of the columns"
                    if option
                    else "Remove one of the columns",
                )
    if known:
        return known[0]
    for column in used:
        if _may_identify(column):
            named = f"add {option} {shlex.quote(column)}, or " if option else ""
            raise ManifestError(
                f"{name} has a column {column!r} and no column patient, so that patients would be ignored",
                hint=f"If {column!r} identifies patients, {named}rename it to patient; otherwise remove it",
            )
    return ""
