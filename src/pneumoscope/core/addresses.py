"""Check the addresses that patient data and secrets are sent to: https, or http on this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

__all__ = ["is_loopback", "origin", "require_base_url", "require_encrypted", "require_https"]


def is_loopback(host: str) -> bool:
    """Return whether a host is reachable only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_https(url: str) -> str:
    """Return an address without its trailing slash.

    Raises:
        ValueError: The scheme is neither https nor http to this machine; or the address contains a user name or a
            fragment (a fragment is never sent).
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("must not contain a user name or a password; write them in files")
    if "#" in url:
        raise ValueError("must not contain a fragment: no #")
    return require_encrypted(url)


def require_encrypted(url: str) -> str:
    """Return an address without its trailing slash.

    Raises:
        ValueError: The scheme is neither https nor http to this machine.
    """
    parts = urlsplit(url)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))):
        raise ValueError("must be an https:// address")
    return url.rstrip("/")


def require_base_url(url: str) -> str:
    """Return the base URL of a DICOMweb service, checked with `require_https`."""
    if "?" in url:
        raise ValueError("must not contain a query: no ?")
    return require_https(url)


def origin(url: str) -> str:
    """Return scheme, host and port of an address, without the path, which may contain a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
