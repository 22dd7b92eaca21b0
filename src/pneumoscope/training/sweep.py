"""Train a recipe with each combination of settings and compare the results on the validation images."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pneumoscope.core.errors import RunError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.messages import counted
from pneumoscope.data.classes import LABELS
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.runs.epochs import Epoch, best_epoch, read_epochs
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.runs.record import recorded_labels
from pneumoscope.runs.run_folder import run_folders, seed_folder
from pneumoscope.training.train import train_run

__all__ = ["SWEEP_TABLE", "Combination", "SweepRow", "read_combinations", "run_sweep"]

SWEEP_TABLE = "sweep.csv"
_MAX_COMBINATIONS = 1000
_UNSAFE = re.compile(r"[^A-Za-z0-9.,=+-]+")  # characters replaced in folder names
_MAX_NAME = 120  # maximum length of a folder name


class Combination(NamedTuple):
    """One combination of settings.

    Attributes:
        name: Varied settings, such as "training.batch=32,training.seed=1"; also the folder name of its runs.
        settings: Varied settings by field, as text.
        recipe: Recipe with all settings applied.
    """

    name: str
    settings: Mapping[str, str]
    recipe: Recipe


class SweepRow(NamedTuple):
    """Validation results of one combination.

    Attributes:
        name, settings: See `Combination`.
        seeds: Number of runs.
        accuracy, auroc, loss: Means over the seeds, each at the selected epoch of its run.
        accuracy_sd, auroc_sd, loss_sd: Standard deviations over the seeds; None for a single seed.
        seconds: Total training time of the runs.
        classes: Class names.
    """

    name: str
    settings: Mapping[str, str]
    seeds: int
    accuracy: float
    accuracy_sd: float | None
    auroc: float
    auroc_sd: float | None
    loss: float
    loss_sd: float | None
    seconds: float
    classes: tuple[str, ...]

    @property
    def auroc_name(self) -> str:
        """Name of the metric in `auroc`: "AUROC", or "macro AUROC" for several classes."""
        return "AUROC" if self.classes == LABELS else "macro AUROC"


def read_combinations(source: str, overrides: Iterable[str] = ()) -> list[Combination]:
    """Return the recipes for each combination of the values in the overrides.

    Args:
        source: See `read_recipe`.
        overrides: Assignments such as "training.batch=32,64". Commas within quotes or brackets do not separate values. A field
            with a single value is the same in all combinations.

    Raises:
        UsageError: A field is set twice, no field has several values, there are more than 1,000 combinations, or two
            combinations have the same name.
        RecipeError, UnknownNameError: See `read_recipe`.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        field, sign, text = override.partition("=")
        if field in values:
            raise UsageError(f"--set {field} is given twice", hint=f"Give all values once: --set {field}=A,B")
        values[field] = _split_values(text) if sign else []
    varied = [field for field, options in values.items() if len(options) > 1]
    if not varied:
        raise UsageError("no field has several values", hint="Give some with --set, such as --set training.batch=32,64")
    combinations = [dict(zip(varied, each, strict=True)) for each in product(*(values[field] for field in varied))]
    if len(combinations) > _MAX_COMBINATIONS:
        raise UsageError(
            f"there are {len(combinations):,} combinations; the maximum is {_MAX_COMBINATIONS:,}",
            hint="Give fewer values with --set",
        )
    fixed = [f"{field}={options[0]}" if options else field for field, options in values.items() if field not in varied]
    found = []
    for settings in combinations:
        chosen = [f"{field}={value}" for field, value in settings.items()]
        name = _UNSAFE.sub("_", ",".join(chosen))[:_MAX_NAME]
        found.append(Combination(name, settings, read_recipe(source, [*fixed, *chosen])))
    names = [each.name for each in found]
    if len({*names}) < len(names):
        raise UsageError("two combinations have the same name", hint="Give each value of a field once")
    return found


