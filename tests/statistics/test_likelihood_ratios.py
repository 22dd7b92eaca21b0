"""Likelihood ratios and predictive values, compared with SciPy's relative risk, scikit-learn and Bayes' rule on counts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats.contingency import relative_risk
from sklearn import metrics

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.intervals import wilson
from pneumoscope.statistics.likelihood_ratios import likelihood_ratios, predictive_values


def classified(tp, fn, tn, fp):
    return np.repeat([True, False, False, True], [tp, fn, tn, fp]), np.repeat([True, False], [tp + fn, tn + fp])


@given(st.tuples(*[st.integers(1, 60)] * 4))
def test_ratios_and_intervals_are_those_of_a_relative_risk(cells):
    """The logarithmic interval of a ratio of two proportions is the same for risks and for likelihood ratios."""
    tp, fn, tn, fp = cells
    ratios = likelihood_ratios(*classified(*cells), None)
    for name, hits in (("positive_likelihood_ratio", (tp, fp)), ("negative_likelihood_ratio", (fn, tn))):
        reference = relative_risk(hits[0], tp + fn, hits[1], tn + fp)
        ends = reference.confidence_interval(0.95)
        assert ratios[name].value == pytest.approx(reference.relative_risk)
        assert (ratios[name].low, ratios[name].high) == pytest.approx((ends.low, ends.high))
        assert (ratios[name].method, ratios[name].n) == ("simel", sum(cells))


def test_interval_of_two_equal_images_per_patient_is_that_of_one():
    decisions, labels = classified(30, 10, 25, 15)
    single = likelihood_ratios(decisions, labels, None)
    patients = [f"p{i}" for i in range(len(labels))] * 2
    doubled = likelihood_ratios(np.tile(decisions, 2), np.tile(labels, 2), patients)
    for name, ratio in doubled.items():
        # The design effect of 40 pairs is estimated as 2 x 40 / 39 x 79 / 80.
        assert (ratio.low, ratio.high) == pytest.approx((single[name].low, single[name].high), rel=0.01)
        assert ratio.n == 160
        assert ratio.method.startswith("simel, design effects 2.0")


def test_ratio_of_zero_has_the_limit_of_two_wilson_intervals():
    """At zero errors, the general formula of MOVER-R (Newcombe 2016, with a = 0), computed here from its quadratic."""
    ratio = likelihood_ratios(*classified(40, 0, 45, 5), None)["negative_likelihood_ratio"]
    a, b = wilson(0, 40), wilson(45, 50)
    product = a.value * b.value
    root = math.sqrt(product**2 - a.high * b.low * (2 * a.value - a.high) * (2 * b.value - b.low))
    assert (ratio.value, ratio.low, ratio.method) == (0, 0, "mover-r")
    assert ratio.high == pytest.approx((product + root) / (b.low * (2 * b.value - b.low)))


def test_ratio_of_two_rates_of_one_has_limits():
    """If every image is predicted as pneumonia, the general formula of MOVER-R (Newcombe 2016), computed here in full."""
    decisions, labels = classified(12, 0, 0, 9)
    ratio = likelihood_ratios(decisions, labels, None)["positive_likelihood_ratio"]
    a, b = wilson(12, 12), wilson(9, 9)

    def limit(first, second, sign):
        product = a.value * b.value
        root = math.sqrt(product**2 - first * second * (2 * a.value - first) * (2 * b.value - second))
        return (product + sign * root) / (second * (2 * b.value - second))

    assert (ratio.value, ratio.method) == (1, "mover-r")
    assert (ratio.low, ratio.high) == pytest.approx((limit(a.low, b.high, -1), limit(a.high, b.low, 1)))
    precision = predictive_values(decisions, labels, None, 0.2)["precision"]
    assert precision.value == pytest.approx(0.2)
    assert precision.low < 0.2 < precision.high


def test_intervals_cover_the_true_ratio_in_95_percent_of_simulations():
    """With a sensitivity of 0.95 of 40, an eighth of the samples has no false negative."""
    random, covered, draws = np.random.default_rng(2), 0, 2000
    for _ in range(draws):
        tp, tn = random.binomial(40, 0.95), random.binomial(60, 0.8)
        ratio = likelihood_ratios(*classified(tp, 40 - tp, tn, 60 - tn), None)["negative_likelihood_ratio"]
        covered += ratio.low <= 0.05 / 0.8 <= ratio.high
    assert covered / draws > 0.93


def test_ratio_without_a_denominator_is_undefined_with_the_reason():
    ratios = likelihood_ratios(*classified(5, 3, 9, 0), None)
    assert ratios["positive_likelihood_ratio"].value is None
    assert ratios["positive_likelihood_ratio"].reason == "no NORMAL image is predicted as pneumonia"
    assert ratios["negative_likelihood_ratio"].value == pytest.approx(3 / 8)
    one_label = likelihood_ratios(*classified(5, 3, 0, 0), None)
    assert {ratio.reason for ratio in one_label.values()} == {"there is no NORMAL image"}


@given(st.tuples(*[st.integers(1, 60)] * 4))
def test_predictive_values_at_the_prevalence_of_the_images_are_theirs(cells):
    decisions, labels = classified(*cells)
    values = predictive_values(decisions, labels, None, labels.mean())
    assert values["precision"].value == pytest.approx(metrics.precision_score(labels, decisions))
    assert values["negative_predictive_value"].value == pytest.approx(metrics.precision_score(~labels, ~decisions))
    assert all(0 <= each.low <= each.value <= each.high <= 1 for each in values.values())


@given(st.tuples(*[st.integers(1, 60)] * 4), st.floats(0.01, 0.99))
def test_predictive_values_at_another_prevalence_are_those_of_reweighted_images(cells, prevalence):
    decisions, labels = classified(*cells)
    weights = np.where(labels, prevalence / labels.mean(), (1 - prevalence) / (1 - labels.mean()))
    values = predictive_values(decisions, labels, None, prevalence)
    expected = metrics.precision_score(labels, decisions, sample_weight=weights)
    assert values["precision"].value == pytest.approx(expected)
    expected = metrics.precision_score(~labels, ~decisions, sample_weight=weights)
    assert values["negative_predictive_value"].value == pytest.approx(expected)


def test_interval_of_a_predictive_value_agrees_with_the_delta_method_by_finite_differences():
    tp, fn, tn, fp = 90, 10, 160, 40

    def logit_of_ppv(sensitivity, specificity, prevalence=0.1):
        odds = sensitivity * prevalence / ((1 - specificity) * (1 - prevalence))
        return math.log(odds)

    sensitivity, specificity, step = 0.9, 0.8, 1e-6
    slopes = [
        (logit_of_ppv(sensitivity + step, specificity) - logit_of_ppv(sensitivity - step, specificity)) / (2 * step),
        (logit_of_ppv(sensitivity, specificity + step) - logit_of_ppv(sensitivity, specificity - step)) / (2 * step),
    ]
    deviation = math.sqrt(slopes[0] ** 2 * 0.9 * 0.1 / 100 + slopes[1] ** 2 * 0.8 * 0.2 / 200)
    ends = [logit_of_ppv(sensitivity, specificity) + sign * 1.959964 * deviation for sign in (-1, 1)]
    value = predictive_values(*classified(tp, fn, tn, fp), None, 0.1)["precision"]
    assert (value.low, value.high) == pytest.approx([1 / (1 + math.exp(-end)) for end in ends], rel=1e-6)
    assert value.method == "mercaldo"


def test_predictive_value_without_wrong_decisions_is_1_with_a_lower_limit():
    value = predictive_values(*classified(20, 5, 30, 0), None, 0.1)["precision"]
    assert (value.value, value.high) == (1, 1)
    assert 0.3 < value.low < 0.9
    none_correct = predictive_values(*classified(0, 25, 20, 10), None, 0.1)["precision"]
    assert (none_correct.value, none_correct.low) == (0, 0)
    assert 0 < none_correct.high < 0.5
    nothing = predictive_values(*classified(0, 25, 30, 0), None, 0.1)["precision"]
    assert (nothing.value, nothing.reason) == (None, "no image is predicted as pneumonia")


def test_prevalence_out_of_range_is_an_error():
    with pytest.raises(UndefinedMetricError, match=r"1\.2"):
        predictive_values(*classified(2, 2, 2, 2), None, 1.2)
