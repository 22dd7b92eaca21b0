"""Synthetic chest images: drawings of ribs, spine, heart, diaphragm and lungs, with or without an opacity.

The classes differ only in the opacity, which is drawn inside the lungs from its own random stream. The random streams of
anatomy, exposure, marker and noise do not depend on the label. A patient drawn with and without pneumonia is identical outside
the lungs, pixel for pixel, so a model cannot learn the label from anything else.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UsageError

__all__ = ["SIZES", "Etiology", "draw_opacity_mask", "draw_phantom", "validate_size"]

Etiology = Literal["bacteria", "virus"]
Field = npt.NDArray[np.floating[Any]]

SIZES = range(32, 2049)  # pixels
_VISIBLE_OPACITY = 0.04  # density on a scale of 0 to 1; about 13 gray levels at average contrast
_ANATOMY, _DISEASE, _IMAGE = range(3)  # independent random streams of a patient
_MARKERS = {"R": (30, 17, 17, 30, 20, 18, 17), "L": (16, 16, 16, 16, 16, 16, 31)}  # 5 x 7 dots, one number per row
_WAVES = 40


def draw_phantom(
    seed: int, pneumonia: bool, *, etiology: Etiology | None = None, image: int = 0, size: int = 224
) -> npt.NDArray[np.uint8]:
    """Return one synthetic chest image.

    Args:
        seed: Seed of the patient, 0 or more, for the anatomy and the opacity.
        pneumonia: Whether to add an opacity inside the lungs. Nothing else depends on it.
        etiology: "bacteria" (lobar and dense) or "virus" (patchy, bilateral); None lets the seed choose.
        image: Number of the patient's image, 0 or more, for position, exposure, marker and noise.
        size: Width and height, 32 to 2,048 pixels.

    Returns:
        Gray levels 0 to 255, shape (size, size). The same arguments give the same image on all machines, except for rounding of
        a few gray levels.

    Raises:
        UsageError: A number is out of range, or an etiology is given without pneumonia.
    """
    _validate(seed, image, size, etiology)
    if etiology and not pneumonia:
        raise UsageError(f"etiology {etiology!r} is given for an image without pneumonia")
    density, _, exposure = _draw(seed, pneumonia, etiology, image, size)
    return _expose(exposure, density, size)


def draw_opacity_mask(
    seed: int, *, etiology: Etiology | None = None, image: int = 0, size: int = 224
) -> npt.NDArray[np.bool_]:
    """Return a mask of the visible opacity that `draw_phantom` draws with the same arguments, shape (size, size).

    A pixel is visible if the opacity adds at least 0.04 to the density, on a scale of 0 to 1.

    Raises:
        UsageError: See `draw_phantom`.
    """
    _validate(seed, image, size, etiology)
    _, opacity, _ = _draw(seed, True, etiology, image, size)
    return np.asarray(opacity >= _VISIBLE_OPACITY)


def _draw(
    seed: int, pneumonia: bool, etiology: Etiology | None, image: int, size: int
) -> tuple[Field, Field, np.random.Generator]:
    """Return the density, the part of it that is opacity, and the random generator of the exposure."""
    anatomy, disease, exposure = (
        np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
        for key in ((_ANATOMY,), (_DISEASE,), (_IMAGE, image))
    )
    x, y = _coordinates(exposure, size)
    body, bones, lungs = _anatomy(anatomy, x, y)
    opacity: Field = np.zeros_like(x)
    if pneumonia:
        opacity = lungs * _opacity(disease, etiology, x, y)
        bones = bones * (1 - np.minimum(1.6 * opacity, 0.7))
        body = body + opacity
    return body + bones, opacity, exposure


def _validate(seed: int, image: int, size: int, etiology: Etiology | None) -> None:
    if seed < 0 or image < 0:
        raise UsageError(f"seed and image of a phantom must be 0 or more, not {seed} and {image}")
    validate_size(size)
    if etiology not in ("bacteria", "virus", None):
        raise UsageError(f"unknown etiology {etiology!r}", hint="Known etiologies: bacteria, virus")


def validate_size(size: int) -> None:
    """Raise UsageError if a size is not 32 to 2,048 pixels."""
    if size not in SIZES:
        raise UsageError(f"the size must be {SIZES[0]} to {SIZES[-1]:,} pixels, not {size}")


def _coordinates(rng: np.random.Generator, size: int) -> tuple[Field, Field]:
    """Return patient coordinates of each pixel: x from -1 (left) to 1, y from -1 (top) to 1, shapes (size, size)."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    angle, scale = rng.normal(0, 0.035), rng.uniform(0.95, 1.12)
    right, down = rng.normal(0, 0.03, 2)
    cosine, sine = np.float32(scale * np.cos(angle)), np.float32(scale * np.sin(angle))
    x, y = line[None, :] - np.float32(right), line[:, None] - np.float32(down)
    return cosine * x - sine * y, sine * x + cosine * y


