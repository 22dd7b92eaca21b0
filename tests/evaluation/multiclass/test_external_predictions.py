"""Predictions of other tools for several classes, compared with scikit-learn and with a bundle of the same probabilities."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics
from tests.conftest import GRAY_CLASSES

from pneumoscope.core.calibration_record import CalibrationRecord
from pneumoscope.core.errors import (
    DatasetError,
    LayoutError,
    PatientLeakError,
    RunError,
    ThresholdError,
    UsageError,
)
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.predictions_file import PredictionColumns
from pneumoscope.evaluation.external_predictions import evaluate_predictions
from pneumoscope.evaluation.multiclass.compare import compare_multiclass
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.evaluation.multiclass.external_predictions import evaluate_multiclass_predictions
from pneumoscope.reporting.multiclass_report import report_multiclass
from pneumoscope.runs.multiclass_evaluations import read_multiclass_evaluation_folder
from pneumoscope.statistics.temperature import fit_temperature


def draw(images, seed=0, gain=1.5):
    """Return logits that are right most of the time, shape (n, 3)."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(images), 3))
    logits[np.arange(len(images)), [GRAY_CLASSES.index(image.label) for image in images]] += gain
    return logits


def write(file, images, values, prefix="probability_", classes=GRAY_CLASSES):
    lines = [",".join(["path", *(prefix + name for name in classes)])]
    lines += [
        ",".join([image.path, *(repr(float(value)) for value in row)])
        for image, row in zip(images, values, strict=True)
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def data(maker):
    return maker.classes(count=20)


@pytest.fixture
def images(data):
    return load_manifest(data).images


@pytest.fixture
def validation(maker):
    """Validation images of other patients, and their CSV file."""
    data = maker.classes("validation", count=40, seed=5, split="validation")
    return data, load_manifest(data).images


def ledger(maker):
    file = maker.root / "ledger.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def test_metrics_agree_with_scikit_learn(maker, data, images):
    p = softmax(draw(images), axis=1)
    evaluation, scored = evaluate_multiclass_predictions(write(maker.root / "other.csv", images, p), data)
    y = [GRAY_CLASSES.index(image.label) for image in images]
    assert np.array([image.probabilities for image in scored]) == pytest.approx(p)
    assert evaluation.metrics["accuracy"].value == metrics.accuracy_score(y, p.argmax(1))
    assert evaluation.metrics["macro_auroc"].value == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovr"))
    assert evaluation.metrics["log_loss"].value == pytest.approx(metrics.log_loss(y, p))
    assert np.array(evaluation.confusion).tolist() == metrics.confusion_matrix(y, p.argmax(1)).tolist()
    assert (evaluation.name, evaluation.n, evaluation.bundle_sha256, evaluation.rejected) == ("other", 60, "", None)
    assert evaluation.test_evaluation == 1
    (line,) = ledger(maker)
    assert line["predictions_sha256"] == evaluation.predictions_sha256
    assert evaluation.coverage is None
    assert "There are no predictions for validation images, and so there are no prediction sets." in evaluation.remarks
    assert "Probabilities are as given, without calibration." in evaluation.remarks


def test_predictions_of_a_bundle_have_the_metrics_of_the_bundle(maker, data):
    own, scored = evaluate_multiclass(maker.multiclass_bundle(maker.root / "bundle"), data)
    p = np.array([image.probabilities for image in scored])
    for file, values, prefix in (("p.csv", p, "probability_"), ("l.csv", 3 + np.log(p), "logit_")):
        other, _ = evaluate_multiclass_predictions(write(maker.root / file, scored, values, prefix), data)
        for name, interval in own.metrics.items():
            assert other.metrics[name].value == pytest.approx(interval.value)
            assert other.metrics[name].low == pytest.approx(interval.low)
        assert (other.confusion, other.images_sha256, other.patients) == (
            own.confusion,
            own.images_sha256,
            own.patients,
        )


def test_columns_are_mapped_to_classes_of_another_order(maker, data, images):
    p = softmax(draw(images), axis=1)
    file = write(maker.root / "other.csv", images, p[:, [2, 0, 1]], prefix="", classes=("M", "B", "D"))
    columns = PredictionColumns(probability={"dark": "D", "mid": "M", "bright": "B"})
    evaluation, scored = evaluate_multiclass_predictions(file, data, columns=columns)
    assert evaluation.classes == GRAY_CLASSES
    assert np.array([image.probabilities for image in scored]) == pytest.approx(p)
    ordered, _ = evaluate_multiclass_predictions(file, data, columns=columns, classes=("mid", "dark", "bright"))
    assert ordered.classes == ("mid", "dark", "bright")
    assert ordered.metrics["macro_auroc"].value == pytest.approx(evaluation.metrics["macro_auroc"].value)


def test_prediction_sets_are_fitted_on_validation_predictions(maker, data, images, validation):
    validation_data, others = validation
    logits = draw(others, seed=1)
    second = write(maker.root / "validation.csv", others, softmax(logits, axis=1))
    p, y = softmax(logits, axis=1), np.array([GRAY_CLASSES.index(image.label) for image in others])
    # The images have the probabilities of the 20 worst validation images of their class, so that some are at a threshold.
    worst = np.concatenate([np.flatnonzero(y == k)[np.argsort(p[y == k, k])[:20]] for k in range(3)])
    file = write(maker.root / "other.csv", images, p[worst])
    evaluation, scored = evaluate_multiclass_predictions(file, data, validation=second, validation_data=validation_data)
    assert evaluation.coverage == 0.95
    # Of the 40 images of a class, floor(0.05 x 41) = 2 may be left out: the second lowest probability is the threshold.
    thresholds = [np.sort(p[y == k, k])[1] for k in range(3)]
    inside = np.array([image.probabilities for image in scored]) >= np.array(thresholds) * (1 - 1e-12)
    expected = ["|".join(name for name, each in zip(GRAY_CLASSES, row, strict=True) if each) for row in inside]
    assert [image.prediction_set for image in scored] == expected
    assert evaluation.sets["coverage"].value == 57 / 60  # without the worst of each class


def test_one_temperature_is_fitted_on_the_validation_images(maker, data, images, validation):
    validation_data, others = validation
    logits = draw(others, seed=1)
    second = write(maker.root / "validation.csv", others, 5 * logits, "logit_")
    file = write(maker.root / "other.csv", images, 5 * draw(images), "logit_")
    options = {"validation": second, "validation_data": validation_data}
    given, _ = evaluate_multiclass_predictions(file, data, **options)
    evaluation, scored = evaluate_multiclass_predictions(file, data, **options, fit_probabilities=True)
    p = np.array([image.probabilities for image in scored])
    targets = [GRAY_CLASSES.index(image.label) for image in others]
    temperatures = np.diff(5 * draw(images), axis=1) / np.diff(np.log(p), axis=1)
    assert temperatures == pytest.approx(fit_temperature(5 * logits, targets), rel=1e-5)
    assert evaluation.metrics["log_loss"].value < given.metrics["log_loss"].value
    assert evaluation.confusion == given.confusion
    assert "Probabilities are calibrated on 120 validation images (temperature scaling)." in evaluation.remarks
    assert (evaluation.calibration.method, evaluation.calibration.n) == ("temperature", 120)
    assert temperatures == pytest.approx(evaluation.calibration.parameters["temperature"], rel=1e-5)
    assert given.calibration == CalibrationRecord("none")


@pytest.mark.parametrize(("gain", "bound"), [(-1, "upper bound (1000)"), (1e-6, "lower bound (0.001)")])
def test_a_temperature_at_its_bound_is_remarked_on(maker, data, images, validation, gain, bound):
    second, others = validation
    one_hot = [[gain * (name == image.label) for name in GRAY_CLASSES] for image in others]
    evaluation, _ = evaluate_multiclass_predictions(
        write(maker.root / "other.csv", images, draw(images), prefix="logit_"),
        data,
        validation=write(maker.root / "validation.csv", others, one_hot, prefix="logit_"),
        validation_data=second,
        fit_probabilities=True,
    )
    assert sum(bound in remark for remark in evaluation.remarks) == 1


def test_validation_rows_can_be_in_the_same_file(maker, data, images):
    lines = data.read_text().splitlines()
    # Every second patient is one of validation.
    rows = [line if i // 2 % 2 else line.replace(",test", ",validation") for i, line in enumerate(lines[1:])]
    data.write_text("\n".join([lines[0], *rows]))
    p = softmax(draw(images), axis=1)
    file = write(maker.root / "other.csv", images, p)
    header, *values = file.read_text().splitlines()
    splits = [row.rpartition(",")[2] for row in rows]
    file.write_text("\n".join([f"{header},fold", *(f"{v},{s}" for v, s in zip(values, splits, strict=True))]))
    evaluation, _ = evaluate_multiclass_predictions(file, data, columns=PredictionColumns(split="fold"))
    assert evaluation.n == 30
    few = "a coverage of 95% needs 19 validation images of each class; there are 10 of bright, 10 of dark, 10 of mid"
    assert f"There are no prediction sets: {few}." in evaluation.remarks


def test_validation_images_must_be_others(maker, data, images, validation):
    file = write(maker.root / "other.csv", images, softmax(draw(images), axis=1))
    with pytest.raises(ThresholdError, match="are test images in the data"):
        evaluate_multiclass_predictions(file, data, validation=file)
    validation_data, others = validation
    some = [image for image in others if image.label != "mid"]
    second = write(maker.root / "validation.csv", some, softmax(draw(some), axis=1))
    with pytest.raises(
        DatasetError, match="0 mid validation images; calibration and prediction sets need images of each"
    ):
        evaluate_multiclass_predictions(file, data, validation=second, validation_data=validation_data)
    leaking = validation_data.read_text().replace(",bright-5-0,", ",bright-0-0,")
    validation_data.write_text(leaking)
    second = write(maker.root / "validation.csv", others, softmax(draw(others), axis=1))
    with pytest.raises(PatientLeakError, match="patient 'bright-0-0' has validation images and evaluated images"):
        evaluate_multiclass_predictions(file, data, validation=second, validation_data=validation_data)
    with pytest.raises(UsageError, match="calibrated on validation predictions only"):
        evaluate_multiclass_predictions(file, data, fit_probabilities=True)
    assert ledger(maker) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "has no prediction for 1 of 60 test images"),
        (lambda lines: [*lines, lines[-1]], "lists 'mid-0-19.png' in line 61 and in line 62"),
        (lambda lines: [line.replace("dark-0-3", "dark-0-99") for line in lines], "matches no image"),
        (
            lambda lines: [line.replace("_mid", "_middle") for line in lines],
            "the label 'mid' is not one of the classes",
        ),
    ],
)
def test_rows_and_images_must_match(maker, data, images, change, message):
    file = write(maker.root / "other.csv", images, softmax(draw(images), axis=1))
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(DatasetError, match=message):
        evaluate_multiclass_predictions(file, data)
    assert ledger(maker) == []


