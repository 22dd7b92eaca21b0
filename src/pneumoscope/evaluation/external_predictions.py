"""Evaluate the predictions of another tool: a CSV file with one probability or logit per image.

The results have the same metrics, intervals and files as those of a bundle. Thresholds are chosen only on predictions
for validation images; without these, only fixed thresholds are available.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import special

from pneumoscope.bundle.card import Calibration
from pneumoscope.core.errors import UnknownNameError, UsageError
from pneumoscope.core.messages import counted, operating_point_rule
from pneumoscope.core.results import Evaluation, ScoredImage
from pneumoscope.core.with_figures import attach_source
from pneumoscope.data.column_classes import check_single_class
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.prediction_matching import manifest_columns
from pneumoscope.data.predictions_file import (
    PredictionColumns,
    PredictionsFile,
    read_column_names,
    read_predictions_file,
)
from pneumoscope.evaluation.breakdown import add_breakdown, read_breakdown
from pneumoscope.evaluation.custom_points import (
    FIXED_POINT,
    ChosenThreshold,
    canonical_names,
    choose_thresholds,
    custom_points,
)
from pneumoscope.evaluation.fitting import fit_calibration, fit_operating_points
from pneumoscope.evaluation.metrics import Threshold
from pneumoscope.evaluation.predicted_images import (
    HIGHEST_LOGIT,
    UNKNOWN_TRAINING,
    PredictedImages,
    match_validation,
    read_predicted_images,
    select_predicted_images,
)
from pneumoscope.evaluation.recording import ScoreSource, record_and_write, summarize, with_earlier_points
from pneumoscope.evaluation.selection import check_predicted_images, load_images_of_classes, load_labeled_images
from pneumoscope.evaluation.split_images import SplitImages
from pneumoscope.evaluation.threshold_images import check_threshold_images
from pneumoscope.inference.decision import calibrate, score_at_probability
from pneumoscope.statistics.inputs import FloatArray

__all__ = ["FIXED_POINT", "check_prediction_options", "check_predictions", "evaluate_predictions", "with_path_column"]


def evaluate_predictions(
    file: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    columns: PredictionColumns = PredictionColumns(),  # noqa: B008  immutable
    labels: LabelMapping | None = None,
    validation: str | Path | None = None,
    validation_data: str | Path | None = None,
    fit_probabilities: bool = False,
    operating_points: Sequence[str] | None = None,
    name: str = "",
    by: Sequence[str] = (),
    reference: str | Path | None = None,
    out: str | Path | None = None,
    replace: bool = False,
    prevalence: float | None = None,
    source_name: str = "",
    ledger: str | Path | None = None,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> tuple[Evaluation, tuple[ScoredImage, ...]]:
    """Return the metrics, with intervals, of another tool's predictions for labeled images.

    Every image of the split needs a prediction. Predictions for images of other splits are ignored.

    Args:
        file: CSV file with one row per image.
        data: Folder, manifest CSV or archive of labeled images.
        split: "train", "validation", "test", or "all" for all images.
        columns: Names of the columns of the file.
        labels: Names of columns and labels of `data` and `validation_data`. By default, `data` may use the path column
            of the file.
        validation: Second CSV file, with the same columns and predictions for validation images, which choose the
            thresholds. Alternatively, `columns.split` marks validation rows in the first file.
        validation_data: Labeled validation images; those in `data` if None.
        fit_probabilities: Calibrate the probabilities on the predictions for validation images (Platt scaling);
            otherwise evaluate them as given.
        operating_points: Operating points to evaluate; all that have a threshold if None. Custom ones are a probability
            such as "0.3", or "sens=0.95" and "spec=0.9", whose thresholds are chosen on the predictions for validation
            images.
        name: Name of the model, by which it is matched with `reference`; the file stem if empty.
        by: Columns of the manifest CSV, or "etiology", whose values form subgroups.
        reference: Folder of an evaluation of the same model on other images, to report differences from.
        out: Folder for evaluation.json and predictions.csv; None writes no files.
        replace: Replace another evaluation in this folder.
        prevalence: Prevalence of pneumonia for additional predictive values.
        source_name: Name of the images, for the report; the name of `data` if empty.
        ledger: The test ledger; `ledger.default_ledger()` if None.
        seed: Seed of the bootstraps.
        note: Called with each remark about the data.

    Returns:
        The evaluation, and the images with their predictions in the order of the data.

    Raises:
        UsageError: Options are mutually exclusive, an operating point needs validation predictions, or see `evaluate`.
        RunError: The reference is missing or damaged.
        UnknownNameError: There is no such column, class or operating point.
        LayoutError: The file is not a CSV file with these columns; see `read_predictions_file`.
        DatasetError: A value is invalid, rows and images do not match, or all validation images have the same label.
        ThresholdError: A validation image is a test image or one of the evaluated images.
        PatientLeakError: A patient has both validation images and evaluated images.
        StorageError: The ledger or the results cannot be written.
    """
    started = time.perf_counter()
    file, data = Path(file), Path(data)
    check_prediction_options(split, columns, validation, validation_data, fit_probabilities=fit_probabilities)
    requested = None if operating_points is None else canonical_names(operating_points)
    labels = with_path_column(labels, data, columns)
    manifest = _load_images(file, data, columns, labels)
    evaluated = SplitImages.select(manifest, data, split, None, note)
    matched = read_predicted_images(file, columns, manifest, data)
    predicted = select_predicted_images(matched, evaluated, note)
    chosen_on: PredictedImages | None = None
    if validation is not None:
        second = read_predictions_file(Path(validation), columns)
        chosen_on = match_validation(
            second, matched, validation_data, lambda place: load_labeled_images(place, labels)
        ).predicted()
    elif columns.split:
        chosen_on = matched.predicted("validation")
    if chosen_on is not None:
        check_threshold_images(chosen_on.images, predicted.images, Path(validation or file))
    calibration = _fit_calibration(chosen_on) if chosen_on is not None and fit_probabilities else None
    source = _source(matched.file, chosen_on, calibration, name or file.stem, requested or ())
    points = _choose_points(requested, source, has_validation=chosen_on is not None)
    if out is not None and not replace:
        source, points = with_earlier_points(Path(out), points, evaluated.images, source, seed)
    breakdown = read_breakdown(
        data, by, None if reference is None else Path(reference), evaluated.images, source, manifest.path_column,
        points=points, note=note,
    )  # fmt: skip
    scored = _scored_images(predicted, calibration)
    evaluation = summarize(
        source,
        split,
        scored,
        points,
        seed=seed,
        seconds=time.perf_counter() - started,
        prevalence=prevalence,
        flow=evaluated.flow(source_name),
    )
    evaluation = record_and_write(
        add_breakdown(_with_score_remarks(evaluation, scored), scored, breakdown, seed),
        scored,
        out=None if out is None else Path(out),
        ledger=None if ledger is None else Path(ledger),
        replace=replace,
    )
    return attach_source(evaluation, scored), scored


def check_prediction_options(
    split: str,
    columns: PredictionColumns,
    validation: str | Path | None,
    validation_data: str | Path | None,
    *,
    fit_probabilities: bool,
) -> None:
    """Raise if options are mutually exclusive or incomplete; see `evaluate_predictions`.

    Raises:
        UsageError: Two options conflict, or a required option is missing.
    """
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
    if fit_probabilities and validation is None and not columns.split:
        raise UsageError(
            "probabilities can be calibrated on validation predictions only, and there are none",
            hint="Give --validation-predictions or --split-column",
        )


def with_path_column(labels: LabelMapping | None, data: Path, columns: PredictionColumns) -> LabelMapping | None:
    """Return the mapping with the path column of the predictions, if the data has that column and no column "path".

    Args:
        labels: The mapping; None for the defaults.
        data: The labeled images.
        columns: Names of the columns of the predictions.
    """
    if not columns.path or (labels and labels.path_column) or data.suffix.lower() != ".csv" or not data.is_file():
        return labels
    names = manifest_columns(data)
    if columns.path not in names or "path" in names:
        return labels
    return dataclasses.replace(labels or LabelMapping(), path_column=columns.path)


def check_predictions(
    file: Path, data: Path, *, split: str, columns: PredictionColumns, labels: LabelMapping | None = None
) -> None:
    """Raise the errors of `evaluate_predictions` for a file that is unreadable or does not match the images."""
    manifest = _load_images(file, data, columns, with_path_column(labels, data, columns))
    evaluated = SplitImages.select(manifest, data, split)
    select_predicted_images(read_predicted_images(file, columns, manifest, data), evaluated)


def _load_images(file: Path, data: Path, columns: PredictionColumns, labels: LabelMapping | None) -> Manifest:
    """Return the manifest of a binary data set; raise if the named prediction column belongs to a single class."""
    manifest = load_images_of_classes(data, labels)
    check_single_class(columns, read_column_names(file), manifest.classes, str(file))
    check_predicted_images(manifest)
    return manifest


def _fit_calibration(validation: PredictedImages) -> Calibration:
    labels = validation.labels
    return fit_calibration(_limited(validation.logits).astype(np.float32), labels, float(labels.mean()))


def _source(
    file: PredictionsFile,
    validation: PredictedImages | None,
    calibration: Calibration | None,
    name: str,
    requested: Sequence[str],
) -> ScoreSource:
    """Return the source of the scores: operating points, remarks and calibration of a file."""
    custom = custom_points(requested, ())
    points: dict[str, Threshold] = {
        FIXED_POINT: ChosenThreshold(0.5, operating_point_rule("fixed", None, None, augmented=False))
    }
    chosen_on = None
    if validation is not None:
        points = dict(fit_operating_points(validation.scores, validation.labels, validation.patients))
        chosen_on = (validation.scores, validation.labels)
    points |= choose_thresholds(custom, lambda probability: _score_at(probability, calibration), chosen_on)
    return ScoreSource(
        name=name,
        operating_points=points,
        threshold_probabilities={
            each: float(
                _probabilities(np.array([special.logit(point.threshold)]), np.array([point.threshold]), calibration)[0]
            )
            for each, point in points.items()
        },
        predictions_sha256=file.sha256,
        remarks=(
            UNKNOWN_TRAINING,
            *_validation_remarks(validation, has_custom=bool(custom)),
            *_scale_remarks(file, calibration),
        ),
        calibration=calibration,
    )


def _validation_remarks(validation: PredictedImages | None, *, has_custom: bool) -> list[str]:
    """Return remarks on the images that chose the thresholds."""
    if validation is None:
        only = (
            "all thresholds are fixed ones"
            if has_custom
            else "the only threshold is the fixed one, a probability of 0.5"
        )
        return [f"There are no predictions for validation images: {only}."]
    n, trained = len(validation.images), sum(image.split == "train" for image in validation.images)
    if not trained:
        return []
    return [f"{trained:,} of the {counted(n, 'image')} that chose the thresholds are training images in the data."]


def _scale_remarks(file: PredictionsFile, calibration: Calibration | None) -> list[str]:
    """Return remarks on how the probabilities were obtained, and on logits that may be probabilities."""
    given = "as given" if file.scale == "probability" else "the sigmoid of the given logits"
    remarks = [
        f"Probabilities are {given}, without calibration."
        if calibration is None
        else f"Probabilities are calibrated on {counted(calibration.n, 'validation image')} (Platt scaling)."
    ]
    if file.scale == "logit" and all(0 <= row.value <= 1 for row in file.rows):
        remarks.append("All logits are within 0 to 1: if they are probabilities, give --probability-column instead.")
    return remarks


def _with_score_remarks(evaluation: Evaluation, scored: Sequence[ScoredImage]) -> Evaluation:
    """Return the evaluation with remarks on possibly inverted scores, and on probabilities without a finite logit."""
    remarks = evaluation.remarks
    high = evaluation.metrics["auroc"].high
    if high is not None and high < 0.5:
        remarks += ("The whole interval of the AUROC is below 0.5: the scores may be those of the other class.",)
    certain = sum(image.probability in (0, 1) for image in scored)
    if certain:
        remarks += (
            f"{counted(certain, 'image')} {'has' if certain == 1 else 'have'} a probability of exactly 0 or 1, which has no"
            " logit: calibration slope and intercept depend on what replaces it, 2^-53 or 1 - 2^-53.",
        )
    return dataclasses.replace(evaluation, remarks=remarks)


def _score_at(probability: float, calibration: Calibration | None) -> float:
    return probability if calibration is None else score_at_probability(calibration, probability)


def _probabilities(logits: FloatArray, scores: FloatArray, calibration: Calibration | None) -> FloatArray:
    if calibration is None:
        return scores
    return np.asarray(calibrate(calibration, _limited(logits)), dtype=np.float64)


def _limited(logits: FloatArray) -> FloatArray:
    return np.clip(logits, -HIGHEST_LOGIT, HIGHEST_LOGIT)


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
        raise UnknownNameError(
            "operating point",
            point,
            known,
            hint=f"Known: {', '.join(sorted(known))}; or a custom one, such as 0.3 or sens=0.95",
        )
    return tuple(requested)


def _scored_images(predicted: PredictedImages, calibration: Calibration | None) -> tuple[ScoredImage, ...]:
    probabilities = _probabilities(predicted.logits, predicted.scores, calibration)
    numbers = zip(predicted.logits.tolist(), predicted.scores.tolist(), probabilities.tolist(), strict=True)
    return tuple(
        ScoredImage(image.path, image.sha256, image.patient, image.label, image.etiology, *values)
        for image, values in zip(predicted.images, numbers, strict=True)
    )
