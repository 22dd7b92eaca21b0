"""Exports of the model card: the elements of the CHAI schema in their order, and metadata that a YAML parser reads."""

import json
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from msgspec import structs
from tests.conftest import LIMITS, POINTS

from pneumoscope.bundle.bundle_folder import DEFAULT_BUNDLE
from pneumoscope.bundle.card import OutlierSummary, Proportion
from pneumoscope.bundle.model_card import model_card
from pneumoscope.bundle.model_card_exports import CHAI_NAMESPACE, chai_model_card, hugging_face_model_card
from pneumoscope.cli.models import command
from pneumoscope.evaluation.evaluate import evaluate

# The required elements of version 0.2 of the schema, in order; "?" marks optional ones.
CHAI = {
    "AppliedModelCard": "BasicInfo ReleaseInfo ModelSummary UsesAndDirections Warnings TrustIngredients KeyMetrics Resources"
    " Bibliography",
    "BasicInfo": "ModelName ModelDeveloper DeveloperContact",
    "ReleaseInfo": "ReleaseStage ReleaseDate ReleaseVersion GlobalAvailability EHRCompatibility? RegulatoryApproval?",
    "ModelSummary": "Summary Keywords",
    "UsesAndDirections": "IntendedUseAndWorkflow PrimaryIntendedUsers HowToUse TargetedPatientPopulation"
    " CautionedOutOfScopeSettings",
    "Warnings": "KnownRisksAndLimitations KnownBiasesOrEthicalConsiderations ClinicalRiskLevel",
    "TrustIngredients": "AISystemFacts TransparencyInformation",
    "AISystemFacts": "OutcomesAndOutputs ModelType FoundationModels? InputDataSource OutputAndInputDataTypes"
    " DevelopmentDataCharacterization BiasMitigationApproaches OngoingMaintenance Security? Transparency?",
    "TransparencyInformation": "FundingSource ThirdPartyInformation? StakeholdersConsulted",
    "KeyMetrics": "UsefulnessUsabilityEfficacy FairnessEquity SafetyReliability",
    "Resources": "EvaluationReferences? ClinicalTrial? PeerReviewedPublications ReimbursementStatus? PatientConsentOrDisclosure",
    "MetricResult": "Label ValueJson",
    **dict.fromkeys(
        ("UsefulnessUsabilityEfficacy", "FairnessEquity", "SafetyReliability"),
        "MetricGoal Results Interpretation TestType TestingDataDescription ValidationProcessAndJustification",
    ),
}


@pytest.fixture
def bundle(maker):
    passed = Proportion(value=0.02, low=0.01, high=0.04, n=400, method="wilson")
    limits = structs.replace(
        LIMITS, max_age_score=0.9, age_share=0.01, outliers={"clinic": OutlierSummary(n_train=9, passed=passed)}
    )
    return maker.bundle(maker.root / "bundle", rejection_limits=limits, operating_points=POINTS, age_range=(1, 5))


@pytest.fixture
def evaluated(maker, bundle):
    found, _ = evaluate(bundle, maker.images(), out=bundle / "evidence")
    return bundle, found


def elements(text):
    root = ET.fromstring(text.encode())
    return root, {element.tag.removeprefix(f"{{{CHAI_NAMESPACE}}}"): element for element in root.iter()}


def check_order(element):
    name = element.tag.removeprefix(f"{{{CHAI_NAMESPACE}}}")
    children = [child.tag.removeprefix(f"{{{CHAI_NAMESPACE}}}") for child in element]
    if name in CHAI:
        expected = CHAI[name].split()
        required = [each for each in expected if not each.endswith("?")]
        order = [each.rstrip("?") for each in expected]
        assert [each for each in children if each in required] == required
        assert children == sorted(children, key=order.index)
    elif name in ("Results", "Keywords"):
        assert set(children) == {"MetricResult" if name == "Results" else "Keyword"}
    else:
        assert children == []
        assert element.text
        assert element.text.strip()
    for child in element:
        check_order(child)


def test_elements_are_those_of_the_schema(bundle, evaluated):
    for text in (chai_model_card(bundle), chai_model_card(evaluated[0], developer="A & B <dev>", contact="a@b")):
        root, _ = elements(text)
        check_order(root)
    _, found = elements(text)
    assert (found["ModelDeveloper"].text, found["DeveloperContact"].text) == ("A & B <dev>", "a@b")


