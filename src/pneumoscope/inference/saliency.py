"""Render heatmaps: the image in gray, contributions to the logit in color, a legend and the notice."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pneumoscope.bundle.card import Card
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.display import multiclass_prediction_html, prediction_html
from pneumoscope.core.errors import UsageError
from pneumoscope.core.messages import decision_label, warning_message
from pneumoscope.core.multiclass_prediction import MulticlassPrediction
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_codes import Decision, WarningCode
from pneumoscope.core.prediction_messages import decision_message, notice, probability_text, site_note
from pneumoscope.imaging.image import Radiograph
from pneumoscope.imaging.preprocess import Crop, PreprocessedImage
from pneumoscope.inference.heatmap_colors import blend, overlay

__all__ = [
    "MIN_POSITIONS",
    "Explanation",
    "Heatmap",
    "Layer",
    "draw_class_explanation",
    "draw_explanation",
    "draw_scale",
    "heatmap_layer",
    "latin_text",
    "render_heatmap",
    "resize_to_image",
    "wrap_text",
]

_MAX_SIDE, _MIN_SIDE = 1024, 640  # longer side of the picture in pixels; small images are enlarged to fit the text
_MAX_LAYER_SIDE = 512  # longer side of a layer in pixels; heatmaps are coarse, and the viewer stretches them
_MIN_CANVAS_WIDTH = 480  # pixels
_BACKGROUND, _TEXT, _MUTED = (17, 17, 17), (240, 240, 240), (170, 170, 170)
_MARGIN, _BAR_HEIGHT = 16, 16  # pixels
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
MIN_POSITIONS = 16  # fewer positions hardly localize anything
# Units between which a line may break: an ideograph with punctuation that must not begin a line, a word, or whitespace.
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
        heatmap: Contributions to the logit, shape (height, width); one row of `Outputs.heatmap`.
        card: Card of the bundle.
        probability: Calibrated probability of pneumonia, 0 to 1.
        threshold: Threshold as a calibrated probability.
        decision: Decision for the image.
        warnings: Warnings for the legend.
        site: Site profile or prevalence for the legend; see `core.prediction_messages.site_note`.

    Raises:
        UsageError: The heatmap is not two-dimensional or not finite.
    """
    if heatmap.ndim != 2 or not heatmap.size or not np.isfinite(heatmap).all():
        raise UsageError(f"a heatmap has two dimensions and finite values; this one has shape {heatmap.shape}")
    about = f"Pneumonia at {probability_text(threshold)} or more. {_about(heatmap, f'the logit of {card.name}')}"
    text = _LegendText(
        title=f"{decision_label(decision)}: probability of pneumonia {probability_text(probability)}",
        about=about + (f" {latin_text(site)}." if site else ""),
        sentences=(*_warning_sentences(warnings), latin_text(notice(card.population))),
        label="pneumonia",
    )
    return _draw_with_legend(Heatmap(image, heatmap, card.preprocessing.crop), text)


def draw_class_explanation(heatmap: Heatmap, prediction: MulticlassPrediction, card: MulticlassCard) -> bytes:
    """Return a PNG of an image with the heatmap of its predicted class and a legend with its prediction.

    Args:
        heatmap: Contributions to the predicted class's logit, relative to the other classes.
        prediction: Prediction of the image; not a rejection.
        card: Card of the bundle.

    Raises:
        ValueError: The prediction has no probabilities.
    """
    name = prediction.predicted_class
    if prediction.class_probabilities is None or name is None:
        raise ValueError("the prediction has no probabilities")
    label = latin_text(name)
    logit = f"the logit of {label} in {card.name}, minus the mean of those to the logits of the other classes"
    text = _LegendText(
        title=f"{label}: probability {probability_text(prediction.class_probabilities[name])}",
        about=_about(heatmap.contributions, logit),
        sentences=tuple(
            filter(
                None,
                (
                    latin_text(decision_message(prediction)),
                    *_warning_sentences(prediction.warnings),
                    latin_text(notice(card.population)),
                ),
            )
        ),
        label=label,
    )
    return _draw_with_legend(heatmap, text)


