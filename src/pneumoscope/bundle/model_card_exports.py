"""Export the model card of a bundle as a CHAI Applied Model Card (XML) or a Hugging Face model card.

Sources: CHAI Applied Model Card schema, version 0.2, https://mc.chai.org/v0.2/schema.xsd. Hugging Face Hub, model card metadata
and model-index, https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from pneumoscope.bundle.bundle_folder import is_included, read_any_bundle
from pneumoscope.bundle.card import Card
from pneumoscope.bundle.evidence import Json, read_evidence
from pneumoscope.bundle.model_card import model_card
from pneumoscope.bundle.model_card_texts import (
    INTENDED_USE,
    INTENDED_USERS,
    fitted_parts,
    how_to_use,
    out_of_scope,
    outputs,
    purpose,
    safety_process,
    topics,
)
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.messages import of_patients_text
from pneumoscope.core.prediction_messages import notice

__all__ = ["CHAI_NAMESPACE", "chai_model_card", "hugging_face_model_card"]

CHAI_NAMESPACE = "https://mc.chai.org/v0.2/schema.xsd"
_NOT_STATED = "Not stated."
_NONE = "None."
_DATA = "Kermany, Zhang and Goldbaum, Mendeley Data, doi:10.17632/rscbjbr9sj, CC BY 4.0"
_VALIDATION_FIGURES = ": sensitivity and specificity are of the images that chose the thresholds"
_BIBLIOGRAPHY = """@article{kermany2018,
  author = {Kermany, Daniel S. and others},
  title = {Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning},
  journal = {Cell}, volume = {172}, pages = {1122--1131}, year = {2018}
}"""

# Text, or child elements by name in schema order; a list repeats the element.
_Content = str | Mapping[str, Any]


def chai_model_card(folder: Path, *, developer: str = "", contact: str = "", evaluation: Path | None = None) -> str:
    """Return the model card of a bundle as a CHAI Applied Model Card, an XML document.

    Args:
        folder: Folder of the bundle, with its evidence.
        developer, contact: Developer of the model and contact details; "Not stated." if empty.
        evaluation: See `evidence.read_evidence`.

    Raises:
        BundleError: See `model_card`.
    """
    markdown = model_card(folder, evaluation)  # raises if the evidence is malformed
    card, _ = read_any_bundle(folder)
    evidence = read_evidence(folder, card, evaluation)
    ET.register_namespace("", CHAI_NAMESPACE)
    root = _element("AppliedModelCard", _chai_content(card, evidence, markdown, developer, contact))
    ET.indent(root, " ")
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def hugging_face_model_card(folder: Path, evaluation: Path | None = None) -> str:
    """Return the model card of a bundle as the README.md of a Hugging Face repository: YAML metadata followed by Markdown.

    Args:
        folder: Folder of the bundle, with its evidence.
        evaluation: See `evidence.read_evidence`.

    Raises:
        BundleError: See `model_card`.
    """
    markdown = model_card(folder, evaluation)
    card, _ = read_any_bundle(folder)
    measured = read_evidence(folder, card, evaluation)["evaluation"]
    metadata: dict[str, Any] = {
        "language": ["en"],
        **({"license": "apache-2.0"} if is_included(card) else {}),
        "library_name": "pneumoscope",
        "pipeline_tag": "image-classification",
        "tags": [
            *("medical", "radiology", "chest-x-ray", *topics(card), "onnx"),
            *(["calibrated"] if card.calibration.method != "none" else []),
        ],
    }
    if measured:
        metadata["metrics"] = ["roc_auc", "accuracy", "brier_score"]
        metadata["model-index"] = [{"name": card.name, "results": _hugging_face_results(card, measured)}]
    return "---\n" + "\n".join(_yaml_lines(metadata)) + "\n---\n\n" + markdown


# --- CHAI ------------------------------------------------------------------------------------------------------------


def _chai_content(
    card: Card | MulticlassCard, evidence: Mapping[str, Json | None], markdown: str, developer: str, contact: str
) -> Mapping[str, Any]:
    included = is_included(card)
    ages = f"Patients of {card.age_range[0]:g} to {card.age_range[1]:g} years. " if card.age_range else ""
    return {
        "BasicInfo": {
            "ModelName": card.name,
            "ModelDeveloper": developer or _NOT_STATED,
            "DeveloperContact": contact or _NOT_STATED,
        },
        "ReleaseInfo": {
            "ReleaseStage": "Research and education. Not a medical device.",
            "ReleaseDate": card.created[:10],
            "ReleaseVersion": f"pneumoscope {card.version}, network {card.onnx_sha256}",
            "GlobalAvailability": "Not cleared or approved in any country.",
            "RegulatoryApproval": _NONE,
        },
        "ModelSummary": {
            "Summary": f"{card.network} that {purpose(card)}. {notice(card.population)}",
            "Keywords": {"Keyword": ["chest radiograph", *topics(card), "classification"]},
        },
        "UsesAndDirections": {
            "IntendedUseAndWorkflow": INTENDED_USE,
            "PrimaryIntendedUsers": INTENDED_USERS,
            "HowToUse": how_to_use(card),
            "TargetedPatientPopulation": f"{ages}{notice(card.population)}",
            "CautionedOutOfScopeSettings": out_of_scope(card),
        },
        "Warnings": {
            "KnownRisksAndLimitations": _sections(markdown, "Known failures", "Rejected images", "Heatmaps"),
            "KnownBiasesOrEthicalConsiderations": _sections(
                markdown, "Subgroups", "Shortcuts of the network", "Shortcuts in the data"
            ),
            "ClinicalRiskLevel": "Not assigned: not a medical device.",
        },
        "TrustIngredients": {"AISystemFacts": _system_facts(card, markdown), "TransparencyInformation": {
            "FundingSource": _NOT_STATED,
            "StakeholdersConsulted": _NONE if included else _NOT_STATED,
        }},
        "KeyMetrics": _key_metrics(card, evidence, markdown),
        "Resources": {
            "EvaluationReferences": "The command that measured each figure is in the evidence of the bundle.",
            "PeerReviewedPublications": _NONE,
            "PatientConsentOrDisclosure": f"Public, de-identified radiographs ({_DATA})." if included else _NOT_STATED,
        },
        "Bibliography": _BIBLIOGRAPHY if included else _NOT_STATED,
    }  # fmt: skip


def _system_facts(card: Card | MulticlassCard, markdown: str) -> Mapping[str, str]:
    counts = "; ".join(
        f"{split}: {', '.join(f'{n:,} {label}' for label, n in labels.items())}"
        for split, labels in card.counts.items()
    )
    side = card.preprocessing.size
    return {
        "OutcomesAndOutputs": outputs(card),
        "ModelType": f"Neural network for image classification, {card.network}, {card.parameters:,} parameters, ONNX.",
        "FoundationModels": f"Initial weights: {card.recipe.get('network', {}).get('weights', 'not stated')}.",
        "InputDataSource": "One radiograph: DICOM, JPEG, PNG, TIFF, BMP or WebP.",
        "OutputAndInputDataTypes": f"Input: gray levels, {side} x {side} pixels. Output: numbers and text.",
        "DevelopmentDataCharacterization": f"Images, split by {card.split_by}: {counts or 'not stated'}.",
        "BiasMitigationApproaches": (
            f"{fitted.capitalize()} chosen on validation images only, split by {card.split_by}."
            if (fitted := fitted_parts(card))
            else f"Validation images split by {card.split_by}."
        )
        + (" Images unlike the training images are rejected." if card.rejection_limits else ""),
        "OngoingMaintenance": ("None by the developer." if is_included(card) else _NOT_STATED)
        + (" `pneumoscope monitor` detects drift at a site." if isinstance(card, Card) else ""),
        "Security": "Offline inference; the service decodes images in isolated processes.",
        "Transparency": _section(markdown, "Network and training") or _NOT_STATED,
    }


def _key_metrics(card: Card | MulticlassCard, evidence: Mapping[str, Json | None], markdown: str) -> Mapping[str, Any]:
    evaluation, robustness = evidence["evaluation"], evidence["robustness"]
    validation = f"Validation images, split by {card.split_by}."
    tested = _describe(evaluation) if evaluation else validation
    chosen = f"Chosen on validation images: {fitted}. " if (fitted := fitted_parts(card)) else ""
    process = (
        f"{chosen}Every evaluation of test images is recorded in a ledger."
        if evaluation
        else f"No evaluation on test images{_VALIDATION_FIGURES if isinstance(card, Card) else ''}."
    )
    performance = _performance(card, evaluation)
    fairness = [(f"AUROC, {name}", value) for name, value in (evaluation or {}).get("auroc_by_etiology", {}).items()]
    safety = [(f"changed decisions, {row['name']}", row["changed"]) for row in (robustness or {}).get("changes", [])]
    if card.rejection_limits:
        safety.append(("rejected validation images", _as_interval(card.rejection_limits.rejected)))
        safety += [
            (f"images of other ages that get a prediction, {name}", _as_interval(group.passed))
            for name, group in card.rejection_limits.outliers.items()
            if group.passed
        ]
    return {
        "UsefulnessUsabilityEfficacy": _metric(
            "Discrimination, calibration, sensitivity and specificity.",
            performance,
            tested,
            process,
            notice(card.population),
        ),
        "FairnessEquity": _metric(
            "Subgroups that the data state.",
            fairness,
            tested,
            process,
            _section(markdown, "Subgroups") or "Age and sex are not part of the evaluated data.",
        ),
        "SafetyReliability": _metric(
            "Unchanged decisions for variants of the same image, and rejection of images outside the population.",
            safety,
            f"{robustness['n']} {robustness['split']} images." if robustness else validation,
            safety_process(card),
            "Rates of 0 are best for changed decisions and for images of other ages that get a prediction.",
        ),
    }


def _performance(card: Card | MulticlassCard, evaluation: Json | None) -> list[tuple[str, Json]]:
    """Return the metrics of an evaluation, or else the card's metrics on validation images."""
    rates = ("sensitivity", "specificity")
    if not evaluation:
        points = card.operating_points if isinstance(card, Card) else {}
        return [
            (f"{rate}, {name}", _as_interval(getattr(point, rate))) for name, point in points.items() for rate in rates
        ]
    parts = evaluation["operating_points" if isinstance(card, Card) else "by_class"]
    return [
        *((name.replace("_", " "), value) for name, value in evaluation["metrics"].items()),
        *((f"{rate}, {name}", part["metrics"][rate]) for name, part in parts.items() for rate in rates),
    ]


