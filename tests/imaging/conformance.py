"""Files as hospitals and research data sets have them, each with the result that `predict` must give.

`test_conformance.py` predicts each of them; the table in docs/reference/inputs.md is generated from the same list.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset, Sequence, config, dcmwrite, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

__all__ = ["CASES", "GROUPS", "REFERENCE", "Case"]

SIDE = 96


def _reference() -> npt.NDArray[np.uint8]:
    """Return a smooth image with every gray level from 0 to 255; most pixels are of medium gray."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    levels = 0.5 + 0.35 * np.sin(5 * x) * np.cos(4 * y) + 0.15 * np.sin(9 * x * y)
    levels = (levels - levels.min()) / (levels.max() - levels.min())
    image: npt.NDArray[np.uint8] = np.round(255 * levels).astype(np.uint8)
    return image


REFERENCE = _reference()
FULL_WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
NO_WINDOW: dict[str, Any] = {"WindowCenter": None, "WindowWidth": None}


class Case(NamedTuple):
    """A file and its result.

    Attributes:
        group: Section of the table.
        what: What is special about the file, in Markdown.
        build: Returns the content of the file.
        result: "read", "warning: CODE CODE", "rejected: CODE", or "error: CODE" of the reason, followed by the type of the file.
        same_pixels: The decoded gray levels are those of `REFERENCE`, to 1 of 255.
    """

    group: str
    what: str
    build: Callable[[], bytes]
    result: str
    same_pixels: bool


CASES: list[Case] = []


def _add(group: str, what: str, build: Callable[[], bytes], result: str = "read", *, same_pixels: bool = True) -> None:
    is_image = result.startswith(("read", "warning")) and same_pixels
    CASES.append(Case(group, what, build, result, is_image))


def deep(bits: int = 12, levels: npt.NDArray[Any] = REFERENCE) -> npt.NDArray[np.uint16]:
    """Return the image with levels from 0 to 2**bits - 1."""
    return np.round(levels.astype(np.float64) * (2**bits - 1) / 255).astype(np.uint16)


def dataset(pixels: npt.NDArray[Any] | None = None, bits: int = 12, **elements: Any) -> Dataset:
    """Return a digital radiograph of a child's chest; elements that are None are left out."""
    pixels = deep(bits) if pixels is None else pixels
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = elements.pop("syntax", uid.ExplicitVRLittleEndian)
    data.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    defaults: dict[str, Any] = {
        "SOPClassUID": uid.DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": "1.2.3",
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "AP",
        "PresentationIntentType": "FOR PRESENTATION",
        "PatientAge": "003Y",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(np.issubdtype(pixels.dtype, np.signedinteger)),
        "PixelData": pixels.tobytes(),
        **(FULL_WINDOW if bits == 12 else {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}),
    }
    with _any_values():
        for keyword, value in (defaults | elements).items():
            if value is not None:
                setattr(data, keyword, value)
    if "PixelData" in data:
        data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    return data


class _any_values:  # noqa: N801  used as a context manager
    """Allow values that the standard does not allow, as other software writes them."""

    def __enter__(self) -> None:
        self._before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
        config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE

    def __exit__(self, *_: object) -> None:
        config.settings.reading_validation_mode, config.settings.writing_validation_mode = self._before


def written(data: Dataset) -> bytes:
    """Return the data set as a file."""
    file = io.BytesIO()
    with _any_values(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicom(pixels: npt.NDArray[Any] | None = None, bits: int = 12, **elements: Any) -> Callable[[], bytes]:
    """Return a function that returns a DICOM file; see `dataset`."""
    return lambda: written(dataset(pixels, bits, **elements))


def _without_meta(*, implicit: bool, little: bool = True, **elements: Any) -> bytes:
    """Return a data set without preamble and file meta information."""
    pixels = deep() if little else deep().astype(">u2")
    data = dataset(pixels, **elements)
    del data.file_meta
    file = io.BytesIO()
    dcmwrite(file, data, implicit_vr=implicit, little_endian=little)
    return file.getvalue()


def _without_syntax(*, encapsulated: bool = False) -> bytes:
    data = dataset()
    if encapsulated:
        data.compress(uid.RLELossless)
    whole = written(data)
    element = b"\x02\x00\x10\x00UI"
    start = whole.index(element)
    length = int.from_bytes(whole[start + 6 : start + 8], "little")
    shorter = whole[:start] + whole[start + 8 + length :]
    # The group length comes first: 4 bytes at 140.
    old = int.from_bytes(whole[140:144], "little")
    return shorter[:140] + (old - 8 - length).to_bytes(4, "little") + shorter[144:]


def lut(
    entries: npt.NDArray[Any], first: int = 0, bits: int = 12, count: int | None = None, vr: str = "US"
) -> Sequence:
    """Return a sequence with one lookup table; `count`, `first` and `bits` are what its descriptor states."""
    item = Dataset()
    count = len(entries) if count is None else count
    item.add_new("LUTDescriptor", vr, [count % 2**16, first, bits])
    item.LUTExplanation = "x"
    item.add_new("LUTData", "OW", entries.tobytes())
    return Sequence([item])


def code(value: str, meaning: str, scheme: str = "SCT") -> Sequence:
    """Return a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])


def _in_functional_group(**elements: Any) -> Dataset:
    data = dataset(WindowCenter=None, WindowWidth=None)
    window, group = Dataset(), Dataset()
    for keyword, value in elements.items():
        setattr(window, keyword, value)
    group.FrameVOILUTSequence = Sequence([window])
    data.SharedFunctionalGroupsSequence = Sequence([group])
    return data


def image(kind: str, pixels: npt.NDArray[Any] = REFERENCE, **options: Any) -> bytes:
    """Return an image file of another format than DICOM."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.png", image("PNG"))
    return file.getvalue()