def test_classes_in_another_case_are_those_of_the_model_and_of_the_data(maker, data, images, tmp_path):
    p = softmax(draw(images), axis=1)
    upper = [name.upper() for name in GRAY_CLASSES]
    columns = PredictionColumns(probability={name: f"p_{name}" for name in upper})
    file = write(maker.root / "other.csv", images, p, prefix="p_", classes=upper)
    bundle = maker.multiclass_bundle(maker.root / "model", name="model")
    comparison = compare_multiclass([bundle, file], data=data, columns=columns, out=tmp_path / "out")
    assert comparison.classes == GRAY_CLASSES
    notes = []
    out = maker.root / "results"
    evaluation, _ = evaluate_multiclass_predictions(file, data, columns=columns, note=notes.append, out=out)
    assert evaluation.classes == tuple(upper)
    with pytest.raises(RunError, match="The names differ in case only: evaluate one of the two again"):
        compare_multiclass([bundle, out], data=data)
    assert [f"the label '{name}' is the class '{name.upper()}'" in notes for name in GRAY_CLASSES] == [True] * 3


def test_remarks_state_what_is_suspicious(maker, data, images):
    p = softmax(draw(images, gain=6), axis=1)
    rounded = np.round(p, 5)
    rounded[0] = [0.5, 0.25, 0.26]
    evaluation, scored = evaluate_multiclass_predictions(write(maker.root / "a.csv", images, rounded), data)
    assert (
        "The sum of the probabilities of 1 image differs from 1 by up to 0.01; they were divided by it."
        in evaluation.remarks
    )
    assert sum(scored[0].probabilities) == pytest.approx(1)
    swapped = write(maker.root / "b.csv", images, p[:, [1, 0, 2]])
    remarks = evaluate_multiclass_predictions(swapped, data)[0].remarks
    assert "The whole interval of the AUROC of dark is below 0.5: its column may be that of another class." in remarks
    as_logits = write(maker.root / "c.csv", images, p, "logit_")
    assert (
        "All logits are within 0 to 1 and sum to 1: if they are probabilities, give --probability-column instead."
        in evaluate_multiclass_predictions(as_logits, data)[0].remarks
    )
    certain = np.eye(3)[p.argmax(1)]
    certain[0] = [0, 1, 0]
    found = evaluate_multiclass_predictions(write(maker.root / "d.csv", images, certain), data)[0]
    assert any("a probability of exactly 0 for the true class" in remark for remark in found.remarks)


