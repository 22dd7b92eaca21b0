"""Metrics of several classes against scikit-learn, SciPy and direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, special
from scipy.stats.contingency import relative_risk
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import label_binarize

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.calibration import calibration_intervals
from pneumoscope.statistics.conformal import fit_class_thresholds
from pneumoscope.statistics.heterogeneity import (
    area_heterogeneity,
    unpaired_area_difference,
    unpaired_auroc_difference,
)
from pneumoscope.statistics.inputs import patient_groups, validate_classes
from pneumoscope.statistics.intervals import MIN_PATIENTS, mean_of_proportions, wilson
from pneumoscope.statistics.multiclass import (
    class_metrics,
    confusion_matrix,
    macro_auroc_interval,
    mean_of_classes,
    overall_metrics,
    pair_metrics,
    set_metrics,
)
from pneumoscope.statistics.multiclass_paired import macro_auroc_area, macro_auroc_covariance, macro_auroc_test
from pneumoscope.statistics.paired import delong_test
from pneumoscope.statistics.probabilities import log_odds, softmax
from pneumoscope.statistics.roc import delong_covariance, weighted_macro_auroc
from pneumoscope.statistics.temperature import fit_temperature

NAMES = ("bacteria", "normal", "virus")
N = 240


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probabilities of 240 images of 120 patients, which are right three times of four."""
    random = np.random.default_rng(5)
    targets = np.repeat(random.integers(0, 3, N // 2), 2)
    logits = random.normal(size=(N, 3))
    logits[np.arange(N), targets] += 1.5
    return softmax(logits), targets, [f"p{i // 2}" for i in range(N)]


def test_overall_metrics_are_those_of_scikit_learn(data) -> None:
    p, y, patients = data
    predicted, one_hot = p.argmax(1), label_binarize(y, classes=[0, 1, 2])
    found = overall_metrics(p, y, NAMES, patients, resamples=50)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(y, predicted),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(y, predicted),
        "macro_auroc": sklearn_metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "macro_auprc": sklearn_metrics.average_precision_score(one_hot, p, average="macro"),
        "macro_f1": sklearn_metrics.f1_score(y, predicted, average="macro"),
        "macro_specificity": np.mean([sklearn_metrics.recall_score(y != k, predicted != k) for k in range(3)]),
        "macro_precision": sklearn_metrics.precision_score(y, predicted, average="macro"),
        "brier": np.square(p - one_hot).sum(1).mean(),
        "log_loss": sklearn_metrics.log_loss(y, p),
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    for name, interval in found.items():
        assert interval.n == N
        assert interval.low <= interval.value <= interval.high, name


def test_one_class_against_the_rest_is_that_of_scikit_learn(data) -> None:
    p, y, patients = data
    for k, name in enumerate(NAMES):
        found = class_metrics(p, y, k, name, patients, resamples=50)
        report = sklearn_metrics.classification_report(y == k, p.argmax(1) == k, output_dict=True)
        assert found["auroc"].value == pytest.approx(sklearn_metrics.roc_auc_score(y == k, p[:, k]))
        assert found["auprc"].value == pytest.approx(sklearn_metrics.average_precision_score(y == k, p[:, k]))
        for metric, label, column in (
            ("sensitivity", "True", "recall"),
            ("specificity", "False", "recall"),
            ("precision", "True", "precision"),
            ("negative_predictive_value", "False", "precision"),
            ("f1", "True", "f1-score"),
        ):
            assert found[metric].value == pytest.approx(report[label][column]), metric


def test_likelihood_ratios_of_a_class_are_relative_risks(data) -> None:
    """The logarithmic interval of a ratio of two proportions is the same for risks and for likelihood ratios."""
    p, y, patients = data
    for k, name in enumerate(NAMES):
        found = class_metrics(p, y, k, name, None, resamples=10)
        clustered = class_metrics(p, y, k, name, patients, resamples=10)
        (tn, fp), (fn, tp) = sklearn_metrics.confusion_matrix(y == k, p.argmax(1) == k).tolist()
        for metric, hits in (("positive_likelihood_ratio", (tp, fp)), ("negative_likelihood_ratio", (fn, tn))):
            expected = relative_risk(hits[0], tp + fn, hits[1], tn + fp)
            ends = expected.confidence_interval(0.95)
            assert found[metric].value == pytest.approx(expected.relative_risk)
            assert (found[metric].low, found[metric].high) == pytest.approx((ends.low, ends.high))
            assert clustered[metric].value == found[metric].value
        assert clustered["positive_likelihood_ratio"].method.startswith("simel, design effects")


def test_calibration_of_a_class_is_that_of_scikit_learn_and_a_root_finder(data) -> None:
    p, y, patients = data
    p = softmax(np.log(p) * 1.7 + [0.3, 0.0, -0.4])  # too extreme, and too low for the last class
    for k, name in enumerate(NAMES):
        member, logits = y == k, special.logit(p[:, k])
        found = class_metrics(p, y, k, name, patients, resamples=200, seed=3)
        model = LogisticRegression(C=1e12, tol=1e-10).fit(logits[:, None], member)
        intercept = optimize.brentq(lambda a, x=logits, m=member: (m - special.expit(x + a)).sum(), -10, 10)
        assert found["calibration_slope"].value == pytest.approx(model.coef_[0, 0], rel=1e-4)
        assert found["calibration_intercept"].value == pytest.approx(intercept, abs=1e-6)
        assert found["observed_expected_ratio"].value == pytest.approx(member.sum() / p[:, k].sum())
        # Whole patients are resampled, as with two labels.
        for metric, interval in calibration_intervals(p[:, k], member, patients, resamples=200, seed=3).items():
            assert found[metric] == interval
            assert interval.low < interval.value < interval.high


def test_ratios_and_calibration_that_are_undefined_name_the_class() -> None:
    y = np.arange(60) % 3
    p = np.full((60, 3), 0.2)
    p[np.arange(60), np.where(np.arange(60) < 12, 0, y)] = 0.6  # some of the others are predicted as bacteria
    virus = class_metrics(p, y, 2, "virus", None, resamples=10)
    assert virus["positive_likelihood_ratio"].reason == "no image of another class is predicted as virus"
    every = class_metrics(np.tile([0.6, 0.2, 0.2], (60, 1)), y, 0, "bacteria", None, resamples=10)
    reason = "every image of another class is predicted as bacteria"
    assert every["negative_likelihood_ratio"].reason == reason
    assert every["calibration_slope"].reason.startswith(
        "it cannot be estimated: all probabilities are practically equal"
    )
    added = {"positive_likelihood_ratio", "negative_likelihood_ratio", *calibration_intervals([0.5], [True], None)}
    for k, name, reason in (
        (0, "bacteria", "all images are of the class bacteria"),
        (1, "normal", "the class normal has no images"),
    ):
        one = class_metrics(p, np.zeros(60, int), k, name, None, resamples=10)
        assert {(one[metric].value, one[metric].reason) for metric in added} == {(None, reason)}


def test_confusion_matrix_has_a_row_per_class(data) -> None:
    p, y, _ = data
    expected = sklearn_metrics.confusion_matrix(y, p.argmax(1))
    np.testing.assert_array_equal(confusion_matrix(y, p.argmax(1), 3), expected)
    assert confusion_matrix([0, 0, 2], [1, 0, 2], 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_pairs_renormalize_the_probabilities_of_two_classes(data) -> None:
    p, y, patients = data
    chosen = y != 1
    conditional = p[chosen, 0] / (p[chosen, 0] + p[chosen, 2])
    found = pair_metrics(p, y, (0, 2), ("bacteria", "virus"), patients)
    positive = y[chosen] == 0
    assert found["auroc"].value == pytest.approx(sklearn_metrics.roc_auc_score(positive, conditional))
    assert found["accuracy"].value == pytest.approx(np.mean((conditional >= 0.5) == positive))
    assert found["sensitivity"].value == pytest.approx(np.mean(conditional[positive] >= 0.5))
    assert found["specificity"].value == pytest.approx(np.mean(conditional[~positive] < 0.5))
    assert found["accuracy"].n == chosen.sum()


def test_classes_that_are_never_predicted_are_named(data) -> None:
    _, y, patients = data
    one, other = [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]
    for rows, never in (((one, one), "normal or virus"), ((one, other), "normal")):
        p = np.array(rows)[np.arange(len(y)) % 2]
        precision = overall_metrics(p, y, NAMES, patients, resamples=10)["macro_precision"]
        assert (precision.value, precision.reason) == (None, f"no image is predicted as {never}")
    p, names = np.tile([0.7, 0.1, 0.1, 0.1], (len(y), 1)), (*NAMES, "fungus")
    y = np.arange(len(y)) % 4
    reason = overall_metrics(p, y, names, patients, resamples=10)["macro_precision"].reason
    assert reason == "no image is predicted as normal, virus or fungus"


def test_a_class_without_images_makes_its_metrics_undefined(data) -> None:
    p, y, patients = data
    y = np.where(y == 1, 0, y)
    overall = overall_metrics(p, y, NAMES, patients, resamples=10)
    assert overall["macro_auroc"].reason == "the class normal has no images"
    assert overall["balanced_accuracy"].reason == "the class normal has no images"
    assert overall["accuracy"].value is not None
    normal = class_metrics(p, y, 1, "normal", patients, resamples=10)
    assert normal["auroc"].reason == normal["sensitivity"].reason == "the class normal has no images"
    assert normal["specificity"].value is not None
    pair = pair_metrics(p, y, (0, 1), ("bacteria", "normal"), patients)
    assert {each.reason for each in pair.values()} == {"the class normal has no images"}


def test_perfect_predictions_have_no_bootstrap_interval() -> None:
    y = np.arange(30) % 3
    p = np.full((30, 3), 0.1)
    p[np.arange(30), y] = 0.8
    found = overall_metrics(p, y, NAMES, None, resamples=20)
    assert found["macro_auroc"] == Interval(
        1.0, None, None, "patient bootstrap", 30, 0.95, 0, "it is the same in all resamples"
    )
    assert found["accuracy"].low < 1


@pytest.mark.parametrize(
    ("p", "y", "reason"),
    [
        ([[0.5, 0.5]], [2], "2 classes"),
        ([[0.5, 0.4]], [0], "do not sum to 1"),
        ([[1.0]], [0], "do not match"),
        (np.zeros((0, 2)), [], "no images"),
        ([[math.nan, 1.0]], [0], "do not sum"),
    ],
)
def test_invalid_probabilities_are_an_error(p, y, reason) -> None:
    with pytest.raises(UndefinedMetricError, match=reason):
        validate_classes(p, np.array(y, dtype=int))


def test_mean_of_classes_is_the_binary_method_for_two_classes() -> None:
    a, b = wilson(37, 40), wilson(55, 70)
    expected, found = mean_of_proportions(a, b), mean_of_classes([a, b])
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_log_odds_do_not_tie_at_certain_images() -> None:
    p = softmax([[50.0, 0, 0], [60.0, 0, 0], [40.0, 1.0, -3.0]])
    assert p[0, 0] == p[1, 0] == 1.0
    odds = log_odds(p)[:, 0]
    assert odds[1] > odds[0] > odds[2]
    assert odds[2] == pytest.approx(40 - np.logaddexp(1.0, -3.0))


def test_macro_auroc_of_weights_is_that_of_repeated_images(data) -> None:
    p, y, _ = data
    weights = np.random.default_rng(1).integers(0, 3, N)
    found = weighted_macro_auroc(log_odds(p), y, weights[None].astype(float))
    repeated = np.repeat(np.arange(N), weights)
    expected = sklearn_metrics.roc_auc_score(y[repeated], p[repeated], multi_class="ovr", average="macro")
    assert found[0] == pytest.approx(expected)


# --- calibration and conformal sets ----------------------------------------------------------------------------------


def test_temperature_undoes_a_scaling_of_the_logits() -> None:
    random = np.random.default_rng(2)
    logits = random.normal(scale=2, size=(20_000, 3))
    targets = np.array([random.choice(3, p=row) for row in softmax(logits)])
    assert fit_temperature(3.0 * logits, targets) == pytest.approx(3.0, rel=0.03)


def test_temperature_has_the_lowest_loss_of_smoothed_targets(data) -> None:
    p, y, _ = data
    logits = np.log(p) * 2.5
    counts = np.bincount(y)
    goal = np.empty((N, 3))
    for i, k in enumerate(y):
        goal[i] = (1 - (counts[k] + 1) / (counts[k] + 3)) / 2
        goal[i, k] = (counts[k] + 1) / (counts[k] + 3)

    def loss(inverse: np.ndarray) -> float:
        scaled = logits * inverse[0]
        return float(-(goal * (scaled - np.log(np.exp(scaled).sum(1, keepdims=True)))).sum())

    best = optimize.minimize(loss, x0=[1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert fit_temperature(logits, y) == pytest.approx(1 / best.x[0], rel=1e-5)


def test_temperature_of_separated_classes_is_above_0() -> None:
    y = np.arange(60) % 3
    logits = 10.0 * np.eye(3)[y]
    p = softmax(logits, fit_temperature(logits, y))
    assert p[np.arange(60), y] == pytest.approx(
        np.full(60, 21 / 23), abs=1e-4
    )  # the smoothed targets, (20 + 1) / (20 + 3)


def test_temperature_needs_images_of_all_classes() -> None:
    with pytest.raises(UndefinedMetricError, match=r"\[2, 0, 1\]"):
        fit_temperature(np.zeros((3, 3)), [0, 0, 2])


def test_class_thresholds_exclude_the_lowest_ranks() -> None:
    # Of 19 images of a class, (1 - 0.9) x 20 = 2 ranks are excluded: the threshold is the second lowest probability.
    p = np.zeros((38, 2))
    p[:19, 0] = np.arange(1, 20) / 20
    p[19:, 1] = np.arange(1, 20) / 40
    p[:19, 1], p[19:, 0] = 1 - p[:19, 0], 1 - p[19:, 1]
    assert fit_class_thresholds(p, [0] * 19 + [1] * 19, ("a", "b"), 0.9) == pytest.approx([2 / 20, 2 / 40])
    with pytest.raises(UndefinedMetricError, match="at least 19 b images; there are 18"):
        fit_class_thresholds(p[:37], [0] * 19 + [1] * 18, ("a", "b"), 0.95)


def test_class_thresholds_cover_each_class_of_new_images() -> None:
    """Coverage of exchangeable images, over 400 draws: each class by itself, although one of three is rare and hard."""
    random = np.random.default_rng(3)
    covered = np.zeros(3)
    total = np.zeros(3)
    for _ in range(400):
        y = random.choice(3, p=[0.6, 0.3, 0.1], size=400)
        logits = random.normal(size=(400, 3))
        logits[np.arange(400), y] += np.array([3.0, 2.0, 0.5])[y]
        p = softmax(logits)
        thresholds = np.array(fit_class_thresholds(p[:200], y[:200], NAMES, 0.8))
        inside = (p >= thresholds)[np.arange(400), y]
        for k in range(3):
            new = np.flatnonzero(y[200:] == k) + 200
            covered[k] += inside[new].sum()
            total[k] += len(new)
    rates = covered / total
    assert (np.abs(rates - 0.825) < 0.035).all(), rates


def test_set_metrics_count_sets() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], bool)
    found = set_metrics(sets, [0, 0, 1, 2], None)
    assert {name: interval.value for name, interval in found.items()} == {
        "coverage": 0.75,
        "single": 0.25,
        "empty": 0.25,
        "mean_size": 1.25,
    }


# --- paired test -------------------------------------------------------------------------------------------------------


def _second(data, seed: int) -> np.ndarray:
    p, _, _ = data
    return softmax(np.log(p) + np.random.default_rng(seed).normal(scale=0.8, size=p.shape))


@pytest.mark.slow
def test_macro_auroc_difference_is_that_of_scikit_learn_with_the_interval_of_a_bootstrap(data) -> None:
    p, y, patients = data
    q = _second(data, 8)
    interval, probability = macro_auroc_test(log_odds(p), log_odds(q), y, NAMES, patients)

    def difference(rows: np.ndarray) -> float:
        each = (sklearn_metrics.roc_auc_score(y[rows], s[rows], multi_class="ovr") for s in (p, q))
        return next(each) - next(each)

    assert interval.value == pytest.approx(difference(np.arange(N)))
    random = np.random.default_rng(0)
    by_patient = np.arange(N).reshape(-1, 2)
    resampled = [difference(by_patient[random.integers(0, N // 2, N // 2)].ravel()) for _ in range(400)]
    deviation = (interval.high - interval.low) / 2 / 1.96
    assert deviation == pytest.approx(np.std(resampled), rel=0.12)
    assert probability == pytest.approx(math.erfc(abs(interval.value) / deviation / math.sqrt(2)), rel=1e-3)


def test_macro_auroc_covariance_is_that_of_a_bootstrap_of_patients(data) -> None:
    p, y, patients = data
    networks = [p, _second(data, 8), _second(data, 9)]
    rankings = np.stack(list(map(log_odds, networks)))
    areas, covariance = macro_auroc_covariance(rankings, y, NAMES, patient_groups(patients, N))
    expected = [sklearn_metrics.roc_auc_score(y, each, multi_class="ovr") for each in networks]
    assert areas == pytest.approx(expected)
    random = np.random.default_rng(1)
    weights = np.repeat(random.multinomial(N // 2, np.full(N // 2, 2 / N), size=1500), 2, axis=1).astype(float)
    resampled = np.stack([weighted_macro_auroc(log_odds(each), y, weights) for each in networks])
    assert covariance == pytest.approx(np.cov(resampled), rel=0.15)


def test_macro_auroc_covariance_of_two_classes_is_that_of_delong() -> None:
    random = np.random.default_rng(4)
    y = np.repeat(random.integers(0, 2, 20), 2)
    scores = random.normal(size=(3, 40)) + y
    groups = patient_groups([str(i // 2) for i in range(40)], 40)
    areas, covariance = macro_auroc_covariance(np.stack([-scores, scores], axis=2), y, NAMES[:2], groups)
    expected_areas, expected = delong_covariance(scores, y == 1, groups)
    assert areas == pytest.approx(expected_areas)
    assert covariance == pytest.approx(expected)


def test_macro_auroc_alone_has_the_interval_of_all_metrics(data) -> None:
    p, y, patients = data
    found = macro_auroc_interval(p, y, NAMES, patients, resamples=50, seed=3)
    assert found == overall_metrics(p, y, NAMES, patients, resamples=50, seed=3)["macro_auroc"]
    two = y < 2
    only = macro_auroc_interval(p[two], y[two], NAMES, None)
    assert (only.value, only.reason) == (None, "the class virus has no images")


def test_means_over_classes_have_no_interval_if_a_class_has_few_patients(data) -> None:
    p, y, patients = data
    virus = np.flatnonzero(y == 2)
    for kept, interval in ((12, True), (10, False)):  # images of 6 and of 5 patients
        rows = np.concatenate([np.flatnonzero(y < 2), virus[:kept]])
        inside = [patients[i] for i in rows]
        found = overall_metrics(p[rows], y[rows], NAMES, inside, resamples=50)
        for name in ("macro_auroc", "macro_f1"):
            assert (found[name].low is not None) is interval
        assert found["brier"].low is not None
        assert found["macro_auroc"] == macro_auroc_interval(p[rows], y[rows], NAMES, inside, resamples=50)
        expected = sklearn_metrics.roc_auc_score(y[rows], p[rows], multi_class="ovr")
        assert found["macro_auroc"].value == pytest.approx(expected)
    assert (
        found["macro_auroc"].reason
        == "5 patients of the class virus are too few for a bootstrap, which needs 6 of each"
    )


def test_macro_auroc_test_of_two_classes_is_the_delong_test() -> None:
    random = np.random.default_rng(4)
    y = random.integers(0, 2, 400)
    a, b = (random.normal(size=400) + y for _ in range(2))
    expected, p_expected = delong_test(a, b, y == 1)
    found, p = macro_auroc_test(np.stack([-a, a], 1), np.stack([-b, b], 1), y, NAMES[:2])
    assert found.value == pytest.approx(expected.value)
    assert found.low == pytest.approx(expected.low)
    assert p == pytest.approx(p_expected)


def test_macro_auroc_test_keeps_the_images_of_a_patient_together() -> None:
    """Copies of each image are not new evidence: with patients, p stays the same; without, it drops."""
    random = np.random.default_rng(6)
    y = random.integers(0, 3, 150)
    a, b = (random.normal(size=(150, 3)) + s * np.eye(3)[y] for s in (1.3, 1.0))
    single, p = macro_auroc_test(a, b, y, NAMES)
    copies = [np.repeat(each, 4, axis=0) for each in (a, b, y)]
    clustered, p_clustered = macro_auroc_test(*copies, NAMES, [str(i // 4) for i in range(600)])
    assert p_clustered == pytest.approx(p, rel=1e-6)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high))
    assert macro_auroc_test(*copies, NAMES)[1] < p / 2


def test_macro_auroc_is_not_tested_if_a_class_has_few_patients(data) -> None:
    """With one patient, a class would add no variance, and half of the tests without a difference would be significant."""
    p, y, patients = data
    q = _second(data, 8)
    virus = np.flatnonzero(y == 2)
    for kept, reason in (
        (10, "5 patients of the class virus are too few for the variance of the macro AUROC, which needs 6 of each"),
        (1, "1 patient of the class virus is too few for the variance of the macro AUROC, which needs 6 of each"),
        (0, "the class virus has no images"),
    ):
        rows = np.concatenate([np.flatnonzero(y < 2), virus[:kept]])
        with pytest.raises(UndefinedMetricError) as error:
            macro_auroc_test(log_odds(p)[rows], log_odds(q)[rows], y[rows], NAMES, [patients[i] for i in rows])
        assert error.value.message == reason


def test_five_percent_of_tests_without_a_difference_are_significant_if_a_class_is_rare() -> None:
    """Two groups and two networks, with as few images of a class as are tested, 300 times: 5% within three standard errors."""
    random = np.random.default_rng(12)
    y = np.repeat([0, 1, 2], [40, 40, MIN_PATIENTS])
    groups = np.arange(len(y))
    between_groups, between_networks = [], []
    for _ in range(300):
        first, second = random.normal(size=(2, len(y), 3)) + np.eye(3)[y]
        found = [macro_auroc_covariance(scores[None], y, NAMES, groups) for scores in (first, second)]
        areas, variances = ([float(each[part].squeeze()) for each in found] for part in (0, 1))
        between_groups.append(area_heterogeneity(areas, variances))
        between_networks.append(macro_auroc_test(first, second, y, NAMES)[1])
    for p in (between_groups, between_networks):
        assert 0.012 < np.mean(np.array(p) < 0.05) < 0.088


def test_unpaired_difference_of_macro_aurocs_of_two_classes_is_that_of_delong() -> None:
    random = np.random.default_rng(4)
    patients = [str(i // 2) for i in range(60)]
    y = [np.repeat(random.integers(0, 2, 30), 2) for _ in range(2)]
    scores = [random.normal(size=60) + strength * each for strength, each in zip((1.0, 0.4), y, strict=True)]
    areas = [
        macro_auroc_area(np.stack([-x, x], axis=1), each, NAMES[:2], patients)
        for x, each in zip(scores, y, strict=True)
    ]
    found = unpaired_area_difference(*areas)
    expected = unpaired_auroc_difference(*((x, each == 1, patients) for x, each in zip(scores, y, strict=True)))
    assert found.method == "delong, mean of classes, by patient, mover, unpaired"
    assert (expected.method, found.n) == ("delong by patient, mover, unpaired", expected.n)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_a_macro_auroc_of_classes_that_are_separated_perfectly_has_the_interval_of_pairs() -> None:
    y = np.repeat([0, 1, 2], [9, 6, 8])
    found = macro_auroc_area(np.eye(3)[y], y, NAMES)
    expected = wilson(6, 6)
    assert (found.value, found.low, found.high) == (1.0, expected.low, expected.high)
    assert (found.method, found.n) == ("wilson of 6 pairs", 23)


def test_equal_rankings_have_no_test(data) -> None:
    p, y, patients = data
    interval, probability = macro_auroc_test(log_odds(p), 3 * log_odds(p), y, NAMES, patients)
    assert (interval.value, probability, interval.reason) == (0.0, None, "both networks rank the images alike")


def test_softmax_is_that_of_scipy_also_for_large_logits() -> None:
    logits = np.array([[1.0, -2.0, 0.5], [800.0, 799.0, -800.0]])
    np.testing.assert_allclose(softmax(logits, 2.0), special.softmax(logits / 2, axis=1))