class _LegendText(NamedTuple):
    """Text of a legend.

    Attributes:
        title: Result of the prediction.
        about: Explanation, in a muted color.
        sentences: Further paragraphs: warnings and the notice.
        label: Class that contributions count for or against.
    """

    title: str
    about: str
    sentences: Sequence[str]
    label: str


def _warning_sentences(warnings: Sequence[WarningCode]) -> tuple[str, ...]:
    return (". ".join(map(warning_message, warnings)),) if warnings else ()


def _draw_with_legend(heatmap: Heatmap, text: _LegendText) -> bytes:
    picture = heatmap.picture()
    height, width = picture.shape[:2]
    legend = _legend(max(width, _MIN_CANVAS_WIDTH), text, heatmap.maximum)
    canvas = Image.new("RGB", (legend.width, height + legend.height), _BACKGROUND)
    canvas.paste(Image.fromarray(picture), ((legend.width - width) // 2, 0))
    canvas.paste(legend, (0, height))
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


class Heatmap(NamedTuple):
    """Contributions of an image's positions to its logit.

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
        """Return the contributions resized to a size in pixels; see `resize_to_image`."""
        return resize_to_image(self.contributions, width, height, self.crop)

    def picture(self) -> npt.NDArray[np.uint8]:
        """Return an RGB image, in gray with colored contributions, whose longer side has 640 to 1,024 pixels."""
        image = self.image
        factor = min(max(image.width, image.height, _MIN_SIDE), _MAX_SIDE) / max(image.width, image.height)
        width, height = (max(1, round(side * factor)) for side in (image.width, image.height))
        gray = Image.fromarray(image.pixels).resize((width, height), Image.Resampling.BILINEAR)
        return overlay(np.asarray(gray), self.resized(width, height) / (self.maximum or 1.0))


class Explanation(NamedTuple):
    """Prediction with its heatmap.

    Attributes:
        prediction: Prediction of the image.
        picture: PNG of the image with its heatmap and a legend; None if the image is unreadable or rejected.
    """

    prediction: Prediction
    picture: bytes | None

    def __repr__(self) -> str:
        """Return the prediction and the size of the picture."""
        return f"Explanation({self.prediction!r}, picture={'None' if self.picture is None else f'{len(self.picture):,} bytes'})"

    def _repr_html_(self) -> str:
        if isinstance(self.prediction, MulticlassPrediction):
            return multiclass_prediction_html(self.prediction, self.picture)
        return prediction_html(self.prediction, self.picture)


def draw_explanation(heatmap: Heatmap, prediction: Prediction, card: Card) -> bytes:
    """Return a PNG of an image with its heatmap and a legend with its prediction; see `render_heatmap`.

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
    """Transparent heatmap for display over an image.

    Attributes:
        png: RGBA image.
        maximum: Largest absolute contribution to the logit, which ends the color scale.
    """

    png: bytes
    maximum: float


def heatmap_layer(image: Radiograph | PreprocessedImage, heatmap: npt.NDArray[np.float32], crop: Crop) -> Layer:
    """Return the heatmap as a transparent layer in the two end colors of the scale, opaque at the largest contribution.

    The layer has the aspect ratio of the image, and at most 512 pixels on the longer side.

    Args:
        image: Image whose original size sets the aspect ratio.
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
    """Return the heatmap resized to the image, inverting the crop and resize of `preprocess`; shape (height, width).

    Args:
        heatmap: Contributions, shape (rows, columns).
        width, height: Size of the drawn image in pixels.
        crop: Crop of the preprocessing; the heatmap is 0 outside it.
    """
    side = min(width, height)
    inner = (side, side) if crop == "center" else (width, height)
    # Bilinear interpolation would show each position as a diamond. Bicubic overshoots, so clip to the heatmap's range.
    smooth = np.asarray(Image.fromarray(heatmap.astype(np.float32)).resize(inner, Image.Resampling.BICUBIC))
    whole = np.zeros((height, width), np.float32)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    whole[top : top + inner[1], left : left + inner[0]] = np.clip(smooth, heatmap.min(), heatmap.max())
    return whole


def _about(contributions: npt.NDArray[np.float32], logit: str) -> str:
    """Explain a heatmap of contributions to the given logit."""
    rows, columns = contributions.shape
    coarse = " The heatmap is too coarse to localize anything." if rows * columns < MIN_POSITIONS else ""
    return (
        f"Contributions of {rows} x {columns} positions to {logit}, scaled to this image. They show what the network used, not"
        f" where disease is.{coarse}"
    )


def _legend(width: int, text: _LegendText, maximum: float) -> Image.Image:
    """Return a legend of the given width; `maximum` is the contribution at the ends of the color scale."""
    inner = width - 2 * _MARGIN
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    large, small = ImageFont.load_default(24), ImageFont.load_default(16)
    titles = [(line, large, _TEXT) for line in wrap_text(draw, text.title, large, inner)]
    notes = [(line, small, _MUTED) for line in wrap_text(draw, text.about, small, inner)]
    for sentence in text.sentences:
        notes += [(line, small, _TEXT) for line in wrap_text(draw, sentence, small, inner)]
    height = 3 * _MARGIN + 32 * len(titles) + 2 * 22 + _BAR_HEIGHT + 22 * len(notes)
    legend = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(legend)
    y = _MARGIN
    for line, font, color in titles:
        draw.text((_MARGIN, y), line, color, font)
        y += 32
    ends = ("against", "towards")
    named = [f"{end} {text.label}" for end in ends]
    fits = sum(draw.textlength(end, small) for end in named) + _MARGIN <= inner
    y = draw_scale(legend, small, y, maximum, *(named if fits else ends)) + _MARGIN
    for line, font, color in notes:
        draw.text((_MARGIN, y), line, color, font)
        y += 22
    return legend


def draw_scale(legend: Image.Image, font: _Font, y: int, maximum: float, against: str, towards: str) -> int:
    """Draw a color bar over mid gray with labels and numbers, and return the next free row.

    Args:
        legend: Image to draw on.
        font: Font of the labels.
        y: First row.
        maximum: Contribution at the ends of the bar.
        against, towards: Labels of the ends.
    """
    draw = ImageDraw.Draw(legend)
    left, right = _MARGIN, legend.width - _MARGIN - 1
    draw.text((left, y), against, _TEXT, font)
    draw.text((right, y), towards, _TEXT, font, anchor="ra")
    y += 22
    strength = np.linspace(-1, 1, right - left + 1, dtype=np.float32)
    bar = overlay(np.full((_BAR_HEIGHT, len(strength)), 128, np.uint8), np.tile(strength, (_BAR_HEIGHT, 1)))
    legend.paste(Image.fromarray(bar), (left, y))
    y += _BAR_HEIGHT + 4
    middle = (left + right) // 2
    for x, fraction, anchor in ((left, -1.0, "la"), (middle, 0.0, "ma"), (right, 1.0, "ra")):
        draw.text((x, y), f"{fraction * maximum:+.2g}" if fraction and maximum else "0", _TEXT, font, anchor=anchor)
    return y + 18


def latin_text(text: str) -> str:
    """Return the text with a question mark for each character that Pillow's default font lacks."""
    return text.encode("latin-1", "replace").decode("latin-1")


def wrap_text(draw: ImageDraw.ImageDraw, text: str, font: _Font, width: int) -> list[str]:
    """Return the text in lines of at most `width` pixels, broken between words or ideographs, or within overlong words."""
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
