"""Multiclass metrics: one class against the rest, means over classes, pairs of classes, and prediction sets.

Targets are class indices, 0 to K - 1; probabilities have one column per class. The predicted class is the one with the
highest probability, the first in case of ties.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.calibration import calibration_error_interval, calibration_intervals
from pneumoscope.statistics.inputs import BoolArray, FloatArray, IntArray, patient_groups, validate_classes
from pneumoscope.statistics.intervals import (
    RESAMPLES,
    patient_bootstrap,
    patient_bootstraps,
    proportion,
    too_few_of,
    undefined,
)
from pneumoscope.statistics.likelihood_ratios import likelihood_ratios
from pneumoscope.statistics.metrics import weighted_f1
from pneumoscope.statistics.probabilities import log_odds
from pneumoscope.statistics.roc import auroc_interval, weighted_auprc, weighted_macro_auroc

__all__ = [
    "class_metrics",
    "confusion_matrix",
    "macro_auroc_interval",
    "mean_of_classes",
    "overall_metrics",
    "pair_metrics",
    "set_metrics",
    "too_few_patients",
]

# Smaller probabilities are replaced by this one before taking the logarithm.
_EPSILON = 2.0**-53
_BOOTSTRAP = "patient bootstrap"
_UNDEFINED = "the statistic is undefined for these images"


def confusion_matrix(targets: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> IntArray:
    """Return the number of images by true class (rows) and predicted class (columns), shape (classes, classes)."""
    y, decisions = np.asarray(targets, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    return np.bincount(classes * y + decisions, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def overall_metrics(
    probabilities: npt.ArrayLike,
    targets: npt.ArrayLike,
    names: Sequence[str],
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the metrics over all classes.

    accuracy has Wilson's interval adjusted for repeated patients, balanced_accuracy the interval of `mean_of_classes`,
    and expected_calibration_error (of the highest probability, Guo 2017) that of
    `calibration.calibration_error_interval`. The other metrics have patient-bootstrap intervals: macro_auroc,
    macro_auprc, macro_f1, macro_specificity and macro_precision are means over the classes of one-against-rest metrics;
    brier is the squared distance between the probabilities and the one-hot class, 0 to 2 (Brier 1950); log_loss is the
    mean of -log p of the true class, with p at least 2^-53.

    Args:
        probabilities, targets: See `inputs.validate_classes`.
        names: Names of the classes.
        patients: One patient key per image, "" where unknown; None if all are unknown.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        UndefinedMetricError: See `inputs.validate_classes`.
    """
    p, y = validate_classes(probabilities, targets)
    predicted = p.argmax(axis=1)
    correct = predicted == y
    rates = [
        _rate(correct, y == index, patients, f"the class {name} has no images") for index, name in enumerate(names)
    ]
    ranking, one_hot = log_odds(p), np.eye(len(names), dtype=np.bool_)
    members, decisions = one_hot[y], one_hot[predicted]
    missing = _missing_class(y, names)

    def macro(weights: FloatArray) -> FloatArray:
        columns = [
            weighted_macro_auroc(ranking, y, weights),
            _mean(weighted_auprc(ranking[:, k], members[:, k], weights) for k in range(len(names))),
            _mean(weighted_f1(decisions[:, k].astype(np.float64), members[:, k], weights) for k in range(len(names))),
            _mean(_fraction(~decisions[:, k], ~members[:, k], weights) for k in range(len(names))),
            _mean(_fraction(members[:, k], decisions[:, k], weights) for k in range(len(names))),
        ]
        return np.stack(columns, axis=1)

    def losses(weights: FloatArray) -> FloatArray:
        total = weights.sum(axis=1)
        brier = np.square(p - members).sum(axis=1)
        log_loss = -np.log(np.maximum(p[np.arange(len(y)), y], _EPSILON))
        return np.stack([weights @ brier / total, weights @ log_loss / total], axis=1)

    if missing:
        none = undefined(missing, n=len(y), method=_BOOTSTRAP, seed=seed)
        macros = [none] * 5
    else:
        never = [name for k, name in enumerate(names) if not (predicted == k).any()]
        listed = " or ".join(filter(None, (", ".join(never[:-1]), *never[-1:])))
        reason = f"no image is predicted as {listed}" if never else _UNDEFINED
        few = too_few_patients(y, names, patient_groups(patients, len(y)), "a bootstrap")
        macros = _bootstrap(macro, len(y), patients, resamples=resamples, seed=seed, reason=reason, few_patients=few)
    names_of_macros = ("macro_auroc", "macro_auprc", "macro_f1", "macro_specificity", "macro_precision")
    brier, log_loss = _bootstrap(losses, len(y), patients, resamples=resamples, seed=seed)
    return {
        "accuracy": proportion(correct, patients),
        "balanced_accuracy": mean_of_classes(rates),
        **dict(zip(names_of_macros, macros, strict=True)),
        "brier": brier,
        "log_loss": log_loss,
        "expected_calibration_error": calibration_error_interval(
            p.max(axis=1), correct, patients, resamples=resamples, seed=seed
        ),
    }


