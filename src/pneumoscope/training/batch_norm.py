"""Batch normalisation over the images of all devices, on CPUs.

Each device would otherwise normalise by its own share of a batch, and a recipe would train another network on two devices than
on one. torch's own remedy, SyncBatchNorm, refuses CPUs; GPUs have it (see `loop.fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["JointBatchNorm"]


class JointBatchNorm(TorchFunctionMode):
    """While it is entered, layers in training normalise by the statistics of all devices' images together.

    Every batch normalisation, timm's with an activation too, ends in `F.batch_norm`, which is what is taken over: layers and the
    names of their tensors stay as they are. The gradient is that of the sum of all devices' losses. A layer in evaluation, or
    held still so, does as ever and waits for nobody.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Take over `F.batch_norm` in training."""
        kwargs = kwargs or {}
        if func is F.batch_norm and kwargs["training"]:
            return _normalise(*args, **kwargs)
        return func(*args, **kwargs)


def _normalise(
    maps: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    with torch.no_grad():
        # In single precision at least: bf16 maps would have bf16 moments, were there no running ones to say otherwise.
        still = torch.zeros(maps.shape[1], dtype=torch.promote_types(maps.dtype, torch.float32))
        own_mean, own_var = torch.batch_norm_update_stats(maps, still, still, 0.0)
        mean, var = own_mean.double(), own_var.double()
        # Shares differ by an image, so each device's moments count by its number of values; in double precision, because a
        # variance is then the small difference of large numbers.
        values = torch.full_like(mean, maps.numel() // maps.shape[1])
        moments = torch.stack([values, values * mean, values * (var + mean.square())])
        torch.distributed.all_reduce(moments)
        values = moments[0]
        mean, square = moments[1:] / values
        var = square - mean.square()
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * values / (values - 1)).to(running_var), momentum)
        mean, var, values = mean.to(still), var.to(still), values.to(still)
        if weight is None or bias is None:
            weight, bias = torch.ones_like(mean), torch.zeros_like(mean)
    normalised: Tensor = _Normalise.apply(maps, weight, bias, mean, var, values, eps)
    return normalised


class _Normalise(torch.autograd.Function):
    """Ioffe & Szegedy 2015, algorithm 1, with the sums of its gradient taken over all devices."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, values: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(maps, weight, mean, var, values)
        ctx.eps = eps
        return F.batch_norm(maps, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        maps, weight, mean, var, values = ctx.saved_tensors
        # Of bias and weight these are this device's own, which are added up with all the others' gradients.
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, maps, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([of_weight, of_bias])
        torch.distributed.all_reduce(sums)
        # weight / deviation x (gradient - mean of gradients - normalised x mean of (gradient x normalised)), gathered by power
        # of the maps, so that two passes over them are enough.
        inverse = torch.rsqrt(var + ctx.eps)
        steep = weight * inverse
        slope = -steep * inverse * sums[0] / values
        level = -steep * sums[1] / values - mean * slope
        wide = (1, -1, *[1] * (maps.dim() - 2))
        steep, slope, level = (own.view(wide) for own in (steep, slope, level))
        of_maps = torch.addcmul(level, maps, slope).addcmul_(gradient, steep)
        return of_maps.to(maps.dtype), of_weight, of_bias, None, None, None, None
