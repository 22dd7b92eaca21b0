"""Numbers of hand-made films; that they are written and read as here is checked in test_evaluate."""

import pytest
from msgspec import structs

from pneumoscope.bundle.card import Band, OperatingPoint, Share
from pneumoscope.evaluation.measure import etiology_aurocs, judge_point, positives, ranking_metrics
from pneumoscope.results import Confusion, ScoredFilm


def film(label, etiology, logit, score, patient=""):
    return ScoredFilm("x.png", "0" * 64, patient, label, etiology, logit, score, score)


FILMS = [
    film("NORMAL", "normal", -2.0, 0.1, "a"),
    film("NORMAL", "normal", 0.0, 0.5, "b"),
    film("PNEUMONIA", "bacteria", 2.0, 0.9, "c"),
    film("PNEUMONIA", "bacteria", 1.0, 0.7, "c"),
    film("PNEUMONIA", "virus", -1.0, 0.3, "d"),
    film("PNEUMONIA", "", 3.0, 0.95, "e"),
]
SHARE = Share(value=1, low=0.2, high=1, n=1, method="wilson")
HALF = OperatingPoint(threshold=0.5, rule="fixed", chosen_on="fixed", sensitivity=SHARE, specificity=SHARE)


def test_a_film_at_the_threshold_is_called_pneumonia():
    found = judge_point(FILMS, HALF, seed=0)
    assert found.confusion == Confusion(tp=3, fn=1, tn=1, fp=1)
    assert (found.threshold, found.rule) == (0.5, "fixed")


def test_etiologies_by_hand():
    found = judge_point(FILMS, HALF, seed=0).by_etiology
    assert {name: (interval.value, interval.n) for name, interval in found.items()} == {
        "normal": (0.5, 2),
        "bacteria": (1.0, 2),
        "virus": (0.0, 1),
    }


def test_aurocs_by_hand():
    """Bacteria win all pairs; the virus film wins one of two; the film of unknown etiology is in neither."""
    found = etiology_aurocs(FILMS)
    assert {name: interval.value for name, interval in found.items()} == {"bacteria": 1.0, "virus": 0.5}
    assert ranking_metrics(FILMS, seed=0)["auroc"].value == pytest.approx(7 / 8)


def test_an_etiology_without_films_is_left_out():
    assert list(etiology_aurocs(FILMS[:4])) == ["bacteria"]
    assert "virus" not in judge_point(FILMS[:4], HALF, seed=0).by_etiology


def test_positives():
    assert positives(FILMS).tolist() == [False, False, True, True, True, True]


def test_metrics_that_need_no_threshold():
    found = ranking_metrics(FILMS, seed=7)
    assert list(found) == ["auroc", "auprc", "brier", "expected_calibration_error"]
    squares = [0.1**2, 0.5**2, 0.1**2, 0.3**2, 0.7**2, 0.05**2]
    assert found["brier"].value == pytest.approx(sum(squares) / 6)
    assert found["brier"].seed == 7


def test_a_band_by_hand():
    """From 0.3 to 0.7 are one of two normal films and two of four pneumonias; no pneumonia is below, no normal above."""
    band = Band(low=0.3, high=0.7, coverage=0.9, normals=9, pneumonias=9)
    found = judge_point(FILMS, structs.replace(HALF, band=band), seed=0)
    assert {
        (label, name): (share.value, share.n) for label, row in found.band.items() for name, share in row.items()
    } == {
        ("normal", "uncertain"): (0.5, 2),
        ("normal", "covered"): (1.0, 2),
        ("pneumonia", "uncertain"): (0.5, 4),
        ("pneumonia", "covered"): (1.0, 4),
    }
    assert found.confusion == Confusion(tp=3, fn=1, tn=1, fp=1)  # the threshold judges uncertain films too
    # Another band, of which one film of each label is on the wrong side.
    wrong = judge_point(FILMS, structs.replace(HALF, band=structs.replace(band, low=0.4, high=0.45)), seed=0).band
    assert (wrong["normal"]["covered"].value, wrong["pneumonia"]["covered"].value) == (0.5, 0.75)
    assert (wrong["normal"]["uncertain"].value, wrong["pneumonia"]["uncertain"].value) == (0, 0)


def test_a_point_without_a_band_leaves_no_film_uncertain():
    assert judge_point(FILMS, HALF, seed=0).band is None
