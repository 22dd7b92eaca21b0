"""Several runs of one recipe: with consecutive seeds, and by cross-validation."""

import pytest
from tests.training.conftest import small

from pneumoscope.core.errors import DatasetError, RunError, UsageError
from pneumoscope.data.folds import Fold
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.comparison.cross_validation import summarize_folds
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.runs.record import read_run
from pneumoscope.runs.run_folder import WEIGHTS_FILE, run_folders
from pneumoscope.training.inputs import apply_split
from pneumoscope.training.run_series import train_folds, train_seeds
from pneumoscope.training.train import train_run

pytestmark = pytest.mark.training


def test_each_of_several_seeds_is_the_run_that_is_trained_alone(phantoms, tmp_path):
    recipe = small(training={"epochs": 1})
    records = train_seeds(recipe, phantoms, tmp_path / "runs", 2)
    assert [record.seed for record in records] == [3, 4]
    assert run_folders(tmp_path / "runs") == [tmp_path / "runs/seed-3", tmp_path / "runs/seed-4"]
    train_run(small(training={"epochs": 1, "seed": 4}), phantoms, tmp_path / "alone")
    first, second, alone = (tmp_path / name / WEIGHTS_FILE for name in ("runs/seed-3", "runs/seed-4", "alone"))
    assert second.read_bytes() == alone.read_bytes() != first.read_bytes()
    assert (tmp_path / "runs/seed-4/bundle/network.onnx").read_bytes() == (
        tmp_path / "alone/bundle/network.onnx"
    ).read_bytes()


def test_more_seeds_are_added_and_finished_runs_are_kept(phantoms, tmp_path, without_bundle):
    recipe, out = small(training={"epochs": 1}), tmp_path / "runs"
    messages = []
    train_seeds(recipe, phantoms, out, 1)
    before = (out / "seed-3/run.json").read_bytes()
    with pytest.raises(RunError, match=r"runs' already has 1 run"):
        train_seeds(recipe, phantoms, out, 2)
    assert not (out / "seed-4").exists()
    records = train_seeds(recipe, phantoms, out, 2, resume=True, log=messages.append)
    assert [record.state for record in records] == 2 * ["finished"]
    assert (out / "seed-3/run.json").read_bytes() == before
    assert [message for message in messages if message.startswith("seed")] == ["seed 3 (1 of 2)", "seed 4 (2 of 2)"]


def test_seeds_that_draw_their_own_test_images_are_noted(phantoms, tmp_path, without_bundle):
    messages = []
    train_seeds(small(training={"epochs": 1}), phantoms / "train", tmp_path / "flat", 2, log=messages.append)
    assert sum("has no test split, so that each seed draws other test images" in message for message in messages) == 1
    messages.clear()
    train_seeds(small(training={"epochs": 1}), phantoms, tmp_path / "with-test", 2, log=messages.append)
    assert not any("has no test split" in message for message in messages)


def test_several_seeds_take_a_csv_with_the_column_that_the_recipe_names(phantoms, tmp_path, without_bundle):
    """As one run does: the file has no column `label`."""
    images = load_manifest(phantoms).images
    rows = [f"{image.path},{image.label},{image.split}" for image in images]
    table = phantoms / "causes.csv"
    table.write_text("\n".join(["path,etiology,split", *rows]))
    recipe = small(training={"epochs": 1}, data={"labels": "etiology"})
    try:
        records = train_seeds(recipe, table, tmp_path / "runs", 2)
    finally:
        table.unlink()
    assert [record.state for record in records] == 2 * ["finished"]


def test_folder_with_other_files_does_not_become_a_folder_of_runs(phantoms, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "thorax.png").touch()
    for resume in (False, True):
        with pytest.raises(RunError, match=r"images' is not empty and has no run"):
            train_seeds(small(), phantoms, tmp_path / "images", 2, resume=resume)
        with pytest.raises(RunError, match=r"images' is not empty and has no run"):
            train_folds(small(), phantoms, tmp_path / "images", 2, resume=resume)
    with pytest.raises(RunError, match=r"images' is not empty and has no run"):
        train_run(small(), phantoms, tmp_path / "images", resume=True)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["thorax.png"]


