"""Check the configuration at start-up: credential and certificate files of other servers, and host names."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import read_error_reason
from pneumoscope.service.dicom.configuration import DicomConfiguration, Webhook, WebServer

__all__ = ["require_files", "require_server_files", "unresolved_hosts", "warn_of_unresolved_hosts"]

_LOG = logging.getLogger("pneumoscope.service")


def require_files(configuration: DicomConfiguration) -> None:
    """Check the files of destinations and webhooks. Those of sources are only read by `pull`, perhaps on another machine.

    Raises:
        UsageError: A file cannot be used; see `require_server_files`.
    """
    for server in _servers(configuration):
        require_server_files(server)


def require_server_files(server: WebServer | Webhook) -> None:
    """Check a server's files with password, token and CA certificates.

    Raises:
        UsageError: A file cannot be read, is empty, or contains no certificate. The message names the file.
    """
    if isinstance(server, WebServer):
        for setting in ("password_file", "token_file"):
            if file := getattr(server, setting):
                _require_credential(file, f"{setting} of {server.name}")
    if server.ca_file:
        _require_certificates(server.ca_file, f"ca_file of {server.name}")


def _require_credential(file: Path, setting: str) -> None:
    from pneumoscope.dicomweb.session import read_credential  # needs requests, of the extra [pacs]

    try:
        credential = read_credential(file)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, setting, error) from error
    except ValueError as error:
        raise UsageError(f"{error} ({setting})", hint="Write nothing but the secret into it") from error
    if not credential:
        raise UsageError(f"the file {str(file)!r} is empty ({setting})", hint="Write the secret into it")


def _require_certificates(file: Path, setting: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as error:
        raise UsageError(
            f"the file {str(file)!r} contains no certificate ({setting})",
            hint="Put the CA certificates into it (PEM)",
        ) from error
    except OSError as error:
        raise _unreadable(file, setting, error) from error


def _unreadable(file: Path, setting: str, error: OSError | UnicodeDecodeError) -> UsageError:
    return UsageError(
        f"cannot read the file {str(file)!r} ({setting}): {read_error_reason(error)}",
        hint="Create it, and let the user who runs this command read it",
    )


def warn_of_unresolved_hosts(configuration: DicomConfiguration) -> None:
    """Log host names that cannot be resolved, from a separate thread because a name server may be slow.

    This is not an error: the other machine or the name server may start later.
    """
    threading.Thread(target=_log_unresolved_hosts, args=(configuration,), name="resolve-hosts", daemon=True).start()


def _log_unresolved_hosts(configuration: DicomConfiguration) -> None:
    for name, host in unresolved_hosts(configuration):
        _LOG.warning("The host name %s of %s has no address now", ascii(host), name)


def unresolved_hosts(configuration: DicomConfiguration) -> Iterator[tuple[str, str]]:
    """Yield the name and host of each peer, destination and webhook whose host cannot be resolved."""
    for peer in configuration.peers:
        if not _is_resolved(peer.host):
            yield peer.name, peer.host
    for server in _servers(configuration):
        host = urlsplit(server.url or "").hostname
        if server.name and host and not _is_resolved(host):
            yield server.name, host


def _servers(configuration: DicomConfiguration) -> list[WebServer | Webhook]:
    return [*configuration.destinations, *configuration.webhooks]


def _is_resolved(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False
