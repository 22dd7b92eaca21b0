"""Lightning loggers of the epoch metrics: TensorBoard, CSV and MLflow."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.mlflow import MLFlowLogger

from pneumoscope.core.errors import MissingExtraError
from pneumoscope.core.files import write_atomically
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.run_folder import (
    CSV_LOG_FOLDER,
    MLFLOW_RUN_FILE,
    MLFLOW_STORE,
    TENSORBOARD_FOLDER,
    LoggerName,
)
from pneumoscope.training.classifier import Classifier

__all__ = ["CompleteCsvLog", "check_loggers", "create_loggers"]


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Raise if a logger's package is not installed.

    Raises:
        MissingExtraError: Contains the extra to install.
    """
    if "mlflow" in names and importlib.util.find_spec("mlflow") is None:
        raise MissingExtraError("mlflow", "the logger mlflow", "mlflow")


def create_loggers(names: Sequence[LoggerName], run: Path, recipe: Recipe) -> list[Logger]:
    """Return Lightning's loggers of a run.

    Args:
        names: Names of the loggers.
        run: Run folder. A resumed run continues its logs; the CSV log is rewritten.
        recipe: Recipe of the run; MLflow records its fields.
    """
    loggers: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(run, name=TENSORBOARD_FOLDER, version=""))
        elif name == "csv":
            shutil.rmtree(run / CSV_LOG_FOLDER, ignore_errors=True)  # rewritten by `CompleteCsvLog`
            loggers.append(CSVLogger(run, name=CSV_LOG_FOLDER, version="", flush_logs_every_n_steps=1))
        else:
            loggers.append(_mlflow_logger(run, recipe))
    return loggers


def _mlflow_logger(run: Path, recipe: Recipe) -> MLFlowLogger:
    """Return the MLflow logger; a resumed run continues the MLflow run whose id is stored in the run folder."""
    file = run / MLFLOW_RUN_FILE
    known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
    logger = MLFlowLogger(
        experiment_name="pneumoscope",
        run_name=f"{recipe.name} {run.resolve().name}",
        # MLflow's own variable, read here because Lightning would read it at import.
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run / MLFLOW_STORE).resolve()}",
        run_id=known,
    )
    if known is None:
        logger.log_hyperparams(recipe.model_dump(mode="json"))
        write_atomically(file, f"{logger.run_id}\n")
    return logger


class CompleteCsvLog(Callback):
    """Callback that copies the epochs before a resumption to the CSV log, because Lightning starts a new file."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epochs from the checkpoint."""
        assert isinstance(pl_module, Classifier)
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                for epoch in pl_module.history:
                    logger.log_metrics({**epoch.metrics()}, step=epoch.epoch)
