"""Test whether the age classifier recognizes age or only the hospital: sources left out, controls that see no lung, image sizes.

Each variant trains an age classifier on children and on outliers of some sources, and measures it on others:

- all: all sources; measured on patients that were not trained on.
- rsna, nih, ...: one source only; measured on every other source.
- border, histogram, frequencies: all sources, but the network sees only the outer 15%, only the sorted gray levels, or only 8 x 8
  averages. What these controls achieve needs no anatomy.
- center: without the outer 15%.

The limit rejects a given share of the validation images of children, each augmented once, as in `pneumoscope train`. For each
variant and source, the fraction of images that pass the limit and the AUROC of the score are reported, with 95% intervals over
patients. An interrupted study is resumed by the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pneumoscope.core.files import write_atomically
from pneumoscope.data.cache import preprocess_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.outliers import Outliers, load_outliers
from pneumoscope.data.patients import parse_file_name, parse_nih_patient
from pneumoscope.evaluation.fitting import age_limit
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import Preprocessing, preprocess
from pneumoscope.inference.discovery import discover_images
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.statistics.intervals import proportion
from pneumoscope.statistics.roc import auroc_interval
from pneumoscope.training.age_classifier import View, train_age_classifier
from pneumoscope.training.export import augmented_batches
from pneumoscope.training.input_checks import ACCEPTED
from pneumoscope.training.inputs import apply_split

Pixels = npt.NDArray[np.uint8]
BATCH = 64
EDGE = 0.15  # of a side
CELLS = 8  # per side


def blank_center(images: Tensor) -> Tensor:
    """Return the images (n, size, size) with only the outer part of each side."""
    return images - keep_center(images)


def keep_center(images: Tensor) -> Tensor:
    """Return the images (n, size, size) without the outer part of each side."""
    edge = round(EDGE * images.shape[-1])
    inner = slice(edge, -edge)
    return F.pad(images.float()[:, inner, inner], (edge,) * 4)


def sort_levels(images: Tensor) -> Tensor:
    """Return the gray levels of each image (n, size, size) in ascending order: the histogram without the image."""
    return images.float().flatten(1).sort(1).values.view_as(images)


def average_cells(images: Tensor) -> Tensor:
    """Return 8 x 8 averages of the images (n, size, size), enlarged to their size."""
    cells = F.adaptive_avg_pool2d(images.float().unsqueeze(1), CELLS)
    return F.interpolate(cells, images.shape[1:], mode="bilinear").squeeze(1)


CONTROLS: dict[str, View] = {
    "border": blank_center,
    "histogram": sort_levels,
    "frequencies": average_cells,
    "center": keep_center,
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Images of one source, shape (n, size, size), and the patient of each; `inside` is True if they should pass."""

    name: str
    pixels: Pixels
    patients: tuple[str, ...]
    inside: bool


