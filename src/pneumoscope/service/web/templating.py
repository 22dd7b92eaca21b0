"""Render pages from Jinja2 templates, in the language of the request and with a strict content security policy.

Templates escape every value, and pages load nothing from other hosts.
"""

from __future__ import annotations

import functools
import math
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from pneumoscope.core import messages, prediction_messages, rejection_messages
from pneumoscope.core.error_messages import error_texts
from pneumoscope.core.i18n import LANGUAGES, N_, choose_language, translations
from pneumoscope.core.identity import age_at_study, display_name
from pneumoscope.core.interval import Interval
from pneumoscope.core.prediction import MAX_AGE, Prediction
from pneumoscope.core.prediction_codes import DECISIONS
from pneumoscope.core.result_forms import format_decimals
from pneumoscope.service.auth.authenticator import Authenticator
from pneumoscope.service.auth.users import LOCAL, AuthenticatedUser
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.reviews import LABELS
from pneumoscope.service.time_zone import format_minute, local_date

__all__ = ["LANGUAGE", "render", "request_language", "url_with_query"]

LANGUAGE = "language"  # name of the cookie and the query parameter
_LANGUAGE_COOKIE_SECONDS = 365 * 86400
_UID_END = 8  # displayed characters of a UID
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: because scripts fetch the heatmap together with its scale
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


def request_language(request: Request) -> str:
    """Return the language of a request, a key of `LANGUAGES`, from the query, the cookie or the browser settings."""
    chosen = request.query_params.get(LANGUAGE) or request.cookies.get(LANGUAGE, "")
    return choose_language(chosen, request.headers.get("Accept-Language", ""))


def render(request: Request, template: str, status: int = 200, **context: object) -> HTMLResponse:
    """Return a page as a response.

    Args:
        request: Determines the language and the signed-in user.
        template: File name in `templates/`.
        status: HTTP status.
        context: Template variables. Without `notice`, the notice of the current model is used.
    """
    language, path = request_language(request), request.url.path
    authenticator: Authenticator = request.app.state.authenticator
    settings: Settings = request.app.state.settings
    user: AuthenticatedUser | None = getattr(request.state, "authenticated_user", None)
    query = {name: value for name, value in request.query_params.items() if name != LANGUAGE}
    html = (
        _environment(language, settings.time_zone)
        .get_template(template)
        .render(
            current_path=path,
            languages={
                tag: (name, url_with_query(path, **query, **{LANGUAGE: tag})) for tag, name in LANGUAGES.items()
            },
            user=user.name if authenticator.required and user else "",
            is_administrator=user is not None and user.has_role("administrator"),
            **{"notice": request.app.state.service.notice(language), **context},
        )
    )
    headers = {"Content-Security-Policy": _CONTENT_SECURITY_POLICY, "Vary": "Accept-Language, Cookie"}
    response = HTMLResponse(html, status, headers)
    if request.query_params.get(LANGUAGE) in LANGUAGES:
        response.set_cookie(
            LANGUAGE,
            language,
            max_age=_LANGUAGE_COOKIE_SECONDS,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
    return response


def url_with_query(path: str, /, **parameters: str) -> str:
    """Return a path with a query string of the non-empty parameters."""
    query = urlencode({name: value for name, value in parameters.items() if value})
    return f"{path}?{query}" if query else path


def format_interval(interval: Interval, opening: str = " (", closing: str = ")") -> str:
    """Return a proportion and its interval in whole percent, "94% (90–97%)"; the interval is rounded outwards.

    Args:
        interval: Interval of the proportion.
        opening, closing: Brackets of the language; see `messages.punctuation`.
    """
    if interval.value is None or interval.low is None or interval.high is None:
        return "–"
    low, high = math.floor(100 * interval.low), math.ceil(100 * interval.high)
    return f"{interval.value:.0%}{opening}{low}\u2013{high}%{closing}"


def format_sentence(text: str, full_stop: str = ".") -> str:
    """Return an error phrase, or several separated by full stops, as a sentence."""
    return f"{text[:1].upper()}{text[1:]}{full_stop}" if text else ""


def format_years(age: float) -> str:
    """Return an age in years with at most two decimals, without trailing zeros."""
    return f"{round(age, 2):g}"


def format_image_title(prediction: Prediction) -> str:
    """Return the name of an image; if the name is its UID, as for images from a PACS, only the end of the UID."""
    identity = prediction.identity
    is_uid = identity is not None and prediction.path == identity.sop_instance_uid
    return f"DICOM \N{HORIZONTAL ELLIPSIS}{prediction.path[-_UID_END:]}" if is_uid else prediction.path


def _reader_name(local: str, reader: str) -> str:
    return local if reader == LOCAL else reader


@functools.cache
def _environment(language: str, time_zone: ZoneInfo) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumoscope.service.web"),
        extensions=["jinja2.ext.i18n"],
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.install_gettext_translations(translations(language), newstyle=True)  # type: ignore[attr-defined]
    signs = messages.punctuation(language)
    environment.filters |= {
        "decimals": format_decimals,
        "display_name": display_name,
        "interval_percent": functools.partial(format_interval, opening=signs["opening"], closing=signs["closing"]),
        "local_date": functools.partial(local_date, zone=time_zone),
        "sentence": format_sentence,
        "image_title": format_image_title,
        "minute": functools.partial(format_minute, zone=time_zone),
        "years": format_years,
    }
    environment.globals |= {
        "language": language,
        "time_zone": time_zone.key,
        "full_stop": messages.full_stop(language),
        **signs,
        "reader_name": functools.partial(_reader_name, translations(language).gettext(N_("This computer"))),
        "review_labels": {label: messages.review_label(label, language) for label in LABELS},
        "decision_labels": {decision: messages.decision_label(decision, language) for decision in DECISIONS},
        "error_texts": error_texts(language),
        "age_at_study": age_at_study,
        "max_age": MAX_AGE,
        "url_with_query": url_with_query,
        **{
            each.__name__: functools.partial(each, language=language)
            for each in (
                messages.age_text,
                messages.conflict_message,
                messages.decision_label,
                messages.failure_message,
                messages.field_problem_message,
                messages.identity_label,
                messages.join_sentences,
                messages.operating_point_label,
                rejection_messages.rejection_label,
                messages.review_label,
                messages.role_label,
                messages.sex_label,
                messages.warning_label,
                messages.warning_message,
                prediction_messages.age_conflict_message,
                prediction_messages.decision_message,
                prediction_messages.list_message,
                prediction_messages.prevalence_message,
                prediction_messages.probability_text,
                prediction_messages.range_text,
                prediction_messages.result_message,
                prediction_messages.site_note,
            )
        },
    }
    return environment
