"""Checklist facts from measurements of networks: robustness, shortcuts and heatmaps.

A missing measurement leaves its item open, with the command that supplies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pneumoscope.core.comparison import Comparison
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import of_patients_text
from pneumoscope.evaluation.robustness import RejectionResult, Robustness, VariantResult
from pneumoscope.evaluation.saliency.results import SaliencyCheck
from pneumoscope.evaluation.shortcuts import Shortcuts
from pneumoscope.reporting.checklist_facts import Fact
from pneumoscope.reporting.run_data import RunData

__all__ = ["CLASS_EVIDENCE_FACTS", "EVIDENCE_FACTS"]

_PLACE = "evidence"
# Task for the author if a measurement is missing.
_TASKS = {
    "heatmaps": "check the heatmaps",
    "robustness": "state robustness",
    "shortcuts": "state shortcuts",
    "unusable": "state rejections of unusable images",
}
_Measurement = Robustness | Shortcuts | SaliencyCheck


def _measured(
    runs: Sequence[RunData],
    name: str,
    task: str,
    found: Sequence[_Measurement | None],
    text: Callable[[RunData], str],
) -> Fact:
    """Return a sentence for each measured run, and the commands that supply missing measurements.

    Args:
        runs: The runs.
        name: Name of the measurement in `bundle.evidence.EVIDENCE`.
        task: Task for the author if it is missing.
        found: The measurement of each run; None if missing.
        text: Returns the measurement of a run as a sentence; "" if missing.
    """
    sentences = {run.name: text(run) for run in runs}
    missing = [run for run, measurement in zip(runs, found, strict=True) if measurement is None]
    files = [run.name for run in missing if run.evaluation.predictions_sha256]
    networks = [run for run in missing if not run.evaluation.predictions_sha256]
    asks = []
    if networks:
        others = [run.name for run in networks[1:]]
        rest = f"; likewise for {', '.join(others)}" if others else ""
        of_run = f" of {networks[0].name}" if len(runs) > 1 else ""
        asks.append(f"To {task}{of_run}, run: {networks[0].evidence.command(name)}{rest}.")
    if files:
        asks.append(
            f"{task.capitalize()} of {', '.join(files)}: pneumoscope cannot measure this from predictions alone."
        )
    return Fact(
        " ".join(filter(None, sentences.values())), _PLACE, " ".join(asks), _origin(f"{name}.json", runs, found)
    )


def _robustness(c: Comparison, runs: Sequence[RunData]) -> Fact:
    found = [run.evidence.robustness for run in runs]
    return _measured(runs, "robustness", _TASKS["robustness"], found, _robustness_text)


def _robustness_text(run: RunData) -> str:
    found = run.evidence.robustness
    if found is None:
        return ""
    parts = [_most_changed("file formats", found.formats), _most_changed("small changes of the image", found.changes)]
    sizes = (found.sizes,) if found.sizes else ()
    parts += [f"{each.name}: {_rate(each.changed)}" for each in sizes]
    variants = (*found.formats, *found.changes, *sizes)
    probabilities = [each.largest for each in variants if each.largest is not None]
    largest = f" Largest change of a probability: {max(probabilities):.3f}." if probabilities else ""
    return (
        f"{run.name}, {_images(found)}, half of them with pneumonia (threshold: {found.operating_point}). Changed decisions,"
        f" {'; '.join(filter(None, parts))}.{largest}"
    )


def _most_changed(group: str, variants: Sequence[VariantResult]) -> str:
    """Return the highest fraction of changed decisions in a group of variants; "" without variants."""
    if not variants:
        return ""
    worst = max(variants, key=lambda each: (each.changed.value or 0, each.changed.high or 0))
    if not worst.changed.value:
        return f"{len(variants)} {group}: none changed, {_rate(worst.changed)}"
    return f"highest of {len(variants)} {group}: {worst.changed:.1%} (n = {worst.changed.n}, {worst.name})"


def _unusable(c: Comparison, runs: Sequence[RunData]) -> Fact:
    found = [run.evidence.robustness for run in runs]
    return _measured(runs, "robustness", _TASKS["unusable"], found, _unusable_text)


def _unusable_text(run: RunData) -> str:
    rejections = _rejections(run.evidence.robustness)
    rates = "; ".join(f"{each.name} {_rate(each.rejected)}" for each in rejections)
    return f"{run.name}, rejected of unusable images: {rates}." if rates else ""


def _rejections(found: Robustness | None) -> tuple[RejectionResult, ...]:
    return (*found.corruptions, *found.other_images) if found else ()


def _shortcuts(c: Comparison, runs: Sequence[RunData]) -> Fact:
    found = [run.evidence.shortcuts for run in runs]
    return _measured(runs, "shortcuts", _TASKS["shortcuts"], found, _shortcuts_text)


def _shortcuts_text(run: RunData) -> str:
    found = run.evidence.shortcuts
    if found is None:
        return ""
    controls = "; ".join(f"{each.name} {each.auroc}" for each in found.controls)
    return (
        f"{run.name}, {_images(found)}: AUROC of the whole image {found.whole}; with the image changed: {controls}. 0.5 is"
        " chance; far above it with the center blanked, the network can use something other than the lungs."
    )


def _heatmaps(c: Comparison, runs: Sequence[RunData]) -> Fact:
    found = [run.evidence.heatmaps for run in runs]
    return _measured(runs, "saliency_check", _TASKS["heatmaps"], found, _heatmaps_text)


def _heatmaps_text(run: RunData) -> str:
    found = run.evidence.heatmaps
    if found is None:
        return ""
    curves = ", ".join(
        f"{name} {curve.improvement}" for name, curve in (("deletion", found.deletion), ("insertion", found.insertion))
    )
    if masks := found.localization:
        where = (
            f"The largest contribution lies inside the mask of the disease on {_rate(masks.peak_inside)} of images;"
            f" {masks.area:.1%} are expected by chance."
        )
    else:
        where = "No masks of the disease were given, so localization was not measured."
    return (
        f"{run.name}, {_images(found)}: class activation maps (contributions of positions to the logit)."
        f" Improvement over random heatmaps: {curves}. {_randomization_text(found)} {where}"
    )


def _randomization_text(found: SaliencyCheck) -> str:
    """Return the rank correlations after randomization as sentences, those of magnitudes with their baseline."""
    randomized = [row for row in found.randomization if not row.is_baseline]
    signed = "; ".join(f"{row.name} {row.correlation}" for row in randomized)
    magnitudes = "; ".join(f"{row.name} {row.magnitude_correlation}" for row in randomized)
    baseline = [f" {row.magnitude_correlation}" for row in found.randomization if row.is_baseline]
    compared = "".join(
        f" (to be compared with{each}, that of an image of the other label with nothing randomized)"
        for each in baseline
    )
    return (
        f"Rank correlation with the heatmaps after layers were randomized (near 0 is expected): {signed}. Rank correlation of"
        f" their magnitudes{compared}: {magnitudes}."
    )


# --- parts of sentences ----------------------------------------------------------------------------------------------


def _images(found: _Measurement) -> str:
    """Return the images of a measurement, such as "n = 400 validation images of 387 patients"."""
    return f"n = {found.n} {found.split} images {of_patients_text(found.patients, found.unknown_patients, found.n)}"


def _rate(rate: Interval) -> str:
    return f"{rate:.1%} (n = {rate.n})"


def _origin(file: str, runs: Sequence[RunData], found: Sequence[_Measurement | None]) -> str:
    """Return a sentence on the source of the measurements; "" without any."""
    versions: dict[str, list[str]] = {}
    for run, measurement in zip(runs, found, strict=True):
        if measurement is not None:
            site = ", without the site profile" if run.evaluation.site else ""
            versions.setdefault(f"pneumoscope {measurement.version}{site}", []).append(run.name)
    if not versions:
        return ""
    if len(versions) == 1:
        return f"From {file} in the evidence of the bundle ({next(iter(versions))})."
    texts = "; ".join(f"{', '.join(names)}: {version}" for version, names in versions.items())
    return f"From {file} in the evidence of the bundles ({texts})."


def _needs_two_labels(task: str) -> Callable[[object, object], Fact]:
    """Return a function that reports a measurement as unavailable for multiclass models."""
    fact = Fact("", "", f"{task.capitalize()}, if examined: pneumoscope does so for NORMAL and PNEUMONIA only.")
    return lambda c, runs: fact


EVIDENCE_FACTS: dict[str, Callable[[Comparison, Sequence[RunData]], Fact]] = {
    "heatmaps": _heatmaps,
    "robustness": _robustness,
    "shortcuts": _shortcuts,
    "unusable": _unusable,
}
CLASS_EVIDENCE_FACTS: dict[str, Callable[[object, object], Fact]] = {
    name: _needs_two_labels(task) for name, task in _TASKS.items()
}
