"""The operating point of a comparison or report for which none is given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pneumoscope.data.predictions_file import PredictionColumns
from pneumoscope.evaluation.comparison.cross_validation import OUT_OF_FOLD, is_cross_validation
from pneumoscope.evaluation.comparison.inputs import expand_runs, is_file, is_unscored
from pneumoscope.evaluation.comparison.operating_points import choose_operating_point
from pneumoscope.evaluation.custom_points import FIXED_POINT, is_probability
from pneumoscope.evaluation.evaluate import OPERATING_POINTS
from pneumoscope.runs.evaluations import read_evaluation
from pneumoscope.runs.run_folder import EVALUATION_FILE, evaluation_folder, is_run_folder

__all__ = ["default_operating_point"]


def default_operating_point(
    targets: Iterable[Path],
    evaluation: str,
    *,
    first: str,
    columns: PredictionColumns = PredictionColumns(),  # noqa: B008  immutable
) -> str:
    """Return the operating point of a comparison or report for which none is given.

    If an evaluation is missing, return `first`; reading the evaluation raises the error.

    Args:
        targets: Runs, folders of runs, folders of evaluations, bundles, and files of predictions.
        evaluation: Name of the evaluation of each run.
        first: Preferred operating point: "half" for `compare`, "balanced" for `report`.
        columns: Names of the columns of the files.

    Raises:
        UnknownNameError: See `choose_operating_point`.
    """
    targets = list(targets)
    if any(map(is_cross_validation, targets)):
        evaluation = OUT_OF_FOLD
    runs = expand_runs(targets)
    unscored = [run for run in runs if is_unscored(run)]
    files = {
        str(run): (evaluation_folder(run, evaluation) if is_run_folder(run) else run) / EVALUATION_FILE
        for run in runs
        if run not in unscored
    }
    if not files or not all(file.is_file() for file in files.values()):
        return first
    points = {name: read_evaluation(file).operating_points for name, file in files.items()}
    return choose_operating_point(
        points, first=first, is_possible=lambda name: all(_is_possible(run, name, columns) for run in unscored)
    )


def _is_possible(target: Path, name: str, columns: PredictionColumns) -> bool:
    """Return whether a comparison can evaluate a bundle or file at an operating point."""
    if is_probability(name):
        return True
    return name == FIXED_POINT or bool(columns.split) if is_file(target) else name in OPERATING_POINTS
