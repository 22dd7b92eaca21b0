"""Optimizers and learning-rate schedules of recipes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pneumoscope.runs.recipe import OptimizerOptions

__all__ = ["RMSprop", "create_optimizer", "create_schedule"]


class RMSprop(torch.optim.Optimizer):
    """RMSprop with epsilon inside the root, as in the report; torch adds it outside.

    E[g^2] = decay E[g^2] + (1 - decay) g^2;  theta -= rate g / sqrt(E[g^2] + epsilon).

    Source: The report, section 3. Hinton's lecture 6e (2012) omits epsilon.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 0.001, decay: float = 0.9, epsilon: float = 1e-7
    ) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient and return the loss of the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["square"] = torch.zeros_like(parameter)
                square: Tensor = state["square"]
                square.mul_(group["decay"]).addcmul_(parameter.grad, parameter.grad, value=1 - group["decay"])
                root = square.add(group["epsilon"]).sqrt_()
                parameter.addcdiv_(parameter.grad, root, value=-group["lr"])
        return loss


def create_optimizer(options: OptimizerOptions, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the parameters that require a gradient."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    # In mixed precision, Lightning cannot clip gradients that a fused optimizer unscales itself.
    fused = not options.clip
    rate, betas = options.learning_rate, (options.beta1, options.beta2)
    if options.name == "sgd":
        return torch.optim.SGD(
            trainable, lr=rate, momentum=options.momentum, weight_decay=options.weight_decay, fused=fused
        )
    if options.name == "rmsprop":
        return RMSprop(trainable, lr=rate, decay=options.decay, epsilon=options.epsilon)
    adam = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    return adam(trainable, lr=rate, betas=betas, eps=options.epsilon, weight_decay=options.weight_decay, fused=fused)


def create_schedule(
    options: OptimizerOptions,
    optimizer: torch.optim.Optimizer,
    steps: int,
    steps_per_epoch: int,
    plateaus: Callable[[], int] = lambda: 0,
) -> LambdaLR:
    """Return the learning-rate schedule: linear warm-up, then the schedule of the recipe.

    Args:
        options: Optimizer options of the recipe.
        optimizer: Optimizer to schedule.
        steps: Training steps in the whole run.
        steps_per_epoch: Training steps per epoch.
        plateaus: Returns the number of plateaus of the validation loss so far; see `runs.epochs.count_plateaus`.

    Source: "one_cycle": Smith & Topin 2018, arXiv:1708.07120, with the defaults of `torch.optim.lr_scheduler.OneCycleLR`.
    """
    warmup = round(options.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if options.schedule == "cosine":
            return _half_cosine(1, 0, (step - warmup) / max(1, steps - warmup))
        if options.schedule == "step":
            return float(options.step_factor ** (step // (options.step_epochs * steps_per_epoch)))
        if options.schedule == "plateau":
            return float(options.step_factor ** plateaus())
        if options.schedule == "one_cycle":
            return _one_cycle(step, steps)
        return 1.0

    return LambdaLR(optimizer, factor)


def _half_cosine(first: float, last: float, fraction: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * fraction))


def _one_cycle(step: int, steps: int) -> float:
    """Return the factor at a step: rising from 1/25 to 1 over the first 30% of the steps, then falling to 1/250,000."""
    top, last = 0.3 * steps - 1, steps - 1
    if step <= top:
        return _half_cosine(1 / 25, 1, step / top)
    return _half_cosine(1, 1 / 250_000, min(1.0, (step - top) / max(last - top, 1e-9)))
