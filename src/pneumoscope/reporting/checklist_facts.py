"""Facts from the record of a comparison that answer items of reporting guidelines, each with its place in the report.

Facts that are not recorded are omitted, so that their items stay open. `SHARED_FACTS` apply to both binary and
multiclass models.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pneumoscope.core.comparison import PairedTest, RunGroup
from pneumoscope.core.image_flow import ImageCount, ImageFlow
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted, of_patients_text
from pneumoscope.core.multiclass_results import MulticlassEvaluation
from pneumoscope.core.result_forms import method_name
from pneumoscope.core.results import Evaluation
from pneumoscope.evaluation.recording import TEST_SPLITS
from pneumoscope.reporting import labels
from pneumoscope.reporting.flow_diagram import excluded_lines
from pneumoscope.runs.record import RunRecord

__all__ = [
    "PLACES",
    "SHARED_FACTS",
    "Fact",
    "by_text",
    "mean_intervals",
    "mean_sentence",
    "paired_tests",
    "selection",
    "single_runs",
]

_Run = TypeVar("_Run", bound="RecordedRun")

# Titles of the sections of the page, by anchor.
PLACES = {
    "images": "Images",
    "metrics": "Metrics",
    "confusion": "Confusion matrices",
    "calibration": "Calibration",
    "net_benefit": "Net benefit",
    "training": "Training",
    "pairs": "Paired tests",
    "subgroups": "Subgroups",
    "differences": "Differences from other images",
    "evidence": "Robustness, shortcuts and heatmaps",
    "classes": "Classes",
    "sets": "Prediction sets",
    "operating_points": "Operating points",
    "runs": "Runs",
    "command": "Command",
}


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact from the record.

    Attributes:
        text: The fact as sentences; "" if it is not recorded.
        place: Anchor of its section in the page.
        ask: Task for the author, such as the command that supplies the fact; "" if nothing is missing.
        origin: Sentence that names the source file, placed after the facts from this file; "" without one.
    """

    text: str
    place: str
    ask: str = ""
    origin: str = ""


