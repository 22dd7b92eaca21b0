"""Addresses to which patient data and secrets may go: those of https, and those of this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

__all__ = ["is_loopback", "origin", "require_base_url", "require_encrypted", "require_https"]


def is_loopback(host: str) -> bool:
    """Return whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_https(url: str) -> str:
    """Return an address without a slash at its end.

    Raises:
        ValueError: The scheme is not https, except for an http address of this machine; or the address has a user name, or a
            fragment, which is never sent.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("must not contain a user name or a password; write them in files")
    if "#" in url:
        raise ValueError("must not contain a fragment: no #")
    return require_encrypted(url)


def require_encrypted(url: str) -> str:
    """Return an address without a slash at its end.

    Raises:
        ValueError: The scheme is not https, except for an http address of this machine.
    """
    parts = urlsplit(url)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))):
        raise ValueError("must be an https:// address")
    return url.rstrip("/")


def require_base_url(url: str) -> str:
    """Return the address of a DICOMweb service, below which its resources are; see `require_https`."""
    if "?" in url:
        raise ValueError("must not contain a query: no ?")
    return require_https(url)


def origin(url: str) -> str:
    """Return scheme, host and port of an address that `require_https` returned: without a path, which may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