def _metric(
    goal: str, results: Sequence[tuple[str, Json]], tested: str, process: str, interpretation: str
) -> Mapping[str, Any]:
    rows = [
        {"Label": label, "ValueJson": _value_json(interval)}
        for label, interval in results
        if interval["value"] is not None
    ]
    return {
        "MetricGoal": goal,
        "Results": {"MetricResult": rows or [{"Label": "Not measured", "ValueJson": json.dumps({"kind": "text"})}]},
        "Interpretation": interpretation,
        "TestType": "Retrospective, internal.",
        "TestingDataDescription": tested,
        "ValidationProcessAndJustification": process,
    }


def _value_json(interval: Json) -> str:
    if interval["low"] is None or interval["high"] is None:
        return json.dumps({"kind": "single", "value": interval["value"]})
    ends = {"estimate": interval["value"], "lower": interval["low"], "upper": interval["high"]}
    return json.dumps({"kind": "estimate_ci", **ends, "level": 95, "unit": ""})


def _as_interval(proportion: Any) -> Json:
    return {"value": proportion.value, "low": proportion.low, "high": proportion.high}


def _describe(evaluation: Json) -> str:
    counts = ", ".join(f"{n} {label}" for label, n in evaluation["counts"].items())
    patients = of_patients_text(evaluation["patients"], evaluation.get("unknown_patients"), evaluation["n"])
    return f"{evaluation['n']} {evaluation['split']} images ({counts}) {patients}."


