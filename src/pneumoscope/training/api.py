"""Python API of training: runs and sweeps as objects with data frames and figures."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pneumoscope.core.errors import UsageError
from pneumoscope.core.result_forms import rows_dataframe
from pneumoscope.data.hashing import Progress
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.reporting.curves import curves_figure, curves_label
from pneumoscope.reporting.named_figure import NamedFigure
from pneumoscope.reporting.style import drawing, run_style
from pneumoscope.runs.epochs import Epoch, read_epochs
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.runs.record import RunRecord
from pneumoscope.runs.run_folder import LoggerName, fold_folder, seed_folder
from pneumoscope.training.run_series import train_folds, train_seeds
from pneumoscope.training.sweep import SweepRow, read_combinations, run_sweep
from pneumoscope.training.train import train_run
from pneumoscope.training.trainer import Devices

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Sweep", "Training", "sweep", "train"]


@dataclasses.dataclass(frozen=True, repr=False)
class Training:
    """One or more trained runs of a recipe.

    Attributes:
        path: Run folder, or the parent folder of several runs. `evaluate` accepts a run; `compare` accepts both.
        runs: Run folders.
        records: Records of the runs, in the same order.
    """

    path: Path
    runs: tuple[Path, ...]
    records: tuple[RunRecord, ...]

    @property
    def epochs(self) -> tuple[tuple[Epoch, ...], ...]:
        """The epochs of each run."""
        return tuple(map(read_epochs, self.runs))

    @property
    def figures(self) -> dict[str, NamedFigure]:
        """Learning curves of each run by folder name; notebooks display them."""
        figures = {}
        with drawing():
            for index, (run, record, epochs) in enumerate(zip(self.runs, self.records, self.epochs, strict=True)):
                best = record.best_epoch
                drawn = curves_figure(epochs, run_style(index), title=run.name, best=best, wide=True)
                figures[run.name] = NamedFigure(drawn, f"curves-{index}", curves_label(run.name, epochs, best))
        return figures

    def to_dataframe(self) -> pd.DataFrame:
        """Return a pandas DataFrame with one row per run and epoch and the columns of `epochs.csv`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [
            {"run": run.name, **epoch._asdict()}
            for run, epochs in zip(self.runs, self.epochs, strict=True)
            for epoch in epochs
        ]
        return rows_dataframe(rows, "Training.to_dataframe()")

    def __repr__(self) -> str:
        """Return the folder and the selected epoch of each run."""
        return f"Training({str(self.path)!r}, {'; '.join(self._summaries())})"

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in self._summaries())
        figures = "".join(figure._repr_svg_() for figure in self.figures.values())
        return f"<div><ul>{items}</ul>{figures}</div>"

    def _summaries(self) -> list[str]:
        return [
            f"{run.name}: epoch {record.best_epoch} of {record.epochs}, validation accuracy"
            f" {record.best_validation_accuracy:.4f}"
            for run, record in zip(self.runs, self.records, strict=True)
        ]


