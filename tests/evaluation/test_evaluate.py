"""Evaluation from image files to result files, compared with numbers computed from the pixels."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from PIL import Image
from scipy.special import expit
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from tests.conftest import LIMITS

from pneumoscope.bundle.card import short_hash
from pneumoscope.core.calibration_record import CalibrationRecord
from pneumoscope.core.errors import BundleError, DatasetError, RunError, StorageError, UnknownNameError, UsageError
from pneumoscope.data.cache import preprocess_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.model import load_model
from pneumoscope.runs.evaluations import read_evaluation, read_predictions
from pneumoscope.runs.run_folder import evaluation_names


def expected(images: Path, gain: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels computed from the pixels, sorted by path."""
    paths = sorted((images / "test").rglob("*.png"))
    means = np.array([np.asarray(Image.open(path), dtype=np.float64).mean() for path in paths])
    return gain * (means - 125), np.array([path.parent.name == "PNEUMONIA" for path in paths])


def test_metrics_of_a_run(maker):
    images, run = maker.images(), maker.run()
    evaluation, scored = evaluate(run, images)
    logits, labels = expected(images)
    assert [image.logit for image in scored] == pytest.approx(logits, abs=1e-4)
    assert [image.score for image in scored] == pytest.approx(expit(logits), abs=1e-5)
    assert [image.probability for image in scored] == pytest.approx(expit(0.8 * logits + 0.1), abs=1e-5)
    assert evaluation.metrics["auroc"].value == pytest.approx(metrics.roc_auc_score(labels, logits))
    assert evaluation.metrics["auprc"].value == pytest.approx(metrics.average_precision_score(labels, logits))
    loss = metrics.brier_score_loss(labels, expit(0.8 * logits + 0.1))
    assert evaluation.metrics["brier"].value == pytest.approx(loss, abs=1e-6)
    for name, threshold in (("half", 0.5), ("balanced", 0.4), ("rule_out", 0.2), ("rule_in", 0.7)):
        decisions = expit(logits) >= threshold
        point = evaluation.operating_points[name]
        assert point.metrics["accuracy"].value == pytest.approx((decisions == labels).mean())
        assert point.metrics["mcc"].value == pytest.approx(metrics.matthews_corrcoef(labels, decisions))
        tn, fp, fn, tp = metrics.confusion_matrix(labels, decisions).ravel()
        counts = point.confusion
        assert (counts.tn, counts.fp, counts.fn, counts.tp) == (tn, fp, fn, tp)
    assert (evaluation.n, evaluation.patients, evaluation.counts) == (32, 16, {"NORMAL": 12, "PNEUMONIA": 20})
    assert evaluation.test_evaluation == 1
    assert evaluation.name == "gray"


def test_written_files_equal_the_returned_records(maker):
    run = maker.run()
    evaluation, scored = evaluate(run, maker.images())
    folder = run / "evaluation" / "test"
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "predictions.csv"]
    assert read_evaluation(folder / "evaluation.json") == evaluation
    assert read_predictions(folder / "predictions.csv") == scored
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert rows[0]["path"].startswith("test/NORMAL/IM-0000")
    assert len(rows) == 32


def test_metrics_by_etiology(maker):
    images = maker.images()
    evaluation, scored = evaluate(maker.run(), images)
    for etiology in ("bacteria", "virus"):
        chosen = [image for image in scored if image.etiology in ("normal", etiology)]
        labels = [image.label == "PNEUMONIA" for image in chosen]
        area = metrics.roc_auc_score(labels, [image.logit for image in chosen])
        assert evaluation.auroc_by_etiology[etiology].value == pytest.approx(area)
        decisions = [image.score >= 0.5 for image in scored if image.etiology == etiology]
        assert evaluation.operating_points["half"].by_etiology[etiology].value == pytest.approx(np.mean(decisions))
    assert (
        evaluation.operating_points["half"].by_etiology["normal"]
        == evaluation.operating_points["half"].metrics["specificity"]
    )


