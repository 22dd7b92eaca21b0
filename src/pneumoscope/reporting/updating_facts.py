"""Checklist facts on the calibration and updating of models; see `checklist_facts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pneumoscope.core.messages import counted
from pneumoscope.core.results import Evaluation
from pneumoscope.reporting.checklist_facts import Fact, RecordedComparison, RecordedRun

__all__ = ["CALIBRATION_OF_FOLDS", "UPDATING_FACTS", "calibration_fact"]

CALIBRATION_OF_FOLDS = Fact(
    "",
    "metrics",
    "Calibration was fitted on the validation images of each fold and cannot be measured there. Evaluate a run of the recipe"
    " on test images.",
)


def calibration_fact(c: RecordedComparison, text: str, place: str) -> Fact | None:
    """Return how well probabilities are calibrated, with the number of images; None without a text.

    Args:
        c: The comparison.
        text: The metrics as sentences.
        place: Anchor of the section with the metrics.
    """
    return Fact(f"{text} Measured on {counted(c.images['n'], 'image')}.", place) if text else None


def _updating(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    updates = {run.name: _update(run) for run in runs}
    texts = [f"{name}: {update}." for name, update in updates.items() if update]
    others = [name for name, update in updates.items() if update == ""]
    if others:
        texts.append(f"Not updated: {', '.join(others)}.")
    unknown = ", ".join(_unknown(runs))
    ask = f"State whether the probabilities of {unknown} were calibrated: the evaluation does not record it."
    return Fact(" ".join(texts), "runs", ask if unknown else "")


def _results_of_updating(c: RecordedComparison, runs: Sequence[RecordedRun]) -> Fact:
    updated = ", ".join(run.name for run in runs if _update(run))
    if updated:
        return Fact("", "runs", f"State the performance of {updated} before and after the update.")
    if unknown := ", ".join(_unknown(runs)):
        return Fact("", "runs", f"State the performance before and after the update, if {unknown} was updated.")
    return Fact("Not applicable: no model was updated.", "runs")


def _unknown(runs: Sequence[RecordedRun]) -> list[str]:
    return [run.name for run in runs if _update(run) is None]


def _update(run: RecordedRun) -> str | None:
    """Return how a model was updated; "" if it was not, None if this is not recorded."""
    evaluation = run.evaluation
    if isinstance(evaluation, Evaluation) and evaluation.site:
        return f"site profile {evaluation.site}; the report of `accept` states what it changes"
    # The calibration of a bundle is part of the model; predictions are calibrated by `evaluate --calibrate`.
    if not evaluation.predictions_sha256:
        return ""
    if evaluation.calibration is None:
        return None
    if evaluation.calibration.method == "none":
        return ""
    return f"probabilities calibrated on predictions for validation images ({evaluation.calibration.text()})"


UPDATING_FACTS: dict[str, Callable[[RecordedComparison, Sequence[RecordedRun]], Fact]] = {
    "updating": _updating,
    "updating_results": _results_of_updating,
}
