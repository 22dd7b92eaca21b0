"""Choose the media type of a response from the header Accept (RFC 9110, 12.5.1)."""

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
    """Media types that a client accepts.

    Attributes:
        name: Such as "multipart/related", "image/*" or "*/*".
        parameters: All except q; names in lower case.
        quality: From 0, not accepted, to 1.
    """

    name: str
    parameters: Mapping[str, str]
    quality: float

    def covers(self, media_type: str) -> bool:
        """Return whether a media type is among them."""
        return covers(self.name, media_type)


def covers(name: str, media_type: str) -> bool:
    """Return whether the name of a media range, such as "image/*", covers a media type."""
    return name in ("*/*", media_type, f"{media_type.partition('/')[0]}/*")


def accepted_ranges(request: Request, stated: str | None = None) -> list[MediaRange]:
    """Return what a client accepts, preferred first, those of equal quality in its order; all if it does not say.

    Args:
        request: With the header Accept.
        stated: A value that takes the place of the header.
    """
    text = stated or ",".join(request.headers.getlist("Accept"))
    found = [_parse(each) for each in _RANGES.findall(text) if each.strip()]
    return sorted(found or [MediaRange("*/*", {}, 1)], key=lambda each: -each.quality)


def _parse(text: str) -> MediaRange:
    message = Message()
    message["Content-Type"] = text.strip()
    parameters = {key.lower(): str(value) for key, value in message.get_params([])[1:]}
    quality = 1.0
    with contextlib.suppress(ValueError):  # a value that is not a number is ignored
        quality = float(parameters.pop("q", "1"))
    return MediaRange(text.partition(";")[0].strip().lower(), parameters, quality)


def choose(ranges: Sequence[MediaRange], offered: Sequence[str]) -> str:
    """Return the offered media type that the client prefers; of those that it prefers equally, the first in its order.

    Args:
        ranges: What the client accepts; see `accepted_ranges`.
        offered: Media types, preferred first.
    Raises:
        HTTPException: None is accepted (406).
    """
    deciding = {name: most_specific([each for each in ranges if each.covers(name)]) for name in offered}
    chosen = preferred(ranges, deciding)
    if chosen is None:
        raise not_acceptable(offered)
    return chosen


def most_specific(
    covering: Sequence[MediaRange], parameters: Callable[[MediaRange], int] = lambda _: 0
) -> MediaRange | None:
    """Return the range that decides about a media type: "application/json;q=0, */*" excludes JSON.

    Args:
        covering: The ranges that cover the type, preferred first; None is returned if there is none.
        parameters: Returns how specific the parameters of a range are.
    """
    return max(covering, key=lambda each: (-each.name.count("*"), parameters(each)), default=None)


def preferred(ranges: Sequence[MediaRange], deciding: Mapping[str, MediaRange | None]) -> str | None:
    """Return the media type that the client prefers; None if it accepts none.

    Args:
        ranges: What the client accepts; see `accepted_ranges`.
        deciding: The range that decides about each type; None for one that is not accepted.
    """
    accepted = [(ranges.index(each), name) for name, each in deciding.items() if each and each.quality > 0]
    return min(accepted, key=lambda each: each[0])[1] if accepted else None


def not_acceptable(offered: Iterable[str]) -> HTTPException:
    """Return the error of a client that accepts none of the media types that a resource has (406)."""
    return HTTPException(406, f"the client does not accept {' or '.join(offered)}, which this resource has")
