"""Training loss and validation metrics, for one logit (NORMAL or PNEUMONIA) or a softmax over several classes."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pneumoscope.statistics.probabilities import log_odds, softmax
from pneumoscope.statistics.roc import auroc, weighted_macro_auroc

__all__ = ["BinaryObjective", "Objective", "SoftmaxObjective", "ValidationMetrics", "js_divergence"]


class ValidationMetrics(NamedTuple):
    """Loss, accuracy and AUROC of the validation images; for several classes, the mean one-vs-rest AUROC."""

    loss: float
    accuracy: float
    auroc: float


class Objective(abc.ABC):
    """Loss and metrics of a network's logits.

    Args:
        label_weights: Weight of each label in the loss.
        smoothing: Label smoothing: fraction of each label spread evenly over all labels.
    """

    def __init__(self, label_weights: Sequence[float], smoothing: float) -> None:
        self.label_weights, self.smoothing = tuple(label_weights), smoothing

    @abc.abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    @abc.abstractmethod
    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the Jensen-Shannon divergence between two predictions of the same images, shape (n,); see `js_divergence`."""

    @abc.abstractmethod
    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return whether each image is classified correctly, at threshold 0.5 or by the highest logit, shape (n,)."""

    @abc.abstractmethod
    def validation_metrics(self, logits: Tensor, labels: Tensor) -> ValidationMetrics:
        """Return the metrics of all validation images."""


class BinaryObjective(Objective):
    """Binary cross-entropy of logits (n,) with labels (n,), where 1.0 is pneumonia."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        targets = labels * (1 - self.smoothing) + 0.5 * self.smoothing
        normal, pneumonia = self.label_weights
        weights = torch.where(labels > 0, pneumonia, normal)
        return F.binary_cross_entropy_with_logits(logits, targets, weight=weights)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the Jensen-Shannon divergence between two predictions."""
        return js_divergence(*(F.logsigmoid(torch.stack([logits, -logits], dim=1)) for logits in (first, second)))

    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return whether each image is classified correctly."""
        return (logits > 0) == (labels > 0)

    def validation_metrics(self, logits: Tensor, labels: Tensor) -> ValidationMetrics:
        """Return the metrics of all validation images."""
        return ValidationMetrics(
            F.binary_cross_entropy_with_logits(logits, labels).item(),
            self.correct(logits, labels).double().mean().item(),
            auroc(logits.double().cpu().numpy(), labels.cpu().numpy() > 0),
        )


class SoftmaxObjective(Objective):
    """Cross-entropy of logits (n, K) with class indices (n,)."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, weighted per image as in the binary loss."""
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
        return (losses * losses.new_tensor(self.label_weights)[labels]).mean()

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the Jensen-Shannon divergence between two predictions."""
        return js_divergence(F.log_softmax(first, dim=1), F.log_softmax(second, dim=1))

    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return whether each image is classified correctly."""
        return logits.argmax(1) == labels

    def validation_metrics(self, logits: Tensor, labels: Tensor) -> ValidationMetrics:
        """Return the metrics of all validation images."""
        targets = labels.cpu().numpy()
        ranking = log_odds(softmax(logits.double().cpu().numpy()))
        return ValidationMetrics(
            F.cross_entropy(logits, labels).item(),
            self.correct(logits, labels).double().mean().item(),
            float(weighted_macro_auroc(ranking, targets, np.ones((1, len(targets))))[0]),
        )


def js_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence between two distributions in nats, shape (n,): 0 if equal, at most log 2.

    Args:
        log_p, log_q: Log probabilities of the same images, shape (n, K).

    Source: Lin 1991, IEEE Trans Inf Theory 37:145.
    """
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((log_p.exp() * (log_p - log_mean)).sum(1) + (log_q.exp() * (log_q - log_mean)).sum(1)) / 2
