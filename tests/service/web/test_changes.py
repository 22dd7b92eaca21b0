"""The stream that tells open pages of changes: when it has events, when it ends, and how many can be open."""

import asyncio
import contextlib
import signal
import sqlite3
import threading
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from tests.service.conftest import TOKEN, insert_token_of_service, png, prediction, served

from pneumoscope.core.errors import BusyError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import Failure, Prediction
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.web.changes import MAX_USER_STREAMS, ChangeStreams

EVENT = 'data: "changed"'
LIMIT = 60  # seconds that a test waits for an event


# --- the repository


@pytest.fixture
def changed():
    """A repository in memory with a prediction and an unreadable file, its clock, and a list that grows with each change."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    repository = PredictionRepository(None, now=lambda: now[0])
    (stored, _) = repository.add(prediction(), b"image", user="me")
    unreadable = Prediction(
        path="a", decision=None, operating_point="balanced", failure=Failure("x", "y"), model=stored.model
    )
    repository.unreadable_files.add(unreadable, b"broken", user="me")
    calls = []
    repository.storage.add_change_listener(lambda: calls.append(threading.current_thread().name))
    yield repository, stored.id, unreadable, now, calls
    repository.close()


CHANGES = {
    "prediction": lambda r, id, _: r.add(prediction(name="b"), b"other", user="me"),
    "review": lambda r, id, _: r.review(id, "pneumonia", user="me"),
    "identity": lambda r, id, _: r.set_identity(id, Identity(patient_id="7"), user="me"),
    "deletion": lambda r, id, _: r.remove(id, user="me"),
    "unreadable file": lambda r, id, bad: r.unreadable_files.add(bad, b"also broken", user="me"),
    "removed record": lambda r, id, _: r.unreadable_files.remove(r.unreadable_files.find()[0][0].id, user="me"),
    "retention of images": lambda r, id, _: Retention(r).expire_images(timedelta(days=30)),
    "retention of identities": lambda r, id, _: Retention(r).expire_identities(timedelta(days=30)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_announced_after_its_commit(changed, change):
    repository, id, unreadable, now, calls = changed
    now[0] += timedelta(days=60)
    before = len(calls)
    CHANGES[change](repository, id, unreadable)
    assert len(calls) > before


def test_withdrawal_and_study_are_announced(changed):
    repository, id, _, _, calls = changed
    repository.review(id, "pneumonia", user="me")
    repository.withdraw_review(id, user="me")
    stored = repository.set_identity(id, Identity(patient_id="7", study_date="2026-01-01"), user="me")
    assert len(calls) == 3
    repository.remove_study(stored.study_key, user="me")
    assert len(calls) == 4


def test_nothing_is_announced_without_a_change(changed):
    repository, id, unreadable, _, calls = changed
    repository.unreadable_files.add(unreadable, b"broken", user="me")
    repository.get(id)
    repository.find(Filter())
    repository.storage.check_writable()
    Retention(repository).expire_images(timedelta(days=30))
    Retention(repository).expire_identities(timedelta(days=30))
    repository.storage.retry_failed()
    assert calls == []


# --- the stream


async def signed_in():
    return True


async def take(stream, count, seconds=LIMIT):
    """Return the next events of a stream."""
    async with asyncio.timeout(seconds):
        return [await anext(stream) for _ in range(count)]


def test_many_changes_are_one_event_and_at_most_one_per_interval():
    async def run():
        changes = ChangeStreams(min_interval=1)
        with changes.reserve("me"):
            stream = changes.events(None, signed_in)
            (opened,) = await take(stream, 1)
            assert (opened.comment, opened.data) == ("open", None)
            for _ in range(50):
                changes.notify()
            (first,) = await take(stream, 1)
            started = time.monotonic()
            threads = [threading.Thread(target=changes.notify) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT)
            (second,) = await take(stream, 1)
            assert time.monotonic() - started > 0.5  # the interval began a moment before `started`
            assert first == second
            assert (first.data, first.id, first.event) == ("changed", None, None)  # nothing about a patient
            with pytest.raises(TimeoutError):
                await take(stream, 1, seconds=1.5)

    asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_page_that_missed_a_change_has_an_event_at_once():
    async def run():
        changes = ChangeStreams()
        with changes.reserve("me"):
            shown = changes.revision
            changes.notify()
            stream = changes.events(shown, signed_in)
            assert [each.data for each in await take(stream, 2)] == [None, "changed"]
            current = changes.events(changes.revision, signed_in)
            await take(current, 1)
            with pytest.raises(TimeoutError):
                await take(current, 1, seconds=0.3)

    asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_stream_ends_with_the_session_and_with_the_service():
    async def run():
        session = [True]

        async def is_signed_in():
            return session[0]

        changes = ChangeStreams(session_check=0.05, min_interval=60)
        with changes.reserve("me"):
            ending = changes.events(None, is_signed_in)
            await take(ending, 1)
            session[0] = False
            changes.notify()
            with pytest.raises(StopAsyncIteration):
                await take(ending, 1)
            stopping = changes.events(None, signed_in)
            await take(stopping, 1)
            waiting = asyncio.create_task(anext(stopping))
            await asyncio.sleep(0.01)
            changes.close()
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(waiting, LIMIT)

    asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_number_of_streams_is_limited():
    async def run():
        changes = ChangeStreams(max_streams=2)
        with changes.reserve("me"):
            with changes.reserve("me"):
                assert changes.open == 2
                with pytest.raises(BusyError, match="the limit of 2 live pages"), changes.reserve("me"):
                    pass
            assert changes.open == 1
            with changes.reserve("me"):
                pass

    asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_one_user_cannot_take_the_streams_of_all_others():
    async def run():
        changes = ChangeStreams()
        with contextlib.ExitStack() as streams:
            for _ in range(MAX_USER_STREAMS):
                streams.enter_context(changes.reserve("ward-3"))
            with pytest.raises(BusyError, match="the limit of 20 live pages of one user"), changes.reserve("ward-3"):
                pass
            streams.enter_context(changes.reserve("ward-4"))
            assert changes.open == MAX_USER_STREAMS + 1
        assert changes.open == 0
        with changes.reserve("ward-3"):
            assert changes.open == 1

    asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_change_after_the_loop_is_closed_is_ignored():
    changes = ChangeStreams()

    async def run():
        with changes.reserve("me"):
            pass

    asyncio.run(asyncio.wait_for(run(), LIMIT))
    changes.notify()


# --- a real process


@contextlib.contextmanager
def opened(client, **options):
    """Yield a function that returns the next line of a stream that is not empty; None at its end."""
    with client.stream("GET", "/events", timeout=LIMIT, **options) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = response.iter_lines()
        yield lambda: next((line for line in lines if line), None)


def metric(client, name):
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def wait_for(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_upload_reaches_an_open_stream_and_shutdown_does_not_wait_for_it(bundle, tmp_path):
    with served(bundle, tmp_path) as (process, client):
        with opened(client) as read, opened(client) as other:
            assert [read(), read()] == [": open", "retry: 3000"]
            assert metric(client, "pneumoscope_event_streams") == 2
            client.post("/v1/predictions", files=[("images", ("DOE^JANE.png", png(140)))])
            assert read() == EVENT
            assert [other(), other(), other()] == [": open", "retry: 3000", EVENT]
            process.send_signal(signal.SIGTERM)
            assert read() is None
            assert other() is None
            assert process.wait(60) == 0  # half the time that it has for answers
        assert "Stopped" in process.stderr.read()


def test_closed_streams_are_no_longer_counted_and_leave_the_response_time_alone(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        for _ in range(3):
            with opened(client) as read:
                assert read() == ": open"
                time.sleep(1)
        wait_for(lambda: metric(client, "pneumoscope_event_streams") == 0)
        counted = 'pneumoscope_requests_total{method="GET",path="/events",status="200"}'
        wait_for(lambda: counted in client.get("/metrics").text and metric(client, counted) == 3)
        assert metric(client, 'pneumoscope_request_seconds_count{path="/events"}') == 3
        assert metric(client, 'pneumoscope_request_seconds_sum{path="/events"}') < 3  # until responses began


def test_stream_writes_nothing_to_the_database(bundle, tmp_path):
    def content():
        with contextlib.closing(sqlite3.connect(tmp_path / "pneumoscope-data/pneumoscope.sqlite")) as database:
            return list(database.iterdump())

    with served(bundle, tmp_path) as (_, client):
        client.post("/v1/predictions", files=[("images", ("a.png", png(140)))])
        before = content()
        with opened(client) as read:
            assert [read(), read()] == [": open", "retry: 3000"]
        with opened(client, params={"revision": 1}) as read:
            assert [read(), read(), read()] == [": open", "retry: 3000", EVENT]
        assert content() == before


def test_stream_beyond_the_limit_is_answered_with_503(bundle, tmp_path):
    """With a limit of two."""
    few = (
        "import pneumoscope.service.app as app, pneumoscope.cli as cli;"
        "from pneumoscope.service.web.changes import ChangeStreams;"
        "app.ChangeStreams = lambda: ChangeStreams(max_streams=2); cli.main()"
    )
    with served(bundle, tmp_path, program=["-c", few]) as (_, client), opened(client), opened(client):
        answer = client.get("/events?language=en")
        assert answer.status_code == 503
        assert "the limit of 2 live pages" in answer.text
        assert client.get("/").status_code == 200


def test_streams_of_one_user_are_limited_and_others_still_get_theirs(bundle, tmp_path):
    insert_token_of_service(tmp_path, "ward-3")
    insert_token_of_service(tmp_path, "ward-4", "fedcba9876543210", id="00000002")
    first, second = ({"Authorization": f"Bearer {token}"} for token in (TOKEN, "fedcba9876543210"))
    with served(bundle, tmp_path) as (_, client), contextlib.ExitStack() as streams:
        for _ in range(MAX_USER_STREAMS):
            streams.enter_context(opened(client, headers=first))
        answer = client.get("/events", headers=first)
        assert answer.status_code == 503
        assert "the limit of 20 live pages of one user" in answer.text
        assert client.get("/", headers=first).status_code == 200
        with opened(client, headers=second) as read:
            client.post("/v1/predictions", files=[("images", ("a.png", png(140)))], headers=first)
            assert [read(), read(), read()] == [": open", "retry: 3000", EVENT]


def test_stream_needs_a_session_and_ends_with_it(bundle, tmp_path):
    """With a check of the session every 0.2 seconds."""
    soon = (
        "import pneumoscope.service.app as app, pneumoscope.cli as cli;"
        "from pneumoscope.service.web.changes import ChangeStreams;"
        "app.ChangeStreams = lambda: ChangeStreams(session_check=0.2); cli.main()"
    )
    insert_token_of_service(tmp_path, "ward-3")
    with served(bundle, tmp_path, program=["-c", soon]) as (_, client):
        answer = client.get("/events")
        assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in?next=%2Fevents")
        own = {"Origin": str(client.base_url).rstrip("/")}
        with httpx.Client(base_url=client.base_url, timeout=LIMIT) as browser:
            browser.post("/sign-in", data={"token": TOKEN}, headers=own)
            with opened(browser) as read:
                assert [read(), read()] == [": open", "retry: 3000"]
                browser.post("/sign-out", headers=own)
                assert read() is None
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        added = client.post("/v1/tokens", json={"user": "ward-4", "role": "reader"}, headers=bearer).json()
        reader = {"Authorization": f"Bearer {added['secret']}"}
        with opened(client, headers=reader) as read:
            assert [read(), read()] == [": open", "retry: 3000"]
            client.post("/v1/predictions", files=[("images", ("a.png", png()))], headers=bearer)
            assert read() == EVENT
            assert client.delete(f"/v1/tokens/{added['token']['id']}", headers=bearer).status_code == 204
            assert read() is None
