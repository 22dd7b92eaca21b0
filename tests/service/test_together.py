"""Calls that are done together: each gets its own result, all that wait go at once, and one that fails harms nobody else."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pneumoscope.service.together import Together


class CommonError(Exception):
    """What befalls all."""


def test_a_call_alone_is_done_at_once():
    assert Together(lambda items: [2 * item for item in items], CommonError)(21) == 42


def run(do, items, most=64):
    """Results or errors of calls, all of which but the first begin while the first is being done."""
    begun, gathered, batches = threading.Event(), threading.Event(), []

    def doing(some):
        batches.append(list(some))
        if len(batches) == 1:
            begun.set()
            gathered.wait(10)
        return do(some)

    together = Together(doing, CommonError, most)
    with ThreadPoolExecutor(len(items)) as pool:
        calls = [pool.submit(together, items[0])]
        assert begun.wait(10)
        calls += [pool.submit(together, item) for item in items[1:]]
        while len(together._waiting) < len(items) - 1:
            pass
        gathered.set()
        return [call.exception(10) or call.result() for call in calls], batches


def test_what_waits_goes_together_and_each_gets_its_own():
    results, batches = run(lambda items: [item + 1 for item in items], list(range(20)))
    assert results == list(range(1, 21))
    assert [len(batch) for batch in batches] == [1, 19]


def test_no_more_than_the_most_go_at_once():
    results, batches = run(lambda items: list(items), list(range(8)), most=3)
    assert results == list(range(8))
    assert [len(batch) for batch in batches] == [1, 3, 3, 1]


def test_one_that_fails_harms_nobody_else():
    def do(items):
        if 3 in items:
            raise ValueError("3")
        return list(items)

    results, _ = run(do, list(range(6)))
    assert [each for each in results if not isinstance(each, ValueError)] == [0, 1, 2, 4, 5]
    assert isinstance(results[3], ValueError)


def test_what_befalls_all_is_not_tried_again_for_each():
    def do(items):
        if len(items) > 1:
            raise CommonError
        return list(items)

    results, batches = run(do, list(range(6)))
    assert results[0] == 0
    assert all(isinstance(each, CommonError) for each in results[1:])
    assert [len(batch) for batch in batches] == [1, 5]


def test_an_error_is_the_callers():
    def do(_):
        raise KeyError("x")

    with pytest.raises(KeyError):
        Together(do, CommonError)(1)
