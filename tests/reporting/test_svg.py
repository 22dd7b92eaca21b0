"""SVG that may stand beside other SVG, repaints itself for the dark, and is the same twice."""

import re
import xml.etree.ElementTree as ElementTree

from matplotlib.figure import Figure

from pneumoscope.reporting.style import COLOURS, drawing, new_figure
from pneumoscope.reporting.svg import inline_svg, standalone_svg, theme_rules

SVG = "{http://www.w3.org/2000/svg}"


def draw(title: str = "title") -> Figure:
    figure = new_figure(200, 150)
    axes = figure.subplots()
    axes.plot([0, 1, 2], [0.123456789, 2, 1], "o--", color=COLOURS["run-0"][0])
    axes.set_title(title)
    return figure


def inline(title: str = "title", key: str = "k", label: str = "what it shows") -> str:
    with drawing():
        return inline_svg(draw(title), key=key, label=label)


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert inline() == inline()


def test_ids_of_two_figures_never_meet_and_every_reference_has_its_target() -> None:
    ids = []
    for key in ("a", "b"):
        text = inline(key=key)
        own = re.findall(r' id="([^"]+)"', text)
        used = {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)}
        assert used
        assert used <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_it_carries_its_name_and_no_style_sheet_no_script_and_no_size() -> None:
    root = ElementTree.fromstring(inline(label='a "quoted" <name> & more'))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'a "quoted" <name> & more'
    assert root.attrib["viewBox"] == "0 0 200 150"
    assert "width" not in root.attrib
    assert {element.tag for element in root.iter()} <= {"svg", "g", "path", "defs", "use", "text", "clipPath", "rect"}
    assert not [element for element in root.iter() if "style" in element.attrib]


def test_a_name_with_markup_and_dollars_is_text() -> None:
    root = ElementTree.fromstring(inline(title="<script>$x^2$</script>"))
    assert "<script>$x^2$</script>" in [element.text for element in root.iter("text")]
    assert not list(root.iter("script"))


def test_a_letter_that_the_bundled_font_lacks_is_kept() -> None:
    assert "肺炎" in inline(title="肺炎")


def test_decimals_are_cut_to_two() -> None:
    root = ElementTree.fromstring(inline())
    numbers = [number for element in root.iter() for number in re.findall(r"\d+\.(\d+)", element.get("d", ""))]
    assert numbers
    assert max(map(len, numbers)) <= 2


def test_every_painted_colour_has_a_rule_or_is_transparent() -> None:
    painted = set(re.findall(r' (?:fill|stroke)="([^"]+)"', inline()))
    assert painted - {"none"} <= {light for light, _ in COLOURS.values()}
    rules = theme_rules({name: f"var(--{name})" for name in COLOURS})
    for colour in painted - {"none"}:
        assert f'[fill="{colour}"]' in rules
        assert f'[stroke="{colour}"]' in rules


def test_a_file_of_its_own_is_xml_with_a_title_a_ground_and_dark_colours() -> None:
    with drawing():
        root = ElementTree.fromstring(standalone_svg(draw(), label="accuracy & loss"))
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title") == "accuracy & loss"
    assert root.find(f"{SVG}rect").attrib["fill"] == COLOURS["surface"][0]
    look = root.findtext(f"{SVG}style")
    assert "@media (prefers-color-scheme: dark)" in look
    assert f'[stroke="{COLOURS["run-0"][0]}"]{{stroke:{COLOURS["run-0"][1]}}}' in look
