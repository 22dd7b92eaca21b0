"""Sign-in sessions: expiry, sign-out and the limit on their number."""

import pytest

from pneumoscope.core.errors import AuthenticationError
from pneumoscope.service.auth import sessions as module
from pneumoscope.service.auth.sessions import SESSION_SECONDS, Sessions


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def test_session_expires_after_a_working_day():
    clock = Clock()
    sessions = Sessions(clock)
    cookie = sessions.begin("ward-3")
    clock.time = SESSION_SECONDS - 1
    assert sessions.user(cookie) == "ward-3"
    clock.time = SESSION_SECONDS
    with pytest.raises(AuthenticationError, match="not signed in"):
        sessions.user(cookie)


def test_sign_out_ends_only_that_session():
    sessions = Sessions()
    first, second = sessions.begin("a"), sessions.begin("a")
    assert first != second
    assert len(first) >= 43  # 256 bits
    sessions.end(first)
    sessions.end("never there")
    with pytest.raises(AuthenticationError):
        sessions.user(first)
    assert sessions.user(second) == "a"


@pytest.mark.parametrize("cookie", ["", "x", "a" * 10_000])
def test_unknown_cookie_is_rejected(cookie):
    with pytest.raises(AuthenticationError):
        Sessions().user(cookie)


def test_oldest_session_ends_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(module, "_MAX_SESSIONS", 2)
    sessions = Sessions()
    first, second, third = (sessions.begin(name) for name in "abc")
    with pytest.raises(AuthenticationError):
        sessions.user(first)
    assert (sessions.user(second), sessions.user(third)) == ("b", "c")