def test_figures_are_those_of_the_evidence(evaluated):
    bundle, evaluation = evaluated
    root, _ = elements(chai_model_card(bundle))
    names = {"mc": CHAI_NAMESPACE}
    values = {
        result.find("mc:Label", names).text: json.loads(result.find("mc:ValueJson", names).text)
        for result in root.iter(f"{{{CHAI_NAMESPACE}}}MetricResult")
    }

    auroc = evaluation.metrics["auroc"]
    assert values["auroc"] == {
        "kind": "estimate_ci", "estimate": auroc.value, "lower": auroc.low, "upper": auroc.high, "level": 95, "unit": "",
    }  # fmt: skip
    sensitivity = evaluation.operating_points["rule_out"].metrics["sensitivity"]
    assert values["sensitivity, rule_out"]["estimate"] == sensitivity.value
    assert values["AUROC, virus"]["estimate"] == evaluation.auroc_by_etiology["virus"].value
    assert values["images of other ages that get a prediction, clinic"]["estimate"] == 0.02
    assert values["rejected validation images"]["upper"] == 0.3


def test_warnings_state_the_age_policy_and_the_check_of_heatmaps():
    _, found = elements(chai_model_card(DEFAULT_BUNDLE))
    warnings = found["KnownRisksAndLimitations"].text
    assert "`--require-age always` rejects them" in warnings
    assert "get a prediction with a warning" in warnings
    assert "phantoms" in warnings
    assert "are misclassified" in warnings


def test_data_and_literature_are_cited_for_the_included_model_only(bundle):
    _, included = elements(chai_model_card(DEFAULT_BUNDLE))
    _, other = elements(chai_model_card(bundle))
    assert "kermany2018" in included["Bibliography"].text
    assert "Kermany" in included["PatientConsentOrDisclosure"].text
    for name in ("Bibliography", "PatientConsentOrDisclosure", "StakeholdersConsulted"):
        assert other[name].text == "Not stated."
    assert other["OngoingMaintenance"].text.startswith("Not stated.")
    assert model_card(bundle).partition("## License\n\n")[2].startswith("Not stated.")
    assert "CC BY 4.0" in model_card(DEFAULT_BUNDLE).partition("## License")[2]


def test_card_without_an_evaluation_states_validation_figures(bundle):
    text = chai_model_card(bundle)
    assert "No evaluation on test images" in text
    assert '"estimate": 1' in text
    assert "Not measured" in text  # the subgroups


def test_characters_that_xml_does_not_have_are_left_out(bundle):
    root, _ = elements(chai_model_card(bundle, developer="x\x00\x0by"))
    assert root.find(f".//{{{CHAI_NAMESPACE}}}ModelDeveloper").text == "xy"


def test_metadata_is_yaml_and_the_card_follows(evaluated):
    yaml = pytest.importorskip("yaml")
    bundle, evaluation = evaluated
    text = hugging_face_model_card(bundle)
    _, metadata, card = text.split("---\n", 2)

    assert card == "\n" + model_card(bundle)
    data = yaml.safe_load(metadata)
    assert ("license" in data, data["pipeline_tag"]) == (False, "image-classification")
    (model,) = data["model-index"]
    (result,) = model["results"]
    assert (model["name"], result["dataset"]["split"]) == ("gray", "test")
    metrics = {each["type"]: each for each in result["metrics"]}
    assert set(metrics) == {"roc_auc", "brier_score", "accuracy", "recall", "specificity"}
    assert metrics["roc_auc"]["value"] == evaluation.metrics["auroc"].value
    assert metrics["accuracy"]["args"]["low"] == evaluation.operating_points["balanced"].metrics["accuracy"].low


def test_model_in_the_package_has_the_license_of_the_package():
    assert 'license: "apache-2.0"' in hugging_face_model_card(DEFAULT_BUNDLE)


def test_metadata_without_an_evaluation_has_no_results(bundle):
    assert "model-index" not in hugging_face_model_card(bundle)


def test_command_prints_each_format(evaluated):
    bundle, _ = evaluated

    def printed(*options):
        result = CliRunner().invoke(command, ["--card", str(bundle), *options])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert printed() == model_card(bundle)
    assert printed("--format", "huggingface") == hugging_face_model_card(bundle)
    assert printed("--format", "chai", "--developer", "X") == chai_model_card(bundle, developer="X")
