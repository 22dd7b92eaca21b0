"""Changes of predictions, reviews and images that the audit log does not record are detected, on SQLite and PostgreSQL."""

import shutil
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from tests.service.conftest import add, create_database, prediction

from pneumoscope.core.errors import AuditLogError
from pneumoscope.core.prediction import PatientAge
from pneumoscope.service.audit.verification import Verification, verify
from pneumoscope.service.storage.blob_store import content_hash
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention

NAME = "Jane Doe"


def populate(repository, clock):
    """Add predictions of all kinds: reviewed twice, rejected, image removed, deleted, deleted and posted again."""
    add(repository, b"old", name=NAME)
    clock.now += timedelta(days=40)
    Retention(repository).expire_images(timedelta(days=30))
    add(repository, b"plain", name=NAME, probability=0.1 + 0.2)
    add(repository, b"aged", name=NAME, age=PatientAge(3, "entered"))
    add(repository, b"rejected", name=NAME, probability=None, decision="rejected")
    for image in (b"deleted", b"again"):
        record, _ = add(repository, image)
        repository.review(record.id, "pneumonia", user="me")
        repository.remove(record.id, user="me")
    add(repository, b"again")
    record, _ = add(repository, b"reviewed", name=NAME)
    repository.review(record.id, "pneumonia", user="me")
    repository.review(record.id, "no_finding", note=f"{NAME}, a shadow", user="you")


class Clock:
    """One second later at each look."""

    def __init__(self):
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """For each kind of database, the copy of a populated data directory and its clock; empty at first."""
    return tmp_path_factory.mktemp("populated"), {}


@pytest.fixture
def populated(request, tmp_path, empty_database, copies):
    """A repository that `populate` filled, copied from the first one: filling it takes longer than most tests."""
    folder, clocks = copies
    server = request.getfixturevalue("postgresql_server") if empty_database else ""
    kind, data = "postgresql" if empty_database else "sqlite", tmp_path / "data"
    if kind in clocks:
        shutil.copytree(folder / kind, data, dirs_exist_ok=True)
        if server:
            create_database(server, "images", "populated")
    else:
        clocks[kind] = Clock()
        repository = PredictionRepository(data, empty_database, now=clocks[kind])
        populate(repository, clocks[kind])
        repository.close()
        shutil.copytree(data, folder / kind)
        if server:
            create_database(server, "populated", "images")
    repository = PredictionRepository(data, empty_database, now=clocks[kind])
    yield repository
    repository.close()


def changed(repository, statement, **values):
    with write_transaction(repository.engine) as connection:
        assert connection.execute(text(statement), values).rowcount == 1


def verification_error(repository):
    with pytest.raises(AuditLogError) as caught:
        verify(repository.engine, images=repository.storage.blobs)
    assert "Doe" not in str(caught.value)
    return caught.value.message


def test_unaltered_log_is_verified(populated):
    found = verify(populated.engine, images=populated.storage.blobs)
    assert (found.rows, found.predictions, found.images) == (15, 6, 5)
    assert verify(populated.engine) == Verification(15, found.last_hash, 6, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("decision = 'no_pneumonia'", "decision"),
        ("probability = 0.29999999999999999", "probability"),
        ("probability = NULL", "probability"),
        (f"image_sha256 = '{'ab' * 32}'", "image hash"),
        (f"model_sha256 = '{'cd' * 32}'", "model hash"),
        ("operating_point = 'rule_in'", "operating point"),
        ("age = 3, age_source = 'entered'", "operating point, site profile, prevalence, pixels, age or rejection"),
        (f"pixel_sha256 = '{'ab' * 32}'", "operating point, site profile, prevalence, pixels"),
        ("model_site = 'North'", "operating point, site profile, prevalence, pixels, age or rejection"),
        ("model_prevalence = 0.2", "operating point, site profile, prevalence, pixels, age or rejection"),
        ("created = '2026-01-01T00:00:00.000000Z'", "time"),
        ("image_removed = created", "removal of the image"),
        *(
            (change, "image size, image statistics, interval, threshold, rejection, age, warnings or model")
            for change in (
                "threshold = 0.9",
                "interval_low = 0",
                "interval_high = NULL",
                "interval_n = 0",
                "rejection_code = 'blank'",
                "width = 31",
                "height = 21",
                "format = 'PNG '",
                "image_brightness = 0",
                "image_bytes = 1",
                "model_name = 'x'",
                "model_version = '9'",
                "warnings = 'age_not_stated'",
            )
        ),
    ],
)
def test_changed_prediction_is_reported_by_its_id(populated, change, words):
    sha256 = content_hash(b"plain")
    with read_transaction(populated.engine) as connection:
        query = text("SELECT id FROM predictions WHERE image_sha256 = :image")
        key = connection.execute(query, {"image": sha256}).scalar_one()
    changed(populated, f"UPDATE predictions SET {change} WHERE id = :id", id=key)
    assert f"prediction '{key}' differs from the audit log: {words}" in verification_error(populated)


