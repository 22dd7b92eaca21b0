"""Evaluations of models of several classes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn import metrics
from tests.conftest import GRAY_CLASSES

from pneumoscope.bundle.card import short_hash
from pneumoscope.core.errors import DatasetError, MulticlassBundleError, RunError, UnknownNameError, UsageError
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.reporting.multiclass_report import report_multiclass
from pneumoscope.runs.evaluations import read_evaluation
from pneumoscope.runs.multiclass_evaluations import (
    read_multiclass_evaluation,
    read_multiclass_evaluation_folder,
)


def test_evaluation_is_that_of_scikit_learn(maker):
    data = maker.classes()
    run = maker.multiclass_run()
    evaluation, images = evaluate_multiclass(run, data, split="test")
    y = [GRAY_CLASSES.index(image.label) for image in images]
    p = np.array([image.probabilities for image in images])
    assert evaluation.n == 36
    assert evaluation.patients == 18
    assert evaluation.counts == dict.fromkeys(GRAY_CLASSES, 12)
    assert np.array(evaluation.confusion).tolist() == metrics.confusion_matrix(y, p.argmax(1)).tolist()
    assert evaluation.metrics["accuracy"].value == metrics.accuracy_score(y, p.argmax(1))
    assert 0.5 < evaluation.metrics["accuracy"].value < 1
    expected = metrics.roc_auc_score(y, p, multi_class="ovr")
    assert evaluation.metrics["macro_auroc"].value == pytest.approx(expected)
    assert [image.predicted for image in images] == [GRAY_CLASSES[k] for k in p.argmax(1)]


def test_prediction_sets_are_evaluated_by_class(maker):
    evaluation, images = evaluate_multiclass(maker.multiclass_run(), maker.classes())
    assert evaluation.coverage == 0.95
    p = np.array([image.probabilities for image in images])
    inside = p >= 0.3
    for k, name in enumerate(GRAY_CLASSES):
        of_class = np.array([image.label == name for image in images])
        sets = evaluation.by_class[name].sets
        assert sets["coverage"].value == pytest.approx(inside[of_class, k].mean())
        assert sets["mean_size"].value == pytest.approx(inside[of_class].sum(1).mean())
        assert sets["coverage"].n == 12


def test_without_prediction_sets_there_is_no_coverage(maker):
    run = maker.multiclass_run(thresholds=None)
    card = run / "bundle" / "card.json"
    counts = {"validation": {"dark": 40, "mid": 5, "bright": 40}}
    card.write_text(json.dumps(json.loads(card.read_text()) | {"counts": counts}))
    evaluation, images = evaluate_multiclass(run, maker.classes())
    assert evaluation.coverage is None
    (remark,) = (each for each in evaluation.remarks if each.startswith("There are no prediction sets: "))
    assert remark.endswith("; there are 5 of mid.")
    assert evaluation.sets == {}
    assert {image.prediction_set for image in images} == {None}
    folder = maker.root / "runs" / "levels" / "evaluation" / "test"
    assert read_multiclass_evaluation_folder(folder)[1] == images


def test_files_are_read_back(maker):
    run = maker.multiclass_run()
    evaluation, images = evaluate_multiclass(run, maker.classes())
    folder = run / "evaluation" / "test"
    assert read_multiclass_evaluation_folder(folder) == (evaluation, images)
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert [float(row["probability_mid"]) for row in rows] == [image.probabilities[2] for image in images]


def test_each_evaluation_of_test_images_is_in_the_ledger(maker):
    run, data = maker.multiclass_run(), maker.classes()
    first, _ = evaluate_multiclass(run, data)
    second, _ = evaluate_multiclass(run, data)
    assert (first.test_evaluation, second.test_evaluation) == (1, 2)
    lines = [json.loads(line) for line in (maker.root / "ledger.jsonl").read_text().splitlines()]
    assert [line["classes"] for line in lines] == [list(GRAY_CLASSES)] * 2
    assert lines[0]["metrics"]["macro_auroc"] == first.metrics["macro_auroc"].value
    assert lines[0]["images_sha256"] == first.images_sha256


def test_training_images_are_refused(maker):
    data = maker.classes()
    hashes = [short_hash(image.sha256) for image in load_manifest(data).images[:2]]
    run = maker.multiclass_run(seen={"train": hashes})
    with pytest.raises(DatasetError, match="2 of the 36 images as train images"):
        evaluate_multiclass(run, data)
    assert not (maker.root / "ledger.jsonl").exists()


def test_other_labels_are_refused(maker):
    data = maker.images()
    with pytest.raises(DatasetError, match="the label 'NORMAL' is not one of the classes bright, dark, mid") as raised:
        evaluate_multiclass(maker.multiclass_run(), data)
    assert "etiology" not in raised.value.hint  # the classes are not etiologies


def test_labels_that_positive_makes_are_not_reported_as_those_of_the_data(maker):
    with pytest.raises(
        DatasetError, match="--positive 'mid' makes NORMAL and PNEUMONIA of all labels, and the classes"
    ):
        evaluate_multiclass(maker.multiclass_run(), maker.classes(), labels=LabelMapping(positive="mid"))


@pytest.mark.parametrize("given", [("NORMAL", "Pneumonia"), ("normal",)])
def test_data_may_have_some_of_the_classes_in_any_case(maker, given):
    """Alone, these labels would be those of a binary data set, or an error."""
    run, data = maker.multiclass_run(thresholds=None), maker.classes()
    card, lines = (run / "bundle" / "card.json").read_text(), data.read_text()
    for old, new in (("bright", "covid"), ("dark", "normal"), ("mid", "pneumonia")):
        card = card.replace(f'"{old}"', f'"{new}"')
        written = next((label for label in given if label.lower() == new), "")
        lines = "\n".join(
            line.replace(f",{old},", f",{written},") for line in lines.splitlines() if written or f",{old}," not in line
        )
    (run / "bundle" / "card.json").write_text(card)
    data.write_text(lines)
    evaluation, images = evaluate_multiclass(run, data)
    assert evaluation.classes == ("covid", "normal", "pneumonia")
    assert evaluation.counts == {"covid": 0, "normal": 12, "pneumonia": 12 * (len(given) == 2)}
    assert {image.label for image in images} == {label.lower() for label in given}


def test_another_evaluation_in_the_folder_is_not_overwritten(maker):
    run, out = maker.multiclass_run(), maker.root / "out"
    evaluate_multiclass(run, maker.classes(), out=out)
    other = maker.classes("others", seed=1)
    with pytest.raises(UsageError, match="an evaluation of other images"):
        evaluate_multiclass(run, other, out=out)
    with pytest.raises(UsageError, match="with another seed"):
        evaluate_multiclass(run, maker.classes(), out=out, seed=3)
    replaced, _ = evaluate_multiclass(run, other, out=out, replace=True)
    assert read_multiclass_evaluation(out / "evaluation.json") == replaced


def test_models_for_pneumonia_and_of_several_classes_are_not_mixed_up(maker):
    run, binary = maker.multiclass_run(), maker.run()
    with pytest.raises(MulticlassBundleError):
        evaluate(run, maker.images())
    evaluate(binary, maker.images())
    evaluate_multiclass(run, maker.classes())
    with pytest.raises(RunError, match="an evaluation of several classes"):
        read_evaluation(run / "evaluation" / "test" / "evaluation.json")
    with pytest.raises(RunError, match="an evaluation of NORMAL and PNEUMONIA"):
        read_multiclass_evaluation(binary / "evaluation" / "test" / "evaluation.json")


def test_mixed_files_are_refused(maker):
    run = maker.multiclass_run()
    evaluate_multiclass(run, maker.classes())
    folder = run / "evaluation" / "test"
    text = (folder / "predictions.csv").read_text().splitlines()
    (folder / "predictions.csv").write_text("\n".join(text[:-1]))
    with pytest.raises(RunError, match="from different evaluations"):
        read_multiclass_evaluation_folder(folder)


@pytest.mark.parametrize("count", [1, 36])
def test_what_was_fitted_on_the_images_is_undefined_on_them(maker, count):
    data = maker.classes()
    seen = [short_hash(image.sha256) for image in load_manifest(data).images[:count]]
    run = maker.multiclass_run(seen={"validation": seen})
    expected, _ = evaluate_multiclass(maker.multiclass_run("unseen"), data)
    data.write_text(data.read_text().replace(",test", ",validation"))
    evaluation, images = evaluate_multiclass(run, data, split="validation")
    fitted = {"brier", "log_loss", "expected_calibration_error", "calibration_slope", "calibration_intercept"}
    fitted |= {"observed_expected_ratio"}
    for found, reference in [
        (evaluation.metrics, expected.metrics),
        (evaluation.by_class["mid"].metrics, expected.by_class["mid"].metrics),
    ]:
        for name, interval in found.items():
            if name in fitted:
                assert (interval.value, interval.low, interval.high) == (None, None, None)
                assert interval.reason == f"the calibration was fitted on {count} of these 36 images"
            else:
                assert interval == reference[name]
    for sets in (evaluation.sets, evaluation.by_class["dark"].sets):
        assert {interval.reason for interval in sets.values()} == {
            f"the prediction sets were fitted on {count} of these 36 images"
        }
        assert {interval.value for interval in sets.values()} == {None}
    assert evaluation.pairs == expected.pairs
    assert {result.reliability for result in evaluation.by_class.values()} == {()}
    assert read_multiclass_evaluation_folder(run / "evaluation" / "validation") == (evaluation, images)
    repeated, _ = evaluate_multiclass(run, data, split="validation")  # the seed is still in the file
    assert repeated.metrics == evaluation.metrics


def test_an_evaluation_without_likelihood_ratios_and_calibration_of_classes_is_read_and_compared(maker, tmp_path):
    """Evaluations did not record them at first."""
    data, runs = maker.classes(), [maker.multiclass_run("earlier"), maker.multiclass_run("now", edges=(95.0, 155.0))]
    evaluations = [evaluate_multiclass(run, data)[0] for run in runs]
    file = runs[0] / "evaluation" / "test" / "evaluation.json"
    record = json.loads(file.read_text())
    for result in record["by_class"].values():
        for metric in list(result["metrics"]):
            if metric.startswith("calibration_") or metric.endswith(("_likelihood_ratio", "_expected_ratio")):
                del result["metrics"][metric]
    file.write_text(json.dumps(record))
    earlier = read_multiclass_evaluation(file)
    assert (
        earlier.by_class["mid"].metrics.keys() | {"calibration_slope"} < evaluations[0].by_class["mid"].metrics.keys()
    )
    alone, both = report_multiclass(runs[1:]), report_multiclass(runs[::-1])
    assert alone.tables["classes"].columns[-4:-2] == ("Positive likelihood ratio", "Negative likelihood ratio")
    assert alone.tables["class-calibration"].columns[3:] == (
        "Calibration error",
        "Calibration slope",
        "Calibration intercept",
        "O/E",
    )
    assert both.tables["class-calibration"].columns[3:] == ("Calibration error",)
    assert "Positive likelihood ratio" not in both.tables["classes"].columns
    assert "likelihood" in alone.page()
    assert '<a href="#calibration">' in both.page()


def test_data_frames_have_a_row_per_metric(maker):
    pytest.importorskip("pandas")
    evaluation, _ = evaluate_multiclass(maker.multiclass_run(), maker.classes())
    frame = evaluation.to_dataframe()
    row = frame[(frame["class"] == "dark") & (frame["metric"] == "auroc") & frame["other"].isna()].iloc[0]
    assert row["value"] == evaluation.by_class["dark"].metrics["auroc"].value
    pair = frame[(frame["class"] == "bright") & (frame["other"] == "mid") & (frame["metric"] == "accuracy")].iloc[0]
    assert pair["value"] == evaluation.pairs[1].metrics["accuracy"].value
    matrix = evaluation.confusion_dataframe()
    assert matrix.loc["dark", "mid"] == evaluation.confusion[1][2]
    html = evaluation._repr_html_()
    assert "dark against the rest" in html
    assert "sensitivity, bright<" in html
    assert "sensitivity, mid (specificity)<" in html


def test_a_class_without_images_is_undefined_with_the_reason(maker):
    data = maker.classes()
    lines = [line for line in data.read_text().splitlines() if ",mid," not in line]
    data.write_text("\n".join(lines))
    evaluation, _ = evaluate_multiclass(maker.multiclass_run(), data)
    assert evaluation.metrics["macro_auroc"].reason == "the class mid has no images"
    assert evaluation.by_class["mid"].metrics["auroc"].value is None
    assert evaluation.by_class["mid"].sets == {}
    assert json.loads((maker.root / "runs/levels/evaluation/test/evaluation.json").read_text())["counts"]["mid"] == 0


def with_sites(data):
    """Add a column with two sites, by patient, to the CSV file."""
    header, *rows = data.read_text().splitlines()
    data.write_text("\n".join([f"{header},site", *(f"{row},{'AB'[i // 2 % 2]}" for i, row in enumerate(rows))]))
    return data


def test_subgroups_are_evaluated_and_kept_with_the_evaluation(maker):
    data, run = with_sites(maker.classes(count=20)), maker.multiclass_run()
    evaluation, images = evaluate_multiclass(run, data, by=["site"])
    assert [(group.value, group.n) for group in evaluation.subgroups] == [("A", 30), ("B", 30)]
    inside = images[:2] + images[4:6]  # the first patients of site A
    assert {image.patient for image in inside} == {"bright-0-0", "bright-0-2"}
    accuracy = np.mean([image.predicted == image.label for i, image in enumerate(images) if i // 2 % 2 == 0])
    assert evaluation.subgroups[0].metrics["accuracy"].value == pytest.approx(accuracy)
    assert [test.metric for test in evaluation.interactions] == [
        "macro_auroc",
        *(f"sensitivity, {name}" for name in GRAY_CLASSES),
    ]
    assert read_multiclass_evaluation_folder(run / "evaluation" / "test") == (evaluation, images)
    again, _ = evaluate_multiclass(run, data)
    assert (again.subgroups, again.interactions) == (evaluation.subgroups, evaluation.interactions)
    assert evaluate_multiclass(run, data, replace=True)[0].subgroups == ()
    assert "subgroups" in evaluation._repr_html_()


def test_subgroups_are_dropped_if_a_label_changes(maker):
    data, run = with_sites(maker.classes()), maker.multiclass_run()
    evaluate_multiclass(run, data, by=["site"])
    data.write_text(data.read_text().replace("bright-0-0.png,bright", "bright-0-0.png,dark"))
    assert evaluate_multiclass(run, data)[0].subgroups == ()


def test_unknown_columns_are_errors_before_an_image_is_scored(maker):
    scored = []
    with pytest.raises(UnknownNameError, match="has no column 'sxe'"):
        evaluate_multiclass(
            maker.multiclass_run(), maker.classes(), by=["sxe"], progress=lambda *numbers: scored.append(numbers)
        )
    assert scored == []
    assert not (maker.root / "ledger.jsonl").exists()


def test_the_report_has_the_subgroups(maker):
    run = maker.multiclass_run()
    evaluation, _ = evaluate_multiclass(run, with_sites(maker.classes()), by=["site"])
    report = report_multiclass([run])
    assert report.tables["subgroups"].rows[1][:3] == ("levels", "site: B", 18)
    assert report.tables["subgroups"].columns[3:6] == ("Macro AUROC", "Accuracy", "Sensitivity for bright")
    page = report.page()
    for group in evaluation.subgroups:
        for interval in group.metrics.values():
            assert f'<data value="{interval.value}">' in page
    assert evaluation.interactions[1].sentence.replace("'", "&#39;") in page
