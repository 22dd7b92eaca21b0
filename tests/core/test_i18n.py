"""The message catalogs and the choice of the language."""

import re
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po

from pneumoscope.core.i18n import DOMAIN, LANGUAGES, LOCALE_DIR, choose_language, translations

ROOT = Path(__file__).parents[2]
TRANSLATED = [language for language in LANGUAGES if language != "en"]
PLACEHOLDER = re.compile(r"%%|%\(\w+\)s|\{[^}]*\}")


def catalog_file(language: str, suffix: str) -> Path:
    return LOCALE_DIR / language.replace("-", "_") / "LC_MESSAGES" / f"{DOMAIN}{suffix}"


def read_catalog(language: str, suffix: str) -> Catalog:
    with catalog_file(language, suffix).open("rb") as file:
        return read_mo(file) if suffix == ".mo" else read_po(file, locale=language.replace("-", "_"))


def messages_of(catalog: Catalog) -> dict[object, object]:
    return {hashable(message.id): hashable(message.string) for message in catalog if message.id}


def hashable(strings: object) -> object:
    return tuple(strings) if isinstance(strings, list) else strings


def extracted_messages() -> set[object]:
    with (ROOT / "babel.cfg").open(encoding="utf-8") as file:
        methods, options = parse_mapping_cfg(file)
    found = extract_from_dir(
        ROOT / "src" / "pneumoscope", methods, options, {"N_": None, "_": None, "gettext": None, "ngettext": (1, 2)}
    )
    return {message for _, _, message, _, _ in found}


@pytest.mark.parametrize("language", TRANSLATED)
def test_catalog_has_every_extracted_message_and_no_other(language):
    extracted = extracted_messages()
    assert len(extracted) > 200
    assert set(messages_of(read_catalog(language, ".po"))) == extracted, "run `make messages`"


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_message_is_translated(language):
    catalog = read_catalog(language, ".po")
    assert [message.id for message in catalog if message.id and (message.fuzzy or not all_strings(message))] == []


def all_strings(message):
    return all(message.string) if isinstance(message.string, tuple) else message.string


@pytest.mark.parametrize("language", TRANSLATED)
def test_translations_keep_the_placeholders(language):
    for message in read_catalog(language, ".po"):
        if not message.id:
            continue
        singular = message.id[-1] if isinstance(message.id, tuple) else message.id
        for string in message.string if isinstance(message.string, tuple) else (message.string,):
            assert sorted(PLACEHOLDER.findall(string)) == sorted(PLACEHOLDER.findall(singular)), singular


@pytest.mark.parametrize("language", TRANSLATED)
def test_compiled_catalog_is_up_to_date(language):
    assert messages_of(read_catalog(language, ".mo")) == messages_of(read_catalog(language, ".po"))


def test_english_needs_no_catalog():
    assert translations("en").gettext("Worklist") == "Worklist"
    assert translations("zh-Hant").gettext("Worklist") == "工作清單"


@pytest.mark.parametrize(
    ("chosen", "accepted", "language"),
    [
        ("", "", "en"),
        ("zh-Hant", "en", "zh-Hant"),
        ("../../etc/passwd", "zh-TW,zh;q=0.9,en;q=0.8", "zh-Hant"),
        ("", "en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("", "fr, de;q=0.5", "en"),
        ("", "fr, zh-TW;q=0.5", "zh-Hant"),
    ],
)
def test_language_is_the_chosen_one_or_the_browsers(chosen, accepted, language):
    assert choose_language(chosen, accepted) == language
