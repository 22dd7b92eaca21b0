"""The operating point of a comparison or report for which none is given, and errors for one that is missing."""

import pytest

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.data.predictions_file import PredictionColumns
from pneumoscope.evaluation.comparison.compare import compare
from pneumoscope.evaluation.comparison.default_point import default_operating_point
from pneumoscope.evaluation.comparison.operating_points import check_operating_point, choose_operating_point
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.reporting.report_files import report


@pytest.mark.parametrize(
    ("a", "b", "of_compare", "of_report"),
    [
        (["rule_in", "half", "balanced"], ["balanced", "half"], "half", "balanced"),
        (["half", "balanced"], ["balanced", "0.3"], "balanced", "balanced"),
        (["half", "balanced"], ["half", "0.3"], "half", "half"),
        (["half", "0.3"], ["balanced", "0.3"], "0.3", "0.3"),
    ],
)
def test_default_is_shared_by_all_evaluations(a, b, of_compare, of_report):
    points = {"a": a, "b": b}
    assert choose_operating_point(points, first="half") == of_compare
    assert choose_operating_point(points, first="balanced") == of_report


def test_error_names_the_operating_points_of_each_evaluation():
    with pytest.raises(UnknownNameError) as raised:
        choose_operating_point({"a": ["half"], "b": ["balanced", "0.3"], "c": ["half"]}, first="half")
    assert str(raised.value) == (
        "the evaluations have no operating point in common. a, c: half; b: balanced, 0.3. Evaluate them again with the same"
        " --operating-point"
    )
    with pytest.raises(UnknownNameError) as raised:
        choose_operating_point({"a": ["0.2", "0.3"], "b": ["0.3", "0.2", "half"]}, first="half")
    assert str(raised.value) == (
        "all evaluations have several operating points, but neither balanced nor half. a: 0.2, 0.3; b: 0.3, 0.2, half. Give"
        " --operating-point 0.2 or 0.3"
    )


def test_error_for_a_given_operating_point_names_those_that_all_evaluations_have():
    points = {"a": ["half", "0.3", "balanced"], **{name: ["balanced", "0.3"] for name in "bcdef"}}
    with pytest.raises(UnknownNameError) as raised:
        check_operating_point(points, "half")
    assert str(raised.value) == (
        "the evaluation of 'b' has no operating point 'half'. a: half, 0.3, balanced; b, c, d and 2 more: balanced, 0.3. Give"
        " --operating-point balanced or 0.3"
    )
    with pytest.raises(UnknownNameError, match=r"Did you mean 'balanced'\?$"):
        check_operating_point(points, "balnced")
    with pytest.raises(UnknownNameError, match=r"b: rule_out\. Evaluate them again with the same --operating-point"):
        check_operating_point({"a": ["rule_in"], "b": ["rule_out"]}, "rule_in")


def test_comparison_and_report_fall_back_to_the_common_operating_point(maker, tmp_path):
    images, ledger = maker.images(), tmp_path / "ledger.jsonl"
    a, b = maker.run("a"), maker.run("b", gain=0.02)
    evaluate(a, images, ledger=ledger)
    evaluate(b, images, ledger=ledger, operating_points=["balanced", "0.3"])
    assert compare([a, b]).operating_point == report([a, b]).comparison.operating_point == "balanced"
    assert (compare([a]).operating_point, report([a]).comparison.operating_point) == ("half", "balanced")
    with pytest.raises(UnknownNameError, match=r"Give --operating-point balanced$"):
        compare([a, b], operating_point="half")


def test_error_names_points_that_a_model_to_be_evaluated_cannot_have():
    with pytest.raises(
        UnknownNameError, match=r"cannot be compared at balanced or rule_out\. a: .*--operating-point half$"
    ):
        choose_operating_point({"a": ["balanced", "rule_out"]}, first="half", is_possible=lambda name: name == "half")


def test_models_that_are_still_to_be_evaluated_limit_the_default(maker, tmp_path):
    """A file without predictions for validation images has no threshold."""
    images = maker.images()
    run, bundle, scores = maker.run("a"), maker.bundle(tmp_path / "bundle"), tmp_path / "scores.csv"
    evaluate(run, images, ledger=tmp_path / "ledger.jsonl", operating_points=["balanced", "0.3"])
    assert default_operating_point([run, bundle], "test", first="half") == "balanced"
    assert default_operating_point([run, scores], "test", first="half") == "0.3"
    columns = PredictionColumns(split="split")
    assert default_operating_point([run, scores], "test", first="half", columns=columns) == "balanced"
    assert default_operating_point([bundle, scores], "test", first="half") == "half"