def _split_values(text: str) -> list[str]:
    """Return the values of a comma-separated list; commas within quotes or brackets do not separate values."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and not depth:
            values.append("")
            continue
        values[-1] += character
    return [value.strip() for value in values]


def run_sweep(
    combinations: Sequence[Combination],
    data: Path,
    out: Path,
    *,
    seeds: int = 1,
    labels: LabelMapping | None = None,
    resume: bool = False,
    log: Callable[[str], None] = lambda message: None,
    **options: Any,
) -> list[SweepRow]:
    """Train each combination, write sweep.csv and return the validation results, best first by the recipe's metric.

    Test images are not used; evaluate the chosen recipe once afterwards.

    Args:
        combinations: See `read_combinations`.
        data: See `train.train_run`.
        out: Folder of the sweep; the runs of a combination are in `out`/NAME/seed-N.
        seeds: Runs per combination, with consecutive seeds starting at the recipe's.
        labels: See `train.train_run`; if `resume` is true, defaults to the mapping recorded by finished runs.
        resume: Keep finished runs in the folder, resume the interrupted one and train the rest.
        log: Callback for messages to the user.
        options: Outliers, devices and progress; see `train.train_run`.

    Raises:
        UsageError: The number of seeds is not positive.
        RunError: The folder is not empty and `resume` is false, or it contains files other than runs.
        PneumoscopeError: See `train.train_run`.
    """
    if seeds < 1:
        raise UsageError(f"the number of seeds is {seeds}; the minimum is 1", hint="Give a larger number")
    if not resume and out.exists() and any(out.iterdir()):
        raise RunError(f"{str(out)!r} is not empty", hint="Resume with --resume, or choose another folder with --out")
    if resume and out.is_dir() and not run_folders(out):
        own = {SWEEP_TABLE, *(combination.name for combination in combinations)}
        if any(each.name not in own for each in out.iterdir()):
            raise RunError(f"{str(out)!r} is not empty and has no run", hint="Choose another folder with --out")
    if resume and labels is None:
        labels = recorded_labels(out)
    rows = []
    for number, combination in enumerate(combinations, start=1):
        log(f"{combination.name} ({number} of {counted(len(combinations), 'combination')})")
        epochs, seconds = [], 0.0
        for seed in range(combination.recipe.training.seed, combination.recipe.training.seed + seeds):
            training = combination.recipe.training.model_copy(update={"seed": seed})
            run = seed_folder(out / combination.name, seed)
            recipe = combination.recipe.model_copy(update={"training": training})
            record = train_run(recipe, data, run, labels=labels, resume=resume, log=log, **options)
            epochs.append(best_epoch(read_epochs(run), training.select))
            seconds += record.seconds or 0.0
        rows.append(_row(combination, epochs, seconds, tuple(record.counts["train"])))
        write_atomically(out / SWEEP_TABLE, _table(_sorted(rows, combinations[0].recipe)))
    return _sorted(rows, combinations[0].recipe)


def _row(combination: Combination, epochs: Sequence[Epoch], seconds: float, classes: tuple[str, ...]) -> SweepRow:
    accuracy, accuracy_sd = _mean_and_sd([epoch.validation_accuracy for epoch in epochs])
    auroc, auroc_sd = _mean_and_sd([epoch.validation_auroc for epoch in epochs])
    loss, loss_sd = _mean_and_sd([epoch.validation_loss for epoch in epochs])
    return SweepRow(
        combination.name,
        combination.settings,
        len(epochs),
        accuracy,
        accuracy_sd,
        auroc,
        auroc_sd,
        loss,
        loss_sd,
        seconds,
        classes,
    )


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def _sorted(rows: Sequence[SweepRow], recipe: Recipe) -> list[SweepRow]:
    """Return the rows from best to worst by the metric that selects epochs, or by loss if the last epoch is selected."""
    select = recipe.training.select
    if select in ("accuracy", "auroc"):
        return sorted(rows, key=lambda row: -float(getattr(row, select)))
    return sorted(rows, key=lambda row: row.loss)


def _table(rows: Sequence[SweepRow]) -> str:
    """Return one CSV row per combination, with a column for each setting."""
    out = io.StringIO()
    numbers = [name for name in SweepRow._fields if name not in ("name", "settings", "classes")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*rows[0].settings, *numbers, "folder"])
    for row in rows:
        writer.writerow([*row.settings.values(), *(getattr(row, name) for name in numbers), row.name])
    return out.getvalue()
