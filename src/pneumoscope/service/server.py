"""Run the service with uvicorn until it receives a signal."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import faulthandler
import logging
import os
import signal
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from pneumoscope.core.errors import UsageError
from pneumoscope.core.messages import counted
from pneumoscope.core.prediction_messages import site_note
from pneumoscope.inference.model import Model
from pneumoscope.service.app import CLOSE_SECONDS, create_app
from pneumoscope.service.auth.tokens import TokenRepository
from pneumoscope.service.dicom.start_checks import warn_of_unresolved_hosts
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.blob_store import BLOBS
from pneumoscope.service.storage.data_directory import data_directory_lock
from pneumoscope.service.storage.pseudonyms import Pseudonymizer, require_no_pseudonyms
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.repository import PredictionRepository

if TYPE_CHECKING:
    from pneumoscope.service.auth.openid_connect import OpenIdConnect
    from pneumoscope.service.dicom.node_settings import DicomSettings
    from pneumoscope.service.dicom.receiver import DicomReceiver

__all__ = ["ServerOptions", "open_listener", "serve"]

_LOG = logging.getLogger("pneumoscope.service")
_KEEP_ALIVE_SECONDS = 15
_MAX_HEADER_BYTES = 16 * 1024
_ANSWER_SECONDS = 150 - CLOSE_SECONDS  # limit on answering accepted requests, within a shutdown of 150 s
# Loggers to print. Other libraries are excluded, since image decoders log values from images.
_LOGGERS = ("pneumoscope.service", "sqlalchemy", "asyncio", "concurrent.futures")
_ARENAS = 2
_M_ARENA_MAX = -8  # from glibc's malloc.h
_PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES, errno.EPERM)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Address, storage and authentication of a service.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 selects a free port.
        folder: Data directory; None keeps everything in memory.
        database: See `PredictionRepository`.
        no_auth: Serve without authentication, even on a public address or if the database contains tokens.
        openid_connect: Identity provider; None without one.
        open_browser: Open the web interface in a browser on this machine.
    Raises:
        UsageError: An identity provider is combined with `no_auth`.
    """

    host: str
    port: int
    folder: Path | None
    database: str
    no_auth: bool
    openid_connect: OpenIdConnect | None
    open_browser: bool

    def __post_init__(self) -> None:
        """Validate the options."""
        if self.openid_connect and self.no_auth:
            raise UsageError("--openid-connect and --no-auth contradict each other")


