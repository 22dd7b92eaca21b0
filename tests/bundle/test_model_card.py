"""The model card says what the bundle and the measurements beside it say, and names what was not measured."""

import json
import re

import pytest
from tests.conftest import LIMITS

from pneumoscope.bundle.card import Intervals, OperatingPoint, Share, UncertaintyBand
from pneumoscope.bundle.model_card import EVIDENCE, model_card
from pneumoscope.core.errors import BundleError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.results import to_json
from pneumoscope.data.check import check_data
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate

SHARE = Share(value=0.9, low=0.7, high=0.95, n=20, method="wilson")
POINT = OperatingPoint(
    threshold=0.4,
    rule="highest Youden index on 40 validation images",
    chosen_on="validation",
    sensitivity=SHARE,
    specificity=SHARE,
    uncertainty_band=UncertaintyBand(low=0.3, high=0.6, coverage=0.95, n_normal=19, n_pneumonia=21),
)


@pytest.fixture
def bundle(maker):
    return maker.bundle(maker.root / "bundle", operating_points={"balanced": POINT}, rejection_limits=LIMITS)


def changed(folder, **fields):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **fields}))


def test_a_bundle_alone_tells_what_it_is_and_what_is_not_known(bundle):
    page = model_card(bundle)

    assert page.startswith("# Model card: grey\n")
    assert NOTICE in page
    assert json.loads((bundle / "card.json").read_text())["onnx_sha256"] in page
    assert "| balanced | 0.4 | highest Youden index on 40 validation images | 0.900 [0.700, 0.950], n = 20 |" in page
    assert "scores from 0.3 to 0.6 are called uncertain" in page
    assert "19 normal images and 21 pneumonias" in page
    assert "below a probability of 0.300 a picture is rejected" in page
    assert "than 1.90 (Mahalanobis" in page
    assert "slope 0.800, intercept 0.100" in page
    assert "for images of which 50% show pneumonia" in page
    assert "by 1 s / (1 - s)" in page
    for name in EVIDENCE:
        assert f"Not measured yet: `{EVIDENCE[name]}`" in page
    assert "Known failures" not in page


def test_a_bundle_that_refuses_little_says_so(maker):
    folder = maker.bundle(maker.root / "plain")
    page = model_card(folder)
    assert "it will call a photograph normal or pneumonia" in page
    assert "uncertain" not in page
    assert "Venn-Abers" not in page
    changed(folder, intervals={"edges": [0.0], "low": [0.1, 0.2], "high": [0.3, 0.4], "method": "venn-abers", "n": 40})
    assert Intervals(edges=(0.0,), low=(0.1, 0.2), high=(0.3, 0.4), method="venn-abers", n=40)
    assert "Venn-Abers prediction from 40 validation images" in model_card(folder)


def test_measurements_beside_it_are_shown_number_by_number(maker, bundle):
    images = maker.images()
    found, _ = evaluate(bundle, images, operating_points=["balanced"], out=bundle / "evidence")
    (bundle / "evidence" / "audit.json").write_text(to_json(check_data(load_manifest(images))))
    row = {"value": 0.125, "low": 0.05, "high": 0.3, "n": 8}
    robustness = {
        "onnx_sha256": found.bundle_sha256, "n": 8, "split": "validation", "sizes": None,
        "formats": [{"name": "PNG", "changed": row, "largest": 0.0125}],
        "changes": [{"name": "turned 10° left", "changed": row, "largest": None}],
        "spoilt": [{"name": "inverted", "rejected": {**row, "value": 0.25}, "called_pneumonia": 6, "reasons": {}}],
        "pictures": [],
    }  # fmt: skip
    (bundle / "evidence" / "robustness.json").write_text(json.dumps(robustness))

    page = model_card(bundle)

    assert "Not measured yet" not in page
    point = found.operating_points["balanced"]
    for interval in (
        *found.metrics.values(),
        *found.auroc_by_etiology.values(),
        *(point.metrics[name] for name in ("sensitivity", "specificity", "accuracy")),
        *(share for row in point.uncertainty_band.values() for share in row.values()),
        found.rejected.share,
    ):
        assert f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]" in page
    assert f"{point.confusion.tp} of 20" in page
    assert f"{point.confusion.tn} of 12" in page
    assert "on 32 test images (12 NORMAL, 20 PNEUMONIA; " in page.replace("On 32", "on 32")
    assert "Look 1 at these images" in page
    assert "| PNG | 0.125 [0.050, 0.300] | 0.013 |" in page
    assert "| turned 10° left | 0.125 [0.050, 0.300] | none |" in page
    assert "75.0% of 8 pictures that should be rejected (inverted) were judged" in page
    # Failures stand in the order of their size.
    shares = [float(share) for share in re.findall(r"^- .*?([0-9.]+)% of", page, re.MULTILINE)]
    assert len(shares) > 1
    assert shares == sorted(shares, reverse=True)
    assert "| outer border" in page or "| border" in page


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "evaluation.json' is no evidence: .*Make it again: pneumoscope evaluate"),
        ("[]", "evaluation.json' is of the network None"),
        ('{"bundle_sha256": "abc"}', "evaluation.json' is of the network abc, not of this one"),
    ],
)
def test_evidence_of_something_else_is_refused(bundle, text, words):
    (bundle / "evidence").mkdir()
    (bundle / "evidence" / "evaluation.json").write_text(text)
    with pytest.raises(BundleError, match=words):
        model_card(bundle)


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize("content", [{"x": 1}, {"spoilt": 3, "operating_points": [], "metrics": None, "shortcuts": 1}])
def test_evidence_of_another_form_is_refused(bundle, name, content):
    (bundle / "evidence").mkdir()
    (bundle / "evidence" / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="not what our commands write"):
        model_card(bundle)
