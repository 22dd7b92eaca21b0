"""Each pair of runs on the same images: tests, intervals, and the sentences that they allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations

from pneumoscope.core.results import Interval, PairedTest
from pneumoscope.statistics.inputs import BoolArray, FloatArray
from pneumoscope.statistics.intervals import paired_difference
from pneumoscope.statistics.paired import delong_test, holm, mcnemar_exact

__all__ = ["ALPHA", "RunScores", "findings", "paired_tests", "points_text"]

ALPHA = 0.05
_WORDS = {"accuracy": ("beats", "accuracy", "McNemar"), "auroc": ("ranks images better than", "AUROC", "DeLong")}


@dataclasses.dataclass(frozen=True)
class RunScores:
    """What one run said of the images, in the order that all runs share.

    Attributes:
        name: of the run.
        correct: True where the image is called correctly at the operating point, shape (n,).
        logits: shape (n,).
    """

    name: str
    correct: BoolArray
    logits: FloatArray


def paired_tests(runs: Sequence[RunScores], labels: BoolArray, patients: Sequence[str]) -> tuple[PairedTest, ...]:
    """Every pair by accuracy (McNemar) and then by AUROC (DeLong), p values corrected by Holm within each metric.

    Args:
        runs: in the order that pairs are named in.
        labels: True where pneumonia is present, shape (n,).
        patients: a key an image; images of one patient are kept together by both tests.
    """
    pairs = list(combinations(runs, 2))
    by_accuracy = [
        (
            paired_difference(a.correct, b.correct, patients),
            mcnemar_exact(a.correct, b.correct, patients),
        )
        for a, b in pairs
    ]
    by_auroc = [delong_test(a.logits, b.logits, labels, patients) for a, b in pairs]
    found = []
    for metric, test, results in (
        ("accuracy", "mcnemar, exact", by_accuracy),
        ("auroc", "delong", by_auroc),
    ):
        corrected = holm([p for _, p in results])
        for (a, b), (difference, p), p_holm in zip(pairs, results, corrected, strict=True):
            found.append(_paired(a.name, b.name, metric, test, difference, p, p_holm))
    return tuple(found)


def _paired(
    a: str, b: str, metric: str, test: str, difference: Interval, p: float | None, p_holm: float | None
) -> PairedTest:
    verdict = "not distinguishable"
    if p_holm is not None and p_holm < ALPHA and difference.value:
        verdict = "a" if difference.value > 0 else "b"
    sentence = _sentence(a, b, metric, verdict, difference, p_holm)
    return PairedTest(a, b, metric, difference, test, p, p_holm, verdict, sentence)


def _sentence(a: str, b: str, metric: str, verdict: str, difference: Interval, p_holm: float | None) -> str:
    beats, noun, test = _WORDS[metric]
    if verdict == "b":
        a, b, difference = b, a, _turned(difference)
    amount = points_text(difference) if metric == "accuracy" else _shares_text(difference)
    tested = "nothing to test" if p_holm is None else f"{test} p {_p_text(p_holm)} after Holm"
    if verdict == "not distinguishable":
        return f"{a} and {b} are not distinguishable by {noun} at n = {difference.n} ({amount}, {tested})."
    return f"{a} {beats} {b}: {noun} {amount}, {tested}."


def _turned(difference: Interval) -> Interval:
    """b minus a from a minus b."""
    value, low, high = difference.value, difference.low, difference.high
    return dataclasses.replace(
        difference,
        value=None if value is None else -value,
        low=None if high is None else -high,
        high=None if low is None else -low,
    )


def points_text(difference: Interval) -> str:
    """A difference of two shares in percentage points: "+12.5 points [9.8, 15.2]"."""
    if difference.value is None:
        return difference.reason
    if difference.low is None or difference.high is None:
        return f"{100 * difference.value:+.1f} points"
    return f"{100 * difference.value:+.1f} points [{100 * difference.low:.1f}, {100 * difference.high:.1f}]"


def _shares_text(difference: Interval) -> str:
    if difference.value is None:
        return difference.reason
    if difference.low is None or difference.high is None:
        return f"{difference.value:+.3f}"
    return f"{difference.value:+.3f} [{difference.low:.3f}, {difference.high:.3f}]"


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def findings(runs: Sequence[str], accuracies: Sequence[Interval], pairs: Sequence[PairedTest]) -> tuple[str, ...]:
    """What the comparison found, in words: the leader, every pair, and what it does not show.

    Args:
        runs: names.
        accuracies: of each, in the same order.
        pairs: from `paired_tests` on these runs.
    """
    if len(runs) < 2:
        return ()
    tests = sum(pair.metric == "accuracy" for pair in pairs)
    caution = (
        "Each run is one network from one seed: a difference is between these networks and need not be one between"
        " their recipes. Every 95% interval stands for its pair alone; the p values are corrected for"
        f" {tests} {'pairs' if tests > 1 else 'pair'} a metric."
    )
    leader = (_leader(runs, accuracies, pairs),) if len(runs) > 2 else ()
    return (*leader, *(pair.sentence for pair in pairs), caution)


def _leader(runs: Sequence[str], accuracies: Sequence[Interval], pairs: Sequence[PairedTest]) -> str:
    """The run of highest accuracy, and which others it cannot be told from."""
    place = max(range(len(runs)), key=lambda run: accuracies[run].value or 0.0)
    name, accuracy = runs[place], accuracies[place]
    alike = [
        pair.b if pair.a == name else pair.a
        for pair in pairs
        if pair.metric == "accuracy" and name in (pair.a, pair.b) and pair.verdict == "not distinguishable"
    ]
    rest = f"not distinguishable from {', '.join(alike)}" if alike else "distinguishable from every other"
    return f"Of {len(runs)} runs {name} has the highest accuracy ({_share(accuracy)}); it is {rest}."


def _share(interval: Interval) -> str:
    if interval.value is None or interval.low is None or interval.high is None:
        return interval.reason
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