def _big_endian_tiff(*, white_is_zero: bool) -> bytes:
    """Return a big-endian 16-bit TIFF of one strip."""
    levels = 255 - REFERENCE if white_is_zero else REFERENCE
    body = deep(16, levels).astype(">u2").tobytes()
    tags = [(256, SIDE), (257, SIDE), (258, 16), (259, 1), (262, 0 if white_is_zero else 1), (273, 8), (277, 1)]
    tags += [(278, SIDE), (279, len(body))]
    directory = struct.pack(">H", len(tags)) + b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    return b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + directory + bytes(4)


def _hot(bits: int, n: int, level: int) -> npt.NDArray[np.uint16]:
    pixels = deep(bits)
    pixels.ravel()[:n] = level
    return pixels


def _scattered(level: int) -> npt.NDArray[np.uint16]:
    pixels = deep(13)
    pixels.ravel()[::101] = level
    return pixels


def _signed(offset: int) -> npt.NDArray[np.int16]:
    return (deep().astype(np.int32) - offset).astype(np.int16)


def _padded(value: int, dtype: Any) -> npt.NDArray[Any]:
    pixels = (deep().astype(np.int64) - (2048 if np.issubdtype(dtype, np.signedinteger) else 0)).astype(dtype)
    pixels[:8] = value
    return pixels


def _with_padding(pixels: npt.NDArray[Any], vr: str, value: int) -> Callable[[], bytes]:
    def build() -> bytes:
        data = dataset(pixels, 16, **NO_WINDOW)
        data.add_new("PixelPaddingValue", vr, value)
        return written(data)

    return build


def _with_dead_pixels() -> npt.NDArray[np.uint16]:
    pixels = deep() + np.uint16(30_000)
    pixels.ravel()[:9] = 0
    return pixels


def _with_overlay() -> Dataset:
    pixels = deep()
    pixels[20:40, 20:40] |= 0x8000
    return dataset(pixels)


def _noise() -> npt.NDArray[np.uint16]:
    return np.random.default_rng(0).integers(2000, 2010, (SIDE, SIDE)).astype(np.uint16)


def _color_png() -> bytes:
    """Return a PNG of 16 bits per channel whose three channels hold 12 bits."""
    rows = np.repeat(deep().astype(">u2")[..., None], 3, axis=2)
    body = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def _compressed(syntax: uid.UID) -> Dataset:
    data = dataset()
    data.compress(syntax)
    return data


def _jpeg() -> Dataset:
    data = dataset(REFERENCE, 8, syntax=uid.JPEGBaseline8Bit)
    data.PixelData = encapsulate([image("JPEG", quality=100)])
    return data


def _with_modifier() -> Dataset:
    data = dataset()
    data.ViewCodeSequence = code("399348003", "antero-posterior")
    data.ViewCodeSequence[0].ViewModifierCodeSequence = code("102535000", "Lateral decubitus")
    return data


def _report() -> Dataset:
    data = dataset()
    for keyword in (
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
    ):
        del data[keyword]
    del data.PixelRepresentation
    del data.PixelData
    return data


def _structured_report() -> Dataset:
    data = _report()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.BasicTextSRStorage
    return data


def _dicomdir() -> Dataset:
    data = _report()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.MediaStorageDirectoryStorage
    return data


IDENTITY = np.arange(4096, dtype="<u2")

AGES = "Age of the patient (model for 1 to 5 years)"
for age in ("003Y", "3", "3Y", "0003Y", "003y", "3 years", "36 months", "0036M", "18M", "040W", "3.5", "2 YRS"):
    weeks = age == "040W"
    _add(AGES, f"PatientAge `{age}`", dicom(PatientAge=age), "rejected: outside_age_range" if weeks else "read")
for age in ("062Y", "62", "62Y", "0062Y", "062y", "62 years", "62 Jahre"):
    _add(AGES, f"PatientAge `{age}`", dicom(PatientAge=age), "rejected: outside_age_range")
for age, character_set in (("62歲", "ISO_IR 192"), ("62 лет", "ISO_IR 144")):
    encoding = "utf-8" if character_set == "ISO_IR 192" else "iso8859_5"
    _add(
        AGES, f"PatientAge `{age}` in {character_set}",
        dicom(PatientAge=age.encode(encoding).decode("latin-1"), SpecificCharacterSet=character_set),
        "rejected: outside_age_range",
    )  # fmt: skip