def macro_auroc_interval(
    probabilities: npt.ArrayLike,
    targets: npt.ArrayLike,
    names: Sequence[str],
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return only the macro AUROC, with its interval as in `overall_metrics`.

    Args:
        probabilities, targets, names, patients, resamples, seed: See `overall_metrics`.

    Raises:
        UndefinedMetricError: See `inputs.validate_classes`.
    """
    p, y = validate_classes(probabilities, targets)
    if missing := _missing_class(y, names):
        return undefined(missing, n=len(y), method=_BOOTSTRAP, seed=seed)
    ranking = log_odds(p)
    return _bootstrap(
        lambda weights: weighted_macro_auroc(ranking, y, weights)[:, None],
        len(y),
        patients,
        resamples=resamples,
        seed=seed,
        few_patients=too_few_patients(y, names, patient_groups(patients, len(y)), "a bootstrap"),
    )[0]


def too_few_patients(targets: IntArray, names: Sequence[str], groups: IntArray, purpose: str, where: str = "") -> str:
    """Return why a class has too few patients for inference on means over classes; "" if all have enough.

    The reason names the smallest class.

    Args:
        targets: Class index of each image, shape (n,).
        names: Name of each class.
        groups: Patient numbers from `inputs.patient_groups`, shape (n,).
        purpose: Intended use, such as "a bootstrap".
        where: Where the images are, such as " in the group F"; "" if there is one set of images.
    """
    if missing := _missing_class(targets, names):
        return missing
    counts = [len(np.unique(groups[targets == index])) for index in range(len(names))]
    return too_few_of(min(counts), f"the class {names[counts.index(min(counts))]}{where}", purpose)


def _missing_class(targets: IntArray, names: Sequence[str]) -> str:
    """Return a reason that names a class without images, for undefined means over classes; "" if there is none."""
    return next((f"the class {name} has no images" for k, name in enumerate(names) if not (targets == k).any()), "")


def class_metrics(
    probabilities: npt.ArrayLike,
    targets: npt.ArrayLike,
    index: int,
    name: str,
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the metrics of one class against the rest.

    auroc has DeLong's interval; auprc and f1 have patient-bootstrap intervals; expected_calibration_error (of the class
    probability) has the interval of `calibration.calibration_error_interval`; sensitivity, specificity, precision and
    negative_predictive_value have Wilson's intervals adjusted for repeated patients. For positive_likelihood_ratio and
    negative_likelihood_ratio see `likelihood_ratios`; for calibration_slope, calibration_intercept and
    observed_expected_ratio (of the class probability) see `calibration.calibration_intervals`.

    Args:
        probabilities, targets: See `inputs.validate_classes`.
        index, name: Index and name of the class.
        patients, resamples, seed: See `overall_metrics`.

    Raises:
        UndefinedMetricError: See `inputs.validate_classes`.
    """
    p, y = validate_classes(probabilities, targets)
    member, predicted = y == index, p.argmax(axis=1) == index
    ranking = log_odds(p)[:, index]
    none, only = f"the class {name} has no images", f"all images are of the class {name}"
    reason = none if not member.any() else only if member.all() else ""

    def bootstrap(statistic: Callable[[FloatArray, BoolArray, FloatArray], FloatArray], scores: FloatArray) -> Interval:
        if reason:
            return undefined(reason, n=len(y), method=_BOOTSTRAP, seed=seed)
        return patient_bootstrap(statistic, scores, member, patients, resamples=resamples, seed=seed, by_label=True)

    def of_class(intervals: dict[str, Interval]) -> dict[str, Interval]:
        """Return binary metrics with reasons that name the class."""
        return {key: dataclasses.replace(each, reason=reason or each.reason) for key, each in intervals.items()}

    ratios = likelihood_ratios(predicted, member, patients, negative="image of another class", decision=name)
    return {
        "auroc": undefined(reason, n=len(y), method="delong") if reason else auroc_interval(ranking, member, patients),
        "auprc": bootstrap(weighted_auprc, ranking),
        "sensitivity": _rate(predicted, member, patients, none),
        "specificity": _rate(~predicted, ~member, patients, only),
        "precision": _rate(member, predicted, patients, f"no image is predicted as {name}"),
        "negative_predictive_value": _rate(~member, ~predicted, patients, f"all images are predicted as {name}"),
        "f1": bootstrap(weighted_f1, predicted.astype(np.float64)),
        **of_class(ratios),
        "expected_calibration_error": calibration_error_interval(
            p[:, index], member, patients, resamples=resamples, seed=seed
        ),
        **of_class(calibration_intervals(p[:, index], member, patients, resamples=resamples, seed=seed)),
    }


def pair_metrics(
    probabilities: npt.ArrayLike,
    targets: npt.ArrayLike,
    pair: tuple[int, int],
    names: tuple[str, str],
    patients: Sequence[str] | None,
) -> dict[str, Interval]:
    """Return the metrics of one class against another, among the images of these two.

    The probability of the first class is p / (p + q), where p and q are the probabilities of the two: the probability
    given that the image belongs to one of them (Hand & Till 2001, Mach Learn 45:171). The first class is predicted if p
    is at least q.

    Args:
        probabilities, targets: Of all images; see `inputs.validate_classes`.
        pair, names: Indices and names of the two classes.
        patients: See `overall_metrics`.

    Returns:
        auroc (DeLong), accuracy, sensitivity (for the first class) and specificity (sensitivity for the second class).

    Raises:
        UndefinedMetricError: See `inputs.validate_classes`.
    """
    p, y = validate_classes(probabilities, targets)
    chosen = np.flatnonzero((y == pair[0]) | (y == pair[1]))
    missing = next((name for index, name in zip(pair, names, strict=True) if not (y == index).any()), "")
    if missing:
        reason = f"the class {missing} has no images"
        methods = {"auroc": "delong", "accuracy": "wilson", "sensitivity": "wilson", "specificity": "wilson"}
        return {metric: undefined(reason, n=len(chosen), method=method) for metric, method in methods.items()}
    tiny = np.finfo(np.float64).tiny
    first, second = (np.log(np.maximum(p[chosen, index], tiny)) for index in pair)
    positive, keys = y[chosen] == pair[0], None if patients is None else [patients[i] for i in chosen.tolist()]
    predicted = first >= second
    return {
        "auroc": auroc_interval(first - second, positive, keys),
        "accuracy": proportion(predicted == positive, keys),
        "sensitivity": _rate(predicted, positive, keys, ""),
        "specificity": _rate(~predicted, ~positive, keys, ""),
    }


def set_metrics(
    sets: npt.ArrayLike, targets: npt.ArrayLike, patients: Sequence[str] | None, *, seed: int = 0
) -> dict[str, Interval]:
    """Return the coverage and size of prediction sets.

    Args:
        sets: True for the classes in the prediction set of an image, shape (n, K).
        targets: Class index of each image, shape (n,).
        patients: See `overall_metrics`.
        seed: Seed of the bootstrap.

    Returns:
        coverage, single and empty: the fractions of sets that contain the true class, exactly one class, and no class;
            and mean_size, the mean number of classes, with a patient-bootstrap interval.

    Raises:
        UndefinedMetricError: There are no images.
    """
    chosen, y = np.asarray(sets, dtype=np.bool_), np.asarray(targets, dtype=np.int64)
    if not len(y):
        raise UndefinedMetricError("there are no images")
    size = chosen.sum(axis=1)

    def mean_size(weights: FloatArray) -> FloatArray:
        return np.asarray((weights @ size / weights.sum(axis=1))[:, None])

    return {
        "coverage": proportion(chosen[np.arange(len(y)), y], patients),
        "single": proportion(size == 1, patients),
        "empty": proportion(size == 0, patients),
        "mean_size": _bootstrap(mean_size, len(y), patients, seed=seed)[0],
    }


def mean_of_classes(rates: Sequence[Interval]) -> Interval:
    """Return the mean of proportions on different images, such as the sensitivities of all classes.

    Args:
        rates: Proportions at the same level. If one is undefined, so is the mean, for the same reason.

    Source: Method of variance estimates recovery, Zou & Donner 2008, Stat Med 27:1693; for two proportions, equal to
    `intervals.mean_of_proportions`.
    """
    n, method = sum(rate.n for rate in rates), "wilson, all classes"
    values, below, above = [], 0.0, 0.0
    for rate in rates:
        if rate.value is None or rate.low is None or rate.high is None:
            return undefined(rate.reason, n=n, method=method, level=rate.level)
        values.append(rate.value)
        below += (rate.value - rate.low) ** 2
        above += (rate.high - rate.value) ** 2
    mean, k = sum(values) / len(values), len(values)
    low, high = max(0.0, mean - math.sqrt(below) / k), min(1.0, mean + math.sqrt(above) / k)
    return Interval(mean, low, high, method, n, rates[0].level)


def _mean(columns: Iterable[FloatArray]) -> FloatArray:
    return np.asarray(np.mean(list(columns), axis=0), dtype=np.float64)


def _fraction(values: BoolArray, among: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the weighted fraction of True values among a subset, shape (r,); NaN if the subset has no weight."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ (values & among)) / (weights @ among.astype(np.float64)))


def _rate(values: BoolArray, among: BoolArray, patients: Sequence[str] | None, reason: str) -> Interval:
    chosen = np.flatnonzero(among)
    return proportion(
        values[chosen], None if patients is None else [patients[i] for i in chosen.tolist()], reason=reason
    )


def _bootstrap(
    statistics: Callable[[FloatArray], FloatArray],
    n: int,
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    seed: int,
    reason: str = _UNDEFINED,
    few_patients: str = "",
) -> list[Interval]:
    """Return statistics of image weights (r, n), one per column, with patient-bootstrap intervals.

    There are no intervals if `few_patients` gives a reason. See `patient_bootstraps` for the other arguments.
    """
    if few_patients:
        return [
            Interval(value, None, None, _BOOTSTRAP, n, seed=seed, reason=few_patients)
            if math.isfinite(value)
            else undefined(reason, n=n, method=_BOOTSTRAP, seed=seed)
            for value in statistics(np.ones((1, n)))[0].tolist()
        ]
    return patient_bootstraps(
        lambda _scores, _labels, weights: statistics(weights),
        np.zeros(n),
        np.zeros(n, dtype=np.bool_),
        patients,
        resamples=resamples,
        seed=seed,
        reason=reason,
    )
