"""Decoders warn in silence, and leave the filters as they were, however threads overlap."""

from __future__ import annotations

import threading
import warnings

import pytest

from pneumoscope.imaging.muted import muted


def test_no_warning_gets_out() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with muted:
            warnings.warn("inside", stacklevel=1)
        warnings.warn("outside", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["outside"]


def test_threads_that_overlap_leave_the_filters_as_they_were() -> None:
    """The first to come is the first to go: each `catch_warnings` of its own would put back the other's "ignore"."""
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with muted:
            first_is_in.set()
            second_is_in.wait(10)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(10)
        with muted:
            second_is_in.set()
            first_is_out.wait(10)
            warnings.warn("still inside", stacklevel=1)

    before = list(warnings.filters)
    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert first_is_out.is_set()
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", stacklevel=1)


def test_an_error_inside_gets_out_and_the_filters_are_put_back() -> None:
    before = list(warnings.filters)
    with pytest.raises(ZeroDivisionError), muted:
        _ = 1 / 0
    assert list(warnings.filters) == before