for age in ("62M", "ADULT", "-3", "999Y"):
    _add(AGES, f"PatientAge `{age}`", dicom(PatientAge=age), "rejected: age_not_understood")
for born in (
    "19600307",
    "1960.03.07",
    "1960-03-07",
    "1960/03/07",
    "07.03.1960",
    "07-MAR-1960",
    "7 March 1960",
    "25/12/1960",
):
    _add(
        AGES, f"PatientBirthDate `{born}`, StudyDate `20200101`",
        dicom(PatientAge=None, PatientBirthDate=born, StudyDate="20200101"), "rejected: outside_age_range",
    )  # fmt: skip
_add(
    AGES, "PatientBirthDate `03/07/1960` (July or March)",
    dicom(PatientAge=None, PatientBirthDate="03/07/1960", StudyDate="20200101"), "rejected: age_not_understood",
)  # fmt: skip
for element in ("StudyDate", "SeriesDate", "ContentDate", "AcquisitionDate", "AcquisitionDateTime"):
    _add(
        AGES, f"PatientBirthDate `20170101`, only {element} `2020.01.01`",
        dicom(PatientAge=None, PatientBirthDate="20170101", **{element: "2020.01.01"}),
    )  # fmt: skip
for date, result in (
    ("20201231", "rejected: outside_age_range"), ("20210101", "read"), ("20251231", "read"),
    ("20260101", "rejected: outside_age_range"),
):  # fmt: skip
    _add(
        AGES, f"PatientBirthDate `20200101`, StudyDate `{date}`",
        dicom(PatientAge=None, PatientBirthDate="20200101", StudyDate=date), result,
    )  # fmt: skip
_add(
    AGES, "PatientAge `003Y`, born 60 years before the examination",
    dicom(PatientBirthDate="19600101", StudyDate="20200101"), "rejected: age_not_understood",
)  # fmt: skip
_add(
    AGES, "AcquisitionDate after the reset of a clock",
    dicom(PatientAge=None, PatientBirthDate="19780301", AcquisitionDate="19800101", StudyDate="20200101"),
    "rejected: age_not_understood",
)  # fmt: skip
_add(
    AGES, "PatientBirthDate without any date of the examination",
    dicom(PatientAge=None, PatientBirthDate="20170101"), "rejected: age_not_understood",
)  # fmt: skip
_add(AGES, "neither age nor birth date", dicom(PatientAge=None), "warning: age_not_stated")
_add(AGES, "JPEG or PNG, which state no age", lambda: image("PNG"), "warning: age_not_stated")

PARTS = "Modality and body part"
for modality in ("DX", "CR", "RF", "RG", "XA", "cr", " DX ", "DR", "X-RAY", "CR/DX", "CR, DX", "DX."):
    _add(PARTS, f"Modality `{modality}`", dicom(Modality=modality))
for modality in ("CT", "MG", "US", "PT"):
    _add(PARTS, f"Modality `{modality}`", dicom(Modality=modality), "rejected: modality_not_supported")
for modality in ("OT", "PLATE"):
    _add(PARTS, f"Modality `{modality}`", dicom(Modality=modality), "rejected: modality_not_understood")
_add(PARTS, "no Modality; SOP class Digital X-Ray", dicom(Modality=None))
_add(
    PARTS, "no Modality; SOP class CT",
    dicom(Modality=None, SOPClassUID=uid.CTImageStorage), "rejected: modality_not_supported",
)  # fmt: skip
_add(
    PARTS, "no Modality; SOP class that the standard does not have",
    dicom(Modality=None, SOPClassUID="1.3.12.2.1107.5.9.1"), "rejected: modality_not_understood",
)  # fmt: skip
_add(PARTS, "neither Modality nor SOP class", dicom(Modality=None, SOPClassUID=None), "warning: modality_not_stated")
for part in (
    "CHEST", "THORAX", "TORAX", "Tórax", "THORAX AP", "LUNG", "LUNGS", "CHESTABDOMEN", "PULMON", "TORACE", "Brustkorb",
):  # fmt: skip
    _add(PARTS, f"BodyPartExamined `{part}`", dicom(BodyPartExamined=part))
for part, character_set in (("胸部", "ISO_IR 192"), ("грудная клетка", "ISO_IR 192"), ("ГРУДЬ", "ISO_IR 144")):
    encoding = "utf-8" if character_set == "ISO_IR 192" else "iso8859_5"
    _add(
        PARTS, f"BodyPartExamined `{part}` in {character_set}",
        dicom(BodyPartExamined=part.encode(encoding).decode("latin-1"), SpecificCharacterSet=character_set),
    )  # fmt: skip
for part in (
    "poumons", "BORSTKAS", "BRYSTKASSE", "pľúca", "PARU", "ТОРАКС", "ΠΝΕΥΜΟΝΕΣ", "ריאות", "ریه", "胸廓", "PHỔI",  # noqa: RUF001
    "RTG klatki piersiowej", "الرئة", "رئة",
):  # fmt: skip
    _add(
        PARTS, f"BodyPartExamined `{part}` in ISO_IR 192",
        dicom(BodyPartExamined=part.encode().decode("latin-1"), SpecificCharacterSet="ISO_IR 192"),
    )  # fmt: skip
