"""Optimizers and schedules by recipe. torch's own where they are the report's, ours where they are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pneumoscope.runs.recipe import Optimizer

__all__ = ["RMSprop", "make_optimizer", "make_schedule"]


class RMSprop(torch.optim.Optimizer):
    """RMSprop with epsilon inside the root, as the report writes it; torch's stands outside.

    E[g^2] = decay E[g^2] + (1 - decay) g^2;  theta -= rate g / sqrt(E[g^2] + epsilon).

    Source: the report, section 3; Hinton's lecture 6e of 2012 has no epsilon.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 0.001, decay: float = 0.9, epsilon: float = 1e-7
    ) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step along every gradient."""
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


def make_optimizer(choice: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the parameters that train."""
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    # In mixed precision Lightning cannot clip what a fused step scales itself.
    fused = not choice.clip
    rate, betas = choice.learning_rate, (choice.beta1, choice.beta2)
    if choice.name == "sgd":
        return torch.optim.SGD(moving, lr=rate, momentum=choice.momentum, weight_decay=choice.weight_decay, fused=fused)
    if choice.name == "rmsprop":
        return RMSprop(moving, lr=rate, decay=choice.decay, epsilon=choice.epsilon)
    kind = torch.optim.AdamW if choice.name == "adamw" else torch.optim.Adam
    return kind(moving, lr=rate, betas=betas, eps=choice.epsilon, weight_decay=choice.weight_decay, fused=fused)


def make_schedule(choice: Optimizer, optimizer: torch.optim.Optimizer, steps: int, steps_an_epoch: int) -> LambdaLR:
    """The learning rate's factor a step: a linear rise, then constant or half a cosine to zero.

    Args:
        steps: in the whole run.
        steps_an_epoch: of one epoch.
    """
    warmup = round(choice.warmup_epochs * steps_an_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if choice.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)
