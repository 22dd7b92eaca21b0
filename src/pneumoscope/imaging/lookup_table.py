"""DICOM lookup tables, with first value, length and bit depth corrected from their data and the pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from pneumoscope.core.unreadable import UnreadableCode, UnreadableReason
from pneumoscope.imaging.histogram import PERCENTILES, Floats, Histogram, Integers

__all__ = ["GrayLevelError", "LookupTable", "parse_element_numbers"]

_MAX_LUT_BYTES = 2**17  # 65,536 entries of 16 bits
_EXCEEDING = 0.01  # fraction of the pixels whose LUT entries may exceed the declared bit depth


class GrayLevelError(Exception):
    """Raised for an invalid window, lookup table or padding. The reason contains no patient data.

    Args:
        code, parameters: Code and parameters of the reason.
    """

    def __init__(self, code: UnreadableCode, **parameters: str | int) -> None:
        super().__init__(code)
        self.reason = UnreadableReason(code, parameters)


class LookupTable(NamedTuple):
    """Lookup table with first value, number of entries and bit depth inferred from its data and the pixels.

    pydicom 3.0 cannot read packed 8-bit entries, and its `apply_voi` returns wrong entries for values above 65,535 and for
    8-bit LUTs with more than 256 entries.
    """

    entries: Integers
    first: int
    bits: int
    stated_bits: int

    @classmethod
    def read(cls, lut: Dataset, dataset: Dataset, values: Integers | Floats, counts: Integers) -> LookupTable:
        """Read a LUT (PS3.3 C.11.1.1.1).

        Args:
            lut: Item of the sequence.
            dataset: Data set, for its byte order.
            values, counts: Values to look up, and the number of pixels of each.

        Raises:
            GrayLevelError: The LUT is too long, empty or malformed, or has fewer entries than declared and than the pixels
                need.
        """
        for keyword in ("LUTDescriptor", "LUTData"):
            raw: Any = lut.get_item(keyword)
            if isinstance(raw, RawDataElement) and len(raw.value or b"") > _MAX_LUT_BYTES:
                raise GrayLevelError("lut_too_long")
        descriptor = parse_element_numbers(lut.get("LUTDescriptor"), "LUTDescriptor")
        if len(descriptor) != 3:
            raise GrayLevelError("lut_descriptor_invalid")
        count, first, stated_bits = (int(number) for number in descriptor)
        count = count % 2**16 or 2**16
        entries = _entries(lut.get("LUTData") or b"", count, stated_bits, dataset)
        if not entries.size:
            raise GrayLevelError("lut_empty")
        # The first value is signed if the pixels or rescaled values are, but its VR may not match.
        first = max(
            (first, first - 2**16, first + 2**16), key=lambda start: _n_inside(values, counts, start, len(entries))
        )
        if (
            len(entries) < count
            and _n_inside(values, counts, first - 2**16, len(entries) + 2**16) < 0.999 * counts.sum()
        ):
            raise GrayLevelError("lut_incomplete", entries=len(entries), stated=count, bits=stated_bits)
        return cls(entries, first, cls._measured_bits(entries, first, stated_bits, values, counts), stated_bits)

    @staticmethod
    def _measured_bits(
        entries: Integers, first: int, stated_bits: int, values: Integers | Floats, counts: Integers
    ) -> int:
        """Return the bit depth of the entries.

        The declared depth is used unless it is 16, impossible, exceeded by many pixels, or larger than needed: no table is
        meant to halve the brightness of every image.
        """
        used = entries[np.clip(np.floor(values).astype(np.int64) - first, 0, len(entries) - 1)]
        exceeding = counts[used >= 2.0**stated_bits].sum()
        # A few entries at the ends may be wrong, but the largest ones used by pixels are reliable.
        largest = max(np.quantile(entries, 0.995), Histogram.of(used, counts).quantiles(PERCENTILES[1])[0])
        bits = max(8, int(largest).bit_length())
        if 8 <= stated_bits < 16 and exceeding <= _EXCEEDING * counts.sum() and bits >= stated_bits:
            return stated_bits
        return bits

    @property
    def last(self) -> int:
        """Value of the last entry."""
        return self.first + len(self.entries) - 1

    def look_up(self, values: Integers | Floats) -> Floats:
        """Return the entries for values; values outside the LUT are clamped to its first or last entry."""
        index = np.clip(np.floor(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[index].astype(np.float64)

    def brightness(self, values: Integers | Floats) -> Floats:
        """Return the entries for values, scaled to 0 to 1."""
        return np.asarray(np.minimum(self.look_up(values) / (2**self.bits - 1), 1))


def _n_inside(values: Integers | Floats, counts: Integers, first: int, count: int) -> int:
    return int(counts[(values >= first) & (values < first + count)].sum())


def _entries(raw: bytes | Iterable[int] | int, count: int, bits: int, dataset: Dataset) -> Integers:
    """Return the entries of LUT data: numbers (US) or bytes (OW), in which two 8-bit entries may be packed into a word."""
    if not isinstance(raw, bytes):
        return np.atleast_1d(np.asarray(raw, dtype=np.int64))
    if len(raw) < 2 * count and bits <= 8:
        return np.frombuffer(raw, dtype=np.uint8)
    return np.frombuffer(raw[: len(raw) // 2 * 2], dtype="<u2" if dataset.original_encoding[1] else ">u2")


def parse_element_numbers(value: Any, keyword: str) -> list[float]:
    """Return the numbers of an element, with NaN for empty ones, or an empty list if it is missing.

    Raises:
        GrayLevelError: A value is not a number.
    """
    if value is None or value == "":
        return []
    try:
        if isinstance(value, bytes):  # written as OW
            return [float(number) for number in np.frombuffer(value, dtype="<u2")]
        return [
            math.nan if each in (None, "") else float(each)
            for each in ([value] if isinstance(value, (int, float, str)) else value)
        ]
    except (TypeError, ValueError) as error:
        raise GrayLevelError("element_not_a_number", element=keyword) from error
