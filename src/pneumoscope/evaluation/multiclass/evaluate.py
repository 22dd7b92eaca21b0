"""Evaluate a multiclass bundle on one split of a labeled data set; see `evaluation.evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pneumoscope.bundle.card import short_hash
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.multiclass_results import MulticlassEvaluation, MulticlassScoredImage
from pneumoscope.core.with_figures import attach_source
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.evaluation.evaluation_target import EvaluationTarget
from pneumoscope.evaluation.multiclass.recording import (
    ClassSource,
    check_folder,
    read_class_reference,
    record_classes,
    scored_class_images,
    summarize_classes,
)
from pneumoscope.evaluation.recording import TEST_SPLITS
from pneumoscope.evaluation.scoring import score_images
from pneumoscope.evaluation.selection import check_unseen, load_images_of_classes
from pneumoscope.evaluation.split_images import SplitImages
from pneumoscope.evaluation.subgroups import read_columns
from pneumoscope.inference.multiclass_decision import class_probabilities, possible_classes
from pneumoscope.inference.multiclass_session import MulticlassSession

__all__ = ["evaluate_multiclass"]


def evaluate_multiclass(
    target: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    labels: LabelMapping | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    replace: bool = False,
    source_name: str = "",
    by: Sequence[str] = (),
    ledger: str | Path | None = None,
    seed: int = 0,
    reference: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[MulticlassEvaluation, tuple[MulticlassScoredImage, ...]]:
    """Score the images of one split with a multiclass model, and return its metrics with intervals.

    On images used to fit the calibration and the prediction sets, Brier score, log loss, calibration metrics and the
    metrics of prediction sets are undefined.

    Args:
        target: Run folder or bundle folder.
        data: Folder, manifest CSV or archive of labeled images, whose labels are classes of the model.
        split: "train", "validation", "test", or "all" for all images of a data set that the model has not seen.
        labels: Names of columns and labels of the data; those of the run if None.
        out: Folder for evaluation.json and predictions.csv. If None, `RUN/evaluation/NAME` for a run; for a bundle
            nothing is written.
        name: Name of the evaluation of a run; see `evaluate`.
        replace: Replace an evaluation of other images, or of another model or seed, in the same folder. Otherwise,
            repeating an evaluation keeps its subgroups and difference unless `by` or `reference` specify others.
        source_name: Name of the images, for the report; the name of `data` if empty.
        by: Columns of the manifest CSV, or "etiology", whose values form subgroups.
        ledger: The test ledger; `ledger.default_ledger()` by default.
        seed: Seed of the bootstraps.
        reference: Evaluation on other images to report differences from: its name in the run, or a folder of an
            evaluation of the same model.
        progress: Called with the number of scored images and the total.
        note: Called with each remark about the data.

    Returns:
        The evaluation, and the images with their probabilities in manifest order. Notebooks display the evaluation as a
        table; `MulticlassEvaluation.to_dataframe()` returns its metrics as a pandas DataFrame, and
        `MulticlassEvaluation.figures` contains its figures.

    Raises:
        UsageError: There is no such split, or the data does not specify which images belong to it; the name is not a
            valid folder name, or is given together with `out` or for a bundle; the folder has another evaluation; a
            column cannot be used, see `evaluation.subgroups.read_columns`; or the reference evaluates another model.
        UnknownNameError: The manifest has no such column.
        RunError: The run has no bundle yet, or the reference is missing or damaged.
        BundleError: The bundle cannot be read or run, or is binary (NORMAL and PNEUMONIA).
        DatasetError: A label is not one of the model's classes; images are missing or unreadable; test images were
            training or validation images; or images are also in the reference.
        StorageError: The ledger or the results cannot be written.
    """
    model, data = EvaluationTarget.find(target), Path(data)
    session = MulticlassSession.load(model.bundle)
    card = session.card
    model.check_name(name, has_out=out is not None)
    manifest = load_images_of_classes(data, labels, model.run, classes=card.classes)
    evaluated = SplitImages.select(manifest, data, split, model.run_manifest, note)
    if split in TEST_SPLITS:
        check_unseen(evaluated.images, card)
    folder = model.results_folder(out, name, evaluated, note)
    source = ClassSource(
        name=card.name,
        classes=card.classes,
        bundle_sha256=card.onnx_sha256,
        recipe=card.recipe,
        population=card.population,
        coverage=None if card.prediction_sets is None else card.prediction_sets.coverage,
        remarks=tuple(filter(None, [card.calibration.remark(), _without_sets(card)])),
        calibration=card.calibration,
    )
    if folder is not None and not replace:
        check_folder(folder, evaluated.images, source, seed)
    columns = read_columns(data, by, evaluated.images, manifest.path_column)
    compared = read_class_reference(model.reference_folder(reference), evaluated.images, source)
    started = time.perf_counter()
    scores = score_images(session, evaluated, progress)
    probabilities = class_probabilities(card, np.stack(scores.logits))
    inside = possible_classes(card, probabilities)
    scored = scored_class_images(evaluated.images, probabilities, card.classes, inside)
    evaluation = summarize_classes(
        source,
        split,
        scored,
        seed=seed,
        seconds=time.perf_counter() - started,
        fitted=_fitted(scored, card),
        columns=columns,
        reference=compared,
        rejections=scores.rejections,
        flow=evaluated.flow(source_name),
    )
    ledger = None if ledger is None else Path(ledger)
    evaluation = record_classes(evaluation, scored, out=folder, ledger=ledger, replace=replace)
    return attach_source(evaluation, scored), scored


def _without_sets(card: MulticlassCard) -> str:
    """Return why a model has no prediction sets, as a sentence; "" if it has them."""
    return "" if card.prediction_sets else f"There are no prediction sets: {card.reason_without_sets()}."


def _fitted(images: Sequence[MulticlassScoredImage], card: MulticlassCard) -> int:
    """Return the number of images, compared by content, that were used to fit calibration and prediction sets."""
    seen = set(card.seen.get("validation", ()))
    return sum(short_hash(image.sha256) in seen for image in images)
