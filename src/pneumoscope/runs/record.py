"""The record of a run (`run.json`): settings, environment and results; start, resume and finish a run."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec

from pneumoscope import __version__
from pneumoscope.core.errors import RunError
from pneumoscope.core.files import is_temporary, locked, write_atomically
from pneumoscope.core.results import SCHEMA
from pneumoscope.data.folds import Fold
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.outliers import Outliers
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.recipe_files import parse_recipe
from pneumoscope.runs.run_folder import (
    LOCK_FILE,
    MANIFEST_FILE,
    OUTLIERS_FILE,
    RECIPE_FILE,
    RUN_FILE,
    is_run_folder,
    read_json,
    run_folders,
)

__all__ = [
    "Resumption",
    "RunRecord",
    "check_output_folder",
    "check_starting_weights",
    "create_run",
    "finish_run",
    "lock_run",
    "machine",
    "now",
    "read_run",
    "record_resumption",
    "recorded_labels",
    "records_json",
    "versions",
]

# Fields that a finished run must have.
_RESULTS = (
    "best_epoch",
    "average_train_accuracy",
    "average_validation_accuracy",
    "best_validation_accuracy",
    "seconds",
)
_LIBRARIES = ("torch", "torchvision", "lightning", "timm", "onnx", "onnxruntime", "numpy", "pillow")


class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """One resumption of a run.

    Attributes:
        when: Time, UTC, ISO 8601.
        epoch: Number of completed epochs.
        device, precision, machine, versions: As in `RunRecord`, after the resumption.
    """

    when: str
    epoch: int
    device: str
    precision: str
    machine: dict[str, str]
    versions: dict[str, str]


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The contents of `run.json`.

    Attributes:
        state: "running" until the bundle is written, then "finished".
        recipe: All fields of the recipe. Older records may lack fields that were added later.
        weights: Initial weights, as in the recipe.
        weights_sha256: Hash of the initial weights; empty in older records.
        outliers_sha256: Hash of the images of patients outside the age range; empty without an age classifier.
        labels: Names of columns and labels of the data, reused by `evaluate`; None for the defaults.
        counts: Number of images by split and label.
        fold, folds: Number of the validation fold, from 1, and number of folds; None without cross-validation.
        device: "cpu" or the name of the GPU, with the number of devices if there are several.
        precision: "32" or "bf16".
        machine: Processor, cores and operating system.
        started, finished: Time, UTC, ISO 8601.
        resumed: Resumptions, in order.
        best_epoch: Epoch whose weights are in the bundle. This and the following fields are None until the run is
            finished.
        average_train_accuracy, average_validation_accuracy: Means over the epochs.
        best_validation_accuracy: Validation accuracy of the best epoch.
        seconds: Wall-clock time of all epochs.
    """

    schema: int
    name: str
    state: Literal["running", "finished"]
    recipe: dict[str, Any]
    seed: int
    network: str
    optimizer: str
    batch: int
    image_size: int
    epochs: int
    weights: str
    manifest_sha256: str
    counts: dict[str, dict[str, int]]
    split_by: str
    device: str
    precision: str
    weights_sha256: str = ""
    outliers_sha256: str = ""
    labels: LabelMapping | None = None
    fold: int | None = None
    folds: int | None = None
    versions: dict[str, str]
    machine: dict[str, str]
    started: str
    resumed: tuple[Resumption, ...] = ()
    best_epoch: int | None = None
    average_train_accuracy: float | None = None
    average_validation_accuracy: float | None = None
    best_validation_accuracy: float | None = None
    seconds: float | None = None
    finished: str | None = None

    def __post_init__(self) -> None:
        if self.state == "finished":
            missing = [name for name in _RESULTS if getattr(self, name) is None]
            if missing:
                raise ValueError(f"a finished run has no {missing[0]}")

    def to_json(self) -> str:
        """Return the record as indented JSON, omitting fields without a value."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"


def records_json(records: Sequence[RunRecord]) -> str:
    """Return records as one indented JSON list; see `RunRecord.to_json`."""
    return msgspec.json.format(msgspec.json.encode(records), indent=2).decode() + "\n"


def now() -> str:
    """Return the current time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that affect results."""
    result = {"pneumoscope": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result


def machine() -> dict[str, str]:
    """Return the processor, the number of cores and the operating system, but not the host name."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": processor, "cores": str(os.cpu_count()), "system": f"{platform.system()} {platform.machine()}"}


