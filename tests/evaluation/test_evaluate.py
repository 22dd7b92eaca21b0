"""The whole way from PNG images through ONNX Runtime to files on disk, against numbers worked out from the pixels."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from PIL import Image
from scipy.special import expit
from sklearn import metrics
from tests.conftest import LIMITS

from pneumoscope.bundle.card import short_hash
from pneumoscope.core.errors import BundleError, DatasetError, RunError, StorageError, UnknownNameError
from pneumoscope.data.cache import preprocess_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.model import load_model
from pneumoscope.runs.evaluations import read_evaluation, read_predictions


def expected(images: Path, gain: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels from the pixels alone, sorted by path."""
    paths = sorted((images / "test").rglob("*.png"))
    grey = np.array([np.asarray(Image.open(path), dtype=np.float64).mean() for path in paths])
    return gain * (grey - 125), np.array([path.parent.name == "PNEUMONIA" for path in paths])


def test_a_run_is_judged_and_written(maker):
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
        called = expit(logits) >= threshold
        point = evaluation.operating_points[name]
        assert point.metrics["accuracy"].value == pytest.approx((called == labels).mean())
        assert point.metrics["mcc"].value == pytest.approx(metrics.matthews_corrcoef(labels, called))
        tn, fp, fn, tp = metrics.confusion_matrix(labels, called).ravel()
        cells = point.confusion
        assert (cells.tn, cells.fp, cells.fn, cells.tp) == (tn, fp, fn, tp)
    assert (evaluation.n, evaluation.patients, evaluation.counts) == (32, 16, {"NORMAL": 12, "PNEUMONIA": 20})
    assert evaluation.test_evaluation == 1
    assert evaluation.name == "grey"


def test_what_is_written_is_what_is_returned(maker):
    run = maker.run()
    evaluation, scored = evaluate(run, maker.images())
    folder = run / "evaluation" / "test"
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "predictions.csv"]
    assert read_evaluation(folder / "evaluation.json") == evaluation
    assert read_predictions(folder / "predictions.csv") == scored
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert rows[0]["path"].startswith("test/NORMAL/IM-0000")
    assert len(rows) == 32


def test_etiology_is_judged_apart(maker):
    images = maker.images()
    evaluation, scored = evaluate(maker.run(), images)
    for etiology in ("bacteria", "virus"):
        chosen = [image for image in scored if image.etiology in ("normal", etiology)]
        labels = [image.label == "PNEUMONIA" for image in chosen]
        area = metrics.roc_auc_score(labels, [image.logit for image in chosen])
        assert evaluation.auroc_by_etiology[etiology].value == pytest.approx(area)
        called = [image.score >= 0.5 for image in scored if image.etiology == etiology]
        assert evaluation.operating_points["half"].by_etiology[etiology].value == pytest.approx(np.mean(called))
    assert (
        evaluation.operating_points["half"].by_etiology["normal"]
        == evaluation.operating_points["half"].metrics["specificity"]
    )


def test_a_bundle_alone_is_judged_and_writes_only_where_told(maker, tmp_path):
    images, bundle = maker.images(), maker.bundle(tmp_path / "shipped")
    evaluation, _ = evaluate(bundle, images)
    assert sorted(path.name for path in bundle.iterdir()) == ["card.json", "network.onnx"]
    again, _ = evaluate(bundle, images, out=tmp_path / "out", operating_points=["half"])
    assert read_evaluation(tmp_path / "out" / "evaluation.json") == again
    assert list(again.operating_points) == ["half"]
    assert (evaluation.test_evaluation, again.test_evaluation) == (1, 2)


def test_the_seed_decides_the_bootstraps(maker):
    images, run = maker.images(), maker.run()
    first, second, other = (evaluate(run, images, seed=seed)[0] for seed in (3, 3, 4))
    assert first.operating_points == second.operating_points
    assert first.operating_points["half"].metrics["f1"].seed == 3
    assert first.operating_points["half"].metrics["f1"] != other.operating_points["half"].metrics["f1"]


def test_a_image_is_read_in_one_way_by_training_evaluation_and_scoring(maker, monkeypatch):
    """Large JPEGs, which are decoded at a fraction of their size: by all three at the same one."""
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


def test_progress_counts_images(maker):
    calls = []
    evaluate(maker.run(), maker.images(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 32) for done in range(1, 33)]


def test_many_images_keep_their_order(maker):
    """More images than are decoded ahead, and than one batch holds."""
    images = maker.images(normal=75, pneumonia=76)
    _, scored = evaluate(maker.run(), images, operating_points=["half"])
    assert [image.logit for image in scored] == pytest.approx(expected(images)[0], abs=1e-4)


