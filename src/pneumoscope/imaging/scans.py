"""In how many scans a JPEG comes: each goes over all pixels again, so that a small file with many of them takes minutes."""

from __future__ import annotations

__all__ = ["MAX_SCANS", "scans_of_jpeg"]

MAX_SCANS = 100  # encoders make about 10 of a progressive image


def scans_of_jpeg(content: bytes) -> int:
    """At most how many scans there are: no FF DA is among coded pixels, and by chance a few among what describes them."""
    return content.count(b"\xff\xda")
