"""Summarize scored multiclass images as an evaluation, record it in the test ledger, and write it.

The probabilities come from a bundle (`evaluate`) or from a file of another tool (`external_predictions`).
"""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope import __version__
from pneumoscope.bundle.multiclass_card import TemperatureScaling
from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.image_flow import ImageFlow
from pneumoscope.core.multiclass_results import MulticlassEvaluation, MulticlassScoredImage
from pneumoscope.core.population import Population
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.result_forms import to_json
from pneumoscope.core.with_figures import attach_folder
from pneumoscope.data.manifest import LabeledImage, images_sha256
from pneumoscope.evaluation.breakdown import Reference, read_reference
from pneumoscope.evaluation.ledger import default_ledger, ledger_entry, record_evaluation
from pneumoscope.evaluation.multiclass.breakdown import class_group_metrics, class_set_difference
from pneumoscope.evaluation.multiclass.metrics import multiclass_metrics
from pneumoscope.evaluation.recording import TEST_SPLITS, calibration_record, summarize_rejections, with_breakdown
from pneumoscope.evaluation.subgroups import find_subgroups
from pneumoscope.runs.multiclass_evaluations import (
    has_multiclass_evaluation,
    multiclass_predictions_csv,
    read_multiclass_evaluation,
    read_multiclass_evaluation_folder,
)
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE
from pneumoscope.statistics.inputs import BoolArray, FloatArray, count_unknown, patient_groups

__all__ = [
    "ClassReference",
    "ClassSource",
    "check_folder",
    "read_class_reference",
    "record_classes",
    "scored_class_images",
    "summarize_classes",
]

ClassReference = Reference[MulticlassEvaluation, MulticlassScoredImage]


@dataclasses.dataclass(frozen=True)
class ClassSource:
    """Source of the probabilities of an evaluation: a bundle or a file of predictions.

    Attributes:
        name: Name of the run, bundle or file.
        classes: Names of the classes.
        bundle_sha256: SHA-256 of the network file; "" for a file of predictions.
        predictions_sha256: SHA-256 of the file of predictions; "" for a bundle.
        recipe: The recipe that trained the network; empty if unknown.
        population: Population that the model was trained on.
        coverage: Target coverage of the prediction sets; None without sets.
        remarks: Sentences on what is unknown or was not evaluated.
        calibration: Calibration of the probabilities; None without one.
    """

    name: str
    classes: tuple[str, ...]
    bundle_sha256: str = ""
    predictions_sha256: str = ""
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    population: Population = Population()  # noqa: RUF009  immutable
    coverage: float | None = None
    remarks: tuple[str, ...] = ()
    calibration: TemperatureScaling | None = None


def scored_class_images(
    images: Sequence[LabeledImage], probabilities: FloatArray, classes: Sequence[str], inside: BoolArray | None
) -> tuple[MulticlassScoredImage, ...]:
    """Return the images with their probabilities, predicted classes and prediction sets.

    Args:
        images: The images.
        probabilities: Their probabilities, shape (n, K).
        classes: Names of the classes.
        inside: True for the classes in the prediction set of an image, shape (n, K); None without sets.
    """
    scored = []
    for index, (image, row) in enumerate(zip(images, probabilities, strict=True)):
        possible = None
        if inside is not None:
            possible = "|".join(name for name, each in zip(classes, inside[index].tolist(), strict=True) if each)
        text = (image.path, image.sha256, image.patient, image.label, image.etiology)
        predicted = classes[int(row.argmax())]
        scored.append(MulticlassScoredImage(*text, predicted, possible, tuple(row.tolist())))
    return tuple(scored)


def summarize_classes(
    source: ClassSource,
    split: str,
    scored: Sequence[MulticlassScoredImage],
    *,
    seed: int,
    seconds: float,
    fitted: int = 0,
    columns: Mapping[str, Sequence[str]] | None = None,
    reference: ClassReference | None = None,
    rejections: Sequence[Rejection | None] | None = None,
    flow: ImageFlow | None = None,
) -> MulticlassEvaluation:
    """Return the evaluation of scored images, without its number in the ledger.

    Args:
        source: Source of the probabilities.
        split: The split of the images.
        scored: The images; at least one.
        seed: Seed of bootstraps and permutation tests.
        seconds: Scoring time.
        fitted: Number of images used to fit calibration and prediction sets.
        columns: Value of each image in the columns of the subgroups.
        reference: Evaluation on other images to report differences from; None without one.
        rejections: Rejection of each image, or None; None if the source does not reject images.
        flow: Numbers of selected and excluded images.
    """
    patients, counts = [image.patient for image in scored], Counter(image.label for image in scored)
    subgroups, interactions = find_subgroups(
        columns or {}, scored, class_group_metrics(scored, source.classes, seed=seed), ""
    )
    evaluation = MulticlassEvaluation(
        name=source.name,
        split=split,
        images_sha256=images_sha256([image.sha256 for image in scored]),
        n=len(scored),
        patients=int(patient_groups(patients, len(scored)).max()) + 1,
        counts={label: counts[label] for label in source.classes},
        classes=source.classes,
        bundle_sha256=source.bundle_sha256,
        recipe=source.recipe,
        **multiclass_metrics(scored, source.classes, seed=seed, fitted=fitted)._asdict(),
        coverage=source.coverage,
        rejected=None if rejections is None else summarize_rejections(patients, rejections),
        test_evaluation=None,
        seconds=seconds,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        flow=flow,
        subgroups=subgroups,
        interactions=interactions,
        predictions_sha256=source.predictions_sha256,
        remarks=source.remarks,
        unknown_patients=count_unknown(patients),
        calibration=calibration_record(source.calibration),
        notice=notice(source.population),
    )
    if reference is None:
        return evaluation
    return dataclasses.replace(evaluation, difference=class_set_difference(evaluation, scored, reference))


