"""Read requested elements of untrusted DICOM files, without inflating deflated files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread, uid
from pydicom.filereader import read_partial
from pydicom.tag import Tag

__all__ = ["MAX_HEADER_BYTES", "PREFIX", "read_elements", "read_first_elements"]

# pydicom's warnings quote header values.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

MAX_HEADER_BYTES = 4 * 2**20  # maximum size of the elements before the pixels
PREFIX = b"DICM"  # before the first element
_META_BYTES = 2**14  # start of a file, which contains the transfer syntax


def read_elements(source: bytes | Path, elements: list[Any], *, pixels: bool = False) -> Dataset:
    """Return elements of a DICOM file, with or without preamble and file meta information.

    Args:
        source: Path of the file, or its content.
        elements: Keywords of the elements.
        pixels: Whether to read beyond the header.

    Raises:
        Exception: The file is deflated, which may be a bomb, or cannot be parsed. pydicom raises many types of errors, whose
            messages may contain patient data.
    """
    if isinstance(source, bytes):
        return _read_elements(io.BytesIO(source), elements, pixels)
    with source.open("rb") as file:
        return _read_elements(file, elements, pixels)


def _read_elements(file: BinaryIO, elements: list[Any], pixels: bool) -> Dataset:
    beginning = file.read(_META_BYTES)
    _require_inflated(beginning)
    # pydicom expects the prefix after a preamble, or else the first element at the start of the file
    file.seek(len(PREFIX) if beginning.startswith(PREFIX) else 0)
    content = io.BytesIO(file.read()) if beginning.startswith(PREFIX) else file
    return dcmread(content, stop_before_pixels=not pixels, specific_tags=elements, force=True)


def read_first_elements(content: bytes, elements: list[Any], last: int) -> Dataset:
    """Return elements of a DICOM file up to a tag, in bounded time even for malicious files.

    Args:
        content: Content of the file, or its beginning.
        elements: Keywords of the elements.
        last: Last tag to read.

    Raises:
        Exception: See `read_elements`; or the file makes pydicom read too much.
    """
    _require_inflated(content[:_META_BYTES])
    file = _LimitedFile(content.removeprefix(PREFIX))
    return read_partial(
        file, stop_when=lambda tag, *_: tag > last, specific_tags=[Tag(each) for each in elements], force=True
    )


class _LimitedFile(io.BytesIO):
    """File with a limit on what may be read, not counting skipped bytes.

    Without it, pydicom could spend up to a minute on 4 MiB of empty sequence items or values of a single element.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads, self._bytes, self._separators = 20_000, 2**18, 2_000

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like `io.BytesIO.read`; raise ValueError if a limit is exceeded."""
        found = super().read(size)
        self._reads -= 1
        self._bytes -= len(found)
        # Value separators, and escape sequences that change the character set.
        self._separators -= found.count(b"\\") + found.count(b"\x1b")
        if min(self._reads, self._bytes, self._separators) < 0:
            raise ValueError("it has too many elements or too long values")
        return found


def _require_inflated(beginning: bytes) -> None:
    if uid.DeflatedExplicitVRLittleEndian.encode() in beginning:
        raise ValueError("the file is deflated")
