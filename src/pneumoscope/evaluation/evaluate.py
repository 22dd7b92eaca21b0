"""Evaluate a bundle on one split of a labeled data set.

Thresholds come from the bundle and are never chosen on the evaluated images. Every test-set evaluation is recorded in the
test ledger before its result is returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pneumoscope.bundle.card import Card, short_hash
from pneumoscope.core.errors import DatasetError, ThresholdError, UnknownNameError, UnreadableImageError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.results import Evaluation, ScoredImage
from pneumoscope.data.hashing import read_image
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.evaluation.breakdown import add_breakdown, read_breakdown
from pneumoscope.evaluation.custom_points import (
    ChosenThreshold,
    CustomPoint,
    canonical_names,
    choose_thresholds,
    custom_points,
    needs_validation,
)
from pneumoscope.evaluation.evaluation_names import check_name_of_run, default_name
from pneumoscope.evaluation.image_flow import image_flow
from pneumoscope.evaluation.metrics import Threshold, positives
from pneumoscope.evaluation.recording import (
    TEST_SPLITS,
    ScoreSource,
    record_and_write,
    summarize,
    with_earlier_points,
)
from pneumoscope.evaluation.selection import (
    check_thresholds,
    check_unseen,
    images_of_split,
    load_labeled_images,
    select_images,
    unreadable_error,
)
from pneumoscope.evaluation.threshold_images import check_threshold_images
from pneumoscope.imaging.decode import Radiograph
from pneumoscope.inference.batches import process_batches
from pneumoscope.inference.decision import score_at_probability, sigmoid, threshold_probability
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.run_folder import BUNDLE_FOLDER, MANIFEST_FILE, evaluation_folder, find_bundle
from pneumoscope.statistics.inputs import BoolArray, FloatArray

__all__ = ["OPERATING_POINTS", "decode_images", "evaluate"]

OPERATING_POINTS = ("half", "balanced", "rule_out", "rule_in")
# Images are decoded in threads while the network scores the previous ones.
_THREADS = 4
_PREFETCH_IMAGES = 64


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

    Images that cannot be read are an error and are never skipped, because the reported n would be wrong. To evaluate without
    them, give a manifest of the other images. Metrics that need a label without images are undefined, with the reason.

    Args:
        target: Run folder or bundle folder.
        data: Folder, manifest CSV or archive of labeled images; see `evaluation.selection.select_images` for the split.
        split: "train", "validation", "test", or "all" for all images of a data set that the model has not seen.
        labels: Names of columns and labels of `data` and `validation_data`; those of the run if None.
        operating_points: Operating points of the bundle to evaluate. Custom ones are a probability such as "0.3", or "sens=0.95"
            and "spec=0.9", whose thresholds are chosen on the scores of validation images.
        out: Folder of evaluation.json and predictions.csv. By default `RUN/evaluation/NAME` for a run, and none for a bundle.
        name: Name of the evaluation of a run. By default the split, for images of the run itself; for others followed by the
            name of the data, and with a site profile by its hash.
        replace: Replace an evaluation of other images, or of another model, seed or site profile, in the same folder. One that
            differs in its operating points only is extended by them, and keeps its subgroups and difference unless `by` or
            `reference` state others.
        prevalence: Prevalence of pneumonia that predictive values are stated for as well.
        source_name: Name of the images, for the report; that of `data` if empty.
        validation_data: Labeled validation images for "sens=" and "spec="; by default those of the run, found in `data`.
        ledger: The test ledger; `ledger.default_ledger()` by default.
        seed: Seed of the bootstraps.
        site: Site profile to apply.
        by: Columns of the manifest CSV, or "etiology", whose values form subgroups.
        reference: Name of an evaluation of the run on other images, whose difference is reported; or a folder of an evaluation
            of the same model.
        progress: Called with the number of scored images and of all images.
        note: Called with each remark about the data, such as the number of skipped files.

    Returns:
        The evaluation, and the images with their scores in manifest order. In a notebook the evaluation is shown as a table;
        `Evaluation.to_dataframe()` returns its metrics as a pandas DataFrame.

    Raises:
        UnknownNameError: The bundle has no such operating point, or the manifest no such column.
        UsageError: There is no such split, or nothing states which images belong to it; the name is not that of a folder or is
            given with `out` or for a bundle; the folder has another evaluation; or columns or reference cannot be used, see
            `breakdown.read_breakdown`.
        RunError: The run has no bundle yet, or the reference is missing or damaged.
        BundleError: The bundle cannot be read or run.
        SiteProfileError: The site profile cannot be used; see `BundleSession.load`.
        DatasetError: Images are missing or unreadable; test images were training or validation images; or images are also in
            the reference.
        ThresholdError: The threshold of an operating point was, or would be, chosen on these images or on test images.
        PatientLeakError: A patient has evaluated images, and validation images that would choose a threshold.
        StorageError: The ledger or the results cannot be written. No result is returned then.
    """
    target, data = Path(target), Path(data)
    bundle = find_bundle(target)
    is_run = bundle == target / BUNDLE_FOLDER
    session = BundleSession.load(bundle, site=None if site is None else Path(site))
    card = session.card
    operating_points = canonical_names(operating_points)
    custom = custom_points(operating_points, card.operating_points)
    _check_operating_points(operating_points, custom, card)
    check_name_of_run(name, is_run=is_run, has_out=out is not None)
    manifest = load_labeled_images(data, labels, target if is_run else None)
    if note:
        for each in manifest.notes:
            note(each)
    images = images_of_split(manifest, data, split, target / MANIFEST_FILE if is_run else None, both_labels=False)
    if split in TEST_SPLITS:
        check_unseen(images, card)
    scores = None
    if any(map(needs_validation, custom)):
        scores = _validation_scores(
            session,
            data if validation_data is None else Path(validation_data),
            None if validation_data is not None or not is_run else target / MANIFEST_FILE,
            labels,
            images,
            progress,
        )
    source = _source(
        session, choose_thresholds(custom, lambda value: score_at_probability(card.calibration, value), scores)
    )
    in_run = out is None and is_run
    if in_run:
        site_sha256 = session.profile.sha256 if session.profile else ""
        out = evaluation_folder(target, name or default_name(target, data, split, images, site_sha256, note))
    if out is not None and not replace:
        keep_with = "--name or --out" if in_run else "--out"
        source, operating_points = with_earlier_points(
            Path(out), operating_points, images, source, seed, keep_with=keep_with
        )
    check_thresholds(images, card, operating_points)
    folder = None if reference is None else evaluation_folder(target, str(reference))
    if folder is not None and not (is_run and folder.is_dir()):
        folder = Path(str(reference))
    breakdown = read_breakdown(data, by, folder, images, source, manifest.path_column)
    started = time.perf_counter()
    scored, rejections = _score(session, manifest.root, images, split, progress)
    seconds = time.perf_counter() - started
    evaluation = summarize(
        source,
        split,
        scored,
        operating_points,
        seed=seed,
        seconds=seconds,
        rejections=rejections,
        prevalence=prevalence,
        flow=image_flow(manifest, data, images, source_name),
    )
    evaluation = record_and_write(
        add_breakdown(evaluation, scored, breakdown, seed),
        scored,
        out=None if out is None else Path(out),
        ledger=None if ledger is None else Path(ledger),
        replace=replace,
    )
    return evaluation, scored


