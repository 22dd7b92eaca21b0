"""Every kind of object over decisions and headers, for the tests and for `benchmarks/dicom_validators.py`."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage
from tests.images import dicom

from pneumoscope.core.interval import Interval
from pneumoscope.core.population import Population
from pneumoscope.core.prediction import Failure, ModelInfo, Prediction, Rejection, Uncertainty
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.imaging.dicom_parts import read_part
from pneumoscope.imaging.image import Radiograph
from pneumoscope.inference.saliency import Heatmap
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.header import read_header
from pneumoscope.service.dicom.overlays import parametric_map, presentation_state
from pneumoscope.service.dicom.report import structured_report
from pneumoscope.service.dicom.results import Result, rejection_note, secondary_capture
from pneumoscope.service.storage.outbox_records import ObjectKind, result_uid

__all__ = [
    "CHARACTER_SETS", "HEADERS", "PREDICTIONS", "Objects", "all_objects", "image_file", "objects", "read_display",
]  # fmt: skip

CREATED = "2026-11-20T07:08:09.123456+00:00"
_SIZE = 96  # pixels of each side
POPULATION = Population(ages=(1, 5), sites=1, view="AP")
_PREDICTION = Prediction(
    path="a.dcm",
    decision="pneumonia",
    probability=0.87,
    interval=Interval(0.87, 0.8, 0.92, method="Venn-Abers", n=500, level=None),
    threshold=0.36,
    operating_point="balanced",
    model=ModelInfo("default", "0.1.0", "0123456789abcdef" * 4),
)
_NOTHING: dict[str, Any] = {"probability": None, "interval": None}

# One of every decision; a file that could not be read has none, nor one that was lost.
PREDICTIONS: Mapping[str, Prediction] = {
    "pneumonia": _PREDICTION,
    "no_pneumonia": dataclasses.replace(_PREDICTION, decision="no_pneumonia", probability=0.02, interval=None),
    "uncertain": dataclasses.replace(
        _PREDICTION,
        decision="uncertain",
        probability=0.5,
        uncertainty=Uncertainty(0.3, 0.6, 0.95),
        warnings=("age_not_stated",),
        model=dataclasses.replace(_PREDICTION.model, prevalence=0.05),
    ),
    "rejected": dataclasses.replace(
        _PREDICTION, decision="rejected", rejection=Rejection("lateral_view", {"view": "LL"}), **_NOTHING
    ),
    "unreadable": dataclasses.replace(
        _PREDICTION,
        decision=None,
        threshold=None,
        failure=Failure("unreadable_image", "", reason=UnreadableReason("multiple_frames", {"frames": 12})),
        **_NOTHING,
    ),
    "lost": dataclasses.replace(_PREDICTION, decision=None, threshold=None, failure=Failure("lost", ""), **_NOTHING),
}

# Bytes of a person's name, and the text that they stand for.
CHARACTER_SETS: Mapping[str, tuple[str | list[str], bytes, str]] = {
    "ASCII": ("", b"Smith^John", "Smith^John"),
    "ISO_IR 192": ("ISO_IR 192", "Wang^XiaoMing=王^小明".encode(), "Wang^XiaoMing=王^小明"),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
    "GB18030, four bytes": ("GB18030", "Wang^㐂=王^㐂".encode("gb18030"), "Wang^㐂=王^㐂"),
    "GBK": ("GBK", "Wang^XiaoDong=王^小东".encode("gbk"), "Wang^XiaoDong=王^小东"),
    "Big5": ("BIG5", "Wang^XiaoDong=王^小東".encode("big5"), "Wang^XiaoDong=王^小東"),
    "UTF-8 without a character set": ("", "王^小東".encode(), "王^小東"),
    "ISO_IR 100 without a character set": ("", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
    "ISO_IR 100": ("ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
    "ISO_IR 144": ("ISO_IR 144", "Люксембург".encode("iso8859-5"), "Люксембург"),
    "ISO 2022 IR 87": (
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
        "Yamada^Tarou=山田^太郎",
    ),
    "ISO 2022 IR 149": (
        ["", "ISO 2022 IR 149"],
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7",
        "Hong^Gildong=洪^吉洞",
    ),
    "ISO 2022 IR 58": (
        ["", "ISO 2022 IR 58"],
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab",
        "Zhang^XiaoDong=张^小东",
    ),
}


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


_FULL = {
    "PatientID": "7", "IssuerOfPatientID": "NTUH", "PatientName": "Smith^John", "PatientBirthDate": "20200131",
    "PatientBirthTime": "0315", "PatientSex": "F",
    "PatientAge": "003Y", "StudyID": "1", "StudyDate": "20240401", "StudyTime": "101500", "AccessionNumber": "A-1",
    "StudyDescription": "Chest PA", "ReferringPhysicianName": "Lin^A", "TimezoneOffsetFromUTC": "+0800",
    "OtherPatientNames": "Smyth^John", "PhysiciansOfRecord": ["Lin^A", "Chen^B"], "NameOfPhysiciansReadingStudy": "Wu^C",
    "OtherPatientIDsSequence": [_item(PatientID="N-7", IssuerOfPatientID="NHI", TypeOfPatientID="TEXT")],
    "IssuerOfAccessionNumberSequence": [_item(UniversalEntityID="1.2.3.9", UniversalEntityIDType="ISO")],
    "ProcedureCodeSequence": [_item(CodeValue="399208008", CodingSchemeDesignator="SCT", CodeMeaning="Chest X-ray")],
}  # fmt: skip
HEADERS: Mapping[str, Mapping[str, Any]] = {
    "complete": _FULL,
    "with empty elements": {"PatientID": "7", "PatientName": "", "PatientBirthDate": "", "StudyDate": "", "StudyTime": ""},
    "computed radiography": {**_FULL, "SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR"},
    "mirrored": {**_FULL, "PatientOrientation": ["R", "F"]},
    "lateral": {**_FULL, "PatientOrientation": ["A", "F"], "Laterality": "L"},
    "black and white inverted": {
        **_FULL, "PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": "1", "RescaleIntercept": "0"
    },
    "two windows": {
        **_FULL, "WindowCenter": ["127.5", "100"], "WindowWidth": ["256", "50"], "WindowCenterWidthExplanation": ["A", "B"]
    },
    "no window": {**_FULL, "WindowCenter": None, "WindowWidth": None},
}  # fmt: skip


class Objects(NamedTuple):
    """The objects of one prediction.

    Attributes:
        name: Decision and header.
        image: The file of the image.
        files: The objects by kind.
    """

    name: str
    image: bytes
    files: dict[ObjectKind, bytes]


def image_file(*, name: tuple[str | list[str], bytes] | None = None, **elements: Any) -> bytes:
    """Return the file of an image with a study.

    Args:
        name: SpecificCharacterSet, and the bytes of PatientName.
        elements: Elements; see `tests.images.dicom`.
    """
    file = dicom(
        100,
        _SIZE,
        **{"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": "1.2.3.4.5", **elements},
    )
    if name is None:
        return file
    placeholder = b"NAME" * 20
    content = placeholder[: len(name[1]) + len(name[1]) % 2]
    dataset = pydicom.dcmread(io.BytesIO(file))
    dataset.PatientName, dataset.SpecificCharacterSet = content.decode(), name[0]
    written = io.BytesIO()
    dataset.save_as(written)
    return written.getvalue().replace(content, name[1].ljust(len(content)))


def heatmap(pixels: int = _SIZE) -> Heatmap:
    """Return a heatmap that is strongest at the lower left of the image."""
    values = np.full((7, 7), -0.01, np.float32)
    values[4:6, 1:3] = 0.4
    return Heatmap(Radiograph(np.full((pixels, pixels), 100, np.uint8), "a.dcm", "DICOM", ""), values, "squash")


def read_display(file: bytes) -> Dataset:
    """Return the elements that describe the gray levels of an image."""
    return Dataset.from_json(read_part(file, "display").decode())


def objects(decision: str, file: bytes, name: str = "", settings: ResultSettings | None = None) -> Objects:
    """Return the objects of a prediction for an image, with the note that withdraws them."""
    prediction, header = PREDICTIONS[decision], read_header(file)
    shown = heatmap() if prediction.probability is not None else None

    def result(kind: ObjectKind) -> Result:
        uid = result_uid(kind, header.SOPInstanceUID, decision)
        return Result(uid, prediction, CREATED, header, settings or ResultSettings(), POPULATION, shown)

    files: dict[ObjectKind, bytes] = {"structured_report": structured_report(result("structured_report"))}
    image = None if prediction.failure else heatmap().image
    files["secondary_capture"] = secondary_capture(result("secondary_capture"), image)
    if image:
        files["presentation_state"] = presentation_state(result("presentation_state"), read_display(file))
    if shown:
        files["parametric_map"] = parametric_map(result("parametric_map"), shown)
    uids: dict[ObjectKind, str] = {kind: result(kind).uid for kind in files}
    files["rejection_note"] = rejection_note(result("rejection_note"), uids)
    return Objects(name or decision, file, files)


def all_objects(settings: ResultSettings | None = None) -> Iterator[Objects]:
    """Yield the objects of every decision for every header, and of one decision for every character set."""
    for header, elements in HEADERS.items():
        file = image_file(**elements)
        for decision in PREDICTIONS:
            yield objects(decision, file, f"{decision}, {header}", settings)
    for label, (character_set, name, _) in CHARACTER_SETS.items():
        file = image_file(name=(character_set, name), **{**HEADERS["complete"], "IssuerOfPatientID": "A"})
        yield objects("pneumonia", file, f"pneumonia, {label}", settings)


def read(file: bytes) -> Dataset:
    """Return an object."""
    return pydicom.dcmread(io.BytesIO(file))
