"""Evaluate a bundle of several classes on one split of a labeled data set; see `evaluate`."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope import __version__
from pneumoscope.bundle.card import short_hash
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.image_flow import ImageFlow
from pneumoscope.core.multiclass_results import MulticlassEvaluation, MulticlassScoredImage
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.result_forms import to_json
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import LabeledImage, images_sha256
from pneumoscope.evaluation.evaluation_target import EvaluationTarget
from pneumoscope.evaluation.ledger import default_ledger, record_evaluation
from pneumoscope.evaluation.multiclass_metrics import multiclass_metrics
from pneumoscope.evaluation.recording import TEST_SPLITS, summarize_rejections
from pneumoscope.evaluation.scoring import score_images
from pneumoscope.evaluation.selection import check_unseen, load_images_of_classes
from pneumoscope.evaluation.split_images import SplitImages
from pneumoscope.inference.multiclass_decision import class_probabilities, possible_classes
from pneumoscope.inference.multiclass_session import MulticlassSession
from pneumoscope.runs.multiclass_evaluations import (
    has_multiclass_evaluation,
    multiclass_predictions_csv,
    read_multiclass_evaluation,
)
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE
from pneumoscope.statistics.inputs import FloatArray, patient_groups

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
        replace: Replace an evaluation of other images, or of another model or seed, in the same folder.
        source_name: Name of the images, for the report; that of `data` if empty.
        ledger: The test ledger; `ledger.default_ledger()` by default.
        seed: Seed of the bootstraps.
        progress: Called with the number of scored images and of all images.
        note: Called with each remark about the data.

    Returns:
        The evaluation, and the images with their probabilities in manifest order. In a notebook the evaluation is shown as a
        table; `MulticlassEvaluation.to_dataframe()` returns its metrics as a pandas DataFrame.

    Raises:
        UsageError: There is no such split, or nothing states which images belong to it; the name is not that of a folder or is
            given with `out` or for a bundle; or the folder has another evaluation.
        RunError: The run has no bundle yet.
        BundleError: The bundle cannot be read or run, or is one for NORMAL and PNEUMONIA.
        DatasetError: A label is not one of the model's classes; images are missing or unreadable; or test images were
            training or validation images.
        StorageError: The ledger or the results cannot be written. No result is returned then.
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
    if folder is not None and not replace:
        _check_folder(folder, evaluated.images, card, seed)
    started = time.perf_counter()
    scores = score_images(session, evaluated, progress)
    scored = _scored_images(card, evaluated.images, class_probabilities(card, np.stack(scores.logits)))
    evaluation = _summarize(
        card,
        split,
        scored,
        scores.rejections,
        seed=seed,
        seconds=time.perf_counter() - started,
        flow=evaluated.flow(source_name),
    )
    if split in TEST_SPLITS:
        number = record_evaluation(default_ledger() if ledger is None else Path(ledger), _ledger_entry(evaluation))
        evaluation = dataclasses.replace(evaluation, test_evaluation=number)
    if folder is not None:
        write_atomically(folder / PREDICTIONS_FILE, multiclass_predictions_csv(scored, card.classes))
        write_atomically(folder / EVALUATION_FILE, to_json(evaluation))
    return evaluation, scored


def _summarize(
    card: MulticlassCard,
    split: str,
    scored: Sequence[MulticlassScoredImage],
    rejections: Sequence[Rejection | None],
    *,
    seed: int,
    seconds: float,
    flow: ImageFlow,
) -> MulticlassEvaluation:
    """Return the evaluation of scored images, without its number in the ledger; see `recording.summarize`."""
    patients, counts = [image.patient for image in scored], Counter(image.label for image in scored)
    return MulticlassEvaluation(
        name=card.name,
        split=split,
        images_sha256=images_sha256([image.sha256 for image in scored]),
        n=len(scored),
        patients=int(patient_groups(patients, len(scored)).max()) + 1,
        counts={label: counts[label] for label in card.classes},
        classes=card.classes,
        bundle_sha256=card.onnx_sha256,
        recipe=card.recipe,
        **multiclass_metrics(scored, card.classes, seed=seed, fitted=_fitted(scored, card))._asdict(),
        coverage=None if card.prediction_sets is None else card.prediction_sets.coverage,
        rejected=summarize_rejections(patients, rejections),
        test_evaluation=None,
        seconds=seconds,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        flow=flow,
        unknown_patients=sum(not patient for patient in patients),
        notice=notice(card.population),
    )


def _fitted(images: Sequence[MulticlassScoredImage], card: MulticlassCard) -> int:
    """Return how many images, compared by content, calibration and prediction sets were fitted on."""
    seen = set(card.seen.get("validation", ()))
    return sum(short_hash(image.sha256) in seen for image in images)


def _check_folder(folder: Path, images: Sequence[LabeledImage], card: MulticlassCard, seed: int) -> None:
    """Raise if the folder has another evaluation.

    Raises:
        UsageError: It has one of other images, or of another model or seed.
    """
    file = folder / EVALUATION_FILE
    if not file.is_file():
        return
    different = ["of another model"]
    if has_multiclass_evaluation(folder):
        earlier = read_multiclass_evaluation(file)
        different = [
            label
            for label, before, now in (
                ("of other images", earlier.images_sha256, images_sha256([image.sha256 for image in images])),
                ("of another model", earlier.bundle_sha256, card.onnx_sha256),
                ("with another seed", earlier.metrics["brier"].seed, seed),
            )
            if before != now
        ]
    if different:
        raise UsageError(
            f"{str(folder)!r} has an evaluation {' and '.join(different)}",
            hint="Keep both with another --name or --out, or replace it with --force",
        )


def _scored_images(
    card: MulticlassCard, images: Sequence[LabeledImage], probabilities: FloatArray
) -> tuple[MulticlassScoredImage, ...]:
    """Return the images with their probabilities, shape (n, K), their predicted classes and prediction sets."""
    inside = possible_classes(card, probabilities)
    scored = []
    for index, (image, row) in enumerate(zip(images, probabilities, strict=True)):
        possible = None
        if inside is not None:
            possible = "|".join(name for name, each in zip(card.classes, inside[index].tolist(), strict=True) if each)
        predicted = card.classes[int(row.argmax())]
        text = (image.path, image.sha256, image.patient, image.label, image.etiology, predicted, possible)
        scored.append(MulticlassScoredImage(*text, tuple(row.tolist())))
    return tuple(scored)


def _ledger_entry(evaluation: MulticlassEvaluation) -> dict[str, Any]:
    return {
        "when": evaluation.created,
        "name": evaluation.name,
        "bundle_sha256": evaluation.bundle_sha256,
        "images_sha256": evaluation.images_sha256,
        "n": evaluation.n,
        "split": evaluation.split,
        "recipe": evaluation.recipe.get("name", ""),
        "classes": list(evaluation.classes),
        "metrics": {name: interval.value for name, interval in evaluation.metrics.items()},
        "version": evaluation.version,
    }
