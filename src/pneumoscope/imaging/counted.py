"""Bytes of which a parser reads only so many parts: a small file of millions of empty parts takes it minutes and gigabytes."""

from __future__ import annotations

import io

__all__ = ["Counted"]


class Counted(io.BytesIO):
    """A file in memory that may be read from so often.

    Counting what the parser reads, not what is in the bytes, leaves nothing that the two could understand differently.

    Attributes:
        is_exhausted: more was asked for. Parsers may hide the error of that, and take it for the end of the file.
    """

    def __init__(self, content: bytes, most: int) -> None:
        super().__init__(content)
        self.is_exhausted = False
        self._most = self._left = most

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as from any file.

        Raises:
            ValueError: it was read from too often.
        """
        self._take(1)
        return super().read(size)

    def _take(self, reads: int) -> None:
        self._left -= reads
        if self._left < 0:
            self.is_exhausted = True
            raise ValueError(f"it has far too many parts: more than {self._most:,} reads")