def _sections(markdown: str, *headings: str) -> str:
    """Return the text of the given model card sections, skipping missing ones."""
    return "\n\n".join(filter(None, (_section(markdown, heading) for heading in headings)))


def _section(markdown: str, heading: str) -> str:
    """Return the text of a model card section, or "" if it is missing."""
    _, found, rest = markdown.partition(f"\n## {heading}\n")
    return rest.partition("\n## ")[0].strip() if found else ""


def _element(name: str, content: _Content) -> ET.Element:
    element = ET.Element(f"{{{CHAI_NAMESPACE}}}{name}")
    if isinstance(content, str):
        element.text = _xml_text(content)
        return element
    for child, value in content.items():
        element.extend(_element(child, each) for each in (value if isinstance(value, list) else [value]))
    return element


def _xml_text(text: str) -> str:
    """Return the text without characters that XML 1.0 forbids."""
    return "".join(mark for mark in text if mark in "\t\n\r" or (mark >= " " and not "\ud800" <= mark <= "\udfff"))


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def _hugging_face_metrics(card: Card | MulticlassCard, evaluation: Json) -> list[tuple[str, str, Json]]:
    """Return the type, name and interval of each metric."""
    found = evaluation["metrics"]
    if isinstance(card, MulticlassCard):
        return [
            ("accuracy", "Accuracy", found["accuracy"]),
            ("roc_auc", "Macro AUROC", found["macro_auroc"]),
            ("f1", "Macro F1", found["macro_f1"]),
            ("brier_score", "Brier score", found["brier"]),
        ]
    balanced = evaluation["operating_points"].get("balanced", {}).get("metrics", {})
    return [
        ("roc_auc", "AUROC", found["auroc"]),
        ("brier_score", "Brier score", found["brier"]),
        *(
            (kind, f"{name}, balanced", balanced[metric])
            for kind, name, metric in (
                ("accuracy", "Accuracy", "accuracy"),
                ("recall", "Sensitivity", "sensitivity"),
                ("specificity", "Specificity", "specificity"),
            )
            if metric in balanced
        ),
    ]


def _hugging_face_results(card: Card | MulticlassCard, evaluation: Json) -> list[Mapping[str, Any]]:
    task = "Detection of pneumonia" if isinstance(card, Card) else f"Classification ({', '.join(card.classes)})"
    return [
        {
            "task": {"type": "image-classification", "name": f"{task} on chest radiographs"},
            "dataset": {
                "type": "chest-radiographs",
                "name": f"{evaluation['n']} {evaluation['split']} images, hash {evaluation['images_sha256'][:16]}",
                "split": evaluation["split"],
            },
            "metrics": [
                {
                    "type": kind,
                    "name": name,
                    "value": interval["value"],
                    "args": {"low": interval["low"], "high": interval["high"], "level": interval["level"]},
                }
                for kind, name, interval in _hugging_face_metrics(card, evaluation)
                if interval["value"] is not None
            ],
        }
    ]


def _yaml_lines(value: Any, indent: str = "") -> Iterable[str]:
    """Yield a mapping or list as block-style YAML, with JSON scalars."""
    items = value.items() if isinstance(value, Mapping) else ((None, each) for each in value)
    for key, each in items:
        start = f"{indent}{key}:" if key is not None else f"{indent}-"
        if not isinstance(each, Mapping | list):
            yield f"{start} {json.dumps(each, ensure_ascii=False)}"
            continue
        if key is None:  # the first line of the element follows the dash
            first, *rest = _yaml_lines(each, indent + "  ")
            yield f"{start} {first.lstrip()}"
            yield from rest
            continue
        yield start
        yield from _yaml_lines(each, indent + "  ")
