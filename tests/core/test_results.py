"""Results as strict JSON: no NaN, with the schema number and the notice."""

import dataclasses
import json
import math
import sys

import pytest

from pneumoscope.bundle.evidence import interval_text
from pneumoscope.core import results
from pneumoscope.core.comparison import Comparison, RunSummary
from pneumoscope.core.errors import MissingExtraError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import (
    decimals_to_distinguish,
    format_decimals,
    format_limit,
    to_json,
    with_minus_signs,
)
from pneumoscope.core.results import (
    SCHEMA,
    Confusion,
    DecisionCurvePoint,
    Evaluation,
    InteractionTest,
    OperatingPointResult,
    PredictiveValues,
    SetDifference,
    Subgroup,
)
from pneumoscope.evaluation.comparison.paired_findings import percentage_points
from pneumoscope.reporting.table_forms import cell_text
from pneumoscope.reporting.templating import environment

HALF = Interval(value=0.5, low=0.25, high=0.75, method="wilson", n=12)
UNDEFINED = Interval(
    value=None, low=None, high=None, method="wilson", n=0, reason="no image is classified as pneumonia"
)
EVALUATION = Evaluation(
    name="größer",
    split="test",
    images_sha256="ab" * 32,
    n=12,
    patients=6,
    counts={"NORMAL": 4, "PNEUMONIA": 8},
    bundle_sha256="cd" * 32,
    recipe={"name": "quick", "training": {"epochs": 3}},
    metrics={"auroc": HALF},
    auroc_by_etiology={},
    operating_points={
        "half": OperatingPointResult(0.5, "fixed", Confusion(4, 4, 2, 2), {"precision": UNDEFINED}, {"virus": HALF})
    },
    test_evaluation=1,
    seconds=0.25,
    created="2026-01-02T03:04:05+00:00",
    version="0.1.0",
)
COMPARISON = Comparison(
    images={"n": 12}, operating_point="half", runs=(), pairs=(), sentences=("A has a higher accuracy than B.",), command="",
    created="", version="0.1.0",
)  # fmt: skip


def test_json_has_every_field_of_nested_records():
    data = json.loads(to_json(EVALUATION))

    assert set(data) == {field.name for field in dataclasses.fields(Evaluation)}
    assert data["metrics"]["auroc"] == {
        "value": 0.5, "low": 0.25, "high": 0.75, "method": "wilson", "n": 12, "level": 0.95, "seed": None, "reason": "",
    }  # fmt: skip
    assert data["operating_points"]["half"]["metrics"]["precision"]["value"] is None
    assert data["operating_points"]["half"]["metrics"]["precision"]["reason"] == "no image is classified as pneumonia"
    assert data["operating_points"]["half"]["confusion"] == {"tp": 4, "fn": 4, "tn": 2, "fp": 2}
    assert data["recipe"]["training"]["epochs"] == 3


@pytest.mark.parametrize("result", [EVALUATION, COMPARISON], ids=["evaluation", "comparison"])
def test_json_has_schema_and_notice(result):
    data = json.loads(to_json(result))

    assert (data["schema"], data["notice"]) == (SCHEMA, NOTICE)


def test_notice():
    assert NOTICE == "Research and education software. Not a medical device."


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_non_finite_number_at_any_depth_is_an_error(number):
    damaged = dataclasses.replace(EVALUATION, metrics={"auroc": dataclasses.replace(HALF, low=number)})

    with pytest.raises(ValueError, match=r"Out of range float values are not JSON compliant"):
        to_json(damaged)


def test_plain_data_becomes_json_that_ends_with_a_line_feed():
    assert to_json({"a": [1, None]}) == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
    assert "größer" in to_json(EVALUATION)


def test_results_are_frozen():
    for name in results.__all__:
        member = getattr(results, name)
        if isinstance(member, type):
            assert member.__dataclass_params__.frozen, name
    with pytest.raises(dataclasses.FrozenInstanceError):
        HALF.value = 0.6


def test_evaluation_rows_have_one_interval_each():
    rows = EVALUATION.rows()

    assert [(row["operating_point"], row["etiology"], row["metric"]) for row in rows] == [
        (None, None, "auroc"),
        ("half", None, "precision"),
        ("half", "virus", "accuracy"),
    ]
    none = {"operating_point": None, "etiology": None, "subgroup": None, "reference": None}
    none |= {"prevalence": None, "threshold_probability": None}
    assert rows[0] == {**none, "metric": "auroc", **dataclasses.asdict(HALF)}


