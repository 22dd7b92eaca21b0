"""The picture shows each contribution where it lies, evenly for the eye, with its numbers and the notice."""

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.core.errors import UsageError
from pneumoscope.core.population import Population
from pneumoscope.core.prediction_messages import notice
from pneumoscope.imaging.image import Radiograph
from pneumoscope.imaging.preprocess import Preprocessing, preprocess
from pneumoscope.inference.heatmap_colors import blend, overlay
from pneumoscope.inference.saliency import heatmap_layer, render_heatmap, resize_to_image


@pytest.fixture
def card(shared_maker):
    folder = shared_maker.root / "heatmap"
    return read_bundle(folder if folder.exists() else shared_maker.bundle(folder))[0]


def gray(height, width, level=128):
    return Radiograph(np.full((height, width), level, np.uint8), "gray", "PNG", "L")


def one_place(row, column, value=1.0, side=7):
    heatmap = np.zeros((side, side), np.float32)
    heatmap[row, column] = value
    return heatmap


def drawn(image, heatmap, card, probability=0.5, decision="pneumonia", threshold=0.5):
    content = render_heatmap(image, heatmap, card, probability=probability, threshold=threshold, decision=decision)
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image).astype(int)


@pytest.fixture
def written(monkeypatch):
    """Every line that is drawn, and where it ends."""
    lines, draw = [], ImageDraw.ImageDraw.text

    def text(self, place, words, fill, font, anchor="la"):
        left, top, right, bottom = self.textbbox(place, words, font, anchor=anchor)
        lines.append((words, left, top, right, bottom, self.im.size))
        draw(self, place, words, fill, font, anchor=anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return lines


# --- colors ---------------------------------------------------------------------------------------------------------


def oklab(rgb):
    """The way back, with its own matrices: sRGB to CIE XYZ (IEC 61966-2-1) to OKLab (Ottosson's definition on XYZ)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    to_lms = [[0.8189330101, 0.3618667424, -0.1288597137], [0.0329845436, 0.9293118715, 0.0361456387]]
    to_lms.append([0.0482003018, 0.2643662691, 0.6338517070])
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.cbrt(xyz @ np.array(to_lms).T) @ np.array(to_lab).T


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("side", [-1, 1])
def test_equal_steps_of_contribution_look_equal(level, side):
    lab = oklab(blend(np.array(level), side * np.linspace(0, 1, 21)))

    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)

    assert steps == pytest.approx([steps.mean()] * 20, rel=0.02)
    assert steps.mean() > 0.004  # 20 of them: 0.08, four times what the eye just tells apart
    lightness = np.diff(lab[:, 0])
    assert (lightness > 0).all() or (lightness < 0).all()


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_neither_direction_looks_stronger(level):
    towards, away = oklab(blend(np.array(level), np.array([0.7, -0.7])))

    assert towards[0] == pytest.approx(away[0], abs=1e-3)
    assert np.hypot(*towards[1:]) == pytest.approx(np.hypot(*away[1:]), abs=2e-3)
    assert towards[2] > 0 > away[2]  # yellowish, bluish


def test_zero_contribution_leaves_the_image_unchanged():
    image = np.arange(256).reshape(16, 16).astype(np.uint8)

    laid = overlay(image, np.zeros((16, 16), np.float32))

    assert np.abs(laid.astype(int) - image[..., None]).max() <= 1


# --- place -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", ["squash", "center"])
@pytest.mark.parametrize(("height", "width"), [(140, 140), (140, 210), (251, 140)])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 5), (6, 3), (6, 6)])
def test_positions_map_back_to_the_pixels_they_come_from(crop, height, width, row, column):
    """Preprocessing the resized heatmap gives back its position."""
    laid = resize_to_image(one_place(row, column), width, height, crop)
    image = Radiograph((255 * laid.clip(0, 1)).astype(np.uint8), "map", "PNG", "L")

    prepared = preprocess(image, Preprocessing(size=56, crop=crop)).reshape(7, 8, 7, 8).mean((1, 3))

    assert np.unravel_index(prepared.argmax(), (7, 7)) == (row, column)
    assert prepared[row, column] > 2.5 * np.sort(prepared, axis=None)[-2]


def test_contribution_outside_the_crop_is_zero():
    laid = resize_to_image(np.ones((7, 7), np.float32), 300, 200, "center")

    assert (laid[:, 50:250] == 1).all()
    assert not laid[:, :50].any()
    assert not laid[:, 250:].any()


@given(st.integers(0, 2**32 - 1))
def test_resizing_does_not_overshoot(seed):
    heatmap = np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)
    laid = resize_to_image(heatmap, 90, 60, "squash")

    assert heatmap.min() <= laid.min()
    assert laid.max() <= heatmap.max()


def test_towards_pneumonia_is_orange_and_against_is_blue(card):
    heatmap = one_place(1, 1, 0.8) + one_place(5, 5, -0.8)

    image = drawn(gray(700, 700), heatmap, card)

    red, _, blue = image[150, 150]
    assert red > blue + 50
    red, _, blue = image[550, 550]
    assert blue > red + 50
    assert np.ptp(image[350, 350]) <= 2


# --- picture ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "drawn_height", "drawn_width"),
    [
        (2000, 3000, 683, 1024),  # reduced
        (600, 800, 600, 800),  # as it is
        (224, 224, 640, 640),  # enlarged, for the text to fit
        (3000, 300, 1024, 480),  # an image narrower than the canvas
        (1, 4000, 1, 1024),
    ],
)
def test_picture_keeps_the_aspect_ratio_and_fits_the_legend(card, height, width, drawn_height, drawn_width):
    image = drawn(gray(height, width, 200), np.zeros((7, 7), np.float32), card)

    assert image.shape[1] == drawn_width
    of_image = np.abs(image - 200).max(2) <= 1
    assert of_image[:drawn_height, drawn_width // 2].all()
    assert not of_image[drawn_height + 1, drawn_width // 2]
    assert drawn_height + 150 < image.shape[0] < drawn_height + 350


@pytest.mark.parametrize("width", [100, 640, 2000])
def test_legend_shows_result_scale_and_notice_within_its_margins(card, written, width):
    drawn(gray(600, width), one_place(0, 0, -0.3456) + one_place(1, 1, 0.1), card, 0.973, "pneumonia")

    words = " ".join(line[0] for line in written)
    for part in ("Pneumonia: probability of pneumonia 97%", "against pneumonia", "towards pneumonia", "-0.35", "+0.35"):
        assert part in words
    assert "Contributions of 7 x 7 positions to the logit of gray" in words
    assert notice(Population()) in words
    assert "0" in [line[0] for line in written]
    for _, left, top, right, bottom, size in written:
        assert left >= 8
        assert right <= size[0] - 8
        assert 0 <= top < bottom <= size[1]
    boxes = [line[1:5] for line in written]
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (0.0, "below 1%"),
        (0.0099, "below 1%"),
        (0.01, "1%"),
        (0.5, "50%"),
        (0.99, "99%"),
        (0.996, "above 99%"),
        (1.0, "above 99%"),
    ],
)
def test_probability_is_never_shown_as_certain(card, written, probability, text):
    drawn(gray(64, 64), one_place(0, 0), card, probability, "no_pneumonia")

    assert " ".join(line[0] for line in written).startswith(f"No pneumonia detected: probability of pneumonia {text}")


def test_legend_states_the_threshold_and_warns_of_coarse_maps(card, written):
    drawn(gray(640, 640), one_place(0, 0), card, 0.725, "no_pneumonia", 0.744)
    words = " ".join(line[0] for line in written)
    assert "Pneumonia at 74% or more." in words
    assert "too coarse" not in words
    written.clear()
    drawn(gray(640, 640), one_place(0, 0, side=2), card)
    assert "The heatmap is too coarse to localize anything." in " ".join(line[0] for line in written)


def test_zero_heatmap_has_a_zero_scale(card, written):
    image = drawn(gray(640, 640), np.zeros((7, 7), np.float32), card)

    assert [line[0] for line in written].count("0") == 3
    assert np.abs(image[:640] - 128).max() <= 1


@pytest.mark.parametrize(
    ("heatmap", "shape"),
    [
        (np.zeros(7, np.float32), r"\(7,\)"),
        (np.zeros((0, 7), np.float32), r"\(0, 7\)"),
        (one_place(1, 1, np.nan), r"\(7, 7\)"),
        (one_place(1, 1, np.inf), r"\(7, 7\)"),
    ],
)
def test_invalid_heatmaps_are_rejected(card, heatmap, shape):
    with pytest.raises(UsageError, match=f"this one has shape {shape}"):
        render_heatmap(gray(64, 64), heatmap, card, probability=0.5, threshold=0.5, decision="no_pneumonia")


def test_rendering_needs_only_the_core_installation():
    code = (
        "import sys; sys.modules.update(matplotlib=None, torch=None, scipy=None, onnxruntime=None)\n"
        "import pneumoscope.inference.saliency"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("height", "width", "drawn_height", "drawn_width"), [(300, 400, 300, 400), (2000, 1000, 512, 256)]
)
def test_layer_alpha_follows_the_contribution(height, width, drawn_height, drawn_width):
    heatmap = one_place(3, 1, -2.5)
    heatmap[3, 5] = 1.25
    layer = heatmap_layer(gray(height, width), heatmap, "squash")
    assert layer.maximum == 2.5
    picture = np.asarray(Image.open(io.BytesIO(layer.png)))
    assert picture.shape == (drawn_height, drawn_width, 4)
    row, (left, right) = drawn_height // 2, (drawn_width * 3 // 14, drawn_width * 11 // 14)
    assert picture[row, left, 3] == pytest.approx(255, abs=8)
    assert picture[row, right, 3] == pytest.approx(128, abs=8)
    assert picture[3, 3, 3] == 0
    # The ends' colors, as over mid gray without seeing through: blue to normal, orange to pneumonia.
    assert tuple(picture[row, left, :3]) == tuple(np.rint(255 * blend(0.5, -1.0, 1.0)).astype(int))
    assert tuple(picture[row, right, :3]) == tuple(np.rint(255 * blend(0.5, 1.0, 1.0)).astype(int))
    assert picture[row, left, 2] > picture[row, left, 0]
    assert picture[row, right, 0] > picture[row, right, 2]


def test_zero_layer_is_transparent():
    layer = heatmap_layer(gray(64, 64), np.zeros((4, 4), np.float32), "squash")
    assert layer.maximum == 0
    assert not np.asarray(Image.open(io.BytesIO(layer.png)))[..., 3].any()
