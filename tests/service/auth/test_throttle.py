"""Failed sign-ins are slowed down, by address."""

import pytest

from pneumoscope.core.errors import TooManyRequestsError
from pneumoscope.service.auth.throttle import SignInThrottle


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


def delay(throttle, clock, address="a"):
    """Return the seconds after which an address may try again."""
    start = clock.time
    while True:
        try:
            throttle.check(address)
        except TooManyRequestsError as error:
            clock.time += error.retry_seconds
        else:
            return clock.time - start


def test_each_failure_after_the_fifth_doubles_the_delay_up_to_a_minute():
    clock = Clock()
    throttle = SignInThrottle(clock)
    delays = []
    for _ in range(13):
        throttle.record_failure("a")
        delays.append(delay(throttle, clock))
    assert delays == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_other_addresses_are_not_delayed():
    clock = Clock()
    throttle = SignInThrottle(clock)
    for _ in range(9):
        throttle.record_failure("a")
    throttle.check("b")
    with pytest.raises(TooManyRequestsError, match="too many failed attempts") as caught:
        throttle.check("a")
    assert caught.value.retry_seconds == 16
    assert "in 16 seconds" in caught.value.hint


def test_success_or_a_quarter_of_an_hour_forgets_failures():
    clock = Clock()
    throttle = SignInThrottle(clock)
    for _ in range(9):
        throttle.record_failure("a")
        throttle.record_failure("b")
    throttle.record_success("a")
    throttle.check("a")
    clock.time += 901
    throttle.record_failure("b")
    throttle.check("b")


def test_addresses_are_forgotten_when_there_are_too_many():
    throttle = SignInThrottle(Clock(), max_addresses=2)
    for address in "abc":
        for _ in range(5):
            throttle.record_failure(address)
    throttle.check("a")
    for address in "bc":
        with pytest.raises(TooManyRequestsError):
            throttle.check(address)
