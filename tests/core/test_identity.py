"""Names of people as they are searched, and their ages."""

from datetime import date, timedelta

import pytest

from pneumoscope.core.identity import name_search_words, years_between


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


@pytest.mark.parametrize(
    "born", [date(2023, 1, 31), date(2023, 3, 1), date(2024, 2, 29), date(2024, 12, 31), date(2020, 6, 15)]
)
def test_years_by_the_calendar_change_on_the_day_of_the_birth(born):
    for days in range(1, 2500):
        day = born + timedelta(days=days)
        completed = day.year - born.year - ((day.month, day.day) < (born.month, born.day))
        years = years_between(born, day)
        assert int(years) == completed
        assert years_between(born, day - timedelta(days=1)) < years
        assert years_between(day, born) == -years
