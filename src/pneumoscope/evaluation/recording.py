"""Summarize scored images as an evaluation, record it in the test ledger, and write it.

The scores come from a bundle (`evaluate`) or from a file of another tool (`external_predictions`).
"""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pneumoscope import __version__
from pneumoscope.bundle.card import Calibration
from pneumoscope.bundle.multiclass_card import TemperatureScaling
from pneumoscope.core.calibration_record import CalibrationRecord
from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.image_flow import ImageFlow
from pneumoscope.core.multiclass_results import MulticlassEvaluation
from pneumoscope.core.population import Population
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.result_forms import to_json
from pneumoscope.core.results import Evaluation, RejectionSummary, ScoredImage
from pneumoscope.core.with_figures import attach_folder
from pneumoscope.data.manifest import LABELS, LabeledImage, images_sha256
from pneumoscope.evaluation.custom_points import ChosenThreshold, custom_points
from pneumoscope.evaluation.ledger import default_ledger, ledger_entry, record_evaluation
from pneumoscope.evaluation.metrics import (
    Threshold,
    etiology_aurocs,
    evaluate_operating_point,
    positives,
    ranking_metrics,
)
from pneumoscope.runs.evaluations import predictions_csv, read_evaluation
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE
from pneumoscope.statistics.calibration import reliability_bins
from pneumoscope.statistics.decision_curve import decision_curve
from pneumoscope.statistics.inputs import count_unknown, patient_groups
from pneumoscope.statistics.intervals import proportion

__all__ = [
    "TEST_SPLITS",
    "ScoreSource",
    "calibration_record",
    "record_and_write",
    "summarize",
    "summarize_rejections",
    "with_breakdown",
    "with_earlier_points",
]

_Evaluation = TypeVar("_Evaluation", Evaluation, MulticlassEvaluation)

# Splits whose evaluation is recorded in the test ledger.
TEST_SPLITS = ("test", "all")


@dataclasses.dataclass(frozen=True)
class ScoreSource:
    """Source of the scores of an evaluation: a bundle, or a file of predictions.

    Attributes:
        name: Name of the run, bundle or file.
        operating_points: Operating points that can be evaluated.
        threshold_probabilities: Their thresholds as calibrated probabilities.
        bundle_sha256: SHA-256 of the network file; "" for a file of predictions.
        predictions_sha256: SHA-256 of the file of predictions; "" for a bundle.
        recipe: The recipe that trained the network; empty if it is unknown.
        site: Name and short hash of the site profile; "" without one.
        population: Population that the model was trained on.
        remarks: Sentences on what is unknown or was not evaluated.
        calibration: Calibration of the probabilities; None if there is none.
    """

    name: str
    operating_points: Mapping[str, Threshold]
    threshold_probabilities: Mapping[str, float]
    bundle_sha256: str = ""
    predictions_sha256: str = ""
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    site: str = ""
    population: Population = Population()  # noqa: RUF009  immutable
    remarks: tuple[str, ...] = ()
    calibration: Calibration | None = None


def calibration_record(calibration: Calibration | TemperatureScaling | None) -> CalibrationRecord:
    """Return the record of a calibration; that of the method "none" for None."""
    if calibration is None or calibration.method == "none":
        return CalibrationRecord("none")
    if isinstance(calibration, TemperatureScaling):
        parameters = {"temperature": calibration.temperature}
    else:
        parameters = {"slope": calibration.slope, "intercept": calibration.intercept}
    return CalibrationRecord(calibration.method, calibration.n, parameters)


