"""From scored films to the numbers of an evaluation. Pure: no file, no network, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pneumoscope.bundle.card import Band, OperatingPoint
from pneumoscope.results import Interval, PointResult, ScoredFilm
from pneumoscope.statistics.calibration import calibration_error_interval, weighted_brier
from pneumoscope.statistics.classification import confusion, threshold_metrics
from pneumoscope.statistics.inputs import BoolArray
from pneumoscope.statistics.intervals import patient_bootstrap, proportion
from pneumoscope.statistics.roc import auroc_interval, weighted_auprc

__all__ = ["etiology_aurocs", "judge_point", "positives", "ranking_metrics"]


def positives(films: Sequence[ScoredFilm]) -> BoolArray:
    """True where pneumonia is present, shape (n,)."""
    return np.array([film.label == "PNEUMONIA" for film in films])


def ranking_metrics(films: Sequence[ScoredFilm], *, seed: int) -> dict[str, Interval]:
    """What needs no threshold: auroc and auprc of logits, brier and expected_calibration_error of probabilities.

    Args:
        films: of both labels.
        seed: of the bootstraps.
    """
    labels, patients = positives(films), [film.patient for film in films]
    logits = [film.logit for film in films]
    probabilities = [film.probability for film in films]
    return {
        "auroc": auroc_interval(logits, labels, patients),
        "auprc": patient_bootstrap(weighted_auprc, logits, labels, patients, seed=seed),
        "brier": patient_bootstrap(weighted_brier, probabilities, labels, patients, seed=seed),
        "expected_calibration_error": calibration_error_interval(probabilities, labels, patients, seed=seed),
    }


def etiology_aurocs(films: Sequence[ScoredFilm]) -> dict[str, Interval]:
    """AUROC of the pneumonias of each known etiology against all normal films."""
    found = {}
    for etiology in ("bacteria", "virus"):
        chosen = [film for film in films if film.label == "NORMAL" or film.etiology == etiology]
        if any(film.etiology == etiology for film in chosen):
            logits, patients = [film.logit for film in chosen], [film.patient for film in chosen]
            found[etiology] = auroc_interval(logits, positives(chosen), patients)
    return found


def judge_point(films: Sequence[ScoredFilm], point: OperatingPoint, *, seed: int) -> PointResult:
    """What happens at one operating point.

    Args:
        films: at least one.
        point: its threshold is on the score; a film at or above it is called pneumonia.
        seed: of the bootstraps.
    """
    labels, patients = positives(films), [film.patient for film in films]
    decisions = np.array([film.score >= point.threshold for film in films])
    return PointResult(
        threshold=point.threshold,
        rule=point.rule,
        confusion=confusion(decisions, labels),
        metrics=threshold_metrics(decisions, labels, patients, seed=seed),
        by_etiology=_by_etiology(films, decisions == labels),
        band=_judge_band(films, point.band, labels) if point.band else None,
    )


def _judge_band(films: Sequence[ScoredFilm], band: Band, labels: BoolArray) -> dict[str, dict[str, Interval]]:
    scores = np.array([film.score for film in films])
    uncertain = (scores >= band.low) & (scores <= band.high)
    covered = np.where(labels, scores >= band.low, scores <= band.high)
    patients = [film.patient for film in films]

    def share(what: BoolArray, places: Sequence[int]) -> Interval:
        return proportion(what[places], [patients[place] for place in places])

    return {
        name: {"uncertain": share(uncertain, places), "covered": share(covered, places)}
        for name, places in (
            ("normal", np.flatnonzero(~labels).tolist()),
            ("pneumonia", np.flatnonzero(labels).tolist()),
        )
        if places
    }


def _by_etiology(films: Sequence[ScoredFilm], correct: BoolArray) -> Mapping[str, Interval]:
    found = {}
    for etiology in ("normal", "bacteria", "virus"):
        places = [place for place, film in enumerate(films) if film.etiology == etiology]
        if places:
            found[etiology] = proportion(correct[places], [films[place].patient for place in places])
    return found
