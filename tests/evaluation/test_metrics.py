"""Metrics of a few images, compared with numbers computed by hand."""

import pytest
from msgspec import structs

from pneumoscope.bundle.card import OperatingPoint, Proportion, UncertaintyBand
from pneumoscope.core.results import Confusion, ScoredImage
from pneumoscope.evaluation.metrics import etiology_aurocs, evaluate_operating_point, positives, ranking_metrics


def image(label, etiology, logit, score, patient=""):
    return ScoredImage("x.png", "0" * 64, patient, label, etiology, logit, score, score)


IMAGES = [
    image("NORMAL", "normal", -2.0, 0.1, "a"),
    image("NORMAL", "normal", 0.0, 0.5, "b"),
    image("PNEUMONIA", "bacteria", 2.0, 0.9, "c"),
    image("PNEUMONIA", "bacteria", 1.0, 0.7, "c"),
    image("PNEUMONIA", "virus", -1.0, 0.3, "d"),
    image("PNEUMONIA", "", 3.0, 0.95, "e"),
]
SHARE = Proportion(value=1, low=0.2, high=1, n=1, method="wilson")
HALF = OperatingPoint(threshold=0.5, rule="fixed", sensitivity=SHARE, specificity=SHARE)


def test_score_at_the_threshold_is_classified_as_pneumonia():
    result = evaluate_operating_point(IMAGES, HALF, threshold_probability=0.4, seed=0)
    assert result.confusion == Confusion(tp=3, fn=1, tn=1, fp=1)
    assert (result.threshold, result.threshold_probability, result.rule) == (0.5, 0.4, "fixed score of 0.5")


def test_accuracy_by_etiology():
    result = evaluate_operating_point(IMAGES, HALF, threshold_probability=0.4, seed=0).by_etiology
    assert {name: (interval.value, interval.n) for name, interval in result.items()} == {
        "normal": (0.5, 2),
        "bacteria": (1.0, 2),
        "virus": (0.0, 1),
    }


def test_auroc_by_etiology():
    # Bacteria rank above all normal images, the virus image above one of two; the unknown etiology is in neither AUROC.
    result = etiology_aurocs(IMAGES)
    assert {name: interval.value for name, interval in result.items()} == {"bacteria": 1.0, "virus": 0.5}
    assert ranking_metrics(IMAGES, seed=0)["auroc"].value == pytest.approx(7 / 8)


def test_etiology_without_images_is_omitted():
    assert list(etiology_aurocs(IMAGES[:4])) == ["bacteria"]
    assert "virus" not in evaluate_operating_point(IMAGES[:4], HALF, threshold_probability=0.4, seed=0).by_etiology


def test_positives_are_the_pneumonias():
    assert positives(IMAGES).tolist() == [False, False, True, True, True, True]


def test_ranking_metrics_include_the_calibration_metrics():
    result = ranking_metrics(IMAGES, seed=7)
    assert list(result) == [
        "auroc",
        "auprc",
        "brier",
        "expected_calibration_error",
        "calibration_slope",
        "calibration_intercept",
        "observed_expected_ratio",
    ]
    squares = [0.1**2, 0.5**2, 0.1**2, 0.3**2, 0.7**2, 0.05**2]
    assert result["brier"].value == pytest.approx(sum(squares) / 6)
    assert result["brier"].seed == 7


def test_uncertainty_band_counts_uncertain_and_covered_images():
    # One of two normal images and two of four pneumonias are between 0.3 and 0.7; no image is on the wrong side.
    band = UncertaintyBand(low=0.3, high=0.7, coverage=0.9, n_normal=9, n_pneumonia=9)
    result = evaluate_operating_point(
        IMAGES, structs.replace(HALF, uncertainty_band=band), threshold_probability=0.4, seed=0
    )
    assert {
        (label, name): (share.value, share.n)
        for label, row in result.uncertainty_band.items()
        for name, share in row.items()
    } == {
        ("normal", "uncertain"): (0.5, 2),
        ("normal", "covered"): (1.0, 2),
        ("pneumonia", "uncertain"): (0.5, 4),
        ("pneumonia", "covered"): (1.0, 4),
    }
    assert result.confusion == Confusion(tp=3, fn=1, tn=1, fp=1)  # the threshold applies to uncertain images too
    # Another band, with one image of each label on the wrong side.
    wrong = evaluate_operating_point(
        IMAGES,
        structs.replace(HALF, uncertainty_band=structs.replace(band, low=0.4, high=0.45)),
        threshold_probability=0.4,
        seed=0,
    ).uncertainty_band
    assert (wrong["normal"]["covered"].value, wrong["pneumonia"]["covered"].value) == (0.5, 0.75)
    assert (wrong["normal"]["uncertain"].value, wrong["pneumonia"]["uncertain"].value) == (0, 0)


def test_operating_point_without_a_band_has_no_band_result():
    assert evaluate_operating_point(IMAGES, HALF, threshold_probability=0.4, seed=0).uncertainty_band is None
