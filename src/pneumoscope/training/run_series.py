"""Train several runs of one recipe into one folder: with consecutive seeds, or by cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pneumoscope.core.errors import RunError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.data.folds import Fold
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.layouts import load_manifest
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.record import RunRecord, read_run, recorded_labels
from pneumoscope.runs.run_folder import fold_folder, has_other_files, is_run_folder, run_folders, seed_folder
from pneumoscope.training.inputs import labels_of_recipe
from pneumoscope.training.train import train_run

__all__ = ["train_folds", "train_seeds"]

_Log = Callable[[str], None]


def train_seeds(
    recipe: Recipe,
    data: Path,
    out: Path,
    count: int,
    *,
    labels: LabelMapping | None = None,
    resume: bool = False,
    log: _Log = lambda message: None,
    **options: Any,
) -> list[RunRecord]:
    """Train a recipe with consecutive seeds, each in a separate run folder, and return the run records.

    The seed determines the initial weights, the order and augmentation of the images, and the validation images if the recipe
    splits the data. Each run is identical to one trained alone.

    Args:
        recipe: Recipe of the runs; its seed is the first one.
        data: See `train.train_run`.
        out: Parent folder of the runs; seed 3 is written to `out`/seed-3.
        count: Number of seeds.
        labels: See `train.train_run`; if `resume` is true, defaults to the mapping recorded in the folder.
        resume: Keep finished runs in the folder, resume the interrupted one and train the rest.
        log: Callback for messages to the user.
        options: Outliers, devices and progress; see `train.train_run`.

    Raises:
        UsageError: The number of seeds is not positive.
        RunError: The folder is a run, contains other files or cross-validation folds, or contains runs and `resume` is false.
        PneumoscopeError: See `train.train_run`.
    """
    if count < 1:
        raise UsageError(f"the number of seeds is {count}; the minimum is 1", hint="Give a larger number")
    _check_folder(out, None, resume=resume)
    if resume and labels is None:
        labels = recorded_labels(out)
    mapping = labels_of_recipe(recipe, labels)
    if count > 1 and not load_manifest(data, labels=mapping, recorded=resume).split("test"):
        log(
            f"note: {str(data)!r} has no test split, so that each seed draws other test images, and the runs cannot be compared."
            " Split it first: pneumoscope split DATA --out MANIFEST.csv"
        )
    records = []
    for number in range(count):
        seed = recipe.training.seed + number
        log(f"seed {seed} ({number + 1} of {count})")
        seeded = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
        records.append(
            train_run(seeded, data, seed_folder(out, seed), labels=labels, resume=resume, log=log, **options)
        )
    return records


def train_folds(
    recipe: Recipe,
    data: Path,
    out: Path,
    count: int,
    *,
    labels: LabelMapping | None = None,
    resume: bool = False,
    log: _Log = lambda message: None,
    **options: Any,
) -> list[RunRecord]:
    """Train a recipe by cross-validation, each fold in a separate run folder, and return the run records.

    The training and validation images are divided into folds by patient, stratified by label; see `data.folds`. Each run
    validates on its fold and trains on the others. The recipe's seed determines the folds and is the seed of all runs. Test
    images are not part of any fold.

    Args:
        recipe: Recipe of the runs.
        data: See `train.train_run`.
        out: Parent folder of the runs; the third fold is written to `out`/fold-3.
        count: Number of folds.
        labels, resume, log, options: See `train_seeds`.

    Raises:
        UsageError: There are fewer than 2 folds, or the recipe splits by image or block.
        RunError: The folder is a run, contains other files, other runs or a different number of folds, or contains runs and
            `resume` is false.
        DatasetError: A label has fewer patients than there are folds.
        PneumoscopeError: See `train.train_run`.
    """
    if count < 2:
        raise UsageError(f"the number of folds is {count}; the minimum is 2", hint="Give a larger number")
    if recipe.data.by not in ("patient", "given"):
        raise UsageError(
            f"recipe {recipe.name!r} splits by {recipe.data.by}, and folds keep the images of a patient together",
            hint="Split by patient: --set data.by=patient",
        )
    _check_folder(out, count, resume=resume)
    if resume and labels is None:
        labels = recorded_labels(out)
    records = []
    for number in range(1, count + 1):
        log(f"fold {number} of {count}")
        run = fold_folder(out, number)
        fold = Fold(number, count)
        records.append(train_run(recipe, data, run, labels=labels, fold=fold, resume=resume, log=log, **options))
    return records


def _check_folder(out: Path, folds: int | None, *, resume: bool) -> None:
    """Raise unless the folder can hold a series of runs.

    Args:
        out: Folder to check.
        folds: Number of folds; None for seeds.
        resume: Whether runs of the same series may already exist.
    """
    if is_run_folder(out):
        raise RunError(f"{str(out)!r} is a run, not a folder of runs", hint="Choose another folder with --out")
    if has_other_files(out):
        raise RunError(f"{str(out)!r} is not empty and has no run", hint="Choose another folder with --out")
    before = run_folders(out)
    if before and not resume:
        raise RunError(
            f"{str(out)!r} already has {counted(len(before), 'run')}",
            hint="Resume with --resume, or choose another folder with --out",
        )
    for run in before:
        if (found := read_run(run).folds) != folds:
            kind = "is not a fold" if found is None else f"is one of {counted(found, 'fold')}"
            wanted = "different seeds" if folds is None else counted(folds, "fold")
            raise RunError(
                f"{str(run)!r} {kind}, and runs of {wanted} were requested", hint="Choose another folder with --out"
            )
