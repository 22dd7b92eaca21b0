"""The model card shows the bundle and its evidence, and states which measurements are missing."""

import json
import re

import pytest
from msgspec import structs
from tests.conftest import LIMITS

from pneumoscope.bundle.bundle_folder import DEFAULT_BUNDLE
from pneumoscope.bundle.card import Intervals, OperatingPoint, OutlierSummary, Proportion, UncertaintyBand
from pneumoscope.bundle.evidence import EVIDENCE
from pneumoscope.bundle.model_card import model_card
from pneumoscope.bundle.model_card_measurements import failure_section
from pneumoscope.core.errors import BundleError
from pneumoscope.core.population import Population
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.result_forms import to_json
from pneumoscope.data.check import check_data
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.runs.run_folder import find_bundle

PROPORTION = Proportion(value=0.9, low=0.7, high=0.95, n=20, method="wilson")
POINT = OperatingPoint(
    threshold=0.4,
    rule="youden",
    n=40,
    sensitivity=PROPORTION,
    specificity=PROPORTION,
    uncertainty_band=UncertaintyBand(low=0.3, high=0.6, coverage=0.95, n_normal=19, n_pneumonia=21),
)


@pytest.fixture
def bundle(maker):
    return maker.bundle(maker.root / "bundle", operating_points={"balanced": POINT}, rejection_limits=LIMITS)


def changed(folder, **fields):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **fields}))


def test_card_of_a_bundle_without_evidence_lists_missing_measurements(bundle):
    page = model_card(bundle)

    assert page.startswith("# Model card: gray\n")
    assert notice(Population()) in page
    assert json.loads((bundle / "card.json").read_text())["onnx_sha256"] in page
    assert "| balanced | 0.4 | highest Youden index on 40 validation images | 0.900 [0.700, 0.950], n = 20 |" in page
    assert "scores from 0.3 to 0.6 are classified as uncertain" in page
    assert "19 normal images and 21 pneumonias" in page
    assert "if its probability of being upright is below 0.300" in page
    assert "rejected if its distance is above 1.90" in page
    assert "This card has no figures on images of patients outside the population that pass these checks" in page
    assert "slope 0.800, intercept 0.100" in page
    assert "refers to a prevalence of pneumonia of 50%" in page
    assert "by q / (1 - q)" in page
    for name in EVIDENCE:
        assert f"Not measured yet: `{EVIDENCE[name]}`" in page
    assert "Known failures" not in page


def test_card_states_how_many_outliers_of_each_source_pass(maker):
    passed = Proportion(value=0.02, low=0.01, high=0.04, n=400, method="wilson")
    outliers = {
        "clinic": OutlierSummary(n_train=1600, passed=passed, passed_alone={"age_classifier": passed}),
        "other": OutlierSummary(n_train=9, passed=None),
    }
    limits = structs.replace(LIMITS, max_age_score=0.25, age_share=0.007, outliers=outliers)
    page = model_card(maker.bundle(maker.root / "aged", rejection_limits=limits, age_range=(1, 5)))

    assert "whether the patient is outside 1 to 5 years" in page
    assert "if its score, 0 to 1, is above 0.250" in page
    assert "1.0% (input classifier), 0.7% (age) and 2.0% (distance)" in page
    assert "| clinic | 1,600 | 0.020 [0.010, 0.040], n = 400 |  | 0.020 |  |" in page
    assert "| other | 9 | no other patients |  |  |  |" in page
    assert "With only the age classifier, 8 of 400 would pass. Only the age classifier was trained" in page
    assert "A probability of being upright of at least 0.5 always passes." in page
    assert (
        "a patient of another age: 8 of 400 (clinic; 95% interval up to 4.0%); for patients of other hospitals" in page
    )
    assert "This card has no figures" not in page


@pytest.mark.parametrize(
    ("limits", "floors"),
    [
        (
            {"max_age_score": 0.5},
            " A probability of being upright of at least 0.5 and an age score of at most 0.5 always pass.",
        ),
        ({"max_age_score": 0.5, "min_upright": 0.6}, " An age score of at most 0.5 always passes."),
        ({"min_upright": 0.6}, ""),
    ],
)
def test_card_names_limits_that_stop_at_one_half(maker, limits, floors):
    bundle = maker.bundle(maker.root / "limits", rejection_limits=structs.replace(LIMITS, **limits), age_range=(1, 5))
    assert f"of mildly augmented validation images.{floors} Of the original validation images" in model_card(bundle)