@dataclasses.dataclass(frozen=True, repr=False)
class Sweep:
    """Validation results of each combination of settings.

    Attributes:
        path: Folder of the runs and of sweep.csv.
        rows: One row per combination, sorted from best to worst by the metric of the recipe.
    """

    path: Path
    rows: tuple[SweepRow, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """Return a pandas DataFrame with one row per combination and a column for each varied setting.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [
            {
                **row.settings,
                **{name: value for name, value in row._asdict().items() if name not in ("name", "settings", "classes")},
            }
            for row in self.rows
        ]
        return rows_dataframe(rows, "Sweep.to_dataframe()")

    def __repr__(self) -> str:
        """Return the folder and the accuracy and AUROC of each combination."""
        rows = "; ".join(
            f"{row.name}: accuracy {row.accuracy:.4f}, {row.auroc_name} {row.auroc:.4f}" for row in self.rows
        )
        return f"Sweep({str(self.path)!r}, {rows})"

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th>{html.escape(name)}</th>"
            for name in (*self.rows[0].settings, "accuracy", self.rows[0].auroc_name, "loss")
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(value)}</td>" for value in row.settings.values())
            + "".join(f"<td>{value:.4f}</td>" for value in (row.accuracy, row.auroc, row.loss))
            + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def train(
    recipe: str | Path | Recipe,
    data: str | Path,
    out: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    init: str | Path | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    outliers: str | Path | None = None,
    labels: LabelMapping | None = None,
    resume: bool = False,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: int = 0,
    loggers: Sequence[LoggerName] = ("tensorboard",),
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> Training:
    """Train a recipe, write its bundle and return the run; with `seeds` or `folds`, train several runs.

    Args:
        recipe: Recipe object, recipe name (see `pneumoscope recipes`) or TOML file.
        data: Labeled images: folder, manifest CSV or MedMNIST archive.
        out: Run folder, or parent folder of several runs.
        settings: Recipe fields to override, such as {"training.epochs": 3}; None unsets a field.
        init: Initial weights: "default" for the packaged model, a bundle, a run or a file; see "network.weights".
        seeds: Number of runs with consecutive seeds, written to out/seed-N.
        folds: Number of cross-validation folds, written to out/fold-N. Cannot be combined with `seeds`.
        outliers: Images of patients outside the age range, for a recipe with an age classifier.
        labels: Column and label names of the data. Default: those of the resumed run, else those of the recipe.
        resume: Continue the runs in `out`; finished runs are kept.
        accelerator: "cpu", "gpu", or "auto" to use a GPU if available.
        devices: Number of devices; 0 for one CPU process or all GPUs.
        loggers: Loggers of the epoch metrics: "tensorboard", "csv", "mlflow".
        progress: Callback with the number of images preprocessed so far and the total.
        log: Callback for messages to the user.

    Returns:
        The runs. Notebooks display them with their learning curves; `Training.to_dataframe()` returns the epochs.

    Raises:
        UsageError: Both `seeds` and `folds` are given, or options contradict each other.
        RecipeError, UnknownNameError: The recipe is unknown or a setting is invalid.
        PneumoscopeError: The images, folder or weights cannot be used; see the command `train`.
    """
    if seeds is not None and folds is not None:
        raise UsageError("both seeds and folds are given", hint="Give one of them")
    overrides = [*_overrides(settings), *_overrides({"network.weights": str(init)} if init is not None else None)]
    chosen, target = _recipe(recipe, overrides), Path(out)
    options: dict[str, Any] = {
        "outliers": None if outliers is None else Path(outliers),
        "labels": labels,
        "resume": resume,
        "devices": Devices(accelerator, devices),
        "loggers": loggers,
        "progress": progress,
        "log": log,
    }
    if seeds is not None:
        records = train_seeds(chosen, Path(data), target, seeds, **options)
    elif folds is not None:
        records = train_folds(chosen, Path(data), target, folds, **options)
    else:
        records = [train_run(chosen, Path(data), target, **options)]
    return Training(target, tuple(_run_folder(target, record, seeds) for record in records), tuple(records))


def sweep(
    recipe: str | Path,
    data: str | Path,
    out: str | Path,
    values: Mapping[str, Sequence[Any]],
    *,
    settings: Mapping[str, Any] | None = None,
    seeds: int = 1,
    outliers: str | Path | None = None,
    labels: LabelMapping | None = None,
    resume: bool = False,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: int = 0,
    loggers: Sequence[LoggerName] = ("tensorboard",),
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> Sweep:
    """Train a recipe with each combination of settings and compare the results on the validation images.

    The validation result of the best combination is optimistic because those images selected it; evaluate only the chosen
    combination on the test set, once.

    Args:
        recipe: Recipe name or TOML file.
        data: See `train`.
        out: Folder of the runs and of sweep.csv.
        values: Values of each varied recipe field, such as {"training.batch": [32, 64]}.
        settings: Recipe fields with the same value in all combinations.
        seeds: Runs per combination, with consecutive seeds.
        outliers, labels, resume, accelerator, devices, loggers, progress, log: See `train`.

    Raises:
        UsageError: No field has several values, or there are too many combinations.
        RecipeError, UnknownNameError, PneumoscopeError: See `train`.
    """
    varied = [f"{field}={','.join(_text(value) for value in each)}" for field, each in values.items()]
    combinations = read_combinations(str(recipe), [*_overrides(settings), *varied])
    rows = run_sweep(
        combinations,
        Path(data),
        Path(out),
        seeds=seeds,
        labels=labels,
        resume=resume,
        outliers=None if outliers is None else Path(outliers),
        devices=Devices(accelerator, devices),
        loggers=loggers,
        progress=progress,
        log=log,
    )
    return Sweep(Path(out), tuple(rows))


def _run_folder(out: Path, record: RunRecord, seeds: int | None) -> Path:
    if record.fold is not None:
        return fold_folder(out, record.fold)
    return out if seeds is None else seed_folder(out, record.seed)


def _recipe(recipe: str | Path | Recipe, overrides: Sequence[str]) -> Recipe:
    if not isinstance(recipe, Recipe):
        return read_recipe(str(recipe), overrides)
    if overrides:
        raise UsageError(
            "settings are given for a recipe that was already read", hint="Give them to `read_recipe`, or give the file"
        )
    return recipe


def _overrides(settings: Mapping[str, Any] | None) -> list[str]:
    return [f"{field}={_text(value)}" for field, value in (settings or {}).items()]


def _text(value: Any) -> str:
    """Return a value as TOML; None becomes "none", which unsets a field."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
