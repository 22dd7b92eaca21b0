"""A heatmap as a picture that explains itself: the image in grey, what each place contributed, the scale, the notice.

Both directions are information, so the colours run both ways from the image's own grey: orange towards pneumonia, blue towards
normal, which people with a colour deficiency tell apart too. From every grey each way is a straight line in OKLab, so equal
steps of contribution are equal steps for the eye; both ends have the same lightness and chroma, so that neither looks stronger
than it is.
"""

from __future__ import annotations

import functools
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pneumoscope.bundle.card import Card
from pneumoscope.core.errors import UsageError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.messages import probability_text
from pneumoscope.imaging.image import Radiograph
from pneumoscope.imaging.preprocess import Crop

__all__ = ["Layer", "blend", "heatmap_layer", "over_image", "render_heatmap"]

_LONGEST, _SHORTEST = 1024, 640  # of the picture's longer side, pixels; small images are enlarged, for the text to fit
_LAYER = 512  # of a layer's longer side: its places are few, and it is stretched
_NARROWEST = 480  # canvas, pixels
_OPACITY = 0.7  # of the strongest place: the image is seen through it
_STEPS = 255  # of each direction
# Lightness and chroma of both ends in OKLab, their hues in degrees; as strong as the screen's blue allows.
_LIGHTNESS, _CHROMA, _PNEUMONIA, _NORMAL = 0.74, 0.13, 55, 250
_LAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_GROUND, _INK, _FAINT = (17, 17, 17), (240, 240, 240), (170, 170, 170)
_MARGIN, _BAR = 16, 16  # pixels
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_FEW = 16  # places that a map must have to tell parts of an image apart


