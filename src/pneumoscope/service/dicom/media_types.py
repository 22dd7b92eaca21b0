"""Choose the media type of a DICOMweb response from the header Accept, or the parameter `accept` (PS3.18 8.7)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from email.message import Message
from typing import NamedTuple

from fastapi import Request
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from starlette.exceptions import HTTPException

__all__ = [
    "DICOM",
    "JSON",
    "JSON_TYPES",
    "OCTETS",
    "MediaRange",
    "accepted_ranges",
    "choose",
    "frame_type",
    "require_dicom",
    "require_frame",
]

DICOM, JSON, OCTETS = "application/dicom", "application/dicom+json", "application/octet-stream"
JSON_TYPES = (JSON, "application/json")
_NATIVE_FRAME = "1.2.840.10008.1.2.1"  # as which uncompressed pixels are sent
_PARTS = re.compile(r'(?:[^,"]|"[^"]*")+')  # separated by commas outside quotes
# Media types of frames by transfer syntax (PS3.18 table 8.7.3-5).
_FRAME_TYPES = (
    ("1.2.840.10008.1.2.5", "image/dicom-rle"),
    ("1.2.840.10008.1.2.4.5", "image/jpeg"),
    ("1.2.840.10008.1.2.4.7", "image/jpeg"),
    ("1.2.840.10008.1.2.4.8", "image/jls"),
    ("1.2.840.10008.1.2.4.9", "image/jp2"),
    ("1.2.840.10008.1.2.4.20", "image/jphc"),
)


class MediaRange(NamedTuple):
    """Media types that a client accepts.

    Attributes:
        name: Such as "multipart/related", "image/*" or "*/*".
        part: Type of the parts of a multipart body; empty if any.
        transfer_syntax: UID; "*" if any, empty if not stated.
    """

    name: str
    part: str
    transfer_syntax: str

    def covers(self, media_type: str) -> bool:
        """Return whether a media type is among them."""
        return _covers(self.name, media_type)


def accepted_ranges(request: Request) -> list[MediaRange]:
    """Return what the client accepts, in its order; all if it does not say."""
    stated = request.query_params.get("accept") or request.headers.get("Accept") or "*/*"
    found = []
    for text in _PARTS.findall(stated):
        message = Message()
        message["Content-Type"] = text.strip()
        name, _, _ = text.partition(";")
        part, syntax, quality = (str(message.get_param(key) or "") for key in ("type", "transfer-syntax", "q"))
        if not re.fullmatch(r"0(\.0*)?", quality):
            found.append(MediaRange(name.strip().lower(), part.lower(), syntax))
    return found


def choose(ranges: Sequence[MediaRange], offered: Sequence[str]) -> str:
    """Return the first offered media type that the client accepts, in the client's order.

    Raises:
        HTTPException: None is accepted (406).
    """
    found = (each for accepted in ranges for each in offered if accepted.covers(each))
    if chosen := next(found, ""):
        return chosen
    raise _not_acceptable(" or ".join(offered))


def require_dicom(ranges: Sequence[MediaRange], transfer_syntaxes: Collection[str], *, single: bool) -> bool:
    """Return whether stored files are sent as a multipart body; as one file otherwise.

    Args:
        ranges: What the client accepts.
        transfer_syntaxes: Of the files, which are not transcoded.
        single: Whether there is one file, which can be sent without a multipart body.
    Raises:
        HTTPException: The client accepts neither, or other transfer syntaxes only (406).
    """
    multipart = [each for each in ranges if each.covers("multipart/related") and each.part in ("", DICOM)]
    bare = [each for each in ranges if single and each.name == DICOM]
    if not multipart and not bare:
        raise _not_acceptable(f'multipart/related; type="{DICOM}"')
    accepted = {each.transfer_syntax for each in (*multipart, *bare)}
    # Without a transfer syntax, a client accepts the default one. It is sent the stored one, as other servers do.
    if not accepted & {"", "*"} and not accepted.issuperset(transfer_syntaxes):
        raise _not_acceptable('the stored transfer syntax; accept transfer-syntax="*"')
    return bool(multipart)


def frame_type(transfer_syntax: str) -> tuple[str, str]:
    """Return the media type and the transfer syntax of a frame that is sent as it is stored."""
    if transfer_syntax in (_NATIVE_FRAME, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        return OCTETS, _NATIVE_FRAME
    return next((name for prefix, name in _FRAME_TYPES if transfer_syntax.startswith(prefix)), OCTETS), transfer_syntax


def require_frame(ranges: Sequence[MediaRange], media_type: str, transfer_syntax: str) -> None:
    """Raise HTTPException (406) if the client does not accept a frame of a media type and transfer syntax."""
    for each in ranges:
        if not each.covers("multipart/related"):
            continue
        if each.transfer_syntax == "*" or (
            each.transfer_syntax in ("", transfer_syntax) and (not each.part or _covers(each.part, media_type))
        ):
            return
    raise _not_acceptable(f'multipart/related; type="{media_type}"; transfer-syntax={transfer_syntax}')


def _covers(accepted: str, media_type: str) -> bool:
    return accepted in ("*/*", media_type, f"{media_type.partition('/')[0]}/*")


def _not_acceptable(offered: str) -> HTTPException:
    return HTTPException(406, f"the client does not accept {offered}, which this resource has")