def read_run(run: Path, *, finished: bool = False) -> RunRecord:
    """Return the record of a run.

    Args:
        run: The run folder.
        finished: Raise if the run is not finished.

    Raises:
        RunError: `run.json` is missing, malformed or of another schema, or the run is not finished.
    """
    record = read_json(run / RUN_FILE, RunRecord)
    if finished and record.state != "finished":
        raise RunError(
            f"run {record.name!r} is {record.state!r}, not finished ({str(run / RUN_FILE)!r})",
            hint="Finish it: pneumoscope train RECIPE --data DATA --out RUN --resume",
        )
    return record


def recorded_labels(target: Path) -> LabelMapping | None:
    """Return the label mapping of a run, or of the first run in a folder of runs; None without a run or mapping.

    Args:
        target: Run, folder of runs, or any other folder.
    """
    runs = [target] if is_run_folder(target) else run_folders(target)
    return read_run(runs[0]).labels if runs else None


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[int]:
    """Prevent other processes from training in a folder, which is created if missing.

    Yields the file descriptor of the lock, for worker processes; see `core.files.locked`. On exit the lock file is
    removed, as is the folder if it was created here and is empty.

    Raises:
        RunError: Another process is training in the folder.
        StorageError: See `core.files.locked`.
    """
    created = not run.exists()
    held = RunError(
        f"another process is training in {str(run)!r}",
        hint="Wait for it or stop it, then use --resume; or choose another folder with --out",
    )
    with locked(run / LOCK_FILE, held) as descriptor:
        try:
            yield descriptor
        finally:
            # Removed while locked. No process waits for this lock, so none can hold the removed file.
            with contextlib.suppress(OSError):
                (run / LOCK_FILE).unlink()
                if created:
                    run.rmdir()  # fails unless the folder is empty


