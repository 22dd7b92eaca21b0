"""Media types and transfer syntaxes of DICOMweb responses, by the header Accept or the parameter `accept` (PS3.18 8.7)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fastapi import Request
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from pneumoscope.service.api.content_negotiation import MediaRange, accepted_ranges, covers, not_acceptable

__all__ = [
    "DICOM",
    "JSON",
    "JSON_TYPES",
    "OCTETS",
    "frame_type",
    "require_dicom",
    "require_frame",
    "stated_ranges",
]

DICOM, JSON, OCTETS = "application/dicom", "application/dicom+json", "application/octet-stream"
JSON_TYPES = (JSON, "application/json")
_NATIVE_FRAME = "1.2.840.10008.1.2.1"  # as which uncompressed pixels are sent
# Media types of frames by transfer syntax (PS3.18 table 8.7.3-5).
_FRAME_TYPES = (
    ("1.2.840.10008.1.2.5", "image/dicom-rle"),
    ("1.2.840.10008.1.2.4.5", "image/jpeg"),
    ("1.2.840.10008.1.2.4.7", "image/jpeg"),
    ("1.2.840.10008.1.2.4.8", "image/jls"),
    ("1.2.840.10008.1.2.4.9", "image/jp2"),
    ("1.2.840.10008.1.2.4.20", "image/jphc"),
)


def stated_ranges(request: Request) -> list[MediaRange]:
    """Return what the client accepts; see `content_negotiation.accepted_ranges`."""
    return accepted_ranges(request, request.query_params.get("accept"))


def require_dicom(ranges: Sequence[MediaRange], transfer_syntaxes: Collection[str], *, single: bool) -> bool:
    """Return whether stored files are sent as a multipart body; as one file otherwise.

    Args:
        ranges: What the client accepts.
        transfer_syntaxes: Of the files, which are not transcoded.
        single: Whether there is one file, which can be sent without a multipart body.
    Raises:
        HTTPException: The client accepts neither, or other transfer syntaxes only (406).
    """
    accepted = [each for each in ranges if each.quality > 0]
    multipart = [each for each in accepted if each.covers("multipart/related") and _part_type(each) in ("", DICOM)]
    bare = [each for each in accepted if single and each.name == DICOM]
    if not multipart and not bare:
        raise not_acceptable([f'multipart/related; type="{DICOM}"'])
    syntaxes = {_transfer_syntax(each) for each in (*multipart, *bare)}
    # Without a transfer syntax, a client accepts the default one. It is sent the stored one, as other servers do.
    if not syntaxes & {"", "*"} and not syntaxes.issuperset(transfer_syntaxes):
        raise not_acceptable(['the stored transfer syntax; accept transfer-syntax="*"'])
    return bool(multipart)


def frame_type(transfer_syntax: str) -> tuple[str, str]:
    """Return the media type and the transfer syntax of a frame that is sent as it is stored."""
    if transfer_syntax in (_NATIVE_FRAME, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        return OCTETS, _NATIVE_FRAME
    return next((name for prefix, name in _FRAME_TYPES if transfer_syntax.startswith(prefix)), OCTETS), transfer_syntax


def require_frame(ranges: Sequence[MediaRange], media_type: str, transfer_syntax: str) -> None:
    """Raise HTTPException (406) if the client does not accept a frame of a media type and transfer syntax."""
    for each in ranges:
        if each.quality == 0 or not each.covers("multipart/related"):
            continue
        part, syntax = _part_type(each), _transfer_syntax(each)
        if syntax == "*" or (syntax in ("", transfer_syntax) and (not part or covers(part, media_type))):
            return
    raise not_acceptable([f'multipart/related; type="{media_type}"; transfer-syntax={transfer_syntax}'])


def _part_type(accepted: MediaRange) -> str:
    """Return the media type of the parts of a multipart body; empty if any."""
    return accepted.parameters.get("type", "").lower()


def _transfer_syntax(accepted: MediaRange) -> str:
    """Return a UID; "*" if any, empty if not stated."""
    return accepted.parameters.get("transfer-syntax", "")
