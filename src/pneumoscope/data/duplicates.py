"""The same image twice: byte for byte by SHA-256, or re-saved, resized or relit by perceptual hash.

Chest images resemble each other, so the usual hash of 64 bits calls strangers duplicates: on the public set pairs of
different patients come as near as 2 bits, which is where a re-saved copy is too. With 256 bits the two separate.
Measured on the public set: copies of 60 images saved at JPEG quality 50, halved, or with brightness or contrast raised
by 20% or 30% differ in at most 20 bits; the nearest two different images of all 5,856 differ in 38. `NEAR` lies
between. Copies that were turned or shifted by a degree or a hundredth of the width differ in 20 to 60 and are found
in part.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import LabelledImage

__all__ = ["NEAR", "DuplicatePair", "NearDuplicates", "exact_duplicates", "near_duplicates"]

NEAR = 28
_BLOCK = 1024
_LISTED = 500


@dataclasses.dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two images that look the same.

    Attributes:
        a, b: paths.
        split_a, split_b: where they are.
        patient_a, patient_b: "" where unknown.
        bits: in which their fingerprints differ.
        identical: byte for byte.
    """

    a: str
    b: str
    split_a: str
    split_b: str
    patient_a: str
    patient_b: str
    bits: int
    identical: bool

    @property
    def of_one_patient(self) -> bool:
        """Both patients are known and the same."""
        return self.patient_a == self.patient_b != ""

    @property
    def of_two_patients(self) -> bool:
        """Both patients are known and differ."""
        return "" not in (self.patient_a, self.patient_b) and self.patient_a != self.patient_b


@dataclasses.dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Pairs by perceptual hash, byte-identical ones included.

    Attributes:
        method: the hash, its length and the threshold, in words.
        pairs: how many.
        identical: how many of them are byte-identical.
        within: pairs inside one split: {split: pairs}.
        across: pairs across two: {"train/test": pairs}.
        of_two_patients: how many show two known patients under two keys.
        listed: the pairs, across splits first, then of two patients, then nearest first; at most 500 of them.
    """

    method: str
    pairs: int
    identical: int
    within: Mapping[str, int]
    across: Mapping[str, int]
    of_two_patients: int
    listed: tuple[DuplicatePair, ...]


def exact_duplicates(images: Sequence[LabelledImage]) -> tuple[tuple[str, ...], ...]:
    """Groups of two or more images with the same bytes, as paths, in manifest order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for image in images:
        groups[image.sha256].append(image.path)
    return tuple(tuple(paths) for paths in groups.values() if len(paths) > 1)


def near_duplicates(
    images: Sequence[LabelledImage], fingerprints: npt.NDArray[np.bool_], splits: Sequence[str], names: Sequence[str]
) -> NearDuplicates:
    """Pairs of images whose fingerprints differ in at most `NEAR` bits.

    Args:
        images: n of them.
        fingerprints: shape (n, bits).
        splits: name of each image's split, as it is to be reported.
        names: the splits in the order to report them in.
    """
    within = Counter(dict.fromkeys(names, 0))
    across = Counter({f"{a}/{b}": 0 for place, a in enumerate(names) for b in names[place + 1 :]})
    found: list[DuplicatePair] = []
    for i, j, bits in _near_pairs(fingerprints):
        a, b = images[i], images[j]
        same = a.sha256 == b.sha256
        found.append(DuplicatePair(a.path, b.path, splits[i], splits[j], a.patient, b.patient, bits, same))
        first, second = sorted((splits[i], splits[j]), key=names.index)
        if first == second:
            within[first] += 1
        else:
            across[f"{first}/{second}"] += 1
    found.sort(key=lambda pair: (pair.split_a == pair.split_b, pair.of_one_patient, pair.bits, pair.a, pair.b))
    return NearDuplicates(
        method=f"perceptual hash of {fingerprints.shape[1]} bits, at most {NEAR} of them different",
        pairs=len(found),
        identical=sum(pair.identical for pair in found),
        within=dict(within),
        across=dict(across),
        of_two_patients=sum(pair.of_two_patients for pair in found),
        listed=tuple(found[:_LISTED]),
    )


def _near_pairs(fingerprints: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(i, j, differing bits) with i < j, in blocks that bound the memory.

    With bits as -1 and 1, a dot product is (equal - different) bits; small whole numbers are exact in float32.
    """
    signs = np.where(fingerprints, np.float32(1), np.float32(-1))
    bits = signs.shape[1]
    pairs: list[tuple[int, int, int]] = []
    for start in range(0, len(signs), _BLOCK):
        different = (bits - signs[start : start + _BLOCK] @ signs[start:].T) / 2
        rows, columns = np.nonzero(different <= NEAR)
        upper = columns > rows
        distances = different[rows[upper], columns[upper]]
        pairs.extend(
            zip(
                (rows[upper] + start).tolist(),
                (columns[upper] + start).tolist(),
                distances.astype(int).tolist(),
                strict=True,
            )
        )
    return pairs
