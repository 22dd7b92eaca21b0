"""The repository on SQLite and PostgreSQL: predictions, reviews, pages, removal and retention."""

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
from tests.service.conftest import add, prediction

from pneumoscope.core.errors import GoneError, StorageError, UnknownNameError, UnreadableImageError, UsageError
from pneumoscope.core.prediction import Failure, PatientAge, Prediction, Rejection
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.blob_store import FolderBlobStore, content_hash
from pneumoscope.service.storage.database import write_transaction
from pneumoscope.service.storage.queries import Filter, ImageCounts
from pneumoscope.service.storage.records import compute_id
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention


def without_storage(stored):
    """Return a stored prediction as the model made it."""
    return Prediction(**{each.name: getattr(stored, each.name) for each in dataclasses.fields(Prediction)})


def test_age_of_centuries_expires_nothing(repository):
    add(repository)
    for weeks in (9999, 60_000):  # the years 1835 and 876
        assert Retention(repository).expire_images(timedelta(weeks=weeks)) == 0


def test_stored_prediction_is_read_back_unchanged(repository):
    record, new = add(repository, name="é <b>\u202e.png")
    assert new
    assert repository.get(record.id) == record
    sent = prediction(name="é <b>\u202e.png")
    image = dataclasses.replace(
        sent.image, pixel_sha256=content_hash(b"image")
    )  # of the file, if that of the pixels is unknown
    assert without_storage(record) == dataclasses.replace(sent, image=image)
    assert (record.image_sha256, record.image_bytes) == (content_hash(b"image"), 5)
    assert repository.image(record) == b"image"
    assert record.id == compute_id(record.to_row()) == "7bb1caaeecefc73fea2a9052c3b56509"  # as in earlier versions
    rejected, _ = add(repository, b"other", probability=None, decision="rejected")
    assert (rejected.rejection, rejected.image.pixel_sha256) == (
        prediction(None, "rejected").rejection,
        content_hash(b"other"),
    )


def test_age_and_warnings_are_stored(repository):
    for name, age, warnings in (
        ("header", PatientAge(4.5), ()), ("entered", PatientAge(3.25, "entered"), ()), ("newborn", PatientAge(0.0), ()),
        ("unclear", PatientAge(None), ()), ("unknown", None, ("age_not_stated",)),
    ):  # fmt: skip
        record, _ = add(repository, name.encode(), age=age, warnings=warnings)
        assert (repository.get(record.id).age, repository.get(record.id).warnings) == (age, warnings)


def test_override_of_the_header_is_part_of_the_id(repository):
    rejected = dataclasses.replace(
        prediction(None, "rejected"), rejection=Rejection("body_part_not_chest", {"part": "HAND"})
    )
    overridden = dataclasses.replace(prediction(), warnings=("assumed_chest",))
    ids = {repository.add(each, b"image", user="me")[0].id for each in (prediction(), rejected, overridden)}
    assert len(ids) == 3
    assert verify(repository.engine).predictions == 3


def test_entered_age_and_required_age_are_part_of_the_id(repository):
    required = dataclasses.replace(
        prediction(None, "rejected"), rejection=Rejection("age_required", {"minimum": 1, "maximum": 5})
    )
    plain, *others = [
        repository.add(each, b"image", user="me")
        for each in (
            prediction(), prediction(age=PatientAge(3, "entered")), prediction(age=PatientAge(4.5, "entered")), required,
        )
    ]  # fmt: skip
    assert all(new for _, new in (plain, *others))
    assert len({record.id for record, _ in (plain, *others)}) == 4
    again, is_new = repository.add(prediction(None, "rejected"), b"image", user="me")
    assert (again.id, again.decision, is_new) == (plain[0].id, "pneumonia", False)
    stated, is_new = repository.add(prediction(age=PatientAge(3)), b"image with an age in its header", user="me")
    assert is_new
    corrected, is_new = repository.add(prediction(age=PatientAge(4)), b"image with an age in its header", user="me")
    assert (corrected.id, corrected.age, is_new) == (stated.id, PatientAge(4), False)
    again, is_new = repository.add(prediction(age=PatientAge(3.0, "entered")), b"image", user="me")
    assert (again.id, is_new) == (others[0][0].id, False)
    assert verify(repository.engine).predictions == 5


def test_invalid_id_is_unknown(repository):
    for key in ("\0", "é", "ab" * 15, "AB" * 16, ""):
        with pytest.raises(UnknownNameError, match="there is no prediction"):
            repository.get(key)


