"""The test ledger: every test-set evaluation is recorded before its result is shown.

The ledger does not prevent repeated evaluations of a test set; it makes them visible. It is an append-only JSON Lines
file. Lines written before 2026-11-28 use the keys `films_sha256` and `look` for `images_sha256` and `test_evaluation`.
A line with the key `note` is a remark, not an evaluation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.core.errors import StorageError
from pneumoscope.core.files import append_line, locked
from pneumoscope.core.multiclass_results import MulticlassEvaluation
from pneumoscope.core.results import Evaluation

__all__ = ["ENVIRONMENT", "default_ledger", "ledger_entry", "record_evaluation"]

ENVIRONMENT = "PNEUMOSCOPE_LEDGER"


def default_ledger() -> Path:
    """Return the path in PNEUMOSCOPE_LEDGER, or `results/test-ledger.jsonl` in the current folder."""
    return Path(os.environ.get(ENVIRONMENT) or Path("results") / "test-ledger.jsonl")


def ledger_entry(evaluation: Evaluation | MulticlassEvaluation, **particulars: Any) -> dict[str, Any]:
    """Return the ledger entry of an evaluation, without its number.

    Args:
        evaluation: The evaluation.
        particulars: Fields specific to this kind of evaluation.
    """
    return {
        "when": evaluation.created,
        "name": evaluation.name,
        "bundle_sha256": evaluation.bundle_sha256,
        **({"predictions_sha256": evaluation.predictions_sha256} if evaluation.predictions_sha256 else {}),
        "images_sha256": evaluation.images_sha256,
        "n": evaluation.n,
        "split": evaluation.split,
        "recipe": evaluation.recipe.get("name", ""),
        "metrics": {name: interval.value for name, interval in evaluation.metrics.items()},
        **particulars,
        "version": evaluation.version,
    }


def record_evaluation(ledger: Path, entry: Mapping[str, Any], *, lock_timeout: float = 60.0) -> int:
    """Append an evaluation and return its number among the evaluations of the same images.

    Concurrent processes are serialized by a lock on a hidden file next to the ledger. The line is flushed to disk
    before this returns.

    Args:
        ledger: The file; created if missing.
        entry: The evaluation, with `images_sha256`; `test_evaluation` is added.
        lock_timeout: Seconds to wait for other processes; writing a line takes far less than one.
    Raises:
        StorageError: The ledger cannot be written, or one of its lines is malformed. It is unchanged.
    """
    held = StorageError(
        f"the test ledger {str(ledger)!r} has been locked by another process for {lock_timeout:.0f} s",
        hint="Try again when that process has ended",
    )
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(ledger, error) from error
    with locked(ledger.parent / f".{ledger.name}.lock", held, timeout=lock_timeout):
        return _add(ledger, entry)


def _add(ledger: Path, entry: Mapping[str, Any]) -> int:
    try:
        handle = os.open(ledger, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    except OSError as error:
        raise _unwritable(ledger, error) from error
    try:
        before = _read(handle)
        number = 1 + _count_evaluations(before, entry["images_sha256"], ledger)
        line = json.dumps({**entry, "test_evaluation": number}, allow_nan=False, ensure_ascii=False) + "\n"
        append_line(handle, line.encode(), size=len(before))
    except OSError as error:
        raise _unwritable(ledger, error) from error
    finally:
        os.close(handle)
    return number


def _read(handle: int) -> bytes:
    with os.fdopen(os.dup(handle), "rb") as file:
        file.seek(0)
        return file.read()


def _count_evaluations(text: bytes, images_sha256: str, ledger: Path) -> int:
    """Return the number of evaluations of the same images; raise if any line is malformed."""
    count = 0
    data: Any
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        try:
            data = json.loads(line) if line.endswith(b"\n") else None
            if "note" not in data:
                key = "films_sha256" if "films_sha256" in data else "images_sha256"
                count += data[key] == images_sha256
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(
                f"line {number} of {str(ledger)!r} is malformed: {line[:60].decode(errors='replace')!r}",
                hint="Restore the ledger from version control, or repair the line by hand; nothing was appended",
            ) from error
    return count


def _unwritable(ledger: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write the test ledger {str(ledger)!r}: {error.strerror or error}",
        hint=f"Test-set evaluations must be recorded; choose another ledger with --ledger FILE or {ENVIRONMENT}",
    )
