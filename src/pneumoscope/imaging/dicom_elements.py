"""Read elements of untrusted DICOM files: only those that are asked for, and never inflated."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread, uid
from pydicom.filereader import read_partial
from pydicom.tag import Tag

__all__ = ["MAX_HEADER_BYTES", "PREFIX", "read_elements", "read_first_elements"]

# Warnings of pydicom quote values of the header.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

MAX_HEADER_BYTES = 4 * 2**20  # of the elements before the pixels
PREFIX = b"DICM"  # before the first element
_META_BYTES = 2**14  # of a file, in which a transfer syntax is found


def read_elements(source: bytes | Path, elements: list[Any], *, pixels: bool = False) -> Dataset:
    """Return these elements of a DICOM file, with or without preamble and file meta information.

    Args:
        source: The file, or its content.
        elements: Keywords.
        pixels: Read beyond the header.

    Raises:
        Exception: The file is deflated, which may be a bomb, or cannot be parsed; pydicom raises many types, and their messages
            may contain patient data.
    """
    if isinstance(source, bytes):
        return _read_elements(io.BytesIO(source), elements, pixels)
    with source.open("rb") as file:
        return _read_elements(file, elements, pixels)


def _read_elements(file: BinaryIO, elements: list[Any], pixels: bool) -> Dataset:
    beginning = file.read(_META_BYTES)
    _require_inflated(beginning)
    # pydicom finds the prefix after a preamble, and the first element at the start of the file
    file.seek(len(PREFIX) if beginning.startswith(PREFIX) else 0)
    content = io.BytesIO(file.read()) if beginning.startswith(PREFIX) else file
    return dcmread(content, stop_before_pixels=not pixels, specific_tags=elements, force=True)


def read_first_elements(content: bytes, elements: list[Any], last: int) -> Dataset:
    """Return these elements of a DICOM file up to a tag, in a time that no file can prolong.

    Args:
        content: The file, or its beginning.
        elements: Keywords.
        last: The last tag.

    Raises:
        Exception: See `read_elements`; or the file makes pydicom read too much.
    """
    _require_inflated(content[:_META_BYTES])
    file = _LimitedFile(content.removeprefix(PREFIX))
    return read_partial(
        file, stop_when=lambda tag, *_: tag > last, specific_tags=[Tag(each) for each in elements], force=True
    )


class _LimitedFile(io.BytesIO):
    """A file of which only so much can be read; what is skipped does not count.

    Without the limits, 4 MiB of empty sequence items or of values of one element would take pydicom up to a minute.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads, self._bytes, self._separators = 20_000, 2**18, 2_000

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BytesIO.read`; raise ValueError if a limit is exceeded."""
        found = super().read(size)
        self._reads -= 1
        self._bytes -= len(found)
        # Separators of values, and escape sequences, each of which changes the character set
        self._separators -= found.count(b"\\") + found.count(b"\x1b")
        if min(self._reads, self._bytes, self._separators) < 0:
            raise ValueError("it has too many elements or too long values")
        return found


def _require_inflated(beginning: bytes) -> None:
    if uid.DeflatedExplicitVRLittleEndian.encode() in beginning:
        raise ValueError("the file is deflated")
