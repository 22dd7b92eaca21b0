"""Run the service with uvicorn until it receives a signal."""

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
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from pneumoscope.core.errors import UsageError
from pneumoscope.core.messages import counted, site_note
from pneumoscope.core.prediction import AgeRequirement, Assumption
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import CLOSE_SECONDS, create_app
from pneumoscope.service.auth.tokens import TokenRepository
from pneumoscope.service.auth.users import is_loopback
from pneumoscope.service.dicom.configuration import DicomConfiguration
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.blob_store import BLOBS
from pneumoscope.service.storage.data_directory import data_directory_lock
from pneumoscope.service.storage.pseudonyms import Pseudonymizer, read_key, require_no_pseudonyms
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.time_zone import find_time_zone

if TYPE_CHECKING:
    from pneumoscope.service.auth.openid_connect import OpenIdConnect
    from pneumoscope.service.dicom.receiver import DicomReceiver
    from pneumoscope.service.dicom.settings import DicomSettings

__all__ = ["serve"]

_LOG = logging.getLogger("pneumoscope.service")
_KEEP_ALIVE_SECONDS = 15
_MAX_HEADER_BYTES = 16 * 1024
_ANSWER_SECONDS = 150 - CLOSE_SECONDS  # limit on answering accepted requests during a shutdown of 150 s
# Loggers that are printed. Those of other libraries are not: image decoders repeat values from images.
_LOGGERS = ("pneumoscope.service", "sqlalchemy", "asyncio", "concurrent.futures")
_HOST_NAME = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES, errno.EPERM)


