"""Evaluate a bundle of several classes on one split of a labeled data set; see `evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pneumoscope.bundle.card import short_hash
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.multiclass_results import MulticlassEvaluation, MulticlassScoredImage
from pneumoscope.core.prediction import Rejection
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.evaluation.evaluate import decode_images
from pneumoscope.evaluation.evaluation_names import check_name_of_run, default_name
from pneumoscope.evaluation.image_flow import image_flow
from pneumoscope.evaluation.multiclass_recording import (
    ClassSource,
    check_folder,
    record_classes,
    scored_class_images,
    summarize_classes,
)
from pneumoscope.evaluation.recording import TEST_SPLITS
from pneumoscope.evaluation.selection import check_unseen, images_of_split, load_images_of_classes, unreadable_error
from pneumoscope.evaluation.subgroups import read_columns
from pneumoscope.inference.multiclass_decision import class_probabilities, possible_classes
from pneumoscope.inference.multiclass_session import MulticlassSession
from pneumoscope.runs.run_folder import (
    BUNDLE_FOLDER,
    MANIFEST_FILE,
    evaluation_folder,
    find_bundle,
)

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
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[MulticlassEvaluation, tuple[MulticlassScoredImage, ...]]:
    """Score the images of one split with a model of several classes, and return its metrics with intervals.

    On images that calibration and prediction sets were fitted on, Brier score, log loss, calibration error and the metrics of the
    sets are undefined.

    Args:
        target: Run folder or bundle folder.
        data: Folder, manifest CSV or archive of labeled images, whose labels are classes of the model.
        split: "train", "validation", "test", or "all" for all images of a data set that the model has not seen.
        labels: Names of columns and labels of the data; those of the run if None.
        out: Folder of evaluation.json and predictions.csv. By default `RUN/evaluation/NAME` for a run, and none for a bundle.
        name: Name of the evaluation of a run; see `evaluate`.
        replace: Replace an evaluation of other images, or of another model or seed, in the same folder. The same evaluation keeps
            its subgroups unless `by` states others.
        source_name: Name of the images, for the report; that of `data` if empty.
        by: Columns of the manifest CSV, or "etiology", whose values form subgroups.
        ledger: The test ledger; `ledger.default_ledger()` by default.
        seed: Seed of the bootstraps.
        progress: Called with the number of scored images and of all images.
        note: Called with each remark about the data.

    Returns:
        The evaluation, and the images with their probabilities in manifest order. In a notebook the evaluation is shown as a
        table; `MulticlassEvaluation.to_dataframe()` returns its metrics as a pandas DataFrame.

    Raises:
        UsageError: There is no such split, or nothing states which images belong to it; the name is not that of a folder or is
            given with `out` or for a bundle; or the folder has another evaluation; or a column cannot be used, see
            `subgroups.read_columns`.
        UnknownNameError: The manifest has no such column.
        RunError: The run has no bundle yet.
        BundleError: The bundle cannot be read or run, or is one for NORMAL and PNEUMONIA.
        DatasetError: A label is not one of the model's classes; images are missing or unreadable; or test images were
            training or validation images.
        StorageError: The ledger or the results cannot be written. No result is returned then.
    """
    target, data = Path(target), Path(data)
    bundle = find_bundle(target)
    is_run = bundle == target / BUNDLE_FOLDER
    session = MulticlassSession.load(bundle)
    card = session.card
    check_name_of_run(name, is_run=is_run, has_out=out is not None)
    manifest = load_images_of_classes(data, labels, target if is_run else None, classes=card.classes)
    if note:
        for each in manifest.notes:
            note(each)
    images = images_of_split(manifest, data, split, target / MANIFEST_FILE if is_run else None, both_labels=False)
    if split in TEST_SPLITS:
        check_unseen(images, card)
    if out is None and is_run:
        out = evaluation_folder(target, name or default_name(target, data, split, images, "", note))
    folder = None if out is None else Path(out)
    source = ClassSource(
        name=card.name,
        classes=card.classes,
        bundle_sha256=card.onnx_sha256,
        recipe=card.recipe,
        population=card.population,
        coverage=None if card.prediction_sets is None else card.prediction_sets.coverage,
    )
    if folder is not None and not replace:
        check_folder(folder, images, source, seed)
    columns = read_columns(data, by, images, manifest.path_column)
    started = time.perf_counter()
    scored, rejections = _score(session, manifest.root, images, split, progress)
    evaluation = summarize_classes(
        source,
        split,
        scored,
        seed=seed,
        seconds=time.perf_counter() - started,
        fitted=_fitted(images, card),
        columns=columns,
        rejections=rejections,
        flow=image_flow(manifest, data, images, source_name),
    )
    ledger = None if ledger is None else Path(ledger)
    return record_classes(evaluation, scored, out=folder, ledger=ledger, replace=replace), scored


def _fitted(images: Sequence[LabeledImage], card: MulticlassCard) -> int:
    """Return how many images, compared by content, calibration and prediction sets were fitted on."""
    seen = set(card.seen.get("validation", ()))
    return sum(short_hash(image.sha256) in seen for image in images)


def _score(
    session: MulticlassSession,
    root: Path,
    images: Sequence[LabeledImage],
    split: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[MulticlassScoredImage, ...], list[Rejection | None]]:
    unreadable: list[tuple[str, str]] = []
    logits, rejections = [], []
    card = session.card
    for each in session.stream(decode_images(root, images, card.preprocessing.min_side, unreadable)):
        logits.append(each.logits)
        rejections.append(each.rejection)
        if progress:
            progress(len(logits), len(images))
    if unreadable:
        raise unreadable_error(unreadable, split)
    probabilities = class_probabilities(card, np.stack(logits))
    inside = possible_classes(card, probabilities)
    return scored_class_images(images, probabilities, card.classes, inside), rejections
