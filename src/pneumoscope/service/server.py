"""Runs the service until it is told to stop."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import re
import signal
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import uvicorn

from pneumoscope.core.errors import UsageError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import Settings, make_app
from pneumoscope.service.auth.tokens import Authenticator, is_loopback, read_tokens
from pneumoscope.service.storage.blob_store import BLOBS
from pneumoscope.service.storage.data_directory import data_directory_lock
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["serve"]

_LOG = logging.getLogger("pneumoscope.service")
_IDLE = 15  # seconds that an unused connection is kept
_HEAD = 16 * 1024  # bytes of a request's head
_STOP_SECONDS = 150  # for what was taken in to be answered; then whoever has not taken an answer goes without
# Whose log lines are told. Those of others are not: what reads images repeats what stands in them.
_TOLD = ("pneumoscope.service", "sqlalchemy", "asyncio", "concurrent.futures")
_NAME = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_OF_PORTS = (errno.EADDRINUSE, errno.EACCES, errno.EPERM)  # taken by another process, or kept for the system's own


def serve(
    *,
    host: str,
    port: int,
    model: Path | None,
    operating_point: str,
    folder: Path | None,
    database: str,
    keep: timedelta | None,
    token_file: Path | None,
    no_auth: bool,
    public_name: str,
    show: bool,
    tell: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; then answer what was taken in, and return.

    Args:
        host, port: to listen on; port 0 takes a free one.
        model, operating_point: see `load_model`.
        folder: of the data; None keeps everything in memory.
        database: see `PredictionRepository`.
        keep: age at which images are removed; None keeps them.
        token_file: see `read_tokens`.
        no_auth: lets everybody in on an address that others can reach.
        public_name: see `app.Settings`.
        show: opens the page in this machine's browser.
        tell: called with what a person should know.
    Raises:
        UsageError: others could reach the address without a token; it cannot be listened on; another process serves the folder;
            a name is none.
        BundleError, StorageError: the model or the data cannot be opened.
    """
    if token_file and no_auth:
        raise UsageError("--token-file and --no-auth contradict each other")
    if public_name and not re.fullmatch(_NAME, public_name):
        raise UsageError(
            f"--public-name is {public_name!r}, which is no name of a host",
            hint="Give the name that people type, without a port or an address's other parts, such as images.clinic.example",
        )
    loopback = is_loopback(host)
    if not ((loopback and not public_name) or token_file or no_auth):
        raise UsageError(
            f"others can reach {public_name or host}, and no token is asked of them",
            hint="Name a file of tokens with --token-file, or say --no-auth if something in front of it lets nobody else in",
        )
    access = Authenticator(read_tokens(token_file) if token_file else {})
    judge = load_model(model, operating_point=operating_point, threads=1, isolated=True)
    faulthandler.enable()  # a crash is logged
    with (
        contextlib.closing(judge),
        _listening(host, port) as listener,
        data_directory_lock(folder) if folder else contextlib.nullcontext(),
    ):
        records = PredictionRepository(folder, database)
        app = make_app(judge, records, access, Settings(loopback=loopback, public_name=public_name, keep=keep))
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,  # its lines hold what clients asked for
                server_header=False,
                date_header=True,
                timeout_keep_alive=_IDLE,
                timeout_graceful_shutdown=_STOP_SECONDS,
                h11_max_incomplete_event_size=_HEAD,
                http="h11",
                ws="none",
            )
        )
        shown = f"[{host.strip('[]')}]" if ":" in host else host
        _log_to_stderr()
        address = f"http://{shown}:{listener.getsockname()[1]}"
        tell(f"{address}  model {judge.card.name}, operating point {judge.operating_point_name}")
        tell(f"keeps images and records in {folder or 'memory'}" + (" until it stops" if folder is None else ""))
        tell(NOTICE)
        _warn_of_orphaned_files(len(records.orphaned))
        if show:  # it waits for the answer; a browser in a terminal would not come back
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        with _stopping_is_no_failure(server):
            server.run(sockets=[listener])
    tell("stopped")


def _warn_of_orphaned_files(count: int) -> None:
    if count:
        files = f"{count} orphaned file{'' if count == 1 else 's'}"
        _LOG.warning("Found %s in %s/ (no database record). See `pneumoscope storage check`", files, BLOBS)


def _log_to_stderr() -> None:
    """A line for each request that was not done, and for what befalls the service itself; none has what a client sent."""
    handler = logging.StreamHandler()
    form = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    form.converter = time.gmtime
    handler.setFormatter(form)
    handler.addFilter(_without_trace)
    for name in _TOLD:
        logging.getLogger(name).addHandler(handler)
    logging.getLogger().addHandler(logging.NullHandler())  # else Python prints what nobody handles
    _LOG.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addFilter(_without_trace)
    # It tells of characters in forms that are not as they should be; their sender is told.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


def _without_trace(record: logging.LogRecord) -> bool:
    """Let a line pass without the trace of an exception, whose words may hold anything that a client sent."""
    if record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args = f"a fault of ours: {kind.__name__ if kind else 'unknown'}", ()
        record.exc_info = record.exc_text = None
    return True


@contextlib.contextmanager
def _stopping_is_no_failure(server: uvicorn.Server) -> Iterator[None]:
    """Stop on a signal that comes before uvicorn heeds it by itself, which it raises once more when it has stopped."""

    def stop(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host.strip("[]"), port), family=family)
    except (OSError, UnicodeError, TypeError) as error:  # the latter two of a name that no host can have
        why = ((isinstance(error, OSError) and error.strerror) or str(error)).partition(" (while ")[0]
        at_fault = "--port" if isinstance(error, OSError) and error.errno in _OF_PORTS else "--host"
        raise UsageError(
            f"cannot listen on {host}, port {port}: {why}", hint=f"Choose another with {at_fault}"
        ) from error
    # An answer's head and body are two packets: without this the second would wait for the first one's receipt, 40 ms each time.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener
