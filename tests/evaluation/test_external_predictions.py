"""Predictions of other tools, compared with scikit-learn and with a bundle that gives the same scores."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from pneumoscope.core.calibration_record import CalibrationRecord
from pneumoscope.core.errors import DatasetError, PatientLeakError, ThresholdError, UnknownNameError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.predictions_file import PredictionColumns
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.external_predictions import evaluate_predictions
from pneumoscope.runs.evaluations import read_evaluation, read_predictions


def write(file, images, values, column="probability", names=None):
    names = names or [image.path for image in images]
    lines = [f"path,{column}", *(f"{name},{float(value)!r}" for name, value in zip(names, values, strict=True))]
    file.write_text("\n".join(lines) + "\n")
    return file


def draw(images, seed=0):
    """Return logits that rank images imperfectly, as float64."""
    random = np.random.default_rng(seed)
    return np.array([random.normal(1.0 if image.positive else -1.0, 1.5) for image in images])


@pytest.fixture
def data(maker):
    """Test images, and validation images of other patients in the split `val`."""
    maker.images(normal=30, pneumonia=40)
    return maker.images(split="val", normal=20, pneumonia=24, seed=1)


def split(data, name):
    return load_manifest(data).split(name)


def ledger():
    return [json.loads(line) for line in Path(os.environ["PNEUMOSCOPE_LEDGER"]).read_text().splitlines()]


def test_metrics_agree_with_scikit_learn(data, tmp_path):
    images = split(data, "test")
    probabilities = expit(draw(images))
    evaluation, scored = evaluate_predictions(write(tmp_path / "other.csv", images, probabilities), data)
    labels = [image.positive for image in images]
    assert [image.probability for image in scored] == probabilities.tolist()
    assert evaluation.metrics["auroc"].value == pytest.approx(metrics.roc_auc_score(labels, probabilities))
    assert evaluation.metrics["auprc"].value == pytest.approx(metrics.average_precision_score(labels, probabilities))
    assert evaluation.metrics["brier"].value == pytest.approx(metrics.brier_score_loss(labels, probabilities))
    half = evaluation.operating_points["half"]
    tn, fp, fn, tp = metrics.confusion_matrix(labels, probabilities >= 0.5).ravel()
    assert (half.confusion.tn, half.confusion.fp, half.confusion.fn, half.confusion.tp) == (tn, fp, fn, tp)
    assert (evaluation.name, evaluation.n, evaluation.bundle_sha256) == ("other", 70, "")
    assert len(evaluation.predictions_sha256) == 64


def test_predictions_of_a_bundle_have_the_metrics_of_the_bundle(maker, tmp_path):
    images = maker.images()
    own, scored = evaluate(maker.bundle(tmp_path / "bundle"), images, operating_points=["half"])
    file = write(tmp_path / "logits.csv", scored, [image.logit for image in scored], "logit")
    other, _ = evaluate_predictions(file, images)
    assert other.operating_points["half"].metrics == own.operating_points["half"].metrics
    assert other.operating_points["half"].by_etiology == own.operating_points["half"].by_etiology
    assert (other.metrics["auroc"], other.metrics["auprc"]) == (own.metrics["auroc"], own.metrics["auprc"])
    assert other.auroc_by_etiology == own.auroc_by_etiology
    assert (other.images_sha256, other.patients, other.counts) == (own.images_sha256, own.patients, own.counts)


def test_without_validation_predictions_only_the_fixed_threshold_is_evaluated(data, tmp_path):
    images = split(data, "test")
    file = write(tmp_path / "other.csv", images, expit(draw(images)))
    evaluation, _ = evaluate_predictions(file, data)
    assert list(evaluation.operating_points) == ["half"]
    assert evaluation.operating_points["half"].rule == "fixed score of 0.5"
    assert evaluation.operating_points["half"].threshold_text() == "probability 0.5"
    assert any("the only threshold is the fixed one" in remark for remark in evaluation.remarks)
    assert evaluation.remarks[0] == (
        "It is unknown whether the model was trained or tuned on these images or patients."
    )
    assert evaluation.notice.endswith("Its training population is unknown.")
    with pytest.raises(UsageError, match="'balanced' is chosen on validation images, and there are no predictions"):
        evaluate_predictions(file, data, operating_points=["balanced"])
    with pytest.raises(UnknownNameError, match="no operating point 'hlaf'"):
        evaluate_predictions(file, data, operating_points=["hlaf"])


def test_thresholds_are_chosen_on_validation_predictions(data, tmp_path):
    test, validation = split(data, "test"), split(data, "validation")
    scores, values = expit(draw(test)), expit(draw(validation, seed=1))
    evaluation, _ = evaluate_predictions(
        write(tmp_path / "other.csv", test, scores), data, validation=write(tmp_path / "val.csv", validation, values)
    )
    labels = np.array([image.positive for image in validation])
    threshold = evaluation.operating_points["balanced"].threshold
    false_positive_rate, sensitivity, _ = metrics.roc_curve(labels, values)
    youden = metrics.balanced_accuracy_score(labels, values >= threshold) * 2 - 1
    assert youden == pytest.approx((sensitivity - false_positive_rate).max())
    assert evaluation.operating_points["rule_out"].threshold == values[labels].min()
    assert (values[~labels] >= evaluation.operating_points["rule_in"].threshold).sum() == 0
    assert "44 validation images" in evaluation.operating_points["balanced"].rule
    decisions = scores >= threshold
    result = evaluation.operating_points["balanced"]
    assert result.metrics["accuracy"].value == pytest.approx(np.mean(decisions == [image.positive for image in test]))
    assert result.threshold_probability == threshold
    assert result.uncertainty_band is not None
    assert not any("only threshold" in remark for remark in evaluation.remarks)


def test_split_column_and_second_file_choose_the_same_thresholds(data, tmp_path):
    test, validation = split(data, "test"), split(data, "validation")
    scores, values = expit(draw(test)), expit(draw(validation, seed=1))
    second, _ = evaluate_predictions(
        write(tmp_path / "other.csv", test, scores), data, validation=write(tmp_path / "val.csv", validation, values)
    )
    both = tmp_path / "both.csv"
    rows = [(image, value, "test") for image, value in zip(test, scores, strict=True)]
    rows += [(image, value, "val") for image, value in zip(validation, values, strict=True)]
    lines = ["path,probability,part", *(f"{image.path},{float(value)!r},{part}" for image, value, part in rows)]
    both.write_text("\n".join(lines))
    first, _ = evaluate_predictions(both, data, columns=PredictionColumns(split="part"))
    assert first.operating_points == second.operating_points
    both.write_text("\n".join(lines).replace(",val", ",test"))
    with pytest.raises(DatasetError, match="is a test image, and in the data a validation image"):
        evaluate_predictions(both, data, columns=PredictionColumns(split="part"))


def test_validation_images_can_be_those_of_other_data(maker, tmp_path):
    images, other = maker.images(), maker.images("north", split=".", seed=3)
    test, validation = split(images, "test"), load_manifest(other).images
    file = write(tmp_path / "other.csv", test, expit(draw(test)))
    values = expit(draw(validation))
    evaluation, _ = evaluate_predictions(
        file, images, validation=write(tmp_path / "val.csv", validation, values), validation_data=other
    )
    positive = np.array([image.positive for image in validation])
    assert evaluation.operating_points["rule_out"].threshold == values[positive].min()


def test_logits_give_the_results_of_their_probabilities(data, tmp_path):
    test, validation = split(data, "test"), split(data, "validation")
    logits, others = draw(test), draw(validation, seed=1)
    results = []
    for column, transform in (("logit", lambda x: x), ("probability", expit)):
        file = write(tmp_path / "other.csv", test, transform(logits), column)
        second = write(tmp_path / "val.csv", validation, transform(others), column)
        results.append(evaluate_predictions(file, data, validation=second)[0])
    for a, b in zip(*(result.operating_points.values() for result in results), strict=True):
        assert a.metrics == b.metrics
        assert a.threshold == pytest.approx(b.threshold)
    assert results[0].metrics["brier"].value == pytest.approx(results[1].metrics["brier"].value)
    assert results[0].metrics["auroc"] == results[1].metrics["auroc"]


def test_probabilities_of_0_and_1_keep_their_rank(data, tmp_path):
    images = split(data, "test")
    values = np.clip(expit(draw(images) * 3).round(2), 0, 1)
    values[:3] = [0, 1, np.nextafter(1, 0)]
    evaluation, scored = evaluate_predictions(write(tmp_path / "other.csv", images, values), data)
    assert evaluation.metrics["auroc"].value == pytest.approx(
        metrics.roc_auc_score([image.positive for image in images], values)
    )
    assert all(np.isfinite(image.logit) for image in scored)
    assert scored[0].logit < logit(np.nextafter(0, 1))
    assert scored[1].logit > scored[2].logit


def test_calibration_is_fitted_on_validation_predictions(data, tmp_path):
    test, validation = split(data, "test"), split(data, "validation")
    logits, others = 4 * draw(test) + 2, 4 * draw(validation, seed=1) + 2
    file = write(tmp_path / "other.csv", test, logits, "logit")
    second = write(tmp_path / "val.csv", validation, others, "logit")
    evaluation, scored = evaluate_predictions(file, data, validation=second, fit_probabilities=True)
    # Platt's smoothed targets, as weighted copies of each image with both labels.
    labels = np.array([image.positive for image in validation])
    n = labels.sum(), (~labels).sum()
    target = np.where(labels, (n[0] + 1) / (n[0] + 2), 1 / (n[1] + 2))
    twice = np.r_[others, others][:, None]
    model = LogisticRegression(C=1e9, tol=1e-8, max_iter=1000).fit(
        twice, np.r_[np.ones(len(labels)), np.zeros(len(labels))], np.r_[target, 1 - target]
    )
    expected = model.predict_proba(logits[:, None])[:, 1]
    assert [image.probability for image in scored] == pytest.approx(expected, abs=1e-4)
    assert [image.score for image in scored] == pytest.approx(expit(logits))
    assert any("calibrated on 44 validation images" in remark for remark in evaluation.remarks)
    slope, intercept = model.coef_[0, 0], model.intercept_[0]
    assert (evaluation.calibration.method, evaluation.calibration.n) == ("platt", 44)
    assert evaluation.calibration.parameters == pytest.approx({"slope": slope, "intercept": intercept}, abs=1e-3)
    given, _ = evaluate_predictions(file, data, validation=second)
    assert given.calibration == CalibrationRecord("none")
    half = evaluation.operating_points["half"]
    assert half.threshold_probability == pytest.approx(model.predict_proba([[0.0]])[0, 1], abs=1e-4)
    with pytest.raises(UsageError, match="calibrated on validation predictions only"):
        evaluate_predictions(file, data, fit_probabilities=True)


def test_one_rounded_probability_does_not_determine_the_calibration(maker, tmp_path):
    maker.images(normal=10, pneumonia=10)
    data = maker.images(split="val", normal=100, pneumonia=100, seed=1)
    test, validation = split(data, "test"), split(data, "validation")
    values = expit(draw(validation, seed=1))
    labels = np.array([image.positive for image in validation])
    values[np.flatnonzero(labels)[0]] = 0.0
    file = write(tmp_path / "other.csv", test, [0.0, 1.0, *expit(draw(test[2:]))])
    second = write(tmp_path / "val.csv", validation, values)
    _, scored = evaluate_predictions(file, data, validation=second, fit_probabilities=True)
    # The same fit with logits of at most 40, by another library, with Platt's smoothed targets.
    limited = np.clip(logit(values), -40, 40)
    n = labels.sum(), (~labels).sum()
    target = np.where(labels, (n[0] + 1) / (n[0] + 2), 1 / (n[1] + 2))
    model = LogisticRegression(C=1e9, tol=1e-8, max_iter=1000).fit(
        np.r_[limited, limited][:, None], np.r_[np.ones(200), np.zeros(200)], np.r_[target, 1 - target]
    )
    given = np.clip(logit([image.score for image in scored]), -40, 40)
    expected = model.predict_proba(given[:, None])[:, 1]
    assert [image.probability for image in scored] == pytest.approx(expected, abs=1e-4)
    assert scored[0].logit < -700  # the ranking keeps the logits


def test_thresholds_from_training_images_are_a_remark(maker, tmp_path):
    maker.images()
    maker.images(split="train", seed=1, normal=3, pneumonia=4)
    data = maker.images(split="val", seed=2, normal=5, pneumonia=6)
    test, chosen = split(data, "test"), [*split(data, "train"), *split(data, "validation")]
    file = write(tmp_path / "other.csv", test, expit(draw(test)))
    remark = "7 of the 18 images that chose the thresholds are training images in the data."
    second = write(tmp_path / "val.csv", chosen, expit(draw(chosen)))
    evaluation, _ = evaluate_predictions(file, data, validation=second)
    assert remark in evaluation.remarks
    second = write(tmp_path / "val.csv", chosen[7:], expit(draw(chosen[7:])))
    evaluation, _ = evaluate_predictions(file, data, validation=second)
    assert not any("training images" in remark for remark in evaluation.remarks)


def test_scores_that_seem_to_be_of_another_kind_are_a_remark(data, tmp_path):
    images = split(data, "test")
    logits = draw(images)

    def remarks(values, column):
        file = write(tmp_path / "other.csv", images, values, column=column)
        return " ".join(evaluate_predictions(file, data)[0].remarks)

    assert "All logits are within 0 to 1" in remarks(expit(logits), "logit")
    assert "All logits" not in remarks(logits, "logit") + remarks(expit(logits), "probability")
    assert "the scores may be those of the other class" in remarks(expit(-logits), "probability")
    assert "other class" not in remarks(expit(logits), "probability")


def test_evaluation_with_other_thresholds_is_not_replaced(data, tmp_path):
    test, validation = split(data, "test"), split(data, "validation")
    file = write(tmp_path / "other.csv", test, expit(draw(test)))
    second = write(tmp_path / "val.csv", validation, expit(draw(validation, seed=1)))
    evaluate_predictions(file, data, validation=second, out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"has an evaluation with other thresholds \(other, 70 images") as error:
        evaluate_predictions(file, data, out=tmp_path / "out")
    assert error.value.hint == "Keep both with another --out, or replace it with --force"
    write(second, validation, expit(draw(validation, seed=2)))
    with pytest.raises(UsageError, match="with other thresholds"):
        evaluate_predictions(file, data, validation=second, out=tmp_path / "out")


def test_evaluation_is_recorded_in_the_ledger_and_written(data, tmp_path):
    images = split(data, "test")
    file = write(tmp_path / "other.csv", images, expit(draw(images)))
    evaluation, scored = evaluate_predictions(file, data, out=tmp_path / "out", name="DenseNet")
    (line,) = ledger()
    assert (line["name"], line["split"], line["n"]) == ("DenseNet", "test", 70)
    assert line["predictions_sha256"] == evaluation.predictions_sha256
    assert line["metrics"]["auroc"] == evaluation.metrics["auroc"].value
    assert evaluation.test_evaluation == 1
    assert read_evaluation(tmp_path / "out" / "evaluation.json") == evaluation
    assert read_predictions(tmp_path / "out" / "predictions.csv") == scored
    again, _ = evaluate_predictions(file, data, out=tmp_path / "out", name="DenseNet")
    assert again.test_evaluation == 2
    write(file, images, expit(draw(images, seed=9)))
    with pytest.raises(UsageError, match="has an evaluation of another model"):
        evaluate_predictions(file, data, out=tmp_path / "out")


def test_validation_split_is_not_recorded(data, tmp_path):
    rows = [f"{image.path},{image.label},{image.patient},{image.split},{image.sha256}" for image in load_manifest(data)]
    manifest = data / "images.csv"
    manifest.write_text("\n".join(["path,label,patient,split,sha256", *rows]))
    images = split(data, "validation")
    evaluation, _ = evaluate_predictions(
        write(tmp_path / "v.csv", images, expit(draw(images))), manifest, split="validation"
    )
    assert (evaluation.n, evaluation.test_evaluation) == (44, None)
    assert not Path(os.environ["PNEUMOSCOPE_LEDGER"]).exists()


def test_missing_predictions_are_counted_and_named(data, tmp_path):
    images = split(data, "test")
    with pytest.raises(DatasetError, match=rf"has no prediction for 2 of 70 test images: '{images[0].path}', '"):
        evaluate_predictions(write(tmp_path / "other.csv", images[2:], expit(draw(images[2:]))), data)
    assert not Path(os.environ["PNEUMOSCOPE_LEDGER"]).exists()


def test_rows_of_other_splits_are_left_out_with_a_note(data, tmp_path):
    images = load_manifest(data).images
    notes = []
    file = write(tmp_path / "other.csv", images, expit(draw(images)))
    evaluation, _ = evaluate_predictions(file, data, note=notes.append)
    assert evaluation.n == 70
    assert notes == [f"44 rows of {str(file)!r} with images of other splits are left out"]


def test_one_label_leaves_metrics_undefined_and_thresholds_impossible(maker, tmp_path):
    images = maker.images(normal=0)
    test = split(images, "test")
    file = write(tmp_path / "other.csv", test, expit(draw(test)))
    evaluation, _ = evaluate_predictions(file, images)
    assert evaluation.metrics["auroc"].reason == "there is no NORMAL image"
    other = maker.images("north", split=".", pneumonia=0, seed=3)
    validation = load_manifest(other).images
    with pytest.raises(DatasetError, match="has 12 NORMAL, 0 PNEUMONIA validation images"):
        evaluate_predictions(
            file,
            images,
            validation=write(tmp_path / "v.csv", validation, expit(draw(validation))),
            validation_data=other,
        )


def test_evaluated_images_and_patients_choose_no_threshold(data, maker, tmp_path):
    test, validation = split(data, "test"), split(data, "validation")
    file = write(tmp_path / "other.csv", test, expit(draw(test)))
    mixed = [*validation, test[0]]
    with pytest.raises(ThresholdError, match=r"1 of 45 validation images .* are test images in the data; the first is"):
        evaluate_predictions(file, data, validation=write(tmp_path / "v.csv", mixed, expit(draw(mixed))))
    # The pixels of the test images, in a data set without splits.
    flat = maker.images("flat", split=".", normal=30, pneumonia=40)
    same = load_manifest(flat).images
    with pytest.raises(ThresholdError, match=r"70 of 70 validation images .* are evaluated images .*first is NORMAL"):
        evaluate_predictions(
            file, data, validation=write(tmp_path / "v.csv", same, expit(draw(same))), validation_data=flat
        )
    # The same numbers of patients with other pixels.
    maker.images("same", split=".", normal=2, pneumonia=2)
    other = maker.root / "same"
    for path in other.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    images = load_manifest(other).images
    with pytest.raises(PatientLeakError, match=r"patient '.*' has validation images and evaluated images \(2 patients"):
        evaluate_predictions(
            file,
            data,
            validation=write(tmp_path / "v.csv", images, expit(draw(images))),
            validation_data=other,
        )


def test_options_that_exclude_each_other_are_errors(data, tmp_path):
    images = split(data, "test")
    file = write(tmp_path / "other.csv", images, expit(draw(images)))
    columns = PredictionColumns(split="part")
    with pytest.raises(UsageError, match="in a second file and in a column"):
        evaluate_predictions(file, data, columns=columns, validation=file)
    with pytest.raises(
        UsageError, match=r"the split is 'all'.*State the splits in a manifest CSV, or give --validation-pred"
    ):
        evaluate_predictions(file, data, columns=columns, split="all")
    with pytest.raises(UsageError, match="no predictions for validation"):
        evaluate_predictions(file, data, validation_data=data)
    logits = write(tmp_path / "v.csv", images, draw(images), "logit")
    with pytest.raises(DatasetError, match=r"has a probability for each image, and .* a logit"):
        evaluate_predictions(file, data, validation=logits)
