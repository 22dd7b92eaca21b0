"""Content negotiation: choose the media type of a response by the Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.message import Message
from typing import NamedTuple

from fastapi import Request
from starlette.exceptions import HTTPException

__all__ = [
    "MediaRange",
    "accepted_ranges",
    "choose",
    "covers",
    "most_specific",
    "not_acceptable",
    "preferred",
]

_RANGES = re.compile(r'(?:[^,"]|"[^"]*")+')  # separated by commas outside quotes


class MediaRange(NamedTuple):
    """One media range of an Accept header.

    Attributes:
        name: Such as "multipart/related", "image/*" or "*/*".
        parameters: All parameters except q; names in lower case.
        quality: The value of q, from 0 (not accepted) to 1.
    """

    name: str
    parameters: Mapping[str, str]
    quality: float

    def covers(self, media_type: str) -> bool:
        """Return whether the range covers a media type."""
        return covers(self.name, media_type)


def covers(name: str, media_type: str) -> bool:
    """Return whether the name of a media range, such as "image/*", covers a media type."""
    return name in ("*/*", media_type, f"{media_type.partition('/')[0]}/*")


def accepted_ranges(request: Request, stated: str | None = None) -> list[MediaRange]:
    """Return the media ranges that a client accepts, in order of preference; without an Accept header, `*/*`.

    Args:
        request: The request.
        stated: A value that replaces the Accept header.
    """
    text = stated or ",".join(request.headers.getlist("Accept"))
    found = [_parse(each) for each in _RANGES.findall(text) if each.strip()]
    return sorted(found or [MediaRange("*/*", {}, 1)], key=lambda each: -each.quality)


def _parse(text: str) -> MediaRange:
    message = Message()
    message["Content-Type"] = text.strip()
    parameters = {key.lower(): str(value) for key, value in message.get_params([])[1:]}
    quality = 1.0
    with contextlib.suppress(ValueError):  # invalid values are ignored
        quality = float(parameters.pop("q", "1"))
    return MediaRange(text.partition(";")[0].strip().lower(), parameters, quality)


def choose(ranges: Sequence[MediaRange], offered: Sequence[str]) -> str:
    """Return the offered media type that the client prefers; ties are broken by the client's order.

    Args:
        ranges: The media ranges that the client accepts; see `accepted_ranges`.
        offered: Media types, preferred first.
    Raises:
        HTTPException: The client accepts none of them (406).
    """
    deciding = {name: most_specific([each for each in ranges if each.covers(name)]) for name in offered}
    chosen = preferred(ranges, deciding)
    if chosen is None:
        raise not_acceptable(offered)
    return chosen


def most_specific(
    covering: Sequence[MediaRange], parameters: Callable[[MediaRange], int] = lambda _: 0
) -> MediaRange | None:
    """Return the range that decides whether a media type is accepted: "application/json;q=0, */*" excludes JSON.

    Args:
        covering: The ranges that cover the type, preferred first. If empty, the result is None.
        parameters: Function that returns how specific the parameters of a range are.
    """
    return max(covering, key=lambda each: (-each.name.count("*"), parameters(each)), default=None)


def preferred(ranges: Sequence[MediaRange], deciding: Mapping[str, MediaRange | None]) -> str | None:
    """Return the media type that the client prefers; None if it accepts none.

    Args:
        ranges: The media ranges that the client accepts; see `accepted_ranges`.
        deciding: The range that decides about each type; None if no range covers it.
    """
    accepted = [(ranges.index(each), name) for name, each in deciding.items() if each and each.quality > 0]
    return min(accepted, key=lambda each: each[0])[1] if accepted else None


def not_acceptable(offered: Iterable[str]) -> HTTPException:
    """Return the error for a client that accepts none of the offered media types (406)."""
    return HTTPException(406, f"the client does not accept {' or '.join(offered)}, which this resource has")
