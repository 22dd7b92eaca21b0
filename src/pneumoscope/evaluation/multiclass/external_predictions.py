"""Evaluate the multiclass predictions of another tool: a CSV file with a probability or logit per class.

The results have the same metrics, intervals and files as those of a bundle. Prediction sets and the calibration are
fitted only to predictions for validation images.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pneumoscope.bundle.card import COVERAGE
from pneumoscope.bundle.multiclass_card import PredictionSets, TemperatureScaling
from pneumoscope.core.errors import DatasetError
from pneumoscope.core.messages import counted
from pneumoscope.core.multiclass_results import MulticlassEvaluation, MulticlassScoredImage
from pneumoscope.core.with_figures import attach_source
from pneumoscope.data.column_classes import check_column_labels
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.data.predictions_file import (
    PredictionColumns,
    PredictionsFile,
    check_sums,
    read_class_predictions_file,
)
from pneumoscope.evaluation.external_predictions import check_prediction_options, with_path_column
from pneumoscope.evaluation.multiclass.fitting import fit_prediction_sets, fit_temperature_scaling
from pneumoscope.evaluation.multiclass.recording import (
    ClassSource,
    check_folder,
    read_class_reference,
    record_classes,
    scored_class_images,
    summarize_classes,
)
from pneumoscope.evaluation.predicted_images import (
    UNKNOWN_TRAINING,
    MatchedPredictions,
    check_predicted,
    match_validation,
)
from pneumoscope.evaluation.selection import load_images_of_classes
from pneumoscope.evaluation.split_images import SplitImages
from pneumoscope.evaluation.subgroups import read_columns
from pneumoscope.evaluation.threshold_images import check_threshold_images
from pneumoscope.statistics.conformal import few_images_text
from pneumoscope.statistics.inputs import FloatArray
from pneumoscope.statistics.probabilities import softmax

__all__ = ["check_class_predictions", "evaluate_multiclass_predictions"]

_TINY = 2.0**-53  # replaces a probability of 0, which has no logarithm; the log loss does the same
_SUM = 1e-3  # larger deviations of a sum of probabilities from 1 are reported; smaller ones are rounding errors


def evaluate_multiclass_predictions(
    file: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    columns: PredictionColumns = PredictionColumns(),  # noqa: B008  immutable
    labels: LabelMapping | None = None,
    classes: Sequence[str] = (),
    validation: str | Path | None = None,
    validation_data: str | Path | None = None,
    fit_probabilities: bool = False,
    name: str = "",
    by: Sequence[str] = (),
    reference: str | Path | None = None,
    out: str | Path | None = None,
    replace: bool = False,
    source_name: str = "",
    ledger: str | Path | None = None,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> tuple[MulticlassEvaluation, tuple[MulticlassScoredImage, ...]]:
    """Return the metrics, with intervals, of another tool's multiclass predictions for labeled images.

    Every image of the split needs a prediction. Predictions for images of other splits are ignored.

    Args:
        file: CSV file with one row per image, and a column for each class.
        data: Folder, manifest CSV or archive of labeled images, whose labels are among the classes.
        split: "train", "validation", "test", or "all" for all images.
        columns: Names of the columns of the file.
        labels: Names of columns and labels of `data` and `validation_data`. By default, `data` may use the path column
            of the file.
        classes: The classes, in the order of all results; if empty, those of `labels`, or sorted.
        validation: Second CSV file, with the same columns and predictions for validation images, to which prediction
            sets are fitted. Alternatively, `columns.split` marks validation rows in the first file.
        validation_data: Labeled validation images; those in `data` if None.
        fit_probabilities: Calibrate the probabilities on the predictions for validation images (temperature scaling);
            otherwise evaluate them as given.
        name: Name of the model, by which it is matched with `reference`; the file stem if empty.
        reference: Folder of an evaluation of the same model on other images, to report differences from.
        by, out, replace, source_name, ledger, seed, note: See `evaluate_multiclass`.

    Returns:
        The evaluation, and the images with their probabilities in the order of the data.

    Raises:
        UsageError: Options are mutually exclusive, the folder has another evaluation, a column cannot be used, see
            `evaluation.subgroups.read_columns`, or the reference evaluates another model.
        RunError: The reference is missing or damaged.
        UnknownNameError: There is no such column or class.
        LayoutError: The file is not a CSV file with these columns; see `read_class_predictions_file`.
        DatasetError: A value is invalid, rows and images do not match, a label is not one of the classes, or a class
            has no validation images.
        ThresholdError: A validation image is a test image or one of the evaluated images.
        PatientLeakError: A patient has both validation images and evaluated images.
        StorageError: The ledger or the results cannot be written.
    """
    started = time.perf_counter()
    file, data = Path(file), Path(data)
    check_prediction_options(split, columns, validation, validation_data, fit_probabilities=fit_probabilities)
    labels = with_path_column(labels, data, columns)
    matched, evaluated = _match(file, data, split, columns, labels, classes, note)
    names = matched.file.classes
    chosen_on: tuple[MatchedPredictions, tuple[LabeledImage, ...]] | None = None
    if validation is not None:
        second = match_validation(
            _read_validation(Path(validation), columns, names),
            matched,
            validation_data,
            lambda place: load_images_of_classes(place, labels, classes=names),
        )
        chosen_on = second, second.images()
    elif columns.split:
        chosen_on = matched, matched.images("validation")
    if chosen_on is not None:
        check_threshold_images(chosen_on[1], evaluated.images, Path(validation or file), names)
    fitted = _Fitted() if chosen_on is None else _fit(*chosen_on, fit_probabilities=fit_probabilities)
    source = ClassSource(
        name=name or file.stem,
        classes=names,
        predictions_sha256=matched.file.sha256,
        coverage=None if fitted.sets is None else fitted.sets.coverage,
        remarks=_remarks(
            matched.file, matched.values(evaluated.images), fitted, None if chosen_on is None else chosen_on[1]
        ),
        calibration=fitted.calibration,
    )
    folder = None if out is None else Path(out)
    if folder is not None and not replace:
        check_folder(folder, evaluated.images, source, seed)
    groups = read_columns(data, by, evaluated.images, evaluated.manifest.path_column)
    compared = read_class_reference(None if reference is None else Path(reference), evaluated.images, source)
    probabilities = fitted.probabilities(matched, evaluated.images)
    inside = None if fitted.sets is None else probabilities >= [fitted.sets.classes[each].threshold for each in names]
    scored = scored_class_images(evaluated.images, probabilities, names, inside)
    evaluation = summarize_classes(
        source,
        split,
        scored,
        seed=seed,
        seconds=time.perf_counter() - started,
        columns=groups,
        reference=compared,
        flow=evaluated.flow(source_name),
    )
    evaluation = record_classes(
        _with_score_remarks(evaluation, scored),
        scored,
        out=folder,
        ledger=None if ledger is None else Path(ledger),
        replace=replace,
    )
    return attach_source(evaluation, scored), scored


def check_class_predictions(
    file: Path,
    data: Path,
    *,
    split: str,
    columns: PredictionColumns,
    labels: LabelMapping | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Raise the errors of `evaluate_multiclass_predictions` for a file that is unreadable or does not match."""
    _match(file, data, split, columns, with_path_column(labels, data, columns), classes, None)


