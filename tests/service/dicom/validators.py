"""Programs that check DICOM objects, with one function that runs each, for tests and `benchmarks/dicom_validators.py`."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pydicom
from tests.service.dicom.result_objects import Objects

__all__ = ["VALIDATORS", "Finding", "Validator"]

_SECONDS = 60  # of one program for one file
_PIXELMED = Path("/usr/share/java/pixelmed.jar")  # of Debian's libpixelmed-java
# Java 17 limits the size of XPath expressions, which the rules of PixelMed exceed.
_LIMITS = ("xpathExprGrpLimit", "xpathExprOpLimit", "xpathTotalOpLimit")
# For seconds of work, the optimizing compiler and the parallel garbage collector cost more than they save.
_QUICK_START = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
_JAVA = """
import com.pixelmed.validate.DicomSRValidator;
class Validate {
    public static void main(String[] files) throws Exception {
        DicomSRValidator validator = new DicomSRValidator();
        for (String file : files) {
            System.out.println("file " + file + "\\n" + validator.validate(file));
        }
    }
}
"""


class Finding(NamedTuple):
    """A message of a validator.

    Attributes:
        is_error: Otherwise it is a warning.
        kind: Kind of object; empty if it is about several.
        text: The message, without the names of files.
    """

    is_error: bool
    kind: str
    text: str


class Validator(NamedTuple):
    """A program that checks objects.

    Attributes:
        name: Name of the program.
        kinds: Kinds of objects that it checks.
        version: Returns its version; empty if it is not installed.
        check: Returns its findings, and the number of objects that it checked.
    """

    name: str
    kinds: tuple[str, ...]
    version: Callable[[], str]
    check: Callable[[Sequence[Objects]], tuple[list[Finding], int]]


_KINDS = ("secondary_capture", "structured_report", "rejection_note", "parametric_map", "presentation_state")
_DOCUMENTS = ("structured_report", "rejection_note")


class _Output(NamedTuple):
    status: int
    text: str


def _run(*command: str, seconds: float = _SECONDS) -> _Output:
    done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    return _Output(done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"))


def _written(objects: Objects, folder: Path, kinds: Sequence[str]) -> Mapping[str, Path]:
    """Write the objects of some kinds, and return their files."""
    files = {}
    for kind, content in {"image": objects.image, **objects.files}.items():
        if kind in kinds:
            files[kind] = folder / f"{kind}.dcm"
            files[kind].write_bytes(content)
    return files


def _each(
    objects: Sequence[Objects], kinds: Sequence[str], check: Callable[[Path, str], list[Finding]]
) -> tuple[list[Finding], int]:
    findings, count = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for each in objects:
            for kind, file in _written(each, Path(folder), kinds).items():
                findings += check(file, kind)
                count += 1
    return findings, count


def _prefixed(output: _Output, kind: str, error: str, warning: str) -> list[Finding]:
    """Return the lines that begin as errors or warnings; a program that fails without such a line is an error, too."""
    found = []
    for line in output.text.splitlines():
        if line.startswith((error, warning)):
            text = re.sub(
                r"for file <[^>]*>( versus <[^>]*>)?", "", line.partition(" " if error[-1] == ":" else " - ")[2]
            )
            found.append(Finding(line.startswith(error), kind, text.strip()))
    if output.status and not any(each.is_error for each in found):
        found.append(Finding(True, kind, f"exit status {output.status}: {output.text[-200:]}"))
    return found


def _debian_version(package: str) -> str:
    query = shutil.which("dpkg-query")
    return _run(query, "-W", "-f", "${Version}", package).text if query else "unknown version"


def _dciodvfy(objects: Sequence[Objects]) -> tuple[list[Finding], int]:
    return _each(objects, _KINDS, lambda file, kind: _prefixed(_run("dciodvfy", str(file)), kind, "Error", "Warning"))


def _dcentvfy(objects: Sequence[Objects]) -> tuple[list[Finding], int]:
    """Compare the entities of an image and of its objects."""
    findings, count = [], 0
    for each in objects:
        with tempfile.TemporaryDirectory() as folder:
            files = _written(each, Path(folder), ("image", *_KINDS))
            findings += _prefixed(_run("dcentvfy", *map(str, files.values())), "", "Error", "Warning")
            count += len(files) - 1
    return findings, count


def _dsrdump(objects: Sequence[Objects]) -> tuple[list[Finding], int]:
    def check(file: Path, kind: str) -> list[Finding]:
        return _prefixed(_run("dsrdump", str(file)), kind, "E:", "W:")

    return _each(objects, _DOCUMENTS, check)


def _pixelmed(objects: Sequence[Objects]) -> tuple[list[Finding], int]:
    """Check all documents in one Java process, which compiles the rules once."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "Validate.java"
        program.write_text(_JAVA, encoding="utf-8")
        files = {}
        for number, each in enumerate(objects):
            inner = Path(folder) / str(number)
            inner.mkdir()
            files.update({str(file): kind for kind, file in _written(each, inner, _DOCUMENTS).items()})
        output = _run(
            "java", *_QUICK_START, *(f"-Djdk.xml.{name}=0" for name in _LIMITS), "-cp", str(_PIXELMED), str(program), *files,
            seconds=_SECONDS + 30 * len(files),
        )  # fmt: skip
    findings, done, kind = [], 0, ""
    for line in output.text.splitlines():
        if line.startswith("file "):
            kind = files[line.removeprefix("file ")]
        done += line == "IOD validation complete"
        if line.startswith(("Error", "Warning")):
            findings.append(
                Finding(line.startswith("Error"), kind, re.sub(r"[0-9]+(\.[0-9]+)+: ", "", line.partition(": ")[2]))
            )
    if done < len(files):
        findings.append(Finding(True, "", f"only {done} of {len(files)} files were checked: {output.text[-500:]}"))
    return findings, len(files)


