"""Report of an archive as a self-contained HTML file without scripts or requests, with light, dark and print styles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pneumoscope import __version__
from pneumoscope.archive.archive_folder import ArchiveFolder
from pneumoscope.archive.query import connected
from pneumoscope.archive.sources import open_reader
from pneumoscope.archive.summary import YearScores, summarize_set
from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.prediction_messages import site_note
from pneumoscope.imaging.sandbox.pool import DecodePool
from pneumoscope.reporting.style import COLORS, drawing, new_figure, show_grid
from pneumoscope.reporting.svg import inline_svg
from pneumoscope.reporting.templating import environment, theme, thumbnail_url

__all__ = ["write_report"]

_ROW_HEIGHT, _MARGIN = 28, 64


class _Example(NamedTuple):
    row: int
    decision: str
    rejection_code: str | None
    probability: float | None
    source: str  # data: URL


def write_report(path: Path, out: Path, key: str = "", *, thumbnails: int = 0) -> Path:
    """Write the report of a prediction set and return its path.

    Args:
        path: Folder of the archive.
        out: HTML file to write.
        key: Name or prefix of the set; empty for the only one.
        thumbnails: Number of example images, taken from all decisions in turn and read from the source.

    Raises:
        UsageError: The folder is not an archive, or has several sets.
        StorageError: The file cannot be written.
    """
    summary = summarize_set(path, key)
    stated = [year for year in summary.years if year.year is not None and year.quantiles]
    figure = ""
    if stated:
        with drawing():
            figure = inline_svg(_years_figure(stated), key="years", label="Probability by year of the study")
    page = (
        environment()
        .get_template("archive.html")
        .render(
            s=summary,
            site_note=site_note(summary.settings),
            version=__version__,
            figure=Markup(figure),  # noqa: S704 - written by `inline_svg`
            examples=_examples(path, summary.key, thumbnails) if thumbnails else [],
            theme=theme(),
        )
    )
    write_atomically(out, page)
    return out


def _years_figure(years: Sequence[YearScores]) -> Figure:
    """Return a box plot by year: a line from the 5th to the 95th percentile, a box of the quartiles, and the median."""
    color = COLORS["run-0"][0]
    figure = new_figure(480, _MARGIN + _ROW_HEIGHT * len(years))
    axes: Axes = figure.subplots()
    show_grid(axes, "x")
    for row, year in enumerate(years):
        assert year.quantiles is not None
        p5, p25, p50, p75, p95 = year.quantiles
        axes.plot([p5, p95], [row, row], color=color, linewidth=2)
        axes.barh(row, p75 - p25, left=p25, height=0.5, color=color, linewidth=0)
        axes.plot([p50, p50], [row - 0.34, row + 0.34], color=COLORS["ink"][0], linewidth=2, solid_capstyle="butt")
    axes.set_yticks(range(len(years)), [str(year.year) for year in years], color=COLORS["ink"][0])
    axes.set_ylim(len(years) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_title("Probability of pneumonia")
    return figure


def _examples(path: Path, key: str, count: int) -> list[_Example]:
    """Return examples of each decision in turn, deterministically, skipping unreadable images."""
    folder = ArchiveFolder.open(path)
    reader = open_reader(folder.settings.source, folder.settings.kind)
    with connected(path) as connection:
        rows = connection.execute(
            "SELECT p.row, i.source, p.decision, p.rejection_code, p.probability FROM predictions p"
            " JOIN images i USING (row) WHERE p.current AND p.model = ? AND p.decision IS NOT NULL"
            " ORDER BY row_number() OVER (PARTITION BY p.decision ORDER BY p.sha256, p.row), p.decision LIMIT ?",
            [key, 2 * count],
        ).fetchall()
    found: list[_Example] = []
    with DecodePool(1) as pool:
        for row, name, decision, code, probability in rows:
            if len(found) == count:
                break
            try:
                pixels = pool.decode(reader.read(name), name=name).pixels
            except UnreadableImageError:
                continue
            found.append(_Example(row, decision, code, probability, thumbnail_url(pixels)))
    return sorted(found, key=lambda each: (each.decision, each.row))