def _match(
    file: Path,
    data: Path,
    split: str,
    columns: PredictionColumns,
    labels: LabelMapping | None,
    classes: Sequence[str],
    note: Callable[[str], None] | None,
) -> tuple[MatchedPredictions, SplitImages]:
    """Return the predictions in a file, and the images of a split, each checked to have a prediction."""
    predictions = read_class_predictions_file(file, columns, classes or (labels.classes if labels else ()))
    try:
        manifest = load_images_of_classes(data, labels, classes=predictions.classes)
    except DatasetError as error:
        if error.unknown_label:
            check_column_labels(columns, error.labels)
            check_sums(predictions, error.unknown_label)
            error.hint += f"; or add a column {predictions.scale}_{error.unknown_label} to {file}"
        raise
    check_sums(predictions)
    evaluated = SplitImages.select(manifest, data, split, None, note)
    matched = MatchedPredictions.match(predictions, manifest, data)
    matched.check_splits()
    check_predicted(matched, evaluated, note)
    return matched, evaluated


def _read_validation(file: Path, columns: PredictionColumns, classes: Sequence[str]) -> PredictionsFile:
    predictions = read_class_predictions_file(file, columns, classes)
    check_sums(predictions)
    return predictions


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """Calibration and prediction sets fitted to validation images.

    Attributes:
        calibration: Calibration of the probabilities; None if they are evaluated as given.
        sets: Thresholds of the prediction sets; None without sets.
    """

    calibration: TemperatureScaling | None = None
    sets: PredictionSets | None = None

    def probabilities(self, matched: MatchedPredictions, images: Sequence[LabeledImage]) -> FloatArray:
        """Return the probabilities for images, shape (n, K)."""
        if self.calibration is not None:
            return softmax(_logits(matched, images), self.calibration.temperature)
        values = matched.values(images)
        if matched.file.scale == "logit":
            return softmax(values)
        return np.asarray(values / values.sum(axis=1, keepdims=True))


