"""Read, write and apply site profiles.

A site profile is a JSON file that `pneumoscope accept` fits on labeled images of one hospital. At that site it replaces parts
of a bundle's card: calibration, thresholds and rejection limits. It identifies the model and the images by their hashes, and
includes a hash of its own content to detect accidental changes. The network itself never changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from pneumoscope.bundle.card import (
    Calibration,
    Card,
    InputCheck,
    Intervals,
    OperatingPoint,
    Proportion,
    ReferenceDistribution,
)
from pneumoscope.core.errors import SiteProfileError, UsageError

__all__ = [
    "SITE_PROFILE_FORMAT",
    "Quantity",
    "SiteProfile",
    "apply_site_profile",
    "check_site_name",
    "read_site_profile",
    "replace_fitted",
]

SITE_PROFILE_FORMAT = 1
_MAX_BYTES = 10_000_000
_MAX_NAME = 64  # characters
Quantity = Literal["logit", "brightness", "contrast", "sharpness", "border"]
_SHA256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class SiteProfile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measurements at a hospital and the resulting changes to one model's card.

    Attributes:
        format, version, created: Version of the format, pneumoscope version, and time (UTC, ISO 8601).
        name: Name of the site.
        model, onnx_sha256, card_sha256: Name of the bundle, and hashes of its network file and card.
        images_sha256: Order-independent hash of the images used for fitting.
        seen: Sorted `card.short_hash` values of these images, on which the profile must not be evaluated.
        n, patients, n_pneumonia: Number of images, patients, and images with pneumonia.
        seed: Seed of the cross-fitting folds.
        prevalence: Prevalence of pneumonia assumed by the probabilities.
        prevalence_source: "data" (fraction of the images) or "stated" (given by the user).
        calibration, intervals: Replacements for the card's fields; None keeps them.
        operating_points: Replacements for the card's operating points of the same name. Sensitivity and specificity refer to
            accepted images and are cross-fitted: each image is evaluated with a threshold and limits fitted on other patients.
        limits: Replacements for the rejection limits of these checks, on the scale of `RejectionLimits`.
        rejected: Fraction of the images that the model rejects with this profile, also cross-fitted.
        reference_distribution: Distribution of the probabilities with this profile, for drift detection.
        monitoring: Sorted logits of accepted images ("logit") and image statistics, by name, with one image per patient: the
            reference of `evaluation.acceptance.monitoring`.
        monitored_patients, monitored_rejected: Number of these images, and how many of them are rejected, also cross-fitted.
        not_changed: Reason for each part of the card that was kept.
        sha256: Hash of all other fields.
    """

    format: Annotated[int, Meta(ge=1, le=SITE_PROFILE_FORMAT)]
    version: str
    created: str
    name: Annotated[str, Meta(min_length=1, max_length=_MAX_NAME)]
    model: str
    onnx_sha256: _SHA256
    card_sha256: _SHA256
    images_sha256: _SHA256
    seen: list[str]
    n: Annotated[int, Meta(ge=1)]
    patients: Annotated[int, Meta(ge=1)]
    n_pneumonia: Annotated[int, Meta(ge=0)]
    seed: int
    prevalence: Annotated[float, Meta(gt=0, lt=1)] | None
    prevalence_source: str
    calibration: Calibration | None
    intervals: Intervals | None
    operating_points: dict[str, OperatingPoint]
    limits: dict[InputCheck, float]
    rejected: Proportion
    reference_distribution: ReferenceDistribution | None
    monitoring: dict[Quantity, list[float]] = {}
    monitored_patients: Annotated[int, Meta(ge=0)] = 0
    monitored_rejected: Annotated[int, Meta(ge=0)] = 0
    not_changed: dict[str, str]
    sha256: str = ""

    @property
    def label(self) -> str:
        """Name and short hash, as shown in predictions."""
        return f"{self.name} ({self.sha256[:8]})"

    def content_sha256(self) -> str:
        """Return the hash of all fields except `sha256`."""
        # Convert first, so that numbers are serialized as they are read back: 0 as 0.0.
        fields = msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(self, sha256="")), SiteProfile)
        return hashlib.sha256(json.dumps(msgspec.to_builtins(fields), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the content of the file, including its hash.

        Raises:
            SiteProfileError: A field has a value that `read_site_profile` would reject.
        """
        try:
            signed = msgspec.structs.replace(self, sha256=self.content_sha256())
            checked = msgspec.convert(msgspec.to_builtins(signed), SiteProfile)
            return json.dumps(msgspec.to_builtins(checked), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except (msgspec.ValidationError, ValueError) as error:
            raise SiteProfileError(f"the profile of site {self.name!r} cannot be written: {error}") from error


def check_site_name(name: str) -> None:
    """Raise if a text is not a valid site name.

    Raises:
        UsageError: It is empty, too long, or contains control characters.
    """
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise UsageError(
            f"the name of the site is {name[: _MAX_NAME + 1]!r}",
            hint=f"Give a name of 1 to {_MAX_NAME} printable characters (--site-name)",
        )


def read_site_profile(path: Path) -> SiteProfile:
    """Read a site profile and verify its hash.

    Raises:
        SiteProfileError: The file cannot be read, is not a site profile, has a newer format, or was modified.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        profile = msgspec.json.decode(content, type=SiteProfile)
    except OSError as error:
        raise SiteProfileError(
            f"cannot read {str(path)!r}: {error.strerror or error}",
            hint="Give the file site.json that pneumoscope accept wrote",
        ) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise SiteProfileError(
            f"{str(path)!r} is not a site profile: {error}",
            hint="Write one with: pneumoscope accept DATA --out DIR",
        ) from error
    if profile.sha256 != profile.content_sha256():
        raise SiteProfileError(
            f"{str(path)!r} was changed after it was written: its hash does not match its content",
            hint="Restore the file, or run pneumoscope accept again",
        )
    return profile


def apply_site_profile(card: Card, profile: SiteProfile) -> Card:
    """Return the card with the parts replaced by the profile.

    The images of the profile are added to the validation images of the card, so that thresholds are not evaluated on them. If
    limits change, the card's figures for patients outside the age range no longer hold and are removed.

    Args:
        card: Card of the bundle that the profile was fitted for.
        profile: Profile to apply.

    Raises:
        SiteProfileError: The profile was fitted for another model, or changes a part that the card does not have.
    """
    if (profile.onnx_sha256, profile.card_sha256) != (card.onnx_sha256, card.sha256()):
        raise SiteProfileError(
            f"the profile of site {profile.name!r} was made for another model: {profile.model!r}, network"
            f" {profile.onnx_sha256[:12]}, card {profile.card_sha256[:12]}; this is {card.name!r}, network"
            f" {card.onnx_sha256[:12]}, card {card.sha256()[:12]}",
            hint="Run pneumoscope accept with this model",
        )
    limits = card.rejection_limits
    has_age_limit = limits is not None and limits.max_age_score is not None
    if (profile.limits and limits is None) or ("age_classifier" in profile.limits and not has_age_limit):
        raise SiteProfileError(f"the profile of site {profile.name!r} changes limits that {card.name!r} does not have")
    if unknown := set(profile.operating_points) - set(card.operating_points):
        raise SiteProfileError(
            f"the profile of site {profile.name!r} has the operating point {min(unknown)!r}; {card.name!r} does not"
        )
    seen = {**card.seen, "validation": sorted({*card.seen.get("validation", ()), *profile.seen})}
    changed = replace_fitted(card, profile.calibration, profile.intervals, profile.operating_points, profile.limits)
    if profile.limits and changed.rejection_limits:
        limits = msgspec.structs.replace(changed.rejection_limits, rejected=profile.rejected, outliers={})
        changed = msgspec.structs.replace(changed, rejection_limits=limits)
    return msgspec.structs.replace(
        changed,
        reference_distribution=profile.reference_distribution or card.reference_distribution,
        seen=seen,
    )


def replace_fitted(
    card: Card,
    calibration: Calibration | None,
    intervals: Intervals | None,
    operating_points: Mapping[str, OperatingPoint],
    limits: Mapping[InputCheck, float],
) -> Card:
    """Return the card with replaced fitted parts (see `SiteProfile`), ignoring limits that the card does not have."""
    old = card.rejection_limits
    return msgspec.structs.replace(
        card,
        calibration=calibration or card.calibration,
        intervals=intervals if calibration else card.intervals,
        operating_points={**card.operating_points, **operating_points},
        rejection_limits=old
        and msgspec.structs.replace(
            old,
            min_upright=limits.get("input_classifier", old.min_upright),
            max_age_score=limits.get("age_classifier", old.max_age_score),
            max_distance=limits.get("ood_detector", old.max_distance),
        ),
    )
