"""The page of a model card has the text of the card and figures of its numbers, loads nothing, and escapes names."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from pneumoscope.bundle.bundle_folder import DEFAULT_BUNDLE
from pneumoscope.bundle.model_card import model_card
from pneumoscope.cli.models import command
from pneumoscope.core.errors import BundleError
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.reporting.model_card_page import model_card_page


def svgs(page: str) -> dict[str, ElementTree.Element]:
    """Return the figures of a page by their text alternative."""
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return {figure.get("aria-label", ""): figure for figure in found}


def texts(figure: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in figure.iter("text")]


def test_included_model_has_a_figure_of_operating_points_reliability_outside_sources_and_shortcuts() -> None:
    page = model_card_page(DEFAULT_BUNDLE)

    figures = svgs(page)
    assert [label.partition(",")[0].partition(":")[0] for label in figures] == [
        "Sensitivity and specificity",
        "Reliability diagram",
        "Images outside the population that pass all checks",
        "AUROC of each control",
    ]
    points, _, outside, shortcuts = figures.values()
    evidence = DEFAULT_BUNDLE / "evidence"
    evaluation = json.loads((evidence / "evaluation.json").read_text())
    for name, point in evaluation["operating_points"].items():
        for rate in ("sensitivity", "specificity"):
            row = texts(points).index(f"{name}, {rate}")
            assert row >= 0
            assert f"{point['metrics'][rate]['value']:.3f}" in texts(points)
    card = json.loads((DEFAULT_BUNDLE / "card.json").read_text())
    assert set(card["rejection_limits"]["outliers"]) <= set(texts(outside))
    controls = json.loads((evidence / "shortcuts.json").read_text())["controls"]
    assert {f"{control['auroc']['value']:.3f}" for control in controls} <= set(texts(shortcuts))


def test_page_has_every_section_and_table_cell_of_the_card_and_loads_nothing() -> None:
    page = model_card_page(DEFAULT_BUNDLE)
    card = model_card(DEFAULT_BUNDLE)

    assert re.findall(r"<h2>(.*?)</h2>", page) == re.findall(r"^## (.*)$", card, re.MULTILINE)
    rows = [line for line in card.splitlines() if line.startswith("| ") and set(line) - set("|- ")]
    assert page.count("<tr>") == len(rows)
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", page)


def test_use_population_limits_and_performance_come_before_training() -> None:
    page = model_card_page(DEFAULT_BUNDLE)
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Intended use and limits",
        "Performance",
        "Subgroups",
        "Known failures",
        "Operating points",
        "Probability and uncertainty",
        "Rejected images",
        "Robustness",
        "Heatmaps",
        "Shortcuts of the network",
        "Shortcuts in the data",
        "Network and training",
        "License",
    ]
    first = page.partition("<h2>Intended use and limits</h2>")[2].partition("</section>")[0]
    for text in (
        "It must not be used for decisions about patients.",
        "estimates the probability of pneumonia from one frontal chest radiograph",
        "children of 1 to 5 years from one hospital",
        "other hospitals until the model has been tested there",
    ):
        assert text in first
    assert "network.name = tf_efficientnet_lite0" in page.partition("<h2>Network and training</h2>")[2]


def test_several_classes_have_the_same_order(maker: Any, tmp_path: Path) -> None:
    bundle = maker.multiclass_bundle(maker.root / "levels")
    evaluate_multiclass(bundle, maker.classes(), out=bundle / "evidence", ledger=tmp_path / "ledger.jsonl")
    headings = re.findall(r"<h2>(.*?)</h2>", model_card_page(bundle))
    assert headings[:3] == ["Intended use and limits", "Performance", "Subgroups"]
    assert headings[-2:] == ["Network and training", "License"]


def test_command_prints_the_page(maker: Any) -> None:
    bundle = maker.bundle(maker.root / "bundle")
    result = CliRunner().invoke(command, ["--card", str(bundle), "--format", "html"])
    assert result.exit_code == 0, result.output
    assert result.stdout == model_card_page(bundle)


def test_bundle_without_evidence_shows_its_operating_points_on_validation_images(maker: Any) -> None:
    page = model_card_page(maker.bundle(maker.root / "bundle"))
    assert list(svgs(page)) == [
        "Sensitivity and specificity, validation images, with 95% intervals; the tables of this section list the values"
    ]


def test_several_classes_have_a_reliability_diagram_each(maker: Any, tmp_path: Path) -> None:
    bundle = maker.multiclass_bundle(maker.root / "levels")
    evaluate_multiclass(bundle, maker.classes(), out=bundle / "evidence", ledger=tmp_path / "ledger.jsonl")
    labels = [label.partition(" by ")[0] for label in svgs(model_card_page(bundle))]
    assert labels == [f"Reliability diagram: observed rate of {name}" for name in ("bright", "dark", "mid")]


def test_names_are_escaped(maker: Any) -> None:
    page = model_card_page(maker.bundle(maker.root / "bundle", name="<img src=x onerror=alert(1)>"))
    assert "<img" not in page
    assert "&lt;img src=x" in page


@pytest.mark.parametrize(("change", "message"), [({"later": 1}, ""), ({"value": "high"}, "unexpected structure")])
def test_interval_of_a_later_version_is_read_and_another_structure_is_an_error(
    maker: Any, change: dict[str, Any], message: str
) -> None:
    bundle = maker.bundle(maker.root / "bundle")
    evidence = json.loads((DEFAULT_BUNDLE / "evidence/shortcuts.json").read_text())
    evidence["onnx_sha256"] = json.loads((bundle / "card.json").read_text())["onnx_sha256"]
    evidence["whole"] |= change
    (bundle / "evidence").mkdir()
    (bundle / "evidence/shortcuts.json").write_text(json.dumps(evidence))
    if message:
        with pytest.raises(BundleError, match=message):
            model_card_page(bundle)
    else:
        assert "AUROC of each control" in model_card_page(bundle)


def test_heading_in_the_evidence_cannot_add_attributes(maker: Any, tmp_path: Path) -> None:
    bundle = maker.bundle(maker.root / "bundle")
    evaluate(bundle, maker.images(), out=bundle / "evidence", ledger=tmp_path / "ledger.jsonl")
    file = bundle / "evidence/evaluation.json"
    content = json.loads(file.read_text())
    content["split"] = 'x\n## a" onclick="alert(1)\n\n| a | b |\n| --- | --- |\n| c | d |\n'
    file.write_text(json.dumps(content))
    names: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda _, attributes: names.update(name for name, _ in attributes)  # type: ignore[method-assign]
    parser.feed(model_card_page(bundle))
    assert "aria-label" in names
    assert not [name for name in names if name.startswith("on")]


def test_evidence_of_another_structure_is_an_error(maker: Any, tmp_path: Path) -> None:
    bundle = maker.bundle(maker.root / "bundle")
    evaluate(bundle, maker.images(), out=bundle / "evidence", ledger=tmp_path / "ledger.jsonl")
    file = bundle / "evidence/evaluation.json"
    content = json.loads(file.read_text())
    content["operating_points"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="unexpected structure"):
        model_card_page(bundle)
