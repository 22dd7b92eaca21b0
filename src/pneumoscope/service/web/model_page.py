"""Measurements for the model page, read from the folder of the bundle or run, as far as they apply to the model in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pneumoscope.bundle.evidence import Json, read_evidence
from pneumoscope.core.errors import BundleError
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import decimals_to_distinguish
from pneumoscope.inference.model import Model
from pneumoscope.runs.run_folder import evaluation_of_bundle

__all__ = ["Accuracy", "Measurements", "read_measurements"]

_CENTER_BLANKED = "center blanked, 60% of each side"  # name of a control in `evaluation.shortcuts`


@dataclasses.dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of the decisions at an operating point.

    Attributes:
        split: Split of the images, such as "test".
        sensitivity, specificity: Fractions of images with and without pneumonia that were classified correctly.
        found, false_alarms: Numbers of images with and without pneumonia that were classified as pneumonia.
        by_etiology: Fraction of images classified correctly, by cause of the pneumonia.
        rejected: Fraction of images that the model rejects in use; the other figures include them.
    """

    split: str
    sensitivity: Interval
    specificity: Interval
    found: int
    false_alarms: int
    by_etiology: dict[str, Interval]
    rejected: Interval | None


@dataclasses.dataclass(frozen=True, slots=True)
class Measurements:
    """Measurements of the model in use; None if unavailable.

    Attributes:
        reliability: The evaluation with its reliability diagram.
        percent_decimals: Number of decimals needed to distinguish the mean probabilities of the bins in percent.
        accuracy: Accuracy at the operating point in use.
        center_blanked: AUROC on images with a blank center, 60% of each side; 0.5 is chance.
        unreadable: Error code if the measurements cannot be read; otherwise empty.
    """

    reliability: Json | None = None
    percent_decimals: int = 1
    accuracy: Accuracy | None = None
    center_blanked: Interval | None = None
    unreadable: str = ""


def read_measurements(model: Model) -> Measurements:
    """Return the measurements of a model, from its folder or from its run's evaluation on test images.

    Measurements of the bundle are omitted if they no longer apply: a site profile may change the calibration, the
    threshold in use or the limits, and a prevalence changes the calibration.
    """
    if model.folder is None:
        return Measurements()
    try:
        evidence = read_evidence(model.folder, model.card, evaluation_of_bundle(model.folder))
    except BundleError as error:
        return Measurements(unreadable=error.code)
    evaluation, shortcuts = evidence["evaluation"], evidence["shortcuts"]
    try:
        bins = evaluation.get("reliability", ()) if evaluation and not model.facts.is_site_specific else ()
        return Measurements(
            reliability=evaluation if bins else None,
            percent_decimals=decimals_to_distinguish([(each["mean_probability"],) for each in bins]) - 2,
            accuracy=_accuracy(evaluation, model.operating_point_name)
            if evaluation and not _is_changed(model)
            else None,
            center_blanked=_center_blanked(shortcuts) if shortcuts else None,
        )
    except (KeyError, TypeError, AttributeError):  # unexpected structure
        return Measurements(unreadable=BundleError.code)


def _is_changed(model: Model) -> bool:
    """Return whether the site profile changes the threshold in use or the rejection of images."""
    return model.profile is not None and (model.point.site or bool(model.profile.limits))


def _accuracy(evaluation: Json, operating_point: str) -> Accuracy | None:
    point = evaluation.get("operating_points", {}).get(operating_point)
    if point is None:
        return None
    metrics, confusion = point["metrics"], point["confusion"]
    sensitivity, specificity = _interval(metrics["sensitivity"]), _interval(metrics["specificity"])
    if sensitivity.low is None or specificity.low is None:  # the images have only one label
        return None
    rejected = evaluation.get("rejected")
    return Accuracy(
        split=evaluation["split"],
        sensitivity=sensitivity,
        specificity=specificity,
        found=confusion["tp"],
        false_alarms=confusion["fp"],
        by_etiology={name: _interval(each) for name, each in point["by_etiology"].items() if name != "normal"},
        rejected=_interval(rejected["share"]) if rejected else None,
    )


def _center_blanked(shortcuts: Json) -> Interval | None:
    found = [each["auroc"] for each in shortcuts["controls"] if each["name"] == _CENTER_BLANKED]
    return _interval(found[0]) if found else None


def _interval(document: Mapping[str, object]) -> Interval:
    return Interval(**document)  # type: ignore[arg-type]