def test_remarks_are_on_evaluated_images_only(maker, data, images):
    p = softmax(draw(images), axis=1)
    p[0] = [0.5, 0.25, 0.26]
    file = write(maker.root / "a.csv", images, p)
    lines = data.read_text().splitlines()
    data.write_text(
        "\n".join(line.replace(",test", ",train") if line.startswith(f"{images[0].path},") else line for line in lines)
    )
    evaluation, _ = evaluate_multiclass_predictions(file, data)
    assert evaluation.n == len(images) - 1
    assert not any("differs from 1" in remark for remark in evaluation.remarks)


def test_files_are_kept_apart_and_reported(maker, data, images):
    out = maker.root / "out"
    first = write(maker.root / "a.csv", images, softmax(draw(images), axis=1))
    second = write(maker.root / "b.csv", images, softmax(draw(images, seed=2), axis=1))
    evaluation, scored = evaluate_multiclass_predictions(first, data, out=out)
    assert read_multiclass_evaluation_folder(out) == (evaluation, scored)
    with pytest.raises(UsageError, match="an evaluation of another model"):
        evaluate_multiclass_predictions(second, data, out=out)
    page = report_multiclass([out]).page()
    assert "It is unknown whether the model was trained or tuned on these images or patients." in page
    assert evaluation.predictions_sha256[:16] in page


