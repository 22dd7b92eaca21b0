"""Attempts at a model, compared on validation images alone: what a choice of network, crop or augmentation is worth.

Every attempt is trained on two kinds of split: by patient, which tells how well it fits images like those it learned from, and by
block of patient numbers, which shows some of the shift that the official test images have. More of it is made: the validation
images are read once more framed as the other label is, normal images without a tenth of their height at top and bottom, those with
pneumonia without a tenth of their width at both sides, and once more turned by ten degrees. The test images are not touched: they
belong to `pneumoscope evaluate` and its ledger. It goes on where it stopped, and says what each attempt came to in the order in
which they stand in the file:

    recipe = "base.toml"          # a shipped recipe, or a file beside this one

    [attempts.plain]
    why = "where we start"
    set = []

    [attempts.turned]
    why = "images lie askew"
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
from pneumoscope.inference.session import BundleSession, sigmoid
from pneumoscope.runs.evaluations import read_evaluation
from pneumoscope.runs.recipe import Recipe, read_recipe
from pneumoscope.runs.run_folder import BUNDLE_FOLDER, EVALUATION_FILE, MANIFEST_FILE, evaluation_folder
from pneumoscope.statistics.roc import auroc
from pneumoscope.training.train import train

SPLITS = ("block", "patient")
POINT = "half"  # the only threshold that validation images did not choose
METRICS = ("accuracy", "sensitivity", "specificity")
LEFT = 0.8  # of a side, where images are framed otherwise
TURN = 10  # degrees
SHIFTED_FILE = "shifted.json"
MADE = ("auroc_framed", "accuracy_framed", "changed_turned")
COLUMNS = ("auroc", *METRICS, *MADE)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One idea.

    Attributes:
        name: of its runs.
        why: one line for the reader.
        recipe: name or file of the recipe that it changes.
        overrides: "table.field=value" each.
    """

    name: str
    why: str
    recipe: str
    overrides: tuple[str, ...]

    def made(self, by: str, seed: int) -> Recipe:
        """The recipe of one run; the seed decides the split, too."""
        own = [f'name="{self.name}-{by}-{seed}"', f'data.by="{by}"', f"training.seed={seed}"]
        return read_recipe(self.recipe, [*self.overrides, *own])


def read_attempts(file: Path) -> list[Attempt]:
    """The attempts of a file, in its order.

    Raises:
        RecipeError: it is not as the example above.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        base = data["recipe"]
        beside = file.parent / base
        recipe = str(beside) if beside.is_file() else base
        return [
            Attempt(name, attempt["why"], recipe, tuple(attempt["set"])) for name, attempt in data["attempts"].items()
        ]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{str(file)!r} holds no attempts: {error!r}", hint="See --help for an example") from error


def run(attempt: Attempt, by: str, seed: int, data: Path, runs: Path) -> None:
    """Train and judge on validation images what is not done yet."""
    out = runs / f"{attempt.name}-{by}-{seed}"
    judged = evaluation_folder(out, "validation") / EVALUATION_FILE
    if not judged.exists():
        print(f"{out.name}: {attempt.why}", file=sys.stderr, flush=True)
        train(attempt.made(by, seed), data, out, resume=True)
        evaluate(out, data, split="validation", operating_points=(POINT,))
    if not (judged.parent / SHIFTED_FILE).exists():
        found = shifted(out, data)
        write_atomically(judged.parent / SHIFTED_FILE, json.dumps(found, indent=2) + "\n")


def shifted(out: Path, data: Path) -> dict[str, float]:
    """What a run says of its validation images when they are framed otherwise, or turned.

    Returns:
        Of images framed otherwise the AUROC, and the accuracy at the score 0.5. Of images turned to either side, the share whose
        call at the run's own operating point "balanced" is another than before.
    """
    session = BundleSession.load(out / BUNDLE_FOLDER)
    root, images = select_images(data, "validation", out / MANIFEST_FILE)
    pixels = [decode(root / image.path).pixels for image in images]
    labels = np.array([image.positive for image in images])

    def logits(changed: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
        made = (Radiograph(each, "image", "array", "L") for each in changed)
        return np.array([scored.logit for scored in session.stream(made)])

    framed = logits(frame(image, positive) for image, positive in zip(pixels, labels, strict=True))
    threshold = session.card.operating_points["balanced"].threshold
    as_it_is, *turned = (
        sigmoid(logits(turn(image, degrees) for image in pixels)) >= threshold for degrees in (0, TURN, -TURN)
    )
    return {
        "auroc_framed": auroc(framed, labels),
        "accuracy_framed": float(np.mean((framed > 0) == labels)),
        "changed_turned": float(np.mean([as_it_is != other for other in turned])),
    }


def frame(image: npt.NDArray[np.uint8], positive: bool) -> npt.NDArray[np.uint8]:
    """The middle `LEFT` of an image's width where it is of a pneumonia, of its height where not."""
    length = image.shape[int(positive)]
    left = max(1, round(length * LEFT))
    start = (length - left) // 2
    inner = slice(start, start + left)
    return np.ascontiguousarray(image[:, inner] if positive else image[inner])