def _smooth_step(distance: Field, width: float) -> Field:
    """Return a smooth step from 0 at -1.5 `width` to 1 at 1.5 `width`; exactly 0 below, so that no opacity leaks."""
    step = distance * np.float32(1 / (3 * width))
    step += np.float32(0.5)
    np.clip(step, 0, 1, out=step)
    smooth: Field = step * step
    step *= -2
    step += 3
    smooth *= step
    return smooth


def _texture(rng: np.random.Generator, x: Field, y: Field, fineness: float) -> Field:
    """Return a random pattern in patient coordinates, with mean 0 and a standard deviation of about 1.

    It is a sum of plane waves of several wavelengths. Because the grid is affine, the phase of each wave is a function of the
    row plus a function of the column, and the sum is a single matrix product.
    """
    angle, shift = rng.uniform(0, np.pi, _WAVES), rng.uniform(0, 2 * np.pi, _WAVES)
    k = fineness * np.geomspace(0.4, 2.5, _WAVES)
    along, down = k * np.cos(angle), k * np.sin(angle)
    column = np.outer(x[0], along) + np.outer(y[0], down)
    row = np.outer(x[:, 0] - x[0, 0], along) + np.outer(y[:, 0] - y[0, 0], down) + shift
    strength = np.sqrt(2 / _WAVES)
    left = np.hstack([np.sin(row), np.cos(row)]) * strength
    right = np.hstack([np.cos(column), np.sin(column)])
    return np.asarray(left.astype(np.float32) @ right.T.astype(np.float32))


