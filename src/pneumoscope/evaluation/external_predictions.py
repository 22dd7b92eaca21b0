"""Evaluate the predictions of another tool: a CSV file with one probability or logit per image.

The images get the same metrics, intervals and files as with a bundle. Thresholds are chosen on given predictions for validation
images only; without them, the fixed threshold of 0.5 is the only one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import special

from pneumoscope.bundle.card import Calibration, UncertaintyBand
from pneumoscope.core.errors import DatasetError, PatientLeakError, ThresholdError, UnknownNameError, UsageError
from pneumoscope.core.messages import counted, operating_point_rule
from pneumoscope.core.results import Evaluation, ScoredImage
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LABELS, LabeledImage, Manifest
from pneumoscope.data.prediction_matching import match_images, read_id_column
from pneumoscope.data.predictions_file import (
    PredictionColumns,
    PredictionRow,
    PredictionsFile,
    read_predictions_file,
)
from pneumoscope.evaluation.breakdown import add_breakdown, read_breakdown
from pneumoscope.evaluation.fitting import fit_calibration, fit_operating_points
from pneumoscope.evaluation.metrics import Threshold
from pneumoscope.evaluation.recording import ScoreSource, record_and_write, summarize, with_earlier_points
from pneumoscope.evaluation.selection import images_of_split
from pneumoscope.inference.decision import calibrate
from pneumoscope.statistics.inputs import BoolArray, FloatArray

__all__ = ["FIXED_POINT", "check_predictions", "evaluate_predictions"]

FIXED_POINT = "half"
# Logits of the probabilities 0 and 1, beyond those of the next floating-point numbers, so that the ranking stays the same. The
# calibration limits both sides to the same: otherwise, one rounded 0 would determine it.
_LOWEST_LOGIT, _HIGHEST_LOGIT = -745.0, 40.0
_MAX_LISTED = 3


@dataclasses.dataclass(frozen=True)
class _FixedThreshold:
    """A threshold that was chosen on no images."""

    threshold: float = 0.5
    uncertainty_band: UncertaintyBand | None = None

    def rule_text(self) -> str:
        """Return how the threshold was chosen, as a phrase."""
        return operating_point_rule("fixed", None, None, augmented=False)


@dataclasses.dataclass(frozen=True)
class _Predicted:
    """Images with their predictions.

    Attributes:
        images: The images.
        logits: Logits, shape (n,).
        scores: Probabilities as given, or the sigmoid of the logits, shape (n,).
    """

    images: tuple[LabeledImage, ...]
    logits: FloatArray
    scores: FloatArray

    @property
    def labels(self) -> BoolArray:
        """True for pneumonia, shape (n,)."""
        return np.array([image.positive for image in self.images])

    @property
    def patients(self) -> list[str]:
        """Patient identifier of each image."""
        return [image.patient for image in self.images]


def evaluate_predictions(
    file: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    columns: PredictionColumns = PredictionColumns(),  # noqa: B008  immutable
    validation: str | Path | None = None,
    validation_data: str | Path | None = None,
    fit_probabilities: bool = False,
    operating_points: Sequence[str] | None = None,
    name: str = "",
    by: Sequence[str] = (),
    reference: str | Path | None = None,
    out: str | Path | None = None,
    replace: bool = False,
    ledger: str | Path | None = None,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> tuple[Evaluation, tuple[ScoredImage, ...]]:
    """Return the metrics of predictions that another tool made for labeled images, with intervals.

    Every image of the split needs a prediction. Predictions for images of other splits are left out.

    Args:
        file: CSV file with one row per image.
        data: Folder, manifest CSV or archive of labeled images.
        split: "train", "validation", "test", or "all" for all images.
        columns: Names of the columns.
        validation: Second CSV file, of the same columns, with predictions for validation images, which choose the thresholds.
            Rows of the file that `columns.split` marks as validation do the same.
        validation_data: Labeled validation images; those in `data` if None.
        fit_probabilities: Calibrate the probabilities on the predictions for validation images (Platt scaling); otherwise they
            are evaluated as given.
        operating_points: Operating points to evaluate; all that have a threshold if None.
        name: Name of the model, which identifies it to `reference`; that of the file if empty.
        by: Columns of the manifest CSV, or "etiology", whose values form subgroups.
        reference: Folder of an evaluation of the same model on other images, whose difference is reported.
        out: Folder of evaluation.json and predictions.csv; None writes no files.
        replace: Replace another evaluation in this folder.
        ledger: The test ledger; `ledger.default_ledger()` if None.
        seed: Seed of the bootstraps.
        note: Called with each remark about the data.

    Returns:
        The evaluation, and the images with their predictions in the order of the data.

    Raises:
        UsageError: Options exclude each other, an operating point needs validation predictions, or see `evaluate`.
        RunError: The reference is missing or damaged.
        UnknownNameError: There is no such column or operating point.
        LayoutError: The file is no CSV file with these columns; see `read_predictions_file`.
        DatasetError: A value cannot be used, rows and images do not match, or validation images have one label only.
        ThresholdError: A validation image is a test image or one of the evaluated images.
        PatientLeakError: A patient has validation images and evaluated images.
        StorageError: The ledger or the results cannot be written. No result is returned then.
    """
    started = time.perf_counter()
    file, data = Path(file), Path(data)
    if validation is not None and columns.split:
        raise UsageError(
            "validation predictions are in a second file and in a column of the first",
            hint="Give either --validation-predictions or --split-column",
        )
    if columns.split and split in {"all", "validation"}:
        raise UsageError(
            f"--split-column separates validation rows from the evaluated rows, and the split is {split!r}",
            hint="State the splits in a manifest CSV, or give --validation-predictions",
        )
    if validation_data is not None and validation is None:
        raise UsageError("there are images, but no predictions for validation", hint="Give --validation-predictions")
    manifest = load_manifest(data)
    if note:
        for each in manifest.notes:
            note(each)
    images = images_of_split(manifest, data, split, None, both_labels=False)
    predictions, by_path = _read(file, columns, manifest, data)
    predicted = _select(images, by_path, predictions, split, note)
    chosen_on: _Predicted | None = None
    if validation is not None:
        other = read_predictions_file(Path(validation), columns)
        _check_scales(predictions, other)
        place = data if validation_data is None else Path(validation_data)
        others = manifest if validation_data is None else load_manifest(place)
        rows = _match(other, other.rows, others, place)
        chosen_on = _predicted([image for image in others if image.path in rows], rows, other)
    elif columns.split:
        rows = {path: row for path, row in by_path.items() if row.split == "validation"}
        chosen_on = _predicted([image for image in manifest if image.path in rows], rows, predictions)
    if chosen_on is not None:
        _check_validation(chosen_on, predicted, Path(validation or file))
    elif fit_probabilities:
        raise UsageError(
            "probabilities can be calibrated on validation predictions only, and there are none",
            hint="Give --validation-predictions or --split-column",
        )
    source, calibration = _source(predictions, chosen_on, name or file.stem, fit_probabilities=fit_probabilities)
    points = _choose_points(operating_points, source, has_validation=chosen_on is not None)
    if out is not None and not replace:
        points = with_earlier_points(Path(out), points, images, source, seed)
    breakdown = read_breakdown(data, by, None if reference is None else Path(reference), images, source)
    scored = _scored_images(predicted, calibration)
    seconds = time.perf_counter() - started
    evaluation = _with_ranking_remark(summarize(source, split, scored, points, seed=seed, seconds=seconds))
    evaluation = record_and_write(
        add_breakdown(evaluation, scored, breakdown, seed),
        scored,
        out=None if out is None else Path(out),
        ledger=None if ledger is None else Path(ledger),
        replace=replace,
    )
    return evaluation, scored


def check_predictions(file: Path, data: Path, *, split: str, columns: PredictionColumns) -> None:
    """Raise the error that `evaluate_predictions` raises if the file cannot be read or does not match the images."""
    manifest = load_manifest(data)
    images = images_of_split(manifest, data, split, None, both_labels=False)
    predictions, by_path = _read(file, columns, manifest, data)
    _select(images, by_path, predictions, split, None)


def _read(
    file: Path, columns: PredictionColumns, manifest: Manifest, data: Path
) -> tuple[PredictionsFile, dict[str, PredictionRow]]:
    """Return the file, and the row of each image that has one, {path of the image: row}."""
    predictions = read_predictions_file(file, columns)
    by_path = _match(predictions, predictions.rows, manifest, data)
    _check_splits(by_path, manifest, file)
    return predictions, by_path


def _match(
    file: PredictionsFile, rows: Sequence[PredictionRow], manifest: Manifest, data: Path
) -> dict[str, PredictionRow]:
    """Return the row of each image that has one, {path of the image: row}."""
    ids = read_id_column(data, file.id_column) if file.id_column else {}
    found = match_images(rows, manifest.images, str(file.path), ids)
    return {manifest.images[i].path: row for i, row in found.items()}


def _check_splits(rows: Mapping[str, PredictionRow], manifest: Manifest, file: Path) -> None:
    """Raise if a row and the data state different splits of an image."""
    for image in manifest:
        row = rows.get(image.path)
        if row and row.split and image.split and row.split != image.split:
            raise DatasetError(
                f"{file}, line {row.line}: {image.path!r} is a {row.split} image, and in the data a {image.split} image",
                hint="Correct the split in one of the two",
            )


def _select(
    images: Sequence[LabeledImage],
    rows: Mapping[str, PredictionRow],
    file: PredictionsFile,
    split: str,
    note: Callable[[str], None] | None,
) -> _Predicted:
    """Return the predictions for all images of the split."""
    missing = [image.path for image in images if image.path not in rows]
    if missing:
        listed = ", ".join(map(repr, missing[:_MAX_LISTED])) + (", …" if len(missing) > _MAX_LISTED else "")
        raise DatasetError(
            f"{str(file.path)!r} has no prediction for {len(missing):,} of {len(images):,}"
            f" {'images' if split == 'all' else f'{split} images'}: {listed}",
            hint="Images are never skipped, because n would be wrong: predict them, or give a manifest without them as --data",
        )
    evaluated = {image.path for image in images}
    others = sum(path not in evaluated and row.split != "validation" for path, row in rows.items())
    if others and note:
        note(f"{counted(others, 'row')} of {str(file.path)!r} with images of other splits {_are(others)} left out")
    for image in images:
        row = rows[image.path]
        if row.split not in {"", split}:
            raise DatasetError(
                f"{file.path}, line {row.line}: {image.path!r} is one of the {split} images, and the row is of the split"
                f" {row.split!r}",
                hint="Correct the split of the row, or state the splits of the images in a manifest CSV",
            )
    return _predicted(images, rows, file)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _predicted(images: Sequence[LabeledImage], rows: Mapping[str, PredictionRow], file: PredictionsFile) -> _Predicted:
    values = np.array([rows[image.path].value for image in images], dtype=np.float64)
    if file.scale == "logit":
        return _Predicted(tuple(images), values, special.expit(values))
    return _Predicted(tuple(images), np.clip(special.logit(values), _LOWEST_LOGIT, _HIGHEST_LOGIT), values)


def _check_scales(a: PredictionsFile, b: PredictionsFile) -> None:
    if a.scale != b.scale:
        raise DatasetError(
            f"{str(a.path)!r} has a {a.scale} for each image, and {str(b.path)!r} a {b.scale}",
            hint="Give both files on the same scale",
        )


def _check_validation(validation: _Predicted, evaluated: _Predicted, file: Path) -> None:
    """Raise if thresholds cannot be chosen on these images, or would be evaluated on them.

    Raises:
        DatasetError: There are no images, or they have one label only.
        ThresholdError: An image is a test image, or one of the evaluated images (compared by content).
        PatientLeakError: A patient has images in both.
    """
    counts = {label: sum(image.label == label for image in validation.images) for label in LABELS}
    if not all(counts.values()):
        listed = ", ".join(f"{n} {label}" for label, n in counts.items())
        raise DatasetError(
            f"{str(file)!r} has predictions for {listed} validation images; thresholds need both labels",
            hint="Add validation images of the other label, or evaluate the fixed threshold without validation images",
        )
    test = [image.path for image in validation.images if image.split == "test"]
    if test:
        raise ThresholdError(
            f"{len(test)} of {counted(len(validation.images), 'validation image')} in {str(file)!r} are test images in the"
            f" data; the first is {test[0]}",
            hint="Test images choose no threshold: choose thresholds on other images",
        )
    hashes = {image.sha256 for image in evaluated.images}
    shared = [image.path for image in validation.images if image.sha256 in hashes]
    if shared:
        raise ThresholdError(
            f"{len(shared)} of {counted(len(validation.images), 'validation image')} in {str(file)!r} are evaluated images"
            f" (compared by content); the first is {shared[0]}",
            hint="Choose thresholds on other images",
        )
    patients = {image.patient for image in evaluated.images} - {""}
    leaks = sorted({image.patient for image in validation.images if image.patient in patients})
    if leaks:
        raise PatientLeakError(
            f"patient {leaks[0]!r} has validation images and evaluated images ({counted(len(leaks), 'patient')} in total)",
            hint="Choose thresholds on images of other patients",
        )


def _source(
    file: PredictionsFile, validation: _Predicted | None, name: str, *, fit_probabilities: bool
) -> tuple[ScoreSource, Calibration | None]:
    """Return the operating points and remarks of a file, and the calibration if there is one."""
    remarks = ["It is unknown whether the model was trained or tuned on these images or patients."]
    calibration = None
    points: Mapping[str, Threshold] = {FIXED_POINT: _FixedThreshold()}
    if validation is None:
        remarks.append(
            "There are no predictions for validation images: the only threshold is the fixed one, a probability of 0.5."
        )
    else:
        n, trained = len(validation.images), sum(image.split == "train" for image in validation.images)
        if trained:
            remarks.append(
                f"{trained:,} of the {counted(n, 'image')} that chose the thresholds are training images in the data."
            )
        points = fit_operating_points(validation.scores, validation.labels, validation.patients)
        if fit_probabilities:
            labels = validation.labels
            calibration = fit_calibration(_limited(validation.logits).astype(np.float32), labels, float(labels.mean()))
    given = "as given" if file.scale == "probability" else "the sigmoid of the given logits"
    remarks.append(
        f"Probabilities are {given}, without calibration."
        if calibration is None
        else f"Probabilities are calibrated on {counted(calibration.n, 'validation image')} (Platt scaling)."
    )
    if file.scale == "logit" and all(0 <= row.value <= 1 for row in file.rows):
        remarks.append("All logits are within 0 to 1: if they are probabilities, give --probability-column instead.")
    source = ScoreSource(
        name=name,
        operating_points=points,
        threshold_probabilities={
            each: float(
                _probabilities(np.array([special.logit(point.threshold)]), np.array([point.threshold]), calibration)[0]
            )
            for each, point in points.items()
        },
        predictions_sha256=file.sha256,
        remarks=tuple(remarks),
    )
    return source, calibration


def _with_ranking_remark(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with a remark if the scores rank normal images above those of pneumonia."""
    high = evaluation.metrics["auroc"].high
    if high is None or high >= 0.5:
        return evaluation
    remark = "The whole interval of the AUROC is below 0.5: the scores may be those of the other class."
    return dataclasses.replace(evaluation, remarks=(*evaluation.remarks, remark))


