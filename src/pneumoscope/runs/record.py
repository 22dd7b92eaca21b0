"""The record of a run (`run.json`): what was asked, where it ran and what came of it; starting, resuming and finishing a run."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec

from pneumoscope import __version__
from pneumoscope.core.errors import RunError
from pneumoscope.core.files import is_temporary, locked, write_atomically
from pneumoscope.core.results import SCHEMA
from pneumoscope.data.manifest import Manifest
from pneumoscope.runs.files import read_document
from pneumoscope.runs.recipe import Recipe, check
from pneumoscope.runs.run_folder import LOCK_FILE, MANIFEST_FILE, RECIPE_FILE, RUN_FILE, is_run_folder

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
    "versions",
]

# Fields that a finished run has.
_RESULTS = (
    "best_epoch",
    "average_train_accuracy",
    "average_validation_accuracy",
    "best_validation_accuracy",
    "seconds",
)
_LIBRARIES = ("torch", "torchvision", "lightning", "timm", "onnx", "onnxruntime", "numpy", "pillow")


class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """One resumption of a run: when, after how many epochs, and on what."""

    when: str
    epoch: int
    device: str
    precision: str
    machine: dict[str, str]
    versions: dict[str, str]


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The contents of `run.json`.

    Attributes:
        state: "running" until the bundle is written.
        recipe: Every field, as data. Older records may lack fields that were added later.
        weights: Where the starting weights come from, as in the recipe.
        weights_sha256: Of the starting weights; empty in records from before it was kept.
        counts: Images by split and label.
        best_epoch: The epoch whose weights are in the bundle. This and what follows is None while the run is not finished.
        average_train_accuracy, average_validation_accuracy: Means over the epochs.
        seconds: Wall clock of all epochs.
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
        """Return the record as indented JSON; fields without a value are left out."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that affect numbers."""
    found = {"pneumoscope": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Return processor, cores and operating system, without the host name."""
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
    record = read_document(run / RUN_FILE, RunRecord)
    if finished and record.state != "finished":
        raise RunError(
            f"run {record.name!r} is {record.state!r}, not finished ({str(run / RUN_FILE)!r})",
            hint="Finish it: pneumoscope train RECIPE --data DATA --out RUN --resume",
        )
    return record


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keep other processes from training in a folder, which is made where missing.

    On exit the lock is removed, and so is the folder if it was made here and is empty.

    Raises:
        RunError: Another process trains in the folder.
        StorageError: See `storage.locked`.
    """
    made = not run.exists()
    held = RunError(
        f"another process is training in {str(run)!r}",
        hint="Wait for it or stop it, then go on with --resume; or choose another folder with --out",
    )
    with locked(run / LOCK_FILE, held):
        try:
            yield
        finally:
            # Removed while still locked. No process waits for this lock, so none can be left holding a removed file.
            with contextlib.suppress(OSError):
                (run / LOCK_FILE).unlink()
                if made:
                    run.rmdir()  # fails unless the folder is empty


def check_output_folder(run: Path, recipe: Recipe, manifest: Manifest, *, resume: bool) -> None:
    """Raise where a run cannot be started or resumed in this folder. Nothing is written.

    Args:
        run: The folder; it need not exist.
        recipe, manifest: Of the run.
        resume: Resume the run in the folder, if there is one.
    Raises:
        RunError: The folder is in use and `resume` is false, or it belongs to another run.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"{str(run)!r} is a file, not a folder", hint="Choose another folder with --out")
    if not is_run_folder(run):
        # A run killed while it made its folder leaves at most these files.
        present = {path.name for path in run.iterdir()} - {LOCK_FILE} if run.exists() else set()
        own = {
            name
            for name in present
            if name in {RECIPE_FILE, MANIFEST_FILE}
            or any(is_temporary(name, of) for of in (RECIPE_FILE, MANIFEST_FILE, RUN_FILE))
        }
        if present - own or (present and not resume):
            raise RunError(f"{str(run)!r} is not empty and holds no run", hint="Choose another folder with --out")
        return
    if not resume:
        raise RunError(
            f"{str(run)!r} holds a run already",
            hint="Resume it: --resume; or choose another folder with --out",
        )
    before = read_run(run)
    hint = "Resume with the same recipe, the same --set and the same images, or choose another folder with --out"
    # Validated again, so that a field that did not exist yet takes its default.
    old, new = (each.model_dump(mode="json") for each in (check(before.recipe, str(run / RUN_FILE)), recipe))
    if old != new:
        raise RunError(f"{str(run)!r} is a run of another recipe: {_first_difference(old, new)}", hint=hint)
    if before.manifest_sha256 != manifest.sha256():
        raise RunError(f"{str(run)!r} is a run on other images, labels or splits", hint=hint)


def check_starting_weights(run: Path, sha256: str) -> None:
    """Raise where a run would resume with other starting weights than it was started with.

    Weights drawn from the seed are not compared: another version of torch or another processor may draw others.

    Args:
        run: The folder; the run need not be started yet.
        sha256: Of the weights found now.
    Raises:
        RunError: The hashes differ.
    """
    if not is_run_folder(run):
        return
    before = read_run(run)
    if before.weights != "none" and before.weights_sha256 != sha256:
        raise RunError(
            f"{str(run)!r} was started with the weights {before.weights_sha256[:16]};"
            f" {before.weights!r} now gives {sha256[:16]}",
            hint="Restore the weights that it was started with, or choose another folder with --out",
        )


def create_run(
    run: Path, recipe: Recipe, manifest: Manifest, *, device: str, precision: str, weights_sha256: str
) -> None:
    """Write the recipe, the manifest and the record of a new run.

    Raises:
        StorageError: A file cannot be written.
    """
    write_atomically(run / RECIPE_FILE, recipe.to_toml())
    write_atomically(run / MANIFEST_FILE, manifest.to_csv())
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
        versions=versions(),
        machine=machine(),
        started=now(),
    )
    # Last, so that a folder with `run.json` has the other files too.
    write_atomically(run / RUN_FILE, record.to_json())


def record_resumption(run: Path, epoch: int, *, device: str, precision: str) -> None:
    """Append a `Resumption` to the record of a run; the rest stays as it was written.

    Args:
        run: The run folder.
        epoch: Epochs done so far.
        device, precision: Of the resumed run.
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
