"""Convert matplotlib figures to small SVGs that can be embedded in one page.

Several matplotlib SVGs cannot share a page: ids repeat, and a style sheet for `*` applies to the whole page. Here ids
are prefixed, styles become attributes (which a page's style sheet can override for dark mode), coordinates are rounded,
and the figure gets an accessible name. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree

from matplotlib.figure import Figure

from pneumoscope.reporting.style import COLORS

__all__ = ["inline_svg", "standalone_svg", "theme_rules"]

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_ATTRIBUTES = frozenset(
    [
        *("fill", "fill-opacity", "opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray"),
        *("stroke-dashoffset", "stroke-linecap", "stroke-linejoin", "text-anchor", "font-size", "font-weight"),
    ]
)
_GEOMETRY = ("d", "x", "y", "width", "height", "transform")
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")


def theme_rules(values: dict[str, str]) -> str:
    """Return CSS rules that replace the colors of all figures.

    Args:
        values: CSS color, which may be a `var(--name)`, by name in `COLORS`.
    """
    rules = []
    for name, value in values.items():
        light = COLORS[name][0]
        # The selector has no ancestor, because markers drawn by reference have none.
        rules.append(f'[fill="{light}"]{{fill:{value}}}[stroke="{light}"]{{stroke:{value}}}')
    return "\n".join(rules)


def inline_svg(figure: Figure, *, key: str, label: str) -> str:
    """Return an SVG element to embed in a page. Must be called within `style.drawing()`.

    Args:
        figure: Figure in the colors of `style`.
        key: Prefix of the ids, unique in the page: letters, digits and hyphens.
        label: Text alternative of the figure.
    """
    root = _clean(figure, key)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("class", "plot")
    return ElementTree.tostring(root, encoding="unicode")


def standalone_svg(figure: Figure, *, label: str) -> str:
    """Return an SVG file that follows the viewer's light or dark mode. Must be called within `style.drawing()`."""
    root = _clean(figure, "figure")
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("font-family", _FONTS)
    dark = theme_rules({name: dark for name, (_, dark) in COLORS.items()})
    style = ElementTree.Element("style")
    style.text = f"@media (prefers-color-scheme: dark){{{dark}}}"
    title = ElementTree.Element("title")
    title.text = label
    background = ElementTree.Element("rect", {"width": "100%", "height": "100%", "fill": COLORS["surface"][0]})
    root[:0] = [title, style, background]
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _clean(figure: Figure, key: str) -> ElementTree.Element:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(out.getvalue())  # noqa: S314 - written by matplotlib
    _prune(root)
    references = {value for element in root.iter() for value in element.attrib.values()}
    for element in root.iter():
        _clean_element(element, key, references)
    for attribute in ("version", "width", "height"):
        root.attrib.pop(attribute, None)
    # These replace matplotlib's style sheet for `*`; attributes are inherited within the figure only.
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    return root


def _prune(parent: ElementTree.Element) -> None:
    """Remove style sheets, and groups that are empty without them."""
    for child in list(parent):
        _prune(child)
        name = child.tag.rpartition("}")[2]
        if name == "style" or (name in {"g", "defs"} and len(child) == 0):
            parent.remove(child)


def _clean_element(element: ElementTree.Element, key: str, references: set[str]) -> None:
    """Turn styles into attributes, prefix referenced ids, remove other ids and round coordinates."""
    element.tag = element.tag.rpartition("}")[2]
    attributes = element.attrib
    other_styles = []
    for part in attributes.pop("style", "").split("; "):
        name, _, value = part.partition(": ")
        if name in _ATTRIBUTES:
            attributes[name] = _DECIMALS.sub(_round, value)
        elif name and name != "font-family":
            other_styles.append(part)
    if other_styles:
        attributes["style"] = "; ".join(other_styles)
    if _XLINK in attributes:
        attributes["href"] = attributes.pop(_XLINK)
    identity = attributes.pop("id", None)
    if identity and (f"#{identity}" in references or f"url(#{identity})" in references):
        attributes["id"] = f"{key}-{identity}"
    for name, value in attributes.items():
        attributes[name] = value.replace("url(#", f"url(#{key}-") if name != "href" else f"#{key}-{value[1:]}"
    for name in _GEOMETRY:
        if name in attributes:
            attributes[name] = _DECIMALS.sub(_round, attributes[name].replace("\n", "")).strip()
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if element.tag != "text":
        element.text = element.tail = None
    else:
        element.tail = None


def _round(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
