"""Check that evaluations can be compared, and build the parts common to all kinds of comparisons."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pneumoscope.core.comparison import RunGroup, RunSummary
from pneumoscope.core.errors import RunError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted
from pneumoscope.core.population import Population
from pneumoscope.core.prediction_messages import population_sentence
from pneumoscope.core.results import SetDifference
from pneumoscope.evaluation.comparison.inputs import ComparedRun, EvaluatedRun, decisions
from pneumoscope.evaluation.metrics import positives
from pneumoscope.statistics.likelihood_ratios import predictive_values

__all__ = [
    "AT_PREVALENCE",
    "check_comparable",
    "check_names",
    "class_difference_sentences",
    "difference_sentences",
    "joint_notice",
    "ledger_sentence",
    "prevalence_sentences",
    "rejection_sentences",
    "summarize_run",
    "with_unique_names",
]

AT_PREVALENCE = "_at_prevalence"  # suffix of metrics at the user-specified prevalence
_MAX_LISTED = 3  # images per message
_Run = TypeVar("_Run", bound=ComparedRun[Any, Any])


def with_unique_names(runs: Sequence[_Run]) -> list[_Run]:
    """Return the runs, with duplicate names replaced by the names of their folders or files."""
    count = Counter(run.name for run in runs)
    return [run if count[run.name] == 1 else dataclasses.replace(run, name=run.folder_name) for run in runs]


def check_names(runs: Sequence[_Run]) -> None:
    """Raise unless all names are unique."""
    name, count = Counter(run.name for run in runs).most_common(1)[0]
    if count > 1:
        folders = ", ".join(str(run.path) for run in runs if run.name == name)
        raise RunError(
            f"{count} runs have the name {name!r} ({folders})",
            hint="Rename the folders: runs of one recipe are distinguished by the names of their folders",
        )


def check_comparable(runs: Sequence[_Run]) -> None:
    """Raise unless names are unique and all runs have the same images, labels and patients."""
    check_names(runs)
    first = runs[0]
    for run in runs[1:]:
        if run.evaluation.images_sha256 != first.evaluation.images_sha256:
            raise RunError(
                f"run {run.name!r} was evaluated on other images than {first.name!r}"
                f" ({run.evaluation.n} and {first.evaluation.n} images, compared by content:"
                f" {_only_in(run, first)}; {_only_in(first, run)})",
                hint="Evaluate both on the same data",
            )
        different = [
            (image, reference)
            for image, reference in zip(run.images, first.images, strict=True)
            if (image.label, image.patient) != (reference.label, reference.patient)
        ]
        if different:
            image, reference = different[0]
            raise RunError(
                f"image {image.path!r} is {image.label} of patient {image.patient!r} in {run.name!r}"
                f" and {reference.label} of patient {reference.patient!r} in {first.name!r}"
                f" ({counted(len(different), 'such image')})",
                hint="Evaluate both on the same data",
            )


def _only_in(a: ComparedRun[Any, Any], b: ComparedRun[Any, Any]) -> str:
    """Return the number of images that only `a` has, with examples."""
    hashes = {image.sha256 for image in b.images}
    only = [image.path for image in a.images if image.sha256 not in hashes]
    examples = ", ".join(map(repr, only[:_MAX_LISTED]))
    return f"{len(only)} only in {a.name!r}{', such as ' + examples if only else ''}"


def summarize_run(run: EvaluatedRun, operating_point: str, prevalence: float | None = None) -> RunSummary:
    """Return a run's row in a comparison, with its metrics at an operating point.

    Args:
        run: The evaluated run.
        operating_point: The operating point.
        prevalence: Prevalence of pneumonia for additional predictive values; None for none.
    """
    result = run.evaluation.operating_points[operating_point]
    stated = {}
    if prevalence is not None:
        patients = [image.patient for image in run.images]
        found = predictive_values(decisions(run.images, result.threshold), positives(run.images), patients, prevalence)
        stated = {f"{name}{AT_PREVALENCE}": interval for name, interval in found.items()}
    fields = (field.name for field in dataclasses.fields(RunSummary) if field.name not in {"name", "test", "confusion"})
    return RunSummary(
        name=run.name,
        **{field: getattr(run.record, field, None) for field in fields},
        test={"n": run.evaluation.n, **result.metrics, **run.evaluation.metrics, **stated},
        confusion=result.confusion,
    )


def prevalence_sentences(
    summaries: Sequence[RunSummary], groups: Sequence[RunGroup], operating_point: str, prevalence: float | None
) -> tuple[str, ...]:
    """Return predictive values at the given prevalence as sentences, for each group's mean and each single run."""
    if prevalence is None:
        return ()
    keys = {f"{name}{AT_PREVALENCE}": name.replace("_", " ") for name in ("precision", "negative_predictive_value")}
    grouped = {name for group in groups for name in group.runs}
    named = [(group.name, {key: spread.text() for key, spread in group.metrics.items()}) for group in groups]
    named += [
        (summary.name, {key: str(interval) for key, interval in summary.intervals().items()})
        for summary in summaries
        if summary.name not in grouped
    ]
    return tuple(
        f"{name}: at a prevalence of {prevalence:g} and the operating point {operating_point}, "
        + ", ".join(f"{text} {values[key]}" if key in values else f"{text} undefined" for key, text in keys.items())
        + "."
        for name, values in named
    )


