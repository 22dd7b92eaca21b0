"""Jinja environment of the pages: number formats, thumbnails, and colors as CSS variables."""

from __future__ import annotations

import base64
import io
import re

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from PIL import Image

from pneumoscope.core.result_forms import format_limit, method_name, with_minus_signs
from pneumoscope.reporting.style import COLORS
from pneumoscope.reporting.svg import theme_rules

__all__ = [
    "environment",
    "format_code",
    "format_difference",
    "format_duration",
    "format_p",
    "format_value",
    "theme",
    "thumbnail_url",
]

_THUMBNAIL_SIDE = 220  # pixels
_CODE = re.compile("`([^`]+)`")


def environment() -> jinja2.Environment:
    """Return an environment that escapes all values and raises an error for undefined names.

    Filters: `value`, `difference`, `limit`, `p_value`, `duration`, `code` and `method_name`.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumoscope.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "value": format_value,
        "difference": format_difference,
        "p_value": format_p,
        "duration": format_duration,
        "code": format_code,
        "limit": format_interval_limit,
        "method_name": method_name,
    }
    return templates


def format_value(value: float) -> str:
    """Return a metric with three decimals and a true minus sign."""
    return with_minus_signs(f"{value:.3f}")


def format_difference(value: float) -> str:
    """Return a difference with its sign and three decimals."""
    return with_minus_signs(f"{value:+.3f}")


def format_interval_limit(value: float, sign: bool = False) -> str:
    """Return an interval limit with three decimals, or more near 0, and a sign for limits of a difference."""
    return with_minus_signs(format_limit(value, "+.3f" if sign else ".3f"))


def format_p(value: float) -> str:
    """Return a p value with three decimals, or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_code(text: str) -> Markup:
    """Return escaped text with the parts between backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


def format_duration(seconds: float) -> str:
    """Return a wall-clock time in the two largest units, such as "2 h 03 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def theme() -> Markup:
    """Return CSS that defines the colors as variables, light and dark, and applies them to figures."""
    light, dark = ("".join(f"--{name}:{pair[index]};" for name, pair in COLORS.items()) for index in (0, 1))
    rules = theme_rules({name: f"var(--{name})" for name in COLORS})
    return Markup(  # noqa: S704 - constants of this package
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"
    )


def thumbnail_url(pixels: npt.NDArray[np.uint8]) -> str:
    """Return a thumbnail of an image, uint8, shape (height, width), as a data URL."""
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
