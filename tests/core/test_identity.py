"""Names of people: as they are displayed and searched."""

import pytest

from pneumoscope.core.identity import display_name, name_search_words


@pytest.mark.parametrize(
    ("name", "displayed"),
    [
        ("Doe^Jane", "Doe Jane"),
        ("Wang^XiaoMing=王^小明", "Wang XiaoMing (王小明)"),
        ("=王^小明", "王小明"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada Tarou (山田太郎, やまだ たろう)"),
        ("王^Amy", "王 Amy"),
        ("", ""),
    ],
)
def test_ideographs_are_displayed_without_spaces(name, displayed):
    assert display_name(name) == displayed


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Doe^Jane", ["doe", "jane"]),
        ("Wang^XiaoMing=王^小明", ["wang", "xiaoming", "王", "小明", "王小明"]),
        ("王^Amy", ["王", "amy"]),
        ("", []),
    ],
)
def test_name_in_ideographs_is_also_searched_as_one_word(name, words):
    assert name_search_words(name) == words
