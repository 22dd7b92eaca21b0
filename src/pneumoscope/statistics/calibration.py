"""Platt scaling, Brier score, calibration error, slope, intercept and O/E ratio, and reliability bins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from pneumoscope.core.interval import Interval
from pneumoscope.core.results import ReliabilityBin
from pneumoscope.statistics.inputs import (
    BoolArray,
    FloatArray,
    IntArray,
    validate_both_classes,
    validate_probabilities,
)
from pneumoscope.statistics.intervals import RESAMPLES, patient_bootstrap, undefined, wilson

__all__ = [
    "BINS",
    "calibration_error_interval",
    "calibration_intervals",
    "fit_platt",
    "reliability_bins",
    "weighted_brier",
    "weighted_calibration_error",
    "weighted_calibration_intercept",
    "weighted_calibration_slope",
    "weighted_observed_expected_ratio",
]

BINS = 15
# With this slope, all images get the same probability if the logits do not rank them, or rank them in reverse.
_MIN_SLOPE = 1e-6
_MAX_ITERATIONS = 60  # of Newton's method; each changes slope and intercept by at most 1
_MAX_PARAMETER = 40  # for standardized logits
# Minimum range of the logits. If the odds differ by less than 1%, probabilities are practically equal, and the slope
# would be in the hundreds or millions and describe rounding errors of the network.
_MIN_RANGE = 0.01
# Distance from 1 to the next smaller double.
_EPSILON = 2.0**-53


def _bin_indices(probabilities: FloatArray, bins: int) -> IntArray:
    """Return the bin of each image, from 0 without gaps. Bins have equal mass; equal probabilities share a bin."""
    edges = np.unique(np.quantile(probabilities, np.arange(1, bins) / bins, method="inverted_cdf"))
    return np.asarray(np.unique(np.searchsorted(edges, probabilities), return_inverse=True)[1], dtype=np.int64)


def weighted_brier(probabilities: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the Brier score for each row of image weights, for `intervals.patient_bootstrap`.

    It is the mean squared difference of probability and label: 0 is perfect, 0.25 is the score of a constant 0.5.

    Args:
        probabilities: Probabilities of pneumonia, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        weights: Image weights, 0 or more, shape (r, n).

    Returns:
        Shape (r,).

    Source: Brier 1950, Mon Weather Rev 78:1.
    """
    return np.asarray(weights @ np.square(probabilities - labels) / weights.sum(axis=1))


