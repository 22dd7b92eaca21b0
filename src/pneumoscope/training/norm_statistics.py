"""Estimate batch-norm statistics that were folded away when a network was exported; see `models.onnx_weights`."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pneumoscope.models.base import ClassifierNetwork

__all__ = ["MAX_IMAGES", "estimate_norm_statistics"]

MAX_IMAGES = 256
_BATCH = 32


def estimate_norm_statistics(network: ClassifierNetwork, norms: Collection[str], pixels: npt.NDArray[np.uint8]) -> None:
    """Set the mean and variance of batch norms to those of their inputs, adjusting scale and bias to keep all logits.

    A folded batch norm is the identity in evaluation mode. In training mode it would normalize by batch statistics and so
    remove the scale and offset of its input. With the estimated statistics, both modes again behave alike, as before the
    export.

    Args:
        network: Network to update in place; its mode is restored.
        norms: Names of the batch norms.
        pixels: Training images, shape (n, size, size), at least 2; more than about `MAX_IMAGES` add little.
    """
    modules = {name: network.get_submodule(name) for name in norms}
    sums: dict[str, Tensor] = {}
    handles = [module.register_forward_pre_hook(partial(_add_sums, sums, name)) for name, module in modules.items()]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(pixels), _BATCH):
                network(torch.from_numpy(np.array(pixels[start : start + _BATCH])))
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    for name, module in modules.items():
        count, total, squares = sums[name]
        mean = total / count
        _set_statistics(module, mean, (squares / count - mean**2).clamp(min=0))


def _add_sums(sums: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Accumulate the count, the sum and the sum of squares of each channel."""
    x: Tensor = inputs[0].double()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    total = x.sum(axes)
    found = torch.stack([torch.full_like(total, x.numel() / len(total)), total, (x * x).sum(axes)])
    sums[name] = sums[name] + found if name in sums else found


@torch.no_grad()
def _set_statistics(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    norm.bias.add_((mean - norm.running_mean.double()) * scale)
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