def _dicom_validator(objects: Sequence[Objects]) -> tuple[list[Finding], int]:
    from dicom_validator.validator.error_handler import NullValidationResultHandler
    from dicom_validator.validator.iod_validator import IODValidator
    from pydicom.datadict import keyword_for_tag
    from tests.service.dicom.dicom_standard import read_standard

    from pneumoscope.service.dicom.results import SOP_CLASSES

    standard = read_standard([str(uid) for uid in SOP_CLASSES.values()])

    def check(file: Path, kind: str) -> list[Finding]:
        found = IODValidator(pydicom.dcmread(file), standard, error_handler=NullValidationResultHandler()).validate()
        names = {
            (module, " > ".join(keyword_for_tag(each) for each in [*(tag.parents or []), tag.tag]), error.code.name)
            for module, errors in found.module_errors.items()
            for tag, error in errors.items()
        }
        findings = [Finding(True, kind, f"{module}: {name}: {code}") for module, name, code in sorted(names)]
        if found.status.name not in ("Passed", "Failed"):
            findings.append(Finding(True, kind, found.status.name))
        return findings

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it logs each step
    try:
        return _each(objects, _KINDS, check)
    finally:
        root.setLevel(level)


def _dicom_validator_version() -> str:
    if importlib.util.find_spec("dicom_validator") is None or importlib.util.find_spec("dicom_standard") is None:
        return ""
    from importlib.metadata import version

    return f"{version('dicom-validator')}, standard of dicom-standard {version('dicom-standard')} (edition of 2020)"


VALIDATORS = (
    Validator(
        "dciodvfy", _KINDS, lambda: _debian_version("dicom3tools") if shutil.which("dciodvfy") else "", _dciodvfy
    ),
    Validator(
        "dcentvfy", _KINDS, lambda: _debian_version("dicom3tools") if shutil.which("dcentvfy") else "", _dcentvfy
    ),
    Validator("dsrdump", _DOCUMENTS, lambda: _debian_version("dcmtk") if shutil.which("dsrdump") else "", _dsrdump),
    Validator(
        "DicomSRValidator (PixelMed)",
        _DOCUMENTS,
        lambda: _debian_version("libpixelmed-java") if _PIXELMED.exists() and shutil.which("javac") else "",
        _pixelmed,
    ),
    Validator("dicom-validator", _KINDS, _dicom_validator_version, _dicom_validator),
)
