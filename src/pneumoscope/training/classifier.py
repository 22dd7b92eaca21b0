"""LightningModule with the loss, the epoch metrics and the checkpoint state."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pneumoscope.core.errors import DivergedError
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.runs.epochs import Epoch, count_plateaus
from pneumoscope.runs.recipe import Recipe
from pneumoscope.training.data_module import Batch, derive_seed
from pneumoscope.training.objective import BinaryObjective, Objective, SoftmaxObjective, ValidationMetrics
from pneumoscope.training.optimizers import create_optimizer, create_schedule

__all__ = ["Classifier"]


class Classifier(pl.LightningModule):
    """LightningModule that trains one network.

    Args:
        recipe: Recipe of the run.
        network: Network with its initial weights.
        label_weights: Weight of each label in the loss.
        steps_per_epoch: Training steps per epoch.
        on_features: True if batches contain features of the frozen backbone instead of images.

    Attributes:
        history: Metrics of the completed epochs.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: ClassifierNetwork,
        label_weights: Sequence[float],
        steps_per_epoch: int,
        *,
        on_features: bool,
    ) -> None:
        super().__init__()
        self.recipe, self.network, self.on_features = recipe, network, on_features
        self._steps_per_epoch = steps_per_epoch
        objective = BinaryObjective if network.outputs == 1 else SoftmaxObjective
        self._objective: Objective = objective(label_weights, recipe.training.label_smoothing)
        ema = recipe.training.ema
        # Registered as a submodule to include it in checkpoints.
        self.average = (
            AveragedModel(network, multi_avg_fn=functools.partial(_update_average, ema), use_buffers=True)
            if ema
            else None
        )
        if self.average is not None:
            # Otherwise DDP would wait for its gradients.
            self.average.requires_grad_(False)
        if on_features:
            for parameter in network.backbone_parameters():
                parameter.requires_grad_(False)
        self.history: list[Epoch] = []
        self._train_sums = torch.zeros(3)  # loss, correct decisions, images
        self._validation_outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._started = 0.0

    @property
    def evaluated_network(self) -> ClassifierNetwork:
        """The network to validate and save: the moving average if the recipe uses one."""
        if self.average is None:
            return self.network
        return cast(ClassifierNetwork, self.average.module)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer and a schedule that is stepped after each batch."""
        options = self.recipe.optimizer
        optimizer = create_optimizer(options, self.network.parameters())
        steps = self._steps_per_epoch * self.recipe.training.epochs
        self._schedule = create_schedule(options, optimizer, steps, self._steps_per_epoch, self._count_plateaus)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def _count_plateaus(self) -> int:
        losses = [epoch.validation_loss for epoch in self.history]
        return count_plateaus(losses, self.recipe.optimizer.step_epochs)

    def on_train_epoch_start(self) -> None:
        """Reset the sums and the clock, and apply the previous epoch's validation loss to the learning rate."""
        for group, factor in zip(self._schedule.optimizer.param_groups, self._schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(self._schedule.last_epoch)
        self._train_sums = torch.zeros(3, device=self.device)
        self._started = time.monotonic()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from (seed, epoch, device, step), so that a resumed run draws the same numbers.

        Seeding once per epoch is not enough: data loaders and loops also use torch's global generator, and at different points
        in a resumed run.
        """
        torch.manual_seed(derive_seed(self.recipe.training.seed, self.current_epoch, self.global_rank, batch_idx, 3))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of a batch and add the batch to the epoch's training metrics, as Keras does."""
        logits = self._logits(self.network, batch.images)
        labels = batch.labels.repeat(len(logits) // len(batch.labels))
        loss = self._objective.loss(logits, labels)
        if self.recipe.training.consistency:
            loss = loss + self.recipe.training.consistency * self._objective.divergence(*logits.chunk(2)).mean()
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()}")
        correct = self._objective.correct(logits, labels).sum()
        count = len(labels)
        self._train_sums += torch.stack([loss.detach() * count, correct, torch.full_like(loss.detach(), count)])
        self.log("train_loss", loss.detach(), prog_bar=True, logger=False)
        # DDP averages gradients over devices evenly, regardless of how many images each one has.
        return loss * batch.weight

    def on_train_batch_end(self, *_: Any) -> None:
        """Update the moving average of the weights."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def on_validation_epoch_start(self) -> None:
        """Reset the collected outputs."""
        self._validation_outputs = []

    def validation_step(self, batch: Batch, _: int) -> None:
        """Collect the logits of a batch."""
        logits = self._logits(self.evaluated_network, batch.images).float()
        self._validation_outputs.append((logits, batch.labels, batch.indices))

    def on_validation_epoch_end(self) -> None:
        """Compute the validation metrics, counting each image once, and complete the epoch."""
        columns = [torch.cat(column) for column in zip(*self._validation_outputs, strict=True)]
        logits, labels, indices = (self._all_gather(each).reshape(-1, *each.shape[1:]) for each in columns)
        order = torch.argsort(indices, stable=True)
        indices, logits, labels = indices[order], logits[order], labels[order]
        first = torch.cat([indices.new_ones(1, dtype=torch.bool), indices[1:] != indices[:-1]])
        logits, labels = logits[first], labels[first]
        if not torch.isfinite(logits).all():
            # Raise before this epoch writes any file, so the previous checkpoint is kept.
            raise self._diverged("the logit of a validation image is not finite")
        self._complete_epoch(self._objective.validation_metrics(logits, labels))

    def _complete_epoch(self, metrics: ValidationMetrics) -> None:
        # Validation runs last in an epoch, so the training metrics are complete.
        total = self._all_gather(self._train_sums).reshape(-1, 3).sum(dim=0).tolist()
        epoch = Epoch(
            epoch=self.current_epoch + 1,
            train_loss=total[0] / total[2],
            train_accuracy=total[1] / total[2],
            validation_loss=metrics.loss,
            validation_accuracy=metrics.accuracy,
            validation_auroc=metrics.auroc,
            learning_rate=self.trainer.optimizers[0].param_groups[0]["lr"],
            seconds=time.monotonic() - self._started,
        )
        self.history.append(epoch)
        for logger in self.loggers:
            logger.log_metrics(epoch.metrics(), step=epoch.epoch)
        self.log("validation_accuracy", metrics.accuracy, prog_bar=True, logger=False, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history to a checkpoint."""
        checkpoint["history"] = [row._asdict() for row in self.history]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history."""
        self.history = [Epoch(**row) for row in checkpoint["history"]]

    def _diverged(self, problem: str) -> DivergedError:
        return DivergedError(
            f"{problem} in epoch {self.current_epoch + 1} of run {self.recipe.name!r}",
            hint=f"Lower optimizer.learning_rate (it is {self.recipe.optimizer.learning_rate:g}) or set optimizer.clip;"
            " the checkpoint of the previous epoch is kept",
        )

    def _logits(self, network: ClassifierNetwork, images: Tensor) -> Tensor:
        logits: Tensor = network.flatten(network.forward_head(images)) if self.on_features else network(images)
        return logits.float()

    def _all_gather(self, tensor: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return tensor
        # Lightning's `all_gather` calls a deprecated function of torch.
        parts = [torch.empty_like(tensor) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)


def _update_average(decay: float, averages: Any, values: Any, count: Any) -> None:
    # Module-level, because the closure that torch returns cannot be pickled.
    get_ema_multi_avg_fn(decay)(averages, values, count)  # type: ignore[no-untyped-call]
