"""Training in Python: objects with data frames and figures."""

import pytest
from tests.training.conftest import small

import pneumoscope
from pneumoscope.core.errors import UsageError
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.layouts import load_manifest
from pneumoscope.runs.epochs import read_epochs
from pneumoscope.runs.record import read_run

pytestmark = pytest.mark.training


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(small(training={"epochs": 2}).to_toml())
    return path


def test_run_has_its_epochs_as_a_data_frame_and_its_curves_as_a_figure(recipe, phantoms, tmp_path, without_bundle):
    training = pneumoscope.train(recipe, phantoms, tmp_path / "run", settings={"training.seed": 7})

    frame = training.to_dataframe()
    assert list(frame["validation_loss"]) == [epoch.validation_loss for epoch in read_epochs(tmp_path / "run")]
    assert list(frame["run"]) == ["run", "run"]
    assert training.runs == (tmp_path / "run",)
    assert training.records[0].seed == 7
    assert (
        training.figures["run"]._repr_svg_().lstrip().startswith("<?xml")
        or "<svg" in training.figures["run"]._repr_svg_()
    )
    assert "run: epoch" in repr(training)
    assert "<svg" in training._repr_html_()


def test_seeds_and_folds_are_runs_in_the_order_of_their_records(recipe, phantoms, tmp_path, without_bundle):
    one = {"training.epochs": 1}
    seeds = pneumoscope.train(recipe, phantoms, tmp_path / "seeds", settings=one, seeds=2)
    assert [run.name for run in seeds.runs] == ["seed-3", "seed-4"]
    assert list(seeds.to_dataframe()["run"]) == ["seed-3", "seed-4"]
    folds = pneumoscope.train(recipe, phantoms, tmp_path / "folds", settings=one, folds=2)
    assert [(run.name, record.fold) for run, record in zip(folds.runs, folds.records, strict=True)] == [
        ("fold-1", 1),
        ("fold-2", 2),
    ]
    with pytest.raises(UsageError, match="both seeds and folds are given"):
        pneumoscope.train(recipe, phantoms, tmp_path / "both", seeds=2, folds=2)


def test_sweep_has_a_row_for_each_combination(recipe, phantoms, tmp_path, without_bundle):
    found = pneumoscope.sweep(
        recipe,
        phantoms,
        tmp_path / "sweep",
        {"optimizer.learning_rate": [0.002, 0.0001]},
        settings={"training.epochs": 1},
    )
    frame = found.to_dataframe()
    assert sorted(frame["optimizer.learning_rate"]) == ["0.0001", "0.002"]
    assert list(frame["seeds"]) == [1, 1]
    assert list(frame["accuracy"]) == sorted(frame["accuracy"], reverse=True)
    assert "<table>" in found._repr_html_()


def test_settings_of_a_recipe_object_are_refused(phantoms, tmp_path):
    with pytest.raises(UsageError, match="recipe that was already read"):
        pneumoscope.train(small(), phantoms, tmp_path / "run", init="default")


def test_runs_and_sweeps_take_the_names_of_another_data_set_and_the_loggers(recipe, phantoms, tmp_path, without_bundle):
    rows = [f"{phantoms / image.path},{image.label.lower()},{image.split}" for image in load_manifest(phantoms)]
    table, labels = tmp_path / "named.csv", LabelMapping(label_column="finding", positive="pneumonia")
    table.write_text("\n".join(["path,finding,split", *rows]))
    one = {"training.epochs": 1}
    options = {"labels": labels, "loggers": ["csv"]}
    runs = [
        *pneumoscope.train(recipe, table, tmp_path / "run", settings=one, **options).runs,
        *pneumoscope.train(recipe, table, tmp_path / "seeds", settings=one, seeds=1, **options).runs,
    ]
    rates = {"optimizer.learning_rate": [0.002, 0.0001]}
    found = pneumoscope.sweep(recipe, table, tmp_path / "sweep", rates, settings=one, **options)
    runs += [tmp_path / "sweep" / row.name / "seed-3" for row in found.rows]
    assert len(runs) == 4
    for run in runs:
        assert read_run(run).labels == labels
        assert not (run / "tensorboard").exists()
        assert list(run.rglob("metrics.csv"))
