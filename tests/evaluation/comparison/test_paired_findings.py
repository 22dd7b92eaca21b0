"""Paired tests and their sentences, compared with SciPy."""

import numpy as np
import pytest
from scipy import stats

from pneumoscope.core.interval import Interval
from pneumoscope.evaluation.comparison.paired_findings import (
    RunScores,
    findings,
    paired_tests,
    percentage_points,
    training_sentence,
)
from pneumoscope.statistics.intervals import wilson

N = 624
LABELS = np.arange(N) < 390
PATIENTS = [f"p{i}" for i in range(N)]


def run(name, wrong, quality=2.0, seed=0):
    """Return a run with wrong decisions on the given images, and logits whose ranking improves with the quality."""
    correct = np.ones(N, dtype=bool)
    correct[list(wrong)] = False
    logits = np.random.default_rng(seed).normal(size=N) + quality * LABELS
    return RunScores(name, correct, logits)


def test_images_of_one_label_have_no_delong_test():
    runs = [
        RunScores("a", np.array([True, True]), np.array([1.0, 2.0])),
        RunScores("b", np.array([True, False]), np.zeros(2)),
    ]
    accuracy, auroc, *_ = paired_tests(runs, np.array([True, True]), ["p", "q"])
    assert accuracy.difference.value == 0.5
    assert (auroc.difference.value, auroc.p, auroc.verdict) == (None, None, "not distinguishable")
    assert "(PNEUMONIA: 2, NORMAL: 0)" in auroc.difference.reason
    assert auroc.sentence == f"a and b cannot be compared in AUROC: {auroc.difference.reason}."


def test_missing_label_leaves_its_test_undefined():
    runs = [RunScores("a", np.array([True, True]), np.zeros(2)), RunScores("b", np.array([True, False]), np.zeros(2))]
    *_, sensitivity, specificity = paired_tests(runs, np.array([True, True]), ["p", "q"])
    assert sensitivity.difference.value == 0.5
    assert (specificity.difference.value, specificity.p, specificity.difference.n) == (None, None, 0)
    assert specificity.sentence == "a and b cannot be compared in specificity: there is no NORMAL image."


@pytest.mark.parametrize(("metric", "positive"), [("sensitivity", True), ("specificity", False)])
def test_sensitivity_and_specificity_agree_with_the_binomial_test_on_their_images(metric, positive):
    random = np.random.default_rng(5)
    runs = [
        RunScores(name, random.random(N) < share, random.normal(size=N)) for name, share in (("a", 0.9), ("b", 0.8))
    ]
    (pair,) = (pair for pair in paired_tests(runs, LABELS, PATIENTS) if pair.metric == metric)
    a, b = (each.correct[positive == LABELS] for each in runs)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    assert pair.p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    assert pair.difference.value == pytest.approx(a.mean() - b.mean())
    assert pair.difference.n == int((positive == LABELS).sum())
    assert f" {metric}" in pair.sentence
    assert "percentage points" in pair.sentence


def test_significant_difference_names_the_better_run_first():
    a, b = run("good", range(48)), run("bad", range(126), quality=0.5)
    accuracy, auroc, *_ = paired_tests([a, b], LABELS, PATIENTS)
    p = stats.binomtest(78, 78).pvalue
    assert accuracy.p == accuracy.p_holm == pytest.approx(p)
    assert (accuracy.verdict, accuracy.metric, accuracy.test) == ("a", "accuracy", "mcnemar, exact")
    low, high = (f"{100 * end:.1f}" for end in (accuracy.difference.low, accuracy.difference.high))
    assert accuracy.sentence == (
        f"good has a higher accuracy than bad: +12.5 percentage points [{low}, {high}]"
        " (n = 624; McNemar, exact: p < 0.001, Holm-corrected)."
    )
    assert auroc.verdict == "a"
    assert auroc.sentence.startswith("good has a higher AUROC than bad: +0.")