def _fit(matched: MatchedPredictions, images: Sequence[LabeledImage], *, fit_probabilities: bool) -> _Fitted:
    classes = matched.file.classes
    targets = np.array([classes.index(image.label) for image in images], dtype=np.int64)
    calibration = None
    if fit_probabilities:
        calibration = fit_temperature_scaling(_logits(matched, images).astype(np.float32), targets)
    fitted = _Fitted(calibration)
    sets = fit_prediction_sets([fitted.probabilities(matched, images)], targets, classes)
    return dataclasses.replace(fitted, sets=sets)


def _logits(matched: MatchedPredictions, images: Sequence[LabeledImage]) -> FloatArray:
    """Return the logits for images, or the logarithms of their probabilities, shape (n, K)."""
    values = matched.values(images)
    return values if matched.file.scale == "logit" else np.asarray(np.log(np.maximum(values, _TINY)))


def _remarks(
    file: PredictionsFile, given_values: FloatArray, fitted: _Fitted, validation: Sequence[LabeledImage] | None
) -> tuple[str, ...]:
    """Return remarks on unknown training data, prediction sets, and how the probabilities were obtained."""
    scale, remarks = file.scale, [UNKNOWN_TRAINING]
    if validation is None:
        remarks.append("There are no predictions for validation images, and so there are no prediction sets.")
    else:
        n, trained = len(validation), sum(image.split == "train" for image in validation)
        if trained:
            remarks.append(
                f"{trained:,} of the {counted(n, 'validation image')} that were used for fitting are training images in the data."
            )
        if fitted.sets is None:
            counts = Counter(image.label for image in validation)
            few = few_images_text({name: counts[name] for name in file.classes}, COVERAGE)
            remarks.append(f"There are no prediction sets: {few}.")
    given = "as given" if scale == "probability" else "the softmax of the given logits"
    remarks.append(
        f"Probabilities are {given}, without calibration."
        if fitted.calibration is None
        else f"Probabilities are calibrated on {counted(fitted.calibration.n, 'validation image')} (temperature scaling)."
    )
    if fitted.calibration is not None and (remark := fitted.calibration.remark()):
        remarks.append(remark)
    off = np.abs(given_values.sum(axis=1) - 1)
    if scale == "probability" and (other := int((off > _SUM).sum())):
        remarks.append(
            f"The sum of the probabilities of {counted(other, 'image')} differs from 1 by up to {off.max():.2g}; they were"
            " divided by it."
        )
    if scale == "logit" and given_values.min() >= 0 and off.max() < _SUM:
        remarks.append(
            "All logits are within 0 to 1 and sum to 1: if they are probabilities, give --probability-column instead."
        )
    return tuple(remarks)


def _with_score_remarks(
    evaluation: MulticlassEvaluation, scored: Sequence[MulticlassScoredImage]
) -> MulticlassEvaluation:
    """Return the evaluation with remarks on possibly swapped classes, and on probabilities of 0 for the true class."""
    remarks = evaluation.remarks
    for name, result in evaluation.by_class.items():
        high = result.metrics["auroc"].high
        if high is not None and high < 0.5:
            remarks += (
                f"The whole interval of the AUROC of {name} is below 0.5: its column may be that of another class.",
            )
    zero = sum(image.probabilities[evaluation.classes.index(image.label)] == 0 for image in scored)
    if zero:
        remarks += (
            f"{counted(zero, 'image')} {'has' if zero == 1 else 'have'} a probability of exactly 0 for the true class: the log"
            " loss counts it as 2^-53.",
        )
    return dataclasses.replace(evaluation, remarks=remarks)
