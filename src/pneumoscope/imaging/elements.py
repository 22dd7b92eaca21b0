"""How much of a DICOM header is read: the parser makes an object of each element, and takes each value that is asked for apart.

An element takes 8 bytes or more in a file, and hundreds in memory: a few megabytes of them would cost minutes and gigabytes.
"""

from __future__ import annotations

import contextlib

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_sequence

from pneumoscope.imaging.counted import Counted

__all__ = ["MAX_READS", "Header", "too_long"]

# An element or a fragment takes 1 to 5; an image's header has some hundred, and makers' own add some more.
MAX_READS = 60_000
_LONGEST = 4096  # bytes of a value: all that is used is a number, a word, or some windows
_LONGEST_TABLES = 2**21  # a sequence of them: a table is 65,536 entries of 16 bits
_PIXELS, _TABLES = 0x7FE00010, (0x00283000, 0x00283010)
_CHARACTER_SET = (b"\x08\0\x05\0", b"\0\x08\0\x05")
_UNDEFINED = b"\xff\xff\xff\xff"


class Header(Counted):
    """The bytes of a DICOM file, or of a sequence, from which no more than `MAX_READS` parts are read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content, MAX_READS)
        self._in_character_set = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as from any file.

        Raises:
            ValueError: it was read from too often.
        """
        content = super().read(size)
        # Names of character sets are taken apart while the header is read: there, each byte counts.
        if size == 8:  # tag and length of an element
            self._in_character_set = content[:4] in _CHARACTER_SET
        elif self._in_character_set:
            self._take(len(content))
        if self._in_character_set and content.endswith(_UNDEFINED):
            self._take(MAX_READS + 1)
        return content


def too_long(header: Dataset) -> str:
    """Which value would cost too much to take apart, in words; empty where none would. Pixels are left out.

    Args:
        header: of elements as they were read, of which none has been asked for.
    """
    for element in header.values():
        if not isinstance(element, RawDataElement) or element.tag == _PIXELS:
            continue
        is_table = element.tag in _TABLES
        length, most = len(element.value or b""), _LONGEST_TABLES if is_table else _LONGEST
        if length > most:
            return f"its element {element.tag} has {length:,} bytes; {most:,} are the most"
        if is_table and element.value:
            counted = Header(element.value)
            with contextlib.suppress(Exception):  # what is damaged is refused where it is used
                read_sequence(counted, element.is_implicit_VR, element.is_little_endian, length, "iso8859")
            if counted.is_exhausted:
                return f"its element {element.tag} has far too many parts"
    return ""
