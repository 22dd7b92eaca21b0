"""A run on three classes: training, bundle, and predictions of its images."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.special import log_softmax, softmax
from tests.training.conftest import small

from pneumoscope.bundle.bundle_folder import export_bundle, is_multiclass, read_bundle, read_multiclass_bundle
from pneumoscope.core.errors import MulticlassBundleError, RecipeError, WeightsError
from pneumoscope.data.cache import preprocess_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import Manifest
from pneumoscope.evaluation.multiclass.cross_validation import summarize_class_folds
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.evaluation.multiclass.fitting import fit_prediction_sets
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.imaging.preprocess import preprocess_image
from pneumoscope.inference.multiclass_model import load_multiclass_model
from pneumoscope.inference.multiclass_session import MulticlassSession
from pneumoscope.models.factory import create_initialized, create_model
from pneumoscope.models.weights import load_weights
from pneumoscope.runs.epochs import read_epochs
from pneumoscope.runs.record import read_run
from pneumoscope.runs.run_folder import run_folders
from pneumoscope.training.run_series import train_folds
from pneumoscope.training.train import train_run

pytestmark = pytest.mark.training

CLASSES = ("bright", "clear", "dark")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of 48 pixels in three classes that differ in brightness: 36 for training and 12 for testing of each."""
    root = tmp_path_factory.mktemp("classes")
    for shift, name in ((60, "bright"), (0, "clear"), (-40, "dark")):
        for split, count in (("train", 36), ("test", 12)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 1000 * (split == "test") + number + 100 * CLASSES.index(name)
                pixels = np.clip(draw_phantom(seed, False, size=48).astype(int) + shift, 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}-{number}.png")
    return root


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six epochs."""
    out = tmp_path_factory.mktemp("runs") / "three"
    recipe = small(
        network={"flip_averaging": True},
        training={"epochs": 6, "select": "auroc", "class_weights": "balanced", "label_smoothing": 0.05},
        optimizer={"learning_rate": 0.01},
        augmentation={"flip": True},
    )
    train_run(recipe, images, out)
    return out


def test_training_learns_three_classes(run):
    record, epochs = read_run(run), read_epochs(run)
    assert record.counts["train"].keys() == set(CLASSES)
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert record.best_validation_accuracy > 0.6  # guessing has 1/3


def test_bundle_states_classes_calibration_and_prediction_sets(run):
    card, _ = read_multiclass_bundle(run / "bundle")
    data = json.loads((run / "bundle" / "card.json").read_text())
    assert (data["format"], data["activation"], data["classes"]) == (3, "softmax", list(CLASSES))
    assert card.calibration.method == "temperature"
    assert card.calibration.n == 27
    assert card.prediction_sets is None  # 9 validation images of a class are too few for a coverage of 95%
    assert is_multiclass(run / "bundle")


def test_prediction_sets_are_fitted_on_unmodified_and_augmented_images(images, tmp_path, monkeypatch):
    fitted = []

    def spy(variants, *arguments):
        fitted.extend(variants)
        return fit_prediction_sets(variants, *arguments)

    monkeypatch.setattr("pneumoscope.training.multiclass_export.fit_prediction_sets", spy)
    recipe = small(training={"epochs": 1, "calibrate": "augmented"}, augmentation={"brightness": 0.5})
    train_run(recipe, images, tmp_path / "run")
    session = MulticlassSession.load(tmp_path / "run" / "bundle")
    manifest = Manifest.from_csv((tmp_path / "run" / "manifest.csv").read_text(), images, "manifest.csv")
    pixels = preprocess_images(images, manifest.split("validation"), session.card.preprocessing).requested()
    unmodified, augmented = fitted
    expected = softmax(session.logits(pixels) / session.card.calibration.temperature, axis=1)
    np.testing.assert_allclose(unmodified, expected, atol=1e-5)
    assert augmented.shape == unmodified.shape
    assert not np.allclose(augmented, unmodified, atol=1e-3)


def test_training_warns_of_a_temperature_at_its_bound(images, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("pneumoscope.evaluation.multiclass.fitting.fit_temperature", lambda *_: 999.9998)
    train_run(small(training={"epochs": 1}), images, tmp_path / "run", log=lines.append)
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert "The temperature is at its upper bound (1000)" in warning


def test_bundle_has_the_logits_of_the_trained_network(run, images):
    session = MulticlassSession.load(run / "bundle")
    network = create_model("test_efficientnet", image_size=32, dropout=0.1, flip_averaging=True, outputs=3)
    load_weights(network, run / "checkpoints" / "best.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(session.logits(pixels), expected, atol=1e-3)
    assert not np.allclose(expected[0], expected[1], atol=1e-3)


def test_predictions_are_the_calibrated_softmax(run, images):
    model = load_multiclass_model(run)
    paths = sorted(str(path) for path in (images / "test").rglob("*.png"))
    predictions = list(model.predict_many(paths))
    assert [each.path for each in predictions] == paths
    correct = [each.predicted_class == Path(each.path).parent.name for each in predictions]
    assert np.mean(correct) > 0.6
    one = model.predict(paths[0])
    assert one == predictions[0]
    image = preprocess_image(decode(Path(paths[0])), model.card.preprocessing)
    scored = next(MulticlassSession.load(run / "bundle").stream([image]))
    expected = np.exp(log_softmax(scored.logits.astype(float) / model.card.calibration.temperature))
    assert list(one.class_probabilities.values()) == pytest.approx(expected.tolist())
    assert one.decision == "classified"
    assert one.predicted_class == CLASSES[int(expected.argmax())]


@pytest.mark.parametrize("source", ["", "/checkpoints/best.safetensors"])
def test_weights_of_a_run_keep_the_last_layer_for_the_same_classes_only(run, source):
    options = {"image_size": 32, "outputs": 3}
    trained = load_file(run / "checkpoints" / "best.safetensors")["model.classifier.weight"]
    card, _ = read_multiclass_bundle(run / "bundle")

    same, loaded = create_initialized("test_efficientnet", f"{run}{source}", options | {"classes": CLASSES})
    assert torch.equal(same.state_dict()["model.classifier.weight"], trained)
    assert loaded.random == frozenset()
    assert loaded.seen == {*card.seen["train"], *card.seen["validation"]} != set()

    for classes in (("a", "b", "c"), tuple(reversed(CLASSES))):
        other, loaded = create_initialized("test_efficientnet", f"{run}{source}", options | {"classes": classes})
        assert not torch.equal(other.state_dict()["model.classifier.weight"], trained)
        assert loaded.random == {"model.classifier.weight", "model.classifier.bias"}
        assert any("is for the classes bright, clear, dark" in note for note in loaded.notes)


def test_last_layer_of_a_file_of_unknown_classes_is_replaced(run, tmp_path):
    file = shutil.copy(run / "checkpoints" / "best.safetensors", tmp_path / "w.safetensors")
    options = {"image_size": 32, "outputs": 3, "classes": CLASSES}
    _, loaded = create_initialized("test_efficientnet", str(file), options)
    assert loaded.random == {"model.classifier.weight", "model.classifier.bias"}
    assert "is for unknown classes" in loaded.notes[0]


def test_run_for_pneumonia_starts_from_a_run_of_several_classes_but_not_from_its_bundle(run):
    _, loaded = create_initialized("test_efficientnet", str(run), {"image_size": 32})
    assert loaded.random == {"model.classifier.weight", "model.classifier.bias"}
    assert "has another shape, (3,)" in loaded.notes[0]
    with pytest.raises(WeightsError, match=r"has several classes.*Give the folder of its run"):
        create_initialized("test_efficientnet", str(run / "bundle"), {"image_size": 32})


def test_training_starts_from_a_run_of_several_classes(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("pneumoscope.training.train.export_multiclass", lambda *_, **__: None)
    notes = []
    recipe = small(
        network={"weights": str(run)},
        training={"epochs": 1},
        optimizer={"learning_rate": 1e-12},
    )
    train_run(recipe, images, tmp_path / "run", log=notes.append)
    assert not any("last layer" in note for note in notes)
    assert any("27 of 27 validation images trained or validated the initial weights" in note for note in notes)


def test_same_seed_gives_the_same_run(run, images, tmp_path):
    recipe = read_run(run).recipe
    from pneumoscope.runs.recipe_files import parse_recipe

    train_run(parse_recipe(recipe, "again"), images, tmp_path / "again")
    first, second = (read_epochs(each) for each in (run, tmp_path / "again"))
    assert [row._replace(seconds=0) for row in first] == [row._replace(seconds=0) for row in second]


def test_a_bundle_of_several_classes_is_refused_where_pneumonia_is_needed(run):
    with pytest.raises(MulticlassBundleError, match=r"'small' has several classes \(bright, clear, dark\)") as raised:
        read_bundle(run / "bundle")
    assert raised.value.code == "multiclass_bundle"
    assert raised.value.classes == CLASSES


def test_export_copies_a_bundle_of_several_classes(run, tmp_path):
    card = export_bundle(run / "bundle", tmp_path / "copy")
    assert read_multiclass_bundle(tmp_path / "copy")[0] == card == read_multiclass_bundle(run / "bundle")[0]


def test_networks_of_the_report_refuse_several_classes(images, tmp_path):
    with pytest.raises(RecipeError, match="'alexnet', a network of the report, has one logit"):
        train_run(small(network={"name": "alexnet", "image_size": 64, "dropout": 0.0}), images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prevalence_of_pneumonia_is_refused_for_several_classes(images, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.prevalence is 0\.2"):
        train_run(small(training={"prevalence": 0.2}), images, tmp_path / "run")


def test_folds_keep_patients_together_and_are_evaluated_on_their_validation_images(images, tmp_path):
    out = tmp_path / "folds"
    train_folds(small(training={"epochs": 1}), images, out, 2)
    runs = run_folders(out)
    manifests = [Manifest.from_csv((run / "manifest.csv").read_text(), images, "manifest.csv") for run in runs]
    held_out = [{image.sha256 for image in manifest.split("validation")} for manifest in manifests]
    assert [len(each) for each in held_out] == [54, 54]
    assert not held_out[0] & held_out[1]
    assert [read_run(run).counts["validation"] for run in runs] == [dict.fromkeys(CLASSES, 18)] * 2
    accuracies = []
    for run, hashes in zip(runs, held_out, strict=True):
        evaluation, scored = evaluate_multiclass(run, images, split="validation")
        assert evaluation.metrics["brier"].reason == "the calibration was fitted on 54 of these 54 images"
        assert {image.sha256 for image in scored} == hashes
        accuracies.append(evaluation.metrics["accuracy"].value)
    group = summarize_class_folds(out, "validation")
    assert group.metrics["accuracy"].mean.value == pytest.approx(np.mean(accuracies))
    # In training, images with nearly equal logits may have another class.
    assert accuracies == pytest.approx([read_run(run).best_validation_accuracy for run in runs], abs=0.04)
    assert "brier" not in group.metrics


def test_input_checks_are_trained_and_reject(images, tmp_path):
    manifest = load_manifest(images)
    recipe = small(
        network={"image_size": 56}, rejection={"steps": 2}, training={"epochs": 1}, data={"age_range": [1, 5]}
    )
    train_run(recipe, images, tmp_path / "run")
    model = load_multiclass_model(tmp_path / "run", require_age="always")
    assert model.card.rejection_limits is not None
    image = str(images / manifest.images[0].path)
    assert model.predict(image).rejection.code == "age_required"
    outputs = MulticlassSession.load(tmp_path / "run" / "bundle").outputs(np.zeros((2, 56, 56), np.uint8))
    assert outputs.input_classes.shape == (2, 7)
    assert outputs.ood_distance.shape == (2,)
    rejected = dataclasses.replace(model.predict(image, age=40.0), path="")
    assert (rejected.decision, rejected.class_probabilities) == ("rejected", None)
    assert rejected.rejection.code == "outside_age_range"
