"""Draw an image with the result below it, in one or more languages, for a Secondary Capture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pneumoscope.core.messages import full_stop
from pneumoscope.core.population import Population
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_messages import (
    heatmap_ends,
    heatmap_message,
    model_message,
    notice,
    prediction_message,
    prevalence_message,
    result_title,
    site_note,
)
from pneumoscope.imaging.image import Radiograph
from pneumoscope.inference.saliency import Heatmap, draw_scale, latin_text, wrap_text

__all__ = ["draw_result"]

_MAX_SIDE, _MIN_SIDE = 1024, 640  # longer side in pixels, as for an image with its heatmap
_MIN_WIDTH = 640  # pixels
_MARGIN = 16  # pixels
_BACKGROUND, _TEXT, _MUTED = (17, 17, 17), (240, 240, 240), (170, 170, 170)
_TITLE_SIZE, _TEXT_SIZE = 24, 16  # pixels
_SCALE_HEIGHT = 72  # color scale with labels and the space below, pixels
_LINE_HEIGHT = 1.4  # relative to the font size
_Color = tuple[int, int, int]


class _Fonts(NamedTuple):
    title: ImageFont.FreeTypeFont | ImageFont.ImageFont
    text: ImageFont.FreeTypeFont | ImageFont.ImageFont
    is_latin: bool


def draw_result(
    prediction: Prediction,
    image: Radiograph | None,
    heatmap: Heatmap | None,
    population: Population | None,
    *,
    prevalence: float | None = None,
    languages: Sequence[str] = ("en",),
    font: Path | None = None,
) -> npt.NDArray[np.uint8]:
    """Return an image with its heatmap and the result below it: RGB, shape (height, width, 3).

    The text contains the decision, the probability with its interval or the reason for a rejection, the explanation,
    the prevalence, the model with the operating point, an explanation of the heatmap, and the notice.

    Args:
        prediction: Prediction of the image.
        image: The decoded image; None if it cannot be decoded, which leaves only the text.
        heatmap: Its heatmap; None if it has none.
        population: Population of the model; None if the model is unknown.
        prevalence: Prevalence assumed for the probability; None if it is unknown or already part of the prediction.
        languages: Languages of the text, from top to bottom.
        font: Font that covers the languages; None for a font with Latin letters only.
    Raises:
        OSError: The font cannot be read.
    """
    picture = Image.fromarray(heatmap.picture()) if heatmap else _enlarged(image) if image else None
    fonts = _fonts(font)
    width = max(picture.width, _MIN_WIDTH) if picture else _MIN_WIDTH
    captions = []
    for language in languages:
        texts = _texts(prediction, heatmap, population, prevalence, language)
        captions.append(_caption(texts, heatmap, language, fonts, width))
    y = picture.height if picture else 0
    drawn = Image.new("RGB", (width, y + sum(each.height for each in captions)), _BACKGROUND)
    if picture:
        drawn.paste(picture, ((width - picture.width) // 2, 0))
    for each in captions:
        drawn.paste(each, (0, y))
        y += each.height
    return np.asarray(drawn)


def _enlarged(image: Radiograph) -> Image.Image:
    """Return an image at the size it would have with a heatmap."""
    factor = min(max(image.width, image.height, _MIN_SIDE), _MAX_SIDE) / max(image.width, image.height)
    size = max(1, round(factor * image.width)), max(1, round(factor * image.height))
    return Image.fromarray(image.pixels).resize(size, Image.Resampling.BILINEAR).convert("RGB")


def _fonts(file: Path | None) -> _Fonts:
    if file is None:
        return _Fonts(ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_TEXT_SIZE), is_latin=True)
    return _Fonts(ImageFont.truetype(file, _TITLE_SIZE), ImageFont.truetype(file, _TEXT_SIZE), is_latin=False)


def _caption(
    texts: Iterable[tuple[str, _Color]], heatmap: Heatmap | None, language: str, fonts: _Fonts, width: int
) -> Image.Image:
    """Return an image of the given width in pixels with the paragraphs of one language, title first."""
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    title_height, text_height = round(_LINE_HEIGHT * _TITLE_SIZE), round(_LINE_HEIGHT * _TEXT_SIZE)
    titles: list[tuple[str, _Color]] = []
    lines: list[tuple[str, _Color]] = []
    for number, (text, color) in enumerate(texts):
        shown = latin_text(text) if fonts.is_latin else text
        wrapped = wrap_text(measure, shown, fonts.text if number else fonts.title, width - 2 * _MARGIN)
        (lines if number else titles).extend((line, color) for line in wrapped)
    scale_height = _SCALE_HEIGHT if heatmap else 0
    height = 2 * _MARGIN + title_height * len(titles) + scale_height + text_height * len(lines)
    caption = Image.new("RGB", (width, height), _BACKGROUND)
    draw, y = ImageDraw.Draw(caption), _MARGIN
    for line, color in titles:
        draw.text((_MARGIN, y), line, color, fonts.title)
        y += title_height
    if heatmap:
        draw_scale(caption, fonts.text, y, heatmap.maximum, *heatmap_ends(language))
        y += scale_height
    for line, color in lines:
        draw.text((_MARGIN, y), line, color, fonts.text)
        y += text_height
    return caption


def _texts(
    prediction: Prediction,
    heatmap: Heatmap | None,
    population: Population | None,
    prevalence: float | None,
    language: str,
) -> Iterator[tuple[str, _Color]]:
    """Yield the paragraphs with their colors, title first."""
    stop = full_stop(language)
    yield result_title(prediction, language), _TEXT
    # The title already contains the reason for a rejection or a failure.
    if prediction.probability is not None and (explanation := prediction_message(prediction, language)):
        yield explanation + stop, _TEXT
    if prevalence is not None and prediction.probability is not None and not prediction.model.is_site_specific:
        yield prevalence_message(prevalence, language, stated=False) + stop, _TEXT
    yield notice(population, language), _TEXT
    if heatmap:
        yield heatmap_message(language) + stop, _MUTED
    site = site_note(prediction.model, language)
    yield model_message(prediction, language) + stop + (f" {site}{stop}" if site else ""), _MUTED
