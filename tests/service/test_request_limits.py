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

from pneumoscope.core.errors import BusyError
from pneumoscope.service.request_limits import Limits, Lingering, impatient

LONG = 16 * 2**20  # bytes of the rest of a body that are taken


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

    return Lingering(app, most_bytes=LONG, seconds=0.4)


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


def refused(size, *lines):
    head = (b"POST /refused HTTP/1.1", b"Host: a", b"Content-Length: %d" % size, *lines)
    return b"\r\n".join((*head, b"", b""))


@pytest.mark.parametrize("line", [b"Connection: keep-alive", b"Connection: close"])
def test_an_answer_that_comes_before_its_body_reaches_whoever_sends_all_of_it_first(port, line):
    """Once so much is unread, a connection that is closed is reset, and its answer is lost."""
    for _ in range(5):
        assert spoken(port, refused(8 * 2**20, line) + bytes(8 * 2**20)) == (b"401", b"who are you?")


def test_such_an_answer_is_whole_before_the_body_is(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(0.3)  # sooner than the time of the rest is over
        connection.sendall(refused(10) + b"1")
        answer = b""
        while not answer.endswith(b"who are you?"):
            answer += connection.recv(1000)
    assert b"\r\nconnection: close\r\n" in answer


def test_a_body_that_nobody_reads_is_not_waited_for(port):
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.settimeout(3)
        slow.sendall(refused(10**9))
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
        endless.sendall(refused(10**9))
        while sent < 8 * LONG:
            endless.sendall(bytes(2**16))
            sent += 2**16
    assert LONG <= sent < 4 * LONG  # what is on its way, and in the system's hands, and not what it says that it has


async def _sent_by_lingering(*lines):
    """What an answer before its body becomes, when nothing may be received."""
    sent = []

    async def receive():
        raise AssertionError("nothing is to come")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"9"), *lines]}
    await Lingering(PlainTextResponse("no", 401), most_bytes=10, seconds=5)(scope, receive, send)
    return sent


def test_of_whoever_asks_before_sending_nothing_is_waited_for():
    start, end = asyncio.run(_sent_by_lingering((b"expect", b"100-continue")))
    assert (b"connection", b"close") in start["headers"]
    assert (end["body"], end.get("more_body", False)) == (b"no", False)
    with pytest.raises(AssertionError):
        asyncio.run(_sent_by_lingering())


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


def test_a_body_that_brings_no_images_is_small(port):
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
    assert (status, words) == (b"503", b"requests that are under way hold 25 bytes of images, and no more may be")
    assert [spoken(port, begun, b"0", pause=0)[0] for _ in range(3)] == 3 * [b"200"]