for part in (
    "COL. TORACICA", "THORAKALE WS", "TORAKAL OMURGA", "HRUDNÍ PÁTEŘ", "MELLKASI GERINC", "THORACALE WERVELKOLOM",
    "cột sống ngực", "ГРУДНОЙ ОТДЕЛ", "ГРУДИНА", "грудная железа", "ΘΩΡΑΚΙΚΗ ΜΟΙΡΑ", "胸腰段", "胸12", "胸髄", "胸鎖関節",  # noqa: RUF001
    "PULMONARY ARTERY", "THORACIC DUCT", "الفقرات الظهرية", "الفقرات الصدرية", "ستون فقرات قفسه سینه", "עמוד שדרה חזה",
):  # fmt: skip
    _add(
        PARTS, f"BodyPartExamined `{part}` in ISO_IR 192",
        dicom(BodyPartExamined=part.encode().decode("latin-1"), SpecificCharacterSet="ISO_IR 192"),
        "rejected: body_part_not_chest",
    )  # fmt: skip
for part in ("HAND", "ABDOMEN", "THORACIC SPINE", "TSPINE", "COLUNA TORACICA", "PART 7"):
    _add(PARTS, f"BodyPartExamined `{part}`", dicom(BodyPartExamined=part), "rejected: body_part_not_chest")
_add(
    PARTS,
    "AnatomicRegionSequence Chest",
    dicom(BodyPartExamined=None, AnatomicRegionSequence=code("816094009", "Chest")),
)
_add(
    PARTS, "AnatomicRegionSequence Hand",
    dicom(BodyPartExamined=None, AnatomicRegionSequence=code("85562004", "Hand")), "rejected: body_part_not_chest",
)  # fmt: skip
_add(
    PARTS, "BodyPartExamined `胸部` in ISO 2022 IR 87",
    dicom(BodyPartExamined="\x1b$B6;It\x1b(B", SpecificCharacterSet=["", "ISO 2022 IR 87"]),
)  # fmt: skip
_add(
    PARTS, "BodyPartExamined `CHEST`, AnatomicRegionSequence Hand",
    dicom(AnatomicRegionSequence=code("85562004", "Hand")), "rejected: body_part_not_chest",
)  # fmt: skip
_add(PARTS, "no body part, SeriesDescription `CHEST PA`", dicom(BodyPartExamined=None, SeriesDescription="CHEST PA"))
_add(PARTS, "no body part", dicom(BodyPartExamined=None), "warning: body_part_not_stated")
_add(PARTS, "BodyPartExamined `UNKNOWN`", dicom(BodyPartExamined="UNKNOWN"), "warning: body_part_not_stated")
_add(
    PARTS, "BodyPartExamined `CHEST LATERAL`, no ViewPosition",
    dicom(BodyPartExamined="CHEST LATERAL", ViewPosition=None), "rejected: lateral_view",
)  # fmt: skip

VIEWS = "View, laterality and processing"
for view in (
    "AP",
    "PA",
    "A.P.",
    "P-A",
    "pa",
    "CHEST AP",
    "AP SUPINE",
    "AP_PORTABLE",
    "FRONTAL",
    "ANTERO-POSTERIOR",
    "POSTEROANTERIOR",
    "ZADOPREDNI",
    "TYLNO-PRZEDNIA",
    "PA1",
):
    _add(VIEWS, f"ViewPosition `{view}`", dicom(ViewPosition=view))
for view in (
    "LL", "RL", "LLD", "LATERAL", "LEFT LATERAL", "Lat", "L", "LAO", "OBLIQUE", "SEITLICH", "PERFIL", "LORDOTIC", "AP LLD",
):  # fmt: skip
    _add(VIEWS, f"ViewPosition `{view}`", dicom(ViewPosition=view), "rejected: lateral_view")
for view in ("ZZ", "W033 CHEST"):
    _add(VIEWS, f"ViewPosition `{view}`", dicom(ViewPosition=view), "rejected: view_not_understood")
_add(VIEWS, "no view", dicom(ViewPosition=None), "warning: view_not_stated")
_add(VIEWS, "ViewPosition `ERECT`, which is not a view", dicom(ViewPosition="ERECT"), "warning: view_not_stated")
for value, meaning, scheme in (
    ("399348003", "antero-posterior", "SCT"), ("R-10206", "antero-posterior", "SRT"), ("272479007", "", "SCT"),
    ("1", "PA", "99X"),
):  # fmt: skip
    _add(
        VIEWS, f"ViewCodeSequence `{value}` {scheme} {meaning}".rstrip(),
        dicom(ViewPosition=None, ViewCodeSequence=code(value, meaning, scheme)),
    )  # fmt: skip