def test_sentence_states_the_difference_of_the_better_run():
    accuracy, *_ = paired_tests([run("bad", range(126)), run("good", range(48))], LABELS, PATIENTS)
    assert accuracy.verdict == "b"
    assert accuracy.difference.value == pytest.approx(-0.125)
    assert accuracy.sentence.startswith("good has a higher accuracy than bad: +12.5 percentage points [")
    low, high = (float(end) for end in accuracy.sentence.partition("[")[2].partition("]")[0].split(", "))
    assert 0 < low < 12.5 < high


def test_small_difference_is_not_significant():
    accuracy, auroc, *_ = paired_tests([run("x", range(48)), run("y", range(40, 100), seed=1)], LABELS, PATIENTS)
    p = stats.binomtest(40, 92).pvalue
    assert p > 0.05
    assert accuracy.p == pytest.approx(p)
    assert accuracy.verdict == auroc.verdict == "not distinguishable"
    assert accuracy.sentence.startswith(
        "x and y do not differ significantly in accuracy; x minus y: +1.9 percentage points ["
    )
    assert accuracy.sentence.endswith(f"(n = 624; McNemar, exact: p = {p:.3f}, Holm-corrected).")


def test_equal_decisions_have_no_p_value():
    same = run("x", range(48))
    accuracy, auroc, *_ = paired_tests([same, RunScores("y", same.correct, same.logits * 2)], LABELS, PATIENTS)
    assert accuracy.p is None
    assert accuracy.p_holm is None
    assert auroc.p is None
    assert accuracy.sentence.startswith(
        "x and y do not differ significantly in accuracy; x minus y: 0.0 percentage points ["
    )
    assert accuracy.sentence.endswith("] (n = 624; no discordant images).")
    assert auroc.sentence == "x and y do not differ significantly in AUROC; x minus y: 0.000 (n = 624; equal rankings)."


def test_holm_correction_can_remove_significance():
    # 20 against 38 discordant images: p = 0.02 alone, and above 0.05 as the smallest of three.
    a, b, c = run("a", range(20)), run("b", range(100, 138)), run("c", [*range(10), *range(100, 119)])
    alone = paired_tests([a, b], LABELS, PATIENTS)[0]
    together = paired_tests([a, b, c], LABELS, PATIENTS)[0]
    p = stats.binomtest(20, 58).pvalue
    assert alone.p_holm == pytest.approx(p)
    assert alone.verdict == "a"
    assert together.p_holm == pytest.approx(3 * p)
    assert together.verdict == "not distinguishable"


def test_every_pair_is_tested_once_per_metric():
    tests = paired_tests(
        [run(name, range(k)) for name, k in zip("abcd", (40, 50, 60, 70), strict=True)], LABELS, PATIENTS
    )
    names = [(pair.metric, pair.a, pair.b) for pair in tests]
    assert len(names) == len(set(names)) == 24
    assert names[0] == ("accuracy", "a", "b")


def test_tests_account_for_several_images_of_one_patient():
    # The same images, but of three patients only.
    a, b = run("good", range(48)), run("bad", range(126))
    three = [f"p{i % 3}" for i in range(N)]
    assert paired_tests([a, b], LABELS, PATIENTS)[0].verdict == "a"
    together = paired_tests([a, b], LABELS, three)[0]
    assert together.verdict == "not distinguishable"
    assert together.p == 0.25


def test_tests_of_repeated_patients_are_named():
    runs = [run("good", range(48)), run("bad", range(126), quality=0.5)]
    pairs = [f"p{i // 2}" for i in range(N)]
    accuracy, auroc, *_ = paired_tests(runs, LABELS, pairs)
    assert accuracy.test == "mcnemar, exact, clustered by patient (permutation)"
    assert "; McNemar, exact, clustered by patient (permutation): p < 0.001, Holm-corrected)." in accuracy.sentence
    assert auroc.test == "delong by patient"
    assert "; DeLong, clustered by patient (Obuchowski): p < 0.001, Holm-corrected)." in auroc.sentence
    assert [pair.test for pair in paired_tests(runs, LABELS, PATIENTS)] == [
        "mcnemar, exact",
        "delong",
        "mcnemar, exact",
        "mcnemar, exact",
    ]