def broken_down():
    """Return the evaluation with a subgroup, a test and a difference."""
    metrics = {"auroc": UNDEFINED, "sensitivity": HALF}
    return dataclasses.replace(
        EVALUATION,
        subgroups=(Subgroup("sex", "F", 6, {"NORMAL": 0, "PNEUMONIA": 6}, "balanced", metrics),),
        interactions=(InteractionTest("sex", "auroc", None, (), "test", None, None, sentence="It cannot be tested."),),
        difference=SetDifference(
            "north", "ef" * 32, 7, {"auroc": HALF}, {"half": {"accuracy": HALF}}, "One < two sets."
        ),
    )


def test_rows_have_the_subgroups_and_the_difference():
    rows = broken_down().rows()[len(EVALUATION.rows()) :]

    keys = ("subgroup", "reference", "operating_point", "metric", "value")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("sex: F", None, None, "auroc", None),
        ("sex: F", None, "balanced", "sensitivity", 0.5),
        (None, "north", None, "auroc", 0.5),
        (None, "north", "half", "accuracy", 0.5),
    ]


def test_notebook_shows_the_subgroups_and_the_difference():
    page = broken_down()._repr_html_()

    assert '<th style="text-align:left">sex: F, sensitivity</th><td>0.500 [0.250, 0.750]</td>' in page
    assert "<li>It cannot be tested.</li>" in page
    assert "these images minus north (7 images)" in page
    assert '<th style="text-align:left">accuracy at half</th><td>0.500 [0.250, 0.750]</td>' in page
    assert "One &lt; two sets." in page
    assert "subgroups" not in EVALUATION._repr_html_()


def test_comparison_rows_have_the_run_and_the_metric():
    run = RunSummary(
        name="a", network="alexnet", optimizer="sgd", batch=8, image_size=64, epochs=1, seed=0, device="cpu", weights="none",
        average_train_accuracy=None, average_validation_accuracy=None, best_epoch=1, seconds=1.0,
        test={"n": 12, "accuracy": HALF, "auroc": UNDEFINED}, confusion=Confusion(4, 4, 2, 2),
    )  # fmt: skip
    comparison = dataclasses.replace(COMPARISON, runs=(run,))

    assert [(row["run"], row["metric"], row["value"]) for row in comparison.rows()] == [
        ("a", "accuracy", 0.5),
        ("a", "auroc", None),
    ]
    assert repr(comparison) == "Comparison(n=12, operating_point='half', a: accuracy=0.500 [0.250, 0.750])"
    html = comparison._repr_html_()
    assert "a: accuracy" in html
    assert "A has a higher accuracy than B." in html
    assert NOTICE in html


def test_threshold_is_stated_on_both_scales():
    point = EVALUATION.operating_points["half"]
    assert point.threshold_text() == "score before calibration 0.5"
    calibrated = dataclasses.replace(point, threshold_probability=0.61234)
    assert calibrated.threshold_text() == "probability 0.612, score before calibration 0.5"


def test_evaluation_is_short_as_text_and_a_table_in_a_notebook():
    evaluation = dataclasses.replace(EVALUATION, name="<b>")

    assert repr(evaluation) == "Evaluation('<b>', split='test', n=12, patients=6, auroc=0.500 [0.250, 0.750])"
    html = evaluation._repr_html_()
    assert "&lt;b&gt;: 12 test images (4 NORMAL, 8 PNEUMONIA; 6 patients)" in html
    assert "undefined (no image is classified as pneumonia)" in html
    assert "half: threshold at score before calibration 0.5" in html
    assert NOTICE in html


@pytest.mark.parametrize("result", [EVALUATION, COMPARISON], ids=["evaluation", "comparison"])
def test_dataframe_without_pandas_states_the_extra(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'pneumoscope\[pandas\]'"):
        result.to_dataframe()


def test_dataframe_has_the_rows():
    pandas = pytest.importorskip("pandas")

    frame = EVALUATION.to_dataframe()

    assert isinstance(frame, pandas.DataFrame)
    assert frame.set_index("metric").loc["auroc", "low"] == 0.25
    assert len(frame) == 3


def test_notebook_and_rows_have_predictive_values_and_net_benefit():
    point = dataclasses.replace(
        EVALUATION.operating_points["half"], predictive_values=PredictiveValues(0.1, HALF, UNDEFINED)
    )
    curve = tuple(DecisionCurvePoint(step / 10, HALF, HALF, UNDEFINED) for step in (1, 2))
    evaluation = dataclasses.replace(EVALUATION, operating_points={"half": point}, decision_curve=curve)
    page = evaluation._repr_html_()
    assert "half, at a prevalence of 0.1" in page
    assert "threshold probability 0.2" in page
    rows = evaluation.rows()
    assert [row["metric"] for row in rows if row["prevalence"] == 0.1] == ["precision", "negative_predictive_value"]
    steps = [
        (row["threshold_probability"], row["metric"], row["value"]) for row in rows if row["threshold_probability"]
    ]
    assert steps[:3] == [
        (0.1, "net_benefit", 0.5),
        (0.1, "net_benefit_treat_all", 0.5),
        (0.1, "net_benefit_gain", None),
    ]


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(-0.5, -0.75, 0.25, "wilson", 12), "\N{MINUS SIGN}0.500 [\N{MINUS SIGN}0.750, 0.250]"),
        (
            Interval(-0.5, None, None, "wilson", 12, reason="one patient"),
            "\N{MINUS SIGN}0.500 (no interval: one patient)",
        ),
        (Interval(0.5, None, None, "wilson", 12), "0.500"),
        (UNDEFINED, "undefined (no image is classified as pneumonia)"),
    ],
)
def test_text_of_an_interval_has_true_minus_signs_and_its_reason(interval, text):
    assert str(interval) == text