for value, meaning, scheme in (
    ("399173006", "left lateral", "SCT"),
    ("R-10236", "left lateral", "SRT"),
    ("1", "Thorax seitlich", "99X"),
):
    _add(
        VIEWS, f"ViewCodeSequence `{value}` {scheme} {meaning}",
        dicom(ViewPosition=None, ViewCodeSequence=code(value, meaning, scheme)), "rejected: lateral_view",
    )  # fmt: skip
_add(
    VIEWS, "ViewCodeSequence with an unknown code",
    dicom(ViewPosition=None, ViewCodeSequence=code("1", "whatever", "99X")), "rejected: view_not_understood",
)  # fmt: skip
_add(VIEWS, "PatientOrientation `L\\F`", dicom(ViewPosition=None, PatientOrientation=["L", "F"]))
_add(
    VIEWS,
    "PatientOrientation `A\\F`",
    dicom(ViewPosition=None, PatientOrientation=["A", "F"]),
    "rejected: lateral_view",
)
_add(
    VIEWS,
    "PatientOrientation `X\\Y`",
    dicom(ViewPosition=None, PatientOrientation=["X", "Y"]),
    "rejected: view_not_understood",
)
for description in (
    "CHEST LAT", "Thorax seitlich", "LATERAL", "ChestLAT", "AP CHEST LATERAL", "klatka boczna", "hrudník boční",
    "Thorax zijdelings", "Ngực nghiêng", "TORACE L-L", "X-TABLE CHEST", "Akciğer yan",
):  # fmt: skip
    _add(
        VIEWS, f"SeriesDescription `{description}`, no ViewPosition",
        dicom(ViewPosition=None, SpecificCharacterSet="ISO_IR 192", SeriesDescription=description), "rejected: lateral_view",
    )  # fmt: skip
_add(
    VIEWS, "SeriesDescription `CHEST LAT`, ViewPosition `AP`",
    dicom(SeriesDescription="CHEST LAT"), "rejected: lateral_view",
)  # fmt: skip
_add(
    VIEWS,
    "ProtocolName `Chest lateral`, no ViewPosition",
    dicom(ViewPosition=None, ProtocolName="Chest lateral"),
    "rejected: lateral_view",
)
for description in ("CHEST PA AND LATERAL", "RX TORAX PA Y L"):
    _add(
        VIEWS, f"SeriesDescription `{description}`, no ViewPosition",
        dicom(ViewPosition=None, SeriesDescription=description), "warning: view_not_stated",
    )  # fmt: skip
for description in ("胸部正側位", "胸部正侧位片", "흉부 정측면", "TORAX DECUBITO SUPINO", "R"):
    _add(
        VIEWS, f"SeriesDescription `{description}`, ViewPosition `PA`",
        dicom(ViewPosition="PA", SpecificCharacterSet="ISO_IR 192", SeriesDescription=description),
    )  # fmt: skip
_add(
    VIEWS, "SeriesDescription `Schrägaufnahme` (oblique), no ViewPosition",
    dicom(ViewPosition=None, SpecificCharacterSet="ISO_IR 192", SeriesDescription="Schrägaufnahme"), "rejected: lateral_view",
)  # fmt: skip
_add(VIEWS, "ViewPosition `AP DECUBITO`", dicom(ViewPosition="AP DECUBITO"))
_add(
    VIEWS, "ViewCodeSequence `399173006` without a meaning, ViewPosition `AP`",
    dicom(ViewCodeSequence=code("399173006", "")), "rejected: lateral_view",
)  # fmt: skip
_add(VIEWS, "ViewModifierCodeSequence lateral decubitus", lambda: written(_with_modifier()), "rejected: lateral_view")
_add(VIEWS, "PatientOrientation with two empty values", dicom(PatientOrientation=["", ""]))
for side in ("U", "B", "bilateral", "BILAT", "L\\R"):
    _add(VIEWS, f"ImageLaterality `{side}`", dicom(ImageLaterality=side))
for side in ("L", "IZQUIERDA"):
    _add(VIEWS, f"Laterality `{side}`", dicom(Laterality=side), "warning: one_side_stated")
_add(VIEWS, "ImageLaterality `ODD`", dicom(ImageLaterality="ODD"), "rejected: laterality_not_understood")
for intent in ("FOR PRESENTATION", "for presentation", "PRESENTATION", None):
    _add(
        VIEWS,
        f"PresentationIntentType `{intent}`" if intent else "no PresentationIntentType",
        dicom(PresentationIntentType=intent),
    )
for intent in ("FOR PROCESSING", "for_processing", "RAW"):
    _add(VIEWS, f"PresentationIntentType `{intent}`", dicom(PresentationIntentType=intent), "rejected: for_processing")
_add(
    VIEWS, "SOP class Digital X-Ray For Processing",
    dicom(PresentationIntentType=None, SOPClassUID=uid.DigitalXRayImageStorageForProcessing), "rejected: for_processing",
)  # fmt: skip
_add(
    VIEWS, "PresentationIntentType `OTHER`",
    dicom(PresentationIntentType="OTHER"), "rejected: presentation_intent_not_understood",
)  # fmt: skip

