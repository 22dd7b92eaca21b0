"""Check whether the heatmaps of a bundle reflect what its network uses.

- Deletion and insertion (Petsiuk 2018): pixels are blurred, or restored in a blurred image, in the order of the
  heatmap, most important first. The area under the curve of the predicted class's score should be low for deletion and
  high for insertion. The baseline is random heatmaps with the same power spectrum, which differ only in the locations
  they highlight.
- Sanity check by weight randomization (Adebayo 2018): the weights of the last layer, of the last half of the layers and
  of all layers are shuffled within each tensor. Heatmaps that stay the same do not depend on what the network learned.
  The baseline is the heatmap of another image.
- Localization, if there are masks of the disease; see `localization`.

Only the ONNX file is used, so any bundle can be checked. Requires the extra [train], which installs onnx.

Sources: Petsiuk, Das and Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models". Adebayo et
al. 2018, "Sanity Checks for Saliency Maps".
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope import __version__
from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Card
from pneumoscope.core.errors import UsageError
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import of_patients_text
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.result_forms import write_result
from pneumoscope.data.hashing import read_image
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import LABELS, LabeledImage
from pneumoscope.evaluation.saliency.localization import measure_localization
from pneumoscope.evaluation.saliency.metrics import (
    STEPS,
    FloatArray,
    explain_pixels,
    mean_over_images,
    perturbation_aucs,
    random_heatmap,
    rank_correlation,
    shuffle_weights,
)
from pneumoscope.evaluation.saliency.results import CurveResult, RandomizationResult, SaliencyCheck
from pneumoscope.evaluation.selection import count_patients, count_unknown_patients, draw_sample
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.statistics.intervals import undefined

__all__ = ["CurveResult", "RandomizationResult", "SaliencyCheck", "check_saliency", "finite_mean", "saliency_markdown"]

Progress = Callable[[str, int, int], None]

_RANDOM_HEATMAPS = 3  # per image
_SHUFFLES = 3  # of the weights, per group of layers
_RANDOMIZED_LAYERS = {"last layer": 0.0, "last half of the layers": 0.5, "all layers": 1.0}


@dataclasses.dataclass(frozen=True, slots=True)
class _Sample:
    """Network inputs (uint8, shape (n, size, size)), logits (n,) and heatmaps (n, rows, columns) of images."""

    images: tuple[LabeledImage, ...]
    pixels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    heatmaps: npt.NDArray[np.float32]

    def mean(self, values: npt.ArrayLike, seed: int) -> Interval:
        """Return the mean over the images, ignoring NaN, with a patient bootstrap interval."""
        x = np.asarray(values, dtype=np.float64)
        finite = np.flatnonzero(np.isfinite(x))
        if not len(finite):
            return undefined("all heatmaps are constant", n=0, method="patient bootstrap", seed=seed)
        return mean_over_images(
            x[finite],
            [self.images[i].label == LABELS[1] for i in finite],
            [self.images[i].patient for i in finite],
            seed,
        )


def check_saliency(
    target: Path,
    data: Path,
    *,
    split: str = "validation",
    labels: LabelMapping | None = None,
    images: int = 100,
    seed: int = 0,
    masks: Path | None = None,
    out: Path | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> SaliencyCheck:
    """Return the checks of a bundle's heatmaps.

    They are deletion, insertion, weight randomization and, with masks, localization.

    Args:
        target: Run folder or bundle.
        data, split, labels: See `selection.draw_sample`.
        images: Size of the random sample, half of it with pneumonia; smaller if a class has fewer images.
        seed: Seed of the sample, the random heatmaps, the shuffled weights and the bootstraps.
        masks: Folder of disease masks, nonzero inside the disease: images with the size of the radiograph, and its path
            in `data` with the suffix .png. All images of the split with a mask and pneumonia are used, not only the
            sample.
        out: Folder for saliency_check.json and saliency_check.md; None writes no files.
        command: Command line to record in the result.
        progress: Called with (stage, steps done, total).

    Raises:
        UsageError: The split is "test" or "all", the network has no weights, or its heatmaps have fewer than 4 cells.
        BundleError: The bundle cannot be read or run, or has no heatmaps.
        DatasetError: Images cannot be used, see `selection.select_images`; or there is no mask, or a mask cannot be
            read, is empty or differs in size from its image.
    """
    card, network = read_bundle(find_bundle(target))
    session = BundleSession(card, network)
    session.require_heatmaps()
    rng = np.random.default_rng(seed)
    sample = _explain_sample(session, *draw_sample(target, data, split, math.ceil(images / 2), rng, labels))
    rows, columns = sample.heatmaps.shape[1:]
    if rows * columns < 4:
        raise UsageError(
            f"heatmaps of {rows} x {columns} cells have no spatial order to check",
            hint="Train with a larger image size",
        )
    localization = (
        None if masks is None else measure_localization(session, target, data, split, masks, seed, progress, labels)
    )
    curves = _perturbation_curves(session, sample, rng, seed, progress)
    result = SaliencyCheck(
        bundle=card.name,
        network=card.network,
        onnx_sha256=card.onnx_sha256,
        heatmap_shape=(rows, columns),
        split=split,
        n=len(sample.images),
        patients=count_patients(sample.images),
        unknown_patients=count_unknown_patients(sample.images),
        seed=seed,
        steps=STEPS,
        deletion=curves["deletion"],
        insertion=curves["insertion"],
        randomization=_randomization(card, network, sample, rng, seed, progress),
        localization=localization,
        version=__version__,
        system=platform.platform(),
        command=command,
        notice=notice(card.population),
    )
    if out is not None:
        write_result(out, "saliency_check", result, saliency_markdown(result))
    return result


def _explain_sample(session: BundleSession, root: Path, images: tuple[LabeledImage, ...]) -> _Sample:
    pixels = np.stack([preprocess(read_image(root, image), session.card.preprocessing) for image in images])
    return _Sample(images, pixels, *explain_pixels(session, pixels))


# --- deletion and insertion ------------------------------------------------------------------------------------------


def _perturbation_curves(
    session: BundleSession, sample: _Sample, rng: np.random.Generator, seed: int, progress: Progress | None
) -> dict[str, CurveResult]:
    signs = np.where(sample.logits >= 0, 1, -1)
    network_areas, random_areas = [], []
    for done, (image, heatmap, sign) in enumerate(zip(sample.pixels, sample.heatmaps, signs, strict=True), start=1):
        network_areas.append(perturbation_aucs(session, image, heatmap, sign))
        areas = [perturbation_aucs(session, image, random_heatmap(heatmap, rng), sign) for _ in range(_RANDOM_HEATMAPS)]
        random_areas.append(np.mean(areas, axis=0))
        if progress:
            progress("deletion and insertion", done, len(signs))
    curves = {}
    for column, (name, direction) in enumerate((("deletion", -1), ("insertion", 1))):
        network, random = np.array(network_areas)[:, column], np.array(random_areas)[:, column]
        improvement = direction * (network - random)
        curves[name] = CurveResult(
            heatmap=sample.mean(network, seed),
            random=sample.mean(random, seed),
            improvement=sample.mean(improvement, seed),
            fraction_better=float(np.mean(improvement > 0)),
        )
    return curves


# --- weight randomization --------------------------------------------------------------------------------------------


def _randomization(
    card: Card,
    network: bytes,
    sample: _Sample,
    rng: np.random.Generator,
    seed: int,
    progress: Progress | None,
) -> tuple[RandomizationResult, ...]:
    def similarity(name: str, others: Sequence[FloatArray], layers: int) -> RandomizationResult:
        def mean(transform: Callable[[FloatArray], FloatArray]) -> Interval:
            correlations = [
                [rank_correlation(transform(a), transform(b)) for a, b in zip(sample.heatmaps, other, strict=True)]
                for other in others
            ]
            return sample.mean(finite_mean(correlations), seed)

        return RandomizationResult(name, layers, correlation=mean(lambda x: x), magnitude_correlation=mean(np.abs))

    results = []
    for name, fraction in _RANDOMIZED_LAYERS.items():
        others, layers = [], 0
        for done in range(1, _SHUFFLES + 1):
            shuffled, layers = shuffle_weights(network, fraction, rng)
            others.append(explain_pixels(BundleSession(card, shuffled), sample.pixels)[1])
            if progress:
                progress(f"weight randomization, {name}", done, _SHUFFLES)
        results.append(similarity(name, others, layers))
    # The images are ordered by label: half of the sample further on, the label differs.
    shifted = np.roll(sample.heatmaps, len(sample.heatmaps) // 2, axis=0)
    results.append(similarity("none (heatmap of an image of the other label)", [shifted], 0))
    return tuple(results)


def finite_mean(values: Sequence[Sequence[float]]) -> FloatArray:
    """Return the mean of each column, ignoring NaN; NaN for a column without finite values."""
    table = np.array(values)
    counts = np.isfinite(table).sum(0)
    return np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)


# --- Markdown --------------------------------------------------------------------------------------------------------


def saliency_markdown(result: SaliencyCheck) -> str:
    """Return the result as Markdown tables."""
    patients = of_patients_text(result.patients, result.unknown_patients, result.n)
    rows, columns = result.heatmap_shape
    lines = [
        f"Heatmaps of {result.bundle} ({result.network}, {rows} x {columns} cells) on {result.n} {result.split} images"
        f" {patients}, half of them with pneumonia; means with 95% intervals over patients, seed {result.seed}.",
        "",
        f"Area under the curve of the predicted class's score. Baseline: {_RANDOM_HEATMAPS} random heatmaps per image with the"
        " same power spectrum.",
        "",
        "| curve | heatmap | random heatmap | improvement | images that improve |",
        "| --- | --- | --- | --- | --- |",
    ]
    curves: Mapping[str, CurveResult] = {
        "deletion, lower is better": result.deletion,
        "insertion, higher is better": result.insertion,
    }
    for name, curve in curves.items():
        lines.append(
            f"| {name} | {curve.heatmap} | {curve.random} | {curve.improvement} | {curve.fraction_better:.0%} |"
        )
    lines += [
        "",
        f"Rank correlation with the heatmaps of the trained network, means of {_SHUFFLES} shuffles; near 0 is expected after"
        " randomization. Correlations of magnitudes are to be compared with the last row, where nothing is randomized.",
        "",
        "| randomized | layers | correlation | correlation of magnitudes | images |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.name} | {row.layers} | {row.correlation} | {row.magnitude_correlation} | {row.correlation.n} |"
        for row in result.randomization
    ]
    if (found := result.localization) is not None:
        lines += [
            "",
            f"Masks of the disease on {found.n} images"
            f" {of_patients_text(found.patients, found.unknown_patients, found.n)}.",
            "",
            "| localization | value | expected by chance |",
            "| --- | --- | --- |",
            f"| peak inside the mask | {found.peak_inside} | {found.area} |",
            f"| positive contributions inside the mask | {found.energy_inside} | {found.area} |",
        ]
    return "\n".join([*lines, "", f"`{result.command}`", "", result.notice, ""])