def _source(session: BundleSession, custom: Mapping[str, ChosenThreshold]) -> ScoreSource:
    card = session.card
    points: dict[str, Threshold] = {**card.operating_points, **custom}
    return ScoreSource(
        name=card.name,
        operating_points=points,
        threshold_probabilities={name: threshold_probability(card, point) for name, point in points.items()},
        bundle_sha256=card.onnx_sha256,
        recipe=card.recipe,
        site=session.site,
        population=card.population,
    )


def _check_operating_points(names: Sequence[str], custom: Sequence[CustomPoint], card: Card) -> None:
    """Raise unless the card has the operating points that are not custom."""
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


def _validation_scores(
    session: BundleSession,
    data: Path,
    run_manifest: Path | None,
    labels: LabelMapping | None,
    evaluated: Sequence[LabeledImage],
    progress: Callable[[int, int], None] | None,
) -> tuple[FloatArray, BoolArray]:
    """Return the scores and labels of the validation images, which choose thresholds.

    Args:
        session: The model.
        data: Labeled images.
        run_manifest: Manifest of the run, which states its validation images; None if the data state them: those of the split,
            or all if no image has a split.
        labels: Names of columns and labels of the data; those of the run if None.
        evaluated: The evaluated images.
        progress: See `evaluate`.
    """
    try:
        if run_manifest is not None:
            root, images = select_images(data, "validation", run_manifest, labels=labels, both_labels=False)
        else:
            manifest = load_labeled_images(data, labels)
            root, images = manifest.root, images_of_split(manifest, data, "all", None, both_labels=False)
            if any(image.split for image in images):
                images = tuple(image for image in images if image.split == "validation")
    except (UsageError, DatasetError) as error:
        error.hint = (
            "Validation images choose the threshold of sens=... and spec=...: give those with --validation-data, or the data"
            " that the run was trained on"
        )
        raise
    check_threshold_images(images, evaluated, data)
    seen = set(session.card.seen.get("train", ()))
    trained = [image.path for image in images if short_hash(image.sha256) in seen]
    if trained:
        raise ThresholdError(
            f"{len(trained)} of {counted(len(images), 'validation image')} in {str(data)!r} were training images; the first is"
            f" {trained[0]}",
            hint="Choose thresholds on images that the model was not trained on",
        )
    scored, _ = _score(session, root, images, "validation", progress)
    return np.array([image.score for image in scored]), positives(scored)


