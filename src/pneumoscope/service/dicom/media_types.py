"""Media types and transfer syntaxes of DICOMweb responses, by the Accept header or the `accept` parameter (PS3.18 8.7)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fastapi import Request
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from pneumoscope.service.api.content_negotiation import (
    MediaRange,
    accepted_ranges,
    covers,
    most_specific,
    not_acceptable,
    preferred,
)

__all__ = [
    "DICOM",
    "JSON",
    "JSON_TYPES",
    "OCTETS",
    "accepted_media_ranges",
    "frame_type",
    "require_dicom",
    "require_frame",
]

DICOM, JSON, OCTETS = "application/dicom", "application/dicom+json", "application/octet-stream"
JSON_TYPES = (JSON, "application/json")
_MULTIPART = "multipart/related"
_NATIVE_FRAME = "1.2.840.10008.1.2.1"  # transfer syntax in which uncompressed pixels are sent
# Media types of frames by transfer syntax (PS3.18 table 8.7.3-5).
_FRAME_TYPES = (
    ("1.2.840.10008.1.2.5", "image/dicom-rle"),
    ("1.2.840.10008.1.2.4.5", "image/jpeg"),
    ("1.2.840.10008.1.2.4.7", "image/jpeg"),
    ("1.2.840.10008.1.2.4.8", "image/jls"),
    ("1.2.840.10008.1.2.4.9", "image/jp2"),
    ("1.2.840.10008.1.2.4.20", "image/jphc"),
)


def accepted_media_ranges(request: Request) -> list[MediaRange]:
    """Return the media ranges that the client accepts; see `content_negotiation.accepted_ranges`."""
    return accepted_ranges(request, request.query_params.get("accept"))


def require_dicom(ranges: Sequence[MediaRange], transfer_syntaxes: Collection[str], *, single: bool) -> bool:
    """Return True if stored files are to be sent as a multipart body, False if as a single file.

    Args:
        ranges: The media ranges that the client accepts.
        transfer_syntaxes: Transfer syntaxes of the files, which are not transcoded.
        single: Whether there is only one file, so that it can be sent without a multipart body.
    Raises:
        HTTPException: The client accepts neither form, or not the stored transfer syntaxes (406).
    """
    forms = (_MULTIPART, DICOM) if single else (_MULTIPART,)
    deciding: dict[str, MediaRange | None] = {}
    for form in forms:
        found = [_deciding(ranges, form, DICOM, syntax) for syntax in transfer_syntaxes]
        # All files are sent, so the lowest quality value decides.
        deciding[form] = None if None in found else min(filter(None, found), key=lambda each: each.quality)
    form_of_response = preferred(ranges, deciding)
    if form_of_response is None:
        is_form_accepted = any(
            each.quality > 0 and _covers(each, form, DICOM, _transfer_syntax(each))
            for each in ranges
            for form in forms
            if _transfer_syntax(each)
        )
        needed = 'the stored transfer syntax; accept transfer-syntax="*"'
        raise not_acceptable([needed if is_form_accepted else f'multipart/related; type="{DICOM}"'])
    return form_of_response == _MULTIPART


def frame_type(transfer_syntax: str) -> tuple[str, str]:
    """Return the media type and transfer syntax of a frame, which is sent as stored."""
    if transfer_syntax in (_NATIVE_FRAME, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        return OCTETS, _NATIVE_FRAME
    return next((name for prefix, name in _FRAME_TYPES if transfer_syntax.startswith(prefix)), OCTETS), transfer_syntax


def require_frame(ranges: Sequence[MediaRange], media_type: str, transfer_syntax: str) -> None:
    """Raise HTTPException (406) if the client does not accept a frame of a media type and transfer syntax."""
    deciding = _deciding(ranges, _MULTIPART, media_type, transfer_syntax)
    if deciding is None or deciding.quality == 0:
        raise not_acceptable([f'multipart/related; type="{media_type}"; transfer-syntax={transfer_syntax}'])


def _deciding(ranges: Sequence[MediaRange], form: str, media_type: str, transfer_syntax: str) -> MediaRange | None:
    """Return the media range that decides about a file or frame; None if no range covers it.

    Args:
        ranges: The media ranges that the client accepts.
        form: `_MULTIPART`, or the media type of a response without a multipart body.
        media_type, transfer_syntax: Type and transfer syntax of the file or frame.
    """
    covering = [each for each in ranges if _covers(each, form, media_type, transfer_syntax)]
    return most_specific(covering, lambda each: bool(_part_type(each)) + min(len(_transfer_syntax(each)), 2))


def _covers(accepted: MediaRange, form: str, media_type: str, transfer_syntax: str) -> bool:
    # A range without a transfer syntax means the default one. As other servers do, send the stored one anyway.
    if not accepted.covers(form) or _transfer_syntax(accepted) not in ("", "*", transfer_syntax):
        return False
    if form != _MULTIPART or not _part_type(accepted):
        return True
    # Viewers ask for application/octet-stream even if frames are compressed.
    is_any = media_type != DICOM and _transfer_syntax(accepted) == "*"
    return is_any or covers(_part_type(accepted), media_type)


def _part_type(accepted: MediaRange) -> str:
    """Return the media type of the parts in a multipart body; empty for any type."""
    return accepted.parameters.get("type", "").lower()


def _transfer_syntax(accepted: MediaRange) -> str:
    """Return the transfer syntax UID of a range; "*" for any, empty if not specified."""
    return accepted.parameters.get("transfer-syntax", "")
