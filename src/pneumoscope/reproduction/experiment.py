"""Run the report's experiment: train its six runs, evaluate them, and compare them with its published table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pneumoscope.core.errors import UnknownNameError, WeightsError
from pneumoscope.core.results import Comparison
from pneumoscope.evaluation.compare import compare, write_comparison
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.models.weights import find_vgg19
from pneumoscope.reporting.comparison_page import write_comparison_page
from pneumoscope.reproduction.published import published_table
from pneumoscope.reproduction.recipes import RUNS, report_recipes
from pneumoscope.runs.recipe import Recipe, read_recipe
from pneumoscope.runs.record import read_run
from pneumoscope.runs.run_folder import EVALUATION_FILE, evaluation_folder, is_run_folder
from pneumoscope.training.devices import Devices
from pneumoscope.training.train import train

__all__ = ["Reproduction", "recipe_here", "reproduce"]

# 224 pixels are twelve times the arithmetic: without a GPU a run would take most of a day or more.
_SMALL_VGG19 = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Reproduction:
    """The result of `reproduce`.

    Attributes:
        comparison: Of every evaluated run in the folder, with the report's table as reference.
        page: The HTML report.
        notes: Where a run differs from the report's, in words.
    """

    comparison: Comparison
    page: Path
    notes: tuple[str, ...]


def reproduce(
    data: Path,
    out: Path,
    *,
    only: Sequence[str] = RUNS,
    overrides: Sequence[str] = (),
    devices: Devices | None = None,
    ledger: Path | None = None,
    command: str = "",
    tell: Callable[[str], None] = lambda words: None,
) -> Reproduction:
    """Train and evaluate the runs that are not done yet, and compare all runs that are.

    A finished run in `out` is not trained again, even where its weights were removed.

    Args:
        data: The public data set.
        out: Folder with one folder per run, and the comparison.
        only: Names of the runs to do now.
        overrides: Recipe fields of these runs, "training.epochs=1" each.
        devices: See `train`.
        ledger: The test ledger; the default one where None.
        command: The command line, for the record.
        tell: Called with a line for each step.
    Raises:
        UnknownNameError: There is no such run.
        PneumoscopeError: See `train`, `evaluate` and `compare`.
    """
    for name in only:
        if name not in RUNS:
            raise UnknownNameError("run of the report", name, RUNS)
    devices = devices or Devices()
    notes: list[str] = []
    for name in only:
        run = out / name
        recipe, differs = recipe_here(name, overrides, gpu=devices.gpu, run=run)
        notes += differs
        for words in differs:
            tell(words)
        tell(f"{name}: training ({recipe.training.epochs} epochs at {recipe.network.image_size} pixels)")
        train(recipe, data, run, resume=True, devices=devices, tell=tell)
        if not _is_evaluated(run):
            tell(f"{name}: evaluating on the test images")
            evaluate(run, data, ledger=ledger)
    done = [out / name for name in RUNS if _is_evaluated(out / name)]
    comparison = compare(done, command=command)
    comparison = dataclasses.replace(comparison, reference=published_table(comparison))
    write_comparison(comparison, out)
    return Reproduction(comparison, write_comparison_page(comparison, done, out / "report.html"), tuple(notes))


def _is_evaluated(run: Path) -> bool:
    return (evaluation_folder(run) / EVALUATION_FILE).exists()


def recipe_here(name: str, overrides: Sequence[str], *, gpu: bool, run: Path | None = None) -> tuple[Recipe, list[str]]:
    """Return the report's recipe as it can be run on this machine, and sentences that say where it differs.

    VGG19 starts from ImageNet weights where they are found, and uses images of 64 pixels without a GPU. A run that was started
    keeps its settings.

    Args:
        name: Of the run.
        overrides: Given by the caller; they take precedence.
        gpu: True where a GPU is used.
        run: Its folder; the run may have been started there.
    """
    recipes = report_recipes()
    recipe = read_recipe(name, overrides, recipes)
    if recipe.network.name != "vgg19":
        return recipe, []
    asked = {override.partition("=")[0].strip() for override in overrides}
    free = [field for field in ("weights", "image_size") if f"network.{field}" not in asked]
    found = _as_begun(run) if run is not None and is_run_folder(run) else _at_hand(free, gpu=gpu)
    changed = {
        field: found[field] for field in free if field in found and found[field][0] != getattr(recipe.network, field)
    }
    here = [f"network.{field}={json.dumps(value)}" for field, (value, _) in changed.items()]
    return read_recipe(name, [*overrides, *here], recipes), [f"{name}: {why}" for _, why in changed.values()]


# A field of the network: its value, and why it is not the report's.
_Found = dict[str, tuple[str | int, str]]


def _at_hand(free: Sequence[str], *, gpu: bool) -> _Found:
    found: _Found = {}
    if "weights" in free:
        try:
            find_vgg19()
        except WeightsError as error:
            found["weights"] = ("none", f"starts from random weights, not from ImageNet's: {error}")
    if not gpu:
        found["image_size"] = (_SMALL_VGG19, f"images of {_SMALL_VGG19} pixels, not 224: no GPU is at hand")
    return found


def _as_begun(run: Path) -> _Found:
    network = read_run(run).recipe["network"]
    weights, size = network["weights"], network["image_size"]
    return {
        "weights": (weights, f"was begun with the weights {weights!r}, and goes on so"),
        "image_size": (size, f"was begun with images of {size} pixels, and goes on so"),
    }
