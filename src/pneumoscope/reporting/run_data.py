"""What a page is made of: each run of a comparison with the files in its folder, checked to belong together."""

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
from pneumoscope.runs.files import read_text
from pneumoscope.runs.record import RunRecord, read_run
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE, RECIPE_FILE, evaluation_folder
from pneumoscope.statistics.inputs import BoolArray, FloatArray

__all__ = ["RunData", "load_run_data"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one run said of each image; arrays of shape (n,).

    Attributes:
        positive: True where pneumonia is present.
        logit: unbounded, for rankings.
        score: before calibration, 0 to 1.
        probability: after calibration, 0 to 1.
    """

    positive: BoolArray
    logit: FloatArray
    score: FloatArray
    probability: FloatArray


@dataclasses.dataclass(frozen=True)
class RunData:
    """One run of a comparison.

    Attributes:
        index: its place in the comparison, from 0.
        look: its colour and dash.
        summary: its row of the comparison.
        evaluation: of the test images.
        scores: image by image.
        epochs: of its training.
        recipe: the recipe file, verbatim.
        facts: its record without the recipe, nested names joined by dots.
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
    """Read the folders of a comparison's runs.

    Args:
        comparison: as made from these runs.
        runs: their folders, in the comparison's order.
    Raises:
        RunError: a folder too many or too few, another run's folder, other images, or a file missing or malformed.
    """
    if len(runs) != len(comparison.runs):
        raise RunError(f"the comparison has {len(comparison.runs)} runs and {len(runs)} folders were given")
    found = []
    for index, (summary, folder) in enumerate(zip(comparison.runs, runs, strict=True)):
        results = evaluation_folder(folder)
        evaluation = read_evaluation(results / EVALUATION_FILE)
        if evaluation.name != summary.name:
            raise RunError(
                f"{folder} holds run {evaluation.name!r}; the comparison has {summary.name!r} in that place",
                hint="Give the folders in the comparison's order",
            )
        if evaluation.images_sha256 != comparison.images["sha256"]:
            raise RunError(
                f"run {summary.name!r} was evaluated on other images ({evaluation.images_sha256[:12]}) than the"
                f" comparison ({comparison.images['sha256'][:12]})",
                hint="Evaluate it again on the same data, then compare again",
            )
        found.append(
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
    return tuple(found)


def _scores(path: Path, n: int) -> Scores:
    images = read_predictions(path)
    if len(images) != n:
        raise RunError(f"{path} holds {len(images)} images and its evaluation {n}")
    return Scores(
        positive=positives(images),
        **{name: np.array([getattr(image, name) for image in images]) for name in ("logit", "score", "probability")},
    )


def _facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """The record without the recipe, which is shown verbatim."""
    return tuple(_flat({name: value for name, value in msgspec.to_builtins(record).items() if name != "recipe"}))


def _flat(data: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return names and values as text; nested names are joined by dots; empty values and lists are left out."""
    found: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{name}.")
        elif value is not None and value != "" and not isinstance(value, tuple):
            text = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
            found.append((before + name, text))
    return found
