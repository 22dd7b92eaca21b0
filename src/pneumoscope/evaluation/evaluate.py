"""Judges one bundle on one split. The threshold is never chosen on the images judged, and no look at test images is
unseen."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope import __version__
from pneumoscope.bundle.card import Card
from pneumoscope.core.errors import UnknownNameError, UnreadableImageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.results import Evaluation, Interval, RejectionSummary, ScoredImage, to_json
from pneumoscope.data.hashing import read_image
from pneumoscope.data.manifest import LABELS, LabelledImage, images_sha256
from pneumoscope.evaluation.ledger import default_ledger, record_evaluation
from pneumoscope.evaluation.metrics import etiology_aurocs, evaluate_operating_point, ranking_metrics
from pneumoscope.evaluation.selection import refuse_chosen_thresholds, refuse_seen, select_images, unreadable_error
from pneumoscope.imaging.decode import Radiograph
from pneumoscope.inference.decision import sigmoid
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.evaluations import predictions_csv
from pneumoscope.runs.run_folder import EVALUATION_FILE, MANIFEST_FILE, PREDICTIONS_FILE, evaluation_folder, find_bundle
from pneumoscope.statistics.inputs import patient_groups
from pneumoscope.statistics.intervals import proportion

__all__ = ["POINTS", "evaluate"]

POINTS = ("half", "balanced", "rule_out", "rule_in")
# Images are decoded by a few threads while the network scores those before them.
_THREADS = 4
_AHEAD = 64


def evaluate(
    target: Path,
    data: Path,
    *,
    split: str = "test",
    operating_points: Sequence[str] = POINTS,
    out: Path | None = None,
    ledger: Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, tuple[ScoredImage, ...]]:
    """Score the images of a split and say how well the bundle does, with intervals.

    An image that cannot be read is an error and never left out: a smaller n than the split has would be a lie. To judge
    without it, list the other images in a manifest.

    Args:
        target: a run folder (with `bundle/`), or a bundle.
        data: folder, manifest CSV or archive; see `images.select_images` for where each split comes from.
        split: "train", "validation" or "test".
        points: operating points of the card to judge.
        out: where evaluation.json and predictions.csv go; `RUN/evaluation/SPLIT` for a run where None, nowhere for a
            bundle.
        ledger: where looks at test images are written down; `ledger.default_ledger()` where None.
        seed: of the bootstraps.
        progress: called with (images done, images in all).
    Returns:
        The evaluation and the images with their scores, in manifest order.
    Raises:
        UnknownNameError: the card has no such operating point.
        RunError: the run has no bundle yet.
        BundleError: the bundle cannot be read or run.
        DatasetError: images missing, unreadable, of one label only, or test images that the network was trained on.
        ThresholdError: an operating point was chosen on these images.
        StorageError: the ledger or the results cannot be written; no result is given then.
    """
    bundle = find_bundle(target)
    is_run = bundle != target
    session = BundleSession.load(bundle)
    card = session.card
    for name in operating_points:
        if name not in card.operating_points:
            raise UnknownNameError("operating point", name, card.operating_points)
    root, images = select_images(data, split, target / MANIFEST_FILE if is_run else None)
    if split == "test":
        refuse_seen(images, card)
    refuse_chosen_thresholds(images, card, operating_points)
    started = time.perf_counter()
    scored, rejections = _score(session, root, images, split, progress)
    seconds = time.perf_counter() - started
    evaluation = _judge(card, split, scored, rejections, operating_points, seed, seconds)
    if split == "test":
        number = record_evaluation(ledger or default_ledger(), _ledger_entry(evaluation))
        evaluation = dataclasses.replace(evaluation, test_evaluation=number)
    if out is None and is_run:
        out = evaluation_folder(target, split)
    if out is not None:
        write_atomically(out / PREDICTIONS_FILE, predictions_csv(scored))
        write_atomically(out / EVALUATION_FILE, to_json(evaluation))
    return evaluation, scored


def _score(
    session: BundleSession,
    root: Path,
    images: Sequence[LabelledImage],
    split: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[ScoredImage, ...], list[Rejection | None]]:
    unreadable: list[tuple[str, str]] = []
    logits: list[float] = []
    rejections: list[Rejection | None] = []
    for logit, rejection in session.stream(_decoded(root, images, session.card.preprocessing.min_side, unreadable)):
        logits.append(logit)
        rejections.append(rejection)
        if progress:
            progress(len(logits), len(images))
    if unreadable:
        raise unreadable_error(unreadable, split)
    x = np.array(logits, dtype=np.float32)
    numbers = zip(x.tolist(), sigmoid(x).tolist(), session.probability(x).tolist(), strict=True)
    scored = tuple(
        ScoredImage(image.path, image.sha256, image.patient, image.label, image.etiology, *three)
        for image, three in zip(images, numbers, strict=True)
    )
    return scored, rejections


def _decoded(
    root: Path, images: Sequence[LabelledImage], min_side: int, unreadable: list[tuple[str, str]]
) -> Iterator[Radiograph]:
    """Images in order, decoded ahead; those that cannot be read are noted and left out."""
    rest = iter(images)
    read = functools.partial(read_image, root, min_side=min_side)
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[tuple[LabelledImage, Future[Radiograph]]] = deque()
        for image in islice(rest, _AHEAD):
            waiting.append((image, pool.submit(read, image)))
        while waiting:
            image, future = waiting.popleft()
            try:
                yield future.result()
            except UnreadableImageError as error:
                unreadable.append((image.path, error.reason))
            for following in islice(rest, 1):
                waiting.append((following, pool.submit(read, following)))


def _judge(
    card: Card,
    split: str,
    scored: Sequence[ScoredImage],
    rejections: Sequence[Rejection | None],
    operating_points: Sequence[str],
    seed: int,
    seconds: float,
) -> Evaluation:
    counts = Counter(image.label for image in scored)
    return Evaluation(
        name=card.name,
        split=split,
        images_sha256=images_sha256([image.sha256 for image in scored]),
        n=len(scored),
        patients=int(patient_groups([image.patient for image in scored], len(scored)).max()) + 1,
        counts={label: counts[label] for label in LABELS},
        bundle_sha256=card.onnx_sha256,
        recipe=card.recipe,
        metrics=ranking_metrics(scored, seed=seed),
        auroc_by_etiology=etiology_aurocs(scored),
        operating_points={
            name: evaluate_operating_point(scored, card.operating_points[name], seed=seed) for name in operating_points
        },
        test_evaluation=None,
        seconds=seconds,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        rejected=_rejection_summary(scored, rejections),
    )


def _rejection_summary(images: Sequence[ScoredImage], rejections: Sequence[Rejection | None]) -> RejectionSummary:
    share = proportion(
        np.array([rejection is not None for rejection in rejections]), [image.patient for image in images]
    )
    reasons = Counter(rejection.code for rejection in rejections if rejection)
    return RejectionSummary(share, dict(reasons.most_common()))


def _ledger_entry(evaluation: Evaluation) -> dict[str, Any]:
    def values(metrics: Mapping[str, Interval]) -> dict[str, float | None]:
        return {name: interval.value for name, interval in metrics.items()}

    operating_points = {
        name: {"threshold": point.threshold, **values(point.metrics)}
        for name, point in evaluation.operating_points.items()
    }
    return {
        "when": evaluation.created,
        "name": evaluation.name,
        "bundle_sha256": evaluation.bundle_sha256,
        "images_sha256": evaluation.images_sha256,
        "n": evaluation.n,
        "split": evaluation.split,
        "recipe": evaluation.recipe.get("name", ""),
        "metrics": values(evaluation.metrics),
        "operating_points": operating_points,
        "version": evaluation.version,
    }
