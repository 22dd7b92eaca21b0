"""The page of the model states how many images of patients outside the age range pass the checks, and with which limits."""

import re

import pytest
from fastapi.testclient import TestClient
from msgspec import structs
from tests.conftest import LIMITS
from tests.service.web.helpers import BASE_URL

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import OutlierSummary, Proportion
from pneumoscope.bundle.model_card import model_card
from pneumoscope.bundle.site_profile import SiteProfile
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.storage.repository import PredictionRepository

PASSED = Proportion(value=0.02, low=0.01, high=0.04, n=400, method="wilson")
OUTLIERS = {
    "clinic": OutlierSummary(n_train=1600, passed=PASSED),
    "other": OutlierSummary(n_train=9, passed=None),
}
OTHER_LIMITS = {
    "en": "These figures were measured with the limits of the model card",
    "zh-Hant": "這些數值是以模型卡的限值測得",
}


@pytest.fixture(scope="module")
def bundle(shared_maker):
    limits = structs.replace(LIMITS, outliers=OUTLIERS)
    return shared_maker.bundle(shared_maker.root / "outliers", rejection_limits=limits, age_range=(1, 5))


def profile(card, limits):
    return SiteProfile(
        format=1, version="0.1.0", created="2026-01-02T03:04:05+00:00", name="North", model=card.name,
        onnx_sha256=card.onnx_sha256, card_sha256=card.sha256(), images_sha256="a" * 64, seen=[], n=1, patients=1,
        n_pneumonia=1, seed=0, prevalence=None, prevalence_source="data", calibration=None, intervals=None,
        operating_points={}, limits=limits, rejected=PASSED, reference_distribution=None, not_changed={},
    )  # fmt: skip


def pages(bundle, site=None):
    """Return the page in each language of `OTHER_LIMITS`, with plain spaces."""
    model = load_model(bundle, threads=1, site=site)
    with TestClient(create_app(model, PredictionRepository(None)), base_url=BASE_URL) as client:
        texts = {language: client.get(f"/model?language={language}").text for language in OTHER_LIMITS}
    return {language: re.sub(r"<[^>]*>", " ", text) for language, text in texts.items()}


def test_source_without_other_patients_is_named_as_on_the_card(bundle):
    found = pages(bundle)
    assert re.search(r"other\s+9\s+no other patients", found["en"])
    assert re.search(r"other\s+9\s+無其他病人", found["zh-Hant"])
    assert "| other | 9 | no other patients |" in model_card(bundle)


@pytest.mark.parametrize(("limits", "changed"), [({"ood_detector": 2.2}, True), ({}, False)])
def test_figures_of_the_card_stay_with_a_site_profile_and_name_their_limits(bundle, tmp_path, limits, changed):
    site = tmp_path / "site.json"
    site.write_text(profile(read_bundle(bundle)[0], limits).to_json(), encoding="utf-8")
    found = pages(bundle, site)
    assert re.search(r"clinic\s+1,600\s+2% \(1\N{EN DASH}4%\), n = 400", found["en"])
    assert "How many images of patients outside the age range pass" not in found["en"]
    assert {language: words in found[language] for language, words in OTHER_LIMITS.items()} == {
        "en": changed, "zh-Hant": changed,
    }  # fmt: skip


def test_page_without_a_site_profile_names_no_other_limits(bundle):
    found = pages(bundle)
    assert not [language for language, words in OTHER_LIMITS.items() if words in found[language]]


@pytest.mark.parametrize(
    ("changes", "applies"),
    [({}, True), ({"limits": {"ood_detector": 2.2}}, False), ({"operating_points": ("balanced",)}, False)],
)
def test_evaluation_on_test_images_stays_unless_the_profile_changes_threshold_or_limits(
    maker, tmp_path, changes, applies
):
    bundle = maker.bundle(maker.root / "evaluated", rejection_limits=LIMITS)
    evaluate(bundle, maker.images(), out=bundle / "evidence", ledger=tmp_path / "ledger.jsonl")
    card = read_bundle(bundle)[0]
    points = {
        name: structs.replace(card.operating_points[name], site=True) for name in changes.get("operating_points", ())
    }
    made = structs.replace(profile(card, changes.get("limits", {})), operating_points=points)
    site = tmp_path / "site.json"
    site.write_text(made.to_json(), encoding="utf-8")

    page = pages(bundle, site)["en"]

    assert ("images with pneumonia and" in page and "(test)" in page) is applies
    assert ("No measurement on test images applies" in page) is not applies
