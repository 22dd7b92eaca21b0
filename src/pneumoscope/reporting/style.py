"""Style of all figures: colors, fonts and grid, without changing matplotlib's global state.

Figures are drawn in the light colors. The style sheet of a page or a standalone SVG maps them to dark ones, so that a
figure copied from either remains valid. A run has the same color and dash pattern in every figure.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "GROUP_STYLE",
    "RUN_SLOTS",
    "RunStyle",
    "drawing",
    "new_figure",
    "run_style",
    "short",
    "show_grid",
]

# name: (light, dark). Light values are distinct, so that a style sheet can map each of them. Run colors are
# distinguishable with the three common kinds of color blindness (see tests/reporting/test_style.py).
COLORS = {
    "ink": ("#1c1e21", "#e8e9ec"),
    "muted": ("#5b6270", "#a5acb8"),
    "grid": ("#e4e6ea", "#30343c"),
    "surface": ("#ffffff", "#17191d"),
    "run-0": ("#1f58d6", "#4a82f5"),
    "run-1": ("#e76b05", "#fb8a2e"),
    "run-2": ("#0a7c58", "#58d6a3"),
    "run-3": ("#89217f", "#df7dd6"),
    "run-4": ("#7e5a14", "#e6d97e"),
    "run-5": ("#2298d3", "#c9e2f3"),
    "run-6": ("#741a1d", "#d6423f"),
    "run-7": ("#7a8194", "#7f858c"),
}
RUN_SLOTS = 8
_DASHES: tuple[tuple[float, ...], ...] = ((), (5.0, 1.6), (1.4, 1.4), (6.0, 1.6, 1.4, 1.6))
_MAX_NAME_LENGTH = 20

_RC: Any = {
    # Keep text as text: files are small, and text is selectable and uses the browser's font.
    "svg.fonttype": "none",
    "svg.hashsalt": "pneumoscope",
    # Do not parse a run name such as "$x$" as a formula.
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 10.5,
    "axes.labelcolor": COLORS["muted"][0],
    "axes.titlecolor": COLORS["ink"][0],
    "axes.edgecolor": COLORS["muted"][0],
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": COLORS["muted"][0],
    "ytick.color": COLORS["muted"][0],
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": COLORS["grid"][0],
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "text.color": COLORS["ink"][0],
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify": True,
}


@dataclasses.dataclass(frozen=True, slots=True)
class RunStyle:
    """Style of one run in every figure.

    Attributes:
        name: Key in `COLORS`.
        color: Light value of the color.
        dash: Lengths of dashes and gaps in line widths; empty for a solid line.
    """

    name: str
    color: str
    dash: tuple[float, ...]

    @property
    def line(self) -> Literal["-"] | tuple[float, tuple[float, ...]]:
        """The dash pattern as a matplotlib `linestyle`."""
        return (0, self.dash) if self.dash else "-"


# Style of the mean of a group, whose runs have their styles.
GROUP_STYLE = RunStyle("muted", COLORS["muted"][0], ())


def run_style(index: int) -> RunStyle:
    """Return the style of the run at an index of a comparison; the first 32 styles differ."""
    name = f"run-{index % RUN_SLOTS}"
    return RunStyle(name, COLORS[name][0], _DASHES[(index + index // RUN_SLOTS) % len(_DASHES)])


def short(name: str, length: int = _MAX_NAME_LENGTH) -> str:
    """Return the name of a run or class, truncated to fit a figure; tables show it in full."""
    return name if len(name) <= length else name[: length - 1] + "…"


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the style to figures drawn and saved within this context."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        # The bundled font only measures text, which the browser renders, so missing glyphs do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure with a constrained layout.

    Args:
        width, height: Size in SVG units, which are CSS pixels if the figure is not scaled.
    """
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    figure.get_layout_engine().set(w_pad=4 / 72, h_pad=4 / 72)  # type: ignore[union-attr,call-arg]
    return figure


def show_grid(axes: Axes, axis: str = "both") -> None:
    """Show grid lines behind the data instead of tick marks."""
    axes.grid(True, axis=axis)  # type: ignore[arg-type]
    axes.tick_params(length=0)
