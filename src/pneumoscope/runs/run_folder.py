"""Layout of a run folder, and functions that read its files.

RUN/recipe.toml                 the recipe with all defaults
    manifest.csv                images (absolute paths), labels, patients, splits and hashes
    outliers.csv                images of patients outside the age range, see `data.outliers`; only with an age classifier
    run.json                    see `record.RunRecord`
    epochs.csv                  one row per epoch, see `epochs.Epoch`
    curves.svg                  learning curves
    checkpoints/                last.ckpt (training state), best.safetensors (selected weights)
    tensorboard/                the metrics of epochs.csv for TensorBoard
    csv/                        the same in the format of Lightning's CSV logger, with --logger csv
    mlflow-run.txt, mlflow.db   id of the run in MLflow, and its store unless MLFLOW_TRACKING_URI is set
    bundle/                     network.onnx and card.json; evidence/, see `bundle.evidence`
    evaluation/NAME/            evaluation.json and predictions.csv, written by `evaluate`; `test` has the run's own test images

A process training in the folder holds the lock `.run.lock`.

`train --seeds` creates a folder of runs with a run folder seed-N for each seed; `train --folds` creates one with a run
folder fold-N for each fold of a cross-validation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from pneumoscope.bundle.bundle_folder import CARD_FILE, DEFAULT_BUNDLE
from pneumoscope.core.errors import RunError
from pneumoscope.core.results import SCHEMA

__all__ = [
    "BUNDLE_FOLDER",
    "CHECKPOINT_FILE",
    "CSV_LOG_FOLDER",
    "CURVES_FILE",
    "EPOCHS_FILE",
    "EVALUATION_FILE",
    "LOCK_FILE",
    "MANIFEST_FILE",
    "MLFLOW_RUN_FILE",
    "MLFLOW_STORE",
    "OUTLIERS_FILE",
    "PREDICTIONS_FILE",
    "RECIPE_FILE",
    "RUN_FILE",
    "TENSORBOARD_FOLDER",
    "WEIGHTS_FILE",
    "LoggerName",
    "evaluation_folder",
    "evaluation_names",
    "evaluation_of_bundle",
    "find_bundle",
    "fold_folder",
    "has_other_files",
    "is_run_folder",
    "read_json",
    "read_text",
    "run_folder_name",
    "run_folders",
    "seed_folder",
]

RUN_FILE = "run.json"
RECIPE_FILE = "recipe.toml"
MANIFEST_FILE = "manifest.csv"
OUTLIERS_FILE = "outliers.csv"
EPOCHS_FILE = "epochs.csv"
CURVES_FILE = "curves.svg"
CHECKPOINT_FILE = "checkpoints/last.ckpt"
WEIGHTS_FILE = "checkpoints/best.safetensors"
TENSORBOARD_FOLDER = "tensorboard"
CSV_LOG_FOLDER = "csv"
MLFLOW_STORE = "mlflow.db"
MLFLOW_RUN_FILE = "mlflow-run.txt"
LoggerName = Literal["tensorboard", "csv", "mlflow"]
BUNDLE_FOLDER = "bundle"
LOCK_FILE = ".run.lock"
# In `evaluation_folder`.
EVALUATION_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.csv"

_SERIES_FOLDER = re.compile(r"(seed|fold)-[0-9]+")
_MAX_LISTED = 3
_NUMBER = re.compile(r"([0-9]+)")
_TRAIN_HINT = "Is it a run folder? Train one: pneumoscope train RECIPE"
_Record = TypeVar("_Record")


class _Header(msgspec.Struct):
    schema: Any = None


def is_run_folder(path: Path) -> bool:
    """Return whether a run was started in this folder."""
    return (path / RUN_FILE).is_file()


def seed_folder(out: Path, seed: int) -> Path:
    """Return the run folder of a seed in a folder of runs."""
    return out / f"seed-{seed}"


def fold_folder(out: Path, number: int) -> Path:
    """Return the run folder of a fold, counted from 1, in a folder of runs."""
    return out / f"fold-{number}"


def run_folder_name(run: Path) -> str:
    """Return the name of a run's folder, prefixed by its parent for a seed or fold, such as "quick/seed-3"."""
    folder = run.resolve()
    return f"{folder.parent.name}/{folder.name}" if _SERIES_FOLDER.fullmatch(folder.name) else folder.name


