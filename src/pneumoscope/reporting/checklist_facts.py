"""Facts of the record of a comparison for the items of reporting guidelines, each with its place in the report.

A fact that the record does not have is left out, so that its item stays open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from pneumoscope.core.comparison import Comparison, RunGroup
from pneumoscope.core.image_flow import ImageCount
from pneumoscope.core.messages import counted, of_patients_text
from pneumoscope.core.result_forms import method_name
from pneumoscope.reporting import labels
from pneumoscope.reporting.flow_diagram import excluded_lines
from pneumoscope.reporting.run_data import RunData

__all__ = ["FACTS", "PLACES", "Fact"]

# Sections of the page, by their anchors.
PLACES = {
    "images": "Test images",
    "metrics": "Metrics",
    "confusion": "Confusion matrices",
    "calibration": "Calibration",
    "net_benefit": "Net benefit",
    "training": "Training",
    "pairs": "Paired tests",
    "subgroups": "Subgroups",
    "operating_points": "Operating points",
    "runs": "Runs",
    "command": "Command",
}


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact of the record.

    Attributes:
        text: The fact as sentences.
        place: Anchor of its section in the page.
    """

    text: str
    place: str


def _source(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    sources = dict.fromkeys(run.evaluation.flow.source for run in runs if run.evaluation.flow)
    if not sources:
        return None
    return Fact(f"Test images: {'; '.join(sources)} (SHA-256 of the images: {c.images['sha256'][:16]}…).", "images")


def _flow(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    flow = runs[0].evaluation.flow
    if flow is None:
        return None
    excluded = "; ".join(excluded_lines(flow)) or "none"
    found = []
    if flow.copies:
        found.append(f"{flow.copies:,} {'is' if flow.copies == 1 else 'are'} byte-identical to an earlier one")
    if flow.contradictory:
        has = "has" if flow.contradictory == 1 else "have"
        found.append(f"{flow.contradictory:,} {has} another label elsewhere in the data")
    duplicates = f" Of the evaluated images, {', and '.join(found)}." if found else ""
    return Fact(
        f"Of {counted(flow.labeled.images, 'labeled image')} {_of_patients(flow.labeled)},"
        f" {flow.evaluated.images:,} {_of_patients(flow.evaluated)} were evaluated; not evaluated: {excluded}.{duplicates}",
        "images",
    )


def _of_patients(count: ImageCount) -> str:
    return of_patients_text(count.patients, count.unknown_patients, count.images)


def _of_compared_patients(c: Comparison) -> str:
    return of_patients_text(c.images["patients"], c.images.get("unknown_patients"), c.images["n"])


def _labels(c: Comparison, runs: Sequence[RunData]) -> Fact:
    counts = ", ".join(f"{count:,} {label}" for label, count in c.images["counts"].items())
    return Fact(f"Test images: {counts}, {_of_compared_patients(c)}.", "images")


def _missing(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return Fact(
        "Every image of the evaluated split has a result: an image that cannot be read, or has no prediction, stops the"
        " evaluation.",
        "images",
    )


def _population(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return Fact(c.notice, "images")


def _trained(runs: Sequence[RunData], text: Callable[[RunData, dict[str, str]], str], place: str) -> Fact | None:
    """Return one sentence for each run whose training is recorded; None without one."""
    sentences = [f"{run.summary.name}: {text(run, dict(run.facts))}." for run in runs if run.facts]
    return Fact(" ".join(sentences), place) if sentences else None


def _partition(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    def text(run: RunData, facts: dict[str, str]) -> str:
        counts = [
            f"{key.removeprefix('counts.').replace('.', ' ')} {value}"
            for key, value in facts.items()
            if key.startswith("counts.")
        ]
        return f"split by {facts.get('split_by', 'unknown')}; images: {', '.join(counts) or 'not recorded'}"

    return _trained(runs, text, "runs")


def _disjoint(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    def text(run: RunData, facts: dict[str, str]) -> str:
        return f"training and validation images were split by {facts.get('split_by', 'unknown')}"

    fact = _trained(runs, text, "runs")
    if fact is None:
        return None
    return Fact(f"{fact.text} Test images that were training or validation images, by content, are an error.", "runs")


def _model(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    return _trained(
        runs,
        lambda run, _: f"{run.summary.network}, {run.summary.image_size} x {run.summary.image_size} pixels",
        "runs",
    )


def _initialization(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    return _trained(runs, lambda run, _: f"initial weights: {run.summary.weights}", "runs")


def _training(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    def text(run: RunData, _: dict[str, str]) -> str:
        s = run.summary
        return f"{s.optimizer}, batch {s.batch}, {counted(s.epochs or 0, 'epoch')}, seed {s.seed}; the recipe has all settings"

    return _trained(runs, text, "runs")


def _selection(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    def text(run: RunData, _: dict[str, str]) -> str:
        epochs = f"epoch {run.summary.best_epoch} of {run.summary.epochs}"
        if run.evaluation.recipe.get("training", {}).get("select") == "last":
            return f"the weights are those of {epochs}, the last one; validation images did not select it"
        return f"{epochs} was selected on validation images"

    return _trained(runs, text, "training")


def _software(c: Comparison, runs: Sequence[RunData]) -> Fact:
    libraries = dict.fromkeys(
        f"{name.removeprefix('versions.')} {value}"
        for run in runs
        for name, value in run.facts
        if name.startswith("versions.")
    )
    return Fact(f"pneumoscope {c.version}{', trained with ' + ', '.join(libraries) if libraries else ''}.", "runs")


def _preprocessing(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    return _trained(
        runs,
        lambda run, _: (
            f"gray levels of {run.summary.image_size} x {run.summary.image_size} pixels; the recipe states crop and augmentation"
        ),
        "runs",
    )


def _predictors(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    return _trained(runs, lambda *_: "the only input is the image, and no person reads it", "runs")


def _blinding(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    return _trained(runs, lambda *_: "the model receives the image only, neither label nor clinical data", "runs")


def _metrics(c: Comparison, runs: Sequence[RunData]) -> Fact:
    names = [label for key, label in labels.METRICS.items() if all(key in run.summary.test for run in runs)]
    return Fact(f"{', '.join(names)}; decision curves and reliability diagrams.", "metrics")


def _uncertainty(c: Comparison, runs: Sequence[RunData]) -> Fact:
    intervals = [
        (label, run.summary.test[key])
        for run in runs
        for key, label in labels.METRICS.items()
        if key in run.summary.test
    ]
    return Fact(labels.interval_note(intervals), "metrics")


def _tests(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    if not c.pairs:
        return None
    tests = dict.fromkeys(f"{method_name(pair.test)} ({labels.PAIR_METRICS[pair.metric]})" for pair in c.pairs)
    return Fact(f"Paired tests: {'; '.join(tests)}; p values are Holm-corrected over the pairs of a metric.", "pairs")


def _performance(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return Fact(_of_runs(c, runs, ("auroc", "auprc", "brier")), "metrics")


def _accuracy(c: Comparison, runs: Sequence[RunData]) -> Fact:
    text = _of_runs(c, runs, ("sensitivity", "specificity", "precision", "negative_predictive_value"))
    return Fact(f"At the operating point {c.operating_point}: {text}", "metrics")


def _calibration(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    keys = ("calibration_slope", "calibration_intercept", "observed_expected_ratio")
    text = _of_runs(c, runs, keys)
    return Fact(text, "calibration") if text else None


def _of_runs(c: Comparison, runs: Sequence[RunData], keys: Sequence[str]) -> str:
    """Return the metrics of each run as sentences; empty if an evaluation lacks one.

    Of several seeds or folds only the mean and its spread are stated: one of them alone may be better by chance.
    """
    if not all(key in run.summary.test for run in runs for key in keys):
        return ""
    sentences = [
        f"{group.name}, mean of {group.members_text()}: {', '.join(_spread(group, key) for key in keys if key in group.metrics)}."
        for group in c.groups
        if any(key in group.metrics for key in keys)
    ]
    sentences += [
        f"{run.summary.name}: {', '.join(f'{labels.METRICS[key]} {run.summary.test[key]}' for key in keys)}."
        for run in _single_runs(c, runs)
    ]
    return " ".join(sentences)


def _spread(group: RunGroup, key: str) -> str:
    spread = group.metrics[key]
    return f"{labels.METRICS[key]} {spread.mean} (standard deviation {spread.sd:.4f})"


def _single_runs(c: Comparison, runs: Sequence[RunData]) -> list[RunData]:
    """Return the runs that are not one of several seeds or folds."""
    grouped = {name for group in c.groups for name in group.runs}
    return [run for run in runs if run.summary.name not in grouped]


def _utility(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return Fact("Decision curves of all runs.", "net_benefit")


def _confusion(c: Comparison, runs: Sequence[RunData]) -> Fact:
    text = " ".join(
        f"{run.summary.name}: {m.tp} true positives, {m.fn} false negatives, {m.tn} true negatives, {m.fp} false positives."
        for run in _single_runs(c, runs)
        for m in (run.summary.confusion,)
    )
    groups = " ".join(f"{group.name}: one matrix for each of {group.members_text()}." for group in c.groups)
    return Fact(" ".join(filter(None, (groups, text))), "confusion")


def _thresholds(c: Comparison, runs: Sequence[RunData]) -> Fact:
    text = " ".join(
        f"{run.summary.name}: {'; '.join(f'{name} at {point.threshold_text()} ({point.rule})' for name, point in points)}."
        for run in runs
        for points in (run.evaluation.operating_points.items(),)
    )
    return Fact(f"{text} None was chosen on the evaluated images.", "operating_points")


def _output(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return Fact("A probability of pneumonia, 0 to 1, and a decision at each operating point.", "operating_points")


def _subgroups(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    columns = dict.fromkeys(group.column for run in runs for group in run.evaluation.subgroups)
    return Fact(f"Subgroups by {', '.join(columns)}, each with intervals.", "subgroups") if columns else None


def _heterogeneity(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    sentences = [f"{run.summary.name}: {test.sentence}" for run in runs for test in run.evaluation.interactions]
    return Fact(" ".join(sentences), "subgroups") if sentences else None


def _clusters(c: Comparison, runs: Sequence[RunData]) -> Fact:
    text = f"{counted(c.images['n'], 'image')} {_of_compared_patients(c)}"
    if c.images.get("unknown_patients") == c.images["n"]:
        return Fact(f"{text}: intervals and tests take the images to be independent.", "metrics")
    return Fact(f"{text}: intervals and tests keep the images of a patient together.", "metrics")


def _rejected(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    sentences = [
        f"{run.summary.name}: {run.evaluation.rejected.sentence()}."
        for run in runs
        if run.evaluation.rejected and run.evaluation.rejected.reasons
    ]
    return Fact(" ".join(sentences), "images") if sentences else None


def _internal(c: Comparison, runs: Sequence[RunData]) -> Fact:
    numbers = ", ".join(
        f"{run.summary.name} {run.evaluation.test_evaluation}" for run in runs if run.evaluation.test_evaluation
    )
    ledger = f" Number of the evaluation in the test ledger: {numbers}." if numbers else ""
    return Fact(f"Evaluation {c.evaluation!r} on {counted(c.images['n'], 'image')}.{ledger}", "runs")


def _predictions(c: Comparison, runs: Sequence[RunData]) -> Fact:
    sources = "; ".join(
        f"{run.summary.name}: file of predictions {run.evaluation.predictions_sha256[:16]}…"
        if run.evaluation.predictions_sha256
        else f"{run.summary.name}: network file {run.evaluation.bundle_sha256[:16]}…"
        for run in runs
    )
    return Fact(f"By SHA-256: {sources}.", "runs")


def _updating(c: Comparison, runs: Sequence[RunData]) -> Fact:
    sites = [f"{run.summary.name}: site profile {run.evaluation.site}" for run in runs if run.evaluation.site]
    return Fact(f"{'; '.join(sites)}." if sites else "No model was updated by a site profile.", "runs")


def _code(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return Fact(f"Software: pneumoscope {c.version}; command and recipes are in the report.", "command")


def _outputs(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return Fact(
        "The output for each image is stored in predictions.csv of each evaluation, by the image's SHA-256.", "runs"
    )


FACTS: dict[str, Callable[[Comparison, Sequence[RunData]], Fact | None]] = {
    "accuracy": _accuracy,
    "blinding": _blinding,
    "calibration": _calibration,
    "clusters": _clusters,
    "code": _code,
    "confusion": _confusion,
    "disjoint": _disjoint,
    "flow": _flow,
    "heterogeneity": _heterogeneity,
    "initialization": _initialization,
    "internal": _internal,
    "labels": _labels,
    "metrics": _metrics,
    "missing": _missing,
    "model": _model,
    "output": _output,
    "outputs": _outputs,
    "partition": _partition,
    "performance": _performance,
    "population": _population,
    "predictions": _predictions,
    "predictors": _predictors,
    "preprocessing": _preprocessing,
    "rejected": _rejected,
    "selection": _selection,
    "software": _software,
    "source": _source,
    "subgroups": _subgroups,
    "tests": _tests,
    "thresholds": _thresholds,
    "training": _training,
    "uncertainty": _uncertainty,
    "updating": _updating,
    "utility": _utility,
}
