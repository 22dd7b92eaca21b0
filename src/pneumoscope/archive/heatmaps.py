"""The heatmaps of a shard: a ZIP file with a PNG for each accepted image, named by row number, and a table of maxima.

One file per image would mean millions of files, and a column of the table would make its files a hundred times larger. A ZIP
file can be opened by any program, which can extract single images. The PNG files are layers over the image (see
`inference.saliency.Layer`), without the image itself, and are stored uncompressed. The same heatmaps give the same bytes.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pneumoscope.inference.saliency import Layer

__all__ = ["heatmap_rows", "write_heatmaps"]

_MAXIMA = "maxima.csv"
_NAME = re.compile(r"row-(\d{9,})\.png")
_FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # earliest date of the format, so that bytes do not depend on the time


def write_heatmaps(layers: Iterable[tuple[int, Layer]], notice: str) -> bytes:
    """Return the ZIP file of a shard.

    Args:
        layers: Row numbers and heatmaps.
        notice: Notice of the model, stored as the comment of the file.
    """
    buffer = io.BytesIO()
    maxima = ["row,maximum\n"]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for row, layer in layers:
            file.writestr(zipfile.ZipInfo(f"row-{row:09d}.png", _FIRST_DATE), layer.png)
            maxima.append(f"{row},{layer.maximum!r}\n")
        file.writestr(zipfile.ZipInfo(_MAXIMA, _FIRST_DATE), "".join(maxima))
        file.comment = notice.encode()
    return buffer.getvalue()


def heatmap_rows(content: bytes) -> list[int]:
    """Return the row numbers of the heatmaps in a file."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return [int(match[1]) for name in file.namelist() if (match := _NAME.fullmatch(name))]
