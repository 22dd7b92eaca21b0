"""What every page of ours shares: the template environment and the colours, light and dark."""

from __future__ import annotations

import jinja2
from markupsafe import Markup

from pneumoscope.reporting.style import COLOURS
from pneumoscope.reporting.svg import theme_rules

__all__ = ["environment", "theme"]


def environment() -> jinja2.Environment:
    """Templates that escape what they are given and refuse names that they are not given."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pneumoscope.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def theme() -> Markup:
    """The colours as CSS variables, light and dark, and the rules by which figures take them."""
    light, dark = ("".join(f"--{name}:{pair[which]};" for name, pair in COLOURS.items()) for which in (0, 1))
    rules = theme_rules({name: f"var(--{name})" for name in COLOURS})
    return Markup(  # noqa: S704 - constants of this package
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"
    )
