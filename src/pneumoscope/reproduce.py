"""The report's experiment in one call: its six runs, their evaluation, and the comparison with what it printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from pneumoscope.errors import UnknownNameError, WeightsError
from pneumoscope.evaluation.compare import compare
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.records import EVALUATION_FILE
from pneumoscope.report.comparison_page import write_comparison_page
from pneumoscope.results import Comparison
from pneumoscope.training.fit import train
from pneumoscope.training.loop import Devices
from pneumoscope.training.recipe import Recipe, read_recipe

__all__ = ["RUNS", "Reproduction", "recipe_here", "reproduce"]

RUNS = ("alexnet-sgd", "alexnet-adam", "alexnet-adam-32", "vgg19-rmsprop", "vgg19-adam", "vgg19-adam-32")
# At 224 pixels VGG19 trains about 2 films a second on two cores: nine hours for a run of 15 epochs, against one at 64.
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
        ledger: of looks at the test films; the default one where None.
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
        recipe, differs = recipe_here(name, overrides, gpu=devices.gpu)
        notes += differs
        for words in differs:
            tell(words)
        tell(f"{name}: training ({recipe.training.epochs} epochs at {recipe.network.image_size} pixels)")
        train(recipe, data, run, resume=True, devices=devices)
        if not (run / "evaluation" / "test" / EVALUATION_FILE).exists():
            tell(f"{name}: evaluating on the test films")
            evaluate(run, data, ledger=ledger)
    done = [out / name for name in RUNS if (out / name / "evaluation" / "test" / EVALUATION_FILE).exists()]
    comparison = compare(done, published=True, out=out, command=command)
    return Reproduction(comparison, write_comparison_page(comparison, done, out / "report.html"), tuple(notes))


def recipe_here(name: str, overrides: Sequence[str], *, gpu: bool) -> tuple[Recipe, list[str]]:
    """The report's recipe as it can be run on this machine, and in words where it differs.

    VGG19 starts from ImageNet weights where they are at hand. Without a GPU its films are 64 pixels.

    Args:
        name: of the run.
        overrides: given by the caller; they win.
        gpu: True where one is used.
    """
    asked = {override.partition("=")[0] for override in overrides}
    recipe = read_recipe(name, overrides)
    here, words = list(overrides), []
    if recipe.network.weights == "imagenet":
        from pneumoscope.networks.weights import find_vgg19

        try:
            find_vgg19()
        except WeightsError as error:
            if "network.weights" in asked:
                raise
            here.append('network.weights="none"')
            words.append(f"{name}: starts from random weights, not from ImageNet's: {error}")
    if recipe.network.name == "vgg19" and not gpu and "network.image_size" not in asked:
        here.append(f"network.image_size={_SMALL_VGG19}")
        words.append(f"{name}: films of {_SMALL_VGG19} pixels, not 224: no GPU is at hand")
    return read_recipe(name, here), words
