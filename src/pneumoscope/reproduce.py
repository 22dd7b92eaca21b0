"""The report's experiment in one call: its six runs, their evaluation, and the comparison with what it printed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pneumoscope.core.errors import UnknownNameError, WeightsError
from pneumoscope.core.results import Comparison
from pneumoscope.evaluation.compare import compare
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.records import EVALUATION_FILE
from pneumoscope.models.weights import find_vgg19
from pneumoscope.reporting.comparison_page import write_comparison_page
from pneumoscope.training.recipe import Recipe, read_recipe
from pneumoscope.training.run import RUN, read_run
from pneumoscope.training.train import train
from pneumoscope.training.trainer import Devices

__all__ = ["RUNS", "Reproduction", "recipe_here", "reproduce"]

RUNS = ("alexnet-sgd", "alexnet-adam", "alexnet-adam-32", "vgg19-rmsprop", "vgg19-adam", "vgg19-adam-32")
# An image of 224 pixels is twelve times the arithmetic: without a GPU a run would take the better part of a day or more.
_SMALL_VGG19 = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Reproduction:
    """What `reproduce` made.

    Attributes:
        comparison: of every run in the folder that is finished, with the report's rows.
        page: the HTML report.
        notes: where a run differs from the report's, in words.
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
    """Run what is not finished yet, evaluate what is not evaluated yet, compare all that is.

    A run that is finished in `out` is not run again, also where its weights are no longer there.

    Args:
        data: the public data set.
        out: a folder a run, and the comparison.
        only: names of runs to make now.
        overrides: recipe fields of the runs made now, "training.epochs=1" each.
        devices: see `train`.
        ledger: of looks at the test images; the default one where None.
        command: what was called, for the record.
        tell: is told what happens next.
    Raises:
        UnknownNameError: no such run.
        PneumoscopeError: see `train`, `evaluate` and `compare`.
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
        if not (run / "evaluation" / "test" / EVALUATION_FILE).exists():
            tell(f"{name}: evaluating on the test images")
            evaluate(run, data, ledger=ledger)
    done = [out / name for name in RUNS if (out / name / "evaluation" / "test" / EVALUATION_FILE).exists()]
    comparison = compare(done, published=True, out=out, command=command)
    return Reproduction(comparison, write_comparison_page(comparison, done, out / "report.html"), tuple(notes))


def recipe_here(name: str, overrides: Sequence[str], *, gpu: bool, run: Path | None = None) -> tuple[Recipe, list[str]]:
    """The report's recipe as it can be run on this machine, and in words where it differs.

    VGG19 starts from ImageNet weights where they are at hand, and has images of 64 pixels where no GPU is. What was begun
    otherwise goes on as it was begun, whatever is at hand now.

    Args:
        name: of the run.
        overrides: given by the caller; they win.
        gpu: True where one is used.
        run: its folder, where it may have been begun.
    """
    recipe = read_recipe(name, overrides)
    if recipe.network.name != "vgg19":
        return recipe, []
    asked = {override.partition("=")[0].strip() for override in overrides}
    free = [field for field in ("weights", "image_size") if f"network.{field}" not in asked]
    found = _as_begun(run) if run is not None and (run / RUN).exists() else _at_hand(free, gpu=gpu)
    changed = {
        field: found[field] for field in free if field in found and found[field][0] != getattr(recipe.network, field)
    }
    here = [f"network.{field}={json.dumps(value)}" for field, (value, _) in changed.items()]
    return read_recipe(name, [*overrides, *here]), [f"{name}: {why}" for _, why in changed.values()]


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
    network = read_run(run)["recipe"]["network"]
    weights, size = network["weights"], network["image_size"]
    return {
        "weights": (weights, f"was begun with the weights {weights!r}, and goes on so"),
        "image_size": (size, f"was begun with images of {size} pixels, and goes on so"),
    }
