"""Layout of a run folder.

RUN/recipe.toml                 the recipe, defaults written out
    manifest.csv                images, labels, patients, splits and hashes
    run.json                    see `record.RunRecord`
    epochs.csv                  one row per epoch, see `epochs.Epoch`
    curves.svg                  the same as a figure
    checkpoints/                last.ckpt (state to resume from), best.safetensors (weights kept)
    tensorboard/                the same metrics for TensorBoard
    bundle/                     network.onnx and card.json
    evaluation/SPLIT/           evaluation.json and predictions.csv, written by `evaluate`

A process that trains in the folder holds the lock `.run.lock`.
"""

from __future__ import annotations

from pathlib import Path

from pneumoscope.bundle.card import DEFAULT_BUNDLE
from pneumoscope.core.errors import RunError

__all__ = [
    "BUNDLE_FOLDER",
    "CHECKPOINT_FILE",
    "CURVES_FILE",
    "EPOCHS_FILE",
    "EVALUATION_FILE",
    "LOCK_FILE",
    "MANIFEST_FILE",
    "PREDICTIONS_FILE",
    "RECIPE_FILE",
    "RUN_FILE",
    "TENSORBOARD_FOLDER",
    "WEIGHTS_FILE",
    "evaluation_folder",
    "find_bundle",
    "is_run_folder",
]

RUN_FILE = "run.json"
RECIPE_FILE = "recipe.toml"
MANIFEST_FILE = "manifest.csv"
EPOCHS_FILE = "epochs.csv"
CURVES_FILE = "curves.svg"
CHECKPOINT_FILE = "checkpoints/last.ckpt"
WEIGHTS_FILE = "checkpoints/best.safetensors"
TENSORBOARD_FOLDER = "tensorboard"
BUNDLE_FOLDER = "bundle"
LOCK_FILE = ".run.lock"
# Inside `evaluation_folder`.
EVALUATION_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.csv"


def is_run_folder(path: Path) -> bool:
    """Return True where a run was started in this folder."""
    return (path / RUN_FILE).is_file()


def evaluation_folder(run: Path, split: str = "test") -> Path:
    """Return the folder of a run's evaluation on one split."""
    return run / "evaluation" / split


def find_bundle(target: Path | None = None) -> Path:
    """Return the bundle of a run folder, the folder itself where it is not a run, and the packaged one for None.

    Raises:
        RunError: The run has no bundle.
    """
    if target is None:
        return DEFAULT_BUNDLE
    bundle = target / BUNDLE_FOLDER
    if bundle.is_dir():
        return bundle
    if is_run_folder(target):
        raise RunError(
            f"run {str(target)!r} has no bundle: it is not finished, or its weights were left elsewhere",
            hint="Finish it: pneumoscope train RECIPE --data DATA --out RUN --resume",
        )
    return target
