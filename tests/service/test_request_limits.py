"""Limits on request bodies, and early responses, over real connections to uvicorn."""

import asyncio
import socket
import threading
import time
from contextlib import ExitStack, suppress
from http.client import HTTPResponse

import pytest
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from pneumoscope.core.errors import BusyError
from pneumoscope.service.request_limits import BodyLimitMiddleware, DrainBodyMiddleware

LONG = 16 * 2**20  # limit on the bytes of a drained body


async def echo(scope, receive, send):
    """Respond with the number of bytes of the body."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


def application(limits):
    async def app(scope, receive, send):
        if scope["path"] == "/early":  # before its body is read
            await PlainTextResponse("token required", 401)(scope, receive, send)
            return
        try:
            await limits(scope, receive, send)
        except HTTPException as error:
            await PlainTextResponse(error.detail, error.status_code, error.headers)(scope, receive, send)
        except BusyError as error:
            await PlainTextResponse(error.message, 503)(scope, receive, send)

    return DrainBodyMiddleware(app, max_bytes=LONG)


@pytest.fixture(scope="module")
def limits():
    return BodyLimitMiddleware(echo, max_body_bytes=10, max_total_bytes=25)


@pytest.fixture(scope="module")
def port(limits):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            application(limits), http="h11", log_level="critical", lifespan="off", timeout_keep_alive=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        assert server.started
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(60)


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def answer(connection):
    """Return the status and the body of the response, after which the server may wait for the rest of the request."""
    response = HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def exchange(port, *parts, pause=0.2):
    """Send parts with pauses between them, and return the status and the body of the response."""
    with connected(port) as connection:
        with suppress(ConnectionError):
            for place, part in enumerate(parts):
                time.sleep(pause if place else 0)
                connection.sendall(part)
        return answer(connection)


HEAD = b"POST /v1/predictions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"


def test_small_body_is_accepted(port):
    assert exchange(port, HEAD + b"Content-Length: 5\r\n\r\n12345") == (200, b"5")
    assert exchange(port, HEAD + b"Content-Length: 5\r\n\r\n123", b"45") == (200, b"5")


@pytest.mark.parametrize(
    "body",
    [b"Content-Length: 11\r\n\r\n12345678901", b"Transfer-Encoding: chunked\r\n\r\nb\r\n12345678901\r\n0\r\n\r\n"],
)
def test_too_large_body_is_rejected_early(port, body):
    status, words = exchange(port, HEAD + body)
    assert (status, words) == (413, b"the body is larger than 10 bytes")


def early_request(size, *lines):
    head = (b"POST /early HTTP/1.1", b"Host: a", b"Content-Length: %d" % size, *lines)
    return b"\r\n".join((*head, b"", b""))


def test_early_response_reaches_a_client_that_sends_its_whole_body_first(port):
    """Without `DrainBodyMiddleware` a connection that is closed afterwards is reset, and the response is lost."""
    for _ in range(5):
        assert exchange(port, early_request(8 * 2**20, b"Connection: close") + bytes(8 * 2**20)) == (
            401,
            b"token required",
        )


def test_early_response_on_a_connection_that_is_kept_alive_does_not_wait_for_the_body(port):
    """uvicorn itself discards the body and reads the next request."""
    with connected(port) as connection:
        connection.settimeout(60)
        for _ in range(2):
            connection.sendall(early_request(2**20) + b"1")
            answer = b""
            while not answer.endswith(b"token required"):
                chunk = connection.recv(1000)
                assert chunk, f"the connection was closed after {answer}"
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 401")
            connection.sendall(bytes(2**20 - 1))


def test_body_beyond_the_limit_is_not_drained(port):
    with connected(port) as connection:
        connection.settimeout(60)
        connection.sendall(early_request(10 * LONG, b"Connection: close"))
        with pytest.raises(ConnectionError):
            connection.sendall(bytes(10 * LONG))


def test_early_response_does_not_wait_for_the_body(port):
    with connected(port) as connection:
        connection.settimeout(60)
        connection.sendall(early_request(9, b"Connection: close"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 401")


def test_client_that_sends_expect_is_answered_without_its_body(port):
    assert exchange(port, early_request(9, b"Connection: close", b"Expect: 100-continue")) == (
        401,
        b"token required",
    )


def test_memory_is_released_when_the_response_begins():
    """However slowly the client reads it."""

    async def answered():
        slow, body = asyncio.Event(), [{"type": "http.request", "body": b"12345678"}]

        async def receive():
            return body.pop() if body else await asyncio.Event().wait()

        async def send(message):
            await slow.wait()

        limits = BodyLimitMiddleware(echo, max_body_bytes=10, max_total_bytes=25)
        scope = {"type": "http", "method": "POST", "path": "/v1/predictions", "headers": []}
        task = asyncio.ensure_future(limits(scope, receive, send))
        await asyncio.sleep(0.05)
        held = limits.held_bytes
        slow.set()
        await task
        return held, limits.held_bytes

    assert asyncio.run(asyncio.wait_for(answered(), 60)) == (0, 0)


def test_body_without_images_has_a_small_limit(port):
    head = b"PUT /v1/predictions/1/review HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: "
    assert exchange(port, head + b"65536\r\n\r\n" + bytes(65536)) == (200, b"65536")
    assert exchange(port, head + b"65537\r\n\r\n") == (413, b"the body is larger than 65,536 bytes")


def test_bodies_in_progress_share_a_limit(port, limits):
    begun = HEAD + b"Content-Length: 10\r\n\r\n123456789"
    with ExitStack() as connections:
        others = [connections.enter_context(connected(port)) for _ in range(2)]
        for other in others:
            other.sendall(begun)
        end = time.monotonic() + 60
        while limits.held_bytes < 18:
            assert time.monotonic() < end, "the others were not received"
            time.sleep(0.01)
        status, words = exchange(port, begun)
        for other in others:
            other.sendall(b"0")
        assert [answer(other) for other in others] == 2 * [(200, b"10")]
    assert (status, words) == (503, b"the requests in progress hold 27 bytes of images; the limit is 25")
    assert [exchange(port, begun, b"0", pause=0)[0] for _ in range(3)] == 3 * [200]