def test_json_and_rows_have_hyphens():
    record = dataclasses.replace(EVALUATION, metrics={"mcc": Interval(-0.5, -0.75, 0.25, "wilson", 12)})
    assert '"value": -0.5' in to_json(record)
    assert record.rows()[0]["value"] == -0.5


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (-0.0004, ".3f", "-0.0004"),
        (0.00004, "+.3f", "+0.00004"),
        (-0.0004, ".1%", "-0.04%"),
        (0.0006, ".3f", "0.001"),
        (0.0, ".3f", "0.000"),
        (1e-17, ".3f", "0.000"),  # an error of rounding
        (0.0004, "g", "0.0004"),
    ],
)
def test_limits_near_0_show_on_which_side_they_are(value, style, text):
    assert format_limit(value, style) == text


def test_intervals_that_end_near_0_show_on_which_side_everywhere():
    interval = Interval(0.02, -0.0004, 0.00002, "wilson", 9)
    minus = "\N{MINUS SIGN}"
    assert str(interval) == f"0.020 [{minus}0.0004, 0.00002]"
    assert f"{interval:+.3f}" == f"+0.020 [{minus}0.0004, +0.00002]"
    assert cell_text(interval, 3) == f"0.020 ({minus}0.0004 to 0.00002)"
    assert interval_text(dataclasses.asdict(interval)) == str(interval)
    assert percentage_points(interval) == f"+2.0 percentage points [{minus}0.04, 0.002]"
    template = environment().from_string("{% import 'parts.html' as part %}{{ part.metric(i, sign=true) }}")
    assert f"{minus}0.0004 to +0.00002" in template.render(i=interval)


def test_minus_signs_are_those_of_numbers_only():
    minus = "\N{MINUS SIGN}"
    assert with_minus_signs("-0.000 [-0.001, -0.0], -0, -0.0%, x-0.0, -0.01") == (
        f"0.000 [{minus}0.001, 0.0], 0, 0.0%, x-0.0, {minus}0.01"
    )
    assert with_minus_signs(f"{-0.0004:+.3f} to {0.0004:+.3f}, +0, +0.0%, +0.01, 1e+0") == (
        "0.000 to 0.000, 0, 0.0%, +0.01, 1e+0"
    )
    text = with_minus_signs("vgg19-adam-32 -0.5 [-1, 2], 2026-01-02, 1e-05, sens-0.9, (-.5)")
    assert text == f"vgg19-adam-32 {minus}0.5 [{minus}1, 2], 2026-01-02, 1e-05, sens-0.9, ({minus}.5)"


@pytest.mark.parametrize(
    ("rows", "decimals"),
    [
        ([], 3),
        ([(0.1, 0.2), (0.3, 0.4), (0.1, 0.2)], 3),
        ([(0.9991, 0.9992), (0.9993, 0.9994)], 4),
        ([(0.1, 0.9999), (0.2, 0.9999)], 3),
        ([(0.100001,), (0.100002,)], 6),
        ([(1e-9,), (3e-9,)], 6),
        ([(1 - 2.0**-53,), (1.0,)], 6),
    ],
)
def test_decimals_tell_rows_apart_up_to_the_sixth(rows, decimals):
    assert decimals_to_distinguish(rows) == decimals


@pytest.mark.parametrize(
    ("value", "decimals", "kind", "text"),
    [
        (0.0005, 3, "f", "0.001"),
        (0.0004, 3, "f", "< 0.001"),
        (1e-9, 6, "f", "< 0.000001"),
        (0.0, 3, "f", "0.000"),
        (-0.0004, 3, "f", "0.000"),
        (-0.0005001, 3, "f", "-0.001"),
        (10.0, 0, "f", "10"),
        (1e-9, 4, "%", "< 0.0001%"),
        (0.0004, 1, "%", "< 0.1%"),
        (0.25, 1, "%", "25.0%"),
    ],
)
def test_numbers_that_would_be_printed_as_0_are_below_the_last_decimal(value, decimals, kind, text):
    assert format_decimals(value, decimals, kind) == text
