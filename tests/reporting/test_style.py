"""Colors can be distinguished, and the style applies to its context only."""

import itertools
import warnings

import matplotlib
import numpy as np
import pytest

from pneumoscope.reporting.style import COLORS, RUN_SLOTS, drawing, new_figure, run_style, short

# Linear RGB as perceived with each kind of color blindness, at full severity: Machado, Oliveira & Fernandes 2009, IEEE
# TVCG 15:1291, table 1.
PERCEPTION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIE L*a*b* of linear sRGB under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    """Return the WCAG 2 contrast ratio."""
    dark, light = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear(color)) for color in (a, b))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("perception", PERCEPTION)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colors_of_runs_can_be_distinguished(perception: str, theme: int) -> None:
    perceived = [lab(np.array(PERCEPTION[perception]) @ linear(COLORS[f"run-{i}"][theme])) for i in range(RUN_SLOTS)]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(perceived, 2))
    assert nearest > 15  # a difference of 2 is just visible side by side


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_lines_have_contrast_3_and_text_4_5(theme: int) -> None:
    background = COLORS["surface"][theme]
    for name, pair in COLORS.items():
        if name.startswith("run-"):
            assert contrast(pair[theme], background) >= 3, name
    for name in ("ink", "muted"):
        assert contrast(COLORS[name][theme], background) >= 4.5, name


def test_light_colors_are_distinct() -> None:
    assert len({light for light, _ in COLORS.values()}) == len(COLORS)


def test_the_first_32_styles_are_distinct_and_stable() -> None:
    styles = [(run_style(i).color, run_style(i).dash) for i in range(32)]
    assert len(set(styles)) == 32
    assert run_style(3) == run_style(3)
    assert run_style(0).line == "-"
    assert run_style(1).line == (0, run_style(1).dash)


def test_long_names_are_truncated() -> None:
    assert short("vgg19-adam-32") == "vgg19-adam-32"
    assert short("a" * 20) == "a" * 20
    assert short("a" * 21) == "a" * 19 + "…"


def test_the_style_does_not_change_global_settings() -> None:
    before = dict(matplotlib.rcParams)
    with drawing():
        assert matplotlib.rcParams["svg.fonttype"] == "none"
        assert matplotlib.rcParams["text.parse_math"] is False
    assert dict(matplotlib.rcParams) == before


def test_only_warnings_about_missing_glyphs_are_suppressed() -> None:
    with pytest.warns(UserWarning, match="something else"), drawing():
        warnings.warn("something else", stacklevel=1)


def test_a_figure_has_the_given_size() -> None:
    assert tuple(new_figure(300, 150).get_size_inches() * 72) == pytest.approx((300, 150))
