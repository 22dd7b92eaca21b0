"""Results of heatmap checks, readable without the libraries needed to measure them."""

from __future__ import annotations

import dataclasses

from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.results import SCHEMA

__all__ = ["CurveResult", "Localization", "RandomizationResult", "SaliencyCheck"]


@dataclasses.dataclass(frozen=True, slots=True)
class Localization:
    """Position of heatmaps relative to disease masks.

    Attributes:
        masks: Folder of the masks.
        n, patients: Number of images with a mask, and of their patients.
        peak_inside: Fraction of images whose largest contribution lies inside the mask.
        energy_inside: Fraction of the positive contributions inside the mask, mean over the images.
        area: Fraction of the image inside the mask, mean over the images: the expected value of both for a heatmap that
            does not depend on the image.
        unknown_patients: Number of images of unknown patients; None in records of earlier versions.
    """

    masks: str
    n: int
    patients: int
    peak_inside: Interval
    energy_inside: Interval
    area: Interval
    unknown_patients: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CurveResult:
    """Areas under the deletion or insertion curve, 0 to 1, averaged over the images.

    Attributes:
        heatmap: Area for the heatmaps of the network.
        random: Area for random heatmaps.
        improvement: Difference between the two, positive if the heatmaps of the network are better.
        fraction_better: Fraction of images whose heatmap is better than random heatmaps.
    """

    heatmap: Interval
    random: Interval
    improvement: Interval
    fraction_better: float


@dataclasses.dataclass(frozen=True, slots=True)
class RandomizationResult:
    """Similarity of heatmaps before and after randomization, averaged over the images.

    Attributes:
        name: Randomized layers.
        layers: Number of randomized layers.
        correlation: Rank correlation of the heatmaps.
        magnitude_correlation: Rank correlation of their absolute values.
    """

    name: str
    layers: int
    correlation: Interval
    magnitude_correlation: Interval

    @property
    def is_baseline(self) -> bool:
        """True if no layer was randomized, and the heatmap is compared with that of an image of the other label."""
        return self.layers == 0


@dataclasses.dataclass(frozen=True, slots=True)
class SaliencyCheck:
    """Heatmap checks of one bundle.

    Attributes:
        bundle, network, onnx_sha256: Name, network and file hash of the bundle.
        heatmap_shape: Rows and columns of a heatmap.
        split, n, patients, seed: Split of the sample, number of images and patients, and the seed of all random
            numbers.
        steps: Number of steps of the deletion and insertion curves.
        deletion: Lower areas are better.
        insertion: Higher areas are better.
        randomization: One row per group of randomized layers; the last row is the baseline.
        localization: Position of the heatmaps relative to masks; None without masks.
        version, system: Version of pneumoscope and operating system.
        command: The command line.
        unknown_patients: Number of images of unknown patients; None in records of earlier versions.
    """

    bundle: str
    network: str
    onnx_sha256: str
    heatmap_shape: tuple[int, int]
    split: str
    n: int
    patients: int
    seed: int
    steps: int
    deletion: CurveResult
    insertion: CurveResult
    randomization: tuple[RandomizationResult, ...]
    localization: Localization | None
    version: str
    system: str
    command: str
    unknown_patients: int | None = None
    schema: int = SCHEMA
    notice: str = NOTICE
