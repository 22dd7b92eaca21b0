"""What a TIFF's directory says, before anybody goes by it.

Pillow reads the directory, and libtiff reads it once more to decode. Where an entry is there twice, or of a type that only one of
them knows, each takes another size or compression from it, and what was checked with the one is not what the other does.
"""

from __future__ import annotations

import struct

__all__ = ["fault_of_tiff"]

# What room and time depend on: width, height, bits, compression, samples, rows of a strip, planes, sides of a tile.
_SIZES = frozenset({256, 257, 258, 259, 277, 278, 284, 322, 323})
_SHORT_OR_LONG = frozenset({3, 4})  # TIFF 6.0 knows no other types for them
_MOST = 4096  # entries; a BigTIFF may have any number of them
_BIG = 43


def fault_of_tiff(data: bytes) -> str:
    """Why a TIFF is not to be opened; empty where nothing speaks against it, where it is none, and where it is cut short.

    Args:
        data: the whole file.
    Source: TIFF 6.0 section 2; libtiff's description of BigTIFF.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    try:
        magic = struct.unpack_from(f"{order}H", data, 2)[0] if order else 0
        if magic not in {42, _BIG}:
            return ""
        start, count, entry = ("Q", "Q", "HHQ8x") if magic == _BIG else ("I", "H", "HHI4x")
        (place,) = struct.unpack_from(f"{order}{start}", data, 8 if magic == _BIG else 4)
        (entries,) = struct.unpack_from(f"{order}{count}", data, place)
        if entries > _MOST:
            return f"its directory has {entries:,} entries; {_MOST:,} are the most"
        place += struct.calcsize(f"{order}{count}")
        seen = set()
        for _ in range(entries):
            tag, kind, _number = struct.unpack_from(f"{order}{entry}", data, place)
            place += struct.calcsize(f"{order}{entry}")
            if tag in _SIZES and (tag in seen or kind not in _SHORT_OR_LONG):
                return f"its directory has tag {tag} twice, or of a type that it cannot have"
            seen.add(tag)
    except (struct.error, OverflowError):
        return ""
    return ""
