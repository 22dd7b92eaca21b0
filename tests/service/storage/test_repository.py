"""What a service keeps, on SQLite and on PostgreSQL: once, whole, and in order."""

import base64
import contextlib
import dataclasses
import json
import os
import re
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import text
from tests.service.conftest import MODEL, add, prediction

from pneumoscope.core.errors import GoneError, StorageError, UnknownNameError, UsageError
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.blob_store import FolderBlobStore, content_hash
from pneumoscope.service.storage.database import write_transaction
from pneumoscope.service.storage.records import Filter, compute_id
from pneumoscope.service.storage.repository import PredictionRepository


def test_an_age_of_centuries_removes_nothing(records):
    add(records)
    assert (
        records.expire(timedelta(weeks=9999)) == records.expire(timedelta(weeks=60_000)) == 0
    )  # the years 1835 and 876


def test_what_is_kept_comes_back_as_it_was(records):
    record, new = add(records, name="é <b>\u202e.png")
    assert new
    assert records.get(record.id) == record
    assert record.prediction == prediction(name="é <b>\u202e.png")
    assert (record.image_sha256, record.image_bytes) == (content_hash(b"image"), 4)
    assert records.image(record) == b"image"
    assert record.id == compute_id(content_hash(b"image"), MODEL.sha256, "balanced")
    rejected, _ = add(records, b"other", probability=None, decision="rejected")
    assert rejected.prediction == prediction(None, "rejected")


@pytest.mark.parametrize("key", ["\0", "é", "ab" * 15, "AB" * 16, ""])
def test_what_cannot_be_an_id_is_none(records, key):
    with pytest.raises(UnknownNameError, match="there is no prediction"):
        records.get(key)


def test_what_is_sql_is_text(records):
    sent = "'); DROP TABLE predictions; DELETE FROM audit_log; --\\ \" %s :name ${x}"
    record, _ = add(records, name=sent)
    records.review(record.id, agrees=True, note=sent, user="me")
    found = records.get(record.id)
    assert (found.path, found.review.note) == (sent, sent)
    with pytest.raises(UnknownNameError):
        records.get(sent)
    assert verify(records.engine, images=records.blobs).rows == 2


def test_the_same_image_is_kept_once_as_it_was_first(records):
    first, _ = add(records, name="first.png")
    again, new = add(records, name="again.png", probability=0.2)
    assert (again, new) == (first, False)
    other, new = records.add(prediction(), b"image", ROP user="me")
    assert new
    assert other.id != first.id
    assert verify(records.engine).rows == 2


