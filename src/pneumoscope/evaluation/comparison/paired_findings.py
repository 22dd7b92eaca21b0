"""Paired tests of runs on the same images, and the findings as sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from pneumoscope.core.comparison import PairedTest
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted
from pneumoscope.core.result_forms import format_limit, method_name, with_minus_signs
from pneumoscope.statistics.inputs import BoolArray, FloatArray, patient_groups
from pneumoscope.statistics.intervals import paired_difference, undefined
from pneumoscope.statistics.multiple_testing import holm
from pneumoscope.statistics.paired import delong_test, mcnemar_exact, mcnemar_method
from pneumoscope.statistics.roc import delong_method

__all__ = [
    "ALPHA",
    "AUROCS",
    "PairedResult",
    "RunScores",
    "corrected_tests",
    "findings",
    "make_paired_test",
    "paired_result",
    "paired_tests",
    "percentage_points",
    "training_sentence",
]

ALPHA = 0.05
AUROCS = {"auroc": "AUROC", "macro_auroc": "macro AUROC"}  # metrics that are not fractions of images


@dataclasses.dataclass(frozen=True)
class RunScores:
    """Results of one run; images are in the same order for all runs.

    Attributes:
        name: Name of the run.
        correct: True if the decision at the operating point is correct, shape (n,).
        logits: Logits, shape (n,).
    """

    name: str
    correct: BoolArray
    logits: FloatArray


class PairedResult(NamedTuple):
    """Test of one pair by one metric.

    Attributes:
        difference: Difference with its interval, a minus b.
        p: Uncorrected p-value; None if undefined.
        test: Name of the test.
    """

    difference: Interval
    p: float | None
    test: str


def paired_tests(runs: Sequence[RunScores], labels: BoolArray, patients: Sequence[str]) -> tuple[PairedTest, ...]:
    """Test every pair of runs: accuracy, sensitivity and specificity (exact McNemar tests) and AUROC (DeLong test).

    Sensitivity is tested on the images with pneumonia, specificity on the others. p-values are Holm-corrected over the pairs of
    each metric. All tests account for several images of one patient.

    Args:
        runs: The runs; pairs are formed in this order.
        labels: True for pneumonia, shape (n,).
        patients: Patient identifier of each image.
    """
    pairs = list(combinations(runs, 2))
    names = [(a.name, b.name) for a, b in pairs]
    tests: list[PairedTest] = []
    for metric in ("accuracy", "auroc", "sensitivity", "specificity"):
        tests += corrected_tests(metric, names, [paired_result(metric, a, b, labels, patients) for a, b in pairs])
    return tuple(tests)


def paired_result(metric: str, a: RunScores, b: RunScores, labels: BoolArray, patients: Sequence[str]) -> PairedResult:
    """Return the test of one pair of runs by one metric, uncorrected; see `paired_tests`."""
    if metric == "auroc":
        return PairedResult(*_delong_test(a, b, labels, patients), delong_method(patient_groups(patients, len(labels))))
    among = {"accuracy": np.ones_like(labels), "sensitivity": labels, "specificity": ~labels}[metric]
    inside = [patients[i] for i in np.flatnonzero(among).tolist()]
    test = mcnemar_method(patient_groups(inside, len(inside)))
    return PairedResult(*_mcnemar_test(metric, a.correct[among], b.correct[among], inside), test)


def _mcnemar_test(metric: str, a: BoolArray, b: BoolArray, patients: Sequence[str]) -> tuple[Interval, float | None]:
    """Return the McNemar test; undefined, with the reason, if there are no images."""
    if not len(a):
        reason = f"there is no {'PNEUMONIA' if metric == 'sensitivity' else 'NORMAL'} image"
        return undefined(reason, n=0, method="newcombe, paired"), None
    return paired_difference(a, b, patients), mcnemar_exact(a, b, patients)


def _delong_test(
    a: RunScores, b: RunScores, labels: BoolArray, patients: Sequence[str]
) -> tuple[Interval, float | None]:
    """Return the DeLong test; undefined, with the reason, if a label has fewer than 2 patients."""
    try:
        return delong_test(a.logits, b.logits, labels, patients)
    except UndefinedMetricError as error:
        return undefined(error.message, n=len(labels), method="delong"), None


def corrected_tests(
    metric: str,
    pairs: Sequence[tuple[str, str]],
    results: Sequence[PairedResult],
) -> list[PairedTest]:
    """Return the tests of one metric, with p-values that are Holm-corrected over the pairs.

    Args:
        metric: The metric.
        pairs: Names of the two runs or models of each pair.
        results: Test of each pair.
    """
    corrected = holm([result.p for result in results])
    return [
        make_paired_test(a, b, metric, result.test, result.difference, result.p, p_holm)
        for (a, b), result, p_holm in zip(pairs, results, corrected, strict=True)
    ]


def make_paired_test(
    a: str, b: str, metric: str, test: str, difference: Interval, p: float | None, p_holm: float | None
) -> PairedTest:
    """Return a test with its verdict and its sentence; see `PairedTest` for the arguments."""
    verdict = "not distinguishable"
    # The interval of the accuracy is not derived from the test, and may contain 0 although the test is significant.
    if p_holm is not None and p_holm < ALPHA and difference.value and not _contains_zero(difference):
        verdict = "a" if difference.value > 0 else "b"
    sentence = _sentence(a, b, metric, test, verdict, difference, p_holm)
    return PairedTest(a, b, metric, difference, test, p, p_holm, verdict, sentence)


def _contains_zero(difference: Interval) -> bool:
    return difference.low is None or difference.high is None or difference.low <= 0 <= difference.high


def _sentence(a: str, b: str, metric: str, test: str, verdict: str, difference: Interval, p_holm: float | None) -> str:
    name = AUROCS.get(metric, metric)
    if verdict == "b":
        a, b, difference = b, a, _negate(difference)
    if difference.value is None:
        return f"{a} and {b} cannot be compared in {name}: {difference.reason}."
    amount = _difference_text(difference) if metric in AUROCS else percentage_points(difference)
    if p_holm is None:
        equal = "equal rankings" if metric in AUROCS else "no discordant images"
        without_variance = {
            "obuchowski-rockette": "no variance of seeds and images",
            "nadeau-bengio": "the same difference in all folds",
        }
        result = without_variance.get(test.partition(",")[0], equal)
    else:
        p = "< 0.001" if p_holm < 0.001 else f"= {p_holm:.3f}"
        result = f"{method_name(test)}: p {p}, Holm-corrected"
        if p_holm < ALPHA and verdict == "not distinguishable":
            result += "; the interval contains 0"
    if verdict == "not distinguishable":
        return f"{a} and {b} do not differ significantly in {name}; {a} minus {b}: {amount} (n = {difference.n}; {result})."
    return f"{a} has a higher {name} than {b}: {amount} (n = {difference.n}; {result})."


def _negate(difference: Interval) -> Interval:
    """Return b minus a from a minus b."""
    value, low, high = difference.value, difference.low, difference.high
    return dataclasses.replace(
        difference,
        value=None if value is None else -value,
        low=None if high is None else -high,
        high=None if low is None else -low,
    )


def percentage_points(difference: Interval) -> str:
    """Return a difference of proportions as text, such as "+12.5 percentage points [9.8, 15.2]"."""
    if difference.value is None:
        return difference.reason
    text = f"{100 * difference.value:+.1f} percentage points"
    if difference.low is not None and difference.high is not None:
        text += f" [{format_limit(100 * difference.low, '.1f')}, {format_limit(100 * difference.high, '.1f')}]"
    return with_minus_signs(text)


def _difference_text(difference: Interval) -> str:
    if difference.value is None:
        return difference.reason
    text = f"{difference.value:+.3f}"
    if difference.low is not None and difference.high is not None:
        text += f" [{format_limit(difference.low, '.3f')}, {format_limit(difference.high, '.3f')}]"
    return with_minus_signs(text)


def findings(
    runs: Sequence[str],
    accuracies: Sequence[Interval],
    pairs: Sequence[PairedTest],
    training: str,
    *,
    noun: str = "runs",
) -> tuple[str, ...]:
    """Return the findings of a comparison as sentences: the best run, every pair, and the limits of the comparison.

    Args:
        runs: Names of the runs.
        accuracies: Accuracy of each run, in the same order.
        pairs: Results of `paired_tests` for these runs.
        training: Sentence on the trainings; see `training_sentence`.
        noun: What the runs are called.
    """
    if len(runs) < 2:
        return ()
    tests = sum(pair.metric == "accuracy" for pair in pairs)
    limits = (
        f"{training} Each 95% confidence interval applies to its own pair; the p-values are corrected for"
        f" {counted(tests, 'pair')} per metric. A difference is significant if its corrected p-value is below {ALPHA} and its"
        " interval does not contain 0."
    )
    best = (_best_run(runs, accuracies, pairs, noun),) if len(runs) > 2 else ()
    return (*best, *(pair.sentence for pair in pairs), limits)


def training_sentence(trained: Sequence[bool]) -> str:
    """Return what a difference between single runs applies to.

    Args:
        trained: True for each run whose training is recorded; False for bundles and predictions of other tools.
    """
    if all(trained):
        return (
            "Each run is one training with one seed: a difference between two runs is not necessarily a difference between"
            " their recipes."
        )
    others = "the other models were" if any(trained) else "the models were"
    return f"How {others} trained is unknown; a difference applies to these images."


def _best_run(runs: Sequence[str], accuracies: Sequence[Interval], pairs: Sequence[PairedTest], noun: str) -> str:
    values = [accuracy.value or 0.0 for accuracy in accuracies]
    best = [name for name, value in zip(runs, values, strict=True) if value == max(values)]
    accuracy = accuracies[values.index(max(values))]
    if len(best) == len(runs):
        return f"All {len(runs)} {noun} have the same accuracy, {max(values):.3f}."
    similar = {
        name
        for pair in pairs
        if pair.metric == "accuracy" and pair.verdict == "not distinguishable" and {pair.a, pair.b} & {*best}
        for name in (pair.a, pair.b)
    }
    others = [name for name in runs if name in similar and name not in best]
    significance = (
        f"the difference is not significant for {', '.join(others)}"
        if others
        else "the difference from every other one is significant"
    )
    if len(best) > 1:
        names = f"{', '.join(best[:-1])} and {best[-1]}"
        return f"{names} share the highest accuracy of the {len(runs)} {noun}, {max(values):.3f}; {significance}."
    text = "undefined" if accuracy.value is None else str(accuracy)
    return f"{best[0]} has the highest accuracy of the {len(runs)} {noun}, {text}; {significance}."
