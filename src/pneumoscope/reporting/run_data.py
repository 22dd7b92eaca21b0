"""Load the runs of a comparison page from their folders and check that their files belong together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pneumoscope.core.comparison import Comparison, RunSummary
from pneumoscope.core.errors import RunError
from pneumoscope.core.messages import counted
from pneumoscope.core.results import Evaluation, ScoredImage
from pneumoscope.evaluation.comparison.inputs import EvaluatedRun
from pneumoscope.evaluation.metrics import positives
from pneumoscope.reporting.run_evidence import RunEvidence, read_run_evidence
from pneumoscope.reporting.style import RunStyle, run_style
from pneumoscope.runs.epochs import Epoch, read_epochs
from pneumoscope.runs.evaluations import read_evaluation, read_predictions
from pneumoscope.runs.record import RunRecord, read_run
from pneumoscope.runs.run_folder import (
    EVALUATION_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    evaluation_folder,
    is_run_folder,
    read_text,
    run_folder_name,
)
from pneumoscope.statistics.inputs import BoolArray, FloatArray

__all__ = ["RunData", "load_run_data", "record_rows", "run_data"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Predictions of one run; arrays of shape (n,).

    Attributes:
        positive: True where pneumonia is present.
        logit: Logits, unbounded.
        score: Scores before calibration, 0 to 1.
        probability: Calibrated probabilities, 0 to 1.
    """

    positive: BoolArray
    logit: FloatArray
    score: FloatArray
    probability: FloatArray


@dataclasses.dataclass(frozen=True)
class RunData:
    """One run of a comparison, or the evaluation of a bundle or a file of predictions.

    Attributes:
        index: Index in the comparison, from 0.
        style: Color and dash pattern in figures.
        summary: Row of the comparison.
        evaluation: The compared evaluation.
        scores: Predictions by image.
        record: Record of the run; None if it is not a run.
        epochs: Epochs of the training; empty if it is not a run.
        recipe: Text of the recipe file; "" if it is not a run.
        evidence: Measurements of its network for the model card.
    """

    index: int
    style: RunStyle
    summary: RunSummary
    evaluation: Evaluation
    scores: Scores
    record: RunRecord | None
    epochs: tuple[Epoch, ...]
    recipe: str
    evidence: RunEvidence

    @property
    def name(self) -> str:
        """Name in the comparison."""
        return self.summary.name


def load_run_data(comparison: Comparison, runs: Sequence[Path]) -> tuple[RunData, ...]:
    """Return the data of a comparison's runs, read from their folders.

    Args:
        comparison: Comparison of these runs.
        runs: Folders in the order of the comparison: run folders, or folders of an evaluation.

    Raises:
        RunError: The number of folders differs, a folder contains another run or an evaluation of other images, or a
            file is missing or malformed.
        BundleError: A measurement for the model card is malformed.
    """
    if len(runs) != len(comparison.runs):
        expected, given = counted(len(comparison.runs), "run"), counted(len(runs), "run folder")
        raise RunError(f"the comparison has {expected}; {given} given")
    data = []
    for index, (summary, folder) in enumerate(zip(comparison.runs, runs, strict=True)):
        is_run = is_run_folder(folder)
        results = evaluation_folder(folder, comparison.evaluation) if is_run else folder
        evaluation = read_evaluation(results / EVALUATION_FILE)
        # Runs with duplicate names, such as those of one recipe, are named after their folders in the comparison.
        if summary.name not in {evaluation.name, run_folder_name(folder)}:
            raise RunError(
                f"{folder} holds run {evaluation.name!r}; the comparison has {summary.name!r} at this position",
                hint="Pass the folders in the order of the comparison",
            )
        # Each fold of a cross-validation has its own images, which `compare` has already checked.
        if not comparison.is_cross_validation and evaluation.images_sha256 != comparison.images["sha256"]:
            raise RunError(
                f"run {summary.name!r} was evaluated on other images ({evaluation.images_sha256[:12]}) than the"
                f" comparison ({comparison.images['sha256'][:12]})",
                hint="Evaluate the run on the same data, then repeat the comparison",
            )
        images = read_predictions(results / PREDICTIONS_FILE)
        if len(images) != evaluation.n:
            raise RunError(
                f"{results / PREDICTIONS_FILE} holds {len(images)} images, but the evaluation has {evaluation.n}"
            )
        record = read_run(folder) if is_run else None
        run = EvaluatedRun(summary.name, run_folder_name(folder), folder, record, evaluation, tuple(images))
        data.append(run_data(index, summary, run, read_run_evidence(folder, results, evaluation)))
    return tuple(data)


def run_data(index: int, summary: RunSummary, run: EvaluatedRun, evidence: RunEvidence | None = None) -> RunData:
    """Return the data of a run of a comparison; epochs and recipe are read from its folder.

    Args:
        index: Index in the comparison, from 0.
        summary: Row of the comparison.
        run: The compared evaluation.
        evidence: Measurements of its network for the model card; none by default.

    Raises:
        RunError: A file of the run is missing or malformed.
    """
    is_run = run.record is not None
    return RunData(
        index=index,
        style=run_style(index),
        summary=summary,
        evaluation=run.evaluation,
        scores=_scores(run.images),
        record=run.record,
        epochs=read_epochs(run.path) if is_run else (),
        recipe=read_text(run.path / RECIPE_FILE) if is_run else "",
        evidence=evidence or RunEvidence(),
    )


def _scores(images: Sequence[ScoredImage]) -> Scores:
    return Scores(
        positive=positives(images),
        **{name: np.array([getattr(image, name) for image in images]) for name in ("logit", "score", "probability")},
    )


def record_rows(record: RunRecord | None) -> list[tuple[str, str]]:
    """Return the record of a run as names and values; empty without a record.

    Nested names are joined by dots. The recipe is omitted, because the page displays its file.
    """
    if record is None:
        return []
    return _flat({name: value for name, value in msgspec.to_builtins(record).items() if name != "recipe"})


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return names and values as text, with nested names joined by dots; empty values and lists are omitted."""
    pairs: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        elif value is not None and value != "" and not isinstance(value, tuple):
            text = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
            pairs.append((prefix + name, text))
    return pairs
