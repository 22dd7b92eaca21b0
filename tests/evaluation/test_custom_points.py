"""Custom operating points: names, thresholds counted by hand, and no threshold from evaluated images."""

import numpy as np
import pytest
from sklearn import metrics

from pneumoscope.core.errors import DatasetError, PatientLeakError, ThresholdError, UnknownNameError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.predictions_file import PredictionColumns
from pneumoscope.evaluation.comparison.compare import compare
from pneumoscope.evaluation.custom_points import CustomPoint, canonical_names, parse_custom_point
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.external_predictions import evaluate_predictions
from pneumoscope.runs.evaluations import read_evaluation

OWN = ("0.3", "sens=0.95", "spec=0.9")


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("0.3", CustomPoint("0.3", "probability", 0.3)),
        (" .30 ", CustomPoint("0.3", "probability", 0.3)),
        ("sens=.950", CustomPoint("sens=0.95", "sensitivity", 0.95)),
        ("spec=1", CustomPoint("spec=1", "specificity", 1.0)),
        ("balanced", None),
    ],
)
def test_names_have_the_shortest_form_of_the_number(text, point):
    assert parse_custom_point(text) == point


@pytest.mark.parametrize("text", ["1.3", "0", "1", "sens=95", "spec=", "sens=high", "nan", "f1=0.5", "SENS=95"])
def test_impossible_numbers_are_an_error_with_examples(text):
    with pytest.raises(UsageError, match="operating point") as error:
        parse_custom_point(text)
    assert "sens=0.95" in error.value.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("SENS=0.95", "Did you mean 'sens=0.95'?"),
        ("sensitivity=.9", "Did you mean 'sens=.9'?"),
        ("Specificty=0.9", "Did you mean 'spec=0.9'?"),
        ("BACTERIA=0.9", "Give a name, a probability such as 0.3"),
        ("=0.9", "Give a name, a probability such as 0.3"),
    ],
)
def test_near_misses_of_a_target_are_named(text, hint):
    with pytest.raises(UsageError, match=f"there is no operating point '{text}'") as error:
        parse_custom_point(text)
    assert error.value.hint.startswith(hint)


@pytest.mark.parametrize("text", ["SENS=95", "sensitivity=abc", "Specificty=0", "spec.=nan"])
def test_a_suggestion_that_would_fail_again_is_not_made(text):
    rule = "sensitivity" if text.casefold().startswith("sens") else "specificity"
    with pytest.raises(UsageError) as error:
        parse_custom_point(text)
    assert error.value.message == f"the {rule} of the operating point {text!r} is not a number between 0 and 1"
    assert "Did you mean" not in error.value.hint


def test_each_name_occurs_once():
    assert canonical_names(["half", "0.30", ".3", "half"]) == ("half", "0.3")


@pytest.fixture
def run(maker):
    """A run whose manifest has the validation split, beside the test images of other patients."""
    images = maker.images(split="val", normal=20, pneumonia=24, seed=1)
    maker.images(split="test")
    folder = maker.run()
    (folder / "manifest.csv").write_text(load_manifest(images).to_csv())
    return folder


def scores(maker, split):
    images = load_manifest(maker.root / "images").split(split)
    return np.array([image.positive for image in images]), images


def test_thresholds_are_chosen_on_the_validation_scores_of_the_run(maker, run):
    evaluation, scored = evaluate(run, maker.root / "images", operating_points=OWN)
    validation, _ = evaluate(run, maker.root / "images", split="validation", operating_points=["half"])
    assert validation.n == 44
    assert list(evaluation.operating_points) == list(OWN)
    _, tested = evaluate(run, maker.root / "images", split="validation", operating_points=["half"], replace=True)
    values, labels = np.array([image.score for image in tested]), np.array([i.label == "PNEUMONIA" for i in tested])
    sensitivity, specificity = (evaluation.operating_points[name].threshold for name in OWN[1:])
    assert metrics.recall_score(labels, values >= sensitivity) >= 0.95
    assert metrics.recall_score(labels, values > sensitivity) < 0.95
    assert metrics.recall_score(~labels, values < specificity) >= 0.9
    assert metrics.recall_score(~labels, values < max(values[~labels & (values < specificity)])) < 0.9
    point = evaluation.operating_points["0.3"]
    probabilities, truth = np.array([i.probability for i in scored]), [i.label == "PNEUMONIA" for i in scored]
    assert point.metrics["accuracy"].value == pytest.approx(metrics.accuracy_score(truth, probabilities >= 0.3))
    assert point.threshold_probability == pytest.approx(0.3)
    assert [each.rule for each in evaluation.operating_points.values()] == [
        "fixed probability of 0.3",
        "highest threshold with sensitivity 0.95 on 24 validation images with pneumonia",
        "lowest threshold with specificity 0.9 on 20 validation images without pneumonia",
    ]


def test_custom_points_of_an_earlier_evaluation_keep_their_thresholds(maker, run):
    first, _ = evaluate(run, maker.root / "images", operating_points=["half", "sens=0.95"], prevalence=0.1)
    (run / "manifest.csv").unlink()
    again, _ = evaluate(run, maker.root / "images", operating_points=["rule_in"])
    assert list(again.operating_points) == ["half", "sens=0.95", "rule_in"]
    assert again.operating_points["sens=0.95"] == first.operating_points["sens=0.95"]
    assert again.operating_points["half"].predictive_values.prevalence == 0.1
    assert again.operating_points["rule_in"].predictive_values is None


