"""Sign-in sessions and codes: expiry, single use and the limit on their number."""

import re

import pytest

from pneumoscope.core.errors import AuthenticationError
from pneumoscope.service.auth.sessions import CODE_SECONDS, SESSION_SECONDS, Sessions, SignInCodes
from pneumoscope.service.auth.users import AuthenticatedUser

USER, OTHER, THIRD = (AuthenticatedUser(name, "reader", "0123abcd") for name in ("a", "b", "c"))


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def test_session_expires_after_a_working_day():
    clock = Clock()
    sessions = Sessions(clock)
    cookie = sessions.begin(USER)
    clock.time = SESSION_SECONDS - 1
    assert sessions.user(cookie) == USER
    clock.time = SESSION_SECONDS
    with pytest.raises(AuthenticationError, match="not signed in"):
        sessions.user(cookie)


def test_sign_out_ends_only_that_session():
    sessions = Sessions()
    first, second = sessions.begin(USER), sessions.begin(USER)
    assert first != second
    assert len(first) >= 43  # 256 bits
    assert sessions.end(first) == USER
    assert sessions.end(first) is None
    assert sessions.end("never there") is None
    with pytest.raises(AuthenticationError):
        sessions.user(first)
    assert sessions.user(second) == USER


@pytest.mark.parametrize("cookie", ["", "x", "a" * 10_000])
def test_unknown_cookie_is_rejected(cookie):
    with pytest.raises(AuthenticationError):
        Sessions().user(cookie)


def test_oldest_session_ends_when_there_are_too_many():
    sessions = Sessions(max_sessions=2)
    first, second, third = (sessions.begin(user) for user in (USER, OTHER, THIRD))
    with pytest.raises(AuthenticationError):
        sessions.user(first)
    assert (sessions.user(second), sessions.user(third)) == (OTHER, THIRD)


def test_session_may_end_earlier():
    clock = Clock()
    sessions = Sessions(clock)
    first = sessions.begin(USER)
    clock.time = 3600
    second = sessions.begin(USER, until=sessions.get(first).expiry)
    clock.time = SESSION_SECONDS
    assert sessions.get(first) is None
    assert sessions.get(second) is None


def test_code_signs_its_user_in_once():
    codes = SignInCodes()
    code = codes.create("cookie")
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}", code)
    assert code != codes.create("cookie")
    assert codes.redeem(code) == "cookie"
    assert codes.redeem(code) is None


def test_code_is_read_as_people_type_it(monkeypatch):
    monkeypatch.setattr("secrets.choice", lambda alphabet: next(digits))
    codes = SignInCodes()
    for typed in ("0a1b2c3d", " OA1B-2C3D ", "oa iB 2c3D", "0AlB2C3D"):
        digits = iter("0A1B2C3D")
        codes.create("cookie")
        assert codes.redeem(typed) == "cookie"


def test_code_expires_after_two_minutes():
    clock = Clock()
    codes = SignInCodes(clock)
    early, late = codes.create("cookie"), codes.create("other")
    clock.time = CODE_SECONDS - 1
    assert codes.redeem(early) == "cookie"
    clock.time = CODE_SECONDS
    assert codes.redeem(late) is None


@pytest.mark.parametrize("code", ["", "-", "ABCD-EFGH", "é" * 8, "A" * 10_000])
def test_unknown_code_signs_no_one_in(code):
    assert SignInCodes().redeem(code) is None
