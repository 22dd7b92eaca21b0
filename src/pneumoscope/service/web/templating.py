"""Turns data into HTML that nothing in an image's name or note can break out of, and that loads nothing from elsewhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from urllib.parse import urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from pneumoscope import __version__
from pneumoscope.core.i18n import LANGUAGES, NOTICE, choose_language
from pneumoscope.inference.saliency import percent
from pneumoscope.service.auth.tokens import Authenticator
from pneumoscope.service.web.i18n import Words

__all__ = ["LANGUAGE", "html", "words_of"]

LANGUAGE = "language"  # cookie and parameter
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # a heatmap is fetched for its scale, then shown
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumoscope.service.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"time": _time, "share": _share}
    return made


def words_of(request: Request) -> Words:
    """The language of a request: asked for in its address, else chosen earlier, else its browser's."""
    asked = request.query_params.get(LANGUAGE) or request.cookies.get(LANGUAGE, "")
    return Words(choose_language(asked, request.headers.get("Accept-Language", "")))


def html(request: Request, template: str, status: int = 200, **values: object) -> HTMLResponse:
    """A page.

    Args:
        request: that it answers; tells the language, and who is signed in.
        template: its file.
        status: of the answer.
        values: for the template.
    """
    words = words_of(request)

    def probability(value: float) -> str:
        return words(text) if (text := percent(value)) in ("below 1%", "above 99%") else text

    def address(path: str, **changed: object) -> str:
        kept = {name: value for name, value in changed.items() if value not in (None, "")}
        return f"{path}?{urlencode(kept)}" if kept else path

    access: Authenticator = request.app.state.access
    query = {name: value for name, value in request.query_params.items() if name != LANGUAGE}
    text = _environment().get_template(template).render(
        t=words,
        language=words.language,
        languages={
            name: (own, f"{request.url.path}?{urlencode({**query, LANGUAGE: name})}") for name, own in LANGUAGES.items()
        },
        of_image=words.of_image,
        probability=probability,
        address=address,
        notice=words.of_image(NOTICE),
        version=__version__,
        who=getattr(request.state, "who", "") if access.asks else "",
        **values,
    )  # fmt: skip
    answer = HTMLResponse(text, status, headers={"Content-Security-Policy": _POLICY, "Vary": "Accept-Language, Cookie"})
    if request.query_params.get(LANGUAGE) in LANGUAGES:
        secure = request.url.scheme == "https"
        answer.set_cookie(
            LANGUAGE, words.language, max_age=365 * 86400, secure=secure, httponly=True, samesite="strict"
        )
    return answer


def _time(iso: str) -> str:
    """ "2026-01-31T09:30:00.000000Z" to the minute, as a person reads it; in UTC, which the page says."""
    return f"{iso[:10]} {iso[11:16]}"


def _share(found: Mapping[str, float] | object) -> str:
    """An interval in whole percents: "94 (90 to 97)"; outwards, so that it never promises more than was found."""
    value, low, high = (getattr(found, name) for name in ("value", "low", "high"))
    return f"{100 * value:.0f}% ({math.floor(100 * low)}\u2013{math.ceil(100 * high)}%)"
