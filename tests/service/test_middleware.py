"""Each failed request is logged in one line, which contains nothing that the client sent but ids and names of tokens."""

import asyncio
import logging
import re

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import TOKEN, images, png, post, problem, repository_with_token

from pneumoscope.core.errors import AuditLogError, BundleError, BusyError, StorageError
from pneumoscope.service.app import create_app
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.repository import PredictionRepository

LOG = "pneumoscope.service"
CANARY = "DOE^JANE"


@pytest.fixture
def lines(caplog):
    """Return a function that reads the new log lines, with the milliseconds replaced by _."""
    caplog.set_level(logging.INFO, LOG)

    def read():
        found = [
            (each.levelname, re.sub(r"(?<= )\d+(?= ms)", "_", each.getMessage()))
            for each in caplog.records
            if each.name == LOG
        ]
        assert all(" _ ms" in line for _, line in found)
        caplog.clear()
        return found

    return read


@pytest.mark.parametrize(
    ("method", "path", "options", "line"),
    [
        ("GET", "/v1/predictions/" + "ab" * 16, {}, "GET /v1/predictions/{id} 404 unknown_name local _ ms"),
        ("GET", "/v1/predictions/" + CANARY, {}, "GET /v1/predictions/{id} 422 usage local _ ms"),
        ("GET", "/v1/predictions?decison=" + CANARY, {}, "GET /v1/predictions 422 usage local _ ms"),
        ("GET", "/v1/predictions?" + CANARY, {}, "GET /v1/predictions 422 usage local _ ms"),
        ("GET", "/v1/predictions?since=" + CANARY, {}, "GET /v1/predictions 422 usage local _ ms"),
        ("GET", "/" + CANARY, {}, "GET other 404 unknown_name - _ ms"),
        (CANARY, "/v1/predictions", {}, "other /v1/predictions 405 usage - _ ms"),
        ("POST", "/v1/predictions", {"json": {"a": CANARY}}, "POST /v1/predictions 415 usage local _ ms"),
        (
            "POST", "/v1/predictions", {"files": [("images", (CANARY, CANARY.encode()))]},
            "POST /v1/predictions 422 unreadable_image local _ ms",
        ),
        (
            "POST", "/v1/predictions", {"files": images(b"x" * 200_000)},
            "POST /v1/predictions 413 too_large local _ ms",
        ),
        (
            "PUT", f"/v1/predictions/{'ab' * 16}/review", {"json": {"label": CANARY, "note": CANARY}},
            "PUT /v1/predictions/{id}/review 422 usage local _ ms",
        ),
        (
            "PUT", f"/v1/predictions/{'ab' * 16}/review", {"content": CANARY, "headers": {"Content-Type": CANARY}},
            "PUT /v1/predictions/{id}/review 415 usage local _ ms",
        ),
        ("GET", "/v1/model", {"headers": {"Host": CANARY}}, "GET /v1/model 403 forbidden - _ ms"),
        ("GET", "/images/" + CANARY, {}, "GET /images/{id} 404 unknown_name local _ ms"),
    ],
)  # fmt: skip
def test_failed_request_is_logged_without_client_input(client, lines, method, path, options, line):
    client.request(method, path, **options)
    assert lines() == [("INFO", line)]
    assert CANARY not in client.get("/metrics").text


def test_successful_request_is_not_logged(client, lines):
    (found,) = post(client, png())
    client.get(f"/v1/predictions/{found['id']}")
    client.get("/readyz")
    assert lines() == []


def test_log_contains_the_user_and_never_the_token(model, lines):
    with TestClient(
        create_app(model, repository_with_token("ward-3"), Settings(loopback=False), require_token=True)
    ) as client:
        for token in (TOKEN, TOKEN + "x", ""):
            client.get("/v1/predictions/xyz", headers={"Authorization": f"Bearer {token}"})
        client.post("/sign-in", data={"token": TOKEN + "x"})
    found = lines()
    assert found == [
        ("INFO", "GET /v1/predictions/{id} 422 usage ward-3 _ ms"),
        ("INFO", "GET /v1/predictions/{id} 401 authentication - _ ms"),
        ("INFO", "GET /v1/predictions/{id} 401 authentication - _ ms"),
        ("INFO", "POST /sign-in 401 authentication - _ ms"),
    ]
    assert TOKEN not in str(found)


