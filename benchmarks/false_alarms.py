"""Simulate hospitals whose images do not change, and count the false alarms of drift detection.

Each repeat draws the images of a hospital and makes its site profile as `pneumoscope accept` does, with the card of the model in
the package. Twelve checks of recent images of other patients follow, which share a probability of a false alarm of 5%, as
`pneumoscope monitor --checks 12` plans them; the first is also evaluated alone. The months of the dashboard are such checks. At
one hospital, the profile keeps the limits of the card; at the other, it rejects many images, and the profile widens a limit. In
the last check, the images are changed.

Logits, outputs of the input checks and image statistics are drawn, so that no images are needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope import __version__
from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Card
from pneumoscope.bundle.site_profile import SiteProfile, apply_site_profile
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.evaluation.acceptance.metrics import SiteComparison
from pneumoscope.evaluation.acceptance.monitoring import compare_with_profile
from pneumoscope.evaluation.acceptance.site_images import ScoredSite, SiteImages
from pneumoscope.evaluation.acceptance.site_profile import create_profile
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.statistics.drift import DriftTest
from pneumoscope.statistics.intervals import wilson

FloatArray = npt.NDArray[np.float64]

FALSE_ALARMS, CHECKS = 0.05, 12  # of all checks together, and their number
PREVALENCE = 0.2  # with 400 images, too few pneumonias for a recalibration, on which drift detection does not depend
BRIGHTER = 8.0  # gray levels, half a standard deviation; the change of the last check

# Hospital: mean logarithm of the OOD distance, relative to the limit of the card. The standard deviation is 0.2.
HOSPITALS = {"limits of the card": -0.5, "widened limit": -0.1}


@dataclasses.dataclass(frozen=True)
class Counts:
    """Repeats with an alarm.

    Attributes:
        repeats: Number of repeats.
        widened: Repeats whose profile has another limit than the card.
        one: False alarms in one check at 5%.
        planned: At least one false alarm in twelve checks at 5% together.
        changed: Alarms in one check of changed images.
    """

    repeats: int = 0
    widened: int = 0
    one: int = 0
    planned: int = 0
    changed: int = 0


def draw(card: Card, rng: np.random.Generator, n: int, distance: float, brighter: float = 0.0) -> ScoredSite:
    """Return scored images of different patients.

    Brightness depends on the logit, sharpness on the contrast, and a third of the images have no border.

    Args:
        card: Card of the model.
        rng: Random numbers.
        n: Number of images.
        distance: Mean logarithm of the OOD distance, relative to the limit of the card.
        brighter: Gray levels that are added to the brightness.
    """
    limits = card.rejection_limits
    assert limits is not None  # the model in the package has input checks
    labels = rng.random(n) < PREVALENCE
    logits = rng.normal(np.where(labels, 2.0, -2.0), 1.5)
    contrast = rng.normal(50, 8, n)
    statistics = {
        "brightness": rng.normal(120 + 5 * logits, 10) + brighter,
        "contrast": contrast,
        "sharpness": rng.normal(4 + 0.05 * (contrast - 50), 1),
        "border": np.maximum(0, rng.normal(5, 10, n)),
    }
    outputs = SiteImages(
        labels=labels,
        patients=tuple(map(str, range(n))),
        excluded=np.zeros(n, dtype=np.bool_),
        logits=logits,
        upright=1 - (1 - limits.min_upright) * rng.random(n) ** 4,
        age_scores=np.zeros(n),
        distances=limits.max_distance * np.exp(rng.normal(distance, 0.2, n)),
    )
    return ScoredSite(outputs, (None,) * n, (None,) * n, statistics)


def make_profile(card: Card, site: ScoredSite) -> SiteProfile:
    """Return the profile of a hospital."""
    images = [
        LabeledImage(f"{i}.png", "PNEUMONIA" if positive else "NORMAL", "", str(i), "", f"{i:064x}")
        for i, positive in enumerate(site.outputs.labels.tolist())
    ]
    return create_profile(
        SiteComparison.of(card, site.outputs, 0), site, images, name="simulated", prevalence=None, seed=0
    )


def check(card: Card, profile: SiteProfile, recent: ScoredSite, false_alarms: float) -> tuple[DriftTest, ...]:
    """Return the tests of one check of recent images."""
    rejected = recent.outputs.rejected(card)
    values = {name: each.tolist() for name, each in recent.statistics.items()}
    return compare_with_profile(
        profile, {"logit": recent.outputs.logits[~rejected].tolist(), **values}, rejected.tolist(), false_alarms
    )


def simulate(card: Card, distance: float, repeats: int, images: tuple[int, int], seed: int) -> Counts:
    """Return the alarms at one kind of hospital.

    Args:
        card: Card of the model.
        distance: See `draw`.
        repeats: Number of simulated hospitals.
        images: Number of images of the profile and of each check.
        seed: Random seed.
    """
    rng = np.random.default_rng(seed)
    counts = Counts(repeats)
    for _ in range(repeats):
        profile = make_profile(card, draw(card, rng, images[0], distance))
        fitted = apply_site_profile(card, profile)
        checks = [
            check(fitted, profile, draw(card, rng, images[1], distance), FALSE_ALARMS / CHECKS) for _ in range(CHECKS)
        ]
        changed = check(fitted, profile, draw(card, rng, images[1], distance, BRIGHTER), FALSE_ALARMS)
        counts = Counts(
            repeats,
            counts.widened + bool(profile.limits),
            counts.one + any(test.adjusted <= FALSE_ALARMS for test in checks[0]),
            counts.planned + any(test.alarm for tests in checks for test in tests),
            counts.changed + any(test.alarm for test in changed),
        )
    return counts


def to_markdown(found: dict[str, Counts], images: tuple[int, int], seed: int, command: str) -> str:
    """Return the table."""
    lines = [
        f"Alarms of drift detection at simulated hospitals ({__version__}): profile of {images[0]} images, checks of {images[1]},"
        " one image per patient. False alarms, of images that do not change, are allowed with a probability of"
        f" {FALSE_ALARMS:.0%} in the check or in all checks together. Last column: alarms in one check after the brightness rose"
        f" by {BRIGHTER:g} gray levels. Fractions of the repeats with 95% intervals (Wilson); seed {seed}.",
        "",
        f"| profile | repeats | profiles with a new limit | false alarm in one check | in {CHECKS} checks |"
        " alarm after the change |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, each in found.items():
        one, planned, changed = (
            f"{wilson(count, each.repeats):.1%}" for count in (each.one, each.planned, each.changed)
        )
        lines.append(f"| {name} | {each.repeats} | {each.widened} | {one} | {planned} | {changed} |")
    return "\n".join([*lines, "", f"`{command}`", "", NOTICE, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the simulation and write false_alarms.json and false_alarms.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="images of the profile (default: 400)")
    parser.add_argument("--recent", type=int, default=100, help="images of each check (default: 100)")
    parser.add_argument("--repeats", type=int, default=500, help="simulated hospitals of each kind (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    options = parser.parse_args(arguments)
    card = read_bundle(find_bundle(None))[0]
    images = (options.images, options.recent)
    found = {}
    for name, distance in HOSPITALS.items():
        print(f"{name}: {options.repeats} repeats", file=sys.stderr, flush=True)
        found[name] = simulate(card, distance, options.repeats, images, options.seed)
    command = shlex.join(
        ["python", "benchmarks/false_alarms.py", *(arguments if arguments is not None else sys.argv[1:])]
    )
    document = {
        "command": command,
        "version": __version__,
        "model": card.name,
        "images": options.images,
        "recent": options.recent,
        "seed": options.seed,
        "allowed": FALSE_ALARMS,
        "checks": CHECKS,
        "hospitals": {name: dataclasses.asdict(each) for name, each in found.items()},
    }
    write_atomically(options.out / "false_alarms.json", json.dumps(document, indent=2) + "\n")
    report = to_markdown(found, images, options.seed, command)
    write_atomically(options.out / "false_alarms.md", report)
    print(report, end="")


if __name__ == "__main__":
    main()
