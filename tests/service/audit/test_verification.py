"""Whoever changes a record, a review or an image beside the audit log is found out, on SQLite and on PostgreSQL."""

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from tests.service.conftest import add, prediction

from pneumoscope.core.errors import AuditLogError
from pneumoscope.service.audit.log import Verified, verify
from pneumoscope.service.storage.blob_store import content_hash
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.records import Filter
from pneumoscope.service.storage.repository import PredictionRepository

NAME = "Jane Doe"


@pytest.fixture
def lived(tmp_path, database):
    """A repository with records of all kinds: reviewed twice, rejected, image removed, deleted, deleted and posted again."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]

    def tick():
        now[0] += timedelta(seconds=1)
        return now[0]

    records = PredictionRepository(tmp_path / "data", database, now=tick)
    add(records, b"old", name=NAME)
    now[0] += timedelta(days=40)
    records.expire(timedelta(days=30))
    add(records, b"plain", name=NAME, probability=0.1 + 0.2)
    add(records, b"rejected", name=NAME, probability=None, decision="rejected")
    for image in (b"deleted", b"again"):
        record, _ = add(records, image)
        records.review(record.id, agrees=True, note="", user="me")
        records.remove(record.id, user="me")
    add(records, b"again")
    record, _ = add(records, b"reviewed", name=NAME)
    records.review(record.id, agrees=True, note="", user="me")
    records.review(record.id, agrees=False, note=f"{NAME}, a shadow", user="you")
    yield records
    records.close()


def changed(records, statement, **values):
    with write_transaction(records.engine) as connection:
        assert connection.execute(text(statement), values).rowcount == 1


def told(records):
    with pytest.raises(AuditLogError) as caught:
        verify(records.engine, images=records.blobs)
    assert "Doe" not in str(caught.value)
    return caught.value.message


def test_what_only_the_service_changed_holds(lived):
    found = verify(lived.engine, images=lived.blobs)
    assert (found.rows, found.records, found.images) == (14, 5, 4)
    assert verify(lived.engine) == Verified(14, found.last, 5, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("decision = 'normal'", "another decision than"),
        ("probability = 0.29999999999999999", "another probability than"),
        ("probability = NULL", "another probability than"),
        (f"image_sha256 = '{'ab' * 32}'", "another image hash than"),
        (f"model_sha256 = '{'cd' * 32}'", "another model hash than"),
        ("operating_point = 'rule_in'", "another operating point than"),
        ("created = '2026-01-01T00:00:00.000000Z'", "another time than"),
        ("image_removed = created", "another removal of its image than"),
        ("agrees = TRUE", "another review than"),
        ("reviewed = created, agrees = TRUE, reviewer = 'you'", "another review than"),
        ("note = 'Jane Doe'", "another review than"),
        *(
            (change, "another size, interval, threshold, reason or model than")
            for change in (
                "threshold = 0.9",
                "interval_low = 0",
                "interval_high = NULL",
                "interval_reason = 'none'",
                "reason = 'blank'",
                "width = 31",
                "height = 21",
                "format = 'PNG '",
                "image_bytes = 1",
                "model_name = 'x'",
                "model_version = '9'",
            )
        ),
    ],
)
def test_a_changed_record_is_told_by_its_id(lived, change, words):
    sha256 = content_hash(b"plain")
    with read_transaction(lived.engine) as connection:
        asked = text("SELECT id FROM predictions WHERE image_sha256 = :image")
        key = connection.execute(asked, {"image": sha256}).scalar_one()
    changed(lived, f"UPDATE predictions SET {change} WHERE id = :id", id=key)
    assert f"record '{key}' has {words} the audit log tells" in told(lived)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("agrees = TRUE", "another review than"),
        ("agrees = NULL", "another review than"),
        ("note = 'Jane Doe, no shadow'", "another note than"),
        ("reviewer = 'nobody'", "another author of its review than"),
        ("reviewed = created", "another time of its review than"),
        ("reviewed = NULL, reviewer = NULL", "another time of its review, author of its review than"),
    ],
)
def test_a_changed_review_is_told(lived, change, words):
    changed(lived, f"UPDATE predictions SET {change} WHERE image_sha256 = :image", image=content_hash(b"reviewed"))
    assert words in told(lived)


def test_a_image_that_is_said_to_be_there_again_is_told(lived):
    changed(
        lived, "UPDATE predictions SET image_removed = NULL WHERE image_sha256 = :image", image=content_hash(b"old")
    )
    assert "another removal of its image than" in told(lived)


def test_a_record_that_was_taken_away_is_told(lived):
    changed(lived, "DELETE FROM predictions WHERE image_sha256 = :image", image=content_hash(b"again"))
    assert "is missing, and no row of the audit log tells that it was deleted" in told(lived)


@pytest.mark.parametrize("digit", ["0", "f"])  # before all others in the order of ids, and after them
def test_a_record_that_was_slipped_in_is_told(lived, digit):
    key = digit * 32
    with write_transaction(lived.engine) as connection:
        connection.execute(text("CREATE TABLE one AS SELECT * FROM predictions LIMIT 1"))
        connection.execute(text("UPDATE one SET id = :id"), {"id": key})
        connection.execute(text("INSERT INTO predictions SELECT * FROM one"))
    assert f"record '{key}' is there, and no row of the audit log tells that it was judged" in told(lived)


def test_a_record_that_is_there_again_after_it_was_deleted_is_told(records):
    record, _ = add(records)
    with write_transaction(records.engine) as connection:
        connection.execute(text("CREATE TABLE one AS SELECT * FROM predictions"))
    records.remove(record.id, user="me")
    with write_transaction(records.engine) as connection:
        connection.execute(text("INSERT INTO predictions SELECT * FROM one"))
    assert f"record '{record.id}' is there, and no row" in told(records)


def test_of_many_differences_the_first_are_told_and_the_others_counted(records):
    for place in range(5):
        add(records, bytes([place]))
    with write_transaction(records.engine) as connection:
        connection.execute(text("UPDATE predictions SET decision = 'normal'"))
    words = told(records)
    assert (words.count("another decision"), words.endswith("; and 2 more")) == (3, True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"another"), "cannot be given out: .* is damaged"),
    ],
)
def test_a_image_that_is_missing_or_another_is_told(lived, tmp_path, damage, words):
    sha256 = content_hash(b"reviewed")
    damage(tmp_path / "data/blobs" / sha256[:2] / sha256)
    verify(lived.engine)  # the images are not looked at
    with pytest.raises(AuditLogError, match=f"the image of record '[0-9a-f]{{32}}' {words}"):
        verify(lived.engine, images=lived.blobs)


def test_a_image_that_is_removed_meanwhile_is_not_missed(lived):
    """It is removed after the record was read, and before the image is."""
    record = next(each for each in lived.find(Filter()).records if each.image_sha256 == content_hash(b"plain"))

    class Removing:
        def get(self, sha256):
            if sha256 == record.image_sha256 and not removed:
                removed.append(sha256)
                lived.remove(record.id, user="me")
            return lived.blobs.get(sha256)

    removed = []
    assert verify(lived.engine, images=Removing()).images == 4
    assert removed


def test_it_holds_while_images_are_added_reviewed_and_removed(records):
    stop = threading.Event()

    def work(number):
        place = 0
        while not stop.is_set():
            record, _ = records.add(prediction(), b"%d %d" % (number, place), user="me")
            records.review(record.id, agrees=True, note="", user="me")
            if place % 2:
                records.remove(record.id, user="me")
            place += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    try:
        end = time.monotonic() + 30
        while verify(records.engine, images=records.blobs).rows < 60 and time.monotonic() < end:
            pass
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)
            assert not worker.is_alive()
    assert verify(records.engine, images=records.blobs).rows >= 60