def weighted_calibration_error(probabilities: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the expected calibration error for each row of image weights; arguments and shape as in `weighted_brier`.

    It is the mean absolute difference between mean probability and observed rate over 15 bins of equal mass. Most bins
    of equal width would be almost empty, because networks output 0.99 far more often than 0.5. Equal probabilities
    share a bin, so there may be fewer bins. Bins are computed from the unweighted images. Even perfect calibration
    gives a value above 0, about 0.02 for 600 images.

    Source: Naeini 2015, AAAI 29:2901; 15 bins by Guo 2017, ICML 70:1321; equal mass by Nixon 2019, CVPR Workshops.
    """
    indices = _bin_indices(probabilities, BINS)
    gaps = np.zeros((len(indices), int(indices.max()) + 1))
    gaps[np.arange(len(indices)), indices] = probabilities - labels
    return np.asarray(np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1))


def calibration_error_interval(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the expected calibration error with an interval that can include 0.

    Noise only increases this error, and resampling adds noise a second time, so a percentile interval lies above the
    true value. The percentile interval of `intervals.patient_bootstrap` is therefore reflected at the estimate (basic
    bootstrap). Its lower limit is 0 if the value does not exceed the `level` quantile of errors computed with labels
    drawn from the probabilities.

    In simulations of 624 images this interval contains the true value in 87 to 95% of data sets, the percentile
    interval in 0 to 91%.

    Args:
        probabilities: Probabilities of pneumonia, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: One patient key per image, "" where unknown; None if all are unknown.
        resamples: Number of bootstrap resamples.
        level: Coverage, 0 to 1.
        seed: Seed of the bootstrap.

    Raises:
        UndefinedMetricError: There are no images, or a probability is outside 0 to 1.

    Source: Davison & Hinkley 1997, section 5.2 (basic bootstrap); Bröcker & Smith 2007, Weather Forecast 22:651 (labels
    drawn from the probabilities).
    """
    p, y = validate_probabilities(probabilities, labels)
    percentile = patient_bootstrap(
        weighted_calibration_error, p, y, patients, resamples=resamples, level=level, seed=seed
    )
    value, low, high = percentile.value, percentile.low, percentile.high
    if value is None or low is None or high is None:
        return percentile
    low, high = max(0.0, 2 * value - high), max(value, 2 * value - low)
    if value <= _max_error_if_calibrated(p, level, resamples, seed):
        low = 0.0
    return dataclasses.replace(percentile, low=min(low, value), high=min(1.0, high), method="patient bootstrap, basic")


def _max_error_if_calibrated(probabilities: FloatArray, level: float, resamples: int, seed: int) -> float:
    """Return the quantile at `level` of the calibration error under perfect calibration."""
    random = np.random.default_rng(seed)
    indices = _bin_indices(probabilities, BINS)
    errors = []
    for _ in range(resamples):
        gaps = np.bincount(indices, probabilities - (random.random(len(indices)) < probabilities))
        errors.append(np.abs(gaps).sum() / len(indices))
    return float(np.quantile(errors, level))


def weighted_calibration_slope(logits: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the calibration slope for each row of image weights, for `intervals.patient_bootstrap`.

    It is the slope of a logistic regression of the labels on the logits of the probabilities: 1 is perfect; below 1 the
    probabilities are too extreme, above 1 not extreme enough.

    Args:
        logits: Logits of the probabilities, shape (n,).
        labels, weights: See `weighted_brier`.

    Returns:
        Shape (r,). NaN where it cannot be estimated: the odds differ by less than 1%, or the probabilities separate the
        labels (completely, or except for ties at one threshold), so that the regression has no finite solution.

    Source: Cox 1958, Biometrika 45:562; Van Calster 2019, BMC Med 17:230. Complete and quasi-complete separation:
    Albert & Anderson 1984, Biometrika 71:1.
    """
    slopes = np.full(len(weights), np.nan)
    rows = ~(_are_separated(logits, labels, weights) | _are_equal(logits, weights))
    if rows.any():
        slopes[rows] = _logistic_regression(logits, labels, weights[rows])[0]
    return slopes


def _are_separated(logits: FloatArray, labels: BoolArray, weights: FloatArray) -> BoolArray:
    """Return for each row of image weights whether a threshold separates the labels, ties aside, shape (r,)."""
    lowest, highest = (
        [side(np.where((weights > 0) & members, logits, none), axis=1) for members in (labels, ~labels)]
        for side, none in ((np.min, np.inf), (np.max, -np.inf))
    )
    return np.asarray((highest[1] <= lowest[0]) | (highest[0] <= lowest[1]))


def _are_equal(logits: FloatArray, weights: FloatArray) -> BoolArray:
    """Return for each row of image weights whether the logits are practically equal, shape (r,)."""
    lowest, highest = (np.where(weights > 0, logits, none) for none in (np.inf, -np.inf))
    return np.asarray(highest.max(axis=1) - lowest.min(axis=1) < _MIN_RANGE)


def weighted_calibration_intercept(logits: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the calibration intercept (calibration-in-the-large) for each row of image weights.

    It is the intercept of a logistic regression of the labels with the logits of the probabilities as an offset: 0 is
    perfect; below 0 the probabilities are too high on average. Arguments, shape and source as in
    `weighted_calibration_slope`.
    """
    return _logistic_regression(logits, labels, weights, slope=1.0)[1]


def weighted_observed_expected_ratio(probabilities: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the number of pneumonias divided by the sum of the probabilities (O/E), for each row of image weights.

    1 is perfect; below 1 the probabilities are too high on average. Arguments and shape as in `weighted_brier`; NaN if
    all probabilities are 0.

    Source: Debray 2017, BMJ 356:i6460; Riley 2016, BMJ 353:i3140.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ labels.astype(np.float64)) / (weights @ probabilities))


def calibration_intervals(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return calibration_slope, calibration_intercept and observed_expected_ratio with patient-bootstrap intervals.

    Probabilities of 0 and 1 have no finite logit; slope and intercept use 2^-53 and 1 - 2^-53 instead.

    Args:
        probabilities: Probabilities of pneumonia, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,). If all are equal, all three are undefined.
        patients: One patient key per image, "" where unknown; None if all are unknown.
        resamples: Number of resamples.
        level: Coverage, 0 to 1.
        seed: Seed of the bootstrap.

    Raises:
        UndefinedMetricError: There are no images, or a probability is outside 0 to 1.

    Source: `weighted_calibration_slope`, `weighted_calibration_intercept` and `weighted_observed_expected_ratio`; the
    hierarchy of calibration by Van Calster 2016, J Clin Epidemiol 74:167.
    """
    p, y = validate_probabilities(probabilities, labels)
    inside = np.clip(p, _EPSILON, 1 - _EPSILON)
    logits = np.log(inside) - np.log1p(-inside)
    statistics = {
        "calibration_slope": (weighted_calibration_slope, logits),
        "calibration_intercept": (weighted_calibration_intercept, logits),
        "observed_expected_ratio": (weighted_observed_expected_ratio, p),
    }
    if y.all() or not y.any():
        missing = undefined(
            f"there is no {'NORMAL' if y.all() else 'PNEUMONIA'} image",
            n=len(y),
            method="patient bootstrap",
            level=level,
            seed=seed,
        )
        return dict.fromkeys(statistics, missing)
    once = np.ones((1, len(y)))
    if _are_equal(logits, once)[0]:
        cause = f"all probabilities are practically equal, {p.min():.3g} to {p.max():.3g}"
    elif _are_separated(logits, y, once)[0]:
        tied = bool(np.intersect1d(logits[y], logits[~y]).size)
        cause = f"the probabilities separate the labels{', except for equal ones at one threshold' if tied else ' perfectly'}"
    else:
        cause = "the regression has no finite solution"
    cannot = f"it cannot be estimated: {cause}"
    reasons = dict.fromkeys(statistics, cannot) | {"observed_expected_ratio": "all probabilities are 0"}
    return {
        name: patient_bootstrap(
            statistic,
            x,
            y,
            patients,
            resamples=resamples,
            level=level,
            seed=seed,
            reason=reasons[name],
            by_label=True,
        )
        for name, (statistic, x) in statistics.items()
    }


def _logistic_regression(
    logits: FloatArray, labels: BoolArray, weights: FloatArray, slope: float | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return slopes and intercepts of weighted logistic regressions by Newton's method, each of shape (r,).

    Args:
        logits, labels, weights: See `weighted_calibration_slope`.
        slope: A fixed slope; estimated if None.
    """
    # Standardize, because the step size is limited; transformed back at the end.
    center, scale = (float(logits.mean()), float(logits.std()) or 1.0) if slope is None else (0.0, 1.0)
    logits = (logits - center) / scale
    parameters = np.zeros((len(weights), 2))
    parameters[:, 0] = slope or 0.0
    gradient = np.full((len(weights), 2), np.inf)
    with np.errstate(all="ignore"):
        for _ in range(_MAX_ITERATIONS):
            p = special.expit(parameters[:, :1] * logits + parameters[:, 1:])
            residual, curvature = weights * (labels - p), weights * p * (1 - p)
            gradient = np.stack([residual @ logits, residual.sum(1)], axis=1)
            xx, x1, ones = curvature @ np.square(logits), curvature @ logits, curvature.sum(1)
            if slope is not None:
                gradient[:, 0] = 0.0
                step = np.stack([np.zeros(len(weights)), gradient[:, 1] / ones], axis=1)
            else:
                determinant = xx * ones - np.square(x1)
                step = np.stack(
                    [ones * gradient[:, 0] - x1 * gradient[:, 1], xx * gradient[:, 1] - x1 * gradient[:, 0]], axis=1
                )
                step /= determinant[:, None]
            # Newton's method overshoots where the curvature is small.
            parameters = parameters + np.clip(step, -1.0, 1.0)
            if np.nanmax(np.abs(step), initial=0.0) < 1e-9:
                break
        converged = (np.abs(gradient) <= 1e-6 * weights.sum(1, keepdims=True)).all(1)
        # A large slope indicates complete separation, a large intercept a single label.
        converged &= (np.abs(parameters) < _MAX_PARAMETER).all(1)
        parameters = np.stack([parameters[:, 0] / scale, parameters[:, 1] - parameters[:, 0] * center / scale], axis=1)
    result = np.where(converged[:, None], parameters, np.nan)
    return result[:, 0], result[:, 1]


def reliability_bins(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Return the bins of the expected calibration error, in ascending order of probability.

    Args:
        probabilities: Probabilities of pneumonia, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        bins: Maximum number of bins.

    Raises:
        UndefinedMetricError: There are no images, or a probability is outside 0 to 1.
    """
    p, y = validate_probabilities(probabilities, labels)
    indices = _bin_indices(p, bins)
    result = []
    for index in range(int(indices.max()) + 1):
        members = indices == index
        observed_rate = wilson(int(y[members].sum()), int(members.sum()))
        inside = p[members]
        result.append(ReliabilityBin(float(inside.min()), float(inside.max()), float(inside.mean()), observed_rate))
    return tuple(result)


def fit_platt(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[float, float]:
    """Return the slope and intercept that make sigmoid(slope x logit + intercept) a calibrated probability.

    They maximize the likelihood of Platt's smoothed targets, (N+ + 1) / (N+ + 2) and 1 / (N- + 2), which keep both
    finite if the classes are perfectly separated. The slope is constrained to be positive, because calibration must not
    change the ranking of images.

    Args:
        logits: Logits of validation images, unbounded, shape (n,).
        labels: True where pneumonia is present, shape (n,).

    Raises:
        UndefinedMetricError: A class has no images, or a logit is not finite.

    Source: Platt 1999, Advances in Large Margin Classifiers; Lin, Lin & Weng 2007, Mach Learn 68:267.
    """
    x, y = validate_both_classes(logits, labels, "calibration")
    positives, negatives = int(y.sum()), int((~y).sum())
    target = np.where(y, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # Standardize, because the optimizer would stop too early on raw logits, which may be in the hundreds.
    mean, scale = float(x.mean()), float(x.std()) or 1.0
    standardized = (x - mean) / scale

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        z = parameters[0] * standardized + parameters[1]
        residual = special.expit(z) - target
        value = np.logaddexp(0.0, z) - target * z
        return float(value.mean()), np.array([(residual * standardized).mean(), residual.mean()])

    start = np.array([1.0, special.logit(target.mean())])
    bounds = [(_MIN_SLOPE * scale, None), (None, None)]
    options = {"ftol": 0.0, "gtol": 1e-10, "maxiter": 1000}
    solution = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    slope = max(float(solution.x[0]) / scale, _MIN_SLOPE)
    return slope, float(solution.x[1]) - slope * mean