GRAY = "Bit depth, windows and lookup tables"
MEASURED = "warning: bit_depth_measured"
for bits in (8, 10, 11, 12, 13, 14, 15):
    _add(
        GRAY,
        f"PNG of 16 bits that holds {bits}",
        lambda bits=bits: image("PNG", deep(bits)),
        MEASURED + " age_not_stated",
    )
    _add(GRAY, f"DICOM with BitsStored 16 that holds {bits}, no window", dicom(deep(bits), 16, **NO_WINDOW))
    _add(GRAY, f"DICOM with BitsStored 16 that holds {bits}, full window of 16 bits", dicom(deep(bits), 16), MEASURED)
_add(GRAY, "PNG of 16 bits", lambda: image("PNG", deep(16)), "warning: age_not_stated")
_add(GRAY, "TIFF of 16 bits that holds 12", lambda: image("TIFF", deep(12)), MEASURED + " age_not_stated")
_add(
    GRAY, "PNG of 16 bits that holds 12, and saturated pixels",
    lambda: image("PNG", _hot(12, 9, 65535)), MEASURED + " age_not_stated", same_pixels=False,
)  # fmt: skip
_add(GRAY, "BitsStored 12 with values of 14 bits", dicom(deep(14), 12, **NO_WINDOW), MEASURED)
_add(GRAY, "bits above BitsStored that hold an overlay", lambda: written(_with_overlay()), "read")
_add(GRAY, "no window, a few saturated pixels", dicom(_hot(12, 9, 65535), 16, **NO_WINDOW), same_pixels=False)
_add(
    GRAY,
    "no window, a few pixels of 0 among values from 30,000",
    dicom(_with_dead_pixels(), 16, **NO_WINDOW),
    same_pixels=False,
)
_add(
    GRAY, "PNG of 16 bits that holds 12, and a marker of 1% of the pixels",
    lambda: image("PNG", _hot(12, 92, 65535)), MEASURED + " age_not_stated", same_pixels=False,
)  # fmt: skip
for level in (60_000, 65_534):
    _add(
        GRAY, f"no window, scattered pixels of {level:,}, 1% of all",
        dicom(_scattered(level), 16, **NO_WINDOW), same_pixels=False,
    )  # fmt: skip
_add(
    GRAY, "PNG of 16 bits with levels from 60,000 to 60,510",
    lambda: image("PNG", (60_000 + 2 * REFERENCE.astype(int)).astype(np.uint16)), MEASURED + " age_not_stated",
)  # fmt: skip
_add(
    GRAY, "PNG of 16 bits in color that holds 12", _color_png,
    "error: bit_depth_not_measurable",
)  # fmt: skip
_add(GRAY, "unsigned values stated as signed", dicom(PixelRepresentation=1), MEASURED)
_add(
    GRAY,
    "signed values stated as unsigned, no window",
    dicom(_signed(2048), 12, PixelRepresentation=0, **NO_WINDOW),
    MEASURED,
)
_add(
    GRAY,
    "window of stored values, rescale intercept -1024",
    dicom(RescaleIntercept=-1024, RescaleSlope=1),
    "warning: window_ignored",
)
_add(GRAY, "full window of 11 bits, values of 12", dicom(WindowCenter=1024, WindowWidth=2048), MEASURED)
_add(
    GRAY,
    "window from -2048 to 2048, values from 0 to 4095",
    dicom(WindowCenter=0, WindowWidth=4096),
    "warning: window_ignored",
)
_add(GRAY, "an invalid and a valid window", dicom(WindowCenter=[0, 2048], WindowWidth=[0, 4096]))
_add(GRAY, "PhotometricInterpretation `monochrome2`", dicom(PhotometricInterpretation="monochrome2"))
_add(GRAY, "VOI LUT of 12 bits that states 14", dicom(VOILUTSequence=lut(IDENTITY, bits=14), **NO_WINDOW), MEASURED)
_add(GRAY, "VOI LUT that states fewer entries than it has", dicom(VOILUTSequence=lut(IDENTITY, count=256), **NO_WINDOW))
_add(
    GRAY, "VOI LUT that starts 1,024 values too high",
    dicom(VOILUTSequence=lut(IDENTITY, first=1024), **NO_WINDOW), "warning: window_ignored",
)  # fmt: skip
_add(GRAY, "padding value that is inside the image only", dicom(PixelPaddingValue=int(deep()[48, 48])))
for center, width, what in (
    (2048, 4096, "12 bits"),
    (128, 256, "8 bits"),
    (8192, 16384, "14 bits"),
    (32768, 65536, "16 bits"),
):
    result = "read" if what == "14 bits" else MEASURED
    _add(
        GRAY,
        f"values of 14 bits, full window of {what}",
        dicom(deep(14), 14, WindowCenter=center, WindowWidth=width),
        result,
    )