def with_earlier_points(
    folder: Path,
    operating_points: Sequence[str],
    images: Sequence[LabeledImage],
    source: ScoreSource,
    seed: int,
    *,
    keep_with: str = "--out",
) -> tuple[ScoreSource, Sequence[str]]:
    """Return source and operating points with those of the evaluation in the folder, which is written again.

    Custom operating points of the earlier evaluation keep their thresholds, unless they are evaluated again.

    Args:
        folder: Folder of the results.
        operating_points: Operating points to evaluate.
        images: Images to evaluate.
        source: Source of the scores.
        seed: Seed of the bootstraps.
        keep_with: Options that choose another folder, for the hint.

    Raises:
        UsageError: The folder has an evaluation of other images, or of another model, seed or site profile, or thresholds that
            were chosen on other images.
    """
    if not (folder / EVALUATION_FILE).is_file():
        return source, operating_points
    earlier = read_evaluation(folder / EVALUATION_FILE)
    source = _with_custom_points(source, earlier)
    hashes = (earlier.bundle_sha256, earlier.predictions_sha256)
    different = [
        label
        for label, before, now in (
            ("of other images", earlier.images_sha256, images_sha256([image.sha256 for image in images])),
            ("of another model", hashes, (source.bundle_sha256, source.predictions_sha256)),
            ("with another site profile", earlier.site, source.site),
            ("with other thresholds", _thresholds(earlier), _thresholds_now(earlier, source)),
            ("with another seed", earlier.metrics["brier"].seed, seed),
        )
        if before != now
    ]
    if different:
        raise UsageError(
            f"{str(folder)!r} has an evaluation {' and '.join(different)} ({earlier.name}, {earlier.n} images,"
            f" {earlier.created[:10]})",
            hint=f"Keep both with another {keep_with}, or replace it with --force",
        )
    points = tuple(earlier.operating_points)
    return source, (*points, *(point for point in operating_points if point not in points))


def _with_custom_points(source: ScoreSource, earlier: Evaluation) -> ScoreSource:
    """Return the source with those custom operating points of an earlier evaluation that it lacks."""
    kept = {point.name: earlier.operating_points[point.name] for point in custom_points(earlier.operating_points, ())}
    return dataclasses.replace(
        source,
        operating_points={name: ChosenThreshold(point.threshold, point.rule) for name, point in kept.items()}
        | dict(source.operating_points),
        threshold_probabilities={
            name: point.threshold if point.threshold_probability is None else point.threshold_probability
            for name, point in kept.items()
        }
        | dict(source.threshold_probabilities),
    )


def _thresholds(evaluation: Evaluation) -> dict[str, float | None]:
    return {name: point.threshold for name, point in evaluation.operating_points.items()}


def _thresholds_now(earlier: Evaluation, source: ScoreSource) -> dict[str, float | None]:
    """Return the thresholds of the source at the operating points of an earlier evaluation; None where it has none."""
    points = source.operating_points
    return {name: points[name].threshold if name in points else None for name in earlier.operating_points}


def summarize(
    source: ScoreSource,
    split: str,
    scored: Sequence[ScoredImage],
    operating_points: Sequence[str],
    *,
    seed: int,
    seconds: float,
    rejections: Sequence[Rejection | None] | None = None,
    prevalence: float | None = None,
    flow: ImageFlow | None = None,
) -> Evaluation:
    """Return the evaluation of scored images, without its number in the ledger.

    Args:
        source: Source of the scores.
        split: The split of the images.
        scored: The images; at least one.
        operating_points: Names of the operating points to evaluate.
        seed: Seed of the bootstraps.
        seconds: Scoring time.
        rejections: Rejection of each image, or None; None if the source rejects none.
        prevalence: Prevalence of pneumonia that predictive values are stated for as well; None for none.
        flow: How the images were selected.
    """
    counts = Counter(image.label for image in scored)
    probabilities, patients = [image.probability for image in scored], [image.patient for image in scored]
    return Evaluation(
        name=source.name,
        split=split,
        images_sha256=images_sha256([image.sha256 for image in scored]),
        n=len(scored),
        patients=int(patient_groups(patients, len(scored)).max()) + 1,
        counts={label: counts[label] for label in LABELS},
        bundle_sha256=source.bundle_sha256,
        recipe=source.recipe,
        metrics=ranking_metrics(scored, seed=seed),
        auroc_by_etiology=etiology_aurocs(scored),
        operating_points={
            name: evaluate_operating_point(
                scored,
                source.operating_points[name],
                threshold_probability=source.threshold_probabilities[name],
                seed=seed,
                prevalence=prevalence,
            )
            for name in operating_points
        },
        test_evaluation=None,
        seconds=seconds,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        rejected=None if rejections is None else summarize_rejections([image.patient for image in scored], rejections),
        site=source.site,
        reliability=reliability_bins(probabilities, positives(scored)),
        predictions_sha256=source.predictions_sha256,
        remarks=source.remarks,
        decision_curve=decision_curve(probabilities, positives(scored), patients, seed=seed),
        flow=flow,
        unknown_patients=count_unknown(patients),
        calibration=calibration_record(source.calibration),
        notice=notice(source.population),
    )


