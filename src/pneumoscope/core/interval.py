"""A number as every result states it: the value, its interval, the method, the number of images and the seed."""

from __future__ import annotations

import dataclasses

from pneumoscope.core.result_forms import format_limit, with_minus_signs

__all__ = ["Interval"]


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A number with its interval, or the reason why it is undefined.

    Attributes:
        value: Point estimate; None if undefined.
        low, high: Ends of the interval at `level`; None if undefined.
        method: Method of the interval, such as "wilson", "patient bootstrap" or "delong".
        n: Number of images: for sensitivity, those with pneumonia; for precision, those classified as pneumonia.
        level: Nominal coverage, 0 to 1; None for a Venn-Abers interval, which has no confidence level.
        seed: Seed of the bootstrap; None if no random number was drawn.
        reason: Why the value is None, or why its ends are; empty otherwise.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str
    n: int
    level: float | None = 0.95
    seed: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        """Return the value with its ends, such as "0.912 [0.880, 0.940]", or the reason why one of the two is undefined."""
        return format(self, ".3f")

    def __format__(self, style: str) -> str:
        """Return the text of `str`, with numbers in another format, such as ".1%"; see `result_forms.format_limit`."""
        if not style:
            return str(self)
        if self.value is None:
            return f"undefined ({self.reason})"
        if self.low is None or self.high is None:
            return with_minus_signs(f"{self.value:{style}}") + (f" (no interval: {self.reason})" if self.reason else "")
        low, high = (format_limit(limit, style) for limit in (self.low, self.high))
        return with_minus_signs(f"{self.value:{style}} [{low}, {high}]")
