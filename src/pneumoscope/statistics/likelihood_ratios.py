"""Likelihood ratios of decisions, and predictive values at a stated prevalence, with intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.inputs import BoolArray, patient_groups, validate
from pneumoscope.statistics.intervals import design_effect, normal_quantile, undefined, wilson

__all__ = ["likelihood_ratios", "predictive_values"]


@dataclasses.dataclass(frozen=True)
class _Rate:
    """Fraction of the images of one label with the decision pneumonia, or without it.

    Attributes:
        value: The fraction, 0 to 1.
        n: Number of images.
        effect: Design effect of repeated patients.
    """

    value: float
    n: int
    effect: float

    @property
    def effective_n(self) -> float:
        """Number of independent images."""
        return self.n / self.effect


def likelihood_ratios(
    decisions: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None,
    level: float = 0.95,
    *,
    negative: str = "NORMAL image",
    decision: str = "pneumonia",
) -> dict[str, Interval]:
    """Return positive_likelihood_ratio, sensitivity / (1 - specificity), and negative_likelihood_ratio.

    The latter is (1 - sensitivity) / specificity. Intervals are normal on the logarithmic scale, with the numbers of images
    divided by the design effect of each label where patients repeat. A ratio of 0 has no logarithm, and that of two rates of 1
    no variance; their interval is that of the ratio of two Wilson intervals (MOVER-R). Sensitivity and specificity are taken to
    be independent, even if some patients have images of both labels.

    Args:
        decisions: True where pneumonia is predicted, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: One patient key per image, "" where unknown; None if no patient is known.
        level: Coverage, 0 to 1.
        negative, decision: Names of an image without pneumonia, and of the decision, for the reason of an undefined ratio.

    Raises:
        UndefinedMetricError: There are no images, or the shapes differ.

    Source: Simel, Samsa & Matchar 1991, J Clin Epidemiol 44:763; effective sample size of Rao & Scott 1992, Biometrics 48:577;
        Newcombe 2016, Stat Methods Med Res 25:1774 (MOVER-R).
    """
    rates = _rates(decisions, labels, patients)
    if isinstance(rates, str):
        missing = undefined(rates, n=len(np.asarray(labels)), method="simel", level=level)
        return {"positive_likelihood_ratio": missing, "negative_likelihood_ratio": missing}
    sensitivity, specificity, false_positive, false_negative = rates
    return {
        "positive_likelihood_ratio": _ratio(
            sensitivity, false_positive, level, f"no {negative} is predicted as {decision}"
        ),
        "negative_likelihood_ratio": _ratio(
            false_negative, specificity, level, f"every {negative} is predicted as {decision}"
        ),
    }


def predictive_values(
    decisions: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None,
    prevalence: float,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return precision and negative_predictive_value among images of another prevalence of pneumonia.

    Sensitivity and specificity are taken to be those of these images; the prevalence is taken to be known. The odds of
    pneumonia after a decision are the odds of the prevalence times the likelihood ratio, and the limits are those of the
    likelihood ratio.

    Args:
        decisions, labels, patients, level: See `likelihood_ratios`.
        prevalence: Fraction of images with pneumonia, above 0 and below 1.

    Raises:
        UndefinedMetricError: There are no images, the shapes differ, or the prevalence is out of range.

    Source: Mercaldo, Lau & Zhou 2007, Stat Med 26:2170 (logit interval).
    """
    if not 0 < prevalence < 1:
        raise UndefinedMetricError(f"the prevalence is {prevalence}, not between 0 and 1")
    rates = _rates(decisions, labels, patients)
    if isinstance(rates, str):
        missing = undefined(rates, n=len(np.asarray(labels)), method="mercaldo", level=level)
        return {"precision": missing, "negative_predictive_value": missing}
    positive, negative, false_positive, false_negative = rates
    odds = prevalence / (1 - prevalence)
    return {
        "precision": _predictive_value(positive, false_positive, odds, level, "no image is predicted as pneumonia"),
        "negative_predictive_value": _predictive_value(
            negative, false_negative, 1 / odds, level, "every image is predicted as pneumonia"
        ),
    }


def _predictive_value(correct: _Rate, wrong: _Rate, odds: float, level: float, reason: str) -> Interval:
    """Return the probability that a decision is correct.

    Args:
        correct, wrong: Fraction of the images of each label with this decision.
        odds: Odds that the decision is correct before it is known.
        level: Coverage, 0 to 1.
        reason: Reason of the undefined interval if no image has this decision.
    """
    if correct.value == wrong.value == 0:
        return undefined(reason, n=correct.n + wrong.n, method="mercaldo", level=level)
    # Of the two ratios, the one whose denominator is not 0.
    inverse = correct.value == 0
    ratio = _ratio(correct, wrong, level, reason) if inverse else _ratio(wrong, correct, level, reason)

    def probability(each: float | None) -> float | None:
        if each is None:
            return None
        return odds * each / (1 + odds * each) if inverse else 1 / (1 + each / odds)

    low, high = (ratio.low, ratio.high) if inverse else (ratio.high, ratio.low)
    return dataclasses.replace(
        ratio,
        value=probability(ratio.value),
        low=probability(low),
        high=probability(high),
        method=ratio.method.replace("simel", "mercaldo"),
    )


def _rates(
    decisions: npt.ArrayLike, labels: npt.ArrayLike, patients: Sequence[str] | None
) -> tuple[_Rate, _Rate, _Rate, _Rate] | str:
    """Return sensitivity, specificity and their complements, or the reason why one is undefined."""
    predicted, y = validate(decisions, labels)
    positive = predicted.astype(np.bool_)
    if y.all() or not y.any():
        return f"there is no {'NORMAL' if y.all() else 'PNEUMONIA'} image"
    keys = None if patients is None else np.asarray(patients, dtype=object)

    def rate(hits: BoolArray, among: BoolArray) -> _Rate:
        values = hits[among]
        groups = patient_groups(None if keys is None else list(keys[among]), len(values))
        return _Rate(float(values.mean()), len(values), design_effect(values, groups))

    return rate(positive, y), rate(~positive, ~y), rate(positive, ~y), rate(~positive, y)


def _ratio(numerator: _Rate, denominator: _Rate, level: float, reason: str) -> Interval:
    """Return the ratio of two rates of different images; undefined, with the reason, if the denominator is 0."""
    n, a, b = numerator.n + denominator.n, numerator.value, denominator.value
    effects = ""
    if max(numerator.effect, denominator.effect) > 1:
        effects = f", design effects {numerator.effect:.2f} and {denominator.effect:.2f}"
    if b == 0:
        return undefined(reason, n=n, method=f"simel{effects}", level=level)
    if a == 0:
        # The general formula of MOVER-R at a = 0, where the lower limit is 0.
        upper = wilson(0, numerator.effective_n, level).high or 0.0
        lower = wilson(b * denominator.effective_n, denominator.effective_n, level).low or 0.0
        return Interval(0.0, 0.0, upper / math.sqrt(lower * (2 * b - lower)), f"mover-r{effects}", n, level)
    if a == b == 1:
        # The same at a = b = 1, where the upper limits are 1.
        low = wilson(numerator.effective_n, numerator.effective_n, level).low or 0.0
        high = 1 / (wilson(denominator.effective_n, denominator.effective_n, level).low or math.nan)
        return Interval(1.0, low, high, f"mover-r{effects}", n, level)
    variance = (1 - a) / (a * numerator.effective_n) + (1 - b) / (b * denominator.effective_n)
    factor = math.exp(normal_quantile(level) * math.sqrt(variance))
    return Interval(a / b, a / b / factor, a / b * factor, f"simel{effects}", n, level)