def test_sql_in_values_is_stored_as_text(repository):
    sent = "'); DROP TABLE predictions; DELETE FROM audit_log; --\\ \" %s :name ${x}"
    record, _ = add(repository, name=sent)
    repository.review(record.id, "pneumonia", note=sent, user="me")
    found = repository.get(record.id)
    assert (found.path, found.reviews[0].note) == (sent, sent)
    with pytest.raises(UnknownNameError):
        repository.get(sent)
    assert verify(repository.engine, images=repository.storage.blobs).rows == 2


def test_same_image_is_stored_once_with_its_first_name(repository):
    first, _ = add(repository, name="first.png")
    again, new = add(repository, name="again.png", probability=0.2)
    assert (again, new) == (first, False)
    other, new = repository.add(prediction(operating_point="rule_out"), b"image", user="me")
    assert new
    assert other.id != first.id
    assert verify(repository.engine).rows == 2


def test_same_image_from_concurrent_requests_is_stored_once(repository):
    found = []
    threads = [threading.Thread(target=lambda: found.append(add(repository, b"same"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len({record for record, _ in found}) == 1
    assert sum(new for _, new in found) == 1
    assert verify(repository.engine).rows == 1


def test_pages_list_each_prediction_once_during_additions(repository):
    scores = [0.5, 0.1, None, 0.9, 0.5, 0.5]
    for place, score in enumerate(scores):
        add(repository, bytes([place]), probability=score, decision="rejected" if score is None else "no_pneumonia")
    for order, expected in [
        ("highest", [0.9, 0.5, 0.5, 0.5, 0.1, None]),
        ("lowest", [0.1, 0.5, 0.5, 0.5, 0.9, None]),
        ("oldest", scores),
        ("newest", scores[::-1]),
        ("urgency", [0.9, 0.5, 0.5, 0.5, 0.1, None]),
    ]:
        seen, after = [], ""
        while True:
            page = repository.find(Filter(), order=order, limit=2, after=after)
            assert page.total == 6
            seen += page.predictions
            if not (after := page.next):
                break
        assert [record.probability for record in seen] == expected
        assert len({record.id for record in seen}) == 6
    first = repository.find(Filter(), limit=2)
    add(repository, b"newer")
    second = repository.find(Filter(), limit=2, after=first.next)
    assert [each.probability for each in second.predictions] == scores[3:1:-1]


def test_order_urgency_lists_unreviewed_pneumonia_first_and_rejected_images_last(repository):
    probabilities = {"uncertain": 0.6, "rejected": None, "no_pneumonia": 0.3, "pneumonia": 0.95}
    made = {
        each: add(repository, each.encode(), probability=p, decision=each)[0].id for each, p in probabilities.items()
    }
    likely, _ = add(repository, b"likely", probability=0.99, decision="pneumonia")
    unlikely, _ = add(repository, b"unlikely", probability=0.01, decision="no_pneumonia")
    read, _ = add(repository, b"read", probability=0.999, decision="pneumonia")
    repository.review(read.id, "pneumonia", user="me")
    found = [each.id for each in repository.find(Filter(), order="urgency").predictions]
    assert found == [
        likely.id, made["pneumonia"], made["uncertain"], made["no_pneumonia"], unlikely.id, made["rejected"], read.id,
    ]  # fmt: skip


def test_rejected_images_are_filtered_and_counted_by_reason(repository):
    add(repository, b"a")
    for place, code in enumerate(("lateral_view", "blank", "blank")):
        rejected = dataclasses.replace(prediction(None, "rejected"), rejection=Rejection(code, {}))
        repository.add(rejected, bytes([place]), user="me")
    assert repository.find(Filter(rejected=False)).total == 1
    assert repository.find(Filter(rejected=True)).total == 3
    counts = repository.count_images(Filter())
    assert counts.decisions == {"pneumonia": 1, "rejected": 3}
    assert counts.rejections == {"lateral_view": 1, "blank": 2}
    assert (counts.images, counts.predicted, counts.unread) == (4, 1, 4)
    assert repository.count_images(Filter(rejected=True, until="2000-01-01")) == ImageCounts({}, {}, 0)


def test_images_are_filtered_and_counted_by_reader(repository):
    first, second, third = (add(repository, content)[0] for content in (b"a", b"b", b"c"))
    for each, user in ((first, "anna"), (second, "anna"), (second, "ben"), (third, "ben")):
        repository.review(each.id, "pneumonia", user=user)
    repository.withdraw_review(first.id, user="anna")
    assert [each.id for each in repository.find(Filter(reviewed_by="anna")).predictions] == [second.id]
    assert repository.count_images(Filter(reviewed_by="ben")).images == 2
    assert repository.count_images(Filter(reviewed_by="carl")).images == 0
    assert repository.count_images(Filter()).unread == 1


def unreadable(name="a.dcm", message="cannot read '': the file is truncated"):
    """Return the prediction of a file that could not be read."""
    failure = Failure("unreadable_image", message, "Export it again")
    return Prediction(path=name, decision=None, operating_point="balanced", failure=failure, model=prediction().model)


def test_unreadable_files_leave_one_record_each(repository):
    for _ in range(2):
        repository.unreadable_files.add(unreadable(), b"file", user="me")
    repository.unreadable_files.add(unreadable("a.dcm"), b"file", user="you")
    repository.unreadable_files.add(unreadable("b.dcm"), b"file", user="PACS")
    files, total = repository.unreadable_files.find()
    assert [(file.path, file.image_sha256, file.image_bytes) for file in files] == [
        (name, content_hash(b"file"), 4) for name in ("b.dcm", "a.dcm")
    ]
    assert total == 2
    assert [file.sender for file in files] == ["PACS", "me"]
    assert files[0].failure == unreadable().failure
    assert repository.unreadable_files.find(limit=1) == (files[:1], 2)
    events = [(row.event, row.user, row.image_sha256, row.prediction_id) for row in read_rows(repository.engine)]
    assert events == [("unreadable", user, content_hash(b"file"), "") for user in ("me", "PACS")]
    assert not [row for row in read_rows(repository.engine) if "dcm" in row.details]
    assert verify(repository.engine).rows == 2


def test_record_of_an_unreadable_file_keeps_the_reason(repository):
    reason = UnreadableReason(
        "frame_size_differs", {"width": 30, "height": 40, "stated_width": 40, "stated_height": 30}
    )
    failed = dataclasses.replace(unreadable(), failure=Failure.from_error(UnreadableImageError("a.dcm", reason)))
    repository.unreadable_files.add(failed, b"file", user="me")
    assert repository.unreadable_files.find()[0][0].failure == failed.failure


def test_record_of_an_unreadable_file_can_be_removed(repository):
    repository.unreadable_files.add(unreadable(), b"file", user="me")
    ((file,), _) = repository.unreadable_files.find()
    repository.unreadable_files.remove(file.id, user="you")
    assert repository.unreadable_files.find() == ([], 0)
    with pytest.raises(UnknownNameError):
        repository.unreadable_files.remove(file.id, user="you")
    assert [(row.event, row.user) for row in read_rows(repository.engine)] == [
        ("unreadable", "me"), ("unreadable_deleted", "you"),
    ]  # fmt: skip


def test_records_of_unreadable_files_expire_in_short_transactions(repository):
    for number in range(7):
        repository.unreadable_files.add(unreadable(f"file {number}"), b"file", user="me")
    expire, later = repository.unreadable_files.expire, repository.storage.now() + timedelta(days=1)
    turns = iter([False, True])
    expire(later, 3, stopped=lambda: next(turns))
    assert repository.unreadable_files.find()[1] == 4
    expire(later, 3)
    assert repository.unreadable_files.find()[1] == 0
    assert [row.event for row in read_rows(repository.engine)] == 7 * ["unreadable"] + 7 * ["unreadable_deleted"]


def test_prediction_that_is_deleted_while_its_image_is_predicted_again_is_not_stored_again(repository):
    stored, _ = add(repository, b"1", age=PatientAge(3.0, "entered"))
    made = prediction(age=PatientAge(4.0, "entered"))
    repository.remove(stored.id, user="me")
    with pytest.raises(UnknownNameError):
        repository.submit(made, b"1", user="me", earlier_id=stored.id).result(30)
    assert repository.find(Filter()).total == 0
    assert list(dict(repository.storage.blobs.stored())) == []
    assert [row.event for row in read_rows(repository.engine)] == ["predicted", "deleted"]


def test_records_of_unreadable_files_expire(repository):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for day, name in ((0, "old"), (9, "new")):
        repository.storage.now = lambda day=day: start + timedelta(days=day)
        repository.unreadable_files.add(unreadable(name), b"file", user="me")
    repository.storage.now = lambda: start + timedelta(days=10)
    assert Retention(repository).expire_images(timedelta(days=5)) == 0
    assert [file.path for file in repository.unreadable_files.find()[0]] == ["new"]
    assert [row.event for row in read_rows(repository.engine)] == ["unreadable", "unreadable", "unreadable_deleted"]


def test_latest_prediction_of_each_image(repository):
    """A corrected age leads to another prediction of the same pixels."""
    first, _ = add(repository, b"1", age=PatientAge(3.0, "entered"))
    second, _ = add(repository, b"1", age=PatientAge(4.0, "entered"), decision="rejected", probability=None)
    other, _ = add(repository, b"2")
    assert repository.find(Filter()).total == 3
    assert {each.id for each in repository.find(Filter(latest=True)).predictions} == {second.id, other.id}
    assert repository.find(Filter(latest=True, rejected=False)).total == 1
    assert repository.count_images(Filter(latest=True)) == ImageCounts({"pneumonia": 1, "rejected": 1}, {"blank": 1}, 2)
    add(repository, b"1", age=PatientAge(3.0, "entered"))  # corrected back
    assert {each.id for each in repository.find(Filter(latest=True)).predictions} == {first.id, other.id}


def test_filter_by_decision_review_and_time(tmp_path, database):
    times = iter(datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 30))
    repository = PredictionRepository(tmp_path / "data", database, now=lambda: next(times))
    a, _ = add(repository, b"a", decision="no_pneumonia")
    b, _ = add(repository, b"b")
    repository.review(a.id, "no_finding", note="a shadow", user="me")

    def found(**conditions):
        return [record.id for record in repository.find(Filter(**conditions), order="oldest").predictions]

    assert found() == [a.id, b.id]
    assert found(decision="no_pneumonia") == found(reviewed=True) == found(until="2026-01-02") == [a.id]
    assert found(decision="pneumonia") == found(reviewed=False) == found(since="2026-01-02") == [b.id]
    assert found(decision="no_pneumonia", reviewed=False) == []
    repository.close()


FOUND_BY_TIME = {
    ("2026-01-31T09:30Z", None): [30, 30.5, 31],
    ("2026-01-31T09:30:30Z", None): [30, 30.5, 31],
    ("2026-01-31T09:30:30.5Z", None): [30.5, 31],
    (None, "2026-01-31T09:30:31Z"): [30, 30.5],
    (None, "2026-01-31T09:31Z"): [30, 30.5, 31],
    ("2026-01-31", "2026-02-01"): [30, 30.5, 31],
    ("2026-01-31T11:30:31+02:00", None): [31],
}


def test_times_are_compared_at_any_precision(repository):
    start = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    for place, seconds in enumerate([30, 30.5, 31]):
        repository.storage.now = lambda seconds=seconds: start + timedelta(seconds=seconds)
        add(repository, bytes([place]))

    def found(since, until):
        page = repository.find(Filter(since=since, until=until), order="oldest")
        assert page.total == len(page.predictions)
        return [(datetime.fromisoformat(each.created) - start).total_seconds() for each in page.predictions]

    assert {times: found(*times) for times in FOUND_BY_TIME} == FOUND_BY_TIME


def test_invalid_time_is_rejected(repository):
    for time in ("2026-02-30", "0001-01-01T00:00+01:00", "soon"):
        with pytest.raises(UsageError, match=f"since is '{re.escape(time)}', which is not a time"):
            repository.find(Filter(since=time))


@pytest.mark.parametrize("order", ["newest", "oldest", "highest", "lowest", "urgency"])
def test_pages_skip_nothing_during_reviews_and_deletions(repository, order):
    made = [
        add(repository, bytes([place]), probability=place / 10, decision="no_pneumonia")[0].id for place in range(9)
    ]
    seen, after = [], ""
    while True:
        page = repository.find(Filter(), order=order, limit=3, after=after)
        fresh = [record.id for record in page.predictions if not record.reviews]
        seen += fresh
        for key in fresh[:2]:
            repository.review(key, "pneumonia", user="me")
        for key in fresh[2:]:
            repository.remove(key, user="me")
        if not (after := page.next):
            break
    assert sorted(seen) == sorted(made)


def cursor(*values):
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


def test_latest_statistics_of_a_month_exclude_the_next_one(tmp_path, database):
    times = iter(("2026-01-31T23:59:59.999999", "2026-02-01T00:00:00", "2026-02-28T23:59:59", "2026-03-01T00:00:00"))
    with contextlib.closing(
        PredictionRepository(tmp_path, database, now=lambda: datetime.fromisoformat(f"{next(times)}+00:00"))
    ) as repository:
        for k in range(4):
            add(repository, f"image {k}".encode())
        model = prediction().model
        latest = repository.latest(model, "balanced", 10, since="2026-02", until="2026-03")
        assert [each.created[:10] for each in latest] == ["2026-02-28", "2026-02-01"]
        assert latest[1].pixel_sha256 == content_hash(b"image 1")
        assert len(repository.latest(model, "balanced", 10)) == 4
        assert [each.created[:10] for each in repository.latest(model, "balanced", 1)] == ["2026-03-01"]


INVALID_PAGES = [
    {"limit": 0},
    {"limit": 201},
    {"after": "ab" * 16},
    {"after": "é"},
    {"after": "\0"},
    {"after": cursor("newest", "soon", "ab" * 16)},
    {"after": cursor("newest", 0.5, "ab" * 16)},
    {"after": cursor("newest", "2026-01-31", "'; --")},
    {"after": cursor("newest", "2026-01-31", 1)},
    {"after": cursor("newest")},
    {"after": cursor("highest", 0.5, "ab" * 16)},
    {"after": cursor("highest", 0.5, "ab" * 16), "order": "lowest"},
    {"after": cursor("highest", float("nan"), "ab" * 16), "order": "highest"},
    {"after": cursor("highest", "x", "ab" * 16), "order": "highest"},
    {"after": cursor("highest", None, "ab" * 16), "order": "highest"},
    {"after": base64.urlsafe_b64encode(b"[" * 5000).decode()},
]


def test_invalid_page_is_rejected(repository):
    for options in INVALID_PAGES:
        with pytest.raises(UsageError, match=r"limit is|which is not the `next` of a page in the order"):
            repository.find(Filter(), **options)


def labels(record):
    return [(review.reviewer, review.label, review.finding) for review in record.reviews]


def test_each_reader_has_a_review_and_every_version_is_in_the_audit_log(repository):
    record, _ = add(repository)
    repository.review(record.id, "pneumonia", user="me")
    repository.review(record.id, "no_finding", note="Jane Doe", user="you")
    reviewed = repository.review(record.id, "other_finding", finding="Doe's effusion", user="me")
    assert labels(reviewed) == [("you", "no_finding", ""), ("me", "other_finding", "Doe's effusion")]
    assert repository.get(record.id) == reviewed == repository.find(Filter(reviewed=True)).predictions[0]
    with repository.engine.connect() as connection:
        rows = connection.execute(text('SELECT "user", event, details FROM audit_log ORDER BY number')).all()
        assert connection.execute(text("SELECT count(*) FROM reviews")).scalar_one() == 3
    assert [(row.user, row.event) for row in rows] == [
        ("me", "predicted"), ("me", "reviewed"), ("you", "reviewed"), ("me", "reviewed"),
    ]  # fmt: skip
    assert "Doe" not in str(rows)
    assert verify(repository.engine).predictions == 1


def test_withdrawn_review_no_longer_counts_and_its_versions_are_kept(repository):
    record, _ = add(repository)
    repository.review(record.id, "pneumonia", user="me")
    repository.review(record.id, "unusable", user="you")
    assert labels(repository.withdraw_review(record.id, user="me")) == [("you", "unusable", "")]
    with pytest.raises(UnknownNameError):
        repository.withdraw_review(record.id, user="me")
    assert repository.withdraw_review(record.id, user="you").reviews == ()
    assert repository.find(Filter(reviewed=True)).total == 0
    assert verify(repository.engine).rows == 5
    assert labels(repository.review(record.id, "pneumonia", user="me")) == [("me", "pneumonia", "")]


def test_review_is_of_the_image_and_counts_for_its_other_predictions(repository):
    first, _ = add(repository, b"image")
    repository.review(first.id, "pneumonia", user="me")
    second, _ = repository.add(prediction(operating_point="rule_out"), b"image", user="me")
    assert labels(second) == [("me", "pneumonia", "")]
    assert repository.find(Filter(reviewed=True)).total == 2
    repository.review(second.id, "no_finding", user="me")
    repository.remove(second.id, user="me")
    assert labels(repository.get(first.id)) == [("me", "no_finding", "")]  # the earlier label does not come back
    assert verify(repository.engine).predictions == 1
    repository.remove(first.id, user="me")
    with repository.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM reviews")).scalar_one() == 0
    again, _ = add(repository, b"image")
    assert again.reviews == ()
    repository.review(again.id, "unusable", user="you")
    assert verify(repository.engine).predictions == 1


def test_deleted_prediction_is_removed_with_its_image(repository):
    record, _ = add(repository)
    other, _ = repository.add(prediction(operating_point="rule_out"), b"image", user="me")
    repository.remove(record.id, user="me")
    assert repository.image(other) == b"image"  # which another prediction refers to
    repository.remove(other.id, user="me")
    assert repository.storage.blobs.get(record.image_sha256) is None
    for ask in (repository.get, lambda key: repository.remove(key, user="me")):
        with pytest.raises(UnknownNameError, match="there is no prediction"):
            ask(record.id)
    assert verify(repository.engine).rows == 4


def test_image_posted_during_its_removal_is_stored(repository, monkeypatch):
    """The removal runs in the middle of the addition, and the other way round."""
    first, _ = add(repository)
    stage, others = repository.storage.blobs.stage, []

    def staged_and_then_removed_by_another(images):
        staged = stage(images)
        if not others:
            others.append(threading.Thread(target=lambda: repository.remove(first.id, user="me")))
            others[-1].start()
            others[-1].join(60)
        return staged

    with monkeypatch.context() as between:
        between.setattr(repository.storage.blobs, "stage", staged_and_then_removed_by_another)
        second, new = repository.add(prediction(operating_point="rule_out"), b"image", user="me")
    assert new
    assert repository.image(second) == b"image"

    remove, found = repository.storage.blobs.remove, []

    def removed_while_another_comes(sha256):
        others.append(threading.Thread(target=lambda: found.append(add(repository)[0])))
        others[-1].start()
        others[-1].join(0.3)
        remove(sha256)

    monkeypatch.setattr(repository.storage.blobs, "remove", removed_while_another_comes)
    repository.remove(second.id, user="me")
    others[-1].join(60)
    assert repository.image(found[0]) == b"image"


def test_image_that_cannot_be_written_affects_no_other(repository, monkeypatch):
    """The images arrive while the first one is being stored, and so share a transaction."""
    begun, go, stage = threading.Event(), threading.Event(), repository.storage.blobs.stage

    def staged_but_for_the_large_one(images):
        begun.set()
        assert go.wait(60)
        large = content_hash(b"large")
        staged = stage({sha256: image for sha256, image in images.items() if sha256 != large})
        return staged._replace(failed={large: StorageError("full")} if large in images else {})

    monkeypatch.setattr(repository.storage.blobs, "stage", staged_but_for_the_large_one)
    submit = partial(repository.submit, user="me")
    futures = [submit(prediction(), b"first")]
    assert begun.wait(60)
    futures += [submit(prediction(), image) for image in (b"small", b"large", b"small too", b"small")]
    go.set()
    with pytest.raises(StorageError, match="full"):
        futures[2].result(60)
    kept = [futures[place].result(60) for place in (0, 1, 3, 4)]
    assert [new for _, new in kept] == [True, True, True, False]
    assert {repository.image(record) for record, _ in kept} == {b"first", b"small", b"small too"}
    assert repository.find(Filter()).total == verify(repository.engine, images=repository.storage.blobs).rows == 3


def put(store, *contents):
    """Store blobs without a database record."""
    for content in contents:
        store.stage({content_hash(content): content})
        store.publish(content_hash(content))


def fail(*_, **__):
    raise StorageError("full")


def test_failed_addition_leaves_only_images_stored_before(repository, monkeypatch):
    put(repository.storage.blobs, b"before")  # of another database
    with monkeypatch.context() as failing:
        failing.setattr("pneumoscope.service.storage.additions.append", fail)
        for image in (b"image", b"before"):
            with pytest.raises(StorageError, match="full"):
                add(repository, image)
    assert repository.find(Filter()).total == 0
    assert [key for key, _ in repository.storage.blobs.stored()] == [content_hash(b"before")]


def test_failed_removal_of_an_image_is_an_error_and_retried(repository, monkeypatch):
    """The row is deleted first: an image without a row does no harm, a row without its image would."""
    deleted, _ = add(repository, b"deleted")
    add(repository, b"old")
    with monkeypatch.context() as failing:
        failing.setattr(repository.storage.blobs, "remove", fail)
        with pytest.raises(StorageError, match="the predictions are deleted, but not all images: full"):
            repository.remove(deleted.id, user="me")
        with pytest.raises(StorageError, match="full"):
            Retention(repository).expire_images(timedelta(0))
        with pytest.raises(StorageError, match="full"):
            repository.storage.retry_failed()
    assert len(list(repository.storage.blobs.stored())) == 2
    repository.storage.retry_failed()
    assert list(repository.storage.blobs.stored()) == []
    assert verify(repository.engine, images=repository.storage.blobs).rows == 4


def test_images_after_one_that_cannot_be_removed_expire(repository, monkeypatch):
    monkeypatch.setattr(repository.storage, "batch", 2)
    stuck = {add(repository, bytes([place]))[0].image_sha256 for place in range(5)}
    stuck = set(sorted(stuck)[:2])
    remove = repository.storage.blobs.remove

    def fail_on_stuck(sha256):
        if sha256 in stuck:
            raise StorageError("busy")
        remove(sha256)

    with monkeypatch.context() as failing:
        failing.setattr(repository.storage.blobs, "remove", fail_on_stuck)
        for attempt in (
            partial(Retention(repository, batch=2).expire_images, timedelta(0)),
            repository.storage.retry_failed,
        ):
            with pytest.raises(StorageError, match=r"busy \(and 1 more\)"):
                attempt()
            assert {key for key, _ in repository.storage.blobs.stored()} == stuck
    repository.storage.retry_failed()
    assert list(repository.storage.blobs.stored()) == []


def test_image_posted_again_before_its_retried_removal_stays(repository, monkeypatch):
    record, _ = add(repository)
    with monkeypatch.context() as failing:
        failing.setattr(repository.storage.blobs, "remove", fail)
        with pytest.raises(StorageError):
            repository.remove(record.id, user="me")
    again, new = add(repository)
    repository.storage.retry_failed()
    assert new
    assert repository.image(again) == b"image"


def test_review_does_not_wait_for_an_image_to_be_written(repository, monkeypatch):
    record, _ = add(repository)
    begun, go, stage = threading.Event(), threading.Event(), repository.storage.blobs.stage

    def slow(images):
        begun.set()
        assert go.wait(60)
        return stage(images)

    monkeypatch.setattr(repository.storage.blobs, "stage", slow)
    coming = repository.submit(prediction(), b"slow", user="me")
    assert begun.wait(60)
    assert repository.review(record.id, "pneumonia", user="me").reviews
    go.set()
    assert coming.result(60)[1]


def test_expired_images_are_removed_and_predictions_stay(tmp_path, database):
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    repository = PredictionRepository(tmp_path / "data", database, now=lambda: now[0])
    old, _ = add(repository, b"old")
    now[0] += timedelta(days=31)
    new, _ = add(repository, b"new")
    assert Retention(repository).expire_images(timedelta(days=30)) == 1
    assert Retention(repository).expire_images(timedelta(days=30)) == 0
    assert repository.image(repository.get(new.id)) == b"new"
    found = repository.get(old.id)
    assert found == dataclasses.replace(old, image_removed="2026-02-01T00:00:00.000000Z")
    with pytest.raises(GoneError, match="was removed"):
        repository.image(found)
    assert repository.storage.blobs.get(old.image_sha256) is None
    assert add(repository, b"old") == (found, False)  # a removed image is not stored again
    assert repository.storage.blobs.get(old.image_sha256) is None
    repository.close()


def test_missing_image_that_was_not_removed_is_an_error(repository):
    record, _ = add(repository)
    repository.storage.blobs.remove(record.image_sha256)
    with pytest.raises(StorageError, match=f"prediction '{record.id}' is missing") as caught:
        repository.image(record)
    assert f"Restore {record.image_sha256[:2]}/{record.image_sha256} below blobs/ from a backup" in caught.value.hint
    add(repository)
    assert repository.image(record) == b"image"
    repository.remove(record.id, user="me")
    with pytest.raises(GoneError, match="was removed"):  # by another request, after this one read the row
        repository.image(record)


def test_start_completes_committed_predictions_and_discards_the_rest(tmp_path, database):
    """The states that a killed process can leave, made by hand; `test_crashes` makes them by killing one."""
    repository = PredictionRepository(tmp_path / "data", database)
    record, _ = add(repository)
    gone, _ = add(repository, b"deleted")
    repository.remove(gone.id, user="me")
    put(repository.storage.blobs, b"deleted")  # as if killed between the removal of the row and of the file
    repository.close()
    staging = tmp_path / "data/staging"
    (tmp_path / "data/blobs" / record.image_sha256[:2] / record.image_sha256).rename(staging / record.image_sha256)
    (staging / content_hash(b"uncommitted")).write_bytes(b"uncommitted")
    (staging / f"{'ab' * 32}.part").write_bytes(b"half")

    again = PredictionRepository(tmp_path / "data", database)
    assert again.get(record.id) == record
    assert again.image(record) == b"image"
    assert [key for key, _ in again.storage.blobs.stored()] == [record.image_sha256]
    assert (again.storage.blobs.staging_files(), again.storage.orphaned) == ([], {})
    again.close()


@pytest.mark.parametrize("content", [b"deleted", b"uncommitted"])
def test_file_that_cannot_be_removed_at_the_start_is_logged_and_retried(tmp_path, monkeypatch, caplog, content):
    repository = PredictionRepository(tmp_path / "data")
    removed, _ = add(repository, b"deleted")
    repository.remove(removed.id, user="me")
    if content == b"deleted":  # as if killed between the removal of the row and of the file
        put(repository.storage.blobs, content)
    else:  # as if killed before the commit
        repository.storage.blobs.stage({content_hash(content): content})
        (tmp_path / f"data/staging/{'ff' * 32}.part").write_bytes(b"half")
    repository.close()
    with monkeypatch.context() as failing:
        failing.setattr("pneumoscope.service.storage.blob_store._unlink", fail)
        again = PredictionRepository(tmp_path / "data")
        assert again.storage.blobs.get(content_hash(content)) == content
    assert caplog.messages == ["A file could not be removed; the service tries again every few minutes: full"]
    again.storage.retry_failed()
    assert again.storage.blobs.get(content_hash(content)) is None
    again.close()


def test_image_that_cannot_be_moved_into_the_store_is_readable_and_moved_later(repository, monkeypatch, caplog):
    with monkeypatch.context() as failing:
        failing.setattr(repository.storage.blobs, "publish", fail)
        record, new = add(repository)
        assert new
        assert repository.image(record) == b"image"
        assert "stays in the staging area until the next attempt: full" in caplog.text
        repository.storage.retry_failed()
        assert repository.storage.blobs.staging_files() == [record.image_sha256]
    repository.storage.retry_failed()
    assert repository.storage.blobs.staging_files() == []
    assert repository.image(record) == b"image"


def test_transaction_that_was_committed_although_it_failed_keeps_its_image(repository, monkeypatch):
    """The connection is lost after the database committed and before it confirmed."""
    remaining = [1]

    @contextlib.contextmanager
    def committed_but_failed(engine, **_):
        with write_transaction(engine) as connection:
            yield connection
        if remaining:
            remaining.pop()
            raise StorageError("connection lost")

    monkeypatch.setattr("pneumoscope.service.storage.image_storage.write_transaction", committed_but_failed)
    with pytest.raises(StorageError, match="connection lost"):
        add(repository)
    (record,) = repository.find(Filter()).predictions
    assert repository.image(record) == b"image"
    assert repository.storage.blobs.staging_files() == []


def test_image_whose_row_is_lost_is_left(tmp_path, database):
    """The database was partly restored or changed: the audit log has the prediction, and no deletion."""
    repository = PredictionRepository(tmp_path / "data", database)
    record, _ = add(repository)
    with repository.engine.connect() as connection, connection.begin():
        connection.execute(text("DELETE FROM predictions"))
    repository.close()
    again = PredictionRepository(tmp_path / "data", database)
    assert again.storage.blobs.get(record.image_sha256) == b"image"
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
    assert list(opened.storage.orphaned) == [record.image_sha256]
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
    repository = PredictionRepository(tmp_path / "data", database)
    assert repository.storage.orphaned.keys() == left.keys()
    again, _ = add(repository, b"posted again")
    assert Retention(repository).expire_images(timedelta(days=30)) == 0
    assert {image for image in left.values() if repository.storage.blobs.get(content_hash(image))} == {
        b"new",
        b"posted again",
    }
    assert repository.image(again) == b"posted again"
    entry = list(read_rows(repository.engine))[-1]
    assert (entry.event, entry.image_sha256, entry.prediction_id) == ("image_removed", content_hash(b"old"), "")
    assert verify(repository.engine, images=repository.storage.blobs).rows == 2
    repository.close()


def test_orphaned_file_that_cannot_be_removed_has_one_audit_entry(tmp_path, monkeypatch):
    PredictionRepository(tmp_path / "data").close()
    put(FolderBlobStore(tmp_path / "data"), b"old")
    repository = PredictionRepository(tmp_path / "data")
    with monkeypatch.context() as failing:
        failing.setattr(repository.storage.blobs, "remove", fail)
        with pytest.raises(StorageError, match="full"):
            Retention(repository).expire_images(timedelta(0))
        assert Retention(repository).expire_images(timedelta(0)) == 0
    repository.storage.retry_failed()
    assert list(repository.storage.blobs.stored()) == []
    assert [entry.event for entry in read_rows(repository.engine)] == ["image_removed"]
    repository.close()


def test_images_expire_in_batches(repository, monkeypatch):
    monkeypatch.setattr(repository.storage, "batch", 2)
    for place in range(5):
        add(repository, bytes([place]))
    assert Retention(repository, batch=2).expire_images(timedelta(0)) == 5
    assert [each.image_removed is not None for each in repository.find(Filter()).predictions] == 5 * [True]
    assert list(repository.storage.blobs.stored()) == []
    assert verify(repository.engine, images=repository.storage.blobs).rows == 10


def test_damaged_image_is_not_returned(repository, tmp_path):
    record, _ = add(repository)
    (path,) = (tmp_path / "data/blobs").glob("*/*")
    path.write_bytes(b"another")
    with pytest.raises(StorageError, match="is damaged"):
        repository.image(record)


def test_in_memory_repository_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repository = PredictionRepository(None)
    record, _ = add(repository)
    assert repository.image(record) == b"image"
    assert verify(repository.engine).rows == 1
    repository.close()
    assert list(tmp_path.iterdir()) == []


def test_prediction_of_an_unreadable_image_is_rejected(repository):
    failed = dataclasses.replace(prediction(), decision=None, image=None, threshold=None)
    with pytest.raises(ValueError, match="cannot be stored"):
        repository.add(failed, b"x", user="me")


def test_latest_statistics_are_those_of_the_stated_prevalence(repository):
    models = [dataclasses.replace(prediction().model, prevalence=prevalence) for prevalence in (None, 0.2, 0.25)]
    for k, model in enumerate(models):
        repository.add(dataclasses.replace(prediction(probability=0.7 + k / 10), model=model), b"image", user="me")
    for k, model in enumerate(models):
        assert [each.probability for each in repository.latest(model, "balanced", 10)] == [0.7 + k / 10]