def render_heatmap(
    image: Radiograph,
    heatmap: npt.NDArray[np.float32],
    card: Card,
    *,
    probability: float,
    threshold: float,
    decision: str,
) -> bytes:
    """Draw an image with its heatmap.

    Args:
        image: as decoded, not prepared.
        heatmap: contributions to the logit, shape (height, width); one of `Outputs.heatmap`.
        card: of the bundle that gave it.
        probability: of pneumonia, calibrated, 0 to 1.
        threshold: as a probability.
        decision: in words: "pneumonia".
    Returns:
        A PNG in colour: the image at its own aspect, its longer side 640 to 1,024 pixels, and the legend below.
    Raises:
        UsageError: the heatmap is no table of finite numbers.
    """
    if heatmap.ndim != 2 or not heatmap.size or not np.isfinite(heatmap).all():
        raise UsageError(f"a heatmap is a table of finite numbers; this one has shape {heatmap.shape}")
    most = float(np.abs(heatmap).max())
    factor = min(max(image.width, image.height, _SHORTEST), _LONGEST) / max(image.width, image.height)
    width, height = (max(1, round(side * factor)) for side in (image.width, image.height))
    grey = Image.fromarray(image.pixels).resize((width, height), Image.Resampling.BILINEAR)
    strength = over_image(heatmap, width, height, card.preprocessing.crop) / (most or 1.0)
    picture = _lay_over(np.asarray(grey), strength)
    words = f"{decision}: probability of pneumonia {probability_text(probability)}"
    legend = _legend(max(width, _NARROWEST), words, threshold, card, heatmap.shape, most)
    canvas = Image.new("RGB", (legend.width, height + legend.height), _GROUND)
    canvas.paste(Image.fromarray(picture), ((legend.width - width) // 2, 0))
    canvas.paste(legend, (0, height))
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


class Layer(NamedTuple):
    """A heatmap to be laid over an image: a PNG, and the largest contribution to the logit in it, which its scale ends at."""

    png: bytes
    most: float


def heatmap_layer(image: Radiograph, heatmap: npt.NDArray[np.float32], crop: Crop) -> Layer:
    """The heatmap alone, to be stretched over an image and made as strong as wanted.

    Args:
        image: as decoded, not prepared.
        heatmap: contributions to the logit, shape (height, width).
        crop: of the preprocessing.
    Returns:
        Of the image's aspect, its longer side 512 pixels at most, the ends' colours, opaque where the contribution is largest.
    """
    most = float(np.abs(heatmap).max())
    factor = min(1.0, _LAYER / max(image.width, image.height))
    width, height = (max(1, round(side * factor)) for side in (image.width, image.height))
    strength = over_image(heatmap, width, height, crop) / (most or 1.0)
    normal, pneumonia = (
        np.rint(255 * blend(np.float64(0.5), np.float64(end), 1.0)).astype(np.uint8) for end in (-1, 1)
    )
    colours = np.where(strength[..., None] > 0, pneumonia, normal)
    opaque = np.rint(255 * np.abs(strength)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.dstack([colours, opaque])).save(file, "PNG")
    return Layer(file.getvalue(), most)


def over_image(heatmap: npt.NDArray[np.float32], width: int, height: int, crop: Crop) -> npt.NDArray[np.float32]:
    """The heatmap at an image's own aspect: the inverse of what `preprocess` cut and stretched.

    Args:
        heatmap: shape (rows, columns).
        width, height: of the image as drawn, pixels.
        crop: of the preprocessing; outside of what it cut the map is 0.
    Returns:
        Shape (height, width): smooth between the places, nowhere beyond their smallest and largest value.
    """
    side = min(width, height)
    inner = (side, side) if crop == "centre" else (width, height)
    # Bicubic, because bilinear shows the places as diamonds; it overshoots, which would be contributions nobody made.
    smooth = np.asarray(Image.fromarray(heatmap.astype(np.float32)).resize(inner, Image.Resampling.BICUBIC))
    whole = np.zeros((height, width), np.float32)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    whole[top : top + inner[1], left : left + inner[0]] = np.clip(smooth, heatmap.min(), heatmap.max())
    return whole


def blend(
    grey: npt.NDArray[np.floating] | np.float64,
    strength: npt.NDArray[np.floating] | np.float64,
    opacity: float = _OPACITY,
) -> npt.NDArray[np.float64]:
    """Colours of contributions over greys.

    Args:
        grey: of the image, sRGB, 0 black to 1 white.
        strength: -1 (the strongest towards normal) to 1 (the strongest towards pneumonia); of a shape that goes with `grey`.
        opacity: of the strongest.
    Returns:
        sRGB, 0 to 1, with a last axis of 3.
    Source: Ottosson 2020, "A perceptual color space for image processing" (OKLab); IEC 61966-2-1 (sRGB).
    """
    hue = np.radians(np.where(strength > 0, _PNEUMONIA, _NORMAL))
    share = opacity * np.abs(strength)
    lightness = np.cbrt(np.where(grey <= 0.04045, grey / 12.92, ((grey + 0.055) / 1.055) ** 2.4))  # of a grey in OKLab
    lab = np.stack(
        np.broadcast_arrays(
            (1 - share) * lightness + share * _LIGHTNESS, share * _CHROMA * np.cos(hue), share * _CHROMA * np.sin(hue)
        ),
        axis=-1,
    )
    linear = np.clip((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T, 0, 1)
    rgb: npt.NDArray[np.float64] = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb


@functools.cache
def _table() -> npt.NDArray[np.uint8]:
    """`blend` for every grey level and `_STEPS` each way, shape (256, 2 x steps + 1, 3): images are painted by looking it up."""
    table = blend(np.arange(256)[:, None] / 255, np.arange(-_STEPS, _STEPS + 1)[None, :] / _STEPS)
    return np.rint(255 * table).astype(np.uint8)


def _lay_over(grey: npt.NDArray[np.uint8], strength: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return _table()[grey, np.rint(strength * _STEPS).astype(np.int16) + _STEPS]


def _legend(width: int, words: str, threshold: float, card: Card, places: tuple[int, ...], most: float) -> Image.Image:
    """What stands below the image: the result, the scale with its numbers, what they are, the notice."""
    inner = width - 2 * _MARGIN
    few = " So few places hardly tell one part of an image from another." if places[0] * places[1] < _FEW else ""
    about = (
        f"Pneumonia is called from {probability_text(threshold)}. What each of {places[0]} x {places[1]} places"
        f" contributed to the logit of {card.name}, on a scale of this image alone."
        f" It shows what the network used, not where disease is.{few}"
    )
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    title, text = ImageFont.load_default(24), ImageFont.load_default(16)
    rows = [(line, title, _INK) for line in _wrap(draw, words, title, inner)]
    notes = [(line, text, _FAINT) for line in _wrap(draw, about, text, inner)]
    notes += [(line, text, _INK) for line in _wrap(draw, NOTICE, text, inner)]
    height = 3 * _MARGIN + 32 * len(rows) + 2 * 22 + _BAR + 22 * len(notes)
    legend = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(legend)
    y = _MARGIN
    for line, font, ink in rows:
        draw.text((_MARGIN, y), line, ink, font)
        y += 32
    y = _scale(legend, draw, text, y, most) + _MARGIN
    for line, font, ink in notes:
        draw.text((_MARGIN, y), line, ink, font)
        y += 22
    return legend


def _scale(legend: Image.Image, draw: ImageDraw.ImageDraw, font: _Font, y: int, most: float) -> int:
    """The bar as it looks over mid grey, names above it, numbers below; gives the next free row."""
    left, right = _MARGIN, legend.width - _MARGIN - 1
    draw.text((left, y), "against pneumonia", _INK, font)
    draw.text((right, y), "towards pneumonia", _INK, font, anchor="ra")
    y += 22
    strength = np.linspace(-1, 1, right - left + 1, dtype=np.float32)
    bar = _lay_over(np.full((_BAR, len(strength)), 128, np.uint8), np.tile(strength, (_BAR, 1)))
    legend.paste(Image.fromarray(bar), (left, y))
    y += _BAR + 4
    middle = (left + right) // 2
    for x, share, anchor in ((left, -1.0, "la"), (middle, 0.0, "ma"), (right, 1.0, "ra")):
        draw.text((x, y), f"{share * most:+.2g}" if share and most else "0", _INK, font, anchor=anchor)
    return y + 18


def _wrap(draw: ImageDraw.ImageDraw, words: str, font: _Font, width: int) -> list[str]:
    """Lines that are no wider than `width` pixels, cut between words."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