class RecordedComparison(Protocol):
    """A binary or multiclass comparison; see `Comparison` and `MulticlassComparison`."""

    @property
    def images(self) -> Mapping[str, Any]: ...
    @property
    def notice(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def evaluation(self) -> str: ...


class RecordedRun(Protocol):
    """One run of a comparison, with its training record if available; see `RunData` and `ComparedClasses`."""

    @property
    def name(self) -> str: ...
    @property
    def record(self) -> RunRecord | None: ...
    @property
    def evaluation(self) -> Evaluation | MulticlassEvaluation: ...


def _noun(runs: Sequence[RecordedRun]) -> str:
    """Return the term for the evaluated images, such as "Validation images"."""
    return labels.images_of(runs[0].evaluation.split).capitalize()


def _source(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    sources = dict.fromkeys(run.evaluation.flow.source for run in runs if run.evaluation.flow)
    if not sources:
        return None
    return Fact(f"{_noun(runs)}: {'; '.join(sources)} (SHA-256 of the images: {c.images['sha256'][:16]}…).", "images")


def _flow(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    """Return the flow of images; of each run if the flows differ, as for folds."""
    sentences = [(run.name, _flow_text(run.evaluation.flow)) for run in runs if run.evaluation.flow]
    if len({sentence for _, sentence in sentences}) > 1:
        return Fact(by_text(sentences), "images")
    return Fact(sentences[0][1], "images") if sentences else None


def _flow_text(flow: ImageFlow) -> str:
    excluded = "; ".join(excluded_lines(flow)) or "none"
    found = []
    if flow.copies:
        found.append(f"{flow.copies:,} {'is' if flow.copies == 1 else 'are'} byte-identical to an earlier one")
    if flow.contradictory:
        has = "has" if flow.contradictory == 1 else "have"
        found.append(f"{flow.contradictory:,} {has} another label elsewhere in the data")
    duplicates = f" Of the evaluated images, {', and '.join(found)}." if found else ""
    return (
        f"Of {counted(flow.labeled.images, 'labeled image')} {_of_patients(flow.labeled)},"
        f" {counted(flow.evaluated.images, 'image')} {_of_patients(flow.evaluated)}"
        f" {'was' if flow.evaluated.images == 1 else 'were'} evaluated; not evaluated: {excluded}.{duplicates}"
    )


def _of_patients(count: ImageCount) -> str:
    return of_patients_text(count.patients, count.unknown_patients, count.images)


def _of_compared_patients(c: RecordedComparison) -> str:
    return of_patients_text(c.images["patients"], c.images.get("unknown_patients"), c.images["n"])


def _labels(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    counts = ", ".join(f"{count:,} {label}" for label, count in c.images["counts"].items())
    return Fact(f"{_noun(runs)}: {counts}, {_of_compared_patients(c)}.", "images")


def _missing(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    return Fact(
        "Every image of the evaluated split has a result: an image that cannot be read, or has no prediction, stops the"
        " evaluation.",
        "images",
    )


def _population(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    return Fact(c.notice, "images")


def _trained(runs: Sequence[RecordedRun], text: Callable[[RecordedRun, RunRecord], str], place: str) -> Fact | None:
    """Return the sentences on the runs with a training record; None without one."""
    sentence = by_text((run.name, f"{text(run, run.record)}.") for run in runs if run.record)
    return Fact(sentence, place) if sentence else None


def by_text(texts: Iterable[tuple[str, str]]) -> str:
    """Return each different text once, after the names of the runs that it applies to.

    Args:
        texts: Name of a run and its text; empty texts are left out.
    """
    names: dict[str, list[str]] = {}
    for name, text in texts:
        if text:
            names.setdefault(text, []).append(name)
    return " ".join(f"{', '.join(each)}: {text}" for text, each in names.items())


def _partition(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    def text(run: RecordedRun, record: RunRecord) -> str:
        counts = [f"{split} {label} {n}" for split, by_label in record.counts.items() for label, n in by_label.items()]
        return f"split by {record.split_by}; images: {', '.join(counts) or 'not recorded'}"

    return _trained(runs, text, "runs")


def _disjoint(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    fact = _trained(
        runs,
        lambda _, record: f"training and validation images were split by {record.split_by}",
        "runs",
    )
    if fact is None or runs[0].evaluation.split not in TEST_SPLITS:
        return fact
    return Fact(
        f"{fact.text} The evaluation would have failed if a test image had been a training or validation image, by content.",
        "runs",
    )


def _model(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    return _trained(
        runs, lambda _, record: f"{record.network}, {record.image_size} x {record.image_size} pixels", "runs"
    )


def _initialization(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    return _trained(runs, lambda _, record: f"initial weights: {record.weights}", "runs")


def _training(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    found = by_text(
        (
            f"{run.name} (seed {record.seed})",
            f"{record.optimizer}, batch {record.batch}, {counted(record.epochs, 'epoch')}; the recipe has all settings.",
        )
        for run in runs
        if (record := run.record)
    )
    return Fact(found, "runs") if found else None


def selection(runs: Sequence[RecordedRun], place: str) -> Fact | None:
    """Return how the weights of each run were selected.

    Args:
        runs: The runs.
        place: Anchor of the section on their training.
    """

    def text(run: RecordedRun, record: RunRecord) -> str:
        epochs = f"epoch {record.best_epoch} of {record.epochs}"
        if run.evaluation.recipe.get("training", {}).get("select") == "last":
            return f"the weights are those of {epochs}, the last one; validation images did not select it"
        return f"{epochs} was selected on validation images"

    return _trained(runs, text, place)


def _software(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    libraries = dict.fromkeys(
        f"{name} {version}" for run in runs if run.record for name, version in run.record.versions.items()
    )
    return Fact(f"pneumoscope {c.version}{', trained with ' + ', '.join(libraries) if libraries else ''}.", "runs")


def _preprocessing(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    return _trained(
        runs,
        lambda _, record: (
            f"gray levels of {record.image_size} x {record.image_size} pixels; the recipe states crop and augmentation"
        ),
        "runs",
    )


def _predictors(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    return _trained(runs, lambda *_: "the only input is the image, and no person reads it", "runs")


def _blinding(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    return _trained(runs, lambda *_: "the model receives the image only, neither label nor clinical data", "runs")


def mean_intervals(groups: Sequence[RunGroup], names: Mapping[str, str]) -> list[tuple[str, Interval]]:
    """Return label and interval of the mean of each metric of groups of runs."""
    return [
        (f"mean {names[key]}", spread.mean) for group in groups for key, spread in group.metrics.items() if key in names
    ]


def paired_tests(pairs: Sequence[PairedTest], names: Mapping[str, str]) -> Fact | None:
    """Return the paired tests of a comparison; None without pairs.

    Args:
        pairs: The tests.
        names: Names of the metrics within a sentence.
    """
    if not pairs:
        return None
    tests = dict.fromkeys(f"{method_name(pair.test)} ({names[pair.metric]})" for pair in pairs)
    return Fact(f"Paired tests: {'; '.join(tests)}; p values are Holm-corrected over the pairs of a metric.", "pairs")


def mean_sentence(group: RunGroup, names: Mapping[str, str]) -> str:
    """Return a sentence with the means and standard deviations of a group; empty if it has none of the metrics.

    Args:
        group: The group.
        names: Labels of the metrics by key.
    """
    means = [f"{title} {spread.text()}" for key, title in names.items() if (spread := group.metrics.get(key))]
    return f"{group.name}, mean of {group.members_text()}: {', '.join(means)}." if means else ""


def single_runs(groups: Sequence[RunGroup], runs: Sequence[_Run]) -> list[_Run]:
    """Return the runs that are not part of a group of seeds or folds."""
    grouped = {name for group in groups for name in group.runs}
    return [run for run in runs if run.name not in grouped]


def _clusters(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    text = f"{counted(c.images['n'], 'image')} {_of_compared_patients(c)}"
    if c.images.get("unknown_patients") == c.images["n"]:
        return Fact(f"{text}: intervals and tests take the images to be independent.", "metrics")
    return Fact(f"{text}: intervals and tests keep the images of a patient together.", "metrics")


def _rejected(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    found = by_text(
        (run.name, f"{run.evaluation.rejected.sentence()}.")
        for run in runs
        if run.evaluation.rejected and run.evaluation.rejected.reasons
    )
    return Fact(found, "images") if found else None


def _internal(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    """Return the evaluation on a split of the runs' own data; None for other images and for models without a run."""
    name = re.sub(r"-[0-9a-f]{8}$", "", c.evaluation)  # the suffix of evaluations with a site profile
    if name != runs[0].evaluation.split or not all(run.record for run in runs):
        return None
    numbers = ", ".join(
        f"{run.name} {run.evaluation.test_evaluation}" for run in runs if run.evaluation.test_evaluation
    )
    ledger = f" Number of the evaluation in the test ledger: {numbers}." if numbers else ""
    return Fact(f"Evaluation {c.evaluation!r} on {counted(c.images['n'], 'image')}.{ledger}", "runs")


def _external(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact | None:
    """Return the evaluation and its differences from a reference on other images; None without a reference."""
    source = next((f" of {run.evaluation.flow.source}" for run in runs if run.evaluation.flow), "")
    differences = [
        f"{run.name}, minus {difference.reference} ({counted(difference.reference_n, 'image')}):"
        f" {', '.join(f'{name} {interval}' for name, interval in difference.named_intervals().items())}."
        for run in runs
        if (difference := run.evaluation.difference)
    ]
    if not differences:
        return None
    text = f"Evaluation {c.evaluation!r} on {counted(c.images['n'], 'image')}{source}."
    return Fact(" ".join([text, *differences]), "differences")


def _predictions(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    sources = "; ".join(
        f"{run.name}: file of predictions {run.evaluation.predictions_sha256[:16]}…"
        if run.evaluation.predictions_sha256
        else f"{run.name}: network file {run.evaluation.bundle_sha256[:16]}…"
        for run in runs
    )
    return Fact(f"By SHA-256: {sources}.", "runs")


def _code(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    if not any(run.record for run in runs):
        return Fact(f"Software: pneumoscope {c.version}.", "command")
    return Fact(f"Software: pneumoscope {c.version}; the recipes of the runs are in the report.", "runs")


def _outputs(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    return Fact(
        "The output for each image is stored in predictions.csv of each evaluation, by the image's SHA-256.", "runs"
    )


SHARED_FACTS: dict[str, Callable[[RecordedComparison, Sequence[RecordedRun]], Fact | None]] = {
    "blinding": _blinding,
    "clusters": _clusters,
    "code": _code,
    "disjoint": _disjoint,
    "external": _external,
    "flow": _flow,
    "initialization": _initialization,
    "internal": _internal,
    "labels": _labels,
    "missing": _missing,
    "model": _model,
    "outputs": _outputs,
    "partition": _partition,
    "population": _population,
    "predictions": _predictions,
    "predictors": _predictors,
    "preprocessing": _preprocessing,
    "rejected": _rejected,
    "software": _software,
    "source": _source,
    "training": _training,
}
