"""Simulate other hospitals, and show what `pneumoscope accept` finds and what its profile repairs.

The images are the validation images of a run. Nothing is changed for the first hospital; its images chose the thresholds of the
model, but augmented. The others change the contrast, the framing and the prevalence as another scanner, another technician or
another ward would. Test images are not used.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumoscope import __version__
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.data.hashing import read_image
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.evaluation.acceptance.accept import PROFILE_FILE, Acceptance, accept
from pneumoscope.evaluation.acceptance.monitoring import monitor
from pneumoscope.evaluation.selection import select_unreserved_images

Pixels = npt.NDArray[np.uint8]

QUALITY = 95  # of the JPEG files; their bytes differ from those that the model has seen


@dataclasses.dataclass(frozen=True)
class Hospital:
    """A simulated hospital.

    Attributes:
        name: Name.
        about: What is changed.
        change: Change of the pixels.
        pneumonia: Fraction of the images with pneumonia that is kept.
    """

    name: str
    about: str
    change: Callable[[Pixels], Pixels] = lambda pixels: pixels
    pneumonia: float = 1.0


def gamma(pixels: Pixels, power: float) -> Pixels:
    """Return the image with its gray levels from 0 to 1 raised to a power."""
    return np.rint(255 * (pixels / 255) ** power).astype(np.uint8)


def reframe(pixels: Pixels, fraction: float) -> Pixels:
    """Return the image with black bars around it, so that it fills a fraction of each side."""
    height, width = pixels.shape
    inner = Image.fromarray(pixels).resize(
        (round(width * fraction), round(height * fraction)), Image.Resampling.BILINEAR
    )
    framed = Image.new("L", (width, height))
    framed.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return np.asarray(framed)


HOSPITALS = (
    Hospital("unchanged", "nothing"),
    Hospital("contrast", "gray levels raised to the power 0.5", lambda pixels: gamma(pixels, 0.5)),
    Hospital("framing", "black bars of 12% around the image", lambda pixels: reframe(pixels, 0.76)),
    Hospital("prevalence", "a fifth of the images with pneumonia", pneumonia=0.2),
    Hospital(
        "all",
        "contrast and framing, and half of the images with pneumonia",
        lambda pixels: reframe(gamma(pixels, 0.5), 0.76),
        pneumonia=0.5,
    ),
)


def write_images(hospital: Hospital, root: Path, images: Sequence[LabeledImage], folder: Path, seed: int) -> Path:
    """Write the images of a hospital and a CSV that lists them, and return the path of the CSV."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in images:
        if image.positive and rng.random() >= hospital.pneumonia:
            continue
        name = f"{len(rows):05d}.jpeg"
        Image.fromarray(hospital.change(read_image(root, image).pixels)).save(folder / name, quality=QUALITY)
        rows.append((name, image.label, image.patient))
    path = folder / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "patient"))
        writer.writerows(rows)
    return path


def find_drift(folder: Path, profile: Path, bundle: Path) -> str:
    """Return the quantities that differ from those of a profile; one image per patient."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        first = {row["patient"]: str(folder / row["path"]) for row in csv.DictReader(file)}
    found = [test.name for test in monitor(list(first.values()), profile, bundle).tests if test.alarm]
    return ", ".join(found) or "none"


def summarize(hospital: Hospital, result: Acceptance) -> dict[str, object]:
    """Return one row of the table."""
    point = result.operating_points[result.operating_point]
    return {
        "hospital": hospital.name,
        "changed": hospital.about,
        "n": result.n,
        "verdict": result.verdict,
        "prevalence": str(result.prevalence),
        "rejected": str(result.rejected.share),
        "sensitivity": str(point.observed["sensitivity"]),
        "specificity": str(point.observed["specificity"]),
        "intercept": str(result.calibration.intercept),
        "slope": str(result.calibration.slope),
        "brier": str(result.calibration.brier),
        "profile": ", ".join(result.changed) or "nothing",
        "profile_rejected": str(result.rejected_with_profile),
        "profile_sensitivity": str(point.with_profile["sensitivity"]),
        "profile_specificity": str(point.with_profile["specificity"]),
        "profile_brier": str(result.calibration_with_profile.brier),
    }


def to_markdown(rows: Sequence[dict[str, object]], command: str) -> str:
    """Return the tables."""
    at_site = ("hospital", "changed", "n", "verdict", "prevalence", "rejected", "sensitivity", "specificity", "slope")
    at_site += ("intercept", "brier")
    repaired = (
        "hospital",
        "drift",
        "profile",
        "profile_rejected",
        "profile_sensitivity",
        "profile_specificity",
        "profile_brier",
    )
    lines = [
        f"`pneumoscope accept` at simulated hospitals, made of the validation images of a run ({__version__}). Intervals are 95%,"
        " over patients; sensitivity and specificity at balanced, of accepted images. Drift: what `pneumoscope monitor` finds to"
        " differ from the profile of the first hospital.",
        "",
    ]
    for columns in (at_site, repaired):
        lines += [
            f"| {' | '.join(column.replace('profile_', 'with profile: ').replace('_', ' ') for column in columns)} |",
            f"|{' --- |' * len(columns)}",
            *(f"| {' | '.join(str(row[column]) for column in columns)} |" for row in rows),
            "",
        ]
    return "\n".join([*lines, f"`{command}`", "", NOTICE, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the simulation and write acceptance.json and acceptance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder with its manifest")
    parser.add_argument("--data", type=Path, required=True, help="data set of the run")
    parser.add_argument("--model", type=Path, help="bundle to test; the one of the run by default")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    root, images = select_unreserved_images(options.run, options.data, "validation")
    bundle = options.model or options.run
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for hospital in HOSPITALS:
            print(f"{hospital.name}: {hospital.about}", file=sys.stderr, flush=True)
            folder = Path(temporary) / hospital.name
            folder.mkdir()
            labels = write_images(hospital, root, images, folder, options.seed)
            out = Path(temporary) / f"{hospital.name}, accepted"
            result, _ = accept(labels, bundle, site=hospital.name, out=out, seed=options.seed)
            drift = find_drift(folder, Path(temporary) / f"{HOSPITALS[0].name}, accepted" / PROFILE_FILE, bundle)
            rows.append({**summarize(hospital, result), "drift": drift})
    command = shlex.join(
        ["python", "benchmarks/acceptance.py", *(arguments if arguments is not None else sys.argv[1:])]
    )
    write_atomically(
        options.out / "acceptance.json", json.dumps({"command": command, "hospitals": rows}, indent=2) + "\n"
    )
    report = to_markdown(rows, command)
    write_atomically(options.out / "acceptance.md", report)
    print(report, end="")


if __name__ == "__main__":
    main()