def _anatomy(rng: np.random.Generator, x: Field, y: Field) -> tuple[Field, Field, Field]:
    """Return the soft tissue density, the bone density and a lung mask (0 to 1), in the shape of `x`."""
    chest, top, dome = rng.uniform(0.56, 0.64), rng.uniform(-0.66, -0.58), rng.uniform(0.36, 0.48)
    side = np.sign(x)
    across = np.abs(x)
    # Rib cage: an egg, narrower at the top. The domes of the diaphragm bound the lungs below; the right one is higher.
    middle = (top + 0.62) / 2
    height = 0.62 - middle
    wall = chest * (1 - 0.28 * np.clip(-y, 0, 1) ** 2)
    egg = 1 - (across / wall) ** 2 - np.abs(((y - middle) / height) ** 3)
    diaphragm = dome + rng.uniform(0.02, 0.05) * side + rng.uniform(0.9, 1.5) * (across - 0.3 * chest / 0.6) ** 2 - y
    medial = across - (0.115 + 0.05 * np.clip(y + 0.3, 0, 1))
    lungs = _smooth_step(egg, 0.07) * _smooth_step(diaphragm, 0.025) * _smooth_step(medial, 0.03)

    # Torso, shoulders and neck; air outside.
    shoulder = 0.24 + 0.95 * _smooth_step(y + rng.uniform(0.74, 0.82) - 0.25 * across, 0.10)
    torso = np.minimum(shoulder, rng.uniform(0.80, 0.90) + 0.18 * _smooth_step(-y - 0.35, 0.15))
    body: Field = _smooth_step(torso - across, 0.02) * np.float32(rng.uniform(0.50, 0.56))
    body = body * (1 - 0.25 * (across / 0.95) ** 2) + 0.05 * _smooth_step(y - dome, 0.10) * (torso > across)

    aeration = np.float32(rng.uniform(0.27, 0.36))
    body = body - aeration * lungs
    # Heart: an ellipse tilted to the right of the image, with the mediastinum and the dark trachea above it.
    heart_x, heart_y, lean = rng.uniform(0.06, 0.12), dome - rng.uniform(0.20, 0.26), rng.uniform(0.3, 0.7)
    u, v = x - heart_x, y - heart_y
    along, beside = u * math.cos(lean) + v * math.sin(lean), v * math.cos(lean) - u * math.sin(lean)
    wide = rng.uniform(0.24, 0.32)
    heart = _smooth_step(1 - (along / wide) ** 2 - (beside / (0.78 * wide)) ** 2, 0.16) * (0.3 + 0.7 * lungs)
    body = body + np.float32(rng.uniform(0.20, 0.26)) * heart
    body = body + 0.12 * _smooth_step(0.13 + 0.05 * np.clip(-y - 0.1, 0, 0.4) - across, 0.03) * _smooth_step(
        dome - y, 0.1
    )
    body = body - 0.10 * _smooth_step(0.035 - np.abs(x - rng.uniform(-0.015, 0.015)), 0.012) * _smooth_step(
        -0.22 - y, 0.05
    )
    # Vessels: streaks that fade outward from the hila and resemble an early opacity.
    hilum = np.exp(-((across - 0.17) ** 2 + 0.6 * (y + 0.02) ** 2) / np.float32(rng.uniform(0.025, 0.05)))
    vessels: Field = np.float32(rng.uniform(0.05, 0.09)) * hilum
    vessels = vessels + np.float32(rng.uniform(0.008, 0.018)) * _texture(rng, x, y, 38.0) * (0.4 + hilum)
    body = body + lungs * vessels
    # A gas bubble under the left dome in half of the patients.
    bubble = (x - rng.uniform(0.28, 0.40)) ** 2 / 0.014 + (y - dome - rng.uniform(0.14, 0.18)) ** 2 / 0.005
    body = body - (0.16 if rng.random() < 0.5 else 0.0) * _smooth_step(1 - bubble, 0.25)
    return body, _bones(rng, x, y, chest, torso), lungs


def _bones(rng: np.random.Generator, x: Field, y: Field, chest: float, torso: Field) -> Field:
    """Return the density of ribs, spine and clavicles."""
    across = np.abs(x)
    spacing, start = rng.uniform(0.125, 0.150), rng.uniform(-0.66, -0.58)
    cage = (
        _smooth_step(chest * 1.06 - across, 0.03) * _smooth_step(y - start + 0.06, 0.04) * _smooth_step(0.74 - y, 0.05)
    )
    # Ribs lie where the height above a curve is a multiple of the spacing.
    behind = (y - start - 0.10 * np.sin(np.float32(np.pi / 0.75) * across) - 0.35 * across**3) / spacing
    front = (y - start + rng.uniform(0.02, 0.10) - 0.30 * (chest - across)) / (1.25 * spacing)
    ribs = np.zeros_like(x)
    for phase, thickness, density in ((behind, 0.19, 0.085), (front, 0.22, 0.045)):
        distance = np.abs(phase - np.round(phase))
        ribs += np.float32(density) * (
            _smooth_step(thickness - distance, 0.05) + 0.35 * np.exp(-(((distance - thickness) / 0.05) ** 2))
        )
    ribs = ribs * cage * _smooth_step(across - 0.07, 0.02) * np.float32(rng.uniform(0.75, 1.15))
    # Vertebrae and discs.
    pitch = np.float32(2 * np.pi / rng.uniform(0.115, 0.14))
    spine = _smooth_step(0.075 + 0.008 * np.cos(pitch * y) - across, 0.015) * (0.085 + 0.03 * np.cos(pitch * y))
    slope, level = rng.uniform(0.22, 0.38), start - rng.uniform(0.00, 0.05)
    collar = y - level + slope * (across - 0.1) - 0.05 * np.sin(np.float32(7) * across)
    clavicles = (
        _smooth_step(0.028 - np.abs(collar), 0.010)
        * _smooth_step(across - 0.08, 0.02)
        * _smooth_step(0.58 - across, 0.03)
    )
    return np.asarray((ribs + spine + 0.10 * clavicles) * (torso > across), dtype=np.float32)


