"""Reports of models of several classes: page, figures, tables, checklists and flow diagrams."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.bundle.card import short_hash
from pneumoscope.core.calibration_record import CalibrationRecord
from pneumoscope.core.errors import UnknownNameError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.reporting.checklist_facts import PLACES
from pneumoscope.reporting.checklists import CHECKLISTS, Answer, Checklist, read_items
from pneumoscope.reporting.flow_diagram import class_flow_figure
from pneumoscope.reporting.multiclass_checklist_facts import CLASS_FACTS
from pneumoscope.reporting.multiclass_report import MulticlassReport, report_multiclass
from pneumoscope.reporting.style import drawing


@pytest.fixture
def evaluated(maker: Any) -> Path:
    """A run of three classes, evaluated on 36 of 72 labeled images."""
    data = maker.classes()
    rows = data.read_text().splitlines()
    other = maker.classes("others", seed=1, split="train").read_text().splitlines()[1:]
    for row in other:
        name = row.split(",")[0]
        (data.parent / name).write_bytes((maker.root / "others" / name).read_bytes())
    data.write_text("\n".join([*rows, *other]))
    run = maker.multiclass_run()
    evaluate_multiclass(run, data)
    return run


@pytest.fixture
def runs(maker: Any) -> list[Path]:
    """Two runs on the same images; the second one takes more of the dark images for mid."""
    data = maker.classes(count=20)
    folders = [maker.multiclass_run("good"), maker.multiclass_run("poor", edges=(65.0, 175.0))]
    for folder in folders:
        evaluate_multiclass(folder, data)
    return folders


@pytest.fixture
def report(evaluated: Path) -> MulticlassReport:
    return report_multiclass([evaluated], checklists=CHECKLISTS)


def answer(checklist: Checklist, number: str) -> Answer:
    return next(each for each in checklist.answers if each.item.number == number)


def test_every_item_of_a_checklist_has_a_function_for_its_facts() -> None:
    assert {fact for name in CHECKLISTS for item in read_items(name)[2] for fact in item.facts} == set(CLASS_FACTS)


def test_items_state_the_results_of_the_record(report: MulticlassReport) -> None:
    (run,) = report.runs
    claim, stard = report.checklists["claim"], report.checklists["stard-ai"]
    mid = run.evaluation.by_class["mid"].metrics
    assert f"mid against the rest: Sensitivity {mid['sensitivity']}, Specificity" in answer(claim, "38").text
    assert f"Accuracy {run.evaluation.metrics['accuracy']}" in answer(claim, "38").text
    assert f"Macro AUROC {run.evaluation.metrics['macro_auroc']}" in answer(claim, "37").text
    (row,) = (
        counts for name, counts in zip(run.evaluation.classes, run.evaluation.confusion, strict=True) if name == "mid"
    )
    assert (
        f"of 12 images of mid, {row[0]} predicted as bright, {row[1]} predicted as dark, {row[2]} predicted as mid"
        in (answer(stard, "30").text)
    )
    wrong = [f"{n} of mid predicted as {name}" for n, name in zip(row, ("bright", "dark"), strict=False) if n]
    assert ", ".join(wrong) in answer(claim, "39").text
    assert "of mid predicted as mid" not in answer(claim, "39").text
    assert answer(stard, "15c").text.startswith(
        "The predicted class is the one with the highest probability; no threshold"
    )
    assert "for a coverage of 95% of each class" in answer(stard, "15c").text
    assert answer(claim, "14").text == "Test images: 12 bright, 12 dark, 12 mid, of 18 patients."
    assert answer(claim, "20").text.endswith(
        "The evaluation would have failed if a test image had been a training or validation image, by content."
    )
    assert "not evaluated: split train: 36 images, 18 patients" in answer(stard, "24").text


def test_calibration_of_each_class_is_a_table_a_section_and_a_fact(report: MulticlassReport) -> None:
    (run,) = report.runs
    mid = run.evaluation.by_class["mid"].metrics
    keys = ("expected_calibration_error", "calibration_slope", "calibration_intercept", "observed_expected_ratio")
    assert report.tables["class-calibration"].rows[2] == ("levels", "mid", 12, *(mid[key] for key in keys))
    section = report.page().partition('<section id="calibration">')[2].partition("</section>")[0]
    for key in keys:
        assert f'<data value="{mid[key].value}">' in section
    # Necessary, not sufficient: weak calibration of Van Calster 2016.
    assert "those of perfect calibration, but do not prove it" in section
    fact = answer(report.checklists["tripod-ai"], "23a")
    assert (
        f"mid: Calibration error {mid[keys[0]]}, Calibration slope {mid[keys[1]]}, Calibration intercept" in fact.text
    )
    assert "calibration" in fact.places


def test_calibration_of_the_bundle_is_recorded_but_not_as_an_update(report: MulticlassReport) -> None:
    (run,) = report.runs
    assert run.evaluation.calibration == CalibrationRecord("temperature", 60, {"temperature": 0.8})
    tripod = report.checklists["tripod-ai"]
    assert answer(tripod, "12f").text == "Not updated: levels."
    assert (answer(tripod, "24").text, answer(tripod, "24").ask) == ("Not applicable: no model was updated.", "")
    row = 'Calibration of the probabilities</th><td class="word">temperature scaling, n = 60</td>'
    assert row in report.page()
    assert answer(tripod, "23a").text.endswith("Measured on 36 images.")


def test_items_that_the_record_does_not_answer_are_open(report: MulticlassReport) -> None:
    assert answer(report.checklists["claim"], "44").status == "open"  # funding
    assert not any("et benefit" in each.text for each in report.checklists["tripod-ai"].answers)
    assert answer(report.checklists["claim"], "19").text == "levels: split by patient; images: not recorded."


def test_places_of_the_facts_are_sections_of_the_page(report: MulticlassReport) -> None:
    page = report.page()
    used = {place for each in report.checklists.values() for item in each.answers for place in item.places}
    assert used <= set(re.findall(r'<section id="([a-z_]+)"', page))
    for place in used:
        heading = re.search(rf'<section id="{place}">\s*<h2>([^<]+)</h2>', page)
        assert heading is not None
        assert heading[1] == PLACES[place]
    assert 'id="checklist-tripod-ai"' in page


def test_validation_images_are_not_called_test_images(maker: Any) -> None:
    data = maker.classes(split="validation")
    run = maker.multiclass_run(seen={"validation": [short_hash(image.sha256) for image in load_manifest(data).images]})
    evaluate_multiclass(run, data, split="validation")
    report = report_multiclass([run], evaluation="validation", checklists=["claim", "tripod-ai"])
    claim = report.checklists["claim"]
    assert answer(claim, "14").text == "Validation images: 12 bright, 12 dark, 12 mid, of 18 patients."
    assert answer(claim, "20").text == "levels: training and validation images were split by patient."
    # Numbers of probabilities that were fitted on these images are undefined.
    assert answer(claim, "28").text == (
        "Accuracy, Balanced accuracy, Macro AUROC, Macro AUPRC, Macro F1, Macro specificity, Macro precision; each class against"
        " the rest, and each pair of classes."
    )
    page = report.page()
    assert "Run levels on 36 validation images, of 3 classes" in page
    assert "calibration" not in answer(report.checklists["tripod-ai"], "23a").places
    assert 'href="#calibration"' not in page
    assert "Reliability diagrams" not in page
    assert not any(name.startswith("reliability") for name in report.figures)
    assert "the prediction sets were fitted on 36 of these 36 images" in page


def test_several_seeds_are_stated_by_their_mean(maker: Any) -> None:
    data = maker.classes(count=20)
    for seed, edge in enumerate((100.0, 112.0)):
        run = maker.multiclass_run(f"good/seed-{seed}", recipe="good", seed=seed, edges=(edge, 150.0))
        evaluate_multiclass(run, data)
    report = report_multiclass([maker.root / "runs" / "good"], checklists=["claim"])
    claim = report.checklists["claim"]
    mean = report.comparison.groups[0].metrics["accuracy"].mean
    accuracy = answer(claim, "38")
    assert f"good, mean of 2 seeds (0, 1): Accuracy {mean} (standard deviation " in accuracy.text
    assert "against the rest" not in accuracy.text
    assert accuracy.places == ("metrics",)
    assert answer(claim, "39").status == "open"
    assert answer(claim, "29").text == "95% intervals: Obuchowski-Rockette, random seeds and patients."
    spread = report.comparison.groups[0].metrics["macro_auroc"]
    assert f'<data value="{spread.mean.value}">' in report.page()
    row = next(row for row in report.tables["seeds"].rows if row[2] == "Macro AUROC")
    assert row == ("good", 2, "Macro AUROC", spread.mean, spread.sd, spread.minimum, spread.maximum)
    assert "mean of 2 seeds: macro_auroc" in report.comparison._repr_html_()


def test_models_without_prediction_sets_have_none_in_the_checklist(maker: Any) -> None:
    run = maker.multiclass_run(thresholds=None)
    evaluate_multiclass(run, maker.classes())
    tripod = report_multiclass([run], checklists=["tripod-ai"]).checklists["tripod-ai"]
    assert answer(tripod, "15").text == (
        "A probability for each class, 0 to 1, and the class with the highest one. The predicted class is the one with the"
        " highest probability; no threshold chooses it."
    )


def test_page_is_that_of_the_report_after_the_run_is_moved(
    evaluated: Path, report: MulticlassReport, tmp_path: Path
) -> None:
    before = report.page()
    evaluated.rename(tmp_path / "moved")
    assert report.page() == before


def test_an_unknown_checklist_is_an_error(evaluated: Path) -> None:
    with pytest.raises(UnknownNameError, match="there is no checklist 'prisma'"):
        report_multiclass([evaluated], checklists=["prisma"])


def test_flow_diagram_and_its_table_have_the_recorded_numbers(report: MulticlassReport) -> None:
    (run,) = report.runs
    svg = report.figures["flow-0"]._repr_svg_()
    assert "split train: 36 images, 18 patients" in svg
    assert "36 images, 18 patients" in svg
    for index, name in enumerate(run.evaluation.classes):
        counts = [row[index] for row in run.evaluation.confusion]
        listed = ", ".join(f"{n} {label}" for n, label in zip(counts, run.evaluation.classes, strict=True) if n)
        assert f"{name}: {sum(counts)} images; {listed}<" in svg
    assert "36 evaluated images" in report.figures["flow-0"].label
    numbers = {row[1]: row[2] for row in report.tables["flow"].rows}
    assert (numbers["not evaluated: train"], numbers["evaluated"], numbers["evaluated: dark"]) == (36, 36, 12)
    assert "Flow of images." in report.page()


def test_page_has_the_record_and_the_recipe_of_a_run(report: MulticlassReport) -> None:
    page = report.page()
    assert "levels: recipe, versions and machine" in page
    assert re.search(r"<dt>manifest_sha256</dt><dd>(9d)+</dd>", page)
    assert "name = &#34;levels&#34;" in page


def test_long_class_names_are_distinguishable_in_the_flow_diagram(report: MulticlassReport) -> None:
    names = ("pneumonia, bacterial, left", "pneumonia, bacterial, right", "normal")
    (run,) = report.runs
    evaluation = dataclasses.replace(
        run.evaluation, classes=names, counts=dict(zip(names, run.evaluation.counts.values(), strict=True))
    )
    with drawing():
        texts = [text.get_text() for text in class_flow_figure("run", evaluation).axes[0].texts]
    assert [name for name in names if any(text.startswith(f"{name}: ") for text in texts)] == list(names)
    # Not all labels of the images predicted as mid fit into the line.
    counts = [row[2] for row in run.evaluation.confusion]
    assert f"normal: {sum(counts)} images; {counts[2]} with this label" in texts


@pytest.mark.slow
def test_report_has_figures_tables_and_every_number(runs: list[Path], tmp_path: Path) -> None:
    report = report_multiclass(runs, command="pneumoscope report")
    files = report.write(tmp_path / "report")
    page = files.page.read_text()
    assert set(report.figures) == {
        *(f"{name}-{i}" for name in ("flow", "confusion", "roc") for i in range(2)),
        *(f"reliability-{i}-{k}" for i in range(2) for k in range(3)),
        "differences-accuracy",
        "differences-macro-auroc",
    }
    assert len(files.figures) == 3 * len(report.figures)
    of_classes = {"classes", "class-calibration", "class-pairs", "prediction-sets"}
    assert set(report.tables) == {"flow", "metrics", "confusion", "pairs"} | of_classes
    for run in report.runs:
        for interval in [*run.evaluation.metrics.values(), *run.evaluation.by_class["mid"].metrics.values()]:
            assert f'<data value="{interval.value}">' in page
    assert "pneumoscope report" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/", "")
    matrix = (tmp_path / "report" / "tables" / "confusion.csv").read_text().splitlines()
    assert matrix[0] == "Run,Class,Predicted as bright,Predicted as dark,Predicted as mid"
    assert len(matrix) == 1 + 2 * 3


def test_table_of_pairs_names_the_class_of_a_sensitivity(runs: list[Path]) -> None:
    table = report_multiclass(runs[:1]).tables["class-pairs"]
    assert table.columns[-2:] == ("Sensitivity for the class", "Sensitivity for the other class (specificity)")
    assert "Sensitivity for the class" in table.note


def test_figures_show_the_confusion_matrix_and_the_areas(runs: list[Path]) -> None:
    report = report_multiclass(runs[:1])
    evaluation = report.runs[0].evaluation
    svg = report.figures["confusion-0"]._repr_svg_()
    for row in evaluation.confusion:
        assert all(f">{count}<" in svg for count in row)
    area = evaluation.by_class["dark"].metrics["auroc"].value
    assert f"dark {area:.3f}" in report.figures["roc-0"].label
    lines = report.figures["roc-0"].figure.axes[0].lines
    x, y = lines[1].get_xydata().T  # after the line of chance: the first class
    assert np.trapezoid(y, x) == pytest.approx(evaluation.by_class["bright"].metrics["auroc"].value)


def test_report_of_one_run_has_no_pairs(runs: list[Path]) -> None:
    report = report_multiclass(runs[:1])
    assert "pairs" not in report.tables
    assert "There is only one run" in report.page()


def test_names_are_escaped_in_the_page(maker: Any) -> None:
    run = maker.multiclass_run("b<i>")
    evaluate_multiclass(run, maker.classes())
    page = report_multiclass([run]).page()
    assert "b&lt;i&gt;" in page
    assert "b<i>" not in page


def test_differences_from_other_images_are_a_table_a_section_and_a_fact(maker: Any) -> None:
    run, north = maker.multiclass_run(), maker.classes("north", seed=1)
    evaluate_multiclass(run, maker.classes())
    external, _ = evaluate_multiclass(run, north, name="north", reference="test")
    assert external.difference is not None
    report = report_multiclass([run], evaluation="north", checklists=["claim", "stard-ai"])
    table = report.tables["differences"]
    (finding,) = (each for each in report.comparison.sentences if " minus test " in each)
    accuracy, macro = (external.difference.metrics[key] for key in ("accuracy", "macro_auroc"))
    assert finding == (
        f"levels, these 36 images minus test (36 images): accuracy {accuracy:+.3f}, macro AUROC {macro:+.3f}."
    )
    assert table.columns == ("Run", "Reference", "Images of the reference", "Metric", "Difference")
    assert table.rows[:3] == (
        ("levels", "test", 36, "Accuracy", external.difference.metrics["accuracy"]),
        ("levels", "test", 36, "Macro AUROC", external.difference.metrics["macro_auroc"]),
        ("levels", "test", 36, "AUROC for bright", external.difference.metrics["auroc, bright"]),
    )
    page = report.page()
    section = page.partition('<section id="differences">')[2].partition("</section>")[0]
    for interval in external.difference.metrics.values():
        assert f'<data value="{interval.value}">' in section
    assert "DeLong, mean of classes, clustered by patient, MOVER, unpaired (Macro AUROC)" in section
    assert '<a href="#differences">' in page
    for name, number in (("claim", "33"), ("stard-ai", "29")):
        (fact,) = answer(report.checklists[name], number).facts
        assert fact.text.startswith("Evaluation 'north' on 36 images of")
        assert f"levels, minus test (36 images): accuracy {external.difference.metrics['accuracy']}" in fact.text
        assert fact.place == "differences"
    assert "differences" not in report_multiclass([run]).tables
    assert 'id="differences"' not in report_multiclass([run]).page()