def serve(
    *,
    host: str,
    port: int,
    model: Path | None,
    operating_point: str,
    site: Path | None,
    prevalence: float | None,
    time_zone: str,
    require_age: AgeRequirement,
    assume: Collection[Assumption],
    folder: Path | None,
    database: str,
    keep: timedelta | None,
    keep_identities: timedelta | None,
    pseudonym_key: Path | None,
    blind_first: bool,
    no_auth: bool,
    openid_connect: Path | None,
    dicom: DicomConfiguration,
    public_name: str,
    open_browser: bool,
    echo: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM, then answer accepted requests and return.

    Args:
        host, port: Address to listen on; port 0 picks a free one.
        model, operating_point, site, prevalence, require_age, assume: See `load_model`.
        time_zone: See `find_time_zone`.
        folder: Data directory; None keeps everything in memory.
        database: See `PredictionRepository`.
        keep: Age at which images are removed; None keeps them.
        keep_identities: Age at which identities of patients are removed; None keeps them.
        pseudonym_key: See `pseudonyms.read_key`; None stores identities as they are.
        blind_first: See `settings.Settings`.
        no_auth: Serve without authentication, even on a public address, and even if the database has tokens.
        openid_connect: See `openid_connect.read_configuration`; None without an identity provider.
        dicom: How the service exchanges images and results with other nodes.
        public_name: See `settings.Settings`.
        open_browser: Open the web UI in this machine's browser.
        echo: Called with each line for the person who started the service.
    Raises:
        UsageError: The address is public and there is no authentication; it cannot be listened on; another process serves the
            data directory; or an option is invalid.
        BundleError, SiteProfileError, StorageError: The model or the data cannot be opened.
    """
    if keep_identities and not pseudonym_key and (keep is None or keep > keep_identities):
        raise UsageError(
            "--keep-identities needs --keep of at most the same age: stored DICOM files contain identities",
            hint="Pass a shorter --keep, or --pseudonymise, which stores images without their headers",
        )
    zone = find_time_zone(time_zone)
    if openid_connect and no_auth:
        raise UsageError("--openid-connect and --no-auth contradict each other")
    provider = _read_provider(openid_connect) if openid_connect else None
    if public_name and not re.fullmatch(_HOST_NAME, public_name):
        raise UsageError(
            f"--public-name {public_name!r} is not a host name",
            hint="Pass only the name, without a scheme, a port or a path, such as images.clinic.example",
        )
    if pseudonym_key and dicom.receivers:
        raise UsageError(
            "--pseudonymise stores no identity, and results cannot be sent without one",
            hint="Set `destinations = []` in the DICOM configuration, or omit --pseudonymise",
        )
    if pseudonym_key and any(webhook.identifiers for webhook in dicom.webhooks):
        raise UsageError(
            "--pseudonymise stores no identifiers, and a webhook asks for them",
            hint="Remove `identifiers = true` from the DICOM configuration, or omit --pseudonymise",
        )
    pseudonymizer = Pseudonymizer(read_key(pseudonym_key)) if pseudonym_key else None
    loaded_model = load_model(
        model,
        operating_point=operating_point,
        threads=1,
        isolated=True,
        require_age=require_age,
        assume=assume,
        site=site,
        prevalence=prevalence,
    )
    faulthandler.enable()  # logs a crash
    with (
        contextlib.closing(loaded_model),
        _listen(host, port) as listener,
        data_directory_lock(folder) if folder else contextlib.nullcontext(),
        _listen_for_dicom(dicom.node) as receiver,
        contextlib.ExitStack() as stack,
    ):
        repository = PredictionRepository(folder, database)
        stack.callback(repository.close)  # if the service does not start; the application closes it otherwise
        require_token = not no_auth and bool(TokenRepository(repository.engine).list())
        if not (require_token or provider or no_auth or (is_loopback(host) and not public_name)):
            raise UsageError(
                f"Refusing to serve on {public_name or host} without authentication",
                hint="Add a token with `pneumoscope tokens add`, or pass --no-auth if a reverse proxy authenticates clients",
            )
        if folder and pseudonymizer:
            is_empty = not (repository.find(Filter(), limit=1).total or repository.unreadable_files.find(limit=0)[1])
            pseudonymizer.require_key_of(folder, is_empty=is_empty)
        elif folder:
            require_no_pseudonyms(folder)
        settings = Settings(
            loopback=is_loopback(host),
            public_name=public_name,
            keep=keep,
            keep_identities=keep_identities,
            blind_first=blind_first,
            time_zone=zone,
            pseudonymizer=pseudonymizer,
            dicom=dicom,
        )
        server = _uvicorn_server(
            create_app(
                loaded_model,
                repository,
                settings,
                require_token=require_token,
                openid_connect=provider,
                dicom_receiver=receiver,
                delivery=bool(dicom.receivers or dicom.webhooks),
            )
        )
        _log_to_stderr()
        address = f"[{host.strip('[]')}]" if ":" in host else host
        url = f"http://{address}:{listener.getsockname()[1]}"
        operating_point_name = loaded_model.operating_point_name
        echo(
            f"{url}  model {loaded_model.card.name}, operating point {operating_point_name}, require age {require_age}"
        )
        if dicom.node and receiver:
            tls = " with TLS" if dicom.node.tls else ""
            echo(f"DICOM node {dicom.node.ae_title} on {dicom.node.host}, port {receiver.port}{tls}")
        if dicom.receivers:
            echo(f"Results are sent to {', '.join(dicom.receivers)}")
        if dicom.webhooks:
            echo(f"Finished studies are reported to {', '.join(webhook.name for webhook in dicom.webhooks)}")
        if assume:
            echo(f"Assumed of all images: {', '.join(assume)}")
        if note := site_note(loaded_model.facts):
            echo(note)
        echo(f"Time zone of the web UI: {zone.key}")
        echo("In-memory storage; discarded on exit" if folder is None else f"Data directory: {folder}")
        if pseudonymizer:
            echo("Identities of patients are stored as pseudonyms; images are stored without their headers")
        if provider:
            echo(f"Clients must authenticate with a token or {provider.display_name}")
        elif require_token:
            echo("Clients must authenticate with a token; see `pneumoscope tokens`")
        echo(loaded_model.notice)
        _warn_of_orphaned_files(len(repository.storage.orphaned))
        if open_browser:  # in a thread: a browser in the terminal would block
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        with _stop_on_signals(server):
            server.run(sockets=[listener])
    echo("Stopped")


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


def _read_provider(file: Path) -> OpenIdConnect:
    from pneumoscope.service.auth.openid_connect import OpenIdConnect, read_configuration  # an extra

    return OpenIdConnect(read_configuration(file))


class _Server(uvicorn.Server):
    """A server that ends the streams of server-sent events before it waits for open requests."""

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
            access_log=False,  # its lines contain URLs, and so names of images
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


def _log_to_stderr() -> None:
    """Print a line for each failed request and for events of the service; no line contains what a client sent but ids."""
    handler = logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(_remove_traceback)
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
    logging.getLogger().addHandler(logging.NullHandler())  # without a handler, Python prints warnings itself
    _LOG.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addFilter(_remove_traceback)
    # It logs invalid characters in forms; the client receives an error.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


def _remove_traceback(record: logging.LogRecord) -> bool:
    """Replace the message and the traceback of an exception, which may contain what a client sent, by its type."""
    if record.exc_info:
        exception_type = record.exc_info[0]
        record.msg, record.args = f"Internal error: {exception_type.__name__ if exception_type else 'unknown'}", ()
        record.exc_info = record.exc_text = None
    return True


@contextlib.contextmanager
def _stop_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """Stop the server on a signal before uvicorn has installed its handlers, and ignore that uvicorn raises it again."""

    def stop(*_: object) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host.strip("[]"), port), family=family)
    except (OSError, UnicodeError, TypeError) as error:  # the latter two if the host name is invalid
        reason = ((isinstance(error, OSError) and error.strerror) or str(error)).partition(" (while ")[0]
        option = "--port" if isinstance(error, OSError) and error.errno in _PORT_ERRORS else "--host"
        raise UsageError(
            f"cannot listen on {host}, port {port}: {reason}", hint=f"Choose another with {option}"
        ) from error
    # Header and body of a response are two packets: Nagle's algorithm would delay the second by 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener
