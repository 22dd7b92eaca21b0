"""Loggers of the metrics of each epoch: TensorBoard, CSV and MLflow, by Lightning."""

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
    """Raise if the package of a logger is not installed.

    Raises:
        MissingExtraError: With the extra that has it.
    """
    if "mlflow" in names and importlib.util.find_spec("mlflow") is None:
        raise MissingExtraError("mlflow", "the logger mlflow", "mlflow")


def create_loggers(names: Sequence[LoggerName], run: Path, recipe: Recipe) -> list[Logger]:
    """Return Lightning's loggers of a run.

    Args:
        names: Names of the loggers.
        run: The run folder. A resumed run continues its logs; the CSV log is written again.
        recipe: Recipe of the run; MLflow records its fields.
    """
    loggers: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(run, name=TENSORBOARD_FOLDER, version=""))
        elif name == "csv":
            shutil.rmtree(run / CSV_LOG_FOLDER, ignore_errors=True)  # `CompleteCsvLog` writes it again
            loggers.append(CSVLogger(run, name=CSV_LOG_FOLDER, version="", flush_logs_every_n_steps=1))
        else:
            loggers.append(_mlflow_logger(run, recipe))
    return loggers


def _mlflow_logger(run: Path, recipe: Recipe) -> MLFlowLogger:
    """Return the logger of a run in MLflow: the same run after a resumption, whose id is in the run folder."""
    file = run / MLFLOW_RUN_FILE
    known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
    logger = MLFlowLogger(
        experiment_name="pneumoscope",
        run_name=f"{recipe.name} {run.resolve().name}",
        # The same variable as for MLflow's own programs, read now and not when Lightning is imported.
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run / MLFLOW_STORE).resolve()}",
        run_id=known,
    )
    if known is None:
        logger.log_hyperparams(recipe.model_dump(mode="json"))
        write_atomically(file, f"{logger.run_id}\n")
    return logger


class CompleteCsvLog(Callback):
    """Write the epochs before a resumption to the CSV log: Lightning starts a new file."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epochs of the checkpoint."""
        assert isinstance(pl_module, Classifier)
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                for epoch in pl_module.history:
                    logger.log_metrics({**epoch.metrics()}, step=epoch.epoch)