def test_difference_whose_interval_contains_zero_is_not_significant():
    # Six patients favor a, one of them by five images, which widens the interval.
    leads = (1, 1, 1, 1, 1, 5)
    patients = [f"p{i}" for i, lead in enumerate(leads) for _ in range(lead)] + [f"n{i}" for i in range(40)]
    n = len(patients)
    correct = np.arange(n) >= sum(leads)
    logits = np.arange(n, dtype=float)
    runs = [RunScores("a", np.ones(n, dtype=bool), logits), RunScores("b", correct, logits)]
    accuracy = paired_tests(runs, np.arange(n) % 2 == 0, patients)[0]
    assert accuracy.p_holm == 0.03125
    assert accuracy.difference.low < 0 < accuracy.difference.value
    assert accuracy.verdict == "not distinguishable"
    assert accuracy.sentence.startswith("a and b do not differ significantly in accuracy; a minus b: +")
    assert accuracy.sentence.endswith("p = 0.031, Holm-corrected; the interval contains 0).")


def test_findings_state_the_best_run_the_pairs_and_the_limits():
    runs = [run("a", range(48)), run("b", range(44, 96)), run("c", range(126))]
    pairs = paired_tests(runs, LABELS, PATIENTS)
    accuracies = [wilson(int(r.correct.sum()), N) for r in runs]
    sentences = findings(["a", "b", "c"], accuracies, pairs, training_sentence([True] * 3))
    assert sentences[0] == (
        "a has the highest accuracy of the 3 runs, 0.923 [0.899, 0.941]; the difference is not significant for b."
    )
    assert list(sentences[1:-1]) == [pair.sentence for pair in pairs]
    assert sentences[-1].startswith("Each run is one training with one seed")
    assert "3 pairs per metric" in sentences[-1]


def test_findings_state_that_the_best_run_differs_from_all_others():
    runs = [run("a", range(10)), run("b", range(100)), run("c", range(126))]
    accuracies = [wilson(int(r.correct.sum()), N) for r in runs]
    assert findings(["a", "b", "c"], accuracies, paired_tests(runs, LABELS, PATIENTS), training_sentence([True] * 3))[
        0
    ].endswith("; the difference from every other one is significant.")


def test_runs_with_equal_accuracy_share_the_highest():
    def best(*wrong):
        runs = [run(name, images) for name, images in zip("abc", wrong, strict=True)]
        accuracies = [wilson(int(r.correct.sum()), N) for r in runs]
        return findings(
            ["a", "b", "c"], accuracies, paired_tests(runs, LABELS, PATIENTS), training_sentence([True] * 3)
        )[0]

    tie = "a and b share the highest accuracy of the 3 runs, 0.923; the difference "
    assert best(range(48), range(40, 88), range(126)) == tie + "from every other one is significant."
    assert best(range(48), range(40, 88), range(50)) == tie + "is not significant for c."
    assert best(range(48), range(40, 88), range(48)) == "All 3 runs have the same accuracy, 0.923."


def test_single_run_has_no_findings():
    assert findings(["a"], [wilson(1, 2)], (), training_sentence([True])) == ()


def test_percentage_points_are_hundredths():
    assert (
        percentage_points(Interval(-0.0125, -0.04, 0.015, "", 624))
        == "\N{MINUS SIGN}1.2 percentage points [\N{MINUS SIGN}4.0, 1.5]"
    )
    assert (
        percentage_points(Interval(None, None, None, "", 0, reason="one side has no image")) == "one side has no image"
    )


def test_findings_say_nothing_of_a_training_that_is_unknown():
    runs = [run("a", range(48)), run("b", range(126))]
    pairs = paired_tests(runs, LABELS, PATIENTS)
    accuracies = [wilson(int(r.correct.sum()), N) for r in runs]
    limits = {
        trained: findings(["a", "b"], accuracies, pairs, training_sentence(trained))[-1].partition(" Each 95%")[0]
        for trained in ((True, True), (True, False), (False, False))
    }
    assert limits[True, True].startswith("Each run is one training with one seed")
    assert limits[True, False] == (
        "How the other models were trained is unknown; a difference applies to these images."
    )
    assert limits[False, False] == "How the models were trained is unknown; a difference applies to these images."
