"""The LightningModule: loss, the figures of an epoch, and what a checkpoint must remember to go on as if nothing had happened."""

from __future__ import annotations

import functools
import time
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pneumoscope.core.errors import DivergedError
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.runs.epochs import Epoch
from pneumoscope.runs.recipe import Recipe
from pneumoscope.statistics.roc import auroc
from pneumoscope.training.data_module import Batch, derive_seed
from pneumoscope.training.optimizers import make_optimizer, make_schedule

__all__ = ["Classifier"]


class Classifier(pl.LightningModule):
    """One network in training.

    Args:
        recipe: what to do.
        network: with its starting weights.
        weights: of the loss for (NORMAL, PNEUMONIA).
        steps_an_epoch: training steps of every epoch.
        on_features: True where batches hold the features of frozen convolutions, not images.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: ClassifierNetwork,
        weights: tuple[float, float],
        steps_an_epoch: int,
        *,
        on_features: bool,
    ) -> None:
        super().__init__()
        self.recipe, self.network, self.on_features = recipe, network, on_features
        self._label_weights, self._steps_an_epoch = weights, steps_an_epoch
        ema = recipe.training.ema
        # Held by Lightning as a submodule, so that it is in every checkpoint.
        self.average = (
            AveragedModel(network, multi_avg_fn=functools.partial(_move_mean, ema), use_buffers=True) if ema else None
        )
        if self.average is not None:
            # It follows; it does not train. Several devices would otherwise wait for its gradients.
            self.average.requires_grad_(False)
        if on_features:
            for parameter in network.backbone_parameters():
                parameter.requires_grad_(False)
        self.history: list[Epoch] = []
        self._sums = torch.zeros(3)
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []
        self._started = 0.0

    @property
    def kept(self) -> ClassifierNetwork:
        """The network that is validated and kept: the mean of the weights where the recipe has one."""
        if self.average is None:
            return self.network
        return cast(ClassifierNetwork, self.average.module)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """By the recipe; the schedule moves a step at a time."""
        choice = self.recipe.optimizer
        optimizer = make_optimizer(choice, self.network.parameters())
        steps = self._steps_an_epoch * self.recipe.training.epochs
        schedule = make_schedule(choice, optimizer, steps, self._steps_an_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Begin to count."""
        self._sums = torch.zeros(3, device=self.device)
        self._started = time.monotonic()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw dropout from (seed, epoch, device, step): after an interruption the same numbers come again.

        Once an epoch would not do: loaders and loops draw from torch's global generator too, at other moments when resumed.
        """
        torch.manual_seed(derive_seed(self.recipe.training.seed, self.current_epoch, self.global_rank, batch_idx, 3))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """One step; its images count towards the epoch's training loss and accuracy as they were seen, as Keras counts."""
        logits = self._logits(self.network, batch.images)
        smoothing = self.recipe.training.label_smoothing
        targets = batch.labels * (1 - smoothing) + 0.5 * smoothing
        normal, pneumonia = self._label_weights
        weights = torch.where(batch.labels > 0, pneumonia, normal)
        loss = F.binary_cross_entropy_with_logits(logits, targets, weight=weights)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()}")
        correct = ((logits > 0) == (batch.labels > 0)).sum()
        count = len(batch.labels)
        self._sums += torch.stack([loss.detach() * count, correct, torch.full_like(loss.detach(), count)])
        self.log("train_loss", loss.detach(), prog_bar=True, logger=False)
        # Devices' gradients are averaged evenly, whatever their shares of the batch.
        return loss * batch.weight

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the mean of the weights."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def on_validation_epoch_start(self) -> None:
        """Begin to collect."""
        self._validated = []

    def validation_step(self, batch: Batch, _: int) -> None:
        """Collect logits."""
        self._validated.append((self._logits(self.kept, batch.images).float(), batch.labels, batch.places))

    def on_validation_epoch_end(self) -> None:
        """Loss, accuracy at 0.5 and AUROC over all validation images, each counted once; then close the epoch."""
        columns = [torch.cat(column) for column in zip(*self._validated, strict=True)]
        logits, labels, places = (self._from_all(column).reshape(-1) for column in columns)
        order = torch.argsort(places, stable=True)
        places, logits, labels = places[order], logits[order], labels[order]
        once = torch.cat([places.new_ones(1, dtype=torch.bool), places[1:] != places[:-1]])
        logits, labels = logits[once], labels[once]
        if not torch.isfinite(logits).all():
            # Before anything of this epoch is written: the checkpoint of the epoch before stays the last good one.
            raise self._diverged("a validation image's logit is no number")
        self._close_epoch(
            F.binary_cross_entropy_with_logits(logits, labels).item(),
            ((logits > 0) == (labels > 0)).double().mean().item(),
            auroc(logits.double().cpu().numpy(), labels.cpu().numpy() > 0),
        )

    def _close_epoch(self, loss: float, accuracy: float, area: float) -> None:
        # Validation is the last thing of an epoch, so its training figures are whole by now.
        total = self._from_all(self._sums).reshape(-1, 3).sum(dim=0).tolist()
        row = Epoch(
            epoch=self.current_epoch + 1,
            train_loss=total[0] / total[2],
            train_accuracy=total[1] / total[2],
            validation_loss=loss,
            validation_accuracy=accuracy,
            validation_auroc=area,
            learning_rate=self.trainer.optimizers[0].param_groups[0]["lr"],
            seconds=time.monotonic() - self._started,
        )
        self.history.append(row)
        if self.logger is not None:
            metrics = {key: value for key, value in row._asdict().items() if key != "epoch"}
            self.logger.log_metrics(metrics, step=row.epoch)
        self.log("validation_accuracy", accuracy, prog_bar=True, logger=False, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the history."""
        checkpoint["history"] = [row._asdict() for row in self.history]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the history."""
        self.history = [Epoch(**row) for row in checkpoint["history"]]

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{what} in epoch {self.current_epoch + 1} of run {self.recipe.name!r}",
            hint=f"Lower optimizer.learning_rate (it is {self.recipe.optimizer.learning_rate:g}) or set optimizer.clip;"
            " the checkpoint of the epoch before is kept",
        )

    def _logits(self, network: ClassifierNetwork, images: Tensor) -> Tensor:
        logits: Tensor = network.forward_head(images).squeeze(1) if self.on_features else network(images)
        return logits.float()

    def _from_all(self, own: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return own
        # Not Lightning's, which goes through a function of torch's that warns of its end.
        parts = [torch.empty_like(own) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(parts, own.contiguous())
        return torch.stack(parts)


def _move_mean(decay: float, means: Any, values: Any, count: Any) -> None:
    # A function of the module's own, because torch's is a closure, which cannot go to another process.
    get_ema_multi_avg_fn(decay)(means, values, count)  # type: ignore[no-untyped-call]
