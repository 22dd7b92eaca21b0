"""Fine-tuning: a run that starts from a bundle or a run starts from its score, and remembers the images that it has seen."""

import math
import shutil

import pytest
from tests.training.conftest import small

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import short_hash
from pneumoscope.core.errors import DatasetError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.models.factory import create_initialized
from pneumoscope.runs.epochs import read_epochs
from pneumoscope.runs.record import read_run
from pneumoscope.runs.run_folder import WEIGHTS_FILE
from pneumoscope.training.train import train_run

pytestmark = pytest.mark.training
STILL = {"learning_rate": 1e-12}
NETWORK = {"name": "test_convnext"}  # without batch norms, whose statistics change although no weight does


@pytest.fixture(scope="module")
def first(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("first") / "first"
    train_run(small(network=NETWORK, training={"epochs": 2}), phantoms, out)
    return out


@pytest.mark.parametrize("source", ["first/bundle", "first", f"first/{WEIGHTS_FILE}"])
def test_run_from_a_bundle_or_run_starts_from_its_score(first, phantoms, tmp_path, source):
    notes = []
    recipe = small(network={**NETWORK, "weights": str(first.parent / source)}, training={"epochs": 1}, optimizer=STILL)
    record = train_run(recipe, phantoms, tmp_path / "run", log=notes.append)

    best = read_epochs(first)[read_run(first).best_epoch - 1]
    (epoch,) = read_epochs(tmp_path / "run")
    assert epoch.validation_loss == pytest.approx(best.validation_loss, abs=1e-3)
    assert epoch.validation_auroc == pytest.approx(best.validation_auroc, abs=0.02)
    assert abs(best.validation_loss - math.log(2)) > 0.003  # the loss of a network with a new last layer
    assert record.weights == str(first.parent / source)
    assert any("15 of 15 validation images trained or validated the initial weights" in note for note in notes)


def test_run_without_a_bundle_states_the_images_that_its_weights_have_seen(first, tmp_path):
    copy = shutil.copytree(first, tmp_path / "copy", ignore=shutil.ignore_patterns("bundle"))
    _, loaded = create_initialized("test_convnext", str(copy), {"image_size": 32})

    card, _ = read_bundle(first / "bundle")
    assert loaded.seen == {*card.seen["train"], *card.seen["validation"]} != set()
    assert "those of its own initial weights are unknown" in loaded.notes[-1]


def test_training_images_of_other_weight_files_are_reported_as_unknown(first, tmp_path):
    file = shutil.copy(first / WEIGHTS_FILE, tmp_path / "other.safetensors")
    _, loaded = create_initialized("test_convnext", str(file), {"image_size": 32})

    assert loaded.seen == frozenset()
    assert "it is unknown which images the weights" in loaded.notes[-1]


def test_images_that_the_initial_weights_have_seen_are_never_test_images(first, phantoms, tmp_path):
    """The new data have a training image of the first model as a test image."""
    images = tmp_path / "images"
    write_phantoms(images, train=30, test=10, seed=7, size=48)
    manifest = load_manifest(phantoms)
    seen = next(image for image in load_manifest(first / "manifest.csv") if image.split == "train" and image.positive)
    source = next(image for image in manifest if image.sha256 == seen.sha256)
    copy = images / "test/PNEUMONIA/person9999_virus_1.jpeg"
    copy.write_bytes((phantoms / source.path).read_bytes())
    notes = []
    recipe = small(network={**NETWORK, "weights": str(first / "bundle")}, training={"epochs": 1}, optimizer=STILL)

    train_run(recipe, images, tmp_path / "run", log=notes.append)

    card, _ = read_bundle(tmp_path / "run/bundle")
    assert short_hash(seen.sha256) in card.seen["train"]
    before, _ = read_bundle(first / "bundle")
    assert {*before.seen["train"], *before.seen["validation"]} <= {*card.seen["train"]}
    assert any("1 of 11 test images trained or validated the initial weights" in note for note in notes)
    with pytest.raises(DatasetError, match="used 1 of the 11 images as train images"):
        evaluate(tmp_path / "run", images)


def test_fine_tuning_from_a_bundle_is_repeatable(first, phantoms, tmp_path, without_bundle):
    recipe = small(network={**NETWORK, "weights": str(first / "bundle")}, training={"epochs": 1})
    records = [train_run(recipe, phantoms, tmp_path / name) for name in ("a", "b")]
    a, b = (tmp_path / name / WEIGHTS_FILE for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()
    assert records[0].weights_sha256 == records[1].weights_sha256 != ""
