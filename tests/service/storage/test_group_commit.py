"""What is done together: each item gets its own result, all that wait go at once, and one that fails harms nobody else."""

import threading

import pytest

from pneumoscope.service.storage.group_commit import GroupCommit


class CommonError(Exception):
    """What befalls all."""


def test_what_comes_alone_is_done_at_once():
    together = GroupCommit(lambda items: [2 * item for item in items], CommonError, name="doubling")
    assert together.submit(21).result(10) == 42
    together.close()


def run(do, items, most=64):
    """Results or errors of items, all of which but the first come while the first is being done."""
    begun, gathered, batches = threading.Event(), threading.Event(), []

    def doing(some):
        batches.append(list(some))
        if len(batches) == 1:
            begun.set()
            gathered.wait(10)
        return do(some)

    together = GroupCommit(doing, CommonError, name="doing", most=most)
    found = [together.submit(items[0])]
    assert begun.wait(10)
    found += [together.submit(item) for item in items[1:]]
    gathered.set()
    together.close()
    return [each.exception(0) or each.result(0) for each in found], batches


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


def test_an_item_may_have_an_error_of_its_own():
    together = GroupCommit(
        lambda items: [KeyError(item) if item % 2 else item for item in items], CommonError, name="odd"
    )
    found = [together.submit(item) for item in range(4)]
    together.close()
    assert [each.result(0) for each in found[::2]] == [0, 2]
    assert [each.exception(0).args for each in found[1::2]] == [(1,), (3,)]


def test_what_is_cancelled_before_its_turn_is_not_done():
    begun, go, done = threading.Event(), threading.Event(), []

    def do(items):
        begun.set()
        go.wait(10)
        done.extend(items)
        return items

    together = GroupCommit(do, CommonError, name="doing")
    first = together.submit(1)
    assert begun.wait(10)
    gone, last = together.submit(2), together.submit(3)
    assert gone.cancel()
    go.set()
    together.close()
    assert (first.result(0), last.result(0), done) == (1, 3, [1, 3])


def test_an_error_is_the_callers():
    def do(_):
        raise KeyError("x")

    together = GroupCommit(do, CommonError, name="failing")
    with pytest.raises(KeyError):
        together.submit(1).result(10)
    together.close()
