"""The model card of a bundle of several classes, and its exports."""

import json
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from PIL import Image
from tests.conftest import GRAY_CLASSES, LIMITS, halves

from pneumoscope.bundle.evidence import EVIDENCE
from pneumoscope.bundle.model_card import model_card
from pneumoscope.bundle.model_card_exports import CHAI_NAMESPACE, chai_model_card, hugging_face_model_card
from pneumoscope.cli import cli
from pneumoscope.core.result_forms import with_minus_signs
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass


@pytest.fixture
def bundle(maker):
    return maker.multiclass_bundle(maker.root / "bundle", rejection_limits=LIMITS)


@pytest.fixture
def evaluated(maker, bundle):
    evaluation, _ = evaluate_multiclass(bundle, maker.classes(count=20), out=bundle / "evidence")
    return bundle, evaluation


def test_card_without_evidence_states_what_is_not_measured(bundle):
    page = model_card(bundle)
    assert page.startswith("# Model card: levels\n")
    assert "The classes are bright, dark, mid." in page
    assert "a temperature of 0.800, which was fitted on 60 validation images" in page
    assert "for a coverage of 95% of each class" in page
    assert "| dark | 0.3 | 20 |" in page
    assert "if its probability of being upright is below 0.300" in page
    assert f"Not measured yet: `{EVIDENCE['evaluation']}`" in page
    assert f"Not measured yet: `{EVIDENCE['audit']}`" in page
    assert "need a model for NORMAL and PNEUMONIA" in page
    assert "Known failures" not in page
    assert "pneumonia is" not in page


def test_card_without_prediction_sets_states_the_reason(maker):
    folder = maker.multiclass_bundle(maker.root / "plain", thresholds=None)
    page = model_card(folder)
    assert "There are no prediction sets: a class has too few validation images" in page
    card = json.loads((folder / "card.json").read_text())
    card["counts"] = {"validation": {"bright": 30, "dark": 18, "mid": 19}}
    (folder / "card.json").write_text(json.dumps(card))
    reason = "a coverage of 95% needs 19 validation images of each class; there are 18 of dark"
    assert f"There are no prediction sets: {reason}." in model_card(folder)
    image = maker.root / "a.png"
    Image.fromarray(halves(60)).save(image)
    result = CliRunner().invoke(cli, ["predict", str(image), "--model", str(folder)])
    assert f"no prediction sets ({reason})" in result.stdout


def test_card_and_evaluation_state_a_temperature_at_its_bound(maker):
    folder = maker.multiclass_bundle(maker.root / "plain")
    assert "bound" not in model_card(folder)
    card = json.loads((folder / "card.json").read_text())
    card["calibration"]["temperature"] = 999.9997
    (folder / "card.json").write_text(json.dumps(card))
    assert "The temperature is at its upper bound (1000)" in model_card(folder)
    evaluation, _ = evaluate_multiclass(folder, maker.classes())
    assert [remark.split(":")[0] for remark in evaluation.remarks] == ["The temperature is at its upper bound (1000)"]


def test_card_shows_every_number_of_the_evaluation(evaluated):
    bundle, evaluation = evaluated
    page = model_card(bundle)
    shown = [*evaluation.metrics.values(), *evaluation.sets.values(), evaluation.rejected.share]
    for result in evaluation.by_class.values():
        shown += [*result.metrics.values(), *result.sets.values(), *(each.observed_rate for each in result.reliability)]
    shown += [pair.metrics["auroc"] for pair in evaluation.pairs]
    assert len(shown) > 40
    for interval in shown:
        assert with_minus_signs(f"{interval.value:.3f}") in page
        if interval.low is not None:
            assert with_minus_signs(f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]") in page
    for name, counts in zip(GRAY_CLASSES, evaluation.confusion, strict=True):
        assert f"| {name} | {' | '.join(map(str, counts))} |" in page
    assert "Not measured yet: add `--by COLUMN,...` to the evaluation." in page
    assert "On 60 test images (20 bright, 20 dark, 20 mid; 30 patients). This is evaluation number 1" in page


