"""Numbers of hand-made images; that they are written and read as here is checked in test_evaluate."""

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


def test_a_image_at_the_threshold_is_called_pneumonia():
    found = evaluate_operating_point(IMAGES, HALF, seed=0)
    assert found.confusion == Confusion(tp=3, fn=1, tn=1, fp=1)
    assert (found.threshold, found.rule) == (0.5, "fixed score of 0.5")


def test_etiologies_by_hand():
    found = evaluate_operating_point(IMAGES, HALF, seed=0).by_etiology
    assert {name: (interval.value, interval.n) for name, interval in found.items()} == {
        "normal": (0.5, 2),
        "bacteria": (1.0, 2),
        "virus": (0.0, 1),
    }


def test_aurocs_by_hand():
    """Bacteria win all pairs; the virus image wins one of two; the image of unknown etiology is in neither."""
    found = etiology_aurocs(IMAGES)
    assert {name: interval.value for name, interval in found.items()} == {"bacteria": 1.0, "virus": 0.5}
    assert ranking_metrics(IMAGES, seed=0)["auroc"].value == pytest.approx(7 / 8)


def test_an_etiology_without_images_is_left_out():
    assert list(etiology_aurocs(IMAGES[:4])) == ["bacteria"]
    assert "virus" not in evaluate_operating_point(IMAGES[:4], HALF, seed=0).by_etiology


def test_positives():
    assert positives(IMAGES).tolist() == [False, False, True, True, True, True]


def test_metrics_that_need_no_threshold():
    found = ranking_metrics(IMAGES, seed=7)
    assert list(found) == ["auroc", "auprc", "brier", "expected_calibration_error"]
    squares = [0.1**2, 0.5**2, 0.1**2, 0.3**2, 0.7**2, 0.05**2]
    assert found["brier"].value == pytest.approx(sum(squares) / 6)
    assert found["brier"].seed == 7


def test_a_band_by_hand():
    """From 0.3 to 0.7 are one of two normal images and two of four pneumonias; no pneumonia is below, no normal above."""
    uncertainty_band = UncertaintyBand(low=0.3, high=0.7, coverage=0.9, n_normal=9, n_pneumonia=9)
    found = evaluate_operating_point(IMAGES, structs.replace(HALF, uncertainty_band=uncertainty_band), seed=0)
    assert {
        (label, name): (share.value, share.n)
        for label, row in found.uncertainty_band.items()
        for name, share in row.items()
    } == {
        ("normal", "uncertain"): (0.5, 2),
        ("normal", "covered"): (1.0, 2),
        ("pneumonia", "uncertain"): (0.5, 4),
        ("pneumonia", "covered"): (1.0, 4),
    }
    assert found.confusion == Confusion(tp=3, fn=1, tn=1, fp=1)  # the threshold judges uncertain images too
    # Another band, of which one image of each label is on the wrong side.
    wrong = evaluate_operating_point(
        IMAGES, structs.replace(HALF, uncertainty_band=structs.replace(uncertainty_band, low=0.4, high=0.45)), seed=0
    ).uncertainty_band
    assert (wrong["normal"]["covered"].value, wrong["pneumonia"]["covered"].value) == (0.5, 0.75)
    assert (wrong["normal"]["uncertain"].value, wrong["pneumonia"]["uncertain"].value) == (0, 0)


def test_a_point_without_a_band_leaves_no_image_uncertain():
    assert evaluate_operating_point(IMAGES, HALF, seed=0).uncertainty_band is None
