"""Render heatmaps: the image in gray, contributions to the logit in color, a legend and the notice.

Colors diverge from the gray of the image: orange towards pneumonia, blue against it, which remains distinguishable with color
vision deficiency. From each gray, both directions are straight lines in OKLab, so equal steps of contribution look equal, and
both ends have the same lightness and chroma, so neither looks stronger than it is.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pneumoscope.bundle.card import Card
from pneumoscope.core.display import prediction_html
from pneumoscope.core.errors import UsageError
from pneumoscope.core.messages import decision_label, warning_message
from pneumoscope.core.prediction import Decision, Prediction, WarningCode
from pneumoscope.core.prediction_messages import notice, probability_text, site_note
from pneumoscope.imaging.image import Radiograph
from pneumoscope.imaging.preprocess import Crop, PreprocessedImage

__all__ = [
    "MIN_POSITIONS",
    "Explanation",
    "Heatmap",
    "Layer",
    "blend",
    "draw_explanation",
    "draw_scale",
    "heatmap_layer",
    "latin_text",
    "render_heatmap",
    "resize_to_image",
    "wrap_text",
]

_MAX_SIDE, _MIN_SIDE = 1024, 640  # longer side of the picture, pixels; small images are enlarged to fit the text
_MAX_LAYER_SIDE = 512  # longer side of a layer, pixels; it has few positions and is stretched by the viewer
_MIN_CANVAS_WIDTH = 480  # pixels
_OPACITY = 0.7  # of the strongest contribution, so that the image shows through
_STEPS = 255  # color steps in each direction
# Lightness and chroma of both ends in OKLab and their hues in degrees; as saturated as sRGB blue allows.
_LIGHTNESS, _CHROMA, _HUE_TOWARDS, _HUE_AGAINST = 0.74, 0.13, 55, 250
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
_BACKGROUND, _TEXT, _MUTED = (17, 17, 17), (240, 240, 240), (170, 170, 170)
_MARGIN, _BAR_HEIGHT = 16, 16  # pixels
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
MIN_POSITIONS = 16  # fewer positions hardly localize anything
# A break is allowed after each of these and between them: ideographs, with the punctuation that must not begin a line.
_WORDS = re.compile(
    r"[\u2e80-\u9fff\uf900-\ufaff][\u3001\u3002\uff09\uff0c\uff1a\uff1b]*|[^\s\u2e80-\u9fff\uf900-\ufaff]+|\s+"
)


def render_heatmap(
    image: Radiograph,
    heatmap: npt.NDArray[np.float32],
    card: Card,
    *,
    probability: float,
    threshold: float,
    decision: Decision,
    warnings: Sequence[WarningCode] = (),
    site: str = "",
) -> bytes:
    """Return a PNG of an image with its heatmap and a legend.

    The image keeps its aspect ratio; its longer side has 640 to 1,024 pixels.

    Args:
        image: Decoded image, not preprocessed.
        heatmap: Contributions to the logit, shape (height, width); one of `Outputs.heatmap`.
        card: Card of the bundle.
        probability: Calibrated probability of pneumonia, 0 to 1.
        threshold: Threshold as a calibrated probability.
        decision: The decision.
        warnings: Warnings for the legend.
        site: Site profile or prevalence for the legend; see `core.prediction_messages.site_note`.
    Raises:
        UsageError: The heatmap is not two-dimensional or not finite.
    """
    if heatmap.ndim != 2 or not heatmap.size or not np.isfinite(heatmap).all():
        raise UsageError(f"a heatmap has two dimensions and finite values; this one has shape {heatmap.shape}")
    found = Heatmap(image, heatmap, card.preprocessing.crop)
    picture = found.picture()
    height, width = picture.shape[:2]
    title = f"{decision_label(decision)}: probability of pneumonia {probability_text(probability)}"
    warning = ". ".join(warning_message(code) for code in warnings)
    about = _explanation(card, threshold, heatmap.shape, site)
    sentences = [*filter(None, (warning, latin_text(notice(card.population))))]
    legend = _legend(max(width, _MIN_CANVAS_WIDTH), title, about, sentences, found.maximum)
    canvas = Image.new("RGB", (legend.width, height + legend.height), _BACKGROUND)
    canvas.paste(Image.fromarray(picture), ((legend.width - width) // 2, 0))
    canvas.paste(legend, (0, height))
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


class Heatmap(NamedTuple):
    """The contributions of an image's positions to its logit.

    Attributes:
        image: Decoded image, not preprocessed.
        contributions: Contributions to the logit, shape (rows, columns).
        crop: Crop of the preprocessing.
    """

    image: Radiograph
    contributions: npt.NDArray[np.float32]
    crop: Crop

    @property
    def maximum(self) -> float:
        """Largest absolute contribution."""
        return float(np.abs(self.contributions).max())

    def resized(self, width: int, height: int) -> npt.NDArray[np.float32]:
        """Return the contributions at a size in pixels; see `resize_to_image`."""
        return resize_to_image(self.contributions, width, height, self.crop)

    def picture(self) -> npt.NDArray[np.uint8]:
        """Return the image in gray with contributions in color, RGB; the longer side has 640 to 1,024 pixels."""
        image = self.image
        factor = min(max(image.width, image.height, _MIN_SIDE), _MAX_SIDE) / max(image.width, image.height)
        width, height = (max(1, round(side * factor)) for side in (image.width, image.height))
        gray = Image.fromarray(image.pixels).resize((width, height), Image.Resampling.BILINEAR)
        return _overlay(np.asarray(gray), self.resized(width, height) / (self.maximum or 1.0))


class Explanation(NamedTuple):
    """A prediction and its heatmap.

    Attributes:
        prediction: The prediction.
        picture: PNG of the image with its heatmap and a legend; None if the image is unreadable or rejected.
    """

    prediction: Prediction
    picture: bytes | None

    def _repr_html_(self) -> str:
        return prediction_html(self.prediction, self.picture)


def draw_explanation(heatmap: Heatmap, prediction: Prediction, card: Card) -> bytes:
    """Return a PNG of an image with its heatmap, and a legend with its prediction; see `render_heatmap`.

    Args:
        heatmap: Contributions to the logit of the image.
        prediction: Prediction of the image; not a rejection.
        card: Card of the bundle.
    Raises:
        ValueError: The prediction has no probability.
    """
    decision = prediction.decision
    if prediction.probability is None or decision is None or decision == "classified" or prediction.threshold is None:
        raise ValueError("the prediction has no probability")
    return render_heatmap(
        heatmap.image,
        heatmap.contributions,
        card,
        probability=prediction.probability,
        threshold=prediction.threshold,
        decision=decision,
        warnings=prediction.warnings,
        site=site_note(prediction.model),
    )


class Layer(NamedTuple):
    """A transparent heatmap for display over an image.

    Attributes:
        png: RGBA picture.
        maximum: Largest absolute contribution to the logit, the end of the color scale.
    """

    png: bytes
    maximum: float


def heatmap_layer(image: Radiograph | PreprocessedImage, heatmap: npt.NDArray[np.float32], crop: Crop) -> Layer:
    """Return the heatmap as a transparent layer in the colors of the scale's ends, opaque at the largest contribution.

    The layer has the aspect ratio of the image, with at most 512 pixels on the longer side.

    Args:
        image: The image, whose size in its file counts.
        heatmap: Contributions to the logit, shape (height, width).
        crop: Crop of the preprocessing.
    """
    maximum = float(np.abs(heatmap).max())
    factor = min(1.0, _MAX_LAYER_SIDE / max(image.width, image.height))
    width, height = (max(1, round(side * factor)) for side in (image.width, image.height))
    strength = resize_to_image(heatmap, width, height, crop) / (maximum or 1.0)
    against, towards = (np.rint(255 * blend(np.float64(0.5), np.float64(end), 1.0)).astype(np.uint8) for end in (-1, 1))
    colors = np.where(strength[..., None] > 0, towards, against)
    alpha = np.rint(255 * np.abs(strength)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.dstack([colors, alpha])).save(file, "PNG")
    return Layer(file.getvalue(), maximum)


def resize_to_image(heatmap: npt.NDArray[np.float32], width: int, height: int, crop: Crop) -> npt.NDArray[np.float32]:
    """Return the heatmap resized to an image, the inverse of the crop and resize of `preprocess`; shape (height, width).

    Args:
        heatmap: Contributions, shape (rows, columns).
        width, height: Size of the drawn image, pixels.
        crop: Crop of the preprocessing; the heatmap is 0 outside of it.
    """
    side = min(width, height)
    inner = (side, side) if crop == "center" else (width, height)
    # Bilinear would show each position as a diamond. Bicubic overshoots, so values are clipped to the range of the heatmap.
    smooth = np.asarray(Image.fromarray(heatmap.astype(np.float32)).resize(inner, Image.Resampling.BICUBIC))
    whole = np.zeros((height, width), np.float32)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    whole[top : top + inner[1], left : left + inner[0]] = np.clip(smooth, heatmap.min(), heatmap.max())
    return whole


def blend(
    gray: npt.NDArray[np.floating] | np.float64,
    strength: npt.NDArray[np.floating] | np.float64,
    opacity: float = _OPACITY,
) -> npt.NDArray[np.float64]:
    """Return the colors of contributions over grays: sRGB, 0 to 1, with a last axis of 3.

    Args:
        gray: Gray of the image, sRGB, 0 is black and 1 is white.
        strength: -1 (strongest against pneumonia) to 1 (strongest towards pneumonia); broadcasts with `gray`.
        opacity: Opacity of the strongest contribution.
    Source: Ottosson 2020, "A perceptual color space for image processing" (OKLab); IEC 61966-2-1 (sRGB).
    """
    hue = np.radians(np.where(strength > 0, _HUE_TOWARDS, _HUE_AGAINST))
    weight = opacity * np.abs(strength)
    lightness = np.cbrt(
        np.where(gray <= 0.04045, gray / 12.92, ((gray + 0.055) / 1.055) ** 2.4)
    )  # OKLab lightness of a gray
    lab = np.stack(
        np.broadcast_arrays(
            (1 - weight) * lightness + weight * _LIGHTNESS,
            weight * _CHROMA * np.cos(hue),
            weight * _CHROMA * np.sin(hue),
        ),
        axis=-1,
    )
    linear = np.clip((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T, 0, 1)
    rgb: npt.NDArray[np.float64] = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb


@functools.cache
def _color_table() -> npt.NDArray[np.uint8]:
    """Return `blend` for every gray level and step, shape (256, 2 x steps + 1, 3)."""
    table = blend(np.arange(256)[:, None] / 255, np.arange(-_STEPS, _STEPS + 1)[None, :] / _STEPS)
    return np.rint(255 * table).astype(np.uint8)


def _overlay(gray: npt.NDArray[np.uint8], strength: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return _color_table()[gray, np.rint(strength * _STEPS).astype(np.int16) + _STEPS]


def _explanation(card: Card, threshold: float, positions: tuple[int, ...], site: str) -> str:
    """Return what a heatmap with rows and columns of positions shows, and the site profile."""
    rows, columns = positions
    coarse = " The heatmap is too coarse to localize anything." if rows * columns < MIN_POSITIONS else ""
    about = (
        f"Pneumonia at {probability_text(threshold)} or more. Contributions of {rows} x {columns} positions to the logit of"
        f" {card.name}, scaled to this image. They show what the network used, not where disease is.{coarse}"
    )
    if site:
        about += f" {latin_text(site)}."
    return about


def _legend(width: int, title: str, about: str, sentences: Sequence[str], maximum: float) -> Image.Image:
    """Return the legend.

    Args:
        width: Its width.
        title: The result.
        about: An explanation, in muted color.
        sentences: Paragraphs below it: a warning and the notice.
        maximum: Contribution at both ends of the color scale.
    """
    inner = width - 2 * _MARGIN
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    large, text = ImageFont.load_default(24), ImageFont.load_default(16)
    titles = [(line, large, _TEXT) for line in wrap_text(draw, title, large, inner)]
    notes = [(line, text, _MUTED) for line in wrap_text(draw, about, text, inner)]
    for sentence in sentences:
        notes += [(line, text, _TEXT) for line in wrap_text(draw, sentence, text, inner)]
    height = 3 * _MARGIN + 32 * len(titles) + 2 * 22 + _BAR_HEIGHT + 22 * len(notes)
    legend = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(legend)
    y = _MARGIN
    for line, font, color in titles:
        draw.text((_MARGIN, y), line, color, font)
        y += 32
    y = draw_scale(legend, text, y, maximum, "against pneumonia", "towards pneumonia") + _MARGIN
    for line, font, color in notes:
        draw.text((_MARGIN, y), line, color, font)
        y += 22
    return legend


def draw_scale(legend: Image.Image, font: _Font, y: int, maximum: float, against: str, towards: str) -> int:
    """Draw the color bar over mid gray with labels and numbers, and return the next free row.

    Args:
        legend: Where to draw.
        font: Font of the labels.
        y: Row to begin at.
        maximum: Contribution at both ends.
        against, towards: Labels of the ends.
    """
    draw = ImageDraw.Draw(legend)
    left, right = _MARGIN, legend.width - _MARGIN - 1
    draw.text((left, y), against, _TEXT, font)
    draw.text((right, y), towards, _TEXT, font, anchor="ra")
    y += 22
    strength = np.linspace(-1, 1, right - left + 1, dtype=np.float32)
    bar = _overlay(np.full((_BAR_HEIGHT, len(strength)), 128, np.uint8), np.tile(strength, (_BAR_HEIGHT, 1)))
    legend.paste(Image.fromarray(bar), (left, y))
    y += _BAR_HEIGHT + 4
    middle = (left + right) // 2
    for x, fraction, anchor in ((left, -1.0, "la"), (middle, 0.0, "ma"), (right, 1.0, "ra")):
        draw.text((x, y), f"{fraction * maximum:+.2g}" if fraction and maximum else "0", _TEXT, font, anchor=anchor)
    return y + 18


def latin_text(text: str) -> str:
    """Return the text with question marks for characters that the font of Pillow does not have."""
    return text.encode("latin-1", "replace").decode("latin-1")


def wrap_text(draw: ImageDraw.ImageDraw, text: str, font: _Font, width: int) -> list[str]:
    """Return the text in lines of at most `width` pixels, broken between words or ideographs, or within a longer word."""
    lines = [""]
    for word in _WORDS.findall(" ".join(text.split())):
        if draw.textlength(lines[-1] + word.rstrip(), font) <= width:
            lines[-1] += word
            continue
        if lines[-1]:
            lines.append("")
        for character in word.strip():
            if lines[-1] and draw.textlength(lines[-1] + character, font) > width:
                lines.append("")
            lines[-1] += character
    return [line.rstrip() for line in lines]
