"""Monitor a model at a hospital without labels by comparing recent images with the site profile.

Logits, image statistics and the fraction of rejected images are compared; see `statistics.drift.detect_drift`. The
false-alarm probability is divided among the planned checks (Bonferroni correction).

Drift does not show that the model performs worse, and performance can decline without drift: repeat the acceptance
test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from pneumoscope import __version__
from pneumoscope.bundle.site_profile import SiteProfile
from pneumoscope.core.errors import SiteProfileError, UndefinedMetricError, UnreadableImageError, UsageError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.prediction_codes import AgeRequirement, Assumption
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.results import SCHEMA
from pneumoscope.imaging.statistics import image_statistics
from pneumoscope.inference.image_loader import ImageLoader
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.statistics.drift import MIN_IMAGES, DriftTest, detect_drift
from pneumoscope.statistics.intervals import proportion

__all__ = ["Monitoring", "compare_with_profile", "monitor", "monitoring_markdown"]

_BATCH = 32
_MAX_LISTED = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Monitoring:
    """Result of one check.

    Attributes:
        site: Name and short hash of the site profile.
        bundle, onnx_sha256: The model.
        n: Number of readable images.
        unreadable: Reason by path for each unreadable file.
        rejected: Fraction of rejected images.
        false_alarms, checks: Probability of a false alarm over all planned checks, and their number.
        tests: One per quantity, in a fixed order.
        alarm: True if any test gives an alarm.
        version: Version of pneumoscope.
    """

    site: str
    bundle: str
    onnx_sha256: str
    n: int
    unreadable: Mapping[str, str]
    rejected: Interval
    false_alarms: float
    checks: int
    tests: tuple[DriftTest, ...]
    alarm: bool
    version: str
    schema: int = SCHEMA
    notice: str = NOTICE


def monitor(
    paths: Sequence[str],
    site: Path,
    bundle: Path | None = None,
    *,
    false_alarms: float = 0.05,
    checks: int = 1,
    require_age: AgeRequirement = "never",
    assume: Collection[Assumption] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Monitoring:
    """Compare recent images with a site profile.

    The images should come from different patients, as in the profile: several images per patient increase the
    false-alarm rate.

    Args:
        paths: Image files.
        site: The site profile.
        bundle: Bundle or run; the model in the package if None.
        false_alarms: Probability of at least one false alarm in all checks together, if nothing changed.
        checks: Planned number of checks.
        require_age: Images that are rejected if the age of the patient is unknown, as in the acceptance test.
        assume: As in the acceptance test.
        progress: Called with the number of processed files and the total.

    Raises:
        UsageError: A number is out of range.
        UndefinedMetricError: There are fewer than `MIN_IMAGES` readable images.
        BundleError: The bundle cannot be read or run.
        SiteProfileError: The profile cannot be used.
    """
    if not 0 < false_alarms < 1 or checks < 1:
        raise UsageError(
            f"the probability of a false alarm is {false_alarms:g} and the number of checks {checks}; the probability must be"
            " between 0 and 1, the number at least 1"
        )
    session = BundleSession.load(find_bundle(bundle), require_age=require_age, assume=assume, site=site)
    profile = session.profile
    assert profile is not None  # the session was loaded with a profile
    if not (profile.monitoring and profile.monitored_patients):
        raise SiteProfileError(f"the profile of site {profile.name!r} has no reference for monitoring")
    rejected, values, unreadable = _measure(session, paths, progress)
    if len(rejected) < MIN_IMAGES:
        first = next((f"; {path}: {reason}" for path, reason in unreadable.items()), "")
        raise UndefinedMetricError(
            f"monitoring needs at least {MIN_IMAGES} readable images; there are {len(rejected)} of"
            f" {len(paths)} files{first}"
        )
    tests = compare_with_profile(profile, values, rejected, false_alarms / checks)
    return Monitoring(
        site=profile.label,
        bundle=session.card.name,
        onnx_sha256=session.card.onnx_sha256,
        n=len(rejected),
        unreadable=unreadable,
        rejected=proportion(rejected, None),
        false_alarms=false_alarms,
        checks=checks,
        tests=tests,
        alarm=any(test.alarm for test in tests),
        version=__version__,
        notice=notice(session.card.population),
    )


def compare_with_profile(
    profile: SiteProfile, values: Mapping[str, Sequence[float]], rejected: Sequence[bool], false_alarms: float
) -> tuple[DriftTest, ...]:
    """Return the tests of one check.

    Args:
        profile: The site profile, with reference values for monitoring.
        values: Values of each quantity in the profile: logits of accepted images, statistics of all images.
        rejected: True for each rejected image.
        false_alarms: Probability of a false alarm in this check.
    """
    return detect_drift(
        {str(name): reference for name, reference in profile.monitoring.items()},
        values,
        rejected=(profile.monitored_rejected, sum(rejected)),
        images=(profile.monitored_patients, len(rejected)),
        false_alarms=false_alarms,
    )


def _measure(
    session: BundleSession, paths: Sequence[str], progress: Callable[[int, int], None] | None
) -> tuple[list[bool], dict[str, list[float]], dict[str, str]]:
    """Return the rejection status of each readable image, the values of each quantity, and the unreadable files."""
    loader = ImageLoader(session.card.preprocessing)
    pool = loader.choose_pool(paths)
    rejected: list[bool] = []
    values: dict[str, list[float]] = {"logit": []}
    unreadable: dict[str, str] = {}
    try:
        for start in range(0, len(paths), _BATCH):
            batch = loader.preprocess_many(paths[start : start + _BATCH], pool)
            readable = []
            for path, image in zip(paths[start : start + _BATCH], batch, strict=True):
                if isinstance(image, UnreadableImageError):
                    unreadable[path] = image.detail
                    continue
                readable.append(image)
                for name, value in dataclasses.asdict(image_statistics(image.pixels)).items():
                    values.setdefault(name, []).append(value)
            for scored in session.stream(readable, batch=_BATCH):
                rejected.append(scored.rejection is not None)
                if scored.rejection is None:
                    values["logit"].append(float(f"{scored.logit:.7g}"))  # rounded as in the profile
            if progress:
                progress(min(start + _BATCH, len(paths)), len(paths))
    finally:
        loader.close()
    return rejected, values, unreadable


def monitoring_markdown(result: Monitoring) -> str:
    """Return the result as Markdown."""
    found = [test.name for test in result.tests if test.alarm]
    verdict = f"**Drift: {', '.join(found)}.**" if found else "No drift detected."
    checks = "one check" if result.checks == 1 else f"{result.checks} planned checks"
    lines = [
        f"{verdict} {result.n} images compared with the profile of {result.site}, model {result.bundle}.",
        "",
        "| | profile | recent images | n | p | corrected p | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {test.name} | {test.reference:.3g} | {test.recent:.3g} | {test.n_reference}, {test.n_recent} |"
            f" {test.p_value:.2g} | {test.adjusted:.2g} | {'alarm' if test.alarm else ''} |"
            for test in result.tests
        ),
        "",
        f"Medians; for rejected, the fraction. Alarm if the corrected p is at most"
        f" {result.false_alarms / result.checks:.2g}: the probability of a false alarm in {checks} is"
        f" {result.false_alarms:g}.",
    ]
    if result.unreadable:
        listed = "; ".join(f"{path}: {reason}" for path, reason in list(result.unreadable.items())[:_MAX_LISTED])
        more = len(result.unreadable) - _MAX_LISTED
        lines += ["", f"Unreadable: {listed}{f'; and {more} more' if more > 0 else ''}."]
    return "\n".join([*lines, "", result.notice, ""])
