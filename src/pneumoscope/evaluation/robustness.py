"""Measure how stable predictions are under changes of the file or the image, and how many unusable images are rejected.

- File formats and resolutions: PNG, 16-bit PNG, 12-bit DICOM, MONOCHROME1, full size and downsampled. The probability
  should not change.
- Small changes: JPEG compression, rotation, brightness. Few decisions should change.
- Corruptions (inverted, rotated, mirrored, cropped, no content), phantoms and folders of other images. All should be
  rejected.

A rejection counts as a decision, so an image rejected in only one variant is a changed decision.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pneumoscope import __version__
from pneumoscope.core.errors import DatasetError, UsageError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted, of_patients_text
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.result_forms import write_result
from pneumoscope.core.results import SCHEMA
from pneumoscope.data.hashing import read_image
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.evaluation.image_variants import CHANGES, CORRUPTIONS, FORMATS, GrayImage, Variants
from pneumoscope.evaluation.selection import count_patients, count_unknown_patients, draw_sample
from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.inference.discovery import discover_images
from pneumoscope.inference.model import Model, load_model
from pneumoscope.statistics.intervals import proportion

__all__ = [
    "RejectionResult",
    "Robustness",
    "VariantResult",
    "compare_predictions",
    "count_rejections",
    "measure_robustness",
    "robustness_markdown",
]

_Source = GrayImage | bytes | str | Path
_Predict = Callable[[str, Iterable[_Source], int], list[Prediction]]

_TOLERANCE = 0.05  # on the probability
_FIRST_PHANTOM_SEED = 10_000  # lower seeds are used to train the input classifier


@dataclasses.dataclass(frozen=True, slots=True)
class VariantResult:
    """Predictions for a variant of the images, compared with those for the unmodified images.

    Attributes:
        name: Name of the variant.
        changed: Fraction of images whose decision changed.
        largest: Largest absolute change of the probability, 0 to 1; None if no image has a probability in both
            variants.
        near: Among images with a probability in both variants, the fraction whose probability changed by at most 0.05;
            None without such images.
        rejected: Number of images that are rejected in this variant.
    """

    name: str
    changed: Interval
    largest: float | None
    near: Interval | None
    rejected: int


@dataclasses.dataclass(frozen=True, slots=True)
class RejectionResult:
    """Rejections in a set of images.

    Attributes:
        name: Name of the set.
        rejected: Fraction of images that are rejected or unreadable.
        reasons: Number of images for each of the three most frequent rejection or error codes.
        predicted_pneumonia: Number of images with the decision "pneumonia".
    """

    name: str
    rejected: Interval
    reasons: Mapping[str, int]
    predicted_pneumonia: int


@dataclasses.dataclass(frozen=True, slots=True)
class Robustness:
    """Robustness of one bundle at one operating point.

    Attributes:
        bundle, network, onnx_sha256: Name, network and file hash of the bundle.
        operating_point: Rule that set the threshold.
        split, n, patients, seed: Split of the sample, number of images and patients, and the seed it was drawn with.
        unmodified: Rejections among the unmodified images.
        formats, changes: Variants whose predictions should not change.
        corruptions, other_images: Images that should be rejected.
        sizes: Full-size images compared with their downsampled copies; None if none were given.
        version, system: Version of pneumoscope and operating system.
        command: The command line.
        unknown_patients: Number of images of unknown patients; None in records of earlier versions.
        site: Name and short hash of the site profile; "" without one.
    """

    bundle: str
    network: str
    onnx_sha256: str
    operating_point: str
    split: str
    n: int
    patients: int
    seed: int
    unmodified: RejectionResult
    formats: tuple[VariantResult, ...]
    changes: tuple[VariantResult, ...]
    corruptions: tuple[RejectionResult, ...]
    other_images: tuple[RejectionResult, ...]
    sizes: VariantResult | None
    version: str
    system: str
    command: str
    unknown_patients: int | None = None
    site: str = ""
    schema: int = SCHEMA
    notice: str = NOTICE


@dataclasses.dataclass(frozen=True, slots=True)
class _Sample:
    """The unmodified images of the sample, with their patients and predictions, in the same order."""

    pixels: Sequence[GrayImage]
    patients: Sequence[str]
    unmodified: Sequence[Prediction]


# --- measurement -----------------------------------------------------------------------------------------------------


def measure_robustness(
    target: Path,
    data: Path,
    *,
    split: str = "validation",
    labels: LabelMapping | None = None,
    images: int = 400,
    phantoms: int = 50,
    operating_point: str = "",
    site: Path | None = None,
    originals: Path | None = None,
    copies: Path | None = None,
    other_images: Sequence[Path] = (),
    seed: int = 0,
    out: Path | None = None,
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> Robustness:
    """Return the robustness of a bundle on a random sample of images, half of them with pneumonia.

    Args:
        target: Run folder or bundle.
        data, split, labels: See `selection.draw_sample`.
        images: Size of the sample; smaller if a class has fewer than half as many images.
        phantoms: Number of phantoms to draw.
        operating_point: Name of an operating point on the card; "balanced" if empty.
        site: Site profile of `pneumoscope accept`, with thresholds and limits of a hospital.
        originals, copies: Folders of full-size images and of their downsampled copies under the same relative paths.
        other_images: Folders of images that should be rejected.
        seed: Seed of the sample.
        out: Folder for robustness.json and robustness.md; None writes no files.
        command: Command line to record in the result.
        progress: Called with (name of the variant, images done, total).

    Raises:
        UsageError: The split is "test" or "all", or only one of `originals` and `copies` is given.
        DatasetError: An original has no copy, or images cannot be used; see `selection.select_images`.
        BundleError: The bundle cannot be read or run.
        UnknownNameError: The card has no such operating point.
        SiteProfileError: The site profile cannot be used.
    """
    if (originals is None) != (copies is None):
        raise UsageError("--originals and --copies must be given together")
    size_pairs = _pair_copies(originals, copies) if originals and copies else None
    model = load_model(target, operating_point=operating_point, site=site, threads=1)
    root, chosen = draw_sample(target, data, split, images // 2, np.random.default_rng(seed), labels)
    predict = functools.partial(_predict, model, progress)
    sample = _predict_sample(predict, root, chosen)
    result = Robustness(
        bundle=model.card.name,
        network=model.card.network,
        onnx_sha256=model.card.onnx_sha256,
        operating_point=model.point.rule_text(),
        split=split,
        n=len(chosen),
        patients=count_patients(chosen),
        unknown_patients=count_unknown_patients(chosen),
        site=model.facts.site,
        seed=seed,
        unmodified=count_rejections("unmodified", sample.unmodified, sample.patients),
        formats=_compare_variants(predict, sample, FORMATS),
        changes=_compare_variants(predict, sample, CHANGES),
        corruptions=_reject_corruptions(predict, sample),
        other_images=_predict_other_images(predict, phantoms, other_images),
        sizes=_compare_sizes(predict, *size_pairs) if size_pairs else None,
        version=__version__,
        system=platform.platform(),
        command=command,
        notice=notice(model.card.population),
    )
    if out is not None:
        write_result(out, "robustness", result, robustness_markdown(result))
    return result


def _predict(
    model: Model,
    progress: Callable[[str, int, int], None] | None,
    name: str,
    sources: Iterable[_Source],
    total: int,
) -> list[Prediction]:
    predictions: list[Prediction] = []
    for prediction in model.predict_many(sources):
        predictions.append(prediction)
        if progress:
            progress(name, len(predictions), total)
    return predictions


def _predict_sample(predict: _Predict, root: Path, images: Sequence[LabeledImage]) -> _Sample:
    pixels = [read_image(root, image).pixels for image in images]
    unmodified = predict("unmodified", iter(pixels), len(pixels))
    return _Sample(pixels, [image.patient for image in images], unmodified)


def _predict_variant(
    predict: _Predict, sample: _Sample, name: str, variant: Callable[[GrayImage], GrayImage | bytes]
) -> list[Prediction]:
    return predict(name, (variant(image) for image in sample.pixels), len(sample.pixels))


def _compare_variants(predict: _Predict, sample: _Sample, variants: Variants) -> tuple[VariantResult, ...]:
    return tuple(
        compare_predictions(name, sample.unmodified, _predict_variant(predict, sample, name, variant), sample.patients)
        for name, variant in variants.items()
    )


def _reject_corruptions(predict: _Predict, sample: _Sample) -> tuple[RejectionResult, ...]:
    return tuple(
        count_rejections(name, _predict_variant(predict, sample, name, variant), sample.patients)
        for name, variant in CORRUPTIONS.items()
    )


def _predict_other_images(predict: _Predict, phantoms: int, folders: Sequence[Path]) -> tuple[RejectionResult, ...]:
    drawn = (draw_phantom(_FIRST_PHANTOM_SEED + i, i % 2 == 0) for i in range(phantoms))
    results = [count_rejections("phantoms", predict("phantoms", drawn, phantoms))]
    for folder in folders:
        paths = discover_images([str(folder)]).paths
        results.append(count_rejections(folder.name, predict(folder.name, paths, len(paths))))
    return tuple(results)


def _pair_copies(originals: Path, copies: Path) -> tuple[list[Path], list[Path]]:
    """Return the full-size images and their downsampled copies, in the same order."""
    full_size = [Path(path) for path in discover_images([str(originals)]).paths]
    downsampled = [copies / path.relative_to(originals) for path in full_size]
    if missing := [path for path in downsampled if not path.is_file()]:
        raise DatasetError(
            f"{str(copies)!r} lacks a copy of {len(missing):,} of {counted(len(full_size), 'full-size image')}; the first is"
            f" {missing[0].relative_to(copies).as_posix()!r}",
            hint="Pass a folder to --copies that has the same relative paths as --originals",
        )
    return full_size, downsampled


def _compare_sizes(predict: _Predict, full_size: Sequence[Path], downsampled: Sequence[Path]) -> VariantResult:
    before = predict("full size", full_size, len(full_size))
    after = predict("downsampled", downsampled, len(downsampled))
    return compare_predictions("full size and downsampled copy", before, after, [""] * len(full_size))


def compare_predictions(
    name: str, before: Sequence[Prediction], after: Sequence[Prediction], patients: Sequence[str]
) -> VariantResult:
    """Return how many decisions differ, and by how much probabilities differ where both variants have one."""
    pairs = list(zip(before, after, strict=True))
    changed = np.array([a.decision != b.decision for a, b in pairs])
    differences = np.array(
        [
            abs(a.probability - b.probability)
            for a, b in pairs
            if a.probability is not None and b.probability is not None
        ]
    )
    return VariantResult(
        name,
        changed=proportion(changed, list(patients)),
        largest=float(differences.max()) if len(differences) else None,
        near=proportion(differences <= _TOLERANCE, None) if len(differences) else None,
        rejected=sum(prediction.decision == "rejected" for prediction in after),
    )


def count_rejections(
    name: str, predictions: Sequence[Prediction], patients: Sequence[str] | None = None
) -> RejectionResult:
    """Return how many images are rejected or unreadable, and why."""
    codes = [
        prediction.rejection.code if prediction.rejection else prediction.failure.code if prediction.failure else ""
        for prediction in predictions
    ]
    return RejectionResult(
        name,
        rejected=proportion([code != "" for code in codes], patients),
        reasons=dict(Counter(code for code in codes if code).most_common(3)),
        predicted_pneumonia=sum(prediction.decision == "pneumonia" for prediction in predictions),
    )


# --- Markdown --------------------------------------------------------------------------------------------------------


def robustness_markdown(result: Robustness) -> str:
    """Return the result as Markdown tables."""
    patients = of_patients_text(result.patients, result.unknown_patients, result.n)
    site = f" Site profile: {result.site}." if result.site else ""
    lines = [
        f"{result.bundle} ({result.network}) on {result.n} {result.split} images {patients}, half of them"
        f" with pneumonia. Threshold: {result.operating_point}.{site} Rates with 95% intervals; seed {result.seed}.",
        f"Rejected without modification: {result.unmodified.rejected:.1%}.",
        "",
        f"| variant of the same image | changed decisions | largest change of probability | changed by at most {_TOLERANCE} |"
        " rejected |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = [*result.formats, *result.changes]
    if result.sizes:
        name = f"{result.sizes.name} ({result.sizes.changed.n} other images)"
        rows.insert(0, dataclasses.replace(result.sizes, name=name))
    for variant in rows:
        largest = "none" if variant.largest is None else f"{variant.largest:.3f}"
        near = "none" if variant.near is None else f"{variant.near:.1%}"
        lines.append(f"| {variant.name} | {variant.changed:.1%} | {largest} | {near} | {variant.rejected} |")
    lines += [
        "",
        "| images that should be rejected | n | rejected | most frequent reasons | predicted as pneumonia |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in [*result.corruptions, *result.other_images]:
        reasons = "; ".join(f"{code} ({count})" for code, count in row.reasons.items())
        lines.append(f"| {row.name} | {row.rejected.n} | {row.rejected:.1%} | {reasons} | {row.predicted_pneumonia} |")
    return "\n".join([*lines, "", f"`{result.command}`", "", result.notice, ""])