_add(GRAY, "window of another image (40, 400)", dicom(WindowCenter=40, WindowWidth=400), "warning: window_ignored")
_add(GRAY, "window far outside (30000, 1000)", dicom(WindowCenter=30000, WindowWidth=1000), "warning: window_ignored")
_add(
    GRAY, "two windows, of which only the second fits",
    dicom(WindowCenter=[30000, 2048], WindowWidth=[1000, 4096]), "warning: window_ignored",
)  # fmt: skip
_add(GRAY, "window in the shared functional groups", lambda: written(_in_functional_group(**FULL_WINDOW)))
_add(GRAY, "MONOCHROME1", dicom(deep(12, 255 - REFERENCE), PhotometricInterpretation="MONOCHROME1"))
_add(GRAY, "signed values, full window", dicom(_signed(2048), WindowCenter=0, WindowWidth=4096))
_add(
    GRAY,
    "rescale intercept -1024, slope 2",
    dicom(RescaleIntercept=-1024, RescaleSlope=2, WindowCenter=3072, WindowWidth=8192),
)
for slope, intercept in ((0.0001, 0), (3, 500), (1, 900)):
    _add(
        GRAY,
        f"rescale intercept {intercept}, slope {slope}, no window",
        dicom(RescaleIntercept=intercept, RescaleSlope=slope, **NO_WINDOW),
    )
for stored, held in ((10, 8), (12, 10), (14, 12), (10, 9), (12, 11), (13, 12), (15, 14)):
    _add(
        GRAY,
        f"DICOM with BitsStored {stored} that holds {held}, full window of {stored} bits",
        dicom(deep(held), stored),
        MEASURED,
    )
_add(
    GRAY,
    "values from 0 to 1023, window from -2048 to 2048",
    dicom(deep(10), 10, WindowCenter=0, WindowWidth=4096),
    "warning: window_ignored",
)
_add(GRAY, "rescale slope 0", dicom(RescaleIntercept=0, RescaleSlope=0), "error: rescale_slope_zero")
for bits in (8, 12, 13, 16):
    result = "read" if bits == 12 else MEASURED
    _add(
        GRAY,
        f"VOI LUT of 12 bits that states {bits}",
        dicom(VOILUTSequence=lut(IDENTITY, bits=bits), **NO_WINDOW),
        result,
    )
_add(
    GRAY, "VOI LUT that states more entries than it has", dicom(VOILUTSequence=lut(IDENTITY, count=65536), **NO_WINDOW)
)
_add(
    GRAY, "VOI LUT with fewer entries than the pixels need",
    dicom(VOILUTSequence=lut(IDENTITY[:1000], count=4096), **NO_WINDOW), "error: lut_incomplete",
)  # fmt: skip
_add(
    GRAY, "VOI LUT whose first value, -1024, is written as unsigned",
    dicom(RescaleIntercept=-1024, RescaleSlope=1, VOILUTSequence=lut(IDENTITY, first=65536 - 1024), **NO_WINDOW),
)  # fmt: skip
_add(
    GRAY,
    "VOI LUT of other pixels",
    dicom(VOILUTSequence=lut(IDENTITY, first=40000), **NO_WINDOW),
    "warning: window_ignored",
)
_add(
    GRAY,
    "padding of -20000 in signed pixels, written as 45536",
    _with_padding(_padded(-20000, np.int16), "US", 65536 - 20000),
    same_pixels=False,
)
_add(
    GRAY,
    "padding of 65535 in unsigned pixels, written as -1",
    _with_padding(_padded(65535, np.uint16), "SS", -1),
    same_pixels=False,
)
for value, kind in ((65535, np.uint16), (63536, np.uint16), (-20000, np.int16), (-32768, np.int16)):
    _add(
        GRAY,
        f"padding of {value} in {'signed' if kind is np.int16 else 'unsigned'} pixels, not declared",
        dicom(_padded(value, kind), 16, PixelRepresentation=int(kind is np.int16), **NO_WINDOW),
        "warning: padding_measured",
        same_pixels=False,
    )
_add(GRAY, "blank: one gray level", dicom(np.full((SIDE, SIDE), 1000, np.uint16)), "rejected: blank")
_add(GRAY, "blank: noise around one gray level", dicom(_noise()), "rejected: blank")

