"""Sentences are checked against tests worked with scipy, and against what they must not claim."""

import numpy as np
import pytest
from scipy import stats

from pneumoscope.core.results import Interval
from pneumoscope.evaluation.paired import RunScores, findings, paired_tests, points_text
from pneumoscope.statistics.intervals import wilson

N = 624
LABELS = np.arange(N) < 390
PATIENTS = [f"p{place}" for place in range(N)]


def run(name, wrong, quality=2.0, seed=0):
    """A network that is wrong on the images listed, and ranks with the quality given."""
    correct = np.ones(N, dtype=bool)
    correct[list(wrong)] = False
    logits = np.random.default_rng(seed).normal(size=N) + quality * LABELS
    return RunScores(name, correct, logits)


def test_a_clear_difference_beats():
    a, b = run("good", range(48)), run("bad", range(126), quality=0.5)
    accuracy, auroc = paired_tests([a, b], LABELS, PATIENTS)
    p = stats.binomtest(78, 78).pvalue
    assert accuracy.p == accuracy.p_holm == pytest.approx(p)
    assert (accuracy.verdict, accuracy.metric, accuracy.test) == ("a", "accuracy", "mcnemar, exact")
    low, high = (f"{100 * end:.1f}" for end in (accuracy.difference.low, accuracy.difference.high))
    assert accuracy.sentence == f"good beats bad: accuracy +12.5 points [{low}, {high}], McNemar p < 0.001 after Holm."
    assert auroc.verdict == "a"
    assert auroc.sentence.startswith("good ranks images better than bad: AUROC +0.")


def test_the_winner_is_named_first_and_the_difference_is_his():
    (accuracy, _) = paired_tests([run("bad", range(126)), run("good", range(48))], LABELS, PATIENTS)
    assert accuracy.verdict == "b"
    assert accuracy.difference.value == pytest.approx(-0.125)
    assert accuracy.sentence.startswith("good beats bad: accuracy +12.5 points [")
    low, high = (float(end) for end in accuracy.sentence.partition("[")[2].partition("]")[0].split(", "))
    assert 0 < low < 12.5 < high


def test_a_small_difference_is_not_claimed():
    accuracy, auroc = paired_tests([run("x", range(48)), run("y", range(40, 100), seed=1)], LABELS, PATIENTS)
    p = stats.binomtest(40, 92).pvalue
    assert p > 0.05
    assert accuracy.p == pytest.approx(p)
    assert accuracy.verdict == auroc.verdict == "not distinguishable"
    assert accuracy.sentence.startswith("x and y are not distinguishable by accuracy at n = 624 (+1.9 points [")
    assert accuracy.sentence.endswith(f", McNemar p = {p:.3f} after Holm).")


def test_equal_decisions_are_nothing_to_test():
    same = run("x", range(48))
    accuracy, auroc = paired_tests([same, RunScores("y", same.correct, same.logits * 2)], LABELS, PATIENTS)
    assert accuracy.p is None
    assert accuracy.p_holm is None
    assert auroc.p is None
    assert accuracy.sentence.startswith("x and y are not distinguishable by accuracy at n = 624 (+0.0 points [")
    assert accuracy.sentence.endswith("], nothing to test).")
    assert auroc.sentence == "x and y are not distinguishable by AUROC at n = 624 (+0.000, nothing to test)."


def test_holm_can_take_a_find_back():
    """20 against 38 images: p = 0.02 by itself, and above 0.05 as the smallest of three."""
    a, b, c = run("a", range(20)), run("b", range(100, 138)), run("c", [*range(10), *range(100, 119)])
    alone = paired_tests([a, b], LABELS, PATIENTS)[0]
    together = paired_tests([a, b, c], LABELS, PATIENTS)[0]
    p = stats.binomtest(20, 58).pvalue
    assert alone.p_holm == pytest.approx(p)
    assert alone.verdict == "a"
    assert together.p_holm == pytest.approx(3 * p)
    assert together.verdict == "not distinguishable"


def test_every_pair_is_tested_once_by_each_metric():
    found = paired_tests(
        [run(name, range(k)) for name, k in zip("abcd", (40, 50, 60, 70), strict=True)], LABELS, PATIENTS
    )
    names = [(pair.metric, pair.a, pair.b) for pair in found]
    assert len(names) == len(set(names)) == 12
    assert names[0] == ("accuracy", "a", "b")


def test_images_of_one_patient_are_kept_together():
    """The same images, all of three patients: what was clear is none."""
    a, b = run("good", range(48)), run("bad", range(126))
    three = [f"p{place % 3}" for place in range(N)]
    assert paired_tests([a, b], LABELS, PATIENTS)[0].verdict == "a"
    together = paired_tests([a, b], LABELS, three)[0]
    assert together.verdict == "not distinguishable"
    assert together.p == 0.25


def test_findings_name_the_leader_and_what_is_not_shown():
    runs = [run("a", range(48)), run("b", range(44, 96)), run("c", range(126))]
    pairs = paired_tests(runs, LABELS, PATIENTS)
    accuracies = [wilson(int(r.correct.sum()), N) for r in runs]
    sentences = findings(["a", "b", "c"], accuracies, pairs)
    assert sentences[0] == (
        "Of 3 runs a has the highest accuracy (0.923 [0.899, 0.941]); it is not distinguishable from b."
    )
    assert list(sentences[1:-1]) == [pair.sentence for pair in pairs]
    assert sentences[-1].startswith("Each run is one network from one seed")
    assert "3 pairs a metric" in sentences[-1]


def test_a_leader_alone_at_the_top():
    runs = [run("a", range(10)), run("b", range(100)), run("c", range(126))]
    accuracies = [wilson(int(r.correct.sum()), N) for r in runs]
    assert findings(["a", "b", "c"], accuracies, paired_tests(runs, LABELS, PATIENTS))[0].endswith(
        "; it is distinguishable from every other."
    )


def test_one_run_has_no_findings():
    assert findings(["a"], [wilson(1, 2)], ()) == ()


def test_points_are_hundredths():
    assert points_text(Interval(-0.0125, -0.04, 0.015, "", 624)) == "-1.2 points [-4.0, 1.5]"
    assert points_text(Interval(None, None, None, "", 0, reason="one side has no image")) == "one side has no image"