def turn(image: npt.NDArray[np.uint8], degrees: float) -> npt.NDArray[np.uint8]:
    """Turned about its middle; what comes into view is black."""
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))


def row(attempt: Attempt, by: str, seed: int, found: Evaluation, made: dict[str, float]) -> dict[str, Any]:
    """What a run came to."""
    auroc, point = found.metrics["auroc"], found.operating_points[POINT]
    return {
        "attempt": attempt.name,
        "why": attempt.why,
        "set": " ".join(attempt.overrides),
        "by": by,
        "seed": seed,
        "n": found.n,
        "auroc": auroc.value,
        "auroc_low": auroc.low,
        "auroc_high": auroc.high,
        **{name: point.metrics[name].value for name in METRICS},
        "expected_calibration_error": found.metrics["expected_calibration_error"].value,
        **made,
    }


def means(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str, int, dict[str, float]]]:
    """Attempt, why, split, runs and means over the seeds, in the order of the rows."""
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in rows:
        seen.setdefault((each["attempt"], each["by"]), []).append(each)
    for (name, by), runs in seen.items():
        yield (
            name,
            runs[0]["why"],
            by,
            len(runs),
            {metric: float(np.mean([each[metric] for each in runs])) for metric in COLUMNS},
        )


def table(rows: Sequence[dict[str, Any]], command: str) -> str:
    """Markdown for people."""
    lines = [
        f"Validation images only; at the score 0.5, means over seeds, each of which has a split of its own ({__version__}).",
        "",
        "| attempt | why | split by | runs | AUROC | accuracy | sensitivity | specificity | framed otherwise: AUROC | accuracy |"
        f" calls changed by {TURN} degrees |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, why, by, count, mean in means(rows):
        numbers = " | ".join(f"{mean[metric]:.4f}" for metric in COLUMNS)
        lines.append(f"| {name} | {why} | {by} | {count} | {numbers} |")
    return "\n".join([*lines, "", f"`{command}`", "", NOTICE, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, judge, print, write after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attempts", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs; none of it need be kept")
    parser.add_argument("--out", type=Path, required=True, help="folder for validation.csv, .json and .md")
    parser.add_argument("--only", nargs="+", help="names of attempts; all are listed where they are done")
    parser.add_argument("--by", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args(arguments)
    attempts = read_attempts(given.attempts)
    unknown = set(given.only or ()) - {attempt.name for attempt in attempts}
    if unknown:
        parser.error(f"there is no attempt {', '.join(sorted(unknown))}")
    command = shlex.join(["python", "benchmarks/study.py", *(sys.argv[1:] if arguments is None else arguments)])
    for attempt in attempts:
        if given.only and attempt.name not in given.only:
            continue
        for by in given.by:
            for seed in given.seeds:
                run(attempt, by, seed, given.data, given.runs)
                rows = _done(attempts, given.runs)
                _write(rows, table(rows, command), given.out)
    print(table(_done(attempts, given.runs), command))


def _done(attempts: Sequence[Attempt], runs: Path) -> list[dict[str, Any]]:
    """Every run that was ever judged, whatever was asked for now."""
    rows = []
    for attempt in attempts:
        for by in SPLITS:
            for folder in sorted(
                runs.glob(f"{attempt.name}-{by}-*"), key=lambda path: int(path.name.rsplit("-", 1)[1])
            ):
                judged = evaluation_folder(folder, "validation")
                if (judged / SHIFTED_FILE).exists():
                    found = read_evaluation(judged / EVALUATION_FILE)
                    made = json.loads((judged / SHIFTED_FILE).read_text(encoding="utf-8"))
                    rows.append(row(attempt, by, int(folder.name.rsplit("-", 1)[1]), found, made))
    return rows


def _write(rows: Sequence[dict[str, Any]], text: str, out: Path) -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "validation.csv", file.getvalue())
    write_atomically(out / "validation.json", json.dumps(rows, indent=2, allow_nan=False) + "\n")
    write_atomically(out / "validation.md", text)


if __name__ == "__main__":
    main()
