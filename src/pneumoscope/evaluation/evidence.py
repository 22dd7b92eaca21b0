"""Measure a trained model for its model card: robustness, shortcuts, heatmaps and the data, on validation images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pneumoscope.bundle.bundle_folder import read_any_bundle
from pneumoscope.bundle.evidence import evidence_file, is_measured
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.result_forms import to_json
from pneumoscope.data.check import check_data
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.evaluation.robustness import measure_robustness
from pneumoscope.evaluation.saliency.check import check_saliency
from pneumoscope.evaluation.selection import load_images_of_classes
from pneumoscope.evaluation.shortcuts import measure_network_shortcuts
from pneumoscope.runs.run_folder import find_bundle

__all__ = ["measure_evidence"]

_MEASUREMENTS: dict[str, Callable[..., object]] = {
    "robustness": measure_robustness,
    "shortcuts": measure_network_shortcuts,
    "saliency_check": check_saliency,
}


def measure_evidence(
    run: Path,
    data: Path,
    *,
    labels: LabelMapping | None = None,
    command: str = "",
    log: Callable[[str], None] = lambda message: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Measure a finished run for its model card, write the results to `evidence/` in its bundle, and return that folder.

    The measurements are `check_data` of all images and, except for a bundle of several classes, `measure_robustness`,
    `measure_network_shortcuts` and, if the network has heatmaps, `check_saliency` on validation images, with their defaults. No
    test image is scored. Measurements of this network that are there already are kept, so an interrupted call can be repeated;
    the data are checked again.

    Args:
        run: The run folder.
        data: The labeled images of the run.
        labels: Names of columns and labels of the data; those of the run if None.
        command: Command line to record in the results.
        log: Called with a message before each measurement.
        progress: Called with (step, images done, total).

    Raises:
        RunError: The run has no bundle.
        PneumoscopeError: See the functions above.
    """
    bundle = find_bundle(run)
    card, _ = read_any_bundle(bundle)
    folder = evidence_file(bundle, "audit").parent
    log("model card: checking the data")
    audit = check_data(load_images_of_classes(data, labels, run), progress=progress)
    write_atomically(evidence_file(bundle, "audit"), to_json(audit))
    if isinstance(card, MulticlassCard):
        return folder
    for name, measure in _MEASUREMENTS.items():
        if is_measured(bundle, card, name):
            continue
        log(f"model card: {name.replace('_', ' ')}, on validation images")
        try:
            measure(run, data, labels=labels, out=folder, command=command, progress=progress)
        except (BundleError, UsageError) as error:
            if name != "saliency_check":
                raise
            log(f"model card: heatmaps were not checked: {error}")  # there are none, or their cells are too few
    return folder
