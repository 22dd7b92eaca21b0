"""Targets of `evaluate`: a run, a bundle, the runs in a folder, or the folds of a cross-validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from pneumoscope.cli.progress import image_progress

__all__ = ["EvaluationTargets"]


@dataclasses.dataclass(frozen=True)
class EvaluationTargets:
    """Runs and bundles to evaluate.

    Attributes:
        folder: Folder given by the user.
        runs: Runs in the folder; empty if it is itself a run or bundle.
        split: Split to evaluate.
        is_folds: Whether the runs are the folds of a cross-validation.
    """

    folder: Path
    runs: tuple[Path, ...]
    split: str
    is_folds: bool

    @classmethod
    def find(cls, folder: Path, split: str | None, out: Path | None) -> Self:
        """Return the runs and bundles in a folder.

        Args:
            folder: Run, bundle or folder of runs.
            split: Split given by the user, or None.
            out: Folder for the results, which several runs cannot share.

        Raises:
            UsageError: The split or the folder for the results does not apply to these runs.
            RunError: A run has no bundle, or a fold is missing.
        """
        from pneumoscope.evaluation.comparison.cross_validation import OUT_OF_FOLD, find_folds, is_cross_validation
        from pneumoscope.runs.run_folder import run_folders

        is_folds = is_cross_validation(folder)
        if is_folds:
            _check_split_of_folds(folder, split)
        runs = find_folds(folder) if is_folds else run_folders(folder)
        _check_folder_of_runs(folder, runs, out)
        return cls(folder, tuple(runs), split or (OUT_OF_FOLD if is_folds else "test"), is_folds)

    @property
    def members(self) -> tuple[Path, ...]:
        """Runs and bundles to evaluate."""
        return self.runs or (self.folder,)

    def progress(self, member: Path) -> AbstractContextManager[Callable[[int, int], None] | None]:
        """Return a progress bar for a run or bundle."""
        return image_progress(f"scoring images of {member.name}" if self.runs else "scoring images")


def _check_folder_of_runs(folder: Path, runs: Sequence[Path], out: Path | None) -> None:
    """Raise before the first run is evaluated and recorded in the test ledger."""
    from pneumoscope.core.errors import UsageError
    from pneumoscope.runs.run_folder import find_bundle

    if runs and out is not None:
        raise UsageError(
            f"--out is given for a folder of runs, {str(folder)!r}",
            hint="Leave it out: each run keeps its own evaluation",
        )
    for run in runs:
        find_bundle(run)


def _check_split_of_folds(folder: Path, split: str | None) -> None:
    from pneumoscope.core.errors import UsageError

    if split not in (None, "validation"):
        raise UsageError(
            f"the folds in {str(folder)!r} are evaluated on their validation images, not on the split {split!r}",
            hint="For test images, train the recipe once on all training images and evaluate that run; or give one fold as RUN",
        )
