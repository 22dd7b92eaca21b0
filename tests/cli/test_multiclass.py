"""Commands with models of several classes."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.conftest import GRAY_CLASSES, halves

from pneumoscope.cli import cli
from pneumoscope.cli.evaluation_tables import interval_table
from pneumoscope.core.errors import (
    LayoutError,
    MulticlassBundleError,
    PartialFailureError,
    UnknownNameError,
    UsageError,
)
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import with_minus_signs
from pneumoscope.data.layouts import load_manifest
from pneumoscope.inference.multiclass_model import load_multiclass_model


def invoke(*arguments):
    return CliRunner().invoke(
        cli, [str(argument) for argument in arguments], env={"COLUMNS": "200"}, standalone_mode=False
    )


def save(path, level):
    Image.fromarray(halves(level)).save(path)
    return path


def test_predict_prints_the_most_probable_class(maker, tmp_path):
    run = maker.multiclass_run()
    result = invoke("predict", save(tmp_path / "a.png", 200), save(tmp_path / "b.png", 140), "--model", run)
    assert result.exception is None, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["decision", "most", "probable", "probability", "image"]
    assert lines[1].split()[:3] == [
        "classified",
        "bright",
        "0.969",
    ]  # 1 / (1 + exp(-0.05 x 55 / 0.8) + exp(-0.05 x 150 / 0.8))
    assert lines[2].split()[:2] == ["uncertain", "mid"]
    assert "Several classes are possible: bright, mid" in lines[2]
    assert "Classes: bright, dark, mid; classified: one class is possible at a coverage of 95%" in result.stdout


def test_predict_writes_json_and_csv(maker, tmp_path):
    run, image = maker.multiclass_run(), save(tmp_path / "a.png", 60)
    data = json.loads(invoke("predict", image, "--model", run, "--json").stdout)
    assert data["classes"] == list(GRAY_CLASSES)
    prediction = data["predictions"][0]
    assert (prediction["decision"], prediction["predicted_class"]) == ("classified", "dark")
    (row,) = csv.DictReader(io.StringIO(invoke("predict", image, "--model", run, "--csv", "-").stdout))
    assert float(row["probability_dark"]) == prediction["class_probabilities"]["dark"]
    assert row["prediction_set"] == "dark"


def test_predict_writes_heatmaps_of_the_most_probable_class(maker, tmp_path):
    run, images = maker.multiclass_run(), [save(tmp_path / f"{level}.png", level) for level in (200, 60)]
    (tmp_path / "empty.png").write_bytes(b"")
    result = invoke("predict", *images, tmp_path / "empty.png", "--model", run, "--heatmaps", tmp_path / "maps")
    assert isinstance(result.exception, PartialFailureError)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["1-200.png", "2-60.png"]
    expected = load_multiclass_model(run).explain(images[1]).picture
    assert (tmp_path / "maps" / "2-60.png").read_bytes() == expected
    # The right half is brighter: orange if that is towards the class, blue if against.
    for name, warmer in (("1-200.png", True), ("2-60.png", False)):
        red, _, blue = np.asarray(Image.open(tmp_path / "maps" / name).convert("RGB"))[300, 480].astype(int)
        assert (red > blue) == warmer


def test_predict_remarks_on_a_temperature_at_its_bound(maker, tmp_path):
    run, image = maker.multiclass_run(), save(tmp_path / "a.png", 200)
    assert "bound" not in invoke("predict", image, "--model", run).stdout
    card = json.loads((run / "bundle/card.json").read_text())
    card["calibration"]["temperature"] = 1000
    (run / "bundle/card.json").write_text(json.dumps(card))
    assert "The temperature is at its upper bound (1000)" in invoke("predict", image, "--model", run).stdout


@pytest.mark.parametrize(
    "option",
    [("--operating-point", "half"), ("--prevalence", "0.2"), ("--site", "profile.json")],
)
def test_predict_refuses_options_of_models_for_pneumonia(maker, tmp_path, option):
    run, image = maker.multiclass_run(), save(tmp_path / "a.png", 60)
    result = invoke("predict", image, "--model", run, *option)
    assert isinstance(result.exception, UsageError)
    assert option[0] in result.exception.message


def test_evaluate_prints_every_number_with_its_interval(maker):
    run = maker.multiclass_run()
    result = invoke("evaluate", run, "--data", maker.classes())
    assert result.exception is None, result.output
    written = json.loads((run / "evaluation" / "test" / "evaluation.json").read_text())
    assert "levels on 36 test images (12 bright, 12 dark, 12 mid; 18 patients)" in result.stdout
    assert "sensitivity, bright " in result.stdout  # of the pairs
    assert "sensitivity, dark (specificity) " in result.stdout
    shown = [*written["metrics"].values(), *written["by_class"]["dark"]["metrics"].values()]
    shown += [*written["pairs"][0]["metrics"].values(), *written["by_class"]["mid"]["sets"].values()]
    assert len(shown) > 25
    for interval in shown:
        assert with_minus_signs(f"{interval['value']:.3f}") in result.stdout
        if interval["low"] is not None:
            assert with_minus_signs(f"{interval['low']:.3f} to {interval['high']:.3f}") in result.stdout
    for name in ("positive likelihood ratio", "calibration slope", "calibration intercept", "observed expected ratio"):
        assert result.stdout.count(name) == 3
    assert "These test images have been evaluated once so far (test ledger)" in result.stdout
    repeated = invoke("evaluate", run, "--data", maker.classes())
    assert "These test images have been evaluated 2 times so far (test ledger)" in repeated.stdout


def test_evaluate_prints_the_written_json(maker):
    run = maker.multiclass_run()
    result = invoke("evaluate", run, "--data", maker.classes(), "--json")
    assert json.loads(result.stdout) == json.loads((run / "evaluation" / "test" / "evaluation.json").read_text())


@pytest.mark.parametrize(
    "option",
    [("--operating-point", "0.3"), ("--prevalence", "0.2"), ("--validation-data", "x.csv"), ("--site", "profile.json")],
)
def test_evaluate_refuses_options_of_models_for_pneumonia(maker, option):
    result = invoke("evaluate", maker.multiclass_run(), "--data", maker.classes(), *option)
    assert isinstance(result.exception, UsageError)
    assert result.exception.code == "usage"
    assert result.exception.message == f"{option[0]} does not work with a model of several classes"
    assert result.exception.hint == f"Leave {option[0]} out, or choose a model for NORMAL and PNEUMONIA"
    assert not (maker.root / "ledger.jsonl").exists()


def test_evaluate_prints_subgroups(maker):
    data = maker.classes()
    header, *rows = data.read_text().splitlines()
    data.write_text("\n".join([f"{header},site", *(f"{row},{'AB'[i % 2]}" for i, row in enumerate(rows))]))
    run = maker.multiclass_run()
    result = invoke("evaluate", run, "--data", data, "--by", "site")
    assert result.exception is None, result.output
    written = json.loads((run / "evaluation" / "test" / "evaluation.json").read_text())
    assert "subgroup site: B (6 bright, 6 dark, 6 mid)" in result.stdout
    accuracy = written["subgroups"][1]["metrics"]["accuracy"]
    assert f"{accuracy['low']:.3f} to {accuracy['high']:.3f}" in result.stdout
    for test in written["interactions"]:
        assert test["sentence"] in result.stdout
    assert "18 patients are in several groups" in result.stdout


def difference_lines(difference):
    """Return the lines of the table of differences, without their numbers of images and methods."""
    return [
        with_minus_signs(f"{name.replace('_', ' ')} {each['value']:.3f} {each['low']:.3f} to {each['high']:.3f}")
        for name, each in difference["metrics"].items()
    ]


def test_evaluate_prints_the_difference_from_other_images(maker):
    run, north = maker.multiclass_run(), maker.classes("north", seed=1)
    assert invoke("evaluate", run, "--data", maker.classes()).exception is None
    result = invoke("evaluate", run, "--data", north, "--name", "north", "--reference", "test")
    assert result.exception is None, result.output
    difference = json.loads((run / "evaluation" / "north" / "evaluation.json").read_text())["difference"]
    printed = result.stdout.partition("these images minus test (36 images)")[2]
    lines = [" ".join(re.findall(r"[^\s│┃]+", line)) for line in printed.splitlines()]
    for expected in difference_lines(difference):
        assert any(line.startswith(expected) for line in lines), (expected, lines)


def test_evaluate_prints_the_difference_of_each_run_and_of_predictions(maker, scores):
    data, file = scores
    north, seeds = maker.classes("north", seed=1), maker.root / "runs" / "seeds"
    for seed in range(2):
        maker.multiclass_run(f"seeds/seed-{seed}", recipe="seeds", seed=seed, edges=(100.0 + seed, 150.0))
    assert invoke("evaluate", seeds, "--data", data).exception is None
    result = invoke("evaluate", seeds, "--data", north, "--name", "north", "--reference", "test")
    assert result.exception is None, result.output
    assert result.stdout.count("these images minus test (36 images)") == 2
    for folder, images in (("a", data), ("b", north)):
        if folder == "b":
            file.write_text(file.read_text().replace("-0-", "-1-"))
        reference = () if folder == "a" else ("--reference", maker.root / "a")
        options = (*NAMED, "--name", "tool", "--out", maker.root / folder, *reference)
        result = invoke("evaluate", "--predictions", file, "--data", images, *options)
        assert result.exception is None, result.output
    assert "these images minus a (36 images)" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("serve", "--ephemeral", "--port", "0", "--model"),
        ("accept", "IMAGES", "--site-name", "ward", "--out", "profile", "--model"),
        ("monitor", "IMAGES", "--site", "site.json", "--model"),
        ("archive", "score", "IMAGES", "--out", "archive", "--model"),
        ("robustness", "MODEL", "--data", "IMAGES"),
        ("shortcuts", "MODEL", "--data", "IMAGES"),
        ("saliency-check", "MODEL", "--data", "IMAGES"),
        ("sample-size", "--model"),
    ],
)
def test_other_commands_refuse_the_model(maker, monkeypatch, command):
    monkeypatch.chdir(maker.root)
    model, images = maker.multiclass_bundle(maker.root / "model"), maker.images()
    arguments = [{"IMAGES": images, "MODEL": model}.get(each, each) for each in command]
    if "MODEL" not in command:
        arguments.append(model)
    result = invoke(*arguments)
    assert isinstance(result.exception, MulticlassBundleError), (result.exception, result.output)
    assert "bright, dark, mid" in str(result.exception)
    assert (
        "several classes work in train, sweep, lr-find, predict, evaluate, compare, report, export and models --card"
        in str(result.exception).lower()
    )


@pytest.mark.slow
def test_compare_and_report_write_pages(maker, tmp_path):
    data = maker.classes()
    runs = [maker.multiclass_run("good"), maker.multiclass_run("poor", edges=(65.0, 175.0))]
    for run in runs:
        assert invoke("evaluate", run, "--data", data).exception is None
    compared = invoke("compare", *runs, "--out", tmp_path / "compared")
    assert compared.exception is None, compared.output
    assert "accuracy" in compared.stdout
    assert "macro AUROC" in compared.stdout
    assert "Paired tests" in (tmp_path / "compared" / "report.html").read_text()
    reported = invoke("report", runs[0], "--out", tmp_path / "reported")
    assert reported.exception is None, reported.output
    assert (tmp_path / "reported" / "figures" / "confusion-0.pdf").is_file()


@pytest.mark.parametrize("option", [("--prevalence", "0.1"), ("--operating-point", "balanced")])
def test_compare_refuses_what_only_models_for_pneumonia_have(maker, tmp_path, option):
    run = maker.multiclass_run()
    assert invoke("evaluate", run, "--data", maker.classes()).exception is None
    result = invoke("compare", run, "--out", tmp_path / "out", *option)
    assert isinstance(result.exception, UsageError)
    assert f"{option[0]} does not work with a model of several classes" in result.exception.message
    assert not (tmp_path / "out").exists()


def test_report_refuses_an_operating_point(maker, tmp_path):
    run = maker.multiclass_run()
    invoke("evaluate", run, "--data", maker.classes())
    result = invoke("report", run, "--out", tmp_path / "report", "--operating-point", "balanced")
    assert isinstance(result.exception, UsageError)
    assert "--operating-point" in result.exception.message


def test_report_fills_checklists(maker, tmp_path):
    run = maker.multiclass_run()
    invoke("evaluate", run, "--data", maker.classes())
    result = invoke("report", run, "--out", tmp_path / "report", "--checklist", "claim")
    assert re.match(r"CLAIM 2024: \d+ of 44 items are prefilled, ", result.output)
    assert (tmp_path / "report" / "tables" / "checklist-claim.csv").is_file()


@pytest.fixture
def scores(maker):
    """Labeled images, and a CSV file with predictions of another tool."""
    data = maker.classes()
    lines = ["path,P(b),P(d),P(m)"]
    for row in csv.DictReader(data.read_text().splitlines()):
        high = GRAY_CLASSES.index(row["label"])
        lines.append(",".join([row["path"], *("0.6" if k == high else "0.2" for k in range(3))]))
    file = maker.root / "scores.csv"
    file.write_text("\n".join(lines))
    return data, file


NAMED = [option for name in GRAY_CLASSES for option in ("--probability-column", f"{name}=P({name[0]})")]


def test_evaluate_and_compare_take_predictions_of_other_tools(maker, tmp_path, scores):
    data, file = scores
    result = invoke("evaluate", "--predictions", file, "--data", data, *NAMED, "--json")
    assert result.exception is None, result.output
    assert json.loads(result.stdout)["metrics"]["accuracy"]["value"] == 1
    header, *lines = data.read_text().splitlines()
    data.write_text(
        "\n".join([f"{header},site", *(f"{line},{('ward [icu]', '[/x]')[i % 2]}" for i, line in enumerate(lines))])
    )
    printed = invoke("evaluate", "--predictions", file, "--data", data, *NAMED, "--name", "tool", "--by", "site")
    assert printed.exception is None, printed.output
    assert "site: ward [icu]" in printed.stdout
    assert "site: [/x]" in printed.stdout
    assert "tool on 36 test images" in printed.stdout
    assert "It is unknown whether the model was trained" in printed.stdout
    run = maker.multiclass_run()
    assert invoke("evaluate", run, "--data", data).exception is None
    compared = invoke("compare", file, run, "--data", data, *NAMED, "--out", tmp_path / "out")
    assert compared.exception is None, compared.output
    assert "scores has a higher accuracy than levels" in compared.stdout
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["command"].count("--probability-column") == 3


@pytest.mark.parametrize("option", [("--operating-point", "0.3"), ("--prevalence", "0.2")])
def test_predictions_of_several_classes_refuse_options_for_pneumonia(scores, option):
    data, file = scores
    result = invoke("evaluate", "--predictions", file, "--data", data, *NAMED, *option)
    assert isinstance(result.exception, UsageError)
    assert f"{option[0]} does not work with a model of several classes" in result.exception.message


def test_one_class_against_the_rest_is_evaluated_like_two_labels(maker):
    """The way that the documentation names to net benefit, own operating points and a stated prevalence."""
    run, data = maker.multiclass_run(), maker.classes(count=20)
    assert invoke("evaluate", run, "--data", data).exception is None
    folder = run / "evaluation" / "test"
    named = ("--probability-column", "probability_mid", "--positive", "mid", "--prevalence", "0.1")
    options = (*named, "--operating-point", "0.3", "--json")
    result = invoke("evaluate", "--predictions", folder / "predictions.csv", "--data", data, *options)
    assert result.exception is None, result.output
    of_class = json.loads((folder / "evaluation.json").read_text())["by_class"]["mid"]["metrics"]
    two_labels = json.loads(result.stdout)
    names = ("auroc", "auprc", "expected_calibration_error", "calibration_slope", "calibration_intercept")
    for name in (*names, "observed_expected_ratio"):
        for field in ("value", "low", "high"):
            assert two_labels["metrics"][name][field] == pytest.approx(of_class[name][field], abs=1e-9)
    assert two_labels["operating_points"]["0.3"]["predictive_values"]["prevalence"] == 0.1
    assert len(two_labels["decision_curve"]) == 19


def test_repeated_columns_must_name_classes(scores):
    data, file = scores
    for names, message in (
        (("P(b)", "dark=P(d)"), "'P(b)' is not CLASS=NAME"),
        (("dark=a", "dark=b"), "a second column of dark"),
    ):
        options = [word for name in names for word in ("--probability-column", name)]
        result = invoke("evaluate", "--predictions", file, "--data", data, *options)
        assert isinstance(result.exception, UsageError)
        assert message in result.exception.message


@pytest.mark.parametrize(
    "names", [("bright=P(b)", "dark=P(d)", "nosuch=P(m)"), ("nosuch=P(m)",), ("mid=P(m)", "nosuch=P(b)")]
)
def test_a_column_of_a_class_that_does_not_exist_is_named(scores, maker, tmp_path, names):
    data, file = scores
    options = [word for name in names for word in ("--probability-column", name)]
    commands = [("evaluate", "--predictions", file)]
    if len(names) > 1:
        commands.append(("compare", file, maker.multiclass_bundle(maker.root / "model"), "--out", tmp_path / "out"))
    for command in commands:
        error = invoke(*command, "--data", data, *options).exception
        assert isinstance(error, UnknownNameError)
        wrong = next(name for name in names if name.startswith("nosuch"))
        if command[0] == "evaluate" and len(names) > 1:  # a class may have no images
            columns = {name.partition("=")[0] for name in names}
            missing = ", ".join(repr(label) for label in GRAY_CLASSES if label not in columns)
            assert error.message == (
                f"--probability-column '{wrong}': the data have no images of 'nosuch'; their labels are bright, dark, mid, and"
                f" there is no column for {missing}"
            )
            assert error.hint == "Give --probability-column once for each class, CLASS=COLUMN"
        else:
            known = f"--probability-column '{wrong}': there is no class 'nosuch'; the classes are bright, dark, mid"
            assert known in str(error)
            assert error.hint == "Give --probability-column once for each of these classes, CLASS=COLUMN"


def test_the_column_of_a_single_class_is_explained(scores):
    data, file = scores
    error = invoke("evaluate", "--predictions", file, "--data", data, "--probability-column", "mid=P(m)").exception
    assert isinstance(error, UsageError)
    assert "names the column of one class only" in error.message
    assert error.message.endswith("the classes are bright, dark, mid")
    assert error.hint == "Give --probability-column once for each class, CLASS=COLUMN"
    misspelled = invoke("evaluate", "--predictions", file, "--data", data, "--logit-column", "brigt=P(m)").exception
    assert str(misspelled).endswith("the classes are bright, dark, mid. Did you mean 'bright'?")


def test_columns_of_classes_for_two_labels_are_explained(maker):
    images = maker.images()
    file = maker.root / "two.csv"
    rows = [f"{image.path},0.4,0.6" for image in load_manifest(images)]
    file.write_text("\n".join(["path,P(n),P(p)", *rows]))
    for name, hint in (
        ("TB=P(p)", "If 'P(p)' is the column of PNEUMONIA, name it without a class: --probability-column 'P(p)'"),
        ("pneumonia=P(p)", "Name it without the class: --probability-column 'P(p)'"),
        ("NORMAL=P(n)", "Name the column of PNEUMONIA without its class: --probability-column COLUMN"),
    ):
        error = invoke("evaluate", "--predictions", file, "--data", images, "--probability-column", name).exception
        assert error.hint == hint
        assert "the classes are NORMAL, PNEUMONIA" in error.message


def test_a_file_that_cannot_be_read_is_named_before_the_columns_of_its_classes(maker, scores):
    data, _ = scores
    for name, content in (
        ("typo.csv", None),
        ("semicolons.csv", b"path;p\n"),
        ("utf16.csv", "path,p\n".encode("utf-16")),
    ):
        file = maker.root / name
        if content is not None:
            file.write_bytes(content)
        for images, column in ((maker.images(), "PNEUMONIA=p"), (data, "mid=p")):
            error = invoke(
                "evaluate", "--predictions", file, "--data", images, "--probability-column", column
            ).exception
            assert isinstance(error, LayoutError)
            assert name in error.message


def test_both_columns_of_two_labels_may_be_named_in_lower_case(maker, tmp_path):
    images = maker.images()
    rows = [
        f"{image.path},{p:.3f},{1 - p:.3f}" for i, image in enumerate(load_manifest(images)) for p in [0.3 + i % 5 / 10]
    ]
    results = []
    for number, names in enumerate((("NORMAL=P(n)", "PNEUMONIA=P(p)"), ("normal=P(n)", "pneumonia=P(p)"))):
        file = tmp_path / f"{number}.csv"
        file.write_text("\n".join(["path,P(n),P(p)", *rows]))
        options = [word for name in names for word in ("--probability-column", name)]
        result = invoke(
            "evaluate", "--predictions", file, "--data", images, *options, "--json", "--out", tmp_path / file.stem
        )
        assert result.exception is None, result.output
        results.append(json.loads(result.stdout))
    assert results[0]["classes"] == results[1]["classes"] == ["NORMAL", "PNEUMONIA"]
    assert results[0]["metrics"] == results[1]["metrics"]
    # A file is compared with an evaluation in which the classes are those of the data.
    compared = invoke("compare", tmp_path / "0", file, "--data", images, *options, "--out", tmp_path / "out")
    assert compared.exception is None, compared.output


def test_class_names_in_tables_of_metrics_keep_their_underscores():
    interval = Interval(0.5, 0.4, 0.6, "wilson", 9)
    table = interval_table("title", {"macro_auroc": interval, "sensitivity, viral_pneumonia": interval})
    assert list(table.columns[0].cells) == ["macro auroc", "sensitivity, viral_pneumonia"]