def read_class_reference(
    folder: Path | None, images: Sequence[LabeledImage], source: ClassSource
) -> ClassReference | None:
    """Return the reference evaluation in a folder; None for None.

    Args:
        folder: The folder.
        images: The images to evaluate.
        source: Source of their probabilities.

    Raises:
        UsageError, DatasetError, RunError: See `breakdown.read_reference`; or the classes differ.
    """
    if folder is None:
        return None
    read = read_multiclass_evaluation_folder
    reference = read_reference(folder, images, source.name, source.bundle_sha256, read)
    if reference.evaluation.classes != source.classes:
        raise UsageError(
            f"{str(folder)!r} has an evaluation of the classes {', '.join(reference.evaluation.classes)}, and these are"
            f" {', '.join(source.classes)}",
            hint="A difference between sets needs the same classes, in the same order",
        )
    return reference


def check_folder(folder: Path, images: Sequence[LabeledImage], source: ClassSource, seed: int) -> None:
    """Raise if the folder contains a different evaluation.

    Args:
        folder: Folder of the results.
        images: Images to evaluate.
        source: Source of their probabilities.
        seed: Seed of the bootstraps.

    Raises:
        UsageError: The folder has an evaluation of other images, or of another model or seed.
    """
    file = folder / EVALUATION_FILE
    if not file.is_file():
        return
    different = ["of another model"]
    if has_multiclass_evaluation(folder):
        earlier = read_multiclass_evaluation(file)
        hashes = (earlier.bundle_sha256, earlier.predictions_sha256)
        different = [
            label
            for label, before, now in (
                ("of other images", earlier.images_sha256, images_sha256([image.sha256 for image in images])),
                ("of another model", hashes, (source.bundle_sha256, source.predictions_sha256)),
                ("with another seed", earlier.metrics["brier"].seed, seed),
            )
            if before != now
        ]
    if different:
        raise UsageError(
            f"{str(folder)!r} has an evaluation {' and '.join(different)}",
            hint="Keep both with another --name or --out, or replace it with --force",
        )


def record_classes(
    evaluation: MulticlassEvaluation,
    scored: Sequence[MulticlassScoredImage],
    *,
    out: Path | None,
    ledger: Path | None,
    replace: bool,
) -> MulticlassEvaluation:
    """Record a test-set evaluation in the test ledger, write the files, and return it with its number and folder.

    Args:
        evaluation: The evaluation.
        scored: Its images.
        out: Folder for evaluation.json and predictions.csv; None writes no files. See `with_figures.written_folder`.
        ledger: The test ledger; `ledger.default_ledger()` if None.
        replace: Discard subgroups and difference of an earlier evaluation in the folder. Otherwise, those that the new
            evaluation lacks are kept if all metrics are the same; `check_folder` has already compared images, model and
            seed.

    Raises:
        StorageError: The ledger or a file cannot be written.
    """
    if evaluation.split in TEST_SPLITS:
        number = record_evaluation(
            ledger or default_ledger(), ledger_entry(evaluation, classes=list(evaluation.classes))
        )
        evaluation = dataclasses.replace(evaluation, test_evaluation=number)
    if out is None:
        return evaluation
    if not replace and (out / EVALUATION_FILE).is_file():
        earlier = read_multiclass_evaluation(out / EVALUATION_FILE)
        if (earlier.metrics, earlier.counts, earlier.patients) == (
            evaluation.metrics,
            evaluation.counts,
            evaluation.patients,
        ):
            evaluation = with_breakdown(evaluation, earlier)
    write_atomically(out / PREDICTIONS_FILE, multiclass_predictions_csv(scored, evaluation.classes))
    write_atomically(out / EVALUATION_FILE, to_json(evaluation))
    return attach_folder(evaluation, out)