def test_bundle_is_evaluated_and_writes_to_out_only(maker, tmp_path):
    images, bundle = maker.images(), maker.bundle(tmp_path / "shipped")
    evaluation, _ = evaluate(bundle, images)
    assert sorted(path.name for path in bundle.iterdir()) == ["card.json", "network.onnx"]
    again, _ = evaluate(bundle, images, out=tmp_path / "out", operating_points=["half"])
    assert read_evaluation(tmp_path / "out" / "evaluation.json") == again
    assert list(again.operating_points) == ["half"]
    assert (evaluation.test_evaluation, again.test_evaluation) == (1, 2)


@pytest.mark.slow
def test_included_model_is_a_bundle_and_no_run(maker, monkeypatch):
    monkeypatch.chdir(maker.root)
    evaluation, _ = evaluate("default", maker.images(), operating_points=["half"])
    assert evaluation.n == 32
    assert not Path("default").exists()


def test_bootstraps_depend_on_the_seed(maker):
    images, run = maker.images(), maker.run()
    first, second, other = (evaluate(run, images, seed=seed, replace=True)[0] for seed in (3, 3, 4))
    assert first.operating_points == second.operating_points
    assert first.operating_points["half"].metrics["f1"].seed == 3
    assert first.operating_points["half"].metrics["f1"] != other.operating_points["half"].metrics["f1"]


def test_training_evaluation_and_prediction_read_images_in_the_same_way(maker, monkeypatch):
    # Large JPEG files are decoded at a reduced size, which must be the same for all three.
    random, folder = np.random.default_rng(0), maker.root / "large"
    for label, stem in (("NORMAL", "IM-0001-0001"), ("PNEUMONIA", "person1_virus_1")):
        (folder / "test" / label).mkdir(parents=True)
        pixels = random.integers(0, 256, (30, 40), np.uint8)
        image = Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)
        image.save(folder / "test" / label / f"{stem}.jpeg")
    run = maker.run()
    model = load_model(run)
    manifest = load_manifest(folder)
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(maker.root / "cache"))

    _, scored = evaluate(run, folder)
    prepared = preprocess_images(manifest.root, manifest.images, model.card.preprocessing)

    paths = [folder / image.path for image in scored]
    assert [image.probability for image in scored] == [model.predict(path).probability for path in paths]
    again = [preprocess(decode(path, min_side=32), model.card.preprocessing) for path in paths]
    assert np.array_equal(prepared.pixels[prepared.rows], again)
    assert not np.array_equal(again, [preprocess(decode(path), model.card.preprocessing) for path in paths])


def test_progress_is_called_for_each_image(maker):
    calls = []
    evaluate(maker.run(), maker.images(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 32) for done in range(1, 33)]


def test_many_images_keep_their_order(maker):
    # More images than are prefetched, and more than one batch.
    images = maker.images(normal=75, pneumonia=76)
    _, scored = evaluate(maker.run(), images, operating_points=["half"])
    assert [image.logit for image in scored] == pytest.approx(expected(images)[0], abs=1e-4)


def test_unknown_operating_point_is_an_error(maker):
    with pytest.raises(UnknownNameError, match=r"no operating point 'balancd'. Did you mean 'balanced'"):
        evaluate(maker.run(), maker.images(), operating_points=["half", "balancd"])
    with pytest.raises(UnknownNameError, match=r"no operating point 'RULE_OUT'. Did you mean 'rule_out'"):
        evaluate(maker.run(), maker.images(), operating_points=["RULE_OUT"])


def test_unfinished_run_is_an_error(maker):
    run = maker.run()
    for file in (run / "bundle").iterdir():
        file.unlink()
    (run / "bundle").rmdir()
    with pytest.raises(RunError, match=r"has no bundle: training is not finished.*--resume"):
        evaluate(run, maker.images())


