"""Compare changes of a recipe on validation images: networks, crops, augmentation.

Each attempt is trained on two kinds of split: by patient, which measures the fit to images like the training images, and by
block of patient numbers, which has some of the shift of the official test images. Two more shifts are simulated: the validation
images are cropped like the other label (normal images lose a tenth of their height at the top and at the bottom, pneumonias a
tenth of their width at both sides), and rotated by 10 degrees. Test images are not used: they are reserved for
`pneumoscope evaluate`. An interrupted study is resumed by the same command. Attempts are read from a file:

    recipe = "base.toml"          # a shipped recipe, or a file in the same folder

    [attempts.plain]
    why = "baseline"
    set = []

    [attempts.rotated]
    why = "patients are not always upright"
    set = ["augmentation.rotation=10"]
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import shlex
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumoscope import __version__
from pneumoscope.core.errors import RecipeError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.results import Evaluation
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.selection import select_images
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.image import Radiograph
from pneumoscope.inference.decision import sigmoid
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.evaluations import read_evaluation
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.runs.run_folder import BUNDLE_FOLDER, EVALUATION_FILE, MANIFEST_FILE, evaluation_folder
from pneumoscope.statistics.roc import auroc
from pneumoscope.training.train import train_run

GrayImage = npt.NDArray[np.uint8]

SPLITS = ("block", "patient")
OPERATING_POINT = "half"  # the only threshold that was not chosen on validation images
METRICS = ("accuracy", "sensitivity", "specificity")
CROP = 0.8  # of a side
ROTATION = 10  # degrees
SHIFTED_FILE = "shifted.json"
SHIFTED_METRICS = ("auroc_cropped", "accuracy_cropped", "changed_by_rotation")
COLUMNS = ("auroc", *METRICS, *SHIFTED_METRICS)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A change of a recipe.

    Attributes:
        name: Name of the attempt and of its runs.
        why: One-line reason.
        recipe: Name or file of the base recipe.
        overrides: Changed fields, each "table.field=value".
    """

    name: str
    why: str
    recipe: str
    overrides: tuple[str, ...]

    def run_recipe(self, split_by: str, seed: int) -> Recipe:
        """Return the recipe of one run; the seed also determines the split."""
        run = [f'name="{self.name}-{split_by}-{seed}"', f'data.by="{split_by}"', f"training.seed={seed}"]
        return read_recipe(self.recipe, [*self.overrides, *run])


def read_attempts(file: Path) -> list[Attempt]:
    """Return the attempts of a file, in its order.

    Raises:
        RecipeError: The file has another structure than the example above.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        base = data["recipe"]
        neighbor = file.parent / base
        recipe = str(neighbor) if neighbor.is_file() else base
        return [
            Attempt(name, attempt["why"], recipe, tuple(attempt["set"])) for name, attempt in data["attempts"].items()
        ]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"cannot read attempts from {str(file)!r}: {error!r}", hint="See --help for an example"
        ) from error


def run_attempt(attempt: Attempt, split_by: str, seed: int, data: Path, runs: Path) -> None:
    """Train and evaluate on validation images, unless it is already done."""
    out = runs / f"{attempt.name}-{split_by}-{seed}"
    evaluation = evaluation_folder(out, "validation")
    if not (evaluation / EVALUATION_FILE).exists():
        print(f"{out.name}: {attempt.why}", file=sys.stderr, flush=True)
        train_run(attempt.run_recipe(split_by, seed), data, out, resume=True)
        evaluate(out, data, split="validation", operating_points=(OPERATING_POINT,))
    if not (evaluation / SHIFTED_FILE).exists():
        metrics = evaluate_shifted(out, data)
        write_atomically(evaluation / SHIFTED_FILE, json.dumps(metrics, indent=2) + "\n")


def evaluate_shifted(run: Path, data: Path) -> dict[str, float]:
    """Return the metrics of a run on cropped and on rotated validation images.

    Returns:
        AUROC and accuracy at a score of 0.5 on cropped images, and the fraction of images whose prediction at the operating
        point "balanced" changes when they are rotated to either side.
    """
    session = BundleSession.load(run / BUNDLE_FOLDER)
    root, images = select_images(data, "validation", run / MANIFEST_FILE)
    pixels = [decode(root / image.path).pixels for image in images]
    labels = np.array([image.positive for image in images])

    def logits(shifted: Iterable[GrayImage]) -> npt.NDArray[np.float64]:
        radiographs = (Radiograph(gray, "image", "array", "L") for gray in shifted)
        return np.array([scored.logit for scored in session.stream(radiographs)])

    cropped = logits(crop_like_other_label(gray, positive) for gray, positive in zip(pixels, labels, strict=True))
    threshold = session.card.operating_points["balanced"].threshold
    unmodified, *rotated = (
        sigmoid(logits(rotate(gray, degrees) for gray in pixels)) >= threshold for degrees in (0, ROTATION, -ROTATION)
    )
    return {
        "auroc_cropped": auroc(cropped, labels),
        "accuracy_cropped": float(np.mean((cropped > 0) == labels)),
        "changed_by_rotation": float(np.mean([unmodified != other for other in rotated])),
    }


def crop_like_other_label(image: GrayImage, positive: bool) -> GrayImage:
    """Return the central `CROP` of the width of a pneumonia, or of the height of a normal image."""
    length = image.shape[int(positive)]
    remaining = max(1, round(length * CROP))
    start = (length - remaining) // 2
    center = slice(start, start + remaining)
    return np.ascontiguousarray(image[:, center] if positive else image[center])


def rotate(image: GrayImage, degrees: float) -> GrayImage:
    """Return the image rotated about its center; new corners are black."""
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))


def make_row(
    attempt: Attempt, split_by: str, seed: int, evaluation: Evaluation, shifted: dict[str, float]
) -> dict[str, Any]:
    """Return the results of one run as a row."""
    auroc, point = evaluation.metrics["auroc"], evaluation.operating_points[OPERATING_POINT]
    return {
        "attempt": attempt.name,
        "why": attempt.why,
        "set": " ".join(attempt.overrides),
        "split_by": split_by,
        "seed": seed,
        "n": evaluation.n,
        "auroc": auroc.value,
        "auroc_low": auroc.low,
        "auroc_high": auroc.high,
        **{name: point.metrics[name].value for name in METRICS},
        "expected_calibration_error": evaluation.metrics["expected_calibration_error"].value,
        **shifted,
    }


def mean_rows(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str, int, dict[str, float]]]:
    """Yield attempt, reason, split, number of runs and the means over the seeds, in the order of the rows."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["attempt"], row["split_by"]), []).append(row)
    for (name, split_by), runs in groups.items():
        means = {metric: float(np.mean([run[metric] for run in runs])) for metric in COLUMNS}
        yield name, runs[0]["why"], split_by, len(runs), means


