"""A matplotlib figure as small, clean SVG text that may stand in a page beside others.

What matplotlib writes is valid alone but not together: ids repeat from figure to figure and a style sheet for `*` leaks
into the page. Here ids are prefixed, styles become attributes (which a page's style sheet may override for the dark),
decimals are cut, and the figure gets an accessible name. The same figure always gives the same bytes.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree

from matplotlib.figure import Figure

from pneumoscope.reporting.style import COLOURS

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
    """Style rules that repaint every figure.

    Args:
        values: {name in `COLOURS`: any CSS colour, `var(--name)` included}.
    """
    rules = []
    for name, value in values.items():
        drawn = COLOURS[name][0]
        # No ancestor in the selector: a marker that is drawn by reference has none.
        rules.append(f'[fill="{drawn}"]{{fill:{value}}}[stroke="{drawn}"]{{stroke:{value}}}')
    return "\n".join(rules)


def inline_svg(figure: Figure, *, key: str, label: str) -> str:
    """SVG to be put into a page. Call it inside `style.drawing()`.

    Args:
        figure: drawn with the colours of `style`.
        key: unique in the page, made of letters, digits and hyphens; prefixes the ids.
        label: what the figure shows, for those who cannot see it.
    """
    root = _clean(figure, key)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("class", "plot")
    return ElementTree.tostring(root, encoding="unicode")


def standalone_svg(figure: Figure, *, label: str) -> str:
    """SVG as a file of its own: light or dark as the reader prefers. Call it inside `style.drawing()`."""
    root = _clean(figure, "figure")
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("font-family", _FONTS)
    dark = theme_rules({name: dark for name, (_, dark) in COLOURS.items()})
    look = ElementTree.Element("style")
    look.text = f"@media (prefers-color-scheme: dark){{{dark}}}"
    name = ElementTree.Element("title")
    name.text = label
    ground = ElementTree.Element("rect", {"width": "100%", "height": "100%", "fill": COLOURS["surface"][0]})
    root[:0] = [name, look, ground]
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _clean(figure: Figure, key: str) -> ElementTree.Element:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(out.getvalue())  # noqa: S314 - matplotlib has just written it
    _prune(root)
    used = {value for element in root.iter() for value in element.attrib.values()}
    for element in root.iter():
        _clean_element(element, key, used)
    for attribute in ("version", "width", "height"):
        root.attrib.pop(attribute, None)
    # What matplotlib says in a style sheet for everything; attributes are inherited and stay inside the figure.
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    return root


def _prune(parent: ElementTree.Element) -> None:
    """Drop style sheets and what that leaves empty, from the leaves up."""
    for child in list(parent):
        _prune(child)
        name = child.tag.rpartition("}")[2]
        if name == "style" or (name in {"g", "defs"} and len(child) == 0):
            parent.remove(child)


def _clean_element(element: ElementTree.Element, key: str, used: set[str]) -> None:
    element.tag = element.tag.rpartition("}")[2]
    attributes = element.attrib
    kept = []
    for part in attributes.pop("style", "").split("; "):
        name, _, value = part.partition(": ")
        if name in _ATTRIBUTES:
            attributes[name] = _DECIMALS.sub(_cut, value)
        elif name and name != "font-family":
            kept.append(part)
    if kept:
        attributes["style"] = "; ".join(kept)
    if _XLINK in attributes:
        attributes["href"] = attributes.pop(_XLINK)
    identity = attributes.pop("id", None)
    if identity and (f"#{identity}" in used or f"url(#{identity})" in used):
        attributes["id"] = f"{key}-{identity}"
    for name, value in attributes.items():
        attributes[name] = value.replace("url(#", f"url(#{key}-") if name != "href" else f"#{key}-{value[1:]}"
    for name in _GEOMETRY:
        if name in attributes:
            attributes[name] = _DECIMALS.sub(_cut, attributes[name].replace("\n", "")).strip()
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if element.tag != "text":
        element.text = element.tail = None
    else:
        element.tail = None


def _cut(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