def check_output_folder(
    run: Path, recipe: Recipe, manifest: Manifest, outliers: Outliers | None = None, *, resume: bool
) -> None:
    """Raise if a run cannot be started or resumed in this folder, without writing anything.

    Args:
        run: The folder; it does not need to exist.
        recipe, manifest, outliers: Recipe and images of the run.
        resume: Resume the run in the folder if there is one.

    Raises:
        RunError: The folder is not empty and `resume` is false, or it belongs to another run.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"{str(run)!r} is a file, not a folder", hint="Choose another folder with --out")
    if not is_run_folder(run):
        # A process killed while starting a run leaves at most these files.
        present = {path.name for path in run.iterdir()} - {LOCK_FILE} if run.exists() else set()
        incomplete = {
            name
            for name in present
            if name in {RECIPE_FILE, MANIFEST_FILE, OUTLIERS_FILE}
            or any(is_temporary(name, target) for target in (RECIPE_FILE, MANIFEST_FILE, OUTLIERS_FILE, RUN_FILE))
        }
        if present - incomplete or (present and not resume):
            raise RunError(f"{str(run)!r} is not empty and has no run", hint="Choose another folder with --out")
        return
    if not resume:
        raise RunError(
            f"{str(run)!r} already has a run",
            hint="Resume it with --resume, or choose another folder with --out",
        )
    before = read_run(run)
    hint = "Resume with the same recipe, --set options and images, or choose another folder with --out"
    # Parse again, so that fields missing from an older record get their defaults.
    recorded = parse_recipe(before.recipe, str(run / RUN_FILE)).model_dump(mode="json")
    requested = recipe.model_dump(mode="json")
    if recorded != requested:
        raise RunError(f"{str(run)!r} has a run of another recipe: {_first_difference(recorded, requested)}", hint=hint)
    if before.manifest_sha256 != manifest.sha256():
        raise RunError(f"{str(run)!r} has a run on other images, labels or splits", hint=hint)
    if before.outliers_sha256 != (outliers.sha256() if outliers else ""):
        raise RunError(f"{str(run)!r} has a run on other images outside the age range", hint=hint)


def check_starting_weights(run: Path, sha256: str) -> None:
    """Raise if a resumed run would have other initial weights than at its start.

    Randomly initialized weights are not compared, because they may differ between versions of torch and between
    processors.

    Args:
        run: The folder; it may not contain a run yet.
        sha256: Hash of the current initial weights.

    Raises:
        RunError: The hashes differ.
    """
    if not is_run_folder(run):
        return
    before = read_run(run)
    if before.weights != "none" and before.weights_sha256 != sha256:
        raise RunError(
            f"{str(run)!r} was started with weights of SHA-256 {before.weights_sha256[:16]};"
            f" {before.weights!r} now has SHA-256 {sha256[:16]}",
            hint="Restore the original weights, or choose another folder with --out",
        )


def create_run(
    run: Path,
    recipe: Recipe,
    manifest: Manifest,
    outliers: Outliers | None = None,
    *,
    fold: Fold | None = None,
    device: str,
    precision: str,
    weights_sha256: str,
    labels: LabelMapping | None = None,
) -> None:
    """Write the recipe, the images and the record of a new run.

    Raises:
        StorageError: A file cannot be written.
    """
    write_atomically(run / RECIPE_FILE, recipe.to_toml())
    manifest.save(run / MANIFEST_FILE, replace=True)
    if outliers:
        outliers.save(run / OUTLIERS_FILE)
    record = RunRecord(
        schema=SCHEMA,
        name=recipe.name,
        state="running",
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.training.seed,
        network=recipe.network.name,
        optimizer=recipe.optimizer.name,
        batch=recipe.training.batch,
        image_size=recipe.network.image_size,
        epochs=recipe.training.epochs,
        weights=recipe.network.weights,
        manifest_sha256=manifest.sha256(),
        counts=manifest.counts(),
        split_by=manifest.split_by,
        device=device,
        precision=precision,
        weights_sha256=weights_sha256,
        outliers_sha256=outliers.sha256() if outliers else "",
        labels=None if labels == LabelMapping() else labels,
        fold=fold.number if fold else None,
        folds=fold.count if fold else None,
        versions=versions(),
        machine=machine(),
        started=now(),
    )
    # Written last, so that a folder with `run.json` also has the other files.
    write_atomically(run / RUN_FILE, record.to_json())


def record_resumption(run: Path, epoch: int, *, device: str, precision: str) -> None:
    """Append a `Resumption` to the record of a run.

    Args:
        run: The run folder.
        epoch: Number of completed epochs.
        device, precision: Device and precision after the resumption.

    Raises:
        StorageError: The record cannot be written.
    """
    record = read_run(run)
    resumption = Resumption(
        when=now(), epoch=epoch, device=device, precision=precision, machine=machine(), versions=versions()
    )
    write_atomically(run / RUN_FILE, msgspec.structs.replace(record, resumed=(*record.resumed, resumption)).to_json())


def finish_run(run: Path, results: Mapping[str, float]) -> RunRecord:
    """Add the results to the record of a run, mark it finished and return it.

    Args:
        run: The run folder.
        results: Values of the `RunRecord` fields from `best_epoch` to `seconds`.

    Raises:
        StorageError: The record cannot be written.
    """
    record = msgspec.structs.replace(read_run(run), **results, state="finished", finished=now())
    write_atomically(run / RUN_FILE, record.to_json())
    return record


def _first_difference(before: object, after: object, path: str = "") -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        key = next(key for key in sorted({*before, *after}) if before.get(key) != after.get(key))
        return _first_difference(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    return f"{path} was {before!r}, now {after!r}"
