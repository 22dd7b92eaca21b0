"""Create the site profile of an acceptance test: the fitted parts of the card, and reference values for monitoring.

All rates are cross-fitted: rejections use limits fitted on other patients. The reference distribution contains all
accepted images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import get_args

import msgspec
import numpy as np

from pneumoscope import __version__
from pneumoscope.bundle.card import Card, ReferenceDistribution, short_hash
from pneumoscope.bundle.prevalence import with_prevalence
from pneumoscope.bundle.site_profile import SITE_PROFILE_FORMAT, Quantity, SiteProfile, apply_site_profile
from pneumoscope.data.manifest import LabeledImage, images_sha256
from pneumoscope.evaluation.acceptance.metrics import SiteComparison
from pneumoscope.evaluation.acceptance.site_fit import apply_fit
from pneumoscope.evaluation.acceptance.site_images import ScoredSite, SiteImages
from pneumoscope.evaluation.fitting import fit_reference_distribution, to_proportion
from pneumoscope.evaluation.selection import count_patients
from pneumoscope.inference.session import Outputs
from pneumoscope.runs.record import now
from pneumoscope.statistics.inputs import BoolArray, FloatArray
from pneumoscope.statistics.intervals import proportion

__all__ = ["create_profile"]

_MAX_REFERENCE = 2000  # values per quantity, for monitoring


def create_profile(
    compared: SiteComparison,
    scored: ScoredSite,
    images: Sequence[LabeledImage],
    *,
    name: str,
    prevalence: float | None,
    seed: int,
) -> SiteProfile:
    """Return the profile of a site.

    Args:
        compared: The card, and the fitted changes.
        scored: The scored images of the site.
        images: These images.
        name: Name of the site.
        prevalence: Prevalence of pneumonia that the probabilities refer to; None for that of the accepted images.
        seed: Seed of the fit and of random samples.

    Raises:
        SiteProfileError: The profile cannot be applied to the card.
    """
    card, fit, outputs = compared.card, compared.fit, scored.outputs
    if prevalence is not None:
        calibration, intervals = with_prevalence(apply_fit(card, fit), prevalence)
        fit = dataclasses.replace(fit, calibration=calibration, intervals=intervals)
    fitted = apply_fit(card, fit)
    rejected = compared.after.rejected
    one_per_patient = outputs.first_of_each_patient()
    profile = SiteProfile(
        format=SITE_PROFILE_FORMAT,
        version=__version__,
        created=now(),
        name=name,
        model=card.name,
        onnx_sha256=card.onnx_sha256,
        card_sha256=card.sha256(),
        images_sha256=images_sha256([image.sha256 for image in images]),
        seen=sorted(short_hash(image.sha256) for image in images),
        n=len(images),
        patients=count_patients(images),
        n_pneumonia=int(outputs.labels.sum()),
        seed=seed,
        prevalence=fit.calibration.prevalence if fit.calibration else None,
        prevalence_source="data" if prevalence is None else "stated",
        calibration=fit.calibration,
        intervals=fit.intervals,
        operating_points=dict(fit.operating_points),
        limits=dict(fit.limits),
        rejected=to_proportion(proportion(rejected, outputs.patients)),
        reference_distribution=_reference_distribution(fitted, outputs.subset(~outputs.rejected(fitted))),
        monitoring=_monitoring(scored, rejected, seed),
        monitored_patients=len(one_per_patient),
        monitored_rejected=int(rejected[one_per_patient].sum()),
        not_changed=dict(fit.not_changed),
    )
    profile = msgspec.structs.replace(profile, sha256=profile.content_sha256())
    apply_site_profile(card, profile)  # raises if the profile is invalid
    return profile


def _reference_distribution(card: Card, accepted: SiteImages) -> ReferenceDistribution | None:
    """Return the distribution of probabilities of the accepted images; None without any."""
    if not len(accepted):
        return None
    return fit_reference_distribution(
        msgspec.structs.replace(card, rejection_limits=None),
        [Outputs(logit=accepted.logits.astype(np.float32))],
        accepted.labels,
    )


def _monitoring(scored: ScoredSite, rejected: BoolArray, seed: int) -> dict[Quantity, list[float]]:
    """Return the reference values of each quantity from the first image of each patient; logits only if accepted."""
    one_per_patient = scored.outputs.first_of_each_patient()
    return {
        name: _reference_sample(
            scored.outputs.logits[one_per_patient[~rejected[one_per_patient]]]
            if name == "logit"
            else scored.statistics[name][one_per_patient],
            seed,
        )
        for name in get_args(Quantity)
    }


def _reference_sample(values: FloatArray, seed: int) -> list[float]:
    """Return the values (a random sample if there are many), sorted and rounded to 7 digits."""
    if len(values) > _MAX_REFERENCE:
        values = np.random.default_rng(seed).choice(values, _MAX_REFERENCE, replace=False)
    return sorted(float(f"{value:.7g}") for value in values.tolist())
