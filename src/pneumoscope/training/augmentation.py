"""Augmentation: border swap, one affine transform, then gamma, contrast, brightness, blur, noise and JPEG compression.

Combining all geometric changes in one affine transform interpolates each image only once. Each image has its own seed, which
makes its augmentation independent of the batch and the device.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from pneumoscope.runs.recipe import AugmentationOptions

__all__ = ["augment"]


# Uniform random numbers drawn for each image. All are always drawn, so enabling one option does not change the others.
_DRAWS = (
    *("rotation", "scale", "aspect", "flip", "shift_x", "shift_y"),
    *("gamma", "contrast", "brightness", "blur", "noise", "jpeg"),
)
# From a separate generator, so recipes without `border_swap` keep their noise.
_BORDER_DRAWS = ("border_swap", "center_width", "center_height")
_SEED_MULTIPLIER = 0x9E3779B97F4A7C15  # scatters seeds
_CENTER = (0.6, 0.95)  # width and height of the center that `border_swap` keeps, as fractions of the side


def augment(
    images: Tensor, options: AugmentationOptions, seeds: Sequence[int], borders: Tensor | None = None
) -> Tensor:
    """Return a batch of augmented images.

    Args:
        images: Gray levels 0 to 255, uint8, shape (n, size, size).
        options: Augmentation options of the recipe.
        seeds: Random seed of each image.
        borders: A different image for each image, in the same format, whose border `border_swap` copies. None disables
            `border_swap`.

    Returns:
        Gray levels 0 to 255, float32, shape (n, size, size).
    """
    batch = images.unsqueeze(1).float() / 255.0
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    values = torch.stack([torch.rand(len(_DRAWS), generator=generator) for generator in generators])
    draws = dict(zip(_DRAWS, values.unbind(dim=1), strict=True))
    if options.border_swap:
        others = [torch.Generator().manual_seed((seed + 1) * _SEED_MULTIPLIER % 2**63) for seed in seeds]
        values = torch.stack([torch.rand(len(_BORDER_DRAWS), generator=generator) for generator in others])
        draws |= dict(zip(_BORDER_DRAWS, values.unbind(dim=1), strict=True))

    def uniform(name: str, low: float, high: float) -> Tensor:
        return draws[name] * (high - low) + low

    if options.border_swap and borders is not None:
        swapped = draws["border_swap"] < options.border_swap
        keep = _centers(uniform("center_width", *_CENTER), uniform("center_height", *_CENTER), batch.shape[-1])
        batch = torch.where(keep | ~swapped.view(-1, 1, 1, 1), batch, borders.unsqueeze(1).float() / 255.0)
    if options.flip or options.rotation or options.translation or options.scale or options.aspect:
        grid = F.affine_grid(_affine_maps(options, uniform), list(batch.shape), align_corners=False)
        batch = F.grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if options.gamma:
        power = torch.exp(uniform("gamma", -1, 1) * math.log1p(options.gamma))
        batch = batch.clamp(1e-4, 1).pow(power.view(-1, 1, 1, 1))
    if options.contrast:
        mean = batch.mean(dim=(1, 2, 3), keepdim=True)
        batch = (batch - mean) * (1 + uniform("contrast", -options.contrast, options.contrast)).view(-1, 1, 1, 1) + mean
    if options.brightness:
        batch = batch * (1 + uniform("brightness", -options.brightness, options.brightness)).view(-1, 1, 1, 1)
    if options.blur:
        side = 2 * math.ceil(2 * options.blur) + 1
        sigmas = uniform("blur", 0.05, options.blur).tolist()
        batch = torch.stack(
            [gaussian_blur(image, [side, side], [s, s]) for image, s in zip(batch, sigmas, strict=True)]
        )
    if options.noise:
        deviation = uniform("noise", 0, options.noise).view(-1, 1, 1, 1)
        noise = torch.stack([torch.randn(batch.shape[1:], generator=generator) for generator in generators])
        batch = batch + deviation * noise
    batch = batch.clamp(0, 1) * 255.0
    if options.jpeg:
        qualities = uniform("jpeg", 100 * (1 - options.jpeg), 100).round().int().clamp(min=1).tolist()
        gray = batch.round().to(torch.uint8)
        batch = torch.stack([_compress_jpeg(image[0], quality) for image, quality in zip(gray, qualities, strict=True)])
    return batch.squeeze(1)


def _centers(widths: Tensor, heights: Tensor, side: int) -> Tensor:
    """Return masks (n, 1, side, side) of central rectangles; widths and heights, shape (n,), are fractions of the side."""
    position = ((torch.arange(side) + 0.5) / side * 2 - 1).abs()
    columns, rows = position <= widths.unsqueeze(1), position <= heights.unsqueeze(1)
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def _compress_jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file), dtype=np.float32)).unsqueeze(0)


def _affine_maps(options: AugmentationOptions, uniform: Callable[[str, float, float], Tensor]) -> Tensor:
    """Return the affine maps (n, 2, 3) from output to input coordinates, both -1 to 1."""
    angle = uniform("rotation", -options.rotation, options.rotation) * (math.pi / 180)
    area = uniform("scale", 1 - options.scale, 1)
    ratio = torch.exp(uniform("aspect", -1, 1) * -math.log1p(-options.aspect))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    sign = torch.where(uniform("flip", 0, 1) < 0.5, -1.0, 1.0) if options.flip else torch.ones_like(angle)
    # A crop smaller than the image is placed anywhere inside it; `translation` moves it further. Outside is black.
    margin_x, margin_y = (1 - width).clamp(min=0), (1 - height).clamp(min=0)
    shift_x = uniform("shift_x", -1, 1) * (margin_x + 2 * options.translation)
    shift_y = uniform("shift_y", -1, 1) * (margin_y + 2 * options.translation)
    cos, sin = torch.cos(angle), torch.sin(angle)
    x_row = torch.stack([sign * width * cos, -height * sin, shift_x], dim=1)
    y_row = torch.stack([sign * width * sin, height * cos, shift_y], dim=1)
    return torch.stack([x_row, y_row], dim=1)
