"""Find exact duplicates by SHA-256 and near-duplicates by perceptual hash.

Chest radiographs resemble each other, so the usual 64-bit hash reports different patients as duplicates: in the public data
set, pairs of different patients differ in as few as 2 bits, no more than re-saved copies. 256 bits separate the two. Measured
on the public data set, copies of 60 images saved at JPEG quality 50, halved in size, or with brightness or contrast raised by
20% or 30% differ in at most 20 bits, while the closest two different images of all 5,856 differ in 38. `MAX_DISTANCE` lies in
between. Copies rotated by one degree or shifted by 1% of the width differ in 20 to 60 bits; only some of them are found.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import LabeledImage, identical_images

__all__ = ["MAX_DISTANCE", "DuplicatePair", "NearDuplicates", "exact_duplicates", "near_duplicates"]

MAX_DISTANCE = 28  # bits
_BLOCK_ROWS = 1024
_MAX_LISTED = 500


@dataclasses.dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Pair of near-duplicates.

    Attributes:
        a, b: Paths of the images.
        split_a, split_b: Splits of the images.
        patient_a, patient_b: Patients of the images; "" if unknown.
        hamming_distance: Number of bits in which the perceptual hashes differ.
        identical: True if the files are byte-identical.
    """

    a: str
    b: str
    split_a: str
    split_b: str
    patient_a: str
    patient_b: str
    hamming_distance: int
    identical: bool

    @property
    def same_patient(self) -> bool:
        """True if both patients are known and equal."""
        return self.patient_a == self.patient_b != ""

    @property
    def different_patients(self) -> bool:
        """True if both patients are known and different."""
        return "" not in (self.patient_a, self.patient_b) and self.patient_a != self.patient_b


@dataclasses.dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Pairs of near-duplicates, including byte-identical images.

    Attributes:
        method: Hash, number of bits and threshold, as a phrase.
        pairs: Number of pairs.
        identical: Number of byte-identical pairs.
        within: Number of pairs within each split, {split: n}.
        across: Number of pairs across two splits, {"train/test": n}.
        different_patients: Number of pairs of two different known patients.
        listed: Up to 500 pairs: first those across splits, then those of different patients, then by distance.
    """

    method: str
    pairs: int
    identical: int
    within: Mapping[str, int]
    across: Mapping[str, int]
    different_patients: int
    listed: tuple[DuplicatePair, ...]


def exact_duplicates(images: Sequence[LabeledImage]) -> tuple[tuple[str, ...], ...]:
    """Return the paths of byte-identical images, grouped, in manifest order."""
    return tuple(tuple(image.path for image in group) for group in identical_images(images))


def near_duplicates(
    images: Sequence[LabeledImage], hashes: npt.NDArray[np.bool_], splits: Sequence[str], names: Sequence[str]
) -> NearDuplicates:
    """Return the pairs of images whose perceptual hashes differ in at most `MAX_DISTANCE` bits.

    Args:
        images: Images to compare.
        hashes: Perceptual hashes, shape (n, bits).
        splits: Display name of each image's split.
        names: Display names of all splits, in report order.
    """
    within = Counter(dict.fromkeys(names, 0))
    across = Counter({f"{a}/{b}": 0 for i, a in enumerate(names) for b in names[i + 1 :]})
    pairs: list[DuplicatePair] = []
    for i, j, distance in _near_pairs(hashes):
        a, b = images[i], images[j]
        identical = a.sha256 == b.sha256
        pairs.append(DuplicatePair(a.path, b.path, splits[i], splits[j], a.patient, b.patient, distance, identical))
        first, second = sorted((splits[i], splits[j]), key=names.index)
        if first == second:
            within[first] += 1
        else:
            across[f"{first}/{second}"] += 1
    pairs.sort(
        key=lambda pair: (pair.split_a == pair.split_b, pair.same_patient, pair.hamming_distance, pair.a, pair.b)
    )
    return NearDuplicates(
        method=f"perceptual hash of {hashes.shape[1]} bits, Hamming distance at most {MAX_DISTANCE}",
        pairs=len(pairs),
        identical=sum(pair.identical for pair in pairs),
        within=dict(within),
        across=dict(across),
        different_patients=sum(pair.different_patients for pair in pairs),
        listed=tuple(pairs[:_MAX_LISTED]),
    )


def _near_pairs(hashes: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Return (i, j, Hamming distance) of near pairs with i < j, computed in blocks to limit memory.

    With bits encoded as -1 and 1, a dot product is the number of equal bits minus the number of different bits, exact in
    float32.
    """
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    bits = signs.shape[1]
    pairs: list[tuple[int, int, int]] = []
    for start in range(0, len(signs), _BLOCK_ROWS):
        distances = (bits - signs[start : start + _BLOCK_ROWS] @ signs[start:].T) / 2
        rows, columns = np.nonzero(distances <= MAX_DISTANCE)
        upper = columns > rows
        near = distances[rows[upper], columns[upper]]
        pairs.extend(
            zip(
                (rows[upper] + start).tolist(),
                (columns[upper] + start).tolist(),
                near.astype(int).tolist(),
                strict=True,
            )
        )
    return pairs
