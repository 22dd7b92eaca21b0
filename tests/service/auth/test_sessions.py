"""Sessions of people at the page: they begin, end by themselves, and their cookies are no tokens."""

import pytest

from pneumoscope.core.errors import AuthenticationError
from pneumoscope.service.auth import sessions
from pneumoscope.service.auth.sessions import SECONDS, Sessions


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def test_a_session_lasts_a_working_day():
    clock = Clock()
    opened = Sessions(clock)
    cookie = opened.begin("ward-3")
    clock.time = SECONDS - 1
    assert opened.who(cookie) == "ward-3"
    clock.time = SECONDS
    with pytest.raises(AuthenticationError, match="nobody is signed in"):
        opened.who(cookie)


def test_signing_out_ends_one_session_alone():
    opened = Sessions()
    first, second = opened.begin("a"), opened.begin("a")
    assert first != second
    assert len(first) >= 43  # 256 bits
    opened.end(first)
    opened.end("never there")
    with pytest.raises(AuthenticationError):
        opened.who(first)
    assert opened.who(second) == "a"


@pytest.mark.parametrize("cookie", ["", "x", "a" * 10_000])
def test_a_cookie_of_nobody_is_refused(cookie):
    with pytest.raises(AuthenticationError):
        Sessions().who(cookie)


def test_the_oldest_ends_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(sessions, "_MOST", 2)
    opened = Sessions()
    first, second, third = (opened.begin(name) for name in "abc")
    with pytest.raises(AuthenticationError):
        opened.who(first)
    assert (opened.who(second), opened.who(third)) == ("b", "c")
