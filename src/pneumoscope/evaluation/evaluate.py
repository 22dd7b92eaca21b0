"""Evaluate a bundle on one split of a labeled data set.

Thresholds come from the bundle or from validation images, never from the evaluated images. Every test-set evaluation is
recorded in the test ledger before its result is returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pneumoscope.bundle.card import Card, short_hash
from pneumoscope.core.errors import DatasetError, ThresholdError, UnknownNameError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.results import Evaluation, ScoredImage
from pneumoscope.core.with_figures import attach_source
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.evaluation.breakdown import add_breakdown, read_breakdown
from pneumoscope.evaluation.custom_points import (
    CustomPoint,
    canonical_names,
    choose_thresholds,
    custom_points,
    needs_validation,
)
from pneumoscope.evaluation.evaluation_target import EvaluationTarget
from pneumoscope.evaluation.metrics import Threshold, positives
from pneumoscope.evaluation.recording import (
    TEST_SPLITS,
    ScoreSource,
    record_and_write,
    summarize,
    with_earlier_points,
)
from pneumoscope.evaluation.scoring import score_images
from pneumoscope.evaluation.selection import check_thresholds, check_unseen, load_labeled_images
from pneumoscope.evaluation.split_images import SplitImages
from pneumoscope.evaluation.threshold_images import check_threshold_images
from pneumoscope.inference.decision import score_at_probability, sigmoid, threshold_probability
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.run_folder import MANIFEST_FILE
from pneumoscope.statistics.inputs import BoolArray, FloatArray

__all__ = ["OPERATING_POINTS", "evaluate"]

OPERATING_POINTS = ("half", "balanced", "rule_out", "rule_in")


def evaluate(
    target: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    labels: LabelMapping | None = None,
    operating_points: Sequence[str] = OPERATING_POINTS,
    out: str | Path | None = None,
    name: str | None = None,
    replace: bool = False,
    prevalence: float | None = None,
    source_name: str = "",
    validation_data: str | Path | None = None,
    ledger: str | Path | None = None,
    seed: int = 0,
    site: str | Path | None = None,
    by: Sequence[str] = (),
    reference: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[Evaluation, tuple[ScoredImage, ...]]:
    """Score the images of one split, and return the metrics of the model with intervals.

    Unreadable images raise an error instead of being skipped, because the reported n would be wrong. To evaluate
    without them, pass a manifest of the other images. Metrics that need images of a missing label are undefined, with
    the reason.

    Args:
        target: Run folder or bundle folder.
        data: Folder, manifest CSV or archive of labeled images; see `evaluation.selection.select_images` for the split.
        split: "train", "validation", "test", or "all" for all images of a data set that the model has not seen.
        labels: Names of columns and labels of `data` and `validation_data`; those of the run if None.
        operating_points: Operating points of the bundle to evaluate. Custom ones are a probability such as "0.3", or
            "sens=0.95" and "spec=0.9", whose thresholds are chosen on the scores of validation images.
        out: Folder for evaluation.json and predictions.csv. If None, `RUN/evaluation/NAME` for a run; for a bundle
            nothing is written.
        name: Name of the evaluation of a run. By default the split; for images from outside the run, the name of the
            data is appended, and with a site profile its hash.
        replace: Replace an evaluation of other images, or of another model, seed or site profile, in the same folder.
            Otherwise, an evaluation that differs only in its operating points is extended, and keeps its subgroups and
            difference unless `by` or `reference` specify others.
        prevalence: Prevalence of pneumonia for additional predictive values.
        source_name: Name of the images, for the report; the name of `data` if empty.
        validation_data: Labeled validation images for "sens=" and "spec="; by default those of the run, found in
            `data`.
        ledger: The test ledger; `ledger.default_ledger()` by default.
        seed: Seed of the bootstraps.
        site: Site profile to apply.
        by: Columns of the manifest CSV, or "etiology", whose values form subgroups.
        reference: Evaluation on other images to report differences from: its name in the run, or a folder of an
            evaluation of the same model.
        progress: Called with the number of scored images and the total.
        note: Called with each remark about the data, such as the number of skipped files.

    Returns:
        The evaluation, and the images with their scores in manifest order. Notebooks display the evaluation as a table;
        `Evaluation.to_dataframe()` returns its metrics as a pandas DataFrame, and `Evaluation.figures` contains its
        figures.

    Raises:
        UnknownNameError: The bundle has no such operating point, or the manifest no such column.
        UsageError: There is no such split, or the data does not specify which images belong to it; the name is not a
            valid folder name, or is given together with `out` or for a bundle; the folder has another evaluation; or
            columns or reference cannot be used, see `breakdown.read_breakdown`.
        RunError: The run has no bundle yet, or the reference is missing or damaged.
        BundleError: The bundle cannot be read or run.
        SiteProfileError: The site profile cannot be used; see `BundleSession.load`.
        DatasetError: Images are missing or unreadable; test images were training or validation images; or images are
            also in the reference.
        ThresholdError: The threshold of an operating point was, or would be, chosen on these images or on test images.
        PatientLeakError: A patient has both evaluated images and validation images that would choose a threshold.
        StorageError: The ledger or the results cannot be written.
    """
    model, data = EvaluationTarget.find(target), Path(data)
    session = BundleSession.load(model.bundle, site=None if site is None else Path(site))
    card = session.card
    points: Sequence[str] = canonical_names(operating_points)
    custom = custom_points(points, card.operating_points)
    _check_operating_points(points, custom, card)
    model.check_name(name, has_out=out is not None)
    manifest = load_labeled_images(data, labels, model.run)
    evaluated = SplitImages.select(manifest, data, split, model.run_manifest, note)
    if split in TEST_SPLITS:
        check_unseen(evaluated.images, card)
    scores = None
    if any(map(needs_validation, custom)):
        validation = (
            _validation_images(data, model.run, labels)
            if validation_data is None
            else _validation_images(Path(validation_data), None, labels)
        )
        _check_validation_images(validation, evaluated, card)
        scores = _validation_scores(session, validation, progress)
    source = _source(session, custom, scores)
    folder = model.results_folder(
        out, name, evaluated, note, site_sha256=session.profile.sha256 if session.profile else ""
    )
    if folder is not None and not replace:
        keep_with = "--name or --out" if out is None else "--out"
        source, points = with_earlier_points(folder, points, evaluated.images, source, seed, keep_with=keep_with)
    check_thresholds(evaluated.images, card, points)
    breakdown = read_breakdown(
        data, by, model.reference_folder(reference), evaluated.images, source, manifest.path_column,
        points=points, note=note,
    )  # fmt: skip
    started = time.perf_counter()
    scored, rejections = _score(session, evaluated, progress)
    evaluation = summarize(
        source,
        split,
        scored,
        points,
        seed=seed,
        seconds=time.perf_counter() - started,
        rejections=rejections,
        prevalence=prevalence,
        flow=evaluated.flow(source_name),
    )
    evaluation = record_and_write(
        add_breakdown(evaluation, scored, breakdown, seed),
        scored,
        out=folder,
        ledger=None if ledger is None else Path(ledger),
        replace=replace,
    )
    return attach_source(evaluation, scored), scored


def _source(
    session: BundleSession, custom: Sequence[CustomPoint], validation: tuple[FloatArray, BoolArray] | None
) -> ScoreSource:
    """Return the model with its operating points and the custom ones; see `choose_thresholds`."""
    card = session.card
    chosen = choose_thresholds(custom, lambda value: score_at_probability(card.calibration, value), validation)
    points: dict[str, Threshold] = {**card.operating_points, **chosen}
    return ScoreSource(
        name=card.name,
        operating_points=points,
        threshold_probabilities={name: threshold_probability(card, point) for name, point in points.items()},
        bundle_sha256=card.onnx_sha256,
        recipe=card.recipe,
        site=session.site,
        population=card.population,
        calibration=card.calibration,
    )


def _check_operating_points(names: Sequence[str], custom: Sequence[CustomPoint], card: Card) -> None:
    """Raise unless every operating point is custom or on the card."""
    known = {*card.operating_points, *(point.name for point in custom)}
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(card.operating_points))
            raise UnknownNameError(
                "operating point",
                name,
                card.operating_points,
                hint=f"Known: {listed}; or a custom one, such as 0.3, sens=0.95 or spec=0.9",
            )


def _validation_images(data: Path, run: Path | None, labels: LabelMapping | None) -> SplitImages:
    """Return the validation images that choose thresholds.

    They are listed in the manifest of the run; without a run they are the validation split of the data, or all images
    if none has a split.
    """
    try:
        manifest = load_labeled_images(data, labels, run)
        if run is not None:
            return SplitImages.select(manifest, data, "validation", run / MANIFEST_FILE)
        images = SplitImages.select(manifest, data, "all").images
    except (UsageError, DatasetError) as error:
        error.hint = (
            "Validation images choose the threshold of sens=... and spec=...: give those with --validation-data, or the data"
            " that the run was trained on"
        )
        raise
    if any(image.split for image in images):
        images = tuple(image for image in images if image.split == "validation")
    return SplitImages(data, manifest, "validation", images)


def _check_validation_images(validation: SplitImages, evaluated: SplitImages, card: Card) -> None:
    """Raise if the validation images cannot choose thresholds, or if the model was trained on them."""
    images = validation.images
    check_threshold_images(images, evaluated.images, validation.data)
    seen = set(card.seen.get("train", ()))
    trained = [image.path for image in images if short_hash(image.sha256) in seen]
    if trained:
        raise ThresholdError(
            f"{len(trained)} of {counted(len(images), 'validation image')} in {str(validation.data)!r} were training images;"
            f" the first is {trained[0]}",
            hint="Choose thresholds on images that the model was not trained on",
        )


def _validation_scores(
    session: BundleSession, validation: SplitImages, progress: Callable[[int, int], None] | None
) -> tuple[FloatArray, BoolArray]:
    """Return the scores and labels of the validation images."""
    scored, _ = _score(session, validation, progress)
    return np.array([image.score for image in scored]), positives(scored)


def _score(
    session: BundleSession, selected: SplitImages, progress: Callable[[int, int], None] | None
) -> tuple[tuple[ScoredImage, ...], list[Rejection | None]]:
    """Return the images with their scores, and the rejection of each."""
    scores = score_images(session, selected, progress)
    logits = np.array(scores.logits, dtype=np.float32)
    outputs = zip(logits.tolist(), sigmoid(logits).tolist(), session.probability(logits).tolist(), strict=True)
    scored = tuple(
        ScoredImage(image.path, image.sha256, image.patient, image.label, image.etiology, *output)
        for image, output in zip(selected.images, outputs, strict=True)
    )
    return scored, scores.rejections
