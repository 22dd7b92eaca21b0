"""SVGs can be combined in one page, follow dark mode and are reproducible."""

import re
import xml.etree.ElementTree as ElementTree

from matplotlib.figure import Figure

from pneumoscope.reporting.style import COLORS, drawing, new_figure
from pneumoscope.reporting.svg import inline_svg, standalone_svg, theme_rules

SVG = "{http://www.w3.org/2000/svg}"


def draw(title: str = "title") -> Figure:
    figure = new_figure(200, 150)
    axes = figure.subplots()
    axes.plot([0, 1, 2], [0.123456789, 2, 1], "o--", color=COLORS["run-0"][0])
    axes.set_title(title)
    return figure


def inline(title: str = "title", key: str = "k", label: str = "description") -> str:
    with drawing():
        return inline_svg(draw(title), key=key, label=label)


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert inline() == inline()


def test_ids_are_unique_across_figures_and_references_have_targets() -> None:
    ids = []
    for key in ("a", "b"):
        text = inline(key=key)
        defined = re.findall(r' id="([^"]+)"', text)
        used = {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)}
        assert used
        assert used <= set(defined)
        ids += defined
    assert len(ids) == len(set(ids))


def test_inline_svg_has_a_label_and_no_style_sheet_script_or_size() -> None:
    root = ElementTree.fromstring(inline(label='a "quoted" <name> & more'))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'a "quoted" <name> & more'
    assert root.attrib["viewBox"] == "0 0 200 150"
    assert "width" not in root.attrib
    assert {element.tag for element in root.iter()} <= {"svg", "g", "path", "defs", "use", "text", "clipPath", "rect"}
    assert not [element for element in root.iter() if "style" in element.attrib]


def test_markup_and_dollar_signs_stay_text() -> None:
    root = ElementTree.fromstring(inline(title="<script>$x^2$</script>"))
    assert "<script>$x^2$</script>" in [element.text for element in root.iter("text")]
    assert not list(root.iter("script"))


def test_characters_without_a_glyph_in_the_bundled_font_are_kept() -> None:
    assert "肺炎" in inline(title="肺炎")


def test_coordinates_have_at_most_two_decimals() -> None:
    root = ElementTree.fromstring(inline())
    numbers = [number for element in root.iter() for number in re.findall(r"\d+\.(\d+)", element.get("d", ""))]
    assert numbers
    assert max(map(len, numbers)) <= 2


def test_every_color_has_a_theme_rule() -> None:
    colors = set(re.findall(r' (?:fill|stroke)="([^"]+)"', inline()))
    assert colors - {"none"} <= {light for light, _ in COLORS.values()}
    rules = theme_rules({name: f"var(--{name})" for name in COLORS})
    for color in colors - {"none"}:
        assert f'[fill="{color}"]' in rules
        assert f'[stroke="{color}"]' in rules


def test_standalone_svg_has_a_title_a_background_and_dark_colors() -> None:
    with drawing():
        root = ElementTree.fromstring(standalone_svg(draw(), label="accuracy & loss"))
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title") == "accuracy & loss"
    assert root.find(f"{SVG}rect").attrib["fill"] == COLORS["surface"][0]
    style = root.findtext(f"{SVG}style")
    assert "@media (prefers-color-scheme: dark)" in style
    assert f'[stroke="{COLORS["run-0"][0]}"]{{stroke:{COLORS["run-0"][1]}}}' in style
