"""Combinations of settings: their recipes, the folders of their runs, and the table of validation results."""

import csv

import numpy as np
import pytest
from click.testing import CliRunner
from tests.training.conftest import small

from pneumoscope.cli.sweep import command, print_rows
from pneumoscope.core.errors import RecipeError, RunError, UsageError
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.runs.epochs import read_epochs
from pneumoscope.runs.record import read_run
from pneumoscope.training.api import Sweep
from pneumoscope.training.sweep import SWEEP_TABLE, read_combinations, run_sweep

pytestmark = pytest.mark.training
RECIPES = {"small": small(training={"epochs": 1}).to_toml()}


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    monkeypatch.setattr("pneumoscope.runs.recipe_files.known_recipes", lambda: RECIPES)


def combinations(*overrides):
    return read_combinations("small", overrides)


def test_every_combination_of_values_has_a_recipe():
    found = combinations("training.batch=4,8", "optimizer.learning_rate=0.1,0.01,0.001", "training.epochs=2")
    assert [(each.recipe.training.batch, each.recipe.optimizer.learning_rate) for each in found] == [
        (batch, rate) for batch in (4, 8) for rate in (0.1, 0.01, 0.001)
    ]
    assert {each.recipe.training.epochs for each in found} == {2}
    assert found[0].name == "training.batch=4,optimizer.learning_rate=0.1"
    assert found[0].settings == {"training.batch": "4", "optimizer.learning_rate": "0.1"}


def test_commas_in_brackets_and_quotes_belong_to_a_value():
    found = combinations("data.age_range=[1, 5],none", 'population.sentence="Adults, one hospital","Adults"')
    assert [each.recipe.data.age_range for each in found] == [(1, 5), (1, 5), None, None]
    assert found[0].recipe.population.sentence == "Adults, one hospital"
    assert "/" not in found[0].name


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ((), UsageError, "no field has several values"),
        (("training.batch=4",), UsageError, "no field has several values"),
        (("training.batch=4,8", "training.batch=16"), UsageError, "--set training.batch is given twice"),
        (("training.batch=4,4",), UsageError, "two combinations have the same name"),
        (("training.batch=4,x",), RecipeError, "training.batch"),
        (("training.batch=4,8", "training.epochs"), RecipeError, "is not KEY=VALUE"),
        (tuple(f"augmentation.{name}=0.1,0.2" for name in ("scale", "aspect", "brightness", "contrast", "gamma", "noise",
                                                          "jpeg", "translation", "border_swap", "blur")),
         UsageError, "1,024 combinations; the maximum is 1,000"),
    ],
)  # fmt: skip
def test_invalid_settings_are_errors(overrides, error, message):
    with pytest.raises(error, match=message):
        combinations(*overrides)


def test_table_has_the_validation_results_and_a_finished_sweep_trains_nothing_again(
    phantoms, tmp_path, without_bundle, monkeypatch
):
    found, out = combinations("optimizer.learning_rate=0.002,0.00001"), tmp_path / "sweep"
    rows = run_sweep(found, phantoms, out, seeds=2)
    table = list(csv.DictReader((out / SWEEP_TABLE).read_text().splitlines()))
    assert [row["folder"] for row in table] == [row.name for row in rows]
    assert {row.auroc_name for row in rows} == {"AUROC"}
    assert rows[0].accuracy >= rows[1].accuracy  # the recipe selects by accuracy
    for row, cells in zip(rows, table, strict=True):
        runs = [out / row.name / f"seed-{seed}" for seed in (3, 4)]
        epochs = [read_epochs(run)[0] for run in runs]
        accuracies = [epoch.validation_accuracy for epoch in epochs]
        assert (row.accuracy, row.accuracy_sd) == pytest.approx((np.mean(accuracies), np.std(accuracies, ddof=1)))
        assert float(cells["auroc"]) == pytest.approx(np.mean([epoch.validation_auroc for epoch in epochs]))
        assert float(cells["loss"]) == pytest.approx(np.mean([epoch.validation_loss for epoch in epochs]))
        assert cells["optimizer.learning_rate"] == row.settings["optimizer.learning_rate"]
        assert read_run(runs[1]).recipe["optimizer"]["learning_rate"] == float(cells["optimizer.learning_rate"])
    with pytest.raises(RunError, match="sweep' is not empty"):
        run_sweep(found, phantoms, out, seeds=2)
    before = [(run / "run.json").read_bytes() for run in sorted(out.glob("*/seed-*"))]
    assert run_sweep(found, phantoms, out, seeds=2, resume=True) == rows
    assert [(run / "run.json").read_bytes() for run in sorted(out.glob("*/seed-*"))] == before


def test_auroc_of_several_classes_is_the_macro_auroc(phantoms, tmp_path, without_bundle, capsys):
    labels = LabelMapping(label_column="etiology")
    rows = run_sweep(combinations("training.batch=8,16"), phantoms, tmp_path / "sweep", labels=labels)
    assert [(row.auroc_name, row.classes) for row in rows] == [("macro AUROC", ("bacteria", "normal", "virus"))] * 2
    print_rows(rows)
    assert "macro AUROC" in capsys.readouterr().out
    found = Sweep(tmp_path / "sweep", tuple(rows))
    assert f"macro AUROC {rows[0].auroc:.4f}" in repr(found)
    assert "<th>macro AUROC</th>" in found._repr_html_()
    table = (tmp_path / "sweep" / SWEEP_TABLE).read_text().splitlines()
    assert table[0] == "training.batch,seeds,accuracy,accuracy_sd,auroc,auroc_sd,loss,loss_sd,seconds,folder"


def test_one_seed_has_no_standard_deviation(phantoms, tmp_path, without_bundle):
    rows = run_sweep(combinations("training.batch=8,16"), phantoms, tmp_path / "sweep")
    assert [row.accuracy_sd for row in rows] == [None, None]
    with pytest.raises(UsageError, match="number of seeds is 0"):
        run_sweep(combinations("training.batch=8,16"), phantoms, tmp_path / "other", seeds=0)


def test_an_out_that_is_a_file_is_a_usage_error(tmp_path):
    file = tmp_path / "sweep"
    file.touch()
    done = CliRunner().invoke(
        command, ["quick", "--data", str(tmp_path), "--set", "training.batch=4,8", "--out", str(file)]
    )
    assert (done.exit_code, "is a file" in done.output) == (2, True), done.output


def test_folder_with_other_files_does_not_become_a_sweep(phantoms, tmp_path):
    (tmp_path / "thorax.png").touch()
    with pytest.raises(RunError, match="is not empty and has no run"):
        run_sweep(combinations("training.batch=4,8"), phantoms, tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thorax.png"]
