"""A slow client is cut, over a real connection; a quick one is not."""

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from pneumoscope.errors import BusyError
from pneumoscope.service.limits import Limits, impatient


async def echo(scope, receive, send):
    """Answers with how many bytes the body has."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


def mapped():
    limits = Limits(echo, most_bytes=10, most_held=25, seconds=0.5)

    async def app(scope, receive, send):
        if scope["path"] == "/refused":  # before its body is looked at
            await PlainTextResponse("who are you?", 401)(scope, receive, send)
            return
        try:
            await limits(scope, receive, send)
        except HTTPException as error:
            await PlainTextResponse(error.detail, error.status_code, error.headers)(scope, receive, send)
        except BusyError as error:
            await PlainTextResponse(error.message, 503)(scope, receive, send)

    return app


@pytest.fixture(scope="module")
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            mapped(), http=impatient(0.4), log_level="critical", lifespan="off", timeout_keep_alive=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def spoken(port, *parts, pause=0.2):
    """What is answered to these parts, with a pause before each but the first; until the connection ends or is idle."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(3)
        answer = b""
        try:
            for place, part in enumerate(parts):
                time.sleep(pause if place else 0)
                connection.sendall(part)
            while chunk := connection.recv(1000):
                answer += chunk
        except (ConnectionError, TimeoutError):
            pass
        return answer.partition(b" ")[2][:3], answer.rpartition(b"\r\n\r\n")[2]


HEAD = b"POST /v1/predictions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"


def test_a_quick_request_is_answered(port):
    assert spoken(port, HEAD + b"Content-Length: 5\r\n\r\n12345") == (b"200", b"5")
    assert spoken(port, HEAD + b"Content-Length: 5\r\n", b"\r\n12345", pause=0.1) == (b"200", b"5")
    assert spoken(port, HEAD + b"Content-Length: 5\r\n\r\n123", b"45") == (b"200", b"5")


def test_whoever_says_nothing_is_cut(port):
    start = time.monotonic()
    assert spoken(port) == (b"", b"")
    assert 0.3 < time.monotonic() - start < 2


def test_a_head_that_comes_too_slowly_is_cut(port):
    assert spoken(port, *[bytes([byte]) for byte in HEAD[:20]], pause=0.1) == (b"", b"")


def test_a_second_head_on_the_same_connection_is_not_waited_for_either(port):
    kept = HEAD.replace(b"close", b"keep-alive") + b"Content-Length: 1\r\n\r\n1"
    start = time.monotonic()
    assert spoken(port, kept, b"POST /v1 HT")[0] == b"200"
    assert time.monotonic() - start < 2


def test_a_body_that_comes_too_slowly_is_cut(port):
    status, words = spoken(port, HEAD + b"Content-Length: 5\r\n\r\n1", pause=0.3)
    assert (status, words) == (b"408", b"the request's body took longer than 0.5 s")


@pytest.mark.parametrize(
    "body",
    [b"Content-Length: 11\r\n\r\n12345678901", b"Transfer-Encoding: chunked\r\n\r\nb\r\n12345678901\r\n0\r\n\r\n"],
)
def test_a_body_that_is_too_large_is_refused(port, body):
    status, words = spoken(port, HEAD + body)
    assert (status, words) == (b"413", b"the request's body is more than 10 bytes")


REFUSED = b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n"


def test_a_body_that_nobody_reads_is_not_waited_for(port):
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.settimeout(3)
        slow.sendall(REFUSED)
        assert slow.recv(1000).startswith(b"HTTP/1.1 401")
        start = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - start < 2:
                slow.sendall(b"x")
                time.sleep(0.1)
    assert time.monotonic() - start < 1.5


def test_a_body_that_nobody_reads_is_cut_when_it_is_long(port):
    sent = 0
    with socket.create_connection(("127.0.0.1", port)) as endless, suppress(ConnectionError):
        endless.sendall(REFUSED)
        start = time.monotonic()
        while time.monotonic() - start < 0.35:  # sooner than its time is over
            endless.sendall(bytes(2**16))
            sent += 2**16
            if sent > 64 * 2**20:
                break
    assert sent < 32 * 2**20  # what is on its way, and in the system's hands, and not what it says that it has


def test_after_the_rest_of_such_a_body_another_request_is_answered(port):
    first = b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n1"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(3)
        connection.sendall(first)
        assert connection.recv(1000).startswith(b"HTTP/1.1 401")
        connection.sendall(b"23" + HEAD + b"Content-Length: 2\r\n\r\n")
        time.sleep(0.45)  # longer than the rest of the first body might have taken, and shorter than this one may take
        connection.sendall(b"12")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_what_is_held_is_let_go_when_the_answer_begins():
    """However slowly it is taken."""

    async def answered():
        slow, body = asyncio.Event(), [{"type": "http.request", "body": b"12345678"}]

        async def receive():
            return body.pop() if body else await asyncio.Event().wait()

        async def send(message):
            await slow.wait()

        limits = Limits(echo, most_bytes=10, most_held=25, seconds=5)
        scope = {"type": "http", "method": "POST", "path": "/v1/predictions", "headers": []}
        asked = asyncio.ensure_future(limits(scope, receive, send))
        await asyncio.sleep(0.05)
        held = limits._held
        slow.set()
        await asked
        return held, limits._held

    assert asyncio.run(answered()) == (0, 0)


def test_a_body_that_brings_no_films_is_small(port):
    head = b"PUT /v1/predictions/1/review HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: "
    assert spoken(port, head + b"65536\r\n\r\n" + bytes(65536)) == (b"200", b"65536")
    assert spoken(port, head + b"65537\r\n\r\n") == (b"413", b"the request's body is more than 65,536 bytes")


def test_bodies_that_are_under_way_are_limited_together_and_their_end_makes_room(port):
    begun = HEAD + b"Content-Length: 10\r\n\r\n123456789"
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(spoken, port, begun, b"0", pause=0.3) for _ in range(2)]
        time.sleep(0.15)
        status, words = spoken(port, begun)
        assert [other.result() for other in others] == 2 * [(b"200", b"10")]
    assert (status, words) == (b"503", b"requests that are under way hold 25 bytes of films, and no more may be")
    assert [spoken(port, begun, b"0", pause=0)[0] for _ in range(3)] == 3 * [b"200"]
