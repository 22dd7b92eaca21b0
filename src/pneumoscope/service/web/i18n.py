"""The page's words in the languages that it speaks: English as it stands in the templates, the others in tables beside this file.

A table holds the page's own words and what the software says of images; in both, {x} stands for what changes.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from importlib import resources

from pneumoscope.core.messages import decision_label, prediction_message
from pneumoscope.core.prediction import Decision, Prediction

__all__ = ["Words"]


class Words:
    """One language.

    Attributes:
        language: its name in `LANGUAGES`.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        table = _table(language)
        self.known: Mapping[str, str] = table.get("page", {})
        self._images = [(_pattern(english), said) for english, said in table.get("images", {}).items()]

    def __call__(self, english: str, **values: object) -> str:
        """A sentence of the page with its values put in, if it is given any; in English where the table does not have it."""
        said = self.known.get(english, english)
        return said.format(**values) if values else said

    def decision(self, decision: Decision) -> str:
        """Return the display name of a decision."""
        return decision_label(decision, self.language)

    def message(self, prediction: Prediction) -> str:
        """Return the explanation of a decision."""
        return prediction_message(prediction, self.language)

    def of_image(self, english: str) -> tuple[str, str]:
        """What the software said of an image, such as why it rejects it, and the language that it is in now."""
        for pattern, said in self._images:
            if found := pattern.fullmatch(english):
                return said.format(**found.groupdict()), self.language
        return english, "en"


@functools.cache
def _table(language: str) -> dict[str, dict[str, str]]:
    if language == "en":
        return {}
    text = resources.files(__package__).joinpath(f"{language}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@functools.cache
def _pattern(english: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(english)), re.DOTALL)
