"""Judges one bundle on one split. The threshold is never chosen on the films judged, and no look at test films is
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
from pneumoscope.bundle.card import Card, find_bundle
from pneumoscope.dataset.layouts import read_film
from pneumoscope.dataset.manifest import LABELS, Film, films_sha256
from pneumoscope.errors import UnknownNameError, UnreadableFilmError
from pneumoscope.evaluation.films import choose_films, refuse_chosen_thresholds, refuse_seen, unreadable_error
from pneumoscope.evaluation.ledger import default_ledger, write_look
from pneumoscope.evaluation.measure import etiology_aurocs, judge_point, ranking_metrics
from pneumoscope.evaluation.records import EVALUATION_FILE, PREDICTIONS_FILE, predictions_csv
from pneumoscope.predictor.predictor import Predictor, sigmoid
from pneumoscope.predictor.refuse import sort_of_refusal
from pneumoscope.radiograph.decode import Radiograph
from pneumoscope.results import Evaluation, Interval, Refused, ScoredFilm, to_json
from pneumoscope.statistics.inputs import patient_numbers
from pneumoscope.statistics.intervals import proportion
from pneumoscope.storage import write_atomically

__all__ = ["POINTS", "evaluate"]

POINTS = ("half", "balanced", "rule-out", "rule-in")
# Films are decoded by a few threads while the network scores those before them.
_THREADS = 4
_AHEAD = 64


def evaluate(
    target: Path,
    data: Path,
    *,
    split: str = "test",
    points: Sequence[str] = POINTS,
    out: Path | None = None,
    ledger: Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, tuple[ScoredFilm, ...]]:
    """Score the films of a split and say how well the bundle does, with intervals.

    A film that cannot be read is an error and never left out: a smaller n than the split has would be a lie. To judge
    without it, list the other films in a manifest.

    Args:
        target: a run folder (with `bundle/`), or a bundle.
        data: folder, manifest CSV or archive; see `films.choose_films` for where each split comes from.
        split: "train", "validation" or "test".
        points: operating points of the card to judge.
        out: where evaluation.json and predictions.csv go; `RUN/evaluation/SPLIT` for a run where None, nowhere for a
            bundle.
        ledger: where looks at test films are written down; `ledger.default_ledger()` where None.
        seed: of the bootstraps.
        progress: called with (films done, films in all).
    Returns:
        The evaluation and the films with their scores, in manifest order.
    Raises:
        UnknownNameError: the card has no such operating point.
        RunError: the run has no bundle yet.
        BundleError: the bundle cannot be read or run.
        DatasetError: films missing, unreadable, of one label only, or test films that the network was trained on.
        ThresholdError: an operating point was chosen on these films.
        StorageError: the ledger or the results cannot be written; no result is given then.
    """
    bundle = find_bundle(target)
    is_run = bundle != target
    predictor = Predictor.load(bundle)
    card = predictor.card
    for name in points:
        if name not in card.points:
            raise UnknownNameError("operating point", name, card.points)
    root, films = choose_films(data, split, target / "manifest.csv" if is_run else None)
    if split == "test":
        refuse_seen(films, card)
    refuse_chosen_thresholds(films, card, points)
    started = time.perf_counter()
    scored, refusals = _score(predictor, root, films, split, progress)
    seconds = time.perf_counter() - started
    evaluation = _judge(card, split, scored, refusals, points, seed, seconds)
    if split == "test":
        look = write_look(ledger or default_ledger(), _ledger_entry(evaluation))
        evaluation = dataclasses.replace(evaluation, look=look)
    if out is None and is_run:
        out = target / "evaluation" / split
    if out is not None:
        write_atomically(out / PREDICTIONS_FILE, predictions_csv(scored))
        write_atomically(out / EVALUATION_FILE, to_json(evaluation))
    return evaluation, scored


def _score(
    predictor: Predictor, root: Path, films: Sequence[Film], split: str, progress: Callable[[int, int], None] | None
) -> tuple[tuple[ScoredFilm, ...], list[str]]:
    unreadable: list[tuple[str, str]] = []
    logits: list[float] = []
    refusals: list[str] = []
    for logit, refusal in predictor.stream(_decoded(root, films, predictor.card.preparation.least_side, unreadable)):
        logits.append(logit)
        refusals.append(refusal)
        if progress:
            progress(len(logits), len(films))
    if unreadable:
        raise unreadable_error(unreadable, split)
    x = np.array(logits, dtype=np.float32)
    numbers = zip(x.tolist(), sigmoid(x).tolist(), predictor.probability(x).tolist(), strict=True)
    scored = tuple(
        ScoredFilm(film.path, film.sha256, film.patient, film.label, film.etiology, *three)
        for film, three in zip(films, numbers, strict=True)
    )
    return scored, refusals


def _decoded(
    root: Path, films: Sequence[Film], least_side: int, unreadable: list[tuple[str, str]]
) -> Iterator[Radiograph]:
    """Films in order, decoded ahead; those that cannot be read are noted and left out."""
    rest = iter(films)
    read = functools.partial(read_film, root, least_side=least_side)
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[tuple[Film, Future[Radiograph]]] = deque()
        for film in islice(rest, _AHEAD):
            waiting.append((film, pool.submit(read, film)))
        while waiting:
            film, future = waiting.popleft()
            try:
                yield future.result()
            except UnreadableFilmError as error:
                unreadable.append((film.path, error.why))
            for following in islice(rest, 1):
                waiting.append((following, pool.submit(read, following)))


def _judge(
    card: Card,
    split: str,
    scored: Sequence[ScoredFilm],
    refusals: Sequence[str],
    points: Sequence[str],
    seed: int,
    seconds: float,
) -> Evaluation:
    counts = Counter(film.label for film in scored)
    return Evaluation(
        name=card.name,
        split=split,
        films_sha256=films_sha256([film.sha256 for film in scored]),
        n=len(scored),
        patients=int(patient_numbers([film.patient for film in scored], len(scored)).max()) + 1,
        counts={label: counts[label] for label in LABELS},
        bundle_sha256=card.onnx_sha256,
        recipe=card.recipe,
        metrics=ranking_metrics(scored, seed=seed),
        auroc_by_etiology=etiology_aurocs(scored),
        points={name: judge_point(scored, card.points[name], seed=seed) for name in points},
        look=None,
        seconds=seconds,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        refused=_refused(scored, refusals),
    )


def _refused(films: Sequence[ScoredFilm], refusals: Sequence[str]) -> Refused:
    share = proportion(np.array([bool(reason) for reason in refusals]), [film.patient for film in films])
    reasons = Counter(sort_of_refusal(reason) for reason in refusals if reason)
    return Refused(share, dict(reasons.most_common()))


def _ledger_entry(evaluation: Evaluation) -> dict[str, Any]:
    def values(metrics: Mapping[str, Interval]) -> dict[str, float | None]:
        return {name: interval.value for name, interval in metrics.items()}

    points = {
        name: {"threshold": point.threshold, **values(point.metrics)} for name, point in evaluation.points.items()
    }
    return {
        "when": evaluation.created,
        "name": evaluation.name,
        "bundle_sha256": evaluation.bundle_sha256,
        "films_sha256": evaluation.films_sha256,
        "n": evaluation.n,
        "split": evaluation.split,
        "recipe": evaluation.recipe.get("name", ""),
        "metrics": values(evaluation.metrics),
        "points": points,
        "version": evaluation.version,
    }