def test_an_unknown_operating_point_is_named(maker):
    with pytest.raises(UnknownNameError, match=r"no operating point 'balancd'. Did you mean 'balanced'"):
        evaluate(maker.run(), maker.images(), operating_points=["half", "balancd"])


def test_an_unfinished_run_is_refused(maker):
    run = maker.run()
    for file in (run / "bundle").iterdir():
        file.unlink()
    (run / "bundle").rmdir()
    with pytest.raises(RunError, match=r"has no bundle: training is not finished.*--resume"):
        evaluate(run, maker.images())


def test_a_folder_that_is_neither_is_refused(maker, tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        evaluate(tmp_path / "nowhere", maker.images())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_test_images_that_were_seen_are_refused_by_content(maker, split):
    images = maker.images()
    known = [short_hash(image.sha256) for image in load_manifest(images).images[5:8]]
    run = maker.run(seen={split: known})
    with pytest.raises(
        DatasetError, match=rf"3 of 32 test images were {split} images of 'grey'.*the first: test/NORMAL/IM-0002"
    ):
        evaluate(run, images)
    assert not (run / "evaluation").exists()
    assert not Path(os.environ["PNEUMOSCOPE_LEDGER"]).exists()


def test_unreadable_images_are_listed_and_never_left_out(maker):
    images, run = maker.images(), maker.run()
    paths = sorted((images / "test" / "NORMAL").iterdir())
    paths[1].write_bytes(b"no image at all")
    paths[4].write_bytes(paths[4].read_bytes()[:100])
    with pytest.raises(
        DatasetError, match=rf"^2 test images cannot be read \(test/NORMAL/{paths[1].name}: not an image"
    ) as error:
        evaluate(run, images)
    assert paths[4].name in error.value.message
    assert not (run / "evaluation").exists()
    assert not Path(os.environ["PNEUMOSCOPE_LEDGER"]).exists()


def test_no_result_without_its_line_in_the_ledger(maker, tmp_path):
    images, run = maker.images(), maker.run()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the test ledger"):
        evaluate(run, images, ledger=tmp_path / "file" / "ledger.jsonl")
    assert not (run / "evaluation").exists()


def test_the_ledger_is_written_before_the_result(maker, tmp_path):
    """Where the result cannot be written the look has still happened."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        evaluate(maker.run(), maker.images(), out=tmp_path / "file" / "out")
    line = json.loads(Path(os.environ["PNEUMOSCOPE_LEDGER"]).read_text())
    assert line["test_evaluation"] == 1


def test_what_the_ledger_says(maker):
    images = maker.images()
    evaluation, _ = evaluate(maker.run(), images)
    (line,) = map(json.loads, Path(os.environ["PNEUMOSCOPE_LEDGER"]).read_text().splitlines())
    assert line["bundle_sha256"] == evaluation.bundle_sha256
    assert line["images_sha256"] == evaluation.images_sha256
    assert (line["n"], line["split"], line["recipe"], line["name"], line["test_evaluation"]) == (
        32,
        "test",
        "grey",
        "grey",
        1,
    )
    assert line["metrics"]["auroc"] == evaluation.metrics["auroc"].value
    assert line["operating_points"]["balanced"]["threshold"] == 0.4
    assert line["operating_points"]["half"]["accuracy"] == evaluation.operating_points["half"].metrics["accuracy"].value
    assert line["when"] == evaluation.created


def test_other_splits_leave_no_line(maker):
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
def test_the_official_test_split(maker):
    """The mean grey level alone on the 624 official test images: counts and etiologies are those of the set."""
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


def test_images_that_would_be_rejected_are_counted_and_judged_all_the_same(maker):
    """The screened network takes images for inverted whose mean grey is below 0.4 x 255, and for far away above 160."""
    images = maker.images()
    limits = structs.replace(LIMITS, min_upright=0.4, max_distance=1.6)
    bare, _ = evaluate(maker.bundle(maker.root / "bare"), images)
    screened, _ = evaluate(maker.bundle(maker.root / "screened", rejection_limits=limits), images)

    means = [np.asarray(Image.open(path)).mean() for path in images.rglob("*.png")]
    dark, light = sum(mean < 102 for mean in means), sum(mean > 160 for mean in means)
    assert dark
    assert light
    assert (screened.rejected.share.value, screened.rejected.share.n) == ((dark + light) / 32, 32)
    assert sorted(screened.rejected.reasons.values()) == sorted([dark, light])
    assert "inverted" in screened.rejected.reasons
    assert "out_of_distribution" in screened.rejected.reasons
    assert (bare.rejected.share.value, bare.rejected.reasons) == (0, {})
    assert (screened.metrics, screened.operating_points) == (bare.metrics, bare.operating_points)
