"""Checklists: their numbers, their facts from the record, and what stays open."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pneumoscope.core.calibration_record import CalibrationRecord
from pneumoscope.core.comparison import RunGroup
from pneumoscope.core.errors import BundleError
from pneumoscope.core.results import InteractionTest
from pneumoscope.reporting.binary_checklist_facts import BINARY_FACTS
from pneumoscope.reporting.checklist_facts import PLACES, Fact
from pneumoscope.reporting.checklists import CHECKLISTS, Answer, Checklist, checklist_table, fill_checklist, read_items
from pneumoscope.reporting.comparison_figures import draw_figures
from pneumoscope.reporting.comparison_page import comparison_page
from pneumoscope.reporting.multiclass_checklist_facts import CLASS_FACTS
from pneumoscope.reporting.run_data import load_run_data
from pneumoscope.reporting.table_forms import to_csv
from pneumoscope.reporting.tables import comparison_tables

# Numbers of the published checklists: those with parts, and the last number.
NUMBERS = {
    "claim": ({}, 44),
    "tripod-ai": (
        {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab", 27: "abc"},
        27,
    ),
    "stard-ai": ({15: "abcd", 16: "abc", 17: "ab", 26: "ab", 40: "ab"}, 40),
}


@pytest.fixture(scope="module")
def filled(three: Any) -> dict[str, Checklist]:
    comparison, folders, _ = three
    data = load_run_data(comparison, folders)
    return {name: fill_checklist(name, comparison, data, BINARY_FACTS) for name in CHECKLISTS}


@pytest.mark.parametrize("name", CHECKLISTS)
def test_items_have_the_numbers_of_the_published_checklist(name: str) -> None:
    parts, last = NUMBERS[name]
    expected = [f"{number}{part}" for number in range(1, last + 1) for part in parts.get(number, [""])]
    _, source, items = read_items(name)
    assert [item.number for item in items] == expected
    assert all(item.topic for item in items)
    assert len({item.topic for item in items}) == len(items)
    assert re.search(r"202[45]", source)


def test_every_fact_is_known_and_used() -> None:
    used = {fact for name in CHECKLISTS for item in read_items(name)[2] for fact in item.facts}
    assert used == set(BINARY_FACTS)


def test_items_without_a_fact_are_open(filled: dict[str, Checklist]) -> None:
    for checklist in filled.values():
        for answer in checklist.answers:
            assert answer.facts or answer.ask
            assert answer.status == "open" if not answer.facts else answer.status.startswith("prefilled")
    funding = next(answer for answer in filled["claim"].answers if answer.item.number == "44")
    assert (funding.status, funding.text) == ("open", "")


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("accuracy", "epoch 4 of 4 was selected on validation images"),
        ("last", "the weights are those of epoch 4 of 4, the last one; validation images did not select it"),
    ],
)
def test_the_last_epoch_is_not_called_selected(three: Any, select: str, expected: str) -> None:
    comparison, folders, _ = three
    runs = [
        dataclasses.replace(
            run, evaluation=dataclasses.replace(run.evaluation, recipe={"training": {"select": select}})
        )
        for run in load_run_data(comparison, folders)
    ]
    fact = BINARY_FACTS["selection"](comparison, runs)
    assert fact is not None
    assert fact.text == f"{', '.join(run.name for run in runs)}: {expected}."


def test_facts_are_those_of_the_record(filled: dict[str, Checklist], three: Any) -> None:
    comparison = three[0]
    answers = {answer.item.number: answer for answer in filled["stard-ai"].answers}
    first = comparison.runs[0]
    assert f"{first.confusion.tp} true positives, {first.confusion.fn} false negatives" in answers["30"].text
    assert answers["30"].places == ("confusion",)
    assert f"Sensitivity {first.test['sensitivity']}" in answers["31"].text
    assert "balanced at probability" in answers["15c"].text or "balanced at score" in answers["15c"].text
    assert "Kermany <2018> & others" in answers["11"].text
    assert comparison.images["sha256"][:16] in answers["11"].text
    assert (
        "not evaluated: split train: 40 images, 30 patients; cannot be read: 1 image; other files: 2"
        in answers["24"].text
    )
    assert answers["24"].status == "prefilled, to be completed"
    assert "McNemar" in answers["18"].text


def test_analysis_of_failures_counts_the_errors_of_each_run(filled: dict[str, Checklist], three: Any) -> None:
    failures = next(answer for answer in filled["claim"].answers if answer.item.number == "39")
    for run in three[0].runs:
        counts = run.confusion
        negative = f"{counts.fn} false negative{'s' * (counts.fn != 1)}"
        positive = f"{counts.fp} false positive{'s' * (counts.fp != 1)}"
        assert f"{run.name}: {negative} and {positive} at half." in failures.text


def test_facts_that_are_not_recorded_leave_the_item_open(three: Any) -> None:
    comparison, folders, _ = three
    runs = [
        dataclasses.replace(run, record=None, evaluation=dataclasses.replace(run.evaluation, flow=None, subgroups=()))
        for run in load_run_data(comparison, folders)
    ]
    answers = {answer.item.number: answer for answer in fill_checklist("claim", comparison, runs, BINARY_FACTS).answers}
    for number in ("7", "10", "19", "20", "24", "25", "35"):
        assert answers[number].status == "open"
        assert answers[number].ask
    assert answers["19"].ask == "Not recorded: please add."


@pytest.mark.slow
def test_places_are_sections_of_the_page(filled: dict[str, Checklist], three: Any) -> None:
    data = load_run_data(three[0], three[1])
    page = comparison_page(three[0], data, draw_figures(three[0], data), list(filled.values()))
    sections = set(re.findall(r'<section id="([a-z_]+)"', page))
    used = {place for checklist in filled.values() for answer in checklist.answers for place in answer.places}
    assert used <= sections
    assert used <= set(PLACES)
    for name, checklist in filled.items():
        assert f'id="checklist-{name}"' in page
        assert re.search(rf"{re.escape(checklist.title)}</h3>\s*<p>{checklist.counts()}\.</p>", page)


def test_table_has_number_status_place_and_what_to_add(filled: dict[str, Checklist]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(checklist_table(filled["claim"])))))
    assert len(rows) == 44
    row = next(row for row in rows if row["Item"] == "39")
    assert (row["Status"], row["Place in the report"]) == ("prefilled, to be completed", "Confusion matrices")
    assert row["For the author"] == "Show and discuss examples of errors."


# --- measurements of the network --------------------------------------------------------------------------------------


def rate(value: float, n: int = 40, method: str = "wilson") -> dict[str, Any]:
    return {"value": value, "low": value / 2, "high": (1 + value) / 2, "method": method, "n": n}


def measured(folder: Path, **changes: Any) -> None:
    """Write the three measurements of a network with the SHA-256 of the synthetic evaluations."""
    common = {
        "bundle": "quick", "network": "small", "onnx_sha256": "ab" * 32, "split": "validation", "n": 40, "patients": 37,
        "version": "0.1.0", "system": "Linux", "command": "pneumoscope train quick --evidence", **changes,
    }  # fmt: skip
    variant = {"largest": 0.25, "near": None, "rejected": 0}
    rejected = {"reasons": {}, "predicted_pneumonia": 0}
    curve = {"heatmap": rate(0.5), "random": rate(0.75), "improvement": rate(0.25), "fraction_better": 0.5}
    files = {
        "robustness": {
            "operating_point": "highest Youden index on 782 validation images",
            "seed": 0,
            "unmodified": {"name": "unmodified", "rejected": rate(0.025), **rejected},
            "formats": [
                {"name": "PNG", "changed": rate(0), **variant},
                {"name": "DICOM", "changed": rate(0.05), **variant},
            ],
            "changes": [
                {"name": "rotated", "changed": rate(0.1), **variant},
                {"name": "darker", "changed": rate(0.025), **variant, "largest": 0.375},
            ],
            "corruptions": [{"name": "inverted", "rejected": rate(1), **rejected}],
            "other_images": [{"name": "phantoms", "rejected": rate(0.875, 16), **rejected}],
            "sizes": None,
        },
        "shortcuts": {
            "split_by": "patient",
            "whole": rate(0.95, method="delong"),
            "controls": [{"name": "center blanked", "auroc": rate(0.625, method="delong"), "difference": rate(-0.325)}],
        },
        "saliency_check": {
            "heatmap_shape": [7, 7],
            "seed": 0,
            "steps": 16,
            "deletion": curve,
            "insertion": curve,
            "randomization": [
                {
                    "name": "last layer",
                    "layers": 1,
                    "correlation": rate(0.0625),
                    "magnitude_correlation": rate(0.9375, 39),
                },
                {
                    "name": "none (other image)",
                    "layers": 0,
                    "correlation": rate(-0.25),
                    "magnitude_correlation": rate(0.75),
                },
            ],
            "localization": None,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(common | content), encoding="utf-8")


@pytest.fixture
def one(build: Any) -> tuple[Any, Path]:
    """Return a comparison of one run, and its folder."""
    comparison, folders = build(["quick"], published=False)
    return comparison, folders[0]


def answers_of(name: str, comparison: Any, folder: Path) -> dict[str, Answer]:
    data = load_run_data(comparison, [folder])
    return {answer.item.number: answer for answer in fill_checklist(name, comparison, data, BINARY_FACTS).answers}


SAMPLE = "n = 40 validation images of 37 patients"
ROBUSTNESS = (
    f"quick, {SAMPLE}, half of them with pneumonia (threshold: highest Youden index on 782 validation images). Changed decisions,"
    " highest of 2 file formats: 5.0% [2.5%, 52.5%] (n = 40, DICOM); highest of 2 small changes of the image: 10.0% [5.0%, 55.0%]"
    " (n = 40, rotated). Largest change of a probability: 0.375."
)
UNUSABLE = (
    "rejected of unusable images: inverted 100.0% [50.0%, 100.0%] (n = 40); phantoms 87.5% [43.8%, 93.8%] (n = 16)."
    " From robustness.json in the evidence of the bundle (pneumoscope 0.1.0)."
)
SHORTCUTS = (
    f"quick, {SAMPLE}: AUROC of the whole image 0.950 [0.475, 0.975]; with the image changed: center blanked 0.625 [0.312,"
    " 0.812]. 0.5 is chance; far above it with the center blanked, the network can use something other than the lungs. From"
    " shortcuts.json in the evidence of the bundle (pneumoscope 0.1.0)."
)
HEATMAPS = (
    f"quick, {SAMPLE}: class activation maps (contributions of positions to the logit). Improvement over random heatmaps:"
    " deletion 0.250 [0.125, 0.625], insertion 0.250 [0.125, 0.625]. Rank correlation with the heatmaps after layers were"
    " randomized (near 0 is expected): last layer 0.062 [0.031, 0.531]. Rank correlation of their magnitudes (to be compared with"
    " 0.750 [0.375, 0.875], that of an image of the other label with nothing randomized): last layer 0.938 [0.469, 0.969]. No"
    " masks of the disease were given, so localization was not measured. From saliency_check.json in the evidence of the bundle"
    " (pneumoscope 0.1.0)."
)


@pytest.mark.parametrize(
    ("checklist", "number", "texts"),
    [
        ("claim", "30", (ROBUSTNESS, UNUSABLE, SHORTCUTS)),
        ("claim", "31", (HEATMAPS,)),
        ("tripod-ai", "27a", (UNUSABLE,)),
        ("stard-ai", "23", (SHORTCUTS,)),
    ],
)
def test_measurements_of_the_network_answer_their_items(
    one: tuple[Any, Path], checklist: str, number: str, texts: tuple[str, ...]
) -> None:
    measured(one[1] / "bundle/evidence")
    answer = answers_of(checklist, *one)[number]
    assert [text for text in texts if text not in answer.text] == []
    assert (answer.status, answer.places[0]) == (
        "prefilled, to be completed",
        "confusion" if number == "23" else "evidence",
    )
    assert answer.ask == answer.item.ask != ""


def test_file_of_a_measurement_is_named_once_in_an_item(one: tuple[Any, Path]) -> None:
    measured(one[1] / "bundle/evidence")
    text = answers_of("claim", *one)["30"].text
    assert (text.count("robustness.json"), text.count("shortcuts.json")) == (1, 1)
    assert text.index("phantoms") < text.index("robustness.json") < text.index("center blanked")


def test_measurements_of_several_versions_are_distinguished(build: Any) -> None:
    comparison, folders = build(["quick", "slow"], published=False)
    measured(folders[0] / "bundle/evidence")
    measured(folders[1] / "bundle/evidence", version="0.2.0")
    fact = BINARY_FACTS["shortcuts"](comparison, load_run_data(comparison, folders))
    assert fact is not None
    assert fact.origin == (
        "From shortcuts.json in the evidence of the bundles (quick: pneumoscope 0.1.0; slow: pneumoscope 0.2.0)."
    )


@pytest.mark.parametrize(("checklist", "number"), [("tripod-ai", "26"), ("stard-ai", "21")])
def test_measurements_answer_neither_limitations_nor_variability_of_accuracy(
    one: tuple[Any, Path], checklist: str, number: str
) -> None:
    measured(one[1] / "bundle/evidence")
    assert not {"robustness", "shortcuts"} & set(answers_of(checklist, *one)[number].item.facts)


def changed_robustness(folder: Path, **changes: Any) -> None:
    """Write the measurements, with other content of robustness.json."""
    measured(folder)
    file = folder / "robustness.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_largest_change_of_a_probability_includes_full_sizes(one: tuple[Any, Path]) -> None:
    sizes = {"name": "full size", "changed": rate(0.05, 20), "largest": 0.5, "near": None, "rejected": 0}
    changed_robustness(one[1] / "bundle/evidence", sizes=sizes)
    text = answers_of("claim", *one)["30"].text
    assert "; full size: 5.0% [2.5%, 52.5%] (n = 20). Largest change of a probability: 0.500." in text


def test_groups_without_a_change_name_no_worst_variant(one: tuple[Any, Path]) -> None:
    same = {"changed": rate(0), "largest": 0.0, "near": None, "rejected": 0}
    changed_robustness(one[1] / "bundle/evidence", formats=[{"name": name, **same} for name in ("PNG", "DICOM")])
    text = answers_of("claim", *one)["30"].text
    assert "Changed decisions, 2 file formats: none changed, 0.0% [0.0%, 50.0%] (n = 40); highest of 2 small" in text


def test_robustness_without_file_formats_is_stated(one: tuple[Any, Path]) -> None:
    changed_robustness(one[1] / "bundle/evidence", formats=[])
    assert "Changed decisions, highest of 2 small changes of the image: 10.0%" in answers_of("claim", *one)["30"].text


def test_an_item_without_its_measurement_is_open_with_the_command_that_makes_it(one: tuple[Any, Path]) -> None:
    answers = answers_of("claim", *one)
    run = one[1].as_posix()
    options = f"{run} --data DATA --out {run}/bundle/evidence"
    assert (answers["30"].status, answers["31"].status) == ("open", "open")
    assert f"To state robustness, run: pneumoscope robustness {options}." in answers["30"].ask
    assert f"To state shortcuts, run: pneumoscope shortcuts {options}." in answers["30"].ask
    assert answers["31"].ask.endswith(f"To check the heatmaps, run: pneumoscope saliency-check {options}.")


@pytest.mark.parametrize("changes", [{"onnx_sha256": "cd" * 32}, {"site": "north"}, {"split": "train"}])
def test_measurements_of_another_network_site_or_split_answer_nothing(
    one: tuple[Any, Path], changes: dict[str, str]
) -> None:
    measured(one[1] / "bundle/evidence", **changes)
    assert answers_of("claim", *one)["30"].status == "open"


def test_measurements_of_another_structure_are_an_error(one: tuple[Any, Path]) -> None:
    measured(one[1] / "bundle/evidence", n="forty")
    with pytest.raises(BundleError, match="unexpected structure") as raised:
        answers_of("claim", *one)
    run = one[1].as_posix()
    command = f"pneumoscope robustness {run} --data DATA --out {run}/bundle/evidence"
    assert raised.value.hint == f"Measure again: {command}"
    (one[1] / "bundle/evidence/robustness.json").write_text("{")
    with pytest.raises(BundleError, match="cannot read the evidence") as raised:
        answers_of("claim", *one)
    assert raised.value.hint == f"Measure again: {command}"


def test_evaluation_in_the_evidence_of_a_bundle_has_its_measurements(one: tuple[Any, Path], tmp_path: Path) -> None:
    evidence = tmp_path / "bundle/evidence"
    measured(evidence)
    (tmp_path / "bundle/card.json").write_text("{}")
    for file in (one[1] / "evaluation/test").iterdir():
        (evidence / file.name).write_bytes(file.read_bytes())
    assert ROBUSTNESS in answers_of("claim", one[0], evidence)["30"].text
    (tmp_path / "bundle/card.json").unlink()
    answer = answers_of("claim", one[0], evidence)["30"]
    assert "pneumoscope robustness BUNDLE --data MANIFEST --out BUNDLE/evidence" in answer.ask


def test_predictions_of_another_tool_have_no_command_to_measure_them(one: tuple[Any, Path]) -> None:
    comparison, folder = one
    (run,) = load_run_data(comparison, [folder])
    evaluation = dataclasses.replace(run.evaluation, predictions_sha256="ef" * 32, bundle_sha256="")
    runs = [dataclasses.replace(run, evaluation=evaluation)]
    fact = BINARY_FACTS["robustness"](comparison, runs)
    assert fact == Fact(
        "", "evidence", "State robustness of quick: pneumoscope cannot measure this from predictions alone."
    )


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("robustness", "State robustness"),
        ("unusable", "State rejections of unusable images"),
        ("shortcuts", "State shortcuts"),
        ("heatmaps", "Check the heatmaps"),
    ],
)
def test_several_classes_leave_the_items_open_without_a_command(name: str, task: str) -> None:
    fact = CLASS_FACTS[name](None, ())  # type: ignore[arg-type]
    assert fact == Fact("", "", f"{task}, if examined: pneumoscope does so for NORMAL and PNEUMONIA only.")


def test_page_and_tables_have_the_measurements(one: tuple[Any, Path]) -> None:
    comparison, folder = one
    measured(folder / "bundle/evidence")
    data = load_run_data(comparison, [folder])
    page = comparison_page(comparison, data, draw_figures(comparison, data))
    section = page.partition('<section id="evidence">')[2].partition("</section>")[0]
    assert '<a href="#evidence">Robustness, shortcuts and heatmaps</a>' in page
    assert section.count('data-evidence="robustness"') == 6
    assert section.count('data-evidence="shortcuts"') == 2
    assert '<data value="0.875">0.875</data>' in section
    tables = {table.name: table for table in comparison_tables(comparison, data)}
    rows = list(csv.DictReader(io.StringIO(to_csv(tables["robustness"]))))
    assert [(row["Images"], row["Fraction of"], row["Fraction"], row["Fraction, n"]) for row in rows] == [
        ("PNG", "changed decisions", "0.0", "40"),
        ("DICOM", "changed decisions", "0.05", "40"),
        ("rotated", "changed decisions", "0.1", "40"),
        ("darker", "changed decisions", "0.025", "40"),
        ("inverted", "rejected", "1.0", "40"),
        ("phantoms", "rejected", "0.875", "16"),
    ]
    heatmaps = list(csv.DictReader(io.StringIO(to_csv(tables["heatmaps"]))))
    baseline = "baseline: an image of the other label, nothing randomized"
    assert [(row["Check"], row["n"], row["Value"]) for row in heatmaps[6:]] == [
        ("rank correlation, randomized: last layer", "40", "0.0625"),
        (f"rank correlation, {baseline}", "40", "-0.25"),
        ("rank correlation of magnitudes, randomized: last layer", "39", "0.9375"),
        (f"rank correlation of magnitudes, {baseline}", "40", "0.75"),
    ]
    assert "near 0 is expected). Correlations of magnitudes are to be compared with the baseline." in section


def test_page_separates_the_measurements_of_all_runs(build: Any) -> None:
    comparison, folders = build(["quick", "slow"], published=False)
    for folder, command in zip(folders, ("first", "second"), strict=True):
        measured(folder / "bundle/evidence", command=command)
        (folder / "bundle/evidence/robustness.json").unlink()
    data = load_run_data(comparison, folders)
    page = comparison_page(comparison, data, draw_figures(comparison, data))
    expected = [
        f"{name}, <code>{command}</code>: 40 validation images"
        for name, command in (("quick", "first"), ("slow", "second"))
    ]
    assert f"named here: {'; '.join(each for each in expected for _ in range(2))}.</p>" in page


# --- calibration and updating -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("checklist", "number"), [("claim", "37"), ("tripod-ai", "23a"), ("stard-ai", "31")])
def test_calibration_is_stated_with_its_images(one: tuple[Any, Path], checklist: str, number: str) -> None:
    comparison, folder = one
    test = comparison.runs[0].test
    expected = (
        f"quick: Calibration slope {test['calibration_slope']}, Calibration intercept"
        f" {test['calibration_intercept']}, O/E {test['observed_expected_ratio']}, Calibration error"
        f" {test['expected_calibration_error']}. Measured on 96 images."
    )
    assert expected in answers_of(checklist, comparison, folder)[number].text


def test_calibration_of_an_earlier_evaluation_is_what_it_has(one: tuple[Any, Path]) -> None:
    comparison, folder = one
    runs = load_run_data(comparison, [folder])
    test = {key: value for key, value in runs[0].summary.test.items() if not key.startswith("calibration_")}
    summary = dataclasses.replace(runs[0].summary, test=test)
    fact = BINARY_FACTS["calibration"](comparison, [dataclasses.replace(runs[0], summary=summary)])
    assert fact is not None
    assert fact.text.startswith(f"quick: O/E {test['observed_expected_ratio']}, Calibration error ")


def test_folds_of_any_labels_ask_for_calibration_on_test_images(one: tuple[Any, Path]) -> None:
    comparison, folder = one
    group = RunGroup("quick", ("quick",), (0,), {}, folds=(0,))
    folds = dataclasses.replace(comparison, groups=(group,))
    assert folds.is_cross_validation
    fact = BINARY_FACTS["calibration"](folds, load_run_data(comparison, [folder]))
    assert fact is not None
    assert (fact.text, "Evaluate a run of the recipe on test images." in fact.ask) == ("", True)
    classes = SimpleNamespace(is_cross_validation=True)
    assert CLASS_FACTS["calibration"](classes, ()) == fact  # type: ignore[arg-type]


def with_evaluation(run: Any, **changes: Any) -> Any:
    return dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, **changes))


PLATT = CalibrationRecord("platt", 120, {"slope": 1.5, "intercept": 0.25})


def test_model_that_was_not_updated_has_no_results_of_updating(one: tuple[Any, Path]) -> None:
    comparison, folder = one
    answers = answers_of("tripod-ai", comparison, folder)
    assert answers["12f"].text == "Not updated: quick."
    assert (answers["24"].text, answers["24"].status) == ("Not applicable: no model was updated.", "prefilled")
    # The calibration of a bundle is a part of the model.
    (run,) = load_run_data(comparison, [folder])
    assert BINARY_FACTS["updating"](comparison, [with_evaluation(run, calibration=PLATT)]) == Fact(
        "Not updated: quick.", "runs"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"site": "north 1234"},
            "quick: site profile north 1234; the report of `accept` states what it changes.",
        ),
        (
            {"predictions_sha256": "ef" * 32, "calibration": PLATT},
            "quick: probabilities calibrated on predictions for validation images (Platt scaling, n = 120).",
        ),
    ],
)
def test_updated_model_is_named_and_its_results_are_open(
    one: tuple[Any, Path], changes: dict[str, Any], text: str
) -> None:
    comparison, folder = one
    runs = [with_evaluation(run, **changes) for run in load_run_data(comparison, [folder])]
    assert BINARY_FACTS["updating"](comparison, runs) == Fact(text, "runs")
    checklist = fill_checklist("tripod-ai", comparison, runs, BINARY_FACTS)
    results = next(answer for answer in checklist.answers if answer.item.number == "24")
    assert (results.status, results.ask) == ("open", "State the performance of quick before and after the update.")


def test_predictions_without_calibration_are_not_updated(one: tuple[Any, Path]) -> None:
    comparison, folder = one
    (run,) = load_run_data(comparison, [folder])
    assert (run.scores.probability != run.scores.score).any()  # the record decides, not the numbers
    given = with_evaluation(run, predictions_sha256="ef" * 32, calibration=CalibrationRecord("none"))
    assert BINARY_FACTS["updating"](comparison, [given]) == Fact("Not updated: quick.", "runs")


def test_earlier_evaluation_of_predictions_leaves_updating_open(one: tuple[Any, Path]) -> None:
    comparison, folder = one
    (run,) = load_run_data(comparison, [folder])
    earlier = with_evaluation(run, predictions_sha256="ef" * 32)
    assert earlier.evaluation.calibration is None
    fact = BINARY_FACTS["updating"](comparison, [earlier])
    assert fact == Fact(
        "",
        "runs",
        "State whether the probabilities of quick were calibrated: the evaluation does not record it.",
    )
    results = BINARY_FACTS["updating_results"](comparison, [earlier])
    assert results == Fact("", "runs", "State the performance before and after the update, if quick was updated.")


def test_updating_of_several_classes_names_the_temperature_scaling() -> None:
    record = CalibrationRecord("temperature", 60, {"temperature": 1.25})
    evaluation = SimpleNamespace(predictions_sha256="ef" * 32, calibration=record)
    runs: Any = [SimpleNamespace(name="other", evaluation=evaluation)]
    comparison: Any = None
    fact = CLASS_FACTS["updating"](comparison, runs)
    assert fact == Fact(
        "other: probabilities calibrated on predictions for validation images (temperature scaling, n = 60).", "runs"
    )
    results = CLASS_FACTS["updating_results"](comparison, runs)
    assert results == Fact("", "runs", "State the performance of other before and after the update.")


def test_page_states_the_calibration_of_each_run(one: tuple[Any, Path]) -> None:
    comparison, folder = one
    data = [with_evaluation(run, calibration=PLATT) for run in load_run_data(comparison, [folder])]
    page = comparison_page(comparison, data, draw_figures(comparison, data))
    assert 'Calibration of the probabilities</th><td class="word">Platt scaling, n = 120</td>' in page


def test_subgroup_tests_that_cannot_be_made_for_the_same_reason_share_a_sentence(one: tuple[Any, Path]) -> None:
    comparison, folder = one
    (run,) = load_run_data(comparison, [folder])
    reason = "there are no two groups with NORMAL"
    untested = [
        InteractionTest("sex", metric, point, ("F",), "permutation", None, None, reason=reason, sentence="repeated")
        for metric, point in (("auroc", None), ("sensitivity", "half"))
    ]
    tested = InteractionTest("site", "auroc", None, ("a", "b"), "wald", 0.5, 0.5, sentence="The AUROC does not differ.")
    runs = [with_evaluation(run, interactions=(*untested, tested))]
    expected = (
        "quick: The AUROC does not differ. A difference in AUROC, sensitivity at half between the groups of sex cannot be"
        f" tested: {reason}."
    )
    fact = BINARY_FACTS["heterogeneity"](comparison, runs)
    assert fact is not None
    assert fact.text == expected