def run_folders(path: Path) -> list[Path]:
    """Return the runs in a folder or one level below, sorted by name with numbers by value; empty for a run."""
    if is_run_folder(path) or not path.is_dir():
        return []
    found = [each for folder in path.iterdir() for each in ([folder] if is_run_folder(folder) else _runs_in(folder))]
    return sorted(found, key=lambda each: [int(part) if part.isdigit() else part for part in _NUMBER.split(str(each))])


def has_other_files(folder: Path) -> bool:
    """Return whether a folder without runs contains anything but folders of interrupted seeds or folds."""
    if not folder.is_dir() or run_folders(folder):
        return False
    return any(not _SERIES_FOLDER.fullmatch(each.name) for each in folder.iterdir())


def _runs_in(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if is_run_folder(each)] if folder.is_dir() else []


def evaluation_folder(run: Path, name: str = "test") -> Path:
    """Return the folder of a run's evaluation.

    Args:
        run: The run folder.
        name: Name of the evaluation: a split of the run, or a user-specified name.
    """
    return run / "evaluation" / name


def evaluation_of_bundle(bundle: Path) -> Path | None:
    """Return the path of the test evaluation of the run that contains a bundle; None for a bundle outside a run.

    The file may not exist.
    """
    bundle = bundle.absolute()
    if bundle.name != BUNDLE_FOLDER or not is_run_folder(bundle.parent):
        return None
    return evaluation_folder(bundle.parent) / EVALUATION_FILE


def evaluation_names(run: Path) -> list[str]:
    """Return the names of a run's evaluations, sorted."""
    return sorted(path.parent.name for path in (run / "evaluation").glob(f"*/{EVALUATION_FILE}"))


def find_bundle(target: Path | None = None) -> Path:
    """Return the bundle of a run, the folder itself if it is not a run, or the bundle in the package.

    Args:
        target: Folder. None selects the bundle in the package, as does "default" unless a folder with this name exists.

    Raises:
        RunError: The run has no bundle, or the folder is a folder of runs.
    """
    if target is None or (target == Path("default") and not target.exists()):
        return DEFAULT_BUNDLE
    bundle = target / BUNDLE_FOLDER
    if bundle.is_dir():
        return bundle
    if is_run_folder(target):
        raise RunError(
            f"run {str(target)!r} has no bundle: training is not finished, or the bundle was not copied",
            hint="Finish it: pneumoscope train RECIPE --data DATA --out RUN --resume",
        )
    if not (target / CARD_FILE).is_file() and (runs := run_folders(target)):
        listed = ", ".join(str(run) for run in runs[:_MAX_LISTED]) + (", …" if len(runs) > _MAX_LISTED else "")
        raise RunError(f"{str(target)!r} is a folder of runs, not a model", hint=f"Name one of its runs: {listed}")
    return target


def read_text(path: Path, hint: str = _TRAIN_HINT) -> str:
    """Return the text of a file.

    Raises:
        RunError: The file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(f"cannot read {str(path)!r}: {reason}", hint=hint) from error


def read_json(path: Path, record_type: type[_Record], hint: str = _TRAIN_HINT) -> _Record:
    """Return the content of a JSON file as a record. Types must match exactly; unknown keys are ignored.

    Raises:
        RunError: The file is missing, not JSON, malformed, or of another schema.
    """
    text = read_text(path, hint)
    try:
        schema = msgspec.json.decode(text, type=_Header).schema
        if schema != SCHEMA:
            raise RunError(f"{str(path)!r} has schema {schema!r}; this version reads {SCHEMA}", hint=hint)
        return msgspec.json.decode(text, type=record_type)
    except msgspec.ValidationError as error:
        raise RunError(f"{str(path)!r} is malformed: {error}", hint=hint) from error
    except msgspec.DecodeError as error:
        raise RunError(f"{str(path)!r} is not JSON: {error}", hint=hint) from error