FILES = "Files and encodings"
for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP"):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    _add(FILES, kind, lambda kind=kind, options=options: image(kind, **options), "warning: age_not_stated")
_add(
    FILES, "multi-picture JPEG (MPO) of a camera",
    lambda: image("MPO", quality=100, save_all=True, append_images=[Image.new("L", (20, 20))]), "warning: age_not_stated",
)  # fmt: skip
_add(FILES, "big-endian TIFF of 16 bits", lambda: _big_endian_tiff(white_is_zero=False), "warning: age_not_stated")
_add(
    FILES,
    "big-endian TIFF of 16 bits, WhiteIsZero",
    lambda: _big_endian_tiff(white_is_zero=True),
    "warning: age_not_stated",
)
_add(FILES, "DICOM, explicit little endian", dicom())
_add(FILES, "DICOM, implicit little endian", dicom(syntax=uid.ImplicitVRLittleEndian))
_add(FILES, "DICOM, explicit big endian", dicom(deep().astype(">u2"), syntax=uid.ExplicitVRBigEndian))
_add(FILES, "DICOM, RLE", lambda: written(_compressed(uid.RLELossless)))
_add(FILES, "DICOM, JPEG baseline", lambda: written(_jpeg()))
_add(FILES, "DICOM without preamble and file meta information, implicit", lambda: _without_meta(implicit=True))
_add(FILES, "DICOM without preamble and file meta information, explicit", lambda: _without_meta(implicit=False))
_add(
    FILES,
    "DICOM without preamble and file meta information, big endian",
    lambda: _without_meta(implicit=False, little=False),
)
_add(FILES, "DICOM without the 128 bytes before its prefix", lambda: written(dataset())[128:])
_add(FILES, "DICOM without transfer syntax", _without_syntax)
_add(
    FILES, "DICOM without transfer syntax, compressed",
    lambda: _without_syntax(encapsulated=True), "error: transfer_syntax_missing",
)  # fmt: skip
_add(
    FILES, "DICOM with the elements that research sets keep",
    dicom(**dict.fromkeys(("Modality", "BodyPartExamined", "ViewPosition", "PresentationIntentType", "SOPClassUID"))),
    "warning: body_part_not_stated modality_not_stated view_not_stated",
)  # fmt: skip
_add(
    FILES,
    "DICOM, deflated",
    lambda: written(dataset(syntax=uid.DeflatedExplicitVRLittleEndian)),
    "error: deflated_not_supported",
)
_add(FILES, "DICOM of several frames", dicom(NumberOfFrames=2), "error: multiple_frames")
_add(FILES, "DICOM in color", dicom(PhotometricInterpretation="RGB", SamplesPerPixel=3), "error: color_not_supported")
_add(
    FILES,
    "DICOM structured report",
    lambda: written(_structured_report()),
    "error: unsupported_file_type dicom_structured_report",
)
_add(FILES, "DICOM without an image", lambda: written(_report()), "error: no_image")
_add(
    FILES,
    "DICOMDIR sent as an image",
    lambda: written(_dicomdir()),
    "error: unsupported_file_type dicomdir",
)
_add(FILES, "zip archive", _zip, "error: unsupported_file_type zip")
_add(FILES, "gzip archive", lambda: b"\x1f\x8b\x08" + bytes(20), "error: unsupported_file_type gzip")
_add(FILES, "JPEG-LS outside DICOM", lambda: b"\xff\xd8\xff\xf7" + bytes(20), "error: unsupported_file_type jpeg_ls")
_add(FILES, "HTML page", lambda: b"<!DOCTYPE html>", "error: unsupported_file_type html_page")
_add(FILES, "GIF", lambda: image("GIF"), "error: unsupported_file_type gif")
_add(FILES, "JPEG 2000 outside DICOM", lambda: image("JPEG2000"), "error: unsupported_file_type jp2")
_add(FILES, "PDF", lambda: b"%PDF-1.7\n", "error: unsupported_file_type pdf")
_add(
    FILES, "PDF after a byte order mark", lambda: b"\xef\xbb\xbf%PDF-1.7\n", "error: unsupported_file_type pdf",
)  # fmt: skip
_add(
    FILES, "Git LFS pointer", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "error: unsupported_file_type git_lfs_pointer",
)  # fmt: skip
_add(FILES, "text", lambda: b"path,label\n", "error: not_an_image")
_add(FILES, "empty file", lambda: b"", "error: empty_file")
_add(FILES, "empty zip archive", lambda: b"PK\x05\x06" + bytes(18), "error: unsupported_file_type empty_zip")
_add(FILES, "PNG with a damaged header", lambda: b"\x89PNG\r\n\x1a\n" + bytes(40), "error: damaged_header")
_add(
    FILES,
    "TIFF of two pages",
    lambda: image("TIFF", save_all=True, append_images=[Image.new("L", (96, 96))]),
    "error: multiple_frames",
)
_add(FILES, "TIFF of floating point", lambda: image("TIFF", REFERENCE.astype(np.float32)), "error: unknown_value_range")
_add(FILES, "DICOM without Rows", dicom(Rows=None), "error: element_missing")
_add(FILES, "DICOM without pixel data", dicom(PixelData=None), "error: pixel_data_missing")
_add(FILES, "DICOM with truncated pixel data", dicom(PixelData=bytes(1000)), "error: pixel_data_not_decodable")
_add(FILES, "DICOM of 32 bits", dicom(BitsAllocated=32), "error: pixel_format_not_supported")
_add(FILES, "DICOM of no pixels", dicom(Rows=0), "error: no_pixels")
_add(FILES, "DICOM of too many pixels", dicom(Rows=60000, Columns=50000), "error: too_many_pixels")
_add(
    FILES,
    "DICOM in MPEG-2",
    dicom(syntax=uid.MPEG2MPML, PixelData=encapsulate([bytes(100)])),
    "error: transfer_syntax_not_supported",
)
_add(FILES, "truncated PNG", lambda: image("PNG")[:900], "error: pixels_not_decodable")

GROUPS = tuple(dict.fromkeys(case.group for case in CASES))
