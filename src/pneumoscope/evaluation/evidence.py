"""Measure robustness, shortcuts, heatmaps and data of trained models for their model cards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from pneumoscope.evaluation.selection import load_images_of_classes, select_unreserved_images
from pneumoscope.evaluation.shortcuts import measure_network_shortcuts
from pneumoscope.runs.run_folder import find_bundle, run_folder_name

__all__ = ["MEASUREMENTS", "measure_evidence"]

MEASUREMENTS: dict[str, Callable[..., object]] = {
    "robustness": measure_robustness,
    "shortcuts": measure_network_shortcuts,
    "saliency_check": check_saliency,
}


def measure_evidence(
    runs: Sequence[Path],
    data: Path,
    *,
    labels: LabelMapping | None = None,
    command: str = "",
    log: Callable[[str], None] = lambda message: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Measure finished runs for their model cards, and write the results to `evidence/` in each bundle.

    The measurements are `check_data` on all images and, for binary bundles, `measure_robustness`,
    `measure_network_shortcuts` and, if the network has heatmaps, `check_saliency` on validation images, with default
    settings. Test images are never scored. Existing measurements of the same network are kept, so that an interrupted
    call can be repeated; the data is always checked again.

    Args:
        runs: The run folders, trained on the same images.
        data: The labeled images of the runs.
        labels: Names of columns and labels of the data; those of the runs if None.
        command: Command line to record in the results.
        log: Called with a message before each measurement.
        progress: Called with (step, images done, total).

    Raises:
        RunError: A run has no bundle.
        PneumoscopeError: See the functions above.
    """
    log("model card: checking the data")
    audit = to_json(check_data(load_images_of_classes(data, labels, runs[0]), progress=progress))
    for run in runs:
        bundle = find_bundle(run)
        card, _ = read_any_bundle(bundle)
        write_atomically(evidence_file(bundle, "audit"), audit)
        if isinstance(card, MulticlassCard):
            continue
        missing = [name for name in MEASUREMENTS if not is_measured(bundle, card, name)]
        if missing:
            select_unreserved_images(run, data, "validation", labels)  # fail here, not in the heatmap check
        of_run = f"{run_folder_name(run)}: " if len(runs) > 1 else ""
        for name in missing:
            log(f"model card: {of_run}{name.replace('_', ' ')}, on validation images")
            try:
                MEASUREMENTS[name](
                    run,
                    data,
                    labels=labels,
                    out=evidence_file(bundle, name).parent,
                    command=command,
                    progress=progress,
                )
            except (BundleError, UsageError) as error:
                if name != "saliency_check":
                    raise
                # The network has no heatmaps, or its heatmaps cannot be checked.
                log(f"model card: {of_run}heatmaps were not checked: {error}")
