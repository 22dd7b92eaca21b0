"""Checklist facts on subgroups and on tests of whether metrics differ between them; see `checklist_facts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pneumoscope.core.results import InteractionTest
from pneumoscope.reporting.checklist_facts import Fact, RecordedComparison, RecordedRun, by_text
from pneumoscope.reporting.labels import CLASS_PAIR_METRICS, PAIR_METRICS

__all__ = ["SUBGROUP_FACTS"]


def _subgroups(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    columns = dict.fromkeys(group.column for run in runs for group in run.evaluation.subgroups)
    return Fact(f"Subgroups by {', '.join(columns)}, each with intervals.", "subgroups") if columns else None


def _heterogeneity(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    text = by_text((run.name, _tests_text(run.evaluation.interactions)) for run in runs)
    return Fact(text, "subgroups") if text else None


def _tests_text(tests: Sequence[InteractionTest]) -> str:
    """Return the findings of the tests; those that cannot be made for the same reason share a sentence."""
    metrics: dict[tuple[str, str], list[str]] = {}
    for test in tests:
        if test.p_holm is None:
            metrics.setdefault((test.column, test.reason), []).append(_metric(test))
    untested = [
        f"A difference in {', '.join(names)} between the groups of {column} cannot be tested: {reason}."
        for (column, reason), names in metrics.items()
    ]
    return " ".join([*(test.sentence for test in tests if test.p_holm is not None), *untested])


def _metric(test: InteractionTest) -> str:
    name = {**PAIR_METRICS, **CLASS_PAIR_METRICS}.get(test.metric, test.metric)
    return f"{name} at {test.operating_point}" if test.operating_point else name


SUBGROUP_FACTS: dict[str, Callable[[RecordedComparison, Sequence[RecordedRun]], Fact | None]] = {
    "heterogeneity": _heterogeneity,
    "subgroups": _subgroups,
}
