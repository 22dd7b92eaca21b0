"""Identify files by their content. All commands use this module to decide which files are images."""

from __future__ import annotations

import stat
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

from pneumoscope.core.unreadable import FILE_TYPES

__all__ = [
    "IMAGE_EXTENSIONS",
    "PREFIX_BYTES",
    "UNKNOWN",
    "FileType",
    "identify",
    "identify_file",
    "skip_reason",
    "skip_reason_by_type",
]

Role = Literal["image", "unsupported_image", "directory", "other"]


class FileType(NamedTuple):
    """Type of a file.

    Attributes:
        code: Format name, such as "JPEG" or "DICOM", for an image; otherwise a key of `core.unreadable.FILE_TYPES`.
        role: "image" for a supported image, "unsupported_image" for an unsupported image or a pointer to one, "directory" for a
            DICOMDIR, "other" for all other files.
    """

    code: str
    role: Role

    @property
    def name(self) -> str:
        """Format name, or a phrase such as "a zip archive"."""
        return self.code if self.role == "image" else FILE_TYPES[self.code][0]


# Files with these extensions claim to be images; other content is reported as an error.
IMAGE_EXTENSIONS = frozenset(
    {
        ".bmp", ".dcm", ".dib", ".dic", ".dicom", ".gif", ".ima", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx",
        ".mpo", ".png", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
PREFIX_BYTES = 1024  # bytes of a file that `identify` needs
_MEDIA_STORAGE_DIRECTORY = b"1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR (PS3.4 annex B.5)
_STORAGE = b"1.2.840.10008.5.1.4.1.1."  # prefix of the SOP classes below
# SOP classes of objects without an image, by the number after the prefix (PS3.4 annex B.5).
_DICOM_DOCUMENTS = {
    b"9": FileType("dicom_waveform", "other"),
    b"11": FileType("dicom_presentation_state", "other"),
    b"66": FileType("dicom_raw_data", "other"),
    b"88": FileType("dicom_structured_report", "other"),
    b"104": FileType("dicom_document", "other"),
}
# First elements of DICOM files without a preamble, by group.
_FIRST_ELEMENTS = {
    0x0002: (0x0000, 0x0001, 0x0002, 0x0003, 0x0010),
    0x0008: (0x0000, 0x0001, 0x0005, 0x0008, 0x0012, 0x0013, 0x0014, 0x0016, 0x0018, 0x0020, 0x0060),
}
_MAX_FIRST_ELEMENT = 4096  # bytes

UNKNOWN = FileType("unknown", "other")
_DICOM = FileType("DICOM", "image")
_DICOMDIR = FileType("dicomdir", "directory")
_SIGNATURES: tuple[tuple[int, bytes, FileType], ...] = (
    (0, b"\xff\xd8\xff\xf7", FileType("jpeg_ls", "unsupported_image")),
    (0, b"\xff\xd8\xff", FileType("JPEG", "image")),
    (0, b"\x89PNG\r\n\x1a\n", FileType("PNG", "image")),
    (0, b"II*\0", FileType("TIFF", "image")),
    (0, b"MM\0*", FileType("TIFF", "image")),
    (0, b"II+\0", FileType("TIFF", "image")),
    (0, b"MM\0+", FileType("TIFF", "image")),
    (0, b"GIF8", FileType("gif", "unsupported_image")),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", FileType("jp2", "unsupported_image")),
    (0, b"\xff\x4f\xff\x51", FileType("jpeg_2000_codestream", "unsupported_image")),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", FileType("jpeg_xl", "unsupported_image")),
    (4, b"ftypheic", FileType("heic", "unsupported_image")),
    (4, b"ftypmif1", FileType("heif", "unsupported_image")),
    (4, b"ftyphevc", FileType("heic", "unsupported_image")),
    (4, b"ftypavif", FileType("avif", "unsupported_image")),
    (4, b"ftyp", FileType("video", "other")),
    (344, b"n+1\0", FileType("nifti", "other")),
    (0, b"P5\n", FileType("pgm", "unsupported_image")),
    (0, b"8BPS", FileType("photoshop", "unsupported_image")),
    (0, b"\x93NUMPY", FileType("numpy_array", "other")),
    (0, b"<!DOCTYPE html", FileType("html_page", "other")),
    (0, b"<html", FileType("html_page", "other")),
    (0, b"/annex/objects/", FileType("git_annex_pointer", "unsupported_image")),
    (0, b"\x28\xb5\x2f\xfd", FileType("zstandard", "other")),
    (0, b"version https://git-lfs.github.com/", FileType("git_lfs_pointer", "unsupported_image")),
    (0, b"PK\x03\x04", FileType("zip", "other")),
    (0, b"PK\x05\x06", FileType("empty_zip", "other")),
    (0, b"\x1f\x8b", FileType("gzip", "other")),
    (0, b"BZh", FileType("bzip2", "other")),
    (0, b"\xfd7zXZ\0", FileType("xz", "other")),
    (0, b"7z\xbc\xaf\x27\x1c", FileType("7z", "other")),
    (0, b"Rar!\x1a\x07", FileType("rar", "other")),
    (257, b"ustar", FileType("tar", "other")),
)  # fmt: skip


def identify(data: bytes) -> FileType:
    """Return the type of a file from its first `PREFIX_BYTES` bytes.

    DICOM without a preamble is recognized by the form of its first element.
    """
    prefix = data[:PREFIX_BYTES]
    if prefix[128:132] == b"DICM" or prefix[:4] == b"DICM" or _starts_with_element(prefix):
        return _DICOMDIR if _MEDIA_STORAGE_DIRECTORY in prefix[:512] else _dicom_type(prefix[:512])
    for offset, signature, file_type in _SIGNATURES:
        if prefix.startswith(signature, offset):
            return file_type
    if b"%PDF-" in prefix:  # PDF allows bytes before its signature
        return FileType("pdf", "other")
    if prefix.startswith(b"RIFF") and prefix[8:12] == b"WEBP":
        return FileType("WEBP", "image")
    if prefix.startswith(b"BM") and prefix[6:10] == b"\0\0\0\0":  # two letters alone could be text
        return FileType("BMP", "image")
    return UNKNOWN


def _dicom_type(prefix: bytes) -> FileType:
    """Return the type of a DICOM file from the SOP class in its file meta information."""
    _, found, rest = prefix.partition(_STORAGE)
    storage_class = rest.split(b"\0", 1)[0].split(b".", 1)[0] if found else b""
    return _DICOM_DOCUMENTS.get(storage_class, _DICOM)


def identify_file(path: Path) -> FileType:
    """Return the type of a file. Pipes and devices are not opened and have the role "other".

    Raises:
        OSError: The file cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        return FileType("special_file", "other")
    with path.open("rb", buffering=0) as file:
        return identify(file.read(PREFIX_BYTES))


def skip_reason(path: Path) -> str:
    """Return why a file in an image folder is skipped, or "" if it is or claims to be an image.

    Unreadable files, images of unsupported formats and files with an image extension are not skipped, so that decoding reports
    their errors.
    """
    if path.name.startswith("."):
        return "hidden"
    try:
        file_type = identify_file(path)
    except OSError:
        is_broken_link = path.is_symlink() and not path.exists()
        return "a broken link" if is_broken_link and path.suffix.lower() not in IMAGE_EXTENSIONS else ""
    return skip_reason_by_type(path.name, file_type)


def skip_reason_by_type(name: str, file_type: FileType | None) -> str:
    """Return why a file of this name and type is skipped, or "" if it is or claims to be an image.

    Args:
        name: File name.
        file_type: Type of the file; None if unknown, in which case only the file extension counts.
    """
    if file_type and file_type.role in {"image", "unsupported_image"}:
        return ""
    if (file_type is None or file_type.role == "other") and PurePath(name).suffix.lower() in IMAGE_EXTENSIONS:
        return ""
    return (file_type or UNKNOWN).name


def _starts_with_element(prefix: bytes) -> bool:
    """Return whether the data start with one of `_FIRST_ELEMENTS`, in any of the three encodings."""
    order: Literal["little", "big"] = "big" if prefix[:2] == b"\0\x08" else "little"
    group, element = (int.from_bytes(prefix[i : i + 2], order) for i in (0, 2))
    if len(prefix) < 8 or element not in _FIRST_ELEMENTS.get(group, ()):
        return False
    if prefix[4:6].isalpha() and prefix[4:6].isupper():
        return True
    length = int.from_bytes(prefix[4:8], "little")
    return order == "little" and length % 2 == 0 and (element == 0x0005 or length > 0) and length <= _MAX_FIRST_ELEMENT
