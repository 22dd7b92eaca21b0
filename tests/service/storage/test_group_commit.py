"""Group commit: waiting items are committed together, each gets its own result, and a failed item affects no other."""

import threading

import pytest

from pneumoscope.service.storage.group_commit import GroupCommit


class SharedError(Exception):
    """An error that no single item causes."""


def test_single_item_is_committed_at_once():
    group = GroupCommit(lambda items: [2 * item for item in items], SharedError, name="doubling")
    assert group.submit(21).result(60) == 42
    group.close(60)


def run(commit, items, max_batch=64, patience=60):
    """Return the results or errors of items, and the batches; all but the first arrive while the first is committed."""
    begun, gathered, batches = threading.Event(), threading.Event(), []

    def record(batch):
        batches.append(list(batch))
        if len(batches) == 1:
            begun.set()
            gathered.wait(60)
        return commit(batch)

    group = GroupCommit(record, SharedError, name="recording", max_batch=max_batch, patience=patience)
    futures = [group.submit(items[0])]
    assert begun.wait(60)
    futures += [group.submit(item) for item in items[1:]]
    gathered.set()
    group.close(60)
    return [each.exception(0) or each.result(0) for each in futures], batches


def test_waiting_items_are_committed_in_one_batch():
    results, batches = run(lambda items: [item + 1 for item in items], list(range(20)))
    assert results == list(range(1, 21))
    assert [len(batch) for batch in batches] == [1, 19]


def test_batch_has_at_most_max_batch_items():
    results, batches = run(lambda items: list(items), list(range(8)), max_batch=3)
    assert results == list(range(8))
    assert [len(batch) for batch in batches] == [1, 3, 3, 1]


def test_failed_item_affects_no_other():
    def do(items):
        if 3 in items:
            raise ValueError("3")
        return list(items)

    results, _ = run(do, list(range(6)))
    assert [each for each in results if not isinstance(each, ValueError)] == [0, 1, 2, 4, 5]
    assert isinstance(results[3], ValueError)


def test_shared_error_is_not_retried_for_each_item():
    def do(items):
        if len(items) > 1:
            raise SharedError
        return list(items)

    results, batches = run(do, list(range(6)))
    assert results[0] == 0
    assert all(isinstance(each, SharedError) for each in results[1:])
    assert [len(batch) for batch in batches] == [1, 5]


def test_item_may_have_its_own_error():
    group = GroupCommit(
        lambda items: [KeyError(item) if item % 2 else item for item in items],
        SharedError,
        name="odd",
    )
    futures = [group.submit(item) for item in range(4)]
    group.close(60)
    assert [each.result(0) for each in futures[::2]] == [0, 2]
    assert [each.exception(0).args for each in futures[1::2]] == [(1,), (3,)]


def test_cancelled_item_is_not_committed():
    begun, go, done = threading.Event(), threading.Event(), []

    def do(items):
        begun.set()
        go.wait(60)
        done.extend(items)
        return items

    group = GroupCommit(do, SharedError, name="committing")
    first = group.submit(1)
    assert begun.wait(60)
    gone, last = group.submit(2), group.submit(3)
    assert gone.cancel()
    go.set()
    group.close(60)
    assert (first.result(0), last.result(0), done) == (1, 3, [1, 3])


def test_error_is_raised_to_the_caller():
    def do(_):
        raise KeyError("x")

    group = GroupCommit(do, SharedError, name="failing")
    with pytest.raises(KeyError):
        group.submit(1).result(60)
    group.close(60)


def test_close_does_not_wait_longer_than_its_timeout():
    begun, release = threading.Event(), threading.Event()

    def wait(items):
        begun.set()
        assert release.wait(60)
        return list(items)

    group = GroupCommit(wait, SharedError, name="waiting")
    future = group.submit(1)
    assert begun.wait(60)
    group.close(0.01)
    assert not future.done()
    release.set()
    assert future.result(60) == 1


def test_items_that_have_waited_fail_with_the_first_one_and_later_ones_are_tried():
    """So that no request waits for the failures of others, one after another."""

    def fail(items):
        if 0 in items:
            raise SharedError("locked")
        return list(items)

    results, batches = run(fail, list(range(9)), max_batch=2, patience=-1)
    assert [str(each) for each in results] == ["locked"] * 9
    assert batches == [[0]]
    results, batches = run(fail, list(range(4)), max_batch=2)
    assert (str(results[0]), results[1:], batches) == ("locked", [1, 2, 3], [[0], [1, 2], [3]])
