"""A figure with its name and text alternative, for pages, notebooks and files."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.reporting.run_data import RunData
from pneumoscope.reporting.style import COLORS, drawing, short
from pneumoscope.reporting.svg import inline_svg, standalone_svg

__all__ = ["DECISION_CURVES", "FILE_FORMATS", "NamedFigure"]

DECISION_CURVES = "decision-curves"
FILE_FORMATS = ("svg", "pdf", "png")
_FILE_RESOLUTION, _SCREEN_RESOLUTION = 300, 144  # dpi of a PNG; 72 dpi is the size of the SVG
# No timestamps, so that the same input gives the same bytes.
_METADATA = {
    "pdf": {"CreationDate": None, "Creator": "pneumoscope", "Producer": None},
    "png": {"Software": "pneumoscope"},
}


@dataclasses.dataclass(frozen=True)
class NamedFigure:
    """A figure with its name and text alternative.

    Attributes:
        figure: The matplotlib figure.
        key: Name of the figure, used as prefix of ids in a page and as file name; letters, digits and hyphens.
        label: Text alternative.
        legend: Whether runs are distinguished by color, so that the figure needs a legend. Pages have a shared legend.
    """

    figure: Figure
    key: str
    label: str
    legend: bool = False

    def __html__(self) -> str:
        """Return the figure as inline SVG. Must be called within `style.drawing()`."""
        return inline_svg(self.figure, key=self.key, label=self.label)

    def _repr_svg_(self) -> str:
        with drawing():
            return standalone_svg(self.figure, label=self.label)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return the figure, with its size in screen pixels, for notebook viewers that cannot display SVG."""
        width, height = self.figure.get_size_inches() * 72
        return self._raster("png", _SCREEN_RESOLUTION), {"width": round(width), "height": round(height)}

    def save(self, path: str | Path) -> Path:
        """Write the figure to an SVG, PDF or PNG file (300 dpi), and return its path.

        Args:
            path: The file; its extension selects the format.

        Raises:
            UsageError: The extension is not supported.
            StorageError: The file cannot be written.
        """
        path = Path(path)
        form = path.suffix.lower().removeprefix(".")
        if form not in FILE_FORMATS:
            raise UsageError(
                f"a figure cannot be saved as {str(path)!r}",
                hint=f"Choose a name that ends with {', '.join('.' + each for each in FILE_FORMATS)}",
            )
        return write_atomically(path, self._repr_svg_() if form == "svg" else self._raster(form, _FILE_RESOLUTION))

    def _raster(self, form: str, resolution: int) -> bytes:
        buffer = io.BytesIO()
        with drawing():
            self.figure.savefig(
                buffer, format=form, dpi=resolution, facecolor=COLORS["surface"][0], metadata=_METADATA[form]
            )
        return buffer.getvalue()

    def add_legend(self, runs: Sequence[RunData]) -> None:
        """Add a legend of the runs below the figure, if it needs one."""
        if not self.legend:
            return
        lines = [Line2D([], [], color=run.style.color, linestyle=run.style.line) for run in runs]
        names = [short(run.summary.name) for run in runs]
        if self.key == DECISION_CURVES:
            lines.append(Line2D([], [], color=COLORS["muted"][0], linestyle=(0, (2, 3))))
            names.append("treat all")
        with drawing():
            self.figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
