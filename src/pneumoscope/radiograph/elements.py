"""How many elements a DICOM header has, counted before a parser makes an object of each.

An element takes 8 bytes or more in a file, and a thousand in memory: a few megabytes of them would cost gigabytes and minutes.
"""

from __future__ import annotations

import struct

__all__ = ["MAX_ELEMENTS", "has_too_many_elements"]

MAX_ELEMENTS = 20_000  # a film's header has some hundred, and makers' own add some more
_PREAMBLE = 132
_PIXELS = 0x7FE00010
_ITEM, _ITEM_END, _END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SYNTAX, _BIG_ENDIAN = 0x00020010, b"1.2.840.10008.1.2.2"
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # PS3.5 table 7.1-1
# Sequences that are looked into. Others that have a length are bytes to the parser, and no object is made of what is in them.
_TABLES = {0x00283000, 0x00283010}
_BYTES = {b"OB", b"OW"}  # without a length they come in fragments
_UNDEFINED = 0xFFFFFFFF


def has_too_many_elements(data: bytes) -> bool:
    """True where there are more than `MAX_ELEMENTS`, those within sequences that are parsed counted, too.

    Args:
        data: the whole file, with the 128-byte preamble. Where it is damaged, what comes before that is counted.
    Source: PS3.5 chapter 7, PS3.10 chapter 7.
    """
    place, count, order, explicit, in_meta, big = _PREAMBLE, 0, "<", True, True, False
    outside: list[
        bool
    ] = []  # of each open sequence without a length: whether what is around it has value representations
    in_fragments = False
    while place + 12 <= len(data):
        group, element = struct.unpack_from(order + "HH", data, place)
        tag, kind = group << 16 | element, data[place + 4 : place + 6]
        if in_meta and group != 2:
            # What follows says by its first element whether it has value representations, whatever the meta header says.
            in_meta, order, explicit = False, ">" if big else "<", _is_kind(kind)
            continue
        count += 1
        if count > MAX_ELEMENTS:
            return True
        if tag in (_ITEM, _ITEM_END, _END) or not explicit or not _is_kind(kind):
            kind = b""
            (length,) = struct.unpack_from(order + "I", data, place + 4)
            place += 8
        elif kind in _LONG:
            (length,) = struct.unpack_from(order + "I", data, place + 8)
            place += 12
        else:
            (length,) = struct.unpack_from(order + "H", data, place + 6)
            place += 8
        if tag == _SYNTAX and in_meta:
            big = data[place : place + length].rstrip(b"\0 ") == _BIG_ENDIAN
        if tag == _END and outside:
            explicit, in_fragments = outside.pop(), False
        elif tag == _ITEM and not in_fragments:
            pass  # its elements come next
        elif length == _UNDEFINED:
            outside.append(explicit)
            in_fragments = tag == _PIXELS or kind in _BYTES
            explicit = explicit and kind != b"UN"  # PS3.5 6.2.2
        elif tag not in _TABLES:
            place += length
    return False


def _is_kind(kind: bytes) -> bool:
    return all(65 <= letter <= 90 for letter in kind)