def measure(
    variant: str, train: Pixels, validation: Group, outliers: Outliers, pixels: Pixels, others: Sequence[Group], *,
    steps: int, seed: int, share: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train one variant and return its rows.

    Args:
        variant: "all", the only source to train on, or a control.
        train: Images of children to train on, shape (n, size, size).
        validation: Images of other children.
        outliers, pixels: Images of patients outside the age range.
        others: Further images to measure on.
        steps, seed: See `train_age_classifier`.
        share: Fraction of the augmented validation images that the limit rejects.
    """
    view = CONTROLS.get(variant)
    is_alone = variant in {image.source for image in outliers.images}
    trained = np.array([image.source == variant if is_alone else image.split == "train" for image in outliers.images])
    network = train_age_classifier(
        train,
        pixels[trained],
        [image.group for image, is_trained in zip(outliers.images, trained, strict=True) if is_trained],
        steps=steps,
        seed=seed,
        view=view,
    )

    def score(images: Pixels) -> npt.NDArray[np.float32]:
        scores = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                batch = torch.from_numpy(np.array(images[start : start + BATCH]))
                scores.append(network(view(batch) if view else batch).sigmoid().numpy())
        return np.concatenate(scores)

    augmented = np.concatenate([score(batch) for batch in augmented_batches(validation.pixels, ACCEPTED, seed)])
    limit = age_limit(augmented, share)
    children = score(validation.pixels)
    groups = [validation, *others]
    for name in sorted({image.group for image in outliers.images}):
        rows = [i for i, image in enumerate(outliers.images) if image.group == name and not trained[i]]
        if rows:
            patients = tuple(outliers.images[i].patient for i in rows)
            groups.append(Group(name, pixels[rows], patients, inside=False))
    result = []
    for group in groups:
        scores = children if group is validation else score(group.pixels)
        auroc = None
        if not group.inside:
            labels = np.arange(len(children) + len(scores)) >= len(children)
            both = np.concatenate([children, scores])
            auroc = auroc_interval(both, labels, [*validation.patients, *group.patients])
        result.append(
            {
                "variant": variant,
                "n_train_inside": len(train),
                "n_train_outside": int(trained.sum()),
                "images": group.name,
                "inside": group.inside,
                "limit": limit,
                "passed": dataclasses.asdict(proportion(scores <= limit, list(group.patients))),
                "auroc": None if auroc is None else dataclasses.asdict(auroc),
                "steps": steps,
                "seed": seed,
            }
        )
    return result


def to_markdown(rows: Sequence[dict[str, Any]], command: str) -> str:
    """Return the rows as a Markdown table."""
    first = rows[0]
    lines = [
        f"Age classifiers trained for {first['steps']} steps, seed {first['seed']}; 95% intervals over patients. All images"
        " inside the age range should pass, and none outside.",
        "",
        "| trained on | images | inside | n | pass | AUROC |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        inside = "yes" if row["inside"] else "no"
        auroc = _format(row["auroc"], ".4f") if row["auroc"] else ""
        passed = _format(row["passed"], ".1%")
        lines.append(f"| {row['variant']} | {row['images']} | {inside} | {row['passed']['n']} | {passed} | {auroc} |")
    return "\n".join([*lines, "", f"`{command}`", ""])


def _format(interval: dict[str, Any], style: str) -> str:
    if interval["value"] is None:
        return f"undefined: {interval['reason']}"
    return f"{interval['value']:{style}} [{interval['low']:{style}}, {interval['high']:{style}}]"


def load_folder(folder: Path, preprocessing: Preprocessing, *, inside: bool) -> Group:
    """Return the images of a folder; the patient is in the file name."""
    paths = [Path(path) for path in discover_images([str(folder)]).paths]
    pixels = np.stack([preprocess(decode(path, min_side=preprocessing.min_side), preprocessing) for path in paths])
    patients = (parse_file_name(path.name).patient or parse_nih_patient(path.name) or path.name for path in paths)
    return Group(f"{folder.parent.name}/{folder.name}", pixels, tuple(patients), inside)


def main() -> None:
    """Train, measure, print; write after each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labeled images of the population")
    parser.add_argument("--outliers", type=Path, required=True, help="folder or CSV of images of other patients")
    parser.add_argument("--inside", type=Path, action="append", default=[], help="folder of images that should pass")
    parser.add_argument("--outside", type=Path, action="append", default=[], help="folder of images that should not")
    parser.add_argument("--variants", nargs="+", required=True, help="all, sources, or " + ", ".join(CONTROLS))
    parser.add_argument("--recipe", default="default", help="recipe with split, image size and steps")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field of the recipe"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for outliers.json and outliers.md")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe, options.set)
    preprocessing, seed = recipe.preprocessing, recipe.training.seed
    manifest = apply_split(load_manifest(options.data), recipe, str(options.data))
    train, validation = (
        Group(
            name,
            preprocess_images(manifest.root, manifest.split(name), preprocessing).requested(),
            tuple(image.patient for image in manifest.split(name)),
            inside=True,
        )
        for name in ("train", "validation")
    )
    if recipe.data.age_range is None or not recipe.rejection.age_steps:
        parser.error(f"recipe {recipe.name!r} trains no age classifier")
    outliers = load_outliers(options.outliers).outside(recipe.data.age_range)
    sources = {image.source for image in outliers.images}
    for variant in options.variants:
        if (variant in sources) + (variant in CONTROLS) + (variant == "all") != 1:
            parser.error(
                f"variant {variant!r} is not one of all, {', '.join([*sorted(sources), *CONTROLS])}, or is ambiguous"
            )
    pixels = preprocess_images(outliers.root, outliers.images, preprocessing).requested()
    others = [load_folder(folder, preprocessing, inside=True) for folder in options.inside]
    others += [load_folder(folder, preprocessing, inside=False) for folder in options.outside]
    file = options.out / "outliers.json"
    study = {
        "recipe": recipe.model_dump(mode="json"),
        "manifest_sha256": manifest.sha256(),
        "outliers_sha256": outliers.sha256(),
    }
    document: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {**study, "rows": []}
    if any(document[name] != value for name, value in study.items()):
        parser.error(f"{file} has a study with another recipe or other images; choose another folder with --out")
    rows: list[dict[str, Any]] = document["rows"]
    for variant in options.variants:
        if not any(row["variant"] == variant for row in rows):
            print(f"training {variant}", file=sys.stderr, flush=True)
            rows += measure(
                variant, train.pixels, validation, outliers, pixels, others,
                steps=recipe.rejection.age_steps, seed=seed, share=recipe.rejection.age_share,
            )  # fmt: skip
            write_atomically(file, json.dumps(document, indent=1) + "\n")
    rows.sort(key=lambda row: [*options.variants, row["variant"]].index(row["variant"]))
    write_atomically(file, json.dumps(document, indent=1) + "\n")
    text = to_markdown(rows, shlex.join(["python", *sys.argv]))
    write_atomically(options.out / "outliers.md", text)
    print(text)


if __name__ == "__main__":
    main()