def test_the_same_image_from_many_at_once_is_kept_once(records):
    found = []
    threads = [threading.Thread(target=lambda: found.append(add(records, b"same"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len({record for record, _ in found}) == 1
    assert sum(new for _, new in found) == 1
    assert verify(records.engine).rows == 1


def test_pages_show_each_record_once_while_more_are_added(records):
    scores = [0.5, 0.1, None, 0.9, 0.5, 0.5]
    for place, score in enumerate(scores):
        add(records, bytes([place]), probability=score, decision="rejected" if score is None else "normal")
    for order, expected in [
        ("highest", [0.9, 0.5, 0.5, 0.5, 0.1, None]),
        ("lowest", [0.1, 0.5, 0.5, 0.5, 0.9, None]),
        ("oldest", scores),
        ("newest", scores[::-1]),
        ("attention", [None, 0.9, 0.5, 0.5, 0.5, 0.1]),
    ]:
        seen, after = [], ""
        while True:
            page = records.find(Filter(), order=order, limit=2, after=after)
            assert page.total == 6
            seen += page.predictions
            if not (after := page.next):
                break
        assert [record.probability for record in seen] == expected
        assert len({record.id for record in seen}) == 6
    first = records.find(Filter(), limit=2)
    add(records, b"newer")
    second = records.find(Filter(), limit=2, after=first.next)
    assert [each.probability for each in second.predictions] == scores[3:1:-1]


def test_what_needs_eyes_is_what_nobody_has_read_and_first_what_the_model_leaves_open(records):
    said = {"rejected": None, "uncertain": 0.6, "pneumonia": 0.95, "normal": 0.1}
    made = {each: add(records, each.encode(), probability=said[each], decision=each)[0].id for each in reversed(said)}
    read, _ = add(records, b"read", probability=0.99, decision="pneumonia")
    records.review(read.id, agrees=True, note="", user="me")
    found = [each.id for each in records.find(Filter(), order="attention").predictions]
    assert set(found[:2]) == {made["rejected"], made["uncertain"]}
    assert found[2:] == [made["pneumonia"], made["normal"], read.id]


def test_records_are_found_by_decision_review_and_time(tmp_path, database):
    times = iter(datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 30))
    records = PredictionRepository(tmp_path / "data", database, now=lambda: next(times))
    a, _ = add(records, b"a", decision="normal")
    b, _ = add(records, b"b")
    records.review(a.id, agrees=False, note="a shadow", user="me")

    def found(**wanted):
        return [record.id for record in records.find(Filter(**wanted), order="oldest").predictions]

    assert found() == [a.id, b.id]
    assert found(decision="normal") == found(reviewed=True) == found(until="2026-01-02") == [a.id]
    assert found(decision="pneumonia") == found(reviewed=False) == found(since="2026-01-02") == [b.id]
    assert found(decision="normal", reviewed=False) == []
    records.close()


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        ("2026-01-31T09:30Z", None, [30, 30.5, 31]),
        ("2026-01-31T09:30:30Z", None, [30, 30.5, 31]),
        ("2026-01-31T09:30:30.5Z", None, [30.5, 31]),
        (None, "2026-01-31T09:30:31Z", [30, 30.5]),
        (None, "2026-01-31T09:31Z", [30, 30.5, 31]),
        ("2026-01-31", "2026-02-01", [30, 30.5, 31]),
        ("2026-01-31T11:30:31+02:00", None, [31]),
    ],
)
def test_times_are_compared_as_times_however_exactly_they_are_written(records, since, until, expected):
    start = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    for place, seconds in enumerate([30, 30.5, 31]):
        records._now = lambda seconds=seconds: start + timedelta(seconds=seconds)
        add(records, bytes([place]))
    page = records.find(Filter(since=since, until=until), order="oldest")
    found = [(datetime.fromisoformat(each.created) - start).total_seconds() for each in page.predictions]
    assert (found, page.total) == (expected, len(expected))


@pytest.mark.parametrize("time", ["2026-02-30", "0001-01-01T00:00+01:00", "soon"])
def test_a_time_that_there_is_not_is_refused(records, time):
    with pytest.raises(UsageError, match=f"since is '{re.escape(time)}', which is no time"):
        records.find(Filter(since=time))


@pytest.mark.parametrize("order", ["newest", "oldest", "highest", "lowest", "attention"])
def test_no_image_is_passed_over_while_others_are_read_and_deleted(records, order):
    made = [add(records, bytes([place]), probability=place / 10, decision="normal")[0].id for place in range(9)]
    seen, after = [], ""
    while True:
        page = records.find(Filter(), order=order, limit=3, after=after)
        fresh = [record.id for record in page.predictions if record.review is None]
        seen += fresh
        for key in fresh[:2]:
            records.review(key, agrees=True, note="", user="me")
        for key in fresh[2:]:
            records.remove(key, user="me")
        if not (after := page.next):
            break
    assert sorted(seen) == sorted(made)


def _place(*said):
    return base64.urlsafe_b64encode(json.dumps(said).encode()).decode()


@pytest.mark.parametrize(
    "asked",
    [
        {"limit": 0},
        {"limit": 201},
        {"after": "ab" * 16},
        {"after": "é"},
        {"after": "\0"},
        {"after": _place("newest", "soon", "ab" * 16)},
        {"after": _place("newest", 0.5, "ab" * 16)},
        {"after": _place("newest", "2026-01-31", "'; --")},
        {"after": _place("newest", "2026-01-31", 1)},
        {"after": _place("newest")},
        {"after": _place("highest", 0.5, "ab" * 16)},
        {"after": _place("highest", 0.5, "ab" * 16), "order": "lowest"},
        {"after": _place("highest", float("nan"), "ab" * 16), "order": "highest"},
        {"after": _place("highest", "x", "ab" * 16), "order": "highest"},
        {"after": _place("highest", None, "ab" * 16), "order": "highest"},
        {"after": base64.urlsafe_b64encode(b"[" * 5000).decode()},
    ],
)
def test_a_page_that_cannot_be_is_refused(records, asked):
    with pytest.raises(UsageError, match=r"limit is|which is no `next` of a page in the order"):
        records.find(Filter(), **asked)


def test_a_review_replaces_the_one_before_and_both_are_in_the_trail(records):
    record, _ = add(records)
    records.review(record.id, agrees=True, note="", user="me")
    reviewed = records.review(record.id, agrees=False, note="Jane Doe", user="you")
    assert (reviewed.review.agrees, reviewed.review.note, reviewed.review.reviewer) == (False, "Jane Doe", "you")
    assert records.get(record.id) == reviewed
    with records.engine.connect() as connection:
        rows = connection.execute(text("SELECT \"user\", event, details FROM audit_log ORDER BY number")).all()
    assert [(row.user, row.event) for row in rows] == [("me", "predicted"), ("me", "reviewed"), ("you", "reviewed")]
    assert "Doe" not in str(rows)


def test_what_is_deleted_is_gone_with_its_image(records):
    record, _ = add(records)
    other, _ = records.add(prediction(), b"image", ROP user="me")
    records.remove(record.id, user="me")
    assert records.image(other) == b"image"  # which another record needs
    records.remove(other.id, user="me")
    assert records.blobs.get(record.image_sha256) is None
    for ask in (records.get, lambda key: records.remove(key, user="me")):
        with pytest.raises(UnknownNameError, match="there is no prediction"):
            ask(record.id)
    assert verify(records.engine).rows == 4


def test_a_image_that_comes_while_it_is_removed_is_kept(records, monkeypatch):
    """Two requests, one in the middle of the other."""
    first, _ = add(records)
    stage, others = records.blobs.stage, []

    def staged_and_then_removed_by_another(images):
        staged = stage(images)
        if not others:
            others.append(threading.Thread(target=lambda: records.remove(first.id, user="me")))
            others[-1].start()
            others[-1].join(10)
        return staged

    with monkeypatch.context() as between:
        between.setattr(records.blobs, "stage", staged_and_then_removed_by_another)
        second, new = records.add(prediction(), b"image", ROP user="me")
    assert new
    assert records.image(second) == b"image"

    remove, found = records.blobs.remove, []

    def removed_while_another_comes(sha256):
        others.append(threading.Thread(target=lambda: found.append(add(records)[0])))
        others[-1].start()
        others[-1].join(0.3)
        remove(sha256)

    monkeypatch.setattr(records.blobs, "remove", removed_while_another_comes)
    records.remove(second.id, user="me")
    others[-1].join(10)
    assert records.image(found[0]) == b"image"


def test_a_image_that_the_disk_does_not_take_harms_no_other(records, monkeypatch):
    """Three that come while the first one is being kept, and so go together."""
    begun, go, stage = threading.Event(), threading.Event(), records.blobs.stage

    def staged_but_for_the_large_one(images):
        begun.set()
        assert go.wait(10)
        large = content_hash(b"large")
        staged = stage({sha256: image for sha256, image in images.items() if sha256 != large})
        return staged._replace(failed={large: StorageError("full")} if large in images else {})

    monkeypatch.setattr(records.blobs, "stage", staged_but_for_the_large_one)
    submit = partial(records.submit, user="me")
    futures = [submit(prediction(), b"first")]
    assert begun.wait(10)
    futures += [submit(prediction(), image) for image in (b"small", b"large", b"small too", b"small")]
    go.set()
    with pytest.raises(StorageError, match="full"):
        futures[2].result(10)
    kept = [futures[place].result(10) for place in (0, 1, 3, 4)]
    assert [new for _, new in kept] == [True, True, True, False]
    assert {records.image(record) for record, _ in kept} == {b"first", b"small", b"small too"}
    assert records.find(Filter()).total == verify(records.engine, images=records.blobs).rows == 3


def put(store, *contents):
    """Store blobs without a database record."""
    for content in contents:
        store.stage({content_hash(content): content})
        store.publish(content_hash(content))


def fail(*_, **__):
    raise StorageError("full")


def test_of_what_could_not_be_kept_there_is_no_image_but_what_was_there_before(records, monkeypatch):
    put(records.blobs, b"before")  # of another database
    with monkeypatch.context() as failing:
        failing.setattr("pneumoscope.service.storage.repository.append", fail)
        for image in (b"image", b"before"):
            with pytest.raises(StorageError, match="full"):
                add(records, image)
    assert records.find(Filter()).total == 0
    assert [key for key, _ in records.blobs.stored()] == [content_hash(b"before")]


def test_a_image_that_cannot_be_removed_is_told_and_removed_later(records, monkeypatch):
    """Its record goes first: an image without a record does no harm, a record without its image would."""
    deleted, _ = add(records, b"deleted")
    add(records, b"old")
    with monkeypatch.context() as failing:
        failing.setattr(records.blobs, "remove", fail)
        with pytest.raises(StorageError, match=f"record '{deleted.id}' is deleted, but its image could not be: full"):
            records.remove(deleted.id, user="me")
        with pytest.raises(StorageError, match="full"):
            records.expire(timedelta(0))
        with pytest.raises(StorageError, match="full"):
            records.retry_failed()
    assert len(list(records.blobs.stored())) == 2
    records.retry_failed()
    assert list(records.blobs.stored()) == []
    assert verify(records.engine, images=records.blobs).rows == 4


def test_a_image_that_came_again_before_it_could_be_removed_stays(records, monkeypatch):
    record, _ = add(records)
    with monkeypatch.context() as failing:
        failing.setattr(records.blobs, "remove", fail)
        with pytest.raises(StorageError):
            records.remove(record.id, user="me")
    again, new = add(records)
    records.retry_failed()
    assert new
    assert records.image(again) == b"image"


def test_others_wait_for_no_image_to_reach_the_disk(records, monkeypatch):
    record, _ = add(records)
    begun, go, stage = threading.Event(), threading.Event(), records.blobs.stage

    def slow(images):
        begun.set()
        assert go.wait(10)
        return stage(images)

    monkeypatch.setattr(records.blobs, "stage", slow)
    coming = records.submit(prediction(), b"slow", user="me")
    assert begun.wait(10)
    assert records.review(record.id, agrees=True, note="", user="me").review.agrees
    go.set()
    assert coming.result(10)[1]


def test_images_expire_and_their_numbers_stay(tmp_path, database):
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    records = PredictionRepository(tmp_path / "data", database, now=lambda: now[0])
    old, _ = add(records, b"old")
    now[0] += timedelta(days=31)
    new, _ = add(records, b"new")
    assert records.expire(timedelta(days=30)) == 1
    assert records.expire(timedelta(days=30)) == 0
    assert records.image(records.get(new.id)) == b"new"
    found = records.get(old.id)
    assert found.prediction == old.prediction
    assert found.image_removed == "2026-02-01T00:00:00.000000Z"
    with pytest.raises(GoneError, match="was removed"):
        records.image(found)
    assert records.blobs.get(old.image_sha256) is None
    assert add(records, b"old") == (found, False)  # what was removed does not come back
    assert records.blobs.get(old.image_sha256) is None
    records.close()


def test_a_image_that_is_missing_though_nobody_removed_it_is_told(records):
    record, _ = add(records)
    records.blobs.remove(record.image_sha256)
    with pytest.raises(StorageError, match=f"prediction '{record.id}' is missing") as caught:
        records.image(record)
    assert f"Restore {record.image_sha256[:2]}/{record.image_sha256} below blobs/ from a backup" in caught.value.hint
    add(records)
    assert records.image(record) == b"image"
    records.remove(record.id, user="me")
    with pytest.raises(GoneError, match="was removed"):  # by another request, since this one read the record
        records.image(record)


def test_start_completes_committed_predictions_and_discards_the_rest(tmp_path, database):
    """The states that a killed process can leave, made by hand; `test_crashes` makes them by killing one."""
    records = PredictionRepository(tmp_path / "data", database)
    record, _ = add(records)
    gone, _ = add(records, b"deleted")
    records.remove(gone.id, user="me")
    put(records.blobs, b"deleted")  # as if killed between the removal of the row and of the file
    records.close()
    staging = tmp_path / "data/staging"
    (tmp_path / "data/blobs" / record.image_sha256[:2] / record.image_sha256).rename(staging / record.image_sha256)
    (staging / content_hash(b"uncommitted")).write_bytes(b"uncommitted")
    (staging / f"{'ab' * 32}.part").write_bytes(b"half")

    again = PredictionRepository(tmp_path / "data", database)
    assert again.get(record.id) == record
    assert again.image(record) == b"image"
    assert [key for key, _ in again.blobs.stored()] == [record.image_sha256]
    assert (again.blobs.staging_files(), again.orphaned) == ([], {})
    again.close()


def test_image_that_cannot_be_moved_into_the_store_is_readable_and_moved_later(records, monkeypatch, caplog):
    with monkeypatch.context() as failing:
        failing.setattr(records.blobs, "publish", fail)
        record, new = add(records)
        assert new
        assert records.image(record) == b"image"
        assert "stays in the staging area for now: full" in caplog.text
        records.retry_failed()
        assert records.blobs.staging_files() == [record.image_sha256]
    records.retry_failed()
    assert records.blobs.staging_files() == []
    assert records.image(record) == b"image"


def test_transaction_that_was_committed_although_it_failed_keeps_its_image(records, monkeypatch):
    """The connection is lost after the database committed and before it said so."""
    remaining = [1]

    @contextlib.contextmanager
    def committed_but_failed(engine):
        with write_transaction(engine) as connection:
            yield connection
        if remaining:
            remaining.pop()
            raise StorageError("connection lost")

    monkeypatch.setattr("pneumoscope.service.storage.repository.writing", committed_but_failed)
    with pytest.raises(StorageError, match="connection lost"):
        add(records)
    (record,) = records.find(Filter()).predictions
    assert records.image(record) == b"image"
    assert records.blobs.staging_files() == []


def test_a_image_whose_record_is_lost_is_left(tmp_path, database):
    """Somebody restored a part, or changed the database: the trail tells that it was judged, and not that it went."""
    records = PredictionRepository(tmp_path / "data", database)
    record, _ = add(records)
    with records.engine.connect() as connection, connection.begin():
        connection.execute(text("DELETE FROM predictions"))
    records.close()
    again = PredictionRepository(tmp_path / "data", database)
    assert again.blobs.get(record.image_sha256) == b"image"
    again.close()


def test_files_of_another_database_are_left_where_they_are(tmp_path):
    first = PredictionRepository(tmp_path / "data")
    record, _ = add(first)
    first.close()
    database = tmp_path / "data/pneumoscope.sqlite"
    database.rename(tmp_path / "elsewhere")
    for name in ("pneumoscope.sqlite-wal", "pneumoscope.sqlite-shm"):
        (tmp_path / "data" / name).unlink(missing_ok=True)

    opened = PredictionRepository(tmp_path / "data")
    assert list(opened.orphaned) == [record.image_sha256]
    opened.close()

    (tmp_path / "elsewhere").rename(database)
    again = PredictionRepository(tmp_path / "data")
    assert again.image(again.get(record.id)) == b"image"
    again.close()


def test_orphaned_files_expire_with_an_audit_entry(tmp_path, database):
    PredictionRepository(tmp_path / "data", database).close()
    left = {content_hash(image): image for image in (b"old", b"new", b"posted again")}
    put(FolderBlobStore(tmp_path / "data"), *left.values())
    for sha256, image in left.items():
        if image != b"new":
            os.utime(tmp_path / "data/blobs" / sha256[:2] / sha256, (0, 0))
    records = PredictionRepository(tmp_path / "data", database)
    assert records.orphaned.keys() == left.keys()
    again, _ = add(records, b"posted again")
    assert records.expire(timedelta(days=30)) == 0
    assert {image for image in left.values() if records.blobs.get(content_hash(image))} == {b"new", b"posted again"}
    assert records.image(again) == b"posted again"
    entry = list(read_rows(records.engine))[-1]
    assert (entry.what, entry.image_sha256, entry.prediction) == ("image_removed", content_hash(b"old"), "")
    assert verify(records.engine, images=records.blobs).rows == 2
    records.close()


def test_many_images_expire_in_turns(records, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.repository._BATCH", 2)
    for place in range(5):
        add(records, bytes([place]))
    assert records.expire(timedelta(0)) == 5
    assert [each.image_removed is not None for each in records.find(Filter()).predictions] == 5 * [True]
    assert list(records.blobs.stored()) == []
    assert verify(records.engine, images=records.blobs).rows == 10


def test_a_image_that_changed_on_the_disk_is_not_given_out(records, tmp_path):
    record, _ = add(records)
    (path,) = (tmp_path / "data/blobs").glob("*/*")
    path.write_bytes(b"another")
    with pytest.raises(StorageError, match="is damaged"):
        records.image(record)


def test_nothing_is_kept_of_a_service_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = PredictionRepository(None)
    record, _ = add(records)
    assert records.image(record) == b"image"
    assert verify(records.engine).rows == 1
    records.close()
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_of_an_unreadable_image_is_not_kept(records):
    failed = dataclasses.replace(prediction(), decision=None, image=None, threshold=None)
    with pytest.raises(ValueError, match="nothing to keep"):
        records.add(failed, b"x", user="me")
