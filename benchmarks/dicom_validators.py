"""Check every kind of DICOM object that pneumoscope writes with independent validators, and write results/dicom/validators.md.

The objects are those of tests/service/dicom/result_objects.py: every decision for every header, and one decision for every
character set. The exit status is 1 if a validator reports an error, or a warning that `EXPLANATIONS` does not explain.

    python benchmarks/dicom_validators.py --out results/dicom/validators.md

On Debian, install dicom3tools, dcmtk, libpixelmed-java and a JDK.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.service.dicom.result_objects import Objects, all_objects
from tests.service.dicom.validators import VALIDATORS, Finding, Validator

from pneumoscope import __version__
from pneumoscope.core.files import write_atomically

# Messages by a pattern, and why they are not faults of the objects.
EXPLANATIONS = {
    r"Unrecognized defined term <99PNEUMOSCOPE>": "The private coding scheme, which the object identifies (PS3.3 C.12.1)",
    r"Unrecognized defined term <QUANTITY> for value 4": "A defined term of Parametric Maps, which the program does not know",
    r"needed to build DICOMDIR": "The image states no study date, time or ID; they are copied as they are",
    r"Retired Person Name form": "The name of the image, the example of PS3.5 H.3, is copied as it is",
    r"Different information entities for attribute - Element=<(AccessionNumber|IssuerOfAccessionNumberSequence)>": (
        "The tables of the program place the element in the series of some objects and in the study of others"
    ),
    r"Attribute present in one instance but not the other": (
        "The image lacks an element that the objects need to have; it is empty there"
    ),
    r"String attribute has different value - Element=<PatientName>": (
        "The program compares bytes: the image has the name in its own character set, and the objects have it in UTF-8. The texts"
        " are equal (`tests/service/dicom/test_result_objects.py`)"
    ),
    r"VR checker does not support this Specific Character Set": "This version checks texts in ASCII and Latin alphabets only",
    r"Check for template constraints not yet supported": "A limitation of the program; PixelMed checks the templates",
    r"Content Item not in template": (
        "An addition to the template TID 1500, which is extensible; newer editions of TID 4019 have Algorithm Manufacturer"
    ),
}
_SLOW = "DicomSRValidator (PixelMed)"  # seconds for each document
_HEADERS_OF_SLOW = ("complete", "mirrored", "lateral")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file to write, Markdown")
    options = parser.parse_args(arguments)
    everything = list(all_objects())
    parts, is_clean = [_HEADING.format(version=__version__, n=len(everything))], True
    for validator in VALIDATORS:
        chosen = everything
        if validator.name == _SLOW:
            chosen = [each for each in everything if each.name.endswith(_HEADERS_OF_SLOW)]
        section, clean = _section(validator, chosen)
        parts.append(section)
        is_clean &= clean
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, "\n".join(parts).encode())
    return 0 if is_clean else 1


_HEADING = """# DICOM objects and validators

Written by `python benchmarks/dicom_validators.py`, pneumoscope {version}. The objects of {n} predictions: every decision
(pneumonia, no pneumonia, uncertain, rejected, unreadable, lost) for every header, and one for every character set, each with
the note that withdraws them. Synthetic images.
"""


def _section(validator: Validator, objects: Sequence[Objects]) -> tuple[str, bool]:
    """Return the section of a validator, and whether all that it found is explained."""
    version = validator.version()
    title = f"## {validator.name}\n"
    if not version:
        return f"{title}\nNot installed: not run.\n", False
    findings, count = validator.check(objects)
    explained = Counter((finding, _explanation(finding)) for finding in findings)
    errors = sum(n for (finding, _), n in explained.items() if finding.is_error)
    unexplained = sum(n for (_, why), n in explained.items() if not why)
    warnings = explained.total() - errors
    lines = [title, f"Version {version}. {count} objects: {', '.join(validator.kinds)}.", ""]
    lines.append(f"Errors: {errors}. Warnings: {warnings}. Not explained: {unexplained}.")
    if explained:
        lines += ["", "| message | objects | number | explanation |", "| --- | --- | --- | --- |"]
    rows: Counter[tuple[str, str, str]] = Counter()
    kinds: dict[tuple[str, str, str], set[str]] = {}
    for (finding, why), n in explained.items():
        row = "error" if finding.is_error else "warning", _general(finding.text), why or "**none**"
        rows[row] += n
        kinds.setdefault(row, set()).add(finding.kind or "all")
    for row, n in sorted(rows.items()):
        level, text, why = row
        lines.append(f"| {level}: {text.replace('|', '/')} | {', '.join(sorted(kinds[row]))} | {n} | {why} |")
    return "\n".join(lines) + "\n", not unexplained


def _explanation(finding: Finding) -> str:
    return next((why for pattern, why in EXPLANATIONS.items() if re.search(pattern, finding.text)), "")


def _general(text: str) -> str:
    """Return a message without values, and with the last part of the path of a content item."""
    text = re.sub(r"/CONTAINER .*/(?=(TEXT|CODE|NUM|IMAGE) \()", "", text)
    return re.sub(r"(Value 1|PN \[1\] =) <.*?>( versus <.*?>)?", "", text).strip()


if __name__ == "__main__":
    sys.exit(main())
