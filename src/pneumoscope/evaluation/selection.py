"""Which images a bundle is judged on, and the refusals that keep the judgement honest."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pneumoscope.bundle.card import Card, short_hash
from pneumoscope.core.errors import DatasetError, ThresholdError, UsageError
from pneumoscope.data.layouts import SPLIT_FOLDERS, load_manifest
from pneumoscope.data.manifest import LABELS, LabelledImage, Manifest
from pneumoscope.imaging.decode import EXTENSIONS

__all__ = ["balanced_sample", "refuse_chosen_thresholds", "refuse_seen", "select_images", "unreadable_error"]

_JUDGED = ("train", "validation", "test")
_SHOWN = 5


def select_images(data: Path, split: str, run_manifest: Path | None) -> tuple[Path, tuple[LabelledImage, ...]]:
    """The images of one split, with content hashes.

    The test split is the data's own where it has one. Train and validation, and test otherwise, are what the run made of
    the data: they come from a manifest file, or from the run's own `manifest.csv` where `data` is a folder or an archive.

    Args:
        data: a folder, a manifest CSV or an archive.
        split: "train", "validation" or "test".
        run_manifest: `RUN/manifest.csv`; None where a bundle alone is judged.
    Returns:
        The folder that paths are relative to, and the images.
    Raises:
        UsageError: no such split, or one that the data does not have and no manifest tells.
        DatasetError: an empty split, one class only, images that cannot be opened, or images of the run that are not
            there.
    """
    if split not in _JUDGED:
        raise UsageError(f"there is no split {split!r} to judge", hint=f"Known: {', '.join(_JUDGED)}")
    manifest = load_manifest(data)
    # A run that split images without a test split of their own knows which ones it set apart.
    of_run = run_manifest is not None and run_manifest.is_file() and not manifest.split("test")
    if (split != "test" or of_run) and data.suffix.lower() != ".csv":
        images = _of_run(manifest, split, run_manifest, data)
    else:
        _refuse_unreadable(manifest, data, split)
        images = manifest.split(split)
    if not images:
        found = ", ".join(f"{name or 'no split'} {sum(n.values())}" for name, n in manifest.counts().items())
        raise DatasetError(
            f"{str(data)!r} has no image in the split {split!r} (images: {found})", hint="Name another with --split"
        )
    missing = [label for label in LABELS if not any(image.label == label for image in images)]
    if missing:
        raise DatasetError(
            f"the {len(images)} images of the split {split!r} have one label only: there is no {missing[0]}",
            hint="An evaluation needs both",
        )
    return manifest.root, images


def _of_run(manifest: Manifest, split: str, run_manifest: Path | None, data: Path) -> tuple[LabelledImage, ...]:
    """The images that the run put into the split, found again by their content: a manifest may lie elsewhere than its images."""
    if run_manifest is None or not run_manifest.is_file():
        raise UsageError(
            f"which images of {str(data)!r} are {split} is not known: {str(run_manifest or 'a bundle')!r} does not say",
            hint="Give the manifest that it was trained with as --data, or a run folder that has its manifest.csv",
        )
    text = run_manifest.read_text(encoding="utf-8")
    wanted = Manifest.from_csv(text, manifest.root, str(run_manifest)).split(split)
    here: dict[str, list[str]] = defaultdict(list)
    for image in manifest:
        here[image.sha256].append(image.path)
    gone = [image.path for image in wanted if image.sha256 not in here]
    if gone:
        raise DatasetError(
            f"{len(gone)} of the {len(wanted)} {split} images of {str(run_manifest)!r} are not in {str(data)!r}"
            f" with the same content; the first: {gone[0]}",
            hint="Give the data that the run was trained on",
        )
    # Of several files with the same content, the one of the same name where there is one.
    return tuple(
        dataclasses.replace(
            image, path=min(here[image.sha256], key=lambda path: (not _same_name(path, image.path), path))
        )
        for image in wanted
    )


def _same_name(a: str, b: str) -> bool:
    return PurePosixPath(a).name == PurePosixPath(b).name


def _refuse_unreadable(manifest: Manifest, data: Path, split: str) -> None:
    """Images of the split that could not be opened while listing. Litter, and files of other splits, are no concern."""
    splits: dict[str, str] = {}
    if data.suffix.lower() == ".csv":
        text = data.read_text(encoding="utf-8-sig")
        splits = {image.path: image.split for image in Manifest.from_csv(text, manifest.root, str(data))}
    found = []
    for path, why in manifest.unreadable:
        name = PurePosixPath(path)
        own = splits.get(path, SPLIT_FOLDERS.get(name.parts[0].lower(), ""))
        if own == split and name.suffix.lower() in EXTENSIONS and not name.name.startswith("."):
            found.append((path, why))
    if found:
        raise unreadable_error(found, split)


def unreadable_error(found: Sequence[tuple[str, str]], split: str) -> DatasetError:
    """Images that should have been judged and cannot be read. They are never left out in silence: n would be a lie.

    Args:
        found: (path, why), at least one.
        split: that they are of.
    """
    shown = "; ".join(f"{path}: {why}" for path, why in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return DatasetError(
        f"{len(found)} {split} images cannot be read ({shown}{more})",
        hint="Mend them, or list the images to judge without them in a manifest CSV and give that as --data",
    )


def refuse_seen(images: Sequence[LabelledImage], card: Card) -> None:
    """Refuse test images that decided anything in training, by content.

    Raises:
        DatasetError: how many, where from, and the first path.
    """
    for split in ("train", "validation"):
        known = set(card.seen.get(split, ()))
        shared = [image.path for image in images if short_hash(image.sha256) in known]
        if shared:
            raise DatasetError(
                f"{len(shared)} of {len(images)} test images were {split} images of {card.name!r}, by content; the first:"
                f" {shared[0]}",
                hint="Give other test images, or train on a manifest that keeps these out: pneumoscope split DATA",
            )


def refuse_chosen_thresholds(images: Sequence[LabelledImage], card: Card, operating_points: Sequence[str]) -> None:
    """Refuse to judge a threshold on images that chose it.

    Raises:
        ThresholdError: the first such operating point, and how many of the images chose it.
    """
    known = set(card.seen.get("validation", ()))
    shared = sum(short_hash(image.sha256) in known for image in images)
    chosen = [name for name in operating_points if card.operating_points[name].rule != "fixed"]
    if shared and chosen:
        raise ThresholdError(
            f"the operating point {chosen[0]!r} was chosen on {shared} of these {len(images)} images"
            " and cannot be judged by them",
            hint="Judge a fixed threshold (--operating-point half), or another split",
        )


def balanced_sample(
    images: Sequence[LabelledImage], per_label: int, rng: np.random.Generator
) -> tuple[LabelledImage, ...]:
    """Return a random sample with as many normal images as pneumonias, ordered by label, then as given.

    Args:
        images: Images of both labels.
        per_label: Number of images of each label; smaller if a label has fewer.
        rng: Source of random numbers.
    """
    by_label = [[image for image in images if image.label == label] for label in LABELS]
    count = min(per_label, *map(len, by_label))
    return tuple(group[i] for group in by_label for i in sorted(rng.permutation(len(group))[:count]))