def test_card_of_the_included_model_adds_up_the_images_that_each_check_passes():
    outliers = json.loads((DEFAULT_BUNDLE / "card.json").read_text())["rejection_limits"]["outliers"]
    counts = {
        check: f"{sum(round(each['value'] * each['n']) for each in alone)} of {sum(each['n'] for each in alone)}"
        for check in ("input_classifier", "age_classifier", "ood_detector")
        if (alone := [group["passed_alone"][check] for group in outliers.values()])
    }
    assert (
        f"With only the input classifier, {counts['input_classifier']} would pass; with only the age classifier,"
        f" {counts['age_classifier']} would pass; with only the OOD detector, {counts['ood_detector']} would pass."
    ) in model_card(DEFAULT_BUNDLE)


def test_card_of_a_bundle_without_input_checks_or_intervals(maker):
    folder = maker.bundle(maker.root / "plain")
    page = model_card(folder)
    assert "it gives a probability for any photograph" in page
    assert "uncertain:" not in page
    assert "Venn-Abers" not in page
    changed(folder, intervals={"edges": [0.0], "low": [0.1, 0.2], "high": [0.3, 0.4], "method": "venn-abers", "n": 40})
    assert Intervals(edges=(0.0,), low=(0.1, 0.2), high=(0.3, 0.4), method="venn-abers", n=40)
    assert "Venn-Abers prediction from 40 validation images" in model_card(folder)