def test_known_failures_are_the_most_frequent_confusions(evaluated):
    bundle, evaluation = evaluated
    page = model_card(bundle)
    rates = [
        (count / 20, name, other)
        for name, counts in zip(GRAY_CLASSES, evaluation.confusion, strict=True)
        for other, count in zip(GRAY_CLASSES, counts, strict=True)
        if name != other and count
    ]
    rate, name, other = max(rates)
    assert f"{rate:.1%} of the 20 images of the class {name} are predicted as {other}." in page
    lines = [
        line
        for line in page.partition("## Known failures")[2].partition("## ")[0].splitlines()
        if line.startswith("- ")
    ]
    assert [float(line[2:].split("%")[0]) for line in lines] == sorted(
        (round(100 * r, 1) for r, *_ in rates), reverse=True
    )


def test_card_shows_subgroups(maker, bundle):
    data = maker.classes()
    header, *rows = data.read_text().splitlines()
    data.write_text("\n".join([f"{header},site", *(f"{row},{'AB'[i // 2 % 2]}" for i, row in enumerate(rows))]))
    evaluation, _ = evaluate_multiclass(bundle, data, by=["site"], out=bundle / "evidence")
    page = model_card(bundle)
    accuracy = evaluation.subgroups[1].metrics["accuracy"]
    assert f"{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]" in page
    assert "| site: B | 18 |" in page
    for test in evaluation.interactions:
        assert f"- {test.sentence}" in page


def test_exports_have_the_metrics_of_the_classes(evaluated):
    bundle, evaluation = evaluated
    text = chai_model_card(bundle)
    names = {"mc": CHAI_NAMESPACE}
    root = ET.fromstring(text.encode())
    values = {
        result.find("mc:Label", names).text: json.loads(result.find("mc:ValueJson", names).text)
        for result in root.iter(f"{{{CHAI_NAMESPACE}}}MetricResult")
    }
    assert values["macro auroc"]["estimate"] == evaluation.metrics["macro_auroc"].value
    assert values["sensitivity, dark"]["lower"] == evaluation.by_class["dark"].metrics["sensitivity"].low
    assert "estimates the probability of each class (bright, dark, mid)" in text
    assert "web interface" not in text
    yaml = pytest.importorskip("yaml")
    data = yaml.safe_load(hugging_face_model_card(bundle).split("---\n", 2)[1])
    (result,) = data["model-index"][0]["results"]
    assert result["task"]["name"] == "Classification (bright, dark, mid) on chest radiographs"
    found = {each["name"]: each["value"] for each in result["metrics"]}
    assert found["Macro AUROC"] == evaluation.metrics["macro_auroc"].value
    assert {"dark", "mid"} < set(data["tags"])


def test_cards_claim_only_what_the_bundle_has(maker, bundle):
    parts = (
        "set of possible classes",
        "set of those that stay possible",
        "uncertain",
        "Thresholds",
        "unsuitable images",
    )
    full = chai_model_card(bundle)
    assert [part in full for part in parts] == [True] * len(parts)
    assert "Thresholds and calibration chosen on validation images only, split by patient." in full

    folder = maker.multiclass_bundle(maker.root / "plain", thresholds=None)
    plain = chai_model_card(folder)
    assert [part in plain for part in parts] == [False] * len(parts)
    assert "estimates the probability of each class (bright, dark, mid) from one frontal chest radiograph. " in plain
    assert "Calibration chosen on validation images only, split by patient." in plain
    assert "pneumoscope robustness" not in plain

    assert '"calibrated"' in hugging_face_model_card(folder)
    card = json.loads((folder / "card.json").read_text())
    card["calibration"] = {"temperature": 1, "method": "none", "n": 0}
    (folder / "card.json").write_text(json.dumps(card))
    assert "alibration chosen" not in chai_model_card(folder)
    assert "calibrated" not in hugging_face_model_card(folder).split("---\n")[1]


def test_chai_card_without_an_evaluation_has_no_figures_of_thresholds(bundle):
    text = chai_model_card(bundle)
    assert "No evaluation on test images." in text
    assert "Not measured" in text
