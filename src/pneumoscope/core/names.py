"""Compare typed names with known names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["closest_name", "differ_in_number"]

_NUMBER = re.compile(r"\d+|(?<![^\W_])[ivx]+(?![^\W_])")  # in a lower-case name; Roman numerals as whole words


def closest_name(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known name most similar to a name, ignoring case; "" if none is similar.

    Args:
        name: The name.
        known: The known names.
        cutoff: Smallest similarity, 0 to 1; see `difflib.get_close_matches`.
    """
    by_case = {each.casefold(): each for each in reversed(list(known))}
    closest = difflib.get_close_matches(name.casefold(), by_case, n=1, cutoff=cutoff)
    return by_case[closest[0]] if closest else ""


def differ_in_number(a: str, b: str) -> bool:
    """Return whether two names differ only in digits or Roman numerals, like names of grades and types."""
    words = [_NUMBER.sub("0", name.casefold()) for name in (a, b)]
    return words[0] == words[1] and a.casefold() != b.casefold()