def test_card_shows_every_number_of_the_evidence(maker, bundle):
    images = maker.images()
    found, _ = evaluate(bundle, images, operating_points=["balanced"], out=bundle / "evidence")
    (bundle / "evidence" / "audit.json").write_text(to_json(check_data(load_manifest(images))))
    row = {"value": 0.125, "low": 0.05, "high": 0.3, "n": 8}
    robustness = {
        "onnx_sha256": found.bundle_sha256, "n": 8, "split": "validation", "sizes": None,
        "formats": [{"name": "PNG", "changed": row, "largest": 0.0125}],
        "changes": [{"name": "rotated by 10°", "changed": row, "largest": None}],
        "corruptions": [
            {"name": "inverted", "rejected": {**row, "value": 0.25}, "predicted_pneumonia": 6, "reasons": {}}
        ],
        "other_images": [],
    }  # fmt: skip
    (bundle / "evidence" / "robustness.json").write_text(json.dumps(robustness))
    auroc = {"value": 0.625, "low": 0.5, "high": 0.75}
    shortcuts = {
        "onnx_sha256": found.bundle_sha256, "n": 8, "split": "validation", "split_by": "block", "whole": auroc,
        "controls": [{"name": "center blanked", "auroc": {**auroc, "value": 0.525}}],
    }  # fmt: skip
    (bundle / "evidence" / "shortcuts.json").write_text(json.dumps(shortcuts))

    curve = {"heatmap": auroc, "random": {**auroc, "value": 0.555}, "improvement": {**auroc, "value": 0.07}}
    saliency = {
        "onnx_sha256": found.bundle_sha256, "n": 8, "split": "validation", "heatmap_shape": [4, 4], "deletion": curve,
        "insertion": curve,
        "randomization": [{"name": "all layers", "correlation": auroc, "magnitude_correlation": {**auroc, "value": 0.65}}],
    }  # fmt: skip
    (bundle / "evidence" / "saliency_check.json").write_text(json.dumps(saliency))
    phantoms = {
        **saliency, "onnx_sha256": "0" * 64, "network": "mean-gray", "n": 9, "split": "validation",
        "command": "pneumoscope check",
        "localization": {"n": 5, "peak_inside": {**auroc, "value": 0.8}, "energy_inside": auroc, "area": auroc},
    }  # fmt: skip
    (bundle / "evidence" / "phantom_saliency_check.json").write_text(json.dumps(phantoms))

    without_masks = "No masks of the disease were given, so localization was not measured."
    assert without_masks in model_card(bundle)
    masks = saliency | {"localization": phantoms["localization"]}
    (bundle / "evidence" / "saliency_check.json").write_text(json.dumps(masks))
    page = model_card(bundle)
    assert without_masks not in page

    assert "Not measured yet" not in page
    assert "4 x 4 positions, on 8 validation images" in page
    assert "its heatmaps have 4 x 4 positions. On 5 phantoms of the validation split:" in page
    assert "`pneumoscope check`" in page
    assert found.reliability
    for each in found.reliability:
        assert (
            f"| {each.low:.3f} to {each.high:.3f} | {each.mean_probability:.3f} | {each.observed_rate.value:.3f} ["
            in page
        )
    assert "| largest contribution inside the opacity | 0.800 [0.500, 0.750] |" in page
    assert "| insertion | 0.625 [0.500, 0.750] | 0.555 [0.500, 0.750] | 0.070 [0.500, 0.750] |" in page
    assert "| all layers | 0.625 [0.500, 0.750] | 0.650 [0.500, 0.750] |" in page
    for etiology, correct in found.operating_points["balanced"].by_etiology.items():
        words = {"normal": "normal images"}.get(
            etiology, f"images of {'bacterial' if etiology == 'bacteria' else 'viral'} pneumonia"
        )
        assert f"| balanced | {words} | {correct.value:.3f} [" in page
    assert "Evaluations have no subgroups by age or sex" in page
    point = found.operating_points["balanced"]
    for interval in (
        *found.metrics.values(),
        *found.auroc_by_etiology.values(),
        *(point.metrics[name] for name in ("sensitivity", "specificity", "accuracy")),
        *(interval for row in point.uncertainty_band.values() for interval in row.values()),
        found.rejected.share,
    ):
        text = f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
        assert text.replace("-", "\N{MINUS SIGN}") in page
    assert f"{point.confusion.tp} of 20" in page
    assert f"{point.confusion.tn} of 12" in page
    assert "on 32 test images (12 NORMAL, 20 PNEUMONIA; " in page.replace("On 32", "on 32")
    assert "This is evaluation number 1 on these test images" in page
    assert "| PNG | 0.125 [0.050, 0.300] | 0.013 |" in page
    assert "| rotated by 10° | 0.125 [0.050, 0.300] | none |" in page
    assert "75.0% of 8 images that should be rejected (inverted) are not rejected" in page
    rates = [float(rate) for rate in re.findall(r"^- .*?([0-9.]+)% of", page, re.MULTILINE)]
    assert len(rates) > 1
    assert rates == sorted(rates, reverse=True)
    assert "| whole image | 0.625 [0.500, 0.750] |" in page
    assert "| center blanked | 0.525 [0.500, 0.750] |" in page
    assert "| outer border" in page or "| border" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read the evidence .*evaluation.json': .*Measure again: pneumoscope evaluate"),
        ("[]", "evaluation.json' is not a JSON object"),
        ('{"bundle_sha256": "abc"}', "evaluation.json' belongs to the network abc, not to this one"),
    ],
)
def test_evidence_of_another_network_is_rejected(bundle, text, message):
    (bundle / "evidence").mkdir()
    (bundle / "evidence" / "evaluation.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        model_card(bundle)


def test_evidence_of_phantoms_is_of_the_same_architecture(bundle):
    (bundle / "evidence").mkdir()
    (bundle / "evidence" / "phantom_saliency_check.json").write_text(json.dumps({"network": "resnet18"}))
    with pytest.raises(BundleError, match="is of the network resnet18, not mean-gray"):
        model_card(bundle)


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize(
    "content", [{"x": 1}, {"corruptions": 3, "operating_points": [], "metrics": None, "shortcuts": 1}]
)
def test_evidence_with_another_structure_is_rejected(bundle, name, content):
    (bundle / "evidence").mkdir()
    (bundle / "evidence" / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="has an unexpected structure"):
        model_card(bundle)


@pytest.mark.parametrize(("count", "last"), [(8, "- rate 1"), (10, "- 2 more, of at most 2.0%: see the tables.")])
def test_failures_that_are_left_out_are_counted(count, last):
    failures = [(number / 100, f"rate {number}") for number in range(count + 1)]
    (_, _, lines) = failure_section(failures)
    assert lines.splitlines()[0] == f"- rate {count}"
    assert lines.splitlines()[-1] == last


def test_bins_of_the_calibration_table_have_different_ranges():
    folder = find_bundle()
    bins = json.loads((folder / "evidence" / "evaluation.json").read_text())["reliability"]
    assert len({f"{each['low']:.3f} to {each['high']:.3f}" for each in bins}) < len(bins)  # probabilities near 1
    table = model_card(folder).split("observed rate of pneumonia [95% interval]")[1].split("\n\n")[0]
    ranges = re.findall(r"^\| ([\d.]+ to [\d.]+) \|", table, re.MULTILINE)
    assert len(ranges) == len({*ranges}) == len(bins)
