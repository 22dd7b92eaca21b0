"""The run folder: what a run was asked to do, where it is, and what came of it.

RUN/recipe.toml                 every field, defaults written out
    manifest.csv                the images, their labels, patients, splits and hashes
    run.json                    seed, device, versions, machine, state, averages, times, where it was resumed
    epochs.csv                  a row an epoch
    curves.svg
    checkpoints/                last.ckpt (the state), best.safetensors (the weights kept)
    tensorboard/
    bundle/                     network.onnx and card.json: what everything after training reads
    evaluation/SPLIT/           written by `evaluate`

While a process trains in it there is a lock, `.run.lock`, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pneumoscope import __version__
from pneumoscope.core.errors import RunError
from pneumoscope.core.files import is_temporary, locked, write_atomically
from pneumoscope.data.manifest import Manifest
from pneumoscope.training.recipe import Recipe, check

__all__ = [
    "BUNDLE",
    "CURVES",
    "MANIFEST",
    "RECIPE",
    "RUN",
    "begin",
    "finish",
    "go_on",
    "hold",
    "machine",
    "now",
    "read_run",
    "refuse_another_run",
    "refuse_other_weights",
    "versions",
]

RUN, RECIPE, MANIFEST, CURVES, BUNDLE = "run.json", "recipe.toml", "manifest.csv", "curves.svg", "bundle"
_LOCK = ".run.lock"
_SCHEMA = 1
_LIBRARIES = ("torch", "torchvision", "lightning", "timm", "onnx", "onnxruntime", "numpy", "pillow")


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """This package, Python and the libraries that decide numbers."""
    found = {"pneumoscope": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Processor, cores and operating system; no host name."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": processor, "cores": str(os.cpu_count()), "system": f"{platform.system()} {platform.machine()}"}


def read_run(run: Path) -> dict[str, Any]:
    """What `run.json` says.

    Raises:
        RunError: there is none, or it is of another schema.
    """
    try:
        data: dict[str, Any] = json.loads((run / RUN).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{str(run)!r} is no run folder: {error}", hint="Make one: pneumoscope train") from error
    if data.get("schema") != _SCHEMA:
        raise RunError(f"{str(run / RUN)!r} has schema {data.get('schema')!r}; this version reads {_SCHEMA}")
    return data


@contextlib.contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keep every other process from training in a folder; the folder is made where missing.

    Nothing of it stays: no lock, nor a folder in which nothing was begun.

    Raises:
        RunError: another process trains in it.
        StorageError: see `storage.locked`.
    """
    made = not run.exists()
    held = RunError(
        f"another process is training in {str(run)!r}",
        hint="Wait for it or stop it, then go on with --resume; or choose another folder with --out",
    )
    with locked(run / _LOCK, held):
        try:
            yield
        finally:
            # Still locked. Nobody waits for this lock, so nobody is left with the one that is removed.
            with contextlib.suppress(OSError):
                (run / _LOCK).unlink()
                if made:
                    run.rmdir()  # fails where there is anything in it


def refuse_another_run(run: Path, recipe: Recipe, manifest: Manifest, *, resume: bool) -> None:
    """Check a folder that a run is to be made in, before anything is done or written.

    Args:
        run: the folder; it may be there or not.
        recipe, manifest: of the run.
        resume: go on where the folder left off.
    Raises:
        RunError: the folder is in use and `resume` is not asked for, or it is another run's.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"{str(run)!r} is a file, not a folder", hint="Choose another folder with --out")
    if not (run / RUN).exists():
        # A run that was killed while it made its folder has left no more than this, and nothing of anybody else's.
        begun = {path.name for path in run.iterdir()} - {_LOCK} if run.exists() else set()
        own = {
            name
            for name in begun
            if name in {RECIPE, MANIFEST} or any(is_temporary(name, of) for of in (RECIPE, MANIFEST, RUN))
        }
        if begun - own or (begun and not resume):
            raise RunError(f"{str(run)!r} is not empty and holds no run", hint="Choose another folder with --out")
        return
    if not resume:
        raise RunError(
            f"{str(run)!r} holds a run already",
            hint="Go on with it: --resume; or choose another folder with --out",
        )
    before = read_run(run)
    hint = "Resume with the same recipe, the same --set and the same images, or choose another folder with --out"
    # Read as a recipe, so that a field that did not exist yet has the value that leaves everything as it was.
    was, asked = (each.model_dump(mode="json") for each in (check(before["recipe"], str(run / RUN)), recipe))
    if was != asked:
        raise RunError(f"{str(run)!r} is a run of another recipe: {_first_change(was, asked)}", hint=hint)
    if before["manifest_sha256"] != manifest.sha256():
        raise RunError(f"{str(run)!r} is a run on other images, labels or splits", hint=hint)


def refuse_other_weights(run: Path, sha256: str) -> None:
    """Raise where a run that was begun would go on from other starting weights than it began with.

    Those that are drawn by seed are not compared: another version of torch, or another processor, may draw others.

    Args:
        run: the folder, which may not be begun yet.
        sha256: of the weights at hand.
    Raises:
        RunError: naming both.
    """
    if not (run / RUN).exists():
        return
    before = read_run(run)
    if before["weights"] != "none" and before["weights_sha256"] != sha256:
        raise RunError(
            f"{str(run)!r} was begun with the starting weights {before['weights_sha256'][:16]};"
            f" {before['weights']!r} now gives {sha256[:16]}",
            hint="Put the weights back that it was begun with, or choose another folder with --out",
        )


def begin(run: Path, recipe: Recipe, manifest: Manifest, facts: dict[str, Any]) -> None:
    """Make the run folder.

    Args:
        run: the folder.
        recipe, manifest: of the run.
        facts: what else goes into `run.json`.
    Raises:
        StorageError: it cannot be written.
    """
    write_atomically(run / RECIPE, recipe.to_toml())
    write_atomically(run / MANIFEST, manifest.to_csv())
    data = {
        "schema": _SCHEMA,
        "name": recipe.name,
        "state": "running",
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.training.seed,
        "network": recipe.network.name,
        "optimizer": recipe.optimizer.name,
        "batch": recipe.training.batch,
        "image_size": recipe.network.image_size,
        "epochs": recipe.training.epochs,
        "weights": recipe.network.weights,
        "manifest_sha256": manifest.sha256(),
        "counts": manifest.counts(),
        "split_by": manifest.split_by,
        **facts,
        "versions": versions(),
        "machine": machine(),
        "started": now(),
        "resumed": [],
    }
    # Last, so that a folder with `run.json` has all the rest.
    write_atomically(run / RUN, json.dumps(data, indent=2) + "\n")


def go_on(run: Path, epochs: int, facts: dict[str, Any]) -> None:
    """StoredPrediction that a run that was begun before goes on, and where: what it began with stays as it was written.

    Args:
        run: the folder.
        epochs: done so far.
        facts: device and precision.
    Raises:
        StorageError: it cannot be written.
    """
    data = read_run(run)
    here = {"when": now(), "epoch": epochs, **facts, "machine": machine(), "versions": versions()}
    data["resumed"] = [*data["resumed"], here]
    write_atomically(run / RUN, json.dumps(data, indent=2) + "\n")


def finish(run: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Add what came of the run and mark it finished; gives `run.json` back."""
    data = {**read_run(run), **facts, "state": "finished", "finished": now()}
    write_atomically(run / RUN, json.dumps(data, indent=2) + "\n")
    return data


def _first_change(before: object, after: object, path: str = "") -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        key = next(key for key in sorted({*before, *after}) if before.get(key) != after.get(key))
        return _first_change(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    return f"{path} was {before!r}, now {after!r}"
