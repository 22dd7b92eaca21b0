"""Settings of the DICOM node and its peers."""

from __future__ import annotations

import dataclasses
import re
import ssl
from pathlib import Path

from pneumoscope.core.errors import UsageError
from pneumoscope.service.auth.users import validate_name

__all__ = [
    "CANNOT_UNDERSTAND",
    "OUT_OF_RESOURCES",
    "PROCESSING_FAILURE",
    "SUCCESS",
    "DicomPeer",
    "DicomSettings",
    "image_name",
    "parse_peer",
    "tls_contexts",
]

# Status codes of C-STORE (PS3.4 B.2.3) and DIMSE (PS3.7 C); STOW-RS uses them as failure reasons.
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND, PROCESSING_FAILURE = 0x0000, 0xA700, 0xC000, 0x0110

_UID = re.compile(r"[0-9.]{1,64}")
_PEER = re.compile(r"(?P<name>[^=@:]+)=(?P<ae_title>[^=@]+)@(?P<host>\[[^\]]+\]|[^=@:\[\]]+):(?P<port>[0-9]{1,5})")
# Value representation AE (PS3.5 6.2), without leading or trailing spaces.
_AE_TITLE = re.compile(r"(?! )[\x20-\x5b\x5d-\x7e]{1,16}(?<! )")


@dataclasses.dataclass(frozen=True, slots=True)
class DicomPeer:
    """Another DICOM node.

    Attributes:
        name: Identifies the peer in the audit log.
        ae_title: AE title of the peer.
        host: Host name or address; the peer must also connect from it.
        port: Port on which it listens.
    """

    name: str
    ae_title: str
    host: str
    port: int

    def __str__(self) -> str:
        """Return the name with the address, for logs and errors."""
        return f"{self.name} ({self.ae_title} at {self.host}, port {self.port})"


@dataclasses.dataclass(frozen=True, slots=True)
class DicomSettings:
    """Settings of the DICOM node.

    Attributes:
        host, port: Address to listen on; port 0 selects a free port.
        ae_title: Application entity title, which peers must call.
        peers: Nodes that may connect.
        tls, client_tls: TLS contexts for the server and client roles; None without TLS.
        max_bytes: Maximum size of an instance.
        max_total_bytes: Maximum total size of instances received but not yet stored.
        max_associations: Maximum number of concurrent associations.
        timeout: Seconds after which a silent peer is disconnected.
    """

    host: str
    port: int
    ae_title: str
    peers: tuple[DicomPeer, ...]
    tls: ssl.SSLContext | None = None
    client_tls: ssl.SSLContext | None = None
    max_bytes: int = 256 * 2**20
    max_total_bytes: int = 2**30
    max_associations: int = 16
    timeout: float = 30

    def __post_init__(self) -> None:
        """Raise UsageError if a setting is invalid."""
        if not _AE_TITLE.fullmatch(self.ae_title):
            raise _invalid_ae_title(self.ae_title)
        if not self.peers:
            raise UsageError(
                "--dicom-port without a peer: no node could connect",
                hint="Name each node that may send images: --dicom-peer PACS=ORTHANC@10.0.0.5:4242",
            )


def image_name(uid: str) -> str:
    """Return the name of an image by its SOP Instance UID; "DICOM instance" if the UID is invalid (PS3.5 9.1)."""
    return uid if _UID.fullmatch(uid) else "DICOM instance"


def parse_peer(text: str) -> DicomPeer:
    """Return the peer described by a text such as "PACS=ORTHANC@10.0.0.5:4242".

    Raises:
        UsageError: The text is malformed, or a part of it is invalid.
    """
    match = _PEER.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise UsageError(
            f"{text[:120]!r} is not a DICOM peer", hint="Write NAME=AET@HOST:PORT, such as PACS=ORTHANC@10.0.0.5:4242"
        )
    validate_name(match["name"])
    if not _AE_TITLE.fullmatch(match["ae_title"]):
        raise _invalid_ae_title(match["ae_title"])
    return DicomPeer(match["name"], match["ae_title"], match["host"].strip("[]"), int(match["port"]))


def tls_contexts(certificate: Path, key: Path, peer_ca: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return TLS contexts for a server that requires client certificates and for a client that presents the same certificate.

    The profile is BCP 195 (PS3.15 B.9): TLS 1.2 or newer. The client does not verify host names, because certificates
    of DICOM nodes often contain none and only the peers' CAs are trusted.

    Args:
        certificate: Certificate of the service with its intermediate certificates (PEM).
        key: Private key of the certificate (PEM).
        peer_ca: CA certificates for verifying peers (PEM).
    Raises:
        UsageError: A file cannot be read or is not a certificate, or the key does not belong to the certificate.
    """
    server, client = (
        _tls_context(protocol, certificate, key, peer_ca)
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    return server, client


def _tls_context(protocol: int, certificate: Path, key: Path, peer_ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    for file in (certificate, key, peer_ca):
        try:
            file.read_bytes()
        except OSError as error:  # the error of `load_cert_chain` does not name the file
            raise UsageError(
                f"cannot read the TLS file {str(file)!r} of the DICOM node: {error.strerror or error}",
                hint="Create it, and let the user who runs the service read it",
            ) from error
    try:
        # Without a password, an encrypted key would prompt for one on the terminal.
        context.load_cert_chain(certificate, key, password=b"")
        context.load_verify_locations(peer_ca)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"the TLS certificate or key of the DICOM node cannot be used: {error}",
            hint="Use PEM files: tls_certificate, tls_key and tls_client_ca of [node], or --dicom-tls CERTIFICATE KEY CLIENT_CA",
        ) from error
    return context


def _invalid_ae_title(text: str) -> UsageError:
    return UsageError(
        f"{text[:40]!r} is not an AE title",
        hint="Use 1 to 16 ASCII characters, without backslash and spaces at the ends",
    )