def test_interrupted_response_is_logged(client, lines, monkeypatch):
    for level in range(90, 94):
        post(client, png(level))
    monkeypatch.setattr("pneumoscope.service.web.worklist._EXPORT_BATCH", 2)
    find, turns = PredictionRepository.find, []

    def fail_in_the_middle(*arguments, **options):
        turns.append(1)
        if len(turns) == 2:
            raise StorageError(f"gone with {CANARY}")
        return find(*arguments, **options)

    monkeypatch.setattr(PredictionRepository, "find", fail_in_the_middle)
    client.get("/worklist.csv")
    assert lines() == [("WARNING", "GET /worklist.csv 500 internal_error local _ ms: unexpected StorageError")]
    assert 'path="/worklist.csv",status="500"} 1.0' in client.get("/metrics").text


def test_readiness_check_hides_the_location_of_the_storage(client, caplog, monkeypatch):
    def fail(*_, **__):
        raise StorageError("the database '/secret/place' cannot be used")

    monkeypatch.setattr("pneumoscope.service.storage.image_storage.ImageStorage.check_writable", fail)
    answer = client.get("/readyz")
    assert problem(answer, 503, "storage")["detail"] == "the storage cannot be used"
    assert "secret" not in answer.text
    assert "Not ready: the database '/secret/place'" in caplog.text


@pytest.mark.parametrize("error", [StorageError("the disk\nis full"), BusyError("2 images wait")])
def test_server_errors_are_warnings_with_their_message(client, lines, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("pneumoscope.service.storage.repository.PredictionRepository.find", fail)
    problem(client.get("/v1/predictions"), 503, error.code)
    message = " ".join(error.message.split())
    assert lines() == [("WARNING", f"GET /v1/predictions 503 {error.code} local _ ms: {message}")]


@pytest.mark.parametrize("path", ["/v1/predictions", "/"])
@pytest.mark.parametrize("error", [StorageError, BundleError, AuditLogError])
def test_location_of_a_server_error_is_logged_and_not_sent(client, lines, monkeypatch, path, error):
    def fail(*_, **__):
        raise error("cannot read '/secret/place' of db.internal", hint="Restore /secret/place")

    monkeypatch.setattr("pneumoscope.service.storage.repository.PredictionRepository.find", fail)
    answer = client.get(path)
    assert answer.status_code >= 500
    assert "See the server log for the reason" in answer.text
    assert not re.search(r"secret|db\.internal", answer.text)
    ((level, line),) = lines()
    assert (level, line.partition(" ms: ")[2]) == ("WARNING", "cannot read '/secret/place' of db.internal")


def test_missing_image_is_logged_with_the_id_of_its_prediction(client, app, lines, monkeypatch):
    (found,) = post(client, png())
    monkeypatch.setattr("pneumoscope.service.storage.blob_store.MemoryBlobStore.get", lambda *_: None)
    problem(client.get(f"/v1/predictions/{found['id']}/image.png"), 503, "storage")
    line = f"GET /v1/predictions/{{id}}/image.png 503 storage local _ ms: the image of prediction '{found['id']}' is missing"
    assert lines() == [("WARNING", line)]


def test_unexpected_error_shows_only_its_type(client, lines, caplog, monkeypatch):
    def fail(*_, **__):
        raise KeyError(CANARY)

    monkeypatch.setattr("pneumoscope.service.storage.repository.PredictionRepository.submit", fail)
    answer = client.post("/v1/predictions", files=[("images", (CANARY, png()))])
    assert problem(answer, 500, "internal_error")["detail"] == "unexpected KeyError"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert CANARY not in answer.text + caplog.text
    assert lines() == [("WARNING", "POST /v1/predictions 500 internal_error local _ ms: unexpected KeyError")]
    assert 'path="/v1/predictions",status="500"} 1.0' in client.get("/metrics").text


def test_disconnect_during_upload_is_not_a_server_error(app, lines):
    async def go(path, method, kind):
        messages = iter([{"type": "http.request", "body": b"--x", "more_body": True}])
        sent = []

        async def receive():
            return next(messages, {"type": "http.disconnect"})

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", kind)]
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "scheme": "http", "headers": headers, "server": ("localhost", 80), "client": ("localhost", 1), "app": app,
        }  # fmt: skip
        await app(scope, receive, send)

    for kind in (b"multipart/form-data; boundary=x", b"image/png"):
        asyncio.run(asyncio.wait_for(go("/v1/predictions", "POST", kind), 10))
    assert lines() == 2 * [("INFO", "POST /v1/predictions 422 usage local _ ms")]


@pytest.mark.parametrize(
    ("method", "path", "recorded"),
    [
        ("DELETE", "/v1/tokens/0123abcd", "/v1/tokens/{id}"),
        ("POST", "/tokens/0123abcd/revoke", "/tokens/{id}/revoke"),
        ("GET", "/v1/tokens", "/v1/tokens"),
    ],
)
def test_metrics_have_the_route_of_a_token(client, method, path, recorded):
    client.request(method, path)
    assert f'path="{recorded}"' in client.get("/metrics").text
