"""The data of a comparison page: each run of a comparison with the files of its folder, checked for consistency."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pneumoscope.core.errors import RunError
from pneumoscope.core.results import Comparison, Evaluation, RunSummary
from pneumoscope.evaluation.metrics import positives
from pneumoscope.reporting.style import RunStyle, run_style
from pneumoscope.runs.epochs import Epoch, read_epochs
from pneumoscope.runs.evaluations import read_evaluation, read_predictions
from pneumoscope.runs.record import RunRecord, read_run
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE, RECIPE_FILE, evaluation_folder, read_text
from pneumoscope.statistics.inputs import BoolArray, FloatArray

__all__ = ["RunData", "load_run_data"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Labels and outputs of one run for each image; arrays of shape (n,).

    Attributes:
        positive: True for pneumonia.
        logit: Logit, for rankings.
        score: Sigmoid of the logit before calibration, 0 to 1.
        probability: Calibrated probability, 0 to 1.
    """

    positive: BoolArray
    logit: FloatArray
    score: FloatArray
    probability: FloatArray


@dataclasses.dataclass(frozen=True)
class RunData:
    """One run of a comparison.

    Attributes:
        index: Position in the comparison, from 0.
        look: Color and line style.
        summary: Summary in the comparison.
        evaluation: Evaluation on the test images.
        scores: Outputs for the test images.
        epochs: Metrics of the training epochs.
        recipe: Text of the recipe file.
        facts: Names and values of the run record without the recipe; nested names are joined by dots.
    """

    index: int
    look: RunStyle
    summary: RunSummary
    evaluation: Evaluation
    scores: Scores
    epochs: tuple[Epoch, ...]
    recipe: str
    facts: tuple[tuple[str, str], ...]


def load_run_data(comparison: Comparison, runs: Sequence[Path]) -> tuple[RunData, ...]:
    """Read the run folders of a comparison.

    Args:
        comparison: The comparison of these runs.
        runs: The run folders, in the order of the comparison.

    Raises:
        RunError: The number of folders differs, a folder has another run or an evaluation on other images, or a file is missing
            or malformed.
    """
    if len(runs) != len(comparison.runs):
        raise RunError(f"the comparison has {len(comparison.runs)} runs, but {len(runs)} folders were given")
    loaded = []
    for index, (summary, folder) in enumerate(zip(comparison.runs, runs, strict=True)):
        results = evaluation_folder(folder)
        evaluation = read_evaluation(results / EVALUATION_FILE)
        if evaluation.name != summary.name:
            raise RunError(
                f"{folder} has run {evaluation.name!r}; the comparison has {summary.name!r} at this position",
                hint="Give the folders in the order of the comparison",
            )
        if evaluation.images_sha256 != comparison.images["sha256"]:
            raise RunError(
                f"run {summary.name!r} was evaluated on other images ({evaluation.images_sha256[:12]}) than the"
                f" comparison ({comparison.images['sha256'][:12]})",
                hint="Evaluate the run on the same data, then repeat the comparison",
            )
        loaded.append(
            RunData(
                index=index,
                look=run_style(index),
                summary=summary,
                evaluation=evaluation,
                scores=_scores(results / PREDICTIONS_FILE, evaluation.n),
                epochs=read_epochs(folder),
                recipe=read_text(folder / RECIPE_FILE),
                facts=_facts(read_run(folder)),
            )
        )
    return tuple(loaded)


def _scores(path: Path, n: int) -> Scores:
    images = read_predictions(path)
    if len(images) != n:
        raise RunError(f"{path} has {len(images)} images, its evaluation has {n}")
    return Scores(
        positive=positives(images),
        **{name: np.array([getattr(image, name) for image in images]) for name in ("logit", "score", "probability")},
    )


def _facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    return tuple(_flatten({name: value for name, value in msgspec.to_builtins(record).items() if name != "recipe"}))


def _flatten(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return names and values as text, without empty values and lists. Nested names are joined by dots."""
    facts: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            facts += _flatten(value, f"{prefix}{name}.")
        elif value is not None and value != "" and not isinstance(value, tuple):
            text = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
            facts.append((prefix + name, text))
    return facts