def difference_sentences(
    runs: Sequence[EvaluatedRun], groups: Sequence[RunGroup], operating_point: str
) -> tuple[str, ...]:
    """Return a sentence for each single run that was also evaluated on other images (`evaluate --reference`).

    It gives the differences of AUROC and, if the thresholds are equal, of sensitivity and specificity at the operating
    point.
    """

    def stated(difference: SetDifference) -> list[tuple[str, Interval]]:
        at_point = difference.operating_points.get(operating_point, {})
        rates = [(f"{key} at {operating_point}", at_point[key]) for key in ("sensitivity", "specificity") if at_point]
        return [("AUROC", difference.metrics["auroc"]), *rates]

    return _difference_sentences(runs, groups, stated)


def class_difference_sentences(runs: Sequence[_Run], groups: Sequence[RunGroup]) -> tuple[str, ...]:
    """Return a sentence for each single multiclass run that was also evaluated on other images.

    It gives the differences of accuracy and macro AUROC.
    """
    return _difference_sentences(
        runs,
        groups,
        lambda found: [("accuracy", found.metrics["accuracy"]), ("macro AUROC", found.metrics["macro_auroc"])],
    )


def _difference_sentences(
    runs: Sequence[_Run],
    groups: Sequence[RunGroup],
    stated: Callable[[SetDifference], Sequence[tuple[str, Interval]]],
) -> tuple[str, ...]:
    """Return the sentences with the differences that `stated` selects."""
    grouped = {name for group in groups for name in group.runs}
    sentences = []
    for run in runs:
        difference: SetDifference | None = run.evaluation.difference
        if run.name in grouped or difference is None:
            continue
        parts = ", ".join(f"{name} {interval:+.3f}" for name, interval in stated(difference))
        remark = f" {difference.remark}" if difference.remark else ""
        sentences.append(
            f"{run.name}, these {counted(run.evaluation.n, 'image')} minus {difference.reference}"
            f" ({counted(difference.reference_n, 'image')}): {parts}.{remark}"
        )
    return tuple(sentences)


def joint_notice(runs: Sequence[_Run]) -> str:
    """Return the notice of the evaluations, with the runs of each population if they differ."""
    notices: list[str] = [run.evaluation.notice for run in runs]
    if len(set(notices)) == 1:
        return notices[0]
    names: dict[str, list[str]] = {}
    for run, notice in zip(runs, notices, strict=True):
        names.setdefault(notice.removeprefix(NOTICE).strip(), []).append(run.name)
    unknown = population_sentence(Population())
    return " ".join(
        (
            NOTICE,
            *(
                f"Training population unknown: {', '.join(of)}."
                if population == unknown
                else f"{', '.join(of)}: {population}"
                for population, of in names.items()
            ),
        )
    )


def rejection_sentences(runs: Sequence[_Run]) -> tuple[str, ...]:
    """Return a sentence for each model that rejects some of the images."""
    return tuple(
        f"{run.name}: {run.evaluation.rejected.sentence()}."
        for run in runs
        if run.evaluation.rejected and run.evaluation.rejected.reasons
    )


def ledger_sentence(runs: Sequence[_Run]) -> tuple[str, ...]:
    """Return a warning if the ledger has more evaluations than there are runs.

    A model may have been selected by the additional evaluations.
    """
    evaluations = max(run.evaluation.test_evaluation or 0 for run in runs)
    if evaluations <= len(runs):
        return ()
    latest = "This" if len(runs) == 1 else f"The latest of the {len(runs)} compared evaluations"
    return (
        f"{latest} is evaluation {evaluations} of these images in the test ledger: results are optimistic if a model was"
        " selected by an earlier evaluation.",
    )