def summarize_rejections(patients: Sequence[str], rejections: Sequence[Rejection | None]) -> RejectionSummary:
    """Return which fraction of images is rejected, and why.

    Args:
        patients: Patient identifier of each image.
        rejections: Rejection of each image, or None.
    """
    rejected = np.array([rejection is not None for rejection in rejections])
    codes = Counter(rejection.code for rejection in rejections if rejection)
    return RejectionSummary(proportion(rejected, patients), dict(codes.most_common()))


def record_and_write(
    evaluation: Evaluation, scored: Sequence[ScoredImage], *, out: Path | None, ledger: Path | None, replace: bool
) -> Evaluation:
    """Record an evaluation on test images in the test ledger, write the files, and return it with its number and folder.

    Args:
        evaluation: The evaluation.
        scored: Its images.
        out: Folder of evaluation.json and predictions.csv; None writes no files. See `with_figures.written_folder`.
        ledger: The test ledger; `ledger.default_ledger()` if None.
        replace: Drop subgroups and differences of an earlier evaluation in the folder; otherwise those that the new one lacks
            are kept. `with_earlier_points` has checked that images, model and seed are the same; with other labels or patients,
            they are dropped as well.

    Raises:
        StorageError: The ledger or a file cannot be written.
    """
    if evaluation.split in TEST_SPLITS:
        number = record_evaluation(ledger or default_ledger(), _entry(evaluation))
        evaluation = dataclasses.replace(evaluation, test_evaluation=number)
    if out is not None and not replace and (out / EVALUATION_FILE).is_file():
        evaluation = _with_earlier_breakdown(evaluation, read_evaluation(out / EVALUATION_FILE))
    if out is None:
        return evaluation
    write_atomically(out / PREDICTIONS_FILE, predictions_csv(scored))
    write_atomically(out / EVALUATION_FILE, to_json(evaluation))
    return attach_folder(evaluation, out)


def _with_earlier_breakdown(evaluation: Evaluation, earlier: Evaluation) -> Evaluation:
    """Return the evaluation with those of predictive values, subgroups and difference that it lacks.

    They are kept only if labels and patients are the same.
    """
    # The interval of the AUROC depends on the label and the patient of each image.
    described = [(each.counts, each.patients, each.metrics["auroc"]) for each in (evaluation, earlier)]
    if described[0] != described[1]:
        return evaluation
    points = {
        name: point
        if point.predictive_values or name not in earlier.operating_points
        else dataclasses.replace(point, predictive_values=earlier.operating_points[name].predictive_values)
        for name, point in evaluation.operating_points.items()
    }
    return with_breakdown(dataclasses.replace(evaluation, operating_points=points), earlier)


def with_breakdown(evaluation: _Evaluation, earlier: _Evaluation) -> _Evaluation:
    """Return an evaluation with those of subgroups and difference that it lacks, of an earlier one of the same images."""
    if not evaluation.subgroups:
        evaluation = dataclasses.replace(evaluation, subgroups=earlier.subgroups, interactions=earlier.interactions)
    return dataclasses.replace(evaluation, difference=evaluation.difference or earlier.difference)


def _entry(evaluation: Evaluation) -> dict[str, Any]:
    points = {
        name: {"threshold": point.threshold, **{metric: interval.value for metric, interval in point.metrics.items()}}
        for name, point in evaluation.operating_points.items()
    }
    site = {"site": evaluation.site} if evaluation.site else {}
    return ledger_entry(evaluation, **site, operating_points=points)