@pytest.mark.parametrize("change", ["age = 4", "age_source = 'header'", "age = NULL, age_source = NULL"])
def test_changed_age_is_reported(populated, change):
    changed(populated, f"UPDATE predictions SET {change} WHERE image_sha256 = :image", image=content_hash(b"aged"))
    error = verification_error(populated)
    assert (
        "operating point, site profile, prevalence, pixels, age or rejection, image size, image statistics, interval"
        in error
    )


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE reviews SET label = 'pneumonia' WHERE reviewer = 'you'",
        "UPDATE reviews SET label = NULL WHERE reviewer = 'you'",
        "UPDATE reviews SET note = 'Jane Doe, no shadow' WHERE reviewer = 'you'",
        "UPDATE reviews SET finding = 'a shadow' WHERE reviewer = 'me'",
        "UPDATE reviews SET reviewer = 'another' WHERE reviewer = 'you'",
        "UPDATE reviews SET time = '2026-01-01T00:00:00.000000Z' WHERE reviewer = 'me'",
        "DELETE FROM reviews WHERE reviewer = 'me'",
        "UPDATE reviews SET prediction_id = 'ab' WHERE reviewer = 'me'",
        "UPDATE reviews SET pixel_sha256 = 'ab' WHERE reviewer = 'me'",
    ],
)
def test_changed_review_is_reported(populated, change):
    changed(populated, change)
    assert "differs from the audit log: reviews" in verification_error(populated)


@pytest.mark.parametrize("id", ["0000", "zzzz"])
def test_inserted_review_of_an_unknown_prediction_is_reported(populated, id):
    changed(
        populated,
        "INSERT INTO reviews (number, prediction_id, pixel_sha256, reviewer, time, label, finding, note)"
        " VALUES (99, :id, :pixels, 'eve', '2026-01-01T00:00:00.000000Z', 'pneumonia', '', '')",
        id=id, pixels=content_hash(b"reviewed"),
    )  # fmt: skip
    assert "1 version of reviews are of predictions that the audit log does not know" in verification_error(populated)


def test_undone_removal_of_an_image_is_reported(populated):
    changed(
        populated, "UPDATE predictions SET image_removed = NULL WHERE image_sha256 = :image", image=content_hash(b"old")
    )
    assert "removal of the image" in verification_error(populated)


def test_missing_prediction_is_reported(populated):
    changed(populated, "DELETE FROM predictions WHERE image_sha256 = :image", image=content_hash(b"again"))
    assert "is missing, and the audit log has no entry of its deletion" in verification_error(populated)


@pytest.mark.parametrize("digit", ["0", "f"])  # before all others in the order of ids, and after them
def test_inserted_prediction_is_reported(populated, digit):
    key = digit * 32
    with write_transaction(populated.engine) as connection:
        connection.execute(text("CREATE TABLE one AS SELECT * FROM predictions LIMIT 1"))
        connection.execute(text("UPDATE one SET id = :id"), {"id": key})
        connection.execute(text("INSERT INTO predictions SELECT * FROM one"))
    assert f"prediction '{key}' exists, but the audit log has no entry for it" in verification_error(populated)


def test_restored_prediction_is_reported(repository):
    record, _ = add(repository)
    with write_transaction(repository.engine) as connection:
        connection.execute(text("CREATE TABLE one AS SELECT * FROM predictions"))
    repository.remove(record.id, user="me")
    with write_transaction(repository.engine) as connection:
        connection.execute(text("INSERT INTO predictions SELECT * FROM one"))
    assert f"prediction '{record.id}' exists, but" in verification_error(repository)


def test_first_differences_are_shown_and_the_rest_counted(repository):
    for place in range(5):
        add(repository, bytes([place]))
    with write_transaction(repository.engine) as connection:
        connection.execute(text("UPDATE predictions SET decision = 'no_pneumonia'"))
    words = verification_error(repository)
    assert (words.count(": decision"), words.endswith("; and 2 more")) == (3, True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"another"), "cannot be used: .* is damaged"),
    ],
)
def test_missing_or_damaged_image_is_reported(populated, tmp_path, damage, words):
    sha256 = content_hash(b"reviewed")
    damage(tmp_path / "data/blobs" / sha256[:2] / sha256)
    verify(populated.engine)  # without the images
    with pytest.raises(AuditLogError, match=f"the image of prediction '[0-9a-f]{{32}}' {words}"):
        verify(populated.engine, images=populated.storage.blobs)


def test_age_of_minus_zero_is_stored_as_it_is_read(populated):
    add(populated, b"newborn", age=PatientAge(-0.0, "entered"))
    verify(populated.engine, images=populated.storage.blobs)


def test_image_removed_during_verification_is_not_reported(populated):
    """It is removed after its row was read, and before the file is."""
    record = next(each for each in populated.find(Filter()).predictions if each.image_sha256 == content_hash(b"plain"))

    class Removing:
        def get(self, sha256):
            if sha256 == record.image_sha256 and not removed:
                removed.append(sha256)
                populated.remove(record.id, user="me")
            return populated.storage.blobs.get(sha256)

    removed = []
    assert verify(populated.engine, images=Removing()).images == 5
    assert removed


def test_verification_succeeds_during_writes(repository):
    stop = threading.Event()

    def work(number):
        place = 0
        while not stop.is_set():
            record, _ = repository.add(prediction(), b"%d %d" % (number, place), user="me")
            repository.review(record.id, "pneumonia", user="me")
            if place % 2:
                repository.remove(record.id, user="me")
            place += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    try:
        end = time.monotonic() + 90
        while verify(repository.engine, images=repository.storage.blobs).rows < 60 and time.monotonic() < end:
            pass
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)
            assert not worker.is_alive()
    assert verify(repository.engine, images=repository.storage.blobs).rows >= 60
