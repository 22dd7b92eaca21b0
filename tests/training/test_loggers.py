"""Loggers of a run: CSV and MLflow beside TensorBoard; a resumed run continues its logs."""

import csv

import pytest
from tests.training.conftest import small

from pneumoscope.core.errors import MissingExtraError
from pneumoscope.runs.epochs import read_epochs
from pneumoscope.training import loggers as loggers_module
from pneumoscope.training.loggers import create_loggers
from pneumoscope.training.train import train_run

pytestmark = pytest.mark.training


def test_csv_log_has_all_epochs_also_after_a_resumption(phantoms, tmp_path, without_bundle):
    out, recipe = tmp_path / "run", small()

    def interrupt(callback, trainer, *_):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loggers_module.CompleteCsvLog, "on_train_epoch_start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_run(recipe, phantoms, out, loggers=("csv",))
    assert len(read_epochs(out)) == 1
    train_run(recipe, phantoms, out, resume=True, loggers=("csv",))

    rows = list(csv.DictReader((out / "csv/metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [1, 2]
    for row, epoch in zip(rows, read_epochs(out), strict=True):
        assert {name: float(row[name]) for name in epoch.metrics()} == epoch.metrics()
    assert not (out / "tensorboard").exists()


def test_mlflow_without_its_package_is_an_error_before_anything_is_written(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pneumoscope\[mlflow\]"):
        train_run(small(), phantoms, tmp_path / "run", loggers=("mlflow",))
    assert not (tmp_path / "run").exists()


def test_mlflow_run_has_settings_and_epochs_and_is_continued(tmp_path, monkeypatch):
    """Runs where the extra [mlflow] is installed."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    run.mkdir()
    (first,) = create_loggers(("mlflow",), run, small())
    first.log_metrics({"validation_auroc": 0.75}, step=1)
    (again,) = create_loggers(("mlflow",), run, small())
    again.log_metrics({"validation_auroc": 0.8}, step=2)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'pneumoscope'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params["optimizer/learning_rate"] == "0.002"
    history = client.get_metric_history(found.info.run_id, "validation_auroc")
    assert [(each.step, each.value) for each in history] == [(1, 0.75), (2, 0.8)]