def test_files_runs_and_bundles_are_compared(maker, data, images, tmp_path):
    run = maker.multiclass_run("run")
    own, _ = evaluate_multiclass(run, data)
    bundle = maker.multiclass_bundle(maker.root / "model", name="model")
    a = write(
        maker.root / "a.csv", images, softmax(draw(images), axis=1)[:, [2, 0, 1]], classes=("mid", "bright", "dark")
    )
    b = write(maker.root / "b.csv", images, softmax(draw(images, seed=2), axis=1))
    comparison = compare_multiclass([a, run, bundle, b], data=data, out=tmp_path / "out")
    assert [each.name for each in comparison.runs] == ["a", "run", "model", "b"]
    assert comparison.runs[1].metrics == own.metrics
    y = [GRAY_CLASSES.index(image.label) for image in images]
    p = [softmax(draw(images, seed=seed), axis=1) for seed in (0, 2)]
    pair = next(each for each in comparison.pairs if (each.a, each.b, each.metric) == ("a", "b", "macro_auroc"))
    expected = [metrics.roc_auc_score(y, each, multi_class="ovr") for each in p]
    assert pair.difference.value == pytest.approx(expected[0] - expected[1])
    assert len(ledger(maker)) == 4
    assert (tmp_path / "out" / "evaluations" / "a" / "evaluation.json").is_file()


