"""What a training image may look like instead: one affine map an image, then gamma, contrast, brightness, blur, noise and JPEG.

All geometry is one map, so that an image is interpolated once. Every image draws its values from a seed of its own: it
looks the same in any batch and on any device.
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

from pneumoscope.runs.recipe import Augmentation

__all__ = ["augment"]


# What each image draws, evenly from 0 to 1; every one of them always, so that an option changes nothing about the others.
_DRAWN = (
    *("rotation", "scale", "aspect", "flip", "shift_x", "shift_y"),
    *("gamma", "contrast", "brightness", "blur", "noise", "jpeg"),
)


def augment(images: Tensor, options: Augmentation, seeds: Sequence[int]) -> Tensor:
    """Augment a batch.

    Args:
        images: grey levels 0 to 255, uint8, shape (n, size, size).
        options: of the recipe.
        seeds: of the values drawn, one an image.
    Returns:
        Grey levels 0 to 255, float32, shape (n, size, size).
    """
    batch = images.unsqueeze(1).float() / 255.0
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = torch.stack([torch.rand(len(_DRAWN), generator=generator) for generator in generators])
    draws = dict(zip(_DRAWN, drawn.unbind(dim=1), strict=True))

    def between(what: str, low: float, high: float) -> Tensor:
        return draws[what] * (high - low) + low

    if options.flip or options.rotation or options.translation or options.scale or options.aspect:
        grid = F.affine_grid(_affine(options, between), list(batch.shape), align_corners=False)
        batch = F.grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if options.gamma:
        power = torch.exp(between("gamma", -1, 1) * math.log1p(options.gamma))
        batch = batch.clamp(1e-4, 1).pow(power.view(-1, 1, 1, 1))
    if options.contrast:
        mean = batch.mean(dim=(1, 2, 3), keepdim=True)
        batch = (batch - mean) * (1 + between("contrast", -options.contrast, options.contrast)).view(-1, 1, 1, 1) + mean
    if options.brightness:
        batch = batch * (1 + between("brightness", -options.brightness, options.brightness)).view(-1, 1, 1, 1)
    if options.blur:
        side = 2 * math.ceil(2 * options.blur) + 1
        sigmas = between("blur", 0.05, options.blur).tolist()
        batch = torch.stack(
            [gaussian_blur(image, [side, side], [s, s]) for image, s in zip(batch, sigmas, strict=True)]
        )
    if options.noise:
        deviation = between("noise", 0, options.noise).view(-1, 1, 1, 1)
        grains = torch.stack([torch.randn(batch.shape[1:], generator=generator) for generator in generators])
        batch = batch + deviation * grains
    batch = batch.clamp(0, 1) * 255.0
    if options.jpeg:
        qualities = between("jpeg", 100 * (1 - options.jpeg), 100).round().int().clamp(min=1).tolist()
        grey = batch.round().to(torch.uint8)
        batch = torch.stack([_as_jpeg(image[0], quality) for image, quality in zip(grey, qualities, strict=True)])
    return batch.squeeze(1)


def _as_jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file), dtype=np.float32)).unsqueeze(0)


def _affine(options: Augmentation, between: Callable[[str, float, float], Tensor]) -> Tensor:
    # From a place in the new image to the place in the old one that it shows, both in -1 to 1; shape (n, 2, 3).
    angle = between("rotation", -options.rotation, options.rotation) * (math.pi / 180)
    area = between("scale", 1 - options.scale, 1)
    ratio = torch.exp(between("aspect", -1, 1) * -math.log1p(-options.aspect))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    sign = torch.where(between("flip", 0, 1) < 0.5, -1.0, 1.0) if options.flip else torch.ones_like(angle)
    # A smaller crop may lie anywhere inside the image; `translation` moves it beyond. A side longer than the image's shows black.
    room_x, room_y = (1 - width).clamp(min=0), (1 - height).clamp(min=0)
    shift_x = between("shift_x", -1, 1) * (room_x + 2 * options.translation)
    shift_y = between("shift_y", -1, 1) * (room_y + 2 * options.translation)
    cos, sin = torch.cos(angle), torch.sin(angle)
    first = torch.stack([sign * width * cos, -height * sin, shift_x], dim=1)
    second = torch.stack([sign * width * sin, height * cos, shift_y], dim=1)
    return torch.stack([first, second], dim=1)