def _opacity(rng: np.random.Generator, etiology: Etiology | None, x: Field, y: Field) -> Field:
    """Return the density added by pneumonia, before it is confined to the lungs."""
    random_etiology = rng.choice(["bacteria", "virus"])
    mottle = _texture(rng, x, y, 34.0)
    opacity = np.zeros_like(x)
    if (etiology or random_etiology) == "bacteria":  # one lobe, rarely two: dense, with a sharp border at the fissure
        first = math.copysign(1.0, rng.random() - 0.5)
        for side in (first, -first)[: 2 if rng.random() < 0.2 else 1]:
            level, radius, tilt = rng.uniform(-0.40, 0.32), rng.uniform(0.20, 0.32), rng.normal(0, 0.3)
            u, v = x - side * rng.uniform(0.26, 0.42), y - level
            blob = np.exp(-(((u / (0.95 * radius)) ** 2 + (v / (1.1 * radius)) ** 2) ** 2))
            fissure = _smooth_step(math.copysign(1, level) * v + tilt * u + 0.6 * radius, 0.02)
            opacity = np.maximum(opacity, np.float32(rng.uniform(0.16, 0.28)) * blob * (0.25 + 0.75 * fissure))
        return np.asarray(opacity * np.clip(1 + 0.22 * mottle, 0, 2))
    for side in (-1.0, 1.0):  # several faint patches on both sides, mostly near the hila
        for _ in range(rng.integers(3, 6)):
            u, v = x - side * (0.16 + abs(rng.normal(0.08, 0.12))), y - rng.normal(0.02, 0.20)
            radius = rng.uniform(0.09, 0.20)
            opacity += np.float32(rng.uniform(0.06, 0.13)) * np.exp(-(u**2 + v**2) / np.float32(radius**2))
    return np.asarray(np.minimum(opacity, 0.22) * np.clip(1 + 0.4 * mottle, 0, 2))


def _expose(rng: np.random.Generator, density: Field, size: int) -> npt.NDArray[np.uint8]:
    """Return the gray levels of a density, with characteristic curve, noise, collimation and marker."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    tilt = rng.normal(0, 0.03, 2)
    uneven = np.float32(tilt[0]) * line[None, :] + np.float32(tilt[1]) * line[:, None]
    brightness, contrast, gamma = rng.normal(0, 0.05), rng.uniform(0.85, 1.2), rng.uniform(0.8, 1.25)
    gray = np.clip(density + uneven, 0, 1) ** np.float32(gamma)
    gray = 0.42 + brightness + contrast * 1.25 * (gray - 0.42)
    grain = rng.standard_normal((size, size), dtype=np.float32)
    gray = gray + np.float32(rng.uniform(0.008, 0.025)) * grain
    _stamp_marker(rng, gray, size)
    shutters = rng.uniform(0, 0.05, 4) * (rng.random(4) < 0.3)
    left, top, right, bottom = (round(float(fraction) * size) for fraction in shutters)
    gray[:top], gray[size - bottom :] = 0, 0
    gray[:, :left], gray[:, size - right :] = 0, 0
    return np.asarray(np.rint(np.clip(gray, 0, 1) * 255), dtype=np.uint8)


def _stamp_marker(rng: np.random.Generator, gray: Field, size: int) -> None:
    """Stamp a side marker into an upper corner of two thirds of the images."""
    letter, dot = rng.choice(["", *_MARKERS]), max(1, round(size / 224 * rng.uniform(1.2, 2.4)))
    row, gap = int(size * rng.uniform(0.03, 0.09)), int(size * rng.uniform(0.03, 0.07))
    if not letter:
        return
    dots = np.array([[rank >> bit & 1 for bit in (4, 3, 2, 1, 0)] for rank in _MARKERS[str(letter)]], dtype=bool)
    stamp = np.kron(dots, np.ones((dot, dot), dtype=bool))
    column = gap if letter == "R" else size - gap - stamp.shape[1]
    gray[row : row + stamp.shape[0], column : column + stamp.shape[1]][stamp] = 0.97