def _score(
    session: BundleSession,
    root: Path,
    images: Sequence[LabeledImage],
    split: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[ScoredImage, ...], list[Rejection | None]]:
    unreadable: list[tuple[str, str]] = []
    logits: list[float] = []
    rejections: list[Rejection | None] = []
    for logit, rejection in session.stream(
        decode_images(root, images, session.card.preprocessing.min_side, unreadable)
    ):
        logits.append(logit)
        rejections.append(rejection)
        if progress:
            progress(len(logits), len(images))
    if unreadable:
        raise unreadable_error(unreadable, split)
    array = np.array(logits, dtype=np.float32)
    outputs = zip(array.tolist(), sigmoid(array).tolist(), session.probability(array).tolist(), strict=True)
    scored = tuple(
        ScoredImage(image.path, image.sha256, image.patient, image.label, image.etiology, *output)
        for image, output in zip(images, outputs, strict=True)
    )
    return scored, rejections


def decode_images(
    root: Path,
    images: Sequence[LabeledImage],
    min_side: int,
    unreadable: list[tuple[str, str]],
    *,
    allow_rejected: bool = False,
) -> Iterator[Radiograph]:
    """Yield the images in order, decoded ahead in threads. Append path and reason of those that cannot be read to a list.

    Args:
        root: Folder that paths are relative to.
        images: The images.
        min_side, allow_rejected: See `imaging.decode.decode`.
        unreadable: The list.
    """

    def read(batch: Sequence[LabeledImage]) -> list[Radiograph | UnreadableImageError]:
        (image,) = batch
        try:
            return [read_image(root, image, min_side=min_side, allow_rejected=allow_rejected)]
        except UnreadableImageError as error:
            return [error]

    results = process_batches(images, read, batch_size=1, threads=_THREADS, ahead=_PREFETCH_IMAGES)
    for image, result in zip(images, results, strict=True):
        if isinstance(result, UnreadableImageError):
            unreadable.append((image.path, result.detail))
        else:
            yield result
