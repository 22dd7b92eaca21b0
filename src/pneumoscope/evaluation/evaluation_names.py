"""Names of the evaluations of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pneumoscope.core.errors import UsageError
from pneumoscope.core.results import ScoredImage
from pneumoscope.data.manifest import LabeledImage, Manifest
from pneumoscope.runs.run_folder import MANIFEST_FILE, evaluation_folder

__all__ = ["check_name_of_run", "default_name"]

_NAME = r"\w[\w.-]*"


def check_name_of_run(name: str | None, *, is_run: bool, has_out: bool) -> None:
    """Raise unless the name of an evaluation can be used."""
    if name is None:
        return
    if not is_run or has_out:
        raise UsageError(
            f"the name {name!r} is that of an evaluation in a run folder",
            hint="Give --name for a run without --out, or --out without --name",
        )
    if not re.fullmatch(_NAME, name):
        raise UsageError(f"{name!r} is not the name of an evaluation", hint="Use letters, digits, '.', '-' and '_'")


def default_name(
    run: Path,
    data: Path,
    split: str,
    images: Sequence[LabeledImage] | Sequence[ScoredImage],
    site_sha256: str,
    note: Callable[[str], None] | None = None,
) -> str:
    """Return the split for images of the run itself, and for others also the name of the data.

    A run without a manifest cannot tell; its images are taken for its own unless all images of a data set are evaluated.

    Args:
        run: The run folder.
        data, split, images: The evaluated images.
        site_sha256: Hash of the site profile; "" without one.
        note: Called if the images are others than those of the run.
    """
    manifest = run / MANIFEST_FILE
    name = split
    if manifest.is_file():
        own = Manifest.from_csv(manifest.read_text(encoding="utf-8"), run, str(manifest)).split(split)
        is_own = {image.sha256 for image in own} == {image.sha256 for image in images}
    else:
        is_own = split != "all"
    if not is_own:
        # Also without a final slash or a relative path, such as "..".
        path = data.resolve()
        stem = re.sub(r"[^\w.-]", "-", path.name if path.is_dir() else path.stem).lstrip(".-")
        name = f"{split}-{stem}"
    if site_sha256:
        name += f"-{site_sha256[:8]}"
    if note and not is_own:
        other = "" if split == "all" else f"{str(data)!r} has other images than the {split} split of the run; "
        note(f"{other}the results are in {str(evaluation_folder(run, name))!r}")
    return name