def to_markdown(rows: Sequence[dict[str, Any]], command: str) -> str:
    """Return the means over the seeds as a Markdown table."""
    lines = [
        f"Validation images only; threshold 0.5; means over seeds, each with its own split ({__version__}).",
        "",
        "| attempt | why | split by | runs | AUROC | accuracy | sensitivity | specificity | cropped: AUROC | accuracy |"
        f" changed by rotation of {ROTATION} degrees |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, why, split_by, count, means in mean_rows(rows):
        numbers = " | ".join(f"{means[metric]:.4f}" for metric in COLUMNS)
        lines.append(f"| {name} | {why} | {split_by} | {count} | {numbers} |")
    return "\n".join([*lines, "", f"`{command}`", "", NOTICE, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate, write the tables after each run, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attempts", type=Path, help="TOML file")
    parser.add_argument("--data", type=Path, required=True, help="labeled data set")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs; can be deleted afterwards")
    parser.add_argument("--out", type=Path, required=True, help="folder for validation.csv, .json and .md")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="attempts to run; the tables list all finished ones")
    parser.add_argument("--split-by", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args(arguments)
    attempts = read_attempts(options.attempts)
    unknown = set(options.only or ()) - {attempt.name for attempt in attempts}
    if unknown:
        parser.error(f"unknown attempts: {', '.join(sorted(unknown))}")
    command = shlex.join(["python", "benchmarks/study.py", *(sys.argv[1:] if arguments is None else arguments)])
    for attempt in attempts:
        if options.only and attempt.name not in options.only:
            continue
        for split_by in options.split_by:
            for seed in options.seeds:
                run_attempt(attempt, split_by, seed, options.data, options.runs)
                rows = finished_rows(attempts, options.runs)
                write_tables(rows, to_markdown(rows, command), options.out)
    print(to_markdown(finished_rows(attempts, options.runs), command))


def finished_rows(attempts: Sequence[Attempt], runs: Path) -> list[dict[str, Any]]:
    """Return the rows of all evaluated runs in a folder, including those of earlier commands."""
    rows = []
    for attempt in attempts:
        for split_by in SPLITS:
            folders = {int(path.name.rsplit("-", 1)[1]): path for path in runs.glob(f"{attempt.name}-{split_by}-*")}
            for seed, folder in sorted(folders.items()):
                evaluation = evaluation_folder(folder, "validation")
                if (evaluation / SHIFTED_FILE).exists():
                    shifted = json.loads((evaluation / SHIFTED_FILE).read_text(encoding="utf-8"))
                    rows.append(
                        make_row(attempt, split_by, seed, read_evaluation(evaluation / EVALUATION_FILE), shifted)
                    )
    return rows


def write_tables(rows: Sequence[dict[str, Any]], text: str, out: Path) -> None:
    """Write the rows as CSV and JSON, and the Markdown table."""
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "validation.csv", file.getvalue())
    write_atomically(out / "validation.json", json.dumps(rows, indent=2, allow_nan=False) + "\n")
    write_atomically(out / "validation.md", text)


if __name__ == "__main__":
    main()
