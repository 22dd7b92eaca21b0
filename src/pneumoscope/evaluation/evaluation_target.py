"""Locate the run or bundle to evaluate and its result folders, and name the evaluations of a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from pneumoscope.core.errors import UsageError
from pneumoscope.data.manifest import LabeledImage, Manifest
from pneumoscope.evaluation.split_images import SplitImages
from pneumoscope.runs.run_folder import BUNDLE_FOLDER, MANIFEST_FILE, evaluation_folder, find_bundle

__all__ = ["EvaluationTarget"]

_NAME = r"\w[\w.-]*"


@dataclasses.dataclass(frozen=True)
class EvaluationTarget:
    """A run or bundle to evaluate.

    Attributes:
        path: Run folder or bundle folder.
        bundle: Folder of the bundle.
    """

    path: Path
    bundle: Path

    @classmethod
    def find(cls, path: str | Path) -> Self:
        """Return the run or bundle in a folder.

        Raises:
            RunError: See `run_folder.find_bundle`.
        """
        return cls(Path(path), find_bundle(Path(path)))

    @property
    def run(self) -> Path | None:
        """The run folder; None for a bundle."""
        return self.path if self.bundle == self.path / BUNDLE_FOLDER else None

    @property
    def run_manifest(self) -> Path | None:
        """Manifest of the run; None for a bundle."""
        return None if self.run is None else self.run / MANIFEST_FILE

    def check_name(self, name: str | None, *, has_out: bool) -> None:
        """Raise if a name is not allowed for an evaluation of this target.

        Args:
            name: The name; None for the default.
            has_out: Whether an output folder is given.

        Raises:
            UsageError: The name is not a valid folder name, or the results are not stored in a run.
        """
        if name is None:
            return
        if self.run is None or has_out:
            raise UsageError(
                f"the name {name!r} is that of an evaluation in a run folder",
                hint="Give --name for a run without --out, or --out without --name",
            )
        if not re.fullmatch(_NAME, name):
            raise UsageError(f"{name!r} is not the name of an evaluation", hint="Use letters, digits, '.', '-' and '_'")

    def results_folder(
        self,
        out: str | Path | None,
        name: str | None,
        evaluated: SplitImages,
        note: Callable[[str], None] | None,
        *,
        site_sha256: str = "",
    ) -> Path | None:
        """Return the folder of the results; None for a bundle without `out`, whose results are not written.

        Args:
            out: The output folder, if given.
            name: Name of the evaluation of a run; the default if None.
            evaluated, note, site_sha256: See `_default_name`.
        """
        if out is not None:
            return Path(out)
        if self.run is None:
            return None
        return evaluation_folder(
            self.run,
            name or _default_name(self.run, evaluated.data, evaluated.split, evaluated.images, site_sha256, note),
        )

    def reference_folder(self, reference: str | Path | None) -> Path | None:
        """Return the folder of the reference: the run's evaluation of that name, or the path itself; None for None."""
        if reference is None:
            return None
        if self.run is not None and (folder := evaluation_folder(self.run, str(reference))).is_dir():
            return folder
        return Path(reference)


def _default_name(
    run: Path,
    data: Path,
    split: str,
    images: Sequence[LabeledImage],
    site_sha256: str,
    note: Callable[[str], None] | None = None,
) -> str:
    """Return the split for images of the run itself; for other images, followed by the name of the data.

    With a site profile, the first 8 digits of its hash are appended. Without a manifest, the images are assumed to
    belong to the run unless the split is "all". `note` is called for images from outside the run.
    """
    manifest = run / MANIFEST_FILE
    name = split
    if manifest.is_file():
        own = Manifest.from_csv(manifest.read_text(encoding="utf-8"), run, str(manifest)).split(split)
        is_own = {image.sha256 for image in own} == {image.sha256 for image in images}
    else:
        is_own = split != "all"
    if not is_own:
        # resolve() handles trailing slashes and relative paths, such as "..".
        path = data.resolve()
        stem = re.sub(r"[^\w.-]", "-", path.name if path.is_dir() else path.stem).lstrip(".-")
        name = f"{split}-{stem}"
    if site_sha256:
        name += f"-{site_sha256[:8]}"
    if note and not is_own:
        other = "" if split == "all" else f"{str(data)!r} has other images than the {split} split of the run; "
        note(f"{other}the results are in {str(evaluation_folder(run, name))!r}")
    return name
