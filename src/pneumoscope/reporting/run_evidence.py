"""Read the measurements of networks for a report (robustness, shortcuts and heatmaps), and tabulate them.

They are the measurements of the model card; see `bundle.evidence`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from pneumoscope.bundle.bundle_folder import CARD_FILE
from pneumoscope.bundle.evidence import evidence_command, evidence_file, read_measurement
from pneumoscope.core.errors import BundleError
from pneumoscope.core.interval import Interval
from pneumoscope.core.results import Evaluation
from pneumoscope.evaluation.robustness import Robustness
from pneumoscope.evaluation.saliency.results import SaliencyCheck
from pneumoscope.evaluation.shortcuts import Shortcuts
from pneumoscope.reporting import labels
from pneumoscope.reporting.table_forms import Cell, Table
from pneumoscope.runs.run_folder import BUNDLE_FOLDER, is_run_folder

__all__ = ["RunEvidence", "evidence_tables", "read_run_evidence"]

_BASELINE = "baseline: an image of the other label, nothing randomized"
_Result = TypeVar("_Result", Robustness, Shortcuts, SaliencyCheck)


@dataclasses.dataclass(frozen=True)
class RunEvidence:
    """Measurements of the network of a run; None if missing.

    Attributes:
        run: Run folder; None if it is not a run.
        bundle: Folder of the bundle; None if unknown, as for the evaluation of a bundle in another folder.
        robustness, shortcuts, heatmaps: The measurements.
    """

    run: Path | None = None
    bundle: Path | None = None
    robustness: Robustness | None = None
    shortcuts: Shortcuts | None = None
    heatmaps: SaliencyCheck | None = None

    def command(self, name: str) -> str:
        """Return the command for a measurement, by its name in `bundle.evidence.EVIDENCE`."""
        return evidence_command(name, self.bundle, self.run)


class _MeasuredRun(Protocol):
    """A run with its measurements; see `run_data.RunData`."""

    @property
    def name(self) -> str: ...
    @property
    def evaluation(self) -> Evaluation: ...
    @property
    def evidence(self) -> RunEvidence: ...


def read_run_evidence(folder: Path, results: Path, evaluation: Evaluation) -> RunEvidence:
    """Return the measurements of the evaluated network; those of other networks are ignored.

    Args:
        folder: Run folder, or folder of an evaluation.
        results: Folder of the evaluation.
        evaluation: The evaluation.

    Raises:
        BundleError: A file is not JSON, or has an unexpected structure.
    """
    run = folder if is_run_folder(folder) else None
    bundle = None
    if run is not None:
        bundle = run / BUNDLE_FOLDER
    elif results.name == "evidence" and (results.parent / CARD_FILE).is_file():
        bundle = results.parent  # written by `evaluate --out BUNDLE/evidence`
    if bundle is None or not evaluation.bundle_sha256:
        return RunEvidence()
    sha256 = evaluation.bundle_sha256
    return RunEvidence(
        run,
        bundle,
        robustness=_read(bundle, run, "robustness", sha256, Robustness),
        shortcuts=_read(bundle, run, "shortcuts", sha256, Shortcuts),
        heatmaps=_read(bundle, run, "saliency_check", sha256, SaliencyCheck),
    )


def _read(bundle: Path, run: Path | None, name: str, sha256: str, result_type: type[_Result]) -> _Result | None:
    content = read_measurement(bundle, name, sha256, run)
    try:
        return None if content is None else msgspec.convert(content, result_type)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"the evidence {str(evidence_file(bundle, name))!r} has an unexpected structure ({error})",
            hint=f"Measure again: {evidence_command(name, bundle, run)}",
        ) from error


# --- tables ----------------------------------------------------------------------------------------------------------


def evidence_tables(runs: Sequence[_MeasuredRun]) -> tuple[Table, ...]:
    """Return the non-empty tables of robustness, shortcuts and heatmaps.

    Args:
        runs: The runs of a report.
    """
    return tuple(table for table in (_robustness(runs), _shortcuts(runs), _heatmaps(runs)) if table.rows)


def _robustness(runs: Sequence[_MeasuredRun]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        if (found := run.evidence.robustness) is None:
            continue
        sizes = (found.sizes,) if found.sizes else ()
        rows += [
            (run.name, each.name, "changed decisions", each.changed.n, each.changed, each.largest)
            for each in (*sizes, *found.formats, *found.changes)
        ]
        rows += [
            (run.name, each.name, "rejected", each.rejected.n, each.rejected, None)
            for each in (*found.corruptions, *found.other_images)
        ]
    columns = ("Run", "Images", "Fraction of", "n", "Fraction", "Largest change of the probability")
    caption = (
        "Robustness: decisions that change with the file or the image, and rejected images among those that should be."
    )
    return Table("robustness", caption, columns, tuple(rows), _note(rows, 4))


def _shortcuts(runs: Sequence[_MeasuredRun]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        if (found := run.evidence.shortcuts) is None:
            continue
        rows.append((run.name, "whole image", found.n, found.whole, None))
        rows += [(run.name, each.name, found.n, each.auroc, each.difference) for each in found.controls]
    columns = ("Run", "The network sees", "n", "AUROC", "Difference from the whole image")
    caption = "Shortcuts: AUROC of the network on whole images and with each image changed; 0.5 is chance."
    return Table("shortcuts", caption, columns, tuple(rows), _note(rows, 3))


def _heatmaps(runs: Sequence[_MeasuredRun]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        if (found := run.evidence.heatmaps) is None:
            continue
        for name, curve in (("deletion", found.deletion), ("insertion", found.insertion)):
            rows += [
                (run.name, f"{name}, area under the curve", curve.heatmap.n, curve.heatmap),
                (run.name, f"{name}, area for random heatmaps", curve.random.n, curve.random),
                (run.name, f"{name}, improvement over random heatmaps", curve.improvement.n, curve.improvement),
            ]
        for name, each in _correlations(found):
            rows.append((run.name, name, each.n, each))
        if masks := found.localization:
            rows += [
                (run.name, "largest contribution inside the mask of the disease", masks.n, masks.peak_inside),
                (run.name, "positive contributions inside the mask", masks.n, masks.energy_inside),
                (run.name, "area of the mask, which is expected by chance", masks.n, masks.area),
            ]
    caption = (
        "Heatmaps: deletion (lower is better) and insertion (higher is better), and rank correlation with the heatmaps after"
        " layers were randomized (near 0 is expected). Correlations of magnitudes are to be compared with the baseline."
    )
    return Table("heatmaps", caption, ("Run", "Check", "n", "Value"), tuple(rows), _note(rows, 3))


def _correlations(found: SaliencyCheck) -> list[tuple[str, Interval]]:
    """Return the rank correlations of heatmaps before and after randomization, with their names."""
    rows = [
        (
            _BASELINE if row.is_baseline else f"randomized: {row.name}",
            row.correlation,
            row.magnitude_correlation,
        )
        for row in found.randomization
    ]
    return [
        *((f"rank correlation, {name}", correlation) for name, correlation, _ in rows),
        *((f"rank correlation of magnitudes, {name}", magnitude) for name, _, magnitude in rows),
    ]


def _note(rows: Iterable[Sequence[Cell]], column: int) -> str:
    return labels.interval_note(("value", cell) for row in rows if isinstance(cell := row[column], Interval))