def test_folder_without_a_bundle_is_an_error(maker, tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        evaluate(tmp_path / "nowhere", maker.images())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_test_images_seen_in_training_are_an_error(maker, split):
    images = maker.images()
    known = [short_hash(image.sha256) for image in load_manifest(images).images[5:8]]
    run = maker.run(seen={split: known})
    with pytest.raises(
        DatasetError,
        match=rf"^'gray' used 3 of the 32 images as {split} images .*the first is test/NORMAL/IM-0002",
    ):
        evaluate(run, images)
    assert not (run / "evaluation").exists()
    assert not Path(os.environ["PNEUMOSCOPE_LEDGER"]).exists()


def test_unreadable_images_are_an_error(maker):
    images, run = maker.images(), maker.run()
    paths = sorted((images / "test" / "NORMAL").iterdir())
    paths[1].write_bytes(b"not an image")
    paths[4].write_bytes(paths[4].read_bytes()[:100])
    with pytest.raises(
        DatasetError, match=rf"^2 test images cannot be read \(test/NORMAL/{paths[1].name}: not an image"
    ) as error:
        evaluate(run, images)
    assert paths[4].name in error.value.message
    assert not (run / "evaluation").exists()
    assert not Path(os.environ["PNEUMOSCOPE_LEDGER"]).exists()


def test_no_result_is_written_without_a_ledger_entry(maker, tmp_path):
    images, run = maker.images(), maker.run()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the test ledger"):
        evaluate(run, images, ledger=tmp_path / "file" / "ledger.jsonl")
    assert not (run / "evaluation").exists()


def test_ledger_entry_is_written_before_the_result(maker, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        evaluate(maker.run(), maker.images(), out=tmp_path / "file" / "out")
    line = json.loads(Path(os.environ["PNEUMOSCOPE_LEDGER"]).read_text())
    assert line["test_evaluation"] == 1


def test_ledger_entry_has_the_metrics(maker):
    images = maker.images()
    evaluation, _ = evaluate(maker.run(), images)
    (line,) = map(json.loads, Path(os.environ["PNEUMOSCOPE_LEDGER"]).read_text().splitlines())
    assert line["bundle_sha256"] == evaluation.bundle_sha256
    assert line["images_sha256"] == evaluation.images_sha256
    assert (line["n"], line["split"], line["recipe"], line["name"], line["test_evaluation"]) == (
        32,
        "test",
        "gray",
        "gray",
        1,
    )
    assert line["metrics"]["auroc"] == evaluation.metrics["auroc"].value
    assert line["operating_points"]["balanced"]["threshold"] == 0.4
    assert line["operating_points"]["half"]["accuracy"] == evaluation.operating_points["half"].metrics["accuracy"].value
    assert line["when"] == evaluation.created


def test_all_images_are_evaluated_and_recorded_in_the_ledger(maker):
    images = maker.images(split=".")
    evaluation, _ = evaluate(maker.bundle(maker.root / "bundle"), images, split="all")
    assert (evaluation.split, evaluation.n, evaluation.test_evaluation) == ("all", 32, 1)
    (line,) = map(json.loads, Path(os.environ["PNEUMOSCOPE_LEDGER"]).read_text().splitlines())
    assert (line["split"], line["images_sha256"]) == ("all", evaluation.images_sha256)
    seen = [short_hash(load_manifest(images).images[0].sha256)]
    with pytest.raises(DatasetError, match="used 1 of the 32 images as train images"):
        evaluate(maker.bundle(maker.root / "other", seen={"train": seen}), images, split="all")


@pytest.mark.parametrize(("normal", "pneumonia"), [(12, 0), (0, 12)])
def test_metrics_that_need_a_missing_label_are_undefined_with_the_reason(maker, normal, pneumonia):
    evaluation, _ = evaluate(maker.run(), maker.images(normal=normal, pneumonia=pneumonia))
    missing, undefined = ("PNEUMONIA", "sensitivity") if normal else ("NORMAL", "specificity")
    metrics = {**evaluation.metrics, **evaluation.operating_points["half"].metrics}
    for name in ("auroc", "auprc", "balanced_accuracy", undefined):
        assert (metrics[name].value, metrics[name].reason) == (None, f"there is no {missing} image")
    assert metrics["mcc"].value is None
    if normal:  # F1 is 0, however many images there are
        assert (metrics["f1"].value, metrics["f1"].low) == (0, None)
    assert metrics["accuracy"].value is not None
    assert metrics["brier"].low is not None
    assert read_evaluation(maker.root / "runs" / "gray" / "evaluation" / "test" / "evaluation.json") == evaluation


def test_evaluations_of_other_images_are_kept_beside_that_of_the_run(maker):
    images, run = maker.images(), maker.run()
    (run / "manifest.csv").write_text(load_manifest(images).to_csv())
    own, _ = evaluate(run, images)
    notes = []
    other, _ = evaluate(run, maker.images("north clinic", seed=1), note=notes.append)
    flat, _ = evaluate(run, maker.images("flat", split=".", seed=2), split="all")
    folder = run / "evaluation"
    assert evaluation_names(run) == ["all-flat", "test", "test-north-clinic"]
    assert read_evaluation(folder / "test" / "evaluation.json") == own
    assert read_evaluation(folder / "test-north-clinic" / "evaluation.json") == other
    assert read_evaluation(folder / "all-flat" / "evaluation.json") == flat
    assert notes == [
        f"{str(maker.root / 'north clinic')!r} has other images than the test split of the run; the results are in"
        f" {str(folder / 'test-north-clinic')!r}"
    ]


def test_evaluation_has_the_name_that_the_user_chose(maker):
    run = maker.run()
    evaluation, _ = evaluate(run, maker.images(), name="north-2026")
    assert read_evaluation(run / "evaluation" / "north-2026" / "evaluation.json") == evaluation
    for name in ("", "a/b", ".."):
        with pytest.raises(UsageError, match="is not the name of an evaluation"):
            evaluate(run, maker.root / "images", name=name)
    for target, out in ((run, maker.root / "out"), (run / "bundle", None)):
        with pytest.raises(UsageError, match="the name 'x' is that of an evaluation in a run folder"):
            evaluate(target, maker.root / "images", name="x", out=out)


def test_another_evaluation_is_replaced_only_on_request(maker):
    images, run = maker.images(), maker.run()
    first, _ = evaluate(run, images, seed=0)
    ledger = Path(os.environ["PNEUMOSCOPE_LEDGER"]).read_text()
    # The run has no manifest, so that other images cannot be told from its own.
    other = maker.images("other", seed=1)
    for data, seed, difference in ((other, 0, "of other images"), (images, 1, "with another seed")):
        with pytest.raises(UsageError, match=rf"test' has an evaluation {difference} \(gray, 32 images, .*--force"):
            evaluate(run, data, seed=seed)
    out = run / "evaluation" / "test"
    with pytest.raises(UsageError, match="has an evaluation of another model"):
        evaluate(maker.bundle(maker.root / "bundle", gain=0.1), images, out=out)
    assert read_evaluation(out / "evaluation.json") == first
    assert Path(os.environ["PNEUMOSCOPE_LEDGER"]).read_text() == ledger  # nothing was scored
    replaced, _ = evaluate(run, other, replace=True)
    assert read_evaluation(out / "evaluation.json") == replaced


def test_operating_points_are_added_to_those_of_an_earlier_evaluation(maker):
    images, run = maker.images(), maker.run()
    evaluate(run, images, operating_points=["half", "balanced"])
    again, _ = evaluate(run, images, operating_points=["rule_out", "half"])
    assert list(again.operating_points) == ["half", "balanced", "rule_out"]
    assert read_evaluation(run / "evaluation" / "test" / "evaluation.json") == again
    assert again.test_evaluation == 2


def test_other_splits_have_no_ledger_entry(maker):
    images = maker.images(split="val")
    maker.images(split="test", seed=1)
    run = maker.run()
    (run / "manifest.csv").write_text(load_manifest(images).to_csv())
    evaluation, _ = evaluate(run, images, split="validation", operating_points=["half"])
    assert evaluation.test_evaluation is None
    assert not Path(os.environ["PNEUMOSCOPE_LEDGER"]).exists()
    assert (run / "evaluation" / "validation" / "evaluation.json").is_file()


@pytest.mark.real_data
@pytest.mark.skipif("PNEUMOSCOPE_DATA" not in os.environ, reason="PNEUMOSCOPE_DATA is unset")
def test_official_test_split_has_its_counts_and_etiologies(maker):
    evaluation, _ = evaluate(maker.run(), Path(os.environ["PNEUMOSCOPE_DATA"]))
    assert evaluation.counts == {"NORMAL": 234, "PNEUMONIA": 390}
    half = evaluation.operating_points["half"]
    assert {name: interval.n for name, interval in half.by_etiology.items()} == {
        "normal": 234,
        "bacteria": 242,
        "virus": 148,
    }
    assert evaluation.patients < 624
    assert 0.4 < evaluation.metrics["auroc"].value < 0.9


def test_rejected_images_are_counted_and_included_in_all_metrics(maker):
    # The test network rejects images with a mean gray level below 0.4 x 255 as inverted, and above 160 by its OOD distance.
    images = maker.images()
    limits = structs.replace(LIMITS, min_upright=0.4, max_distance=1.6)
    bare, _ = evaluate(maker.bundle(maker.root / "bare"), images)
    checked, _ = evaluate(maker.bundle(maker.root / "checked", rejection_limits=limits), images)

    means = [np.asarray(Image.open(path)).mean() for path in images.rglob("*.png")]
    dark, light = sum(mean < 102 for mean in means), sum(mean > 160 for mean in means)
    assert dark
    assert light
    assert (checked.rejected.share.value, checked.rejected.share.n) == ((dark + light) / 32, 32)
    assert sorted(checked.rejected.reasons.values()) == sorted([dark, light])
    assert "inverted" in checked.rejected.reasons
    assert "out_of_distribution" in checked.rejected.reasons
    assert (bare.rejected.share.value, bare.rejected.reasons) == (0, {})
    assert (checked.metrics, checked.operating_points) == (bare.metrics, bare.operating_points)


def test_calibration_net_benefit_and_predictive_values_are_recorded(maker):
    images, run = maker.images(), maker.run()
    evaluation, scored = evaluate(run, images, prevalence=0.1)
    p, y = np.array([i.probability for i in scored]), np.array([i.label == "PNEUMONIA" for i in scored])
    assert evaluation.metrics["observed_expected_ratio"].value == pytest.approx(y.sum() / p.sum())
    model = LogisticRegression(C=1e12, tol=1e-10).fit(np.log(p / (1 - p))[:, None], y)
    assert evaluation.metrics["calibration_slope"].value == pytest.approx(model.coef_[0, 0], rel=1e-3)
    curve = {point.threshold_probability: point for point in evaluation.decision_curve}
    tp, fp = ((p >= 0.4) & y).sum(), ((p >= 0.4) & ~y).sum()
    assert curve[0.4].net_benefit.value == pytest.approx((tp - fp * 0.4 / 0.6) / len(y))
    assert curve[0.4].treat_all.value == pytest.approx(y.mean() - (1 - y.mean()) * 0.4 / 0.6)
    for point in evaluation.operating_points.values():
        sensitivity, specificity = point.metrics["sensitivity"].value, point.metrics["specificity"].value
        expected_value = 0.1 * sensitivity / (0.1 * sensitivity + 0.9 * (1 - specificity))
        assert point.predictive_values.precision.value == pytest.approx(expected_value)
    rows = [row for row in evaluation.rows() if row["prevalence"] == 0.1]
    assert len(rows) == 2 * 4
    assert len([row for row in evaluation.rows() if row["threshold_probability"] == 0.4]) == 3
    file = run / "evaluation" / "test" / "evaluation.json"
    assert read_evaluation(file) == evaluation
    assert evaluation.calibration == CalibrationRecord("platt", 8, {"slope": 0.8, "intercept": 0.1})  # see conftest
    record = json.loads(file.read_text())
    del record["calibration"]  # evaluations did not record it at first
    file.write_text(json.dumps(record))
    assert read_evaluation(file) == dataclasses.replace(evaluation, calibration=None)
