"""Media types and transfer syntaxes of DICOMweb responses, by the header Accept or the parameter `accept` (PS3.18 8.7)."""

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
    "frame_type",
    "require_dicom",
    "require_frame",
    "stated_ranges",
]

DICOM, JSON, OCTETS = "application/dicom", "application/dicom+json", "application/octet-stream"
JSON_TYPES = (JSON, "application/json")
_MULTIPART = "multipart/related"
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
    forms = (_MULTIPART, DICOM) if single else (_MULTIPART,)
    deciding: dict[str, MediaRange | None] = {}
    for form in forms:
        found = [_deciding(ranges, form, DICOM, syntax) for syntax in transfer_syntaxes]
        # All files are sent, so the one that is accepted least decides.
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
    """Return the media type and the transfer syntax of a frame that is sent as it is stored."""
    if transfer_syntax in (_NATIVE_FRAME, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        return OCTETS, _NATIVE_FRAME
    return next((name for prefix, name in _FRAME_TYPES if transfer_syntax.startswith(prefix)), OCTETS), transfer_syntax


def require_frame(ranges: Sequence[MediaRange], media_type: str, transfer_syntax: str) -> None:
    """Raise HTTPException (406) if the client does not accept a frame of a media type and transfer syntax."""
    deciding = _deciding(ranges, _MULTIPART, media_type, transfer_syntax)
    if deciding is None or deciding.quality == 0:
        raise not_acceptable([f'multipart/related; type="{media_type}"; transfer-syntax={transfer_syntax}'])


def _deciding(ranges: Sequence[MediaRange], form: str, media_type: str, transfer_syntax: str) -> MediaRange | None:
    """Return the range that decides about a file or frame in a form; None if none covers it.

    Args:
        ranges: What the client accepts.
        form: `_MULTIPART`, or the media type for one without a multipart body.
        media_type, transfer_syntax: Of the file or the frame.
    """
    covering = [each for each in ranges if _covers(each, form, media_type, transfer_syntax)]
    return most_specific(covering, lambda each: bool(_part_type(each)) + min(len(_transfer_syntax(each)), 2))


def _covers(accepted: MediaRange, form: str, media_type: str, transfer_syntax: str) -> bool:
    # Without a transfer syntax, a client accepts the default one. It is sent the stored one, as other servers do.
    if not accepted.covers(form) or _transfer_syntax(accepted) not in ("", "*", transfer_syntax):
        return False
    if form != _MULTIPART or not _part_type(accepted):
        return True
    # Viewers state octets for the frames of any transfer syntax.
    is_any = media_type != DICOM and _transfer_syntax(accepted) == "*"
    return is_any or covers(_part_type(accepted), media_type)


def _part_type(accepted: MediaRange) -> str:
    """Return the media type of the parts of a multipart body; empty if any."""
    return accepted.parameters.get("type", "").lower()


def _transfer_syntax(accepted: MediaRange) -> str:
    """Return a UID; "*" if any, empty if not stated."""
    return accepted.parameters.get("transfer-syntax", "")
