"""Message catalogs: English in the source, other languages in gettext files.

Mark an English message with `N_` where it is written; translate it with `translations(language).gettext` where a person
reads it. `make messages` extracts the marked messages and compiles `locale/LANGUAGE/LC_MESSAGES/pneumoscope.po`.
"""

from __future__ import annotations

import gettext
from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["DOMAIN", "LANGUAGES", "LOCALE_DIR", "NOTICE", "N_", "choose_language", "translations"]

DOMAIN = "pneumoscope"
LOCALE_DIR = Path(__file__).parents[1] / "locale"
LANGUAGES: Mapping[str, str] = {"en": "English", "zh-Hant": "繁體中文"}  # BCP 47 tag: name in the language itself


def N_(message: str) -> str:  # noqa: N802  gettext's own name
    """Return the message unchanged; marks it for extraction."""
    return message


# The part of the notice that holds for every model; see `core.prediction_messages.notice`.
NOTICE = N_("Research and education software. Not a medical device.")


@cache
def translations(language: str = "en") -> gettext.NullTranslations:
    """Return the catalog of a language; it returns messages in English if there is no such catalog.

    Args:
        language: A key of `LANGUAGES`.
    """
    return gettext.translation(DOMAIN, LOCALE_DIR, languages=[language.replace("-", "_")], fallback=True)


def choose_language(chosen: str, accepted: str) -> str:
    """Return the language for a request, a key of `LANGUAGES`.

    Args:
        chosen: The person's own choice, from a cookie or a query parameter; may be anything.
        accepted: The Accept-Language header.
    """
    if chosen in LANGUAGES:
        return chosen
    for preference in accepted.lower().split(","):
        tag = preference.partition(";")[0].strip()
        if tag.startswith("en"):
            return "en"
        if tag.startswith("zh"):  # Traditional Chinese serves readers of Simplified Chinese better than English
            return "zh-Hant"
    return "en"
