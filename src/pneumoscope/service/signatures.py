"""Signatures for other programs: Standard Webhooks for events, HTTP Message Signatures (RFC 9421) for responses.

Both use HMAC-SHA-256 with a secret shared with the receiver. A signature proves to the receiver the origin and
integrity of the content, but proves nothing to a third party.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from pneumoscope.core.errors import UsageError

__all__ = ["WEBHOOK_ID", "WEBHOOK_SIGNATURE", "WEBHOOK_TIMESTAMP", "read_secret", "response_headers", "webhook_headers"]

# Header names of Standard Webhooks 1.0.
WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE = "Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"

_PREFIX = "whsec_"
_MIN_BYTES = 24
_LABEL = "pneumoscope"  # label of the signature of a response


def read_secret(file: Path) -> bytes:
    """Return the secret in a file, in the format of Standard Webhooks: "whsec_" followed by Base64.

    Raises:
        UsageError: The file cannot be read, is readable by other users, or does not contain a secret of at least 24
            bytes.
    """
    hint = f"Create one: (umask 077; echo {_PREFIX}$(openssl rand -base64 32) > {file}); and give the receiver a copy"
    try:
        mode, text = file.stat().st_mode, file.read_text(encoding="ascii").strip()
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True) if text.startswith(_PREFIX) else b""
    except OSError as error:
        raise UsageError(f"cannot read the secret file {str(file)!r}: {error.strerror or error}", hint=hint) from error
    except (UnicodeDecodeError, binascii.Error):
        secret, mode = b"", 0
    if mode & 0o077:
        raise UsageError(f"the secret file {str(file)!r} is readable by other users", hint=f"chmod 600 {file}")
    if len(secret) < _MIN_BYTES:
        raise UsageError(
            f"the secret file {str(file)!r} has no {_PREFIX!r} with the Base64 of at least {_MIN_BYTES} bytes",
            hint=hint,
        )
    return secret


def webhook_headers(secret: bytes, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a webhook request.

    Args:
        secret: See `read_secret`.
        id: Identifies the event; the same for every attempt.
        timestamp: Time of the attempt, seconds since 1970. Receivers reject old requests, which may be replayed.
        body: The document.
    Source: Standard Webhooks 1.0, section Signature scheme.
    """
    signature = _sign(secret, b".".join([id.encode(), str(timestamp).encode(), body]))
    return {WEBHOOK_ID: id, WEBHOOK_TIMESTAMP: str(timestamp), WEBHOOK_SIGNATURE: f"v1,{signature}"}


def response_headers(
    secret: bytes, status: int, headers: Mapping[str, str], body: bytes, created: int
) -> dict[str, str]:
    """Return the headers that sign a response: Content-Digest (RFC 9530), Signature-Input and Signature (RFC 9421).

    Args:
        secret: See `read_secret`.
        status: Status of the response.
        headers: Headers to sign, by lower-case name.
        body: Body of the response.
        created: Time of the signature, seconds since 1970.
    """
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
    signed = {"@status": str(status), **headers, "content-digest": digest}
    names = " ".join(f'"{name}"' for name in signed)
    parameters = f'({names});created={created};keyid="{_LABEL}";alg="hmac-sha256"'
    lines = [*(f'"{name}": {value}' for name, value in signed.items()), f'"@signature-params": {parameters}']
    signature = _sign(secret, "\n".join(lines).encode())
    return {
        "Content-Digest": digest,
        "Signature-Input": f"{_LABEL}={parameters}",
        "Signature": f"{_LABEL}=:{signature}:",
    }


def _sign(secret: bytes, content: bytes) -> str:
    return base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