def serve(model: Model, settings: Settings, options: ServerOptions, echo: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then answer the accepted requests and return.

    Args:
        model: Predicts the images.
        settings: Settings of the application.
        options: Address, storage and authentication.
        echo: Prints a line for the operator.
    Raises:
        UsageError: The address is public without authentication; the address cannot be bound; another process serves
            the data directory; or the data directory contradicts the settings.
        StorageError: The data cannot be opened or written.
    """
    faulthandler.enable()  # prints stack traces after a crash
    _limit_memory_arenas()
    folder = options.folder
    with (
        open_listener(options.host, options.port) as listener,
        data_directory_lock(folder) if folder else contextlib.nullcontext(),
        _listen_for_dicom(settings.dicom.node) as receiver,
        contextlib.ExitStack() as stack,
    ):
        repository = PredictionRepository(folder, options.database)
        stack.callback(repository.close)  # for a failed start; otherwise, the application closes it
        repository.storage.check_writable()
        require_token = _require_token(repository, settings, options)
        if folder:
            _check_pseudonyms(repository, settings.pseudonymizer, folder)
        server = _uvicorn_server(
            create_app(
                model,
                repository,
                settings,
                require_token=require_token,
                openid_connect=options.openid_connect,
                dicom_receiver=receiver,
                delivery=bool(settings.dicom.receivers or settings.dicom.webhooks),
            )
        )
        _log_to_stderr()
        url = _url(options.host, listener.getsockname()[1])
        with _stop_on_signals(server):  # before the address is printed, which signals that the service has started
            for line in _introduction(url, model, settings, options, receiver, require_token):
                echo(line)
            _warn_of_orphaned_files(len(repository.storage.orphaned))
            warn_of_unresolved_hosts(settings.dicom)
            if options.open_browser:  # in a thread, since a text-mode browser would block
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
            server.run(sockets=[listener])
    echo("Stopped")


def _require_token(repository: PredictionRepository, settings: Settings, options: ServerOptions) -> bool:
    """Return whether requests need a token. Raise UsageError if the address is public without authentication."""
    require_token = not options.no_auth and bool(TokenRepository(repository.engine).list())
    is_private = settings.loopback and not settings.public_name
    if not (require_token or options.openid_connect or options.no_auth or is_private):
        raise UsageError(
            f"Refusing to serve on {settings.public_name or options.host} without authentication",
            hint="Add a token with `pneumoscope tokens add`, or pass --no-auth if a reverse proxy authenticates clients",
        )
    return require_token


def _check_pseudonyms(repository: PredictionRepository, pseudonymizer: Pseudonymizer | None, folder: Path) -> None:
    """Raise UsageError if the data directory does not match the pseudonymization setting and its key."""
    if pseudonymizer is None:
        require_no_pseudonyms(folder)
        return
    is_empty = not (repository.find(Filter(), limit=1).total or repository.unreadable_files.find(limit=0)[1])
    pseudonymizer.require_key_of(folder, is_empty=is_empty)


def _url(host: str, port: int) -> str:
    address = f"[{host.strip('[]')}]" if ":" in host else host
    return f"http://{address}:{port}"


def _introduction(
    url: str,
    model: Model,
    settings: Settings,
    options: ServerOptions,
    receiver: DicomReceiver | None,
    require_token: bool,
) -> Iterator[str]:
    """Yield the lines that describe the started service to the operator; the first begins with its URL."""
    dicom = settings.dicom
    yield (
        f"{url}  model {model.card.name}, operating point {model.operating_point_name}, require age {model.require_age}"
    )
    if dicom.node and receiver:
        tls = " with TLS" if dicom.node.tls else ""
        yield f"DICOM node {dicom.node.ae_title} on {dicom.node.host}, port {receiver.port}{tls}"
    if dicom.receivers:
        yield f"Results are sent to {', '.join(dicom.receivers)}"
    if dicom.webhooks:
        yield f"Finished studies are reported to {', '.join(webhook.name for webhook in dicom.webhooks)}"
    if model.assumptions:
        yield f"Assumed of all images: {', '.join(model.assumptions)}"
    if note := site_note(model.facts):
        yield note
    yield f"Time zone of the web interface: {settings.time_zone.key}"
    yield "In-memory storage; discarded on exit" if options.folder is None else f"Data directory: {options.folder}"
    if settings.pseudonymizer:
        yield "Identities of patients are stored as pseudonyms; images are stored without their headers"
    if options.openid_connect:
        yield f"Clients must authenticate with a token or {options.openid_connect.display_name}"
    elif require_token:
        yield "Clients must authenticate with a token; see `pneumoscope tokens`"
    yield model.notice


@contextlib.contextmanager
def _listen_for_dicom(settings: DicomSettings | None) -> Iterator[DicomReceiver | None]:
    if settings is None:
        yield None
        return
    from pneumoscope.service.dicom.receiver import DicomReceiver  # an extra

    receiver = DicomReceiver(settings)
    try:
        yield receiver
    finally:
        receiver.stop(0)


class _Server(uvicorn.Server):
    """A server that ends streams of server-sent events before waiting for open requests."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, and wait for open requests; see `uvicorn.Server`."""
        assert isinstance(self.config.app, FastAPI)
        self.config.app.state.changes.close()
        await super().shutdown(sockets)


def _uvicorn_server(app: FastAPI) -> uvicorn.Server:
    return _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # its lines contain URLs and thereby image names
            server_header=False,
            date_header=True,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_ANSWER_SECONDS,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            http="h11",
            ws="none",
        )
    )


def _warn_of_orphaned_files(count: int) -> None:
    if count:
        files = counted(count, "orphaned file")
        _LOG.warning("Found %s in %s/ (no database record). See `pneumoscope storage check`", files, BLOBS)


def _limit_memory_arenas() -> None:
    """Restrict all threads to two glibc memory arenas, unless MALLOC_ARENA_MAX specifies another number.

    The default is eight per core. Memory freed in one arena is not reused by threads of another, so the resident memory
    of a service with many short-lived threads would grow for hours.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def _log_to_stderr() -> None:
    """Print failed requests and service events. Apart from ids and AE titles, lines contain no client input."""
    handler = logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(_remove_traceback)
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
    logging.getLogger().addHandler(logging.NullHandler())  # without a handler, Python itself would print warnings
    _LOG.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addFilter(_remove_traceback)
    # It logs invalid characters in forms; the client already receives an error.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


def _remove_traceback(record: logging.LogRecord) -> bool:
    """Replace an exception's message and traceback, which may contain client input, by its type."""
    if record.exc_info:
        exception_type = record.exc_info[0]
        record.msg, record.args = f"Internal error: {exception_type.__name__ if exception_type else 'unknown'}", ()
        record.exc_info = record.exc_text = None
    return True


@contextlib.contextmanager
def _stop_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """Stop the server on signals that arrive before uvicorn installs its handlers; ignore those that uvicorn raises again."""

    def stop(*_: object) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def open_listener(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens on an address.

    Raises:
        UsageError: The address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host.strip("[]"), port), family=family)
    except (OSError, UnicodeError, TypeError) as error:  # the latter two for an invalid host name
        reason = ((isinstance(error, OSError) and error.strerror) or str(error)).partition(" (while ")[0]
        option = "--port" if isinstance(error, OSError) and error.errno in _PORT_ERRORS else "--host"
        raise UsageError(
            f"cannot listen on {host}, port {port}: {reason}", hint=f"Choose another with {option}"
        ) from error
    # A response is sent as two packets, header and body; Nagle's algorithm would delay the second by 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener
