"""The run folder: what a run was asked to do, where it is, and what came of it.

RUN/recipe.toml                 every field, defaults written out
    manifest.csv                the films, their labels, patients, splits and hashes
    run.json                    seed, device, versions, machine, state, averages, times
    epochs.csv                  a row an epoch
    curves.svg
    checkpoints/                last.ckpt (the state), best.safetensors (the weights kept)
    tensorboard/
    bundle/                     network.onnx and card.json: what everything after training reads
    evaluation/SPLIT/           written by `evaluate`
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pneumoscope import __version__
from pneumoscope.dataset.manifest import Manifest
from pneumoscope.errors import RunError
from pneumoscope.storage import write_atomically
from pneumoscope.training.recipe import Recipe

__all__ = [
    "BUNDLE",
    "CURVES",
    "MANIFEST",
    "RECIPE",
    "RUN",
    "begin",
    "finish",
    "machine",
    "now",
    "read_run",
    "refuse_another_run",
    "versions",
]

RUN, RECIPE, MANIFEST, CURVES, BUNDLE = "run.json", "recipe.toml", "manifest.csv", "curves.svg", "bundle"
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
        raise RunError(f"{str(run)!r} is no run folder: {error}", advice="Make one: pneumoscope train") from error
    if data.get("schema") != _SCHEMA:
        raise RunError(f"{str(run / RUN)!r} has schema {data.get('schema')!r}; this version reads {_SCHEMA}")
    return data


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
        raise RunError(f"{str(run)!r} is a file, not a folder", advice="Choose another folder with --out")
    if not (run / RUN).exists():
        # A run that was killed while it made its folder has left no more than this, and nothing of anybody else's.
        begun = {path.name for path in run.iterdir()} if run.exists() else set()
        own = {
            name
            for name in begun
            if name in {RECIPE, MANIFEST} or name.startswith((f".{RECIPE}-", f".{MANIFEST}-", f".{RUN}-"))
        }
        if begun - own or (begun and not resume):
            raise RunError(f"{str(run)!r} is not empty and holds no run", advice="Choose another folder with --out")
        return
    if not resume:
        raise RunError(
            f"{str(run)!r} holds a run already",
            advice="Go on with it: --resume; or choose another folder with --out",
        )
    before = read_run(run)
    advice = "Resume with the same recipe and films, or choose another folder with --out"
    was, asked = before["recipe"], recipe.model_dump(mode="json")
    if was != asked:
        raise RunError(f"{str(run)!r} is a run of another recipe: {_first_change(was, asked)}", advice=advice)
    if before["manifest_sha256"] != manifest.sha256():
        raise RunError(f"{str(run)!r} is a run on other films, labels or splits", advice=advice)


def begin(run: Path, recipe: Recipe, manifest: Manifest, facts: dict[str, Any]) -> None:
    """Make the run folder; one that was begun before is left as it is.

    Args:
        run: the folder.
        recipe, manifest: of the run.
        facts: what else goes into `run.json`.
    Raises:
        StorageError: it cannot be written.
    """
    if (run / RUN).exists():
        return
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
        "split_by": manifest.by,
        **facts,
        "versions": versions(),
        "machine": machine(),
        "started": now(),
    }
    # Last, so that a folder with `run.json` has all the rest.
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
