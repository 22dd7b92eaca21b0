"""Three controls that must not know the answer, and how well each knows it.

If the file's metadata, or the rim of the image, tells pneumonia from normal, then a network can score well without
looking at a lung: whatever it scores must be read against these. The learners are plain on purpose. A better one may
find more, so a value near 0.5 does not prove that there is no shortcut; a high one proves that there is.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pneumoscope.core.results import Interval
from pneumoscope.data.inspection import THUMBNAIL_SIDE, InspectedImage
from pneumoscope.statistics.intervals import undefined
from pneumoscope.statistics.roc import auroc_interval

__all__ = ["CONTROLS", "measure_shortcuts"]

FOLDS = 5
_BORDER = THUMBNAIL_SIDE // 16
_RIM = THUMBNAIL_SIDE // 8

# What each control sees, in words for the reader.
CONTROLS = {
    "metadata": "file size, width, height, aspect ratio, format, colour mode and JPEG quantisation; not one pixel",
    "border": "the outermost sixteenth of the image on each side",
    "centre_blanked": "the image with the central three quarters of its width and height blanked",
}

FloatArray = npt.NDArray[np.float64]


def measure_shortcuts(examined: Sequence[InspectedImage], *, seed: int = 0) -> dict[str, Interval]:
    """Cross-validated AUROC of each control, all images of a patient in one fold.

    Args:
        examined: images with both labels.
        seed: of the folds.
    Returns:
        {control: AUROC of the out-of-fold scores}; undefined, with the reason, where a label has fewer than 5 patients.
    Source: `statistics.roc.auroc_interval` for the interval, by patient.
    """
    labels = np.array([one.image.positive for one in examined], dtype=np.bool_)
    patients = [one.image.patient or f"image {one.image.path}" for one in examined]
    method = f"{FOLDS}-fold by patient"
    for positive in (False, True):
        count = len({patient for patient, label in zip(patients, labels, strict=True) if label == positive})
        if count < FOLDS:
            name = "PNEUMONIA" if positive else "NORMAL"
            reason = f"{FOLDS} folds need {FOLDS} {name} patients; there are {count}"
            return {control: undefined(reason, n=len(examined), method=method, seed=seed) for control in CONTROLS}
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels, groups=patients))
    found = {}
    for control in CONTROLS:
        features, learner = _control(control, examined, seed)
        interval = auroc_interval(_out_of_fold(learner, features, labels, folds), labels, patients)
        found[control] = dataclasses.replace(interval, method=f"{method}, {interval.method}", seed=seed)
    return found


def _control(control: str, examined: Sequence[InspectedImage], seed: int) -> tuple[FloatArray, Any]:
    if control == "metadata":
        trees = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
        return _metadata(examined), trees
    seen = ring(_BORDER if control == "border" else _RIM)
    pixels = np.array([one.thumbnail[seen] for one in examined], dtype=np.float64)
    return pixels, make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))


def ring(width: int) -> npt.NDArray[np.bool_]:
    """True in the outer `width` pixels of a thumbnail on each side."""
    seen = np.ones((THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=np.bool_)
    seen[width:-width, width:-width] = False
    return seen


def _metadata(examined: Sequence[InspectedImage]) -> FloatArray:
    kinds = sorted({(one.format, one.mode) for one in examined})
    return np.array(
        [
            [
                np.log1p(one.bytes),
                one.width,
                one.height,
                one.width / one.height,
                one.quantisation,
                *(float(kind == (one.format, one.mode)) for kind in kinds),
            ]
            for one in examined
        ],
        dtype=np.float64,
    )


def _out_of_fold(
    learner: Any, features: FloatArray, labels: npt.NDArray[np.bool_], folds: Sequence[tuple[Any, Any]]
) -> FloatArray:
    scores = np.full(len(labels), np.nan)
    # The work is small: threads would only wait for each other, and make the last digits depend on their number.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # A fit that stops early is a weaker control, not a fault; `C` is small, so it is close to its end in any case.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for fit, judge in folds:
            scores[judge] = learner.fit(features[fit], labels[fit]).predict_proba(features[judge])[:, 1]
    return scores
