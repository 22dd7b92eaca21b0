"""Who is on an image, read from its name. Wrong keys here make leaks there, so the rule stands alone.

Each series of the public set counts for itself: `person100_bacteria` and `person100_virus` are two patients, and so are
`IM-0115` and `NORMAL2-IM-0115`. The key is therefore (series, number); a key of the number alone finds 264 patients in
both train and test that are not there.
"""

from __future__ import annotations

import dataclasses
import re

__all__ = ["Identity", "identify", "series_and_number"]


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """What a file name tells.

    Attributes:
        patient: the key "<series>-<number>"; "" where the name does not tell.
        etiology: "normal", "bacteria", "virus", or "" where the name does not tell.
    """

    patient: str
    etiology: str


_UNKNOWN = Identity("", "")
# Version 2, which Kaggle redistributes: person100_bacteria_475.jpeg, person1_virus_6_2.jpeg.
_PERSON = re.compile(r"person(?P<number>\d+)_(?P<etiology>bacteria|virus)_\d+(_\d+)?")
# Version 2, normal: IM-0115-0001.jpeg, NORMAL2-IM-0115-0001-0002.jpeg.
_STUDY = re.compile(r"(?P<series>(NORMAL2-)?IM)-(?P<number>\d+)-\d+(-\d+)?")
# Version 3: BACTERIA-1008087-0001.jpeg. Its keys keep the capitals: its numbers are not those of version 2.
_VERSION_3 = re.compile(r"(?P<series>BACTERIA|VIRUS|NORMAL)-(?P<number>\d+)-\d+")
_NUMBERED = re.compile(r"(?P<series>.*?)-?(?P<number>\d+)")


def identify(name: str) -> Identity:
    """Patient and etiology from a file name.

    Args:
        name: without folders; the extension does not matter.
    Returns:
        What the name tells; an unknown name gives an empty patient and etiology, never a guess.
    """
    stem = name.partition(".")[0]
    if match := _PERSON.fullmatch(stem):
        return Identity(f"{match['etiology']}-{match['number']}", match["etiology"])
    if match := _STUDY.fullmatch(stem):
        return Identity(f"{match['series']}-{match['number']}", "normal")
    if match := _VERSION_3.fullmatch(stem):
        return Identity(f"{match['series']}-{match['number']}", match["series"].lower())
    return _UNKNOWN


def series_and_number(patient: str) -> tuple[str, int] | None:
    """A key taken apart: "NORMAL2-IM-0381" is ("NORMAL2-IM", 381).

    Returns:
        Series and number; None where the key does not end in a number and so has no neighbours.
    """
    match = _NUMBERED.fullmatch(patient)
    return (match["series"], int(match["number"])) if match else None
