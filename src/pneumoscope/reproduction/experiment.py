"""Repeat the report's experiment: train its six runs, evaluate them, and compare them with its published table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pneumoscope.core.comparison import Comparison
from pneumoscope.core.errors import RunError, UnknownNameError, UsageError, WeightsError
from pneumoscope.core.messages import counted
from pneumoscope.evaluation.comparison.compare import compare, write_comparison
from pneumoscope.evaluation.custom_points import FIXED_POINT
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.models.weights import find_vgg19
from pneumoscope.reporting.comparison_page import write_comparison_page
from pneumoscope.reproduction.published import published_table
from pneumoscope.reproduction.ranking import ranking_sentences
from pneumoscope.reproduction.recipes import RUNS
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.runs.record import read_run
from pneumoscope.runs.run_folder import EVALUATION_FILE, evaluation_folder, is_run_folder, run_folders, seed_folder
from pneumoscope.training.train import train_run
from pneumoscope.training.trainer import Devices

__all__ = ["Reproduction", "adapt_recipe", "reproduce"]

# 224 pixels need twelve times the computation, most of a day per run without a GPU.
_VGG19_SIZE_WITHOUT_GPU = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Reproduction:
    """The result of `reproduce`.

    Attributes:
        comparison: All evaluated runs in the folder, with the report's table as reference.
        page: The HTML report.
        notes: Differences between the runs and the report, as sentences.
    """

    comparison: Comparison
    page: Path
    notes: tuple[str, ...]


def reproduce(
    data: Path,
    out: Path,
    *,
    only: Sequence[str] = RUNS,
    seeds: int | None = None,
    overrides: Sequence[str] = (),
    devices: Devices | None = None,
    ledger: Path | None = None,
    command: str = "",
    log: Callable[[str], None] = lambda message: None,
) -> Reproduction:
    """Train and evaluate the unfinished runs, then compare all evaluated runs in the folder.

    A finished run is not trained again, even if its weights were deleted.

    Args:
        data: The public data set.
        out: Folder for the run folders and the comparison.
        only: Names of the runs to train now.
        seeds: Number of consecutive seeds to train each run with, in out/NAME/seed-N, all runs with the first seed
            first; the means are compared. None trains each run once, in out/NAME.
        overrides: Recipe fields of these runs, such as "training.epochs=1".
        devices: See `train`.
        ledger: The test ledger; the default ledger if None.
        command: The command line, for the record.
        log: Called with a message before each step.

    Raises:
        UnknownNameError: There is no such run.
        UsageError: The number of seeds is not positive.
        RunError: The folder has runs with seeds but none were requested, or vice versa.
        PneumoscopeError: See `train`, `evaluate` and `compare`.
    """
    for name in only:
        if name not in RUNS:
            raise UnknownNameError("run of the report", name, RUNS)
    if seeds is not None and seeds < 1:
        raise UsageError(f"the number of seeds is {seeds}; the minimum is 1", hint="Give a larger number")
    _check_layout(out, seeds)
    devices = devices or Devices()
    notes: list[str] = []
    result = None
    for number in range(seeds or 1):
        for name in only:
            run = out / name
            if seeds is not None:
                seed = read_recipe(name, overrides).training.seed + number
                run = seed_folder(out / name, seed)
            recipe, differences = adapt_recipe(name, overrides, gpu=devices.gpu, run=run)
            if seeds is not None:
                recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
            for difference in differences:
                if difference not in notes:
                    notes.append(difference)
                    log(difference)
            title = name if seeds is None else f"{name}, seed {recipe.training.seed} ({number + 1} of {seeds})"
            if is_run_folder(run) and read_run(run).state == "finished":
                log(f"{title}: already trained")
            else:
                log(
                    f"{title}: training ({counted(recipe.training.epochs, 'epoch')} at {recipe.network.image_size} pixels)"
                )
            train_run(recipe, data, run, resume=True, devices=devices, log=log)
            if not _is_evaluated(run):
                log(f"{title}: evaluating on the test images")
                evaluate(run, data, ledger=ledger)
        # Compare after each seed, so that results are available early.
        result = _compare(out, command, notes)
    assert result is not None  # there is at least one seed
    return result


def _compare(out: Path, command: str, notes: Sequence[str]) -> Reproduction:
    """Compare all evaluated runs in the folder, and write the results."""
    candidates = [run for name in RUNS for run in (run_folders(out / name) or [out / name])]
    evaluated = [run for run in candidates if _is_evaluated(run)]
    comparison = compare(evaluated, operating_point=FIXED_POINT, command=command)  # as in the report
    comparison = dataclasses.replace(
        comparison,
        reference=published_table(comparison),
        sentences=(*ranking_sentences(comparison), *comparison.sentences),
    )
    write_comparison(comparison, out)
    return Reproduction(comparison, write_comparison_page(comparison, evaluated, out / "report.html"), tuple(notes))


def _check_layout(out: Path, seeds: int | None) -> None:
    """Raise if the folder has runs of the other layout: single runs, or runs with seeds."""
    for name in RUNS:
        single, series = is_run_folder(out / name), bool(run_folders(out / name))
        if (single and seeds is not None) or (series and seeds is None):
            raise RunError(
                f"{str(out / name)!r} has {'a single run' if single else 'runs with several seeds'}, and"
                f" {'several seeds' if single else 'single runs'} were requested",
                hint="Choose another folder with --out, or repeat the command that made it",
            )


def _is_evaluated(run: Path) -> bool:
    return (evaluation_folder(run) / EVALUATION_FILE).exists()


def adapt_recipe(
    name: str, overrides: Sequence[str], *, gpu: bool, run: Path | None = None
) -> tuple[Recipe, list[str]]:
    """Return the report's recipe adapted to this machine, and a sentence on each change.

    VGG19 uses ImageNet weights only if they are available, and images of 64 pixels without a GPU. A run that was
    already started keeps its settings.

    Args:
        name: Name of the run.
        overrides: Recipe fields set by the caller; they take precedence.
        gpu: True if a GPU is used.
        run: The run folder; the run may already have been started.
    """
    recipe = read_recipe(name, overrides)
    if recipe.network.name != "vgg19":
        return recipe, []
    overridden = {override.partition("=")[0].strip() for override in overrides}
    free = [field for field in ("weights", "image_size") if f"network.{field}" not in overridden]
    adapted = _settings_of_run(run) if run is not None and is_run_folder(run) else _available_settings(free, gpu=gpu)
    changed = {
        field: adapted[field]
        for field in free
        if field in adapted and adapted[field][0] != getattr(recipe.network, field)
    }
    settings = [f"network.{field}={json.dumps(value)}" for field, (value, _) in changed.items()]
    reasons = [f"{name}: {reason}" for _, reason in changed.values()]
    return read_recipe(name, [*overrides, *settings]), reasons


# Network field: (value, reason for deviating from the report).
_Settings = dict[str, tuple[str | int, str]]


def _available_settings(free: Sequence[str], *, gpu: bool) -> _Settings:
    settings: _Settings = {}
    if "weights" in free:
        try:
            find_vgg19()
        except WeightsError as error:
            settings["weights"] = ("none", f"random initial weights instead of ImageNet weights: {error}")
    if not gpu:
        size = _VGG19_SIZE_WITHOUT_GPU
        settings["image_size"] = (size, f"images of {size} pixels instead of 224, because there is no GPU")
    return settings


def _settings_of_run(run: Path) -> _Settings:
    network = read_run(run).recipe["network"]
    weights, size = network["weights"], network["image_size"]
    return {
        "weights": (weights, f"continues with weights {weights!r}, as the run was started"),
        "image_size": (size, f"continues with images of {size} pixels, as the run was started"),
    }