def test_nothing_is_evaluated_before_all_files_are_checked(maker, data, images, tmp_path):
    bundle = maker.multiclass_bundle(maker.root / "model", name="model")
    a = write(maker.root / "a.csv", images, softmax(draw(images), axis=1))
    b = write(maker.root / "b.csv", images[:-1], softmax(draw(images), axis=1)[:-1])
    other = write(maker.root / "c.csv", images, softmax(draw(images), axis=1), classes=("bright", "dark", "gray"))
    with pytest.raises(DatasetError, match="no prediction for 1 of 60"):
        compare_multiclass([bundle, a, b], data=data, out=tmp_path / "out")
    with pytest.raises(RunError, match="run 'c' has the classes bright, dark, gray, and 'model' has bright, dark, mid"):
        compare_multiclass([bundle, other], data=data)
    with pytest.raises(UsageError, match="--data"):
        compare_multiclass([a])
    assert ledger(maker) == []


def test_a_missing_column_of_a_class_is_named(maker, data, images):
    p = softmax(draw(images), axis=1)
    file = write(maker.root / "two.csv", images, p[:, :2], classes=("bright", "dark"))
    missing = (
        r"two.csv has no column 'probability_mid' for the class 'mid' \(columns of classes: probability_bright, prob"
    )
    with pytest.raises(DatasetError, match=missing):
        evaluate_multiclass_predictions(file, data)
    other = write(maker.root / "all.csv", images, p)
    for targets in ([file, other], [other, file], [maker.multiclass_bundle(maker.root / "model"), file]):
        with pytest.raises(DatasetError, match=missing):
            compare_multiclass(targets, data=data)
    # Probabilities that sum to 1 miss no column: the labels differ.
    file = write(maker.root / "sums.csv", images, p[:, :2] / p[:, :2].sum(1, keepdims=True), classes=("bright", "dark"))
    with pytest.raises(DatasetError, match="the label 'mid' is not one of the classes bright, dark") as caught:
        evaluate_multiclass_predictions(file, data)
    assert caught.value.hint.endswith(f"; or add a column probability_mid to {file}")
    assert ledger(maker) == []


def test_files_with_different_columns_are_explained(maker, data, images):
    p = softmax(draw(images), axis=1)
    a = write(maker.root / "a.csv", images, p)
    b = write(maker.root / "b.csv", images, p, prefix="p_")
    with pytest.raises(LayoutError, match=r"b.csv has no columns of several classes") as caught:
        compare_multiclass([a, b], data=data)
    assert "only b.csv has p_bright, p_dark, p_mid, and only a.csv has probability_bright" in caught.value.hint
    assert f"--predictions {b} --data {data} --probability-column CLASS=COLUMN --out FOLDER" in caught.value.hint
    # The way that the hint states.
    columns = PredictionColumns(probability={name: f"p_{name}" for name in GRAY_CLASSES})
    evaluate_multiclass_predictions(b, data, columns=columns, out=maker.root / "results")
    assert len(compare_multiclass([a, maker.root / "results"], data=data).runs) == 2


def test_files_are_compared_in_the_order_of_the_classes_of_a_model(maker, data, images):
    bundle = maker.multiclass_bundle(maker.root / "model")
    card = json.loads((bundle / "card.json").read_text())
    card["classes"] = ["mid", "dark", "bright"]
    (bundle / "card.json").write_text(json.dumps(card))
    file = write(maker.root / "a.csv", images, softmax(draw(images), axis=1))
    comparison = compare_multiclass([file, bundle], data=data)
    assert comparison.classes == ("mid", "dark", "bright")
    y = [GRAY_CLASSES.index(image.label) for image in images]
    expected = metrics.accuracy_score(y, draw(images).argmax(1))
    assert comparison.runs[0].metrics["accuracy"].value == pytest.approx(expected)


def test_binary_evaluation_of_several_classes_names_the_columns_of_classes(data, images, maker):
    file = write(maker.root / "own.csv", images, softmax(draw(images), axis=1), prefix="")
    with pytest.raises(DatasetError) as caught:
        evaluate_predictions(file, data)
    assert "the classes are" in str(caught.value)
    assert "probability_CLASS, or name them with --probability-column CLASS=NAME" in caught.value.hint
