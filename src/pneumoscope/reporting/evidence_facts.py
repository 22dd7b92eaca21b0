"""Facts of the measurements of networks for the items of reporting guidelines: robustness, shortcuts and heatmaps.

A measurement that is missing leaves its item open, with the command that makes it.
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


def _measured(runs: Sequence[RunData], name: str, noun: str, text: Callable[[RunData], str]) -> Fact:
    """Return a sentence for each run that was measured, and for the others what supplies the measurement.

    Args:
        runs: The runs.
        name: Name of the measurement in `bundle.evidence.EVIDENCE`.
        noun: What is measured.
        text: Function that returns the measurement of a run as a sentence; "" without one.
    """
    sentences = {run.name: text(run) for run in runs}
    missing = [run for run in runs if not sentences[run.name]]
    files = [run.name for run in missing if run.evaluation.predictions_sha256]
    networks = [run for run in missing if not run.evaluation.predictions_sha256]
    asks = []
    if networks:
        others = [run.name for run in networks[1:]]
        rest = f"; likewise for {', '.join(others)}" if others else ""
        of_run = f" of {networks[0].name}" if len(runs) > 1 else ""
        asks.append(f"To state {noun}{of_run}, run: {networks[0].evidence.command(name)}{rest}.")
    if files:
        asks.append(f"State {noun} of {', '.join(files)}: predictions of another tool do not show it.")
    return Fact(" ".join(filter(None, sentences.values())), _PLACE, " ".join(asks))


def _robustness(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return _measured(runs, "robustness", "robustness", _robustness_text)


def _robustness_text(run: RunData) -> str:
    found = run.evidence.robustness
    if found is None:
        return ""
    parts = [_most_changed("file formats", found.formats), _most_changed("small changes of the image", found.changes)]
    if found.sizes:
        parts.append(f"{found.sizes.name}: {found.sizes.changed:.1%} (n = {found.sizes.changed.n})")
    probabilities = [each.largest for each in (*found.formats, *found.changes) if each.largest is not None]
    largest = f" Largest change of a probability: {max(probabilities):.3f}." if probabilities else ""
    return (
        f"{run.name}, {_images(found)}, half of them with pneumonia (threshold: {found.operating_point}). Changed decisions,"
        f" {'; '.join(parts)}.{largest} {_origin('robustness.json', run, found)}"
    )


def _most_changed(group: str, variants: Sequence[VariantResult]) -> str:
    worst = max(variants, key=lambda each: each.changed.value or 0)
    return f"highest of {len(variants)} {group}: {worst.changed:.1%} (n = {worst.changed.n}, {worst.name})"


def _unusable(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return _measured(runs, "robustness", "rejections of unusable images", _unusable_text)


def _unusable_text(run: RunData) -> str:
    found = run.evidence.robustness
    if found is None:
        return ""
    rates = "; ".join(f"{each.name} {_rate(each.rejected)}" for each in _rejections(found))
    return f"{run.name}, rejected of unusable images: {rates}. {_origin('robustness.json', run, found)}"


def _rejections(found: Robustness) -> tuple[RejectionResult, ...]:
    return (*found.corruptions, *found.other_images)


def _shortcuts(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return _measured(runs, "shortcuts", "shortcuts", _shortcuts_text)


def _shortcuts_text(run: RunData) -> str:
    found = run.evidence.shortcuts
    if found is None:
        return ""
    controls = "; ".join(f"{each.name} {each.auroc}" for each in found.controls)
    return (
        f"{run.name}, {_images(found)}: AUROC of the whole image {found.whole}; of parts of it: {controls}. With the center"
        f" blanked, 0.5 is chance. {_origin('shortcuts.json', run, found)}"
    )


def _heatmaps(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return _measured(runs, "saliency_check", "whether heatmaps show what the network uses", _heatmaps_text)


def _heatmaps_text(run: RunData) -> str:
    found = run.evidence.heatmaps
    if found is None:
        return ""
    curves = ", ".join(
        f"{name} {curve.improvement}" for name, curve in (("deletion", found.deletion), ("insertion", found.insertion))
    )
    randomized = "; ".join(f"{row.name} {row.correlation}" for row in found.randomization)
    if masks := found.localization:
        where = (
            f" The largest contribution lies inside the mask of the disease on {_rate(masks.peak_inside)} of images;"
            f" {masks.area:.1%} are expected by chance."
        )
    else:
        where = " No expert has marked the disease on these images: it is unknown whether heatmaps lie on it."
    return (
        f"{run.name}, {_images(found)}: improvement over random heatmaps: {curves}. Rank correlation with the heatmaps after"
        f" layers were randomized (near 0 is expected): {randomized}.{where} {_origin('saliency_check.json', run, found)}"
    )


# --- parts of sentences ----------------------------------------------------------------------------------------------


def _images(found: Robustness | Shortcuts | SaliencyCheck) -> str:
    """Return the images of a measurement, such as "n = 400 validation images of 387 patients"."""
    return f"n = {found.n} {found.split} images {of_patients_text(found.patients, found.unknown_patients, found.n)}"


def _rate(rate: Interval) -> str:
    return f"{rate:.1%} (n = {rate.n})"


def _origin(file: str, run: RunData, found: Robustness | Shortcuts | SaliencyCheck) -> str:
    """Return where a measurement comes from, as a sentence."""
    site = ", without the site profile" if run.evaluation.site else ""
    return f"From {file} in the evidence of the bundle (pneumoscope {found.version}{site})."


def _needs_two_labels(c: object, runs: object) -> Fact:
    """Return that a measurement does not exist for several classes."""
    return Fact(
        "",
        "",
        "State it, if it was examined: pneumoscope measures robustness, shortcuts and heatmaps for NORMAL and PNEUMONIA only.",
    )


EVIDENCE_FACTS: dict[str, Callable[[Comparison, Sequence[RunData]], Fact]] = {
    "heatmaps": _heatmaps,
    "robustness": _robustness,
    "shortcuts": _shortcuts,
    "unusable": _unusable,
}
CLASS_EVIDENCE_FACTS: dict[str, Callable[[object, object], Fact]] = dict.fromkeys(EVIDENCE_FACTS, _needs_two_labels)
