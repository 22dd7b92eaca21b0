"""Figures of evaluations and comparisons: those of the report, also without files, and not in what is written."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pneumoscope
from pneumoscope.core.comparison import Comparison
from pneumoscope.core.errors import UsageError
from pneumoscope.core.multiclass_results import MulticlassComparison, MulticlassEvaluation
from pneumoscope.core.result_forms import to_json
from pneumoscope.core.results import Evaluation
from pneumoscope.evaluation.comparison.compare import compare
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.external_predictions import evaluate_predictions
from pneumoscope.evaluation.multiclass.compare import compare_multiclass
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.evaluation.multiclass.external_predictions import evaluate_multiclass_predictions
from pneumoscope.reporting.multiclass_report import report_multiclass
from pneumoscope.reporting.report_files import report
from pneumoscope.runs.evaluations import read_evaluation, read_predictions
from pneumoscope.runs.multiclass_evaluations import read_multiclass_evaluation_folder

pytestmark = pytest.mark.slow


def drawn(figures: Any) -> dict[str, str]:
    return {name: figure._repr_svg_() for name, figure in figures.items()}


@pytest.fixture(scope="module")
def evaluated(shared_maker: Any) -> tuple[list[Path], list[Evaluation]]:
    """Two runs, and their evaluations on the same images."""
    images = shared_maker.images("drawn", normal=40, pneumonia=60)
    runs = [shared_maker.run("drawn-good"), shared_maker.run("drawn-poor", middle=150)]
    ledger = shared_maker.root / "drawn.jsonl"
    return runs, [evaluate(run, images, ledger=ledger)[0] for run in runs]


@pytest.fixture(scope="module")
def evaluated_classes(shared_maker: Any) -> tuple[list[Path], list[MulticlassEvaluation]]:
    """The same of three classes."""
    data = shared_maker.classes("drawn-classes", count=20)
    runs = [shared_maker.multiclass_run("levels-good"), shared_maker.multiclass_run("levels-poor", edges=(65.0, 175.0))]
    ledger = shared_maker.root / "drawn-classes.jsonl"
    return runs, [evaluate_multiclass(run, data, ledger=ledger)[0] for run in runs]


def test_evaluation_has_the_figures_of_its_report(evaluated: tuple[list[Path], list[Evaluation]]) -> None:
    runs, (evaluation, _) = evaluated
    found, expected = drawn(evaluation.figures), drawn(report([runs[0]]).figures)
    assert {"flow-0", "roc", "pr", "reliability-0", "histogram-0", "decision-curves", "metric-auroc"} <= set(found)
    assert found == {name: svg for name, svg in expected.items() if not name.startswith("curves-")}
    assert evaluation.figures["roc"] is evaluation.figures["roc"]
    with pytest.raises(AttributeError):
        evaluation.figures.clear()  # type: ignore[attr-defined]
    assert set(dir(pneumoscope)) >= set(pneumoscope.__all__)
    assert "draw_record" not in dir(pneumoscope)


def test_evaluation_without_the_balanced_point_is_drawn_at_its_first_one(shared_maker: Any) -> None:
    images = shared_maker.images("drawn-point", normal=10, pneumonia=14)
    run = shared_maker.run("drawn-points")
    evaluation, _ = evaluate(run, images, operating_points=["0.3", "rule_in"], ledger=shared_maker.root / "p.jsonl")
    assert (
        drawn(evaluation.figures)["histogram-0"] == drawn(compare([run], operating_point="0.3").figures)["histogram-0"]
    )
    assert drawn(evaluation.figures)["flow-0"] != drawn(compare([run], operating_point="rule_in").figures)["flow-0"]


def test_comparison_has_the_figures_of_the_report(evaluated: tuple[list[Path], list[Evaluation]]) -> None:
    runs, _ = evaluated
    found = drawn(compare(runs, operating_point="balanced").figures)
    assert {"roc", "flow-1", "differences-accuracy", "differences-auroc"} <= set(found)
    assert found == drawn(report(runs, operating_point="balanced").figures)
    assert "drawn-poor" in found["roc"]  # the legend


def test_evaluation_and_comparison_of_several_classes_have_the_figures_of_the_report(
    evaluated_classes: tuple[list[Path], list[MulticlassEvaluation]],
) -> None:
    runs, (evaluation, _) = evaluated_classes
    found = drawn(evaluation.figures)
    assert {"flow-0", "confusion-0", "roc-0", "reliability-0-2"} <= set(found)
    assert found == drawn(report_multiclass([runs[0]]).figures)
    compared = drawn(compare_multiclass(runs).figures)
    assert {"confusion-1", "differences-macro-auroc"} <= set(compared)
    assert compared == drawn(report_multiclass(runs).figures)


def test_bundles_that_are_evaluated_in_memory_have_figures(evaluated: tuple[list[Path], list[Evaluation]]) -> None:
    runs, _ = evaluated
    root = runs[0].parents[1]
    bundles = [run / "bundle" for run in runs]
    comparison = compare(bundles, data=root / "drawn", ledger=root / "bundles.jsonl")
    expected = drawn(report(runs, operating_point="half").figures)
    assert drawn(comparison.figures)["roc"] == expected["roc"]


def test_predictions_of_another_tool_have_figures(
    evaluated: tuple[list[Path], list[Evaluation]],
    evaluated_classes: tuple[list[Path], list[MulticlassEvaluation]],
    tmp_path: Path,
) -> None:
    root, ledger = evaluated[0][0].parents[1], tmp_path / "ledger.jsonl"
    images = read_predictions(evaluated[0][0] / "evaluation/test/predictions.csv")
    rows = [("path", "probability"), *((image.path, str(image.probability)) for image in images)]
    file = write_table(tmp_path / "tool.csv", rows)
    found = evaluate_predictions(file, root / "drawn", out=tmp_path / "tool", ledger=ledger)[0].figures
    assert drawn(found) == drawn(report([tmp_path / "tool"]).figures)
    classes, scored = read_multiclass_evaluation_folder(evaluated_classes[0][0] / "evaluation/test")
    rows = [
        ("path", *(f"probability_{name}" for name in classes.classes)),
        *((image.path, *map(str, image.probabilities)) for image in scored),
    ]
    file = write_table(tmp_path / "classes.csv", rows)
    data = root / "drawn-classes" / "images.csv"
    found = evaluate_multiclass_predictions(file, data, out=tmp_path / "classes", ledger=ledger)[0].figures
    assert drawn(found) == drawn(report_multiclass([tmp_path / "classes"]).figures)


def write_table(path: Path, rows: list[tuple[str, ...]]) -> Path:
    path.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    return path


def test_figures_are_in_no_file_and_in_no_comparison_of_records(
    evaluated: tuple[list[Path], list[Evaluation]],
) -> None:
    runs, (evaluation, _) = evaluated
    before = to_json(evaluation)
    assert evaluation.figures
    assert to_json(evaluation) == before
    assert read_evaluation(runs[0] / "evaluation/test/evaluation.json") == evaluation


@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record)), lambda record: dataclasses.replace(record)],
    ids=["copied", "pickled", "replaced"],
)
def test_record_without_its_images_has_no_figures(
    change: Any,
    evaluated: tuple[list[Path], list[Evaluation]],
    evaluated_classes: tuple[list[Path], list[MulticlassEvaluation]],
) -> None:
    records: list[Evaluation | Comparison | MulticlassEvaluation | MulticlassComparison] = [
        evaluated[1][0],
        compare(evaluated[0]),
        evaluated_classes[1][0],
        compare_multiclass(evaluated_classes[0]),
    ]
    for record in records:
        changed = change(record)
        assert changed == record
        with pytest.raises(UsageError, match=f"this {type(record).__name__} has no scored images") as caught:
            _ = changed.figures
        several = isinstance(record, MulticlassEvaluation | MulticlassComparison)
        assert f"`report{'_multiclass' if several else ''}(runs)`" in caught.value.hint


def test_figure_is_saved_in_the_format_of_the_extension(
    evaluated: tuple[list[Path], list[Evaluation]], tmp_path: Path
) -> None:
    run = evaluated[0][0]
    figure = compare([run]).figures["roc"]
    files = report([run], operating_point="half").write(tmp_path / "report").figures
    for suffix in ("svg", "pdf", "png"):
        (written,) = (file for file in files if file.name == f"roc.{suffix}")
        assert figure.save(tmp_path / f"figure.{suffix}").read_bytes() == written.read_bytes()
    assert figure.save(tmp_path / "new" / "ROC.PNG").read_bytes().startswith(b"\x89PNG")
    for name in ("figure.jpeg", "figure"):
        with pytest.raises(UsageError, match=r"cannot be saved as '.*figure") as caught:
            figure.save(tmp_path / name)
        assert ".svg, .pdf, .png" in caught.value.hint
    assert not (tmp_path / "figure.jpeg").exists()


def test_notebooks_get_an_svg_and_a_png_of_the_same_size(evaluated: tuple[list[Path], list[Evaluation]]) -> None:
    figure = evaluated[1][0].figures["roc"]
    png, size = figure._repr_png_()
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (2 * size["width"], 2 * size["height"])
    box = ElementTree.fromstring(figure._repr_svg_()).attrib["viewBox"].split()
    assert [round(float(each)) for each in box[2:]] == [size["width"], size["height"]]
