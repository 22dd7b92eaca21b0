"""Names of people as they are searched."""

import pytest

from pneumoscope.core.identity import name_search_words


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