def test_bundle_needs_validation_images_for_a_target(maker, run, tmp_path):
    bundle, images = maker.bundle(tmp_path / "bundle"), maker.root / "images"
    evaluation, _ = evaluate(bundle, images, operating_points=["0.3"])
    assert list(evaluation.operating_points) == ["0.3"]
    flat = maker.images("flat", split=".", seed=7)
    chosen, _ = evaluate(bundle, images, operating_points=["spec=0.9"], validation_data=flat)
    assert "on 12 validation images without pneumonia" in chosen.operating_points["spec=0.9"].rule
    only_test = maker.images("only-test", seed=8)
    with pytest.raises(DatasetError, match="has 0 NORMAL, 0 PNEUMONIA validation images"):
        evaluate(bundle, images, operating_points=["spec=0.9"], validation_data=only_test)


def test_evaluated_images_patients_and_training_images_choose_no_threshold(maker, run, tmp_path):
    images = maker.root / "images"
    same = maker.images("same", split=".")
    with pytest.raises(ThresholdError, match=r"32 of 32 validation images .* are evaluated images"):
        evaluate(run, images, operating_points=["sens=0.95"], validation_data=same)
    patients = maker.images("patients", split=".", normal=13, pneumonia=21)
    for path in patients.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(PatientLeakError, match="has validation images and evaluated images"):
        evaluate(run, images, operating_points=["sens=0.95"], validation_data=patients)
    _, validation = scores(maker, "validation")
    trained = maker.bundle(tmp_path / "trained", seen={"train": [validation[0].sha256[:16]]})
    with pytest.raises(ThresholdError, match=r"1 of 44 validation images .* were training images"):
        evaluate(trained, images, operating_points=["sens=0.95"], validation_data=images)
    with pytest.raises(ThresholdError, match=r"44 of 44 validation images .* are evaluated images"):
        evaluate(run, images, split="validation", operating_points=["sens=0.95"])


def test_unknown_names_are_an_error_that_names_own_ones(maker, run):
    with pytest.raises(UnknownNameError, match="no operating point 'low'") as error:
        evaluate(run, maker.root / "images", operating_points=["low"])
    assert "or a custom one, such as 0.3, sens=0.95 or spec=0.9" in error.value.hint


def write(file, images, column="split"):
    random = np.random.default_rng(4)
    rows = [f"{image.path},{0.35 + 0.3 * image.positive + 0.3 * random.random()!r},{image.split}" for image in images]
    file.write_text("\n".join(["path,probability,split", *rows]))
    return file


def test_predictions_of_another_tool_have_custom_points(maker, run, tmp_path):
    _, test = scores(maker, "test")
    labels, validation = scores(maker, "validation")
    file = write(tmp_path / "other.csv", [*test, *validation])
    columns = PredictionColumns(split="split")
    evaluation, _ = evaluate_predictions(file, maker.root / "images", columns=columns, operating_points=OWN)
    assert list(evaluation.operating_points) == list(OWN)
    assert evaluation.operating_points["0.3"].threshold == 0.3
    values = np.array([float(line.split(",")[1]) for line in file.read_text().splitlines()[1:]])[len(test) :]
    threshold = evaluation.operating_points["sens=0.95"].threshold
    assert metrics.recall_score(labels, values >= threshold) >= 0.95 > metrics.recall_score(labels, values > threshold)
    alone = write(tmp_path / "alone.csv", test)
    fixed, _ = evaluate_predictions(alone, maker.root / "images", operating_points=["0.3"])
    assert list(fixed.operating_points) == ["0.3"]
    assert "all thresholds are fixed ones" in fixed.remarks[1]
    with pytest.raises(UsageError, match=r"'sens=0.95' is chosen on validation images, and there are none"):
        evaluate_predictions(alone, maker.root / "images", operating_points=["sens=0.95"])


def test_runs_bundles_and_files_are_compared_at_a_custom_point(maker, run, tmp_path):
    images = maker.root / "images"
    evaluate(run, images, operating_points=["0.3", "sens=0.95"])
    other = write(tmp_path / "other.csv", scores(maker, "test")[1])
    comparison = compare([run, maker.bundle(tmp_path / "b", name="b"), other], data=images, operating_point=".30")
    assert comparison.operating_point == "0.3"
    threshold = read_evaluation(run / "evaluation" / "test" / "evaluation.json").operating_points["0.3"]
    assert comparison.runs[0].test["sensitivity"] == threshold.metrics["sensitivity"]
    assert compare([run], operating_point="sens=0.95").operating_point == "sens=0.95"
    with pytest.raises(UnknownNameError, match=r"the evaluation of .* has no operating point 'sens=0\.9'"):
        compare([run], operating_point="sens=0.9")
    for target in (tmp_path / "b", other):
        with pytest.raises(UsageError, match="chosen on validation images") as error:
            compare([target], data=images, operating_point="sens=0.95")
        assert "then compare FOLDER" in error.value.hint


def test_probability_is_the_calibrated_one_if_predictions_are_calibrated(maker, run, tmp_path):
    file = write(tmp_path / "other.csv", [*scores(maker, "test")[1], *scores(maker, "validation")[1]])
    evaluation, scored = evaluate_predictions(
        file,
        maker.root / "images",
        columns=PredictionColumns(split="split"),
        operating_points=["0.3"],
        fit_probabilities=True,
    )
    point = evaluation.operating_points["0.3"]
    assert point.threshold != 0.3
    assert point.threshold_probability == pytest.approx(0.3)
    labels = [image.label == "PNEUMONIA" for image in scored]
    decisions = [image.probability >= 0.3 for image in scored]
    tn, fp, fn, tp = metrics.confusion_matrix(labels, decisions).ravel()
    counts = point.confusion
    assert (counts.tn, counts.fp, counts.fn, counts.tp) == (tn, fp, fn, tp)