def test_run_is_not_a_folder_of_runs(phantoms, tmp_path, without_bundle):
    recipe = small(training={"epochs": 1})
    train_run(recipe, phantoms, tmp_path / "run")
    assert run_folders(tmp_path / "run") == []
    with pytest.raises(RunError, match="is a run, not a folder of runs"):
        train_seeds(recipe, phantoms, tmp_path / "run", 2, resume=True)
    with pytest.raises(UsageError, match="number of seeds is 0"):
        train_seeds(recipe, phantoms, tmp_path / "runs", 0)


def test_each_fold_validates_on_its_own_images_and_no_test_image_is_used(phantoms, tmp_path, without_bundle):
    recipe, out = small(training={"epochs": 1}), tmp_path / "folds"
    records = train_folds(recipe, phantoms, out, 3)
    assert [(record.fold, record.folds, record.seed) for record in records] == [(1, 3, 3), (2, 3, 3), (3, 3, 3)]
    assert run_folders(out) == [out / f"fold-{number}" for number in (1, 2, 3)]
    manifests = [load_manifest(run / "manifest.csv") for run in run_folders(out)]
    validation = [{image.sha256 for image in manifest.split("validation")} for manifest in manifests]
    test = {image.sha256 for image in load_manifest(phantoms).split("test")}
    assert sum(map(len, validation)) == len(set.union(*validation)) == 60
    for manifest in manifests:
        assert {image.sha256 for image in manifest.split("test")} == test
        assert manifest.leaks() == {}


def test_interrupted_cross_validation_is_resumed(phantoms, tmp_path, without_bundle, monkeypatch):
    recipe, out = small(training={"epochs": 1}), tmp_path / "folds"
    messages = []

    def interrupt(message):
        messages.append(message)
        if message == "fold 2 of 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_folds(recipe, phantoms, out, 3, log=interrupt)
    before = (out / "fold-1/run.json").read_bytes()
    with pytest.raises(RunError, match="already has 1 run"):
        train_folds(recipe, phantoms, out, 3)
    with pytest.raises(RunError, match="fold-1' is one of 3 folds, and runs of 4 folds were requested"):
        train_folds(recipe, phantoms, out, 4, resume=True)
    with pytest.raises(RunError, match="fold-1' is one of 3 folds, and runs of different seeds were requested"):
        train_seeds(recipe, phantoms, out, 2, resume=True)
    records = train_folds(recipe, phantoms, out, 3, resume=True)
    assert [record.state for record in records] == 3 * ["finished"]
    assert (out / "fold-1/run.json").read_bytes() == before


def test_folds_of_another_recipe_with_the_same_seed_have_the_same_images(phantoms):
    manifest = load_manifest(phantoms)
    a, b = small(optimizer={"learning_rate": 0.002}), small(optimizer={"learning_rate": 0.001})
    of_a, of_b = (apply_split(manifest, recipe, "phantoms", Fold(2, 3)).sha256() for recipe in (a, b))
    assert of_a == of_b != apply_split(manifest, a, "phantoms", Fold(1, 3)).sha256()


def test_trained_folds_are_evaluated_on_their_validation_images(phantoms, tmp_path):
    out = tmp_path / "folds"
    train_folds(small(training={"epochs": 1}), phantoms, out, 2)
    for run in run_folders(out):
        evaluate(run, phantoms, split="validation", operating_points=("half",))
    group = summarize_folds(out, "validation", "half")
    assert group.metrics["accuracy"].mean.n == 60
    expected = [read_run(run).best_validation_accuracy for run in run_folders(out)]
    assert group.metrics["accuracy"].mean.value == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize("by", ["image", "block"])
def test_folds_that_would_divide_patients_or_blocks_are_an_error(phantoms, tmp_path, by):
    with pytest.raises(UsageError, match=f"splits by {by}, and folds keep the images of a patient together"):
        train_folds(small(data={"by": by}), phantoms, tmp_path / "folds", 3)
    with pytest.raises(UsageError, match="number of folds is 1; the minimum is 2"):
        train_folds(small(), phantoms, tmp_path / "folds", 1)
    with pytest.raises(DatasetError, match="40 folds need as many patients of each label"):
        train_folds(small(), phantoms, tmp_path / "folds", 40)
    assert not (tmp_path / "folds").exists()
