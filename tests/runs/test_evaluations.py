"""evaluation.json and predictions.csv: exact round trips, and errors with the file, the row or the field."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pneumoscope.core.errors import RunError
from pneumoscope.core.results import ScoredImage
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.runs.evaluations import predictions_csv, read_evaluation, read_predictions
from pneumoscope.runs.multiclass_evaluations import (
    has_multiclass_evaluation,
    read_multiclass_evaluation,
    read_multiclass_evaluation_folder,
)

IMAGE = ScoredImage("a,b.png", "ab" * 32, "bacteria-1", "PNEUMONIA", "bacteria", 1 / 3, 0.1 + 0.2, 1.0)


def test_predictions_round_trip_in_full_precision(tmp_path):
    images = (IMAGE, dataclasses.replace(IMAGE, path="c.png", logit=-1e-300, label="NORMAL", etiology="", patient=""))
    (tmp_path / "p.csv").write_text(predictions_csv(images))
    assert read_predictions(tmp_path / "p.csv") == images


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sha256", "hash", "has no column 'sha256'"),
        ("PNEUMONIA", "COVID", r"row 1: label is 'COVID', not one of NORMAL, PNEUMONIA"),
        ("0.3333333333333333", "much", "row 1: could not convert string to float: 'much'"),
        ("0.3333333333333333", "nan", "row 1: a number is not finite"),
        (",1.0", "", "row 1: float"),
    ],
)
def test_malformed_prediction_is_an_error_with_its_row(tmp_path, old, new, message):
    (tmp_path / "p.csv").write_text(predictions_csv([IMAGE]).replace(old, new, 1))
    with pytest.raises(RunError, match=message):
        read_predictions(tmp_path / "p.csv")


def test_error_for_a_missing_file_states_the_command_that_writes_it(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*p.csv': No such file.*pneumoscope evaluate"):
        read_predictions(tmp_path / "p.csv")


@pytest.fixture
def evaluation_file(maker):
    run = maker.run()
    evaluate(run, maker.images(), operating_points=["half"])
    return run / "evaluation" / "test" / "evaluation.json"


def changed(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "has schema 2; this version reads 1"),
        (lambda d: d.pop("schema"), "has schema None"),
        (lambda d: d.pop("n"), r"is malformed: .*`n`"),
        (lambda d: d.update(n="32"), r"is malformed: .*\$\.n`"),
        (lambda d: d["metrics"]["auroc"].update(value="high"), r"is malformed: .*\$\.metrics\[\.\.\.\]\.value`"),
        (lambda d: d["operating_points"]["half"].pop("confusion"), r"is malformed: .*`confusion`"),
        (lambda d: d["metrics"]["auroc"].update(value=float("nan")), "is not JSON"),
    ],
)
def test_malformed_evaluation_is_an_error_with_the_field(evaluation_file, change, message):
    with pytest.raises(RunError, match=message):
        read_evaluation(changed(evaluation_file, change))


def test_file_that_is_not_a_json_object_is_an_error(tmp_path):
    (tmp_path / "e.json").write_text("[1]")
    with pytest.raises(RunError, match="is malformed: Expected `object`, got `array`"):
        read_evaluation(tmp_path / "e.json")
    (tmp_path / "e.json").write_text("{")
    with pytest.raises(RunError, match="is not JSON"):
        read_evaluation(tmp_path / "e.json")
    (tmp_path / "e.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="cannot read"):
        read_evaluation(tmp_path / "e.json")


RESULTS = Path(__file__).resolve().parents[2] / "results"


@pytest.mark.parametrize(
    "file", sorted(RESULTS.rglob("evaluation.json")), ids=lambda path: str(path.relative_to(RESULTS))
)
def test_published_evaluations_of_earlier_versions_are_read(file):
    several = has_multiclass_evaluation(file.parent)
    evaluation = read_multiclass_evaluation_folder(file.parent)[0] if several else read_evaluation(file)
    assert evaluation.n == sum(evaluation.counts.values())


def test_the_results_of_the_repository_for_several_classes_are_read(tmp_path):
    """They are of a version that did not record differences, nor likelihood ratios and calibration of the classes."""
    folder = Path(__file__).parents[2] / "results" / "etiology"
    evaluation, images = read_multiclass_evaluation_folder(folder)
    assert (len(images), evaluation.classes, evaluation.difference) == (624, ("bacteria", "normal", "virus"), None)
    assert "calibration_slope" not in evaluation.by_class["virus"].metrics
    shutil.copy(folder / "validation.json", tmp_path / "evaluation.json")
    assert read_multiclass_evaluation(tmp_path / "evaluation.json").n == 782