def _probabilities(logits: FloatArray, scores: FloatArray, calibration: Calibration | None) -> FloatArray:
    if calibration is None:
        return scores
    return np.asarray(calibrate(calibration, _limited(logits)), dtype=np.float64)


def _limited(logits: FloatArray) -> FloatArray:
    return np.clip(logits, -_HIGHEST_LOGIT, _HIGHEST_LOGIT)


def _choose_points(requested: Sequence[str] | None, source: ScoreSource, *, has_validation: bool) -> Sequence[str]:
    known = source.operating_points
    if requested is None:
        return tuple(known)
    for point in requested:
        if point in known:
            continue
        if not has_validation and point in {"balanced", "rule_out", "rule_in"}:
            raise UsageError(
                f"the threshold of the operating point {point!r} is chosen on validation images, and there are no predictions"
                " for any",
                hint="Give --validation-predictions or --split-column, or evaluate --operating-point half",
            )
        raise UnknownNameError("operating point", point, known)
    return tuple(requested)


def _scored_images(predicted: _Predicted, calibration: Calibration | None) -> tuple[ScoredImage, ...]:
    probabilities = _probabilities(predicted.logits, predicted.scores, calibration)
    numbers = zip(predicted.logits.tolist(), predicted.scores.tolist(), probabilities.tolist(), strict=True)
    return tuple(
        ScoredImage(image.path, image.sha256, image.patient, image.label, image.etiology, *values)
        for image, values in zip(predicted.images, numbers, strict=True)
    )
