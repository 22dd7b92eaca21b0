"""Render a dataset audit as a self-contained HTML file: no scripts or requests; light, dark and print styles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.data.check import CONTROLS, DatasetAudit, SizeSummary
from pneumoscope.data.duplicates import DuplicatePair
from pneumoscope.data.hashing import read_image
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.reporting.figures import estimates_figure
from pneumoscope.reporting.style import COLORS, RUN_SLOTS, drawing, new_figure, show_grid
from pneumoscope.reporting.svg import inline_svg
from pneumoscope.reporting.templating import environment, theme, thumbnail_url

__all__ = ["check_data_page"]

_INK = COLORS["ink"][0]
_MAX_PAIRS = 24
_MAX_FILES = 100
_CONTROL_LABELS = {"metadata": "metadata", "border": "border", "center_blanked": "center blanked"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Thumbnail:
    path: str
    source: str  # data: URL; empty if the image cannot be decoded


def check_data_page(audit: DatasetAudit, root: Path) -> str:
    """Return the HTML page of an audit.

    Args:
        audit: Audit of the images below `root`.
        root: Root of the manifest, from which thumbnails of duplicates are read.
    """
    pairs = [(pair, _thumbnails(pair, root)) for pair in audit.near_duplicates.listed[:_MAX_PAIRS]]
    labels = next(iter(audit.images.values()))
    colors = {label: f"run-{index % RUN_SLOTS}" for index, label in enumerate(labels)}
    controls = [(_control_label(name), interval) for name, interval in audit.shortcuts.items()]
    with drawing():
        figures = {
            "images": inline_svg(_images_figure(audit.images, colors), key="images", label="Images by split and label"),
            "shortcuts": inline_svg(
                estimates_figure("Shortcut controls", controls, "AUROC (0.5 is chance)", reference=0.5),
                key="shortcuts",
                label="AUROC of the three shortcut controls",
            ),
            **{
                f"size-{name}": inline_svg(figure, key=f"size-{name}", label=f"{title} by label")
                for name, title, figure in _size_figures(audit.sizes, colors)
            },
        }
    return (
        environment()
        .get_template("check_data.html")
        .render(
            a=audit,
            near=audit.near_duplicates,
            across=sum(audit.near_duplicates.across.values()),
            shared=sum(audit.patients_in_several_splits.values()),
            pairs=pairs,
            files=audit.unreadable[:_MAX_FILES],
            figures={name: Markup(svg) for name, svg in figures.items()},  # noqa: S704 - written by `inline_svg`
            sizes=[name for name in figures if name.startswith("size-")],
            controls=[
                (_control_label(name), CONTROLS[name.partition(", ")[0]], interval)
                for name, interval in audit.shortcuts.items()
            ],
            colors=colors,
            theme=theme(),
            total=sum(n for images in audit.images.values() for n in images.values()),
        )
    )


def _thumbnails(pair: DuplicatePair, root: Path) -> tuple[_Thumbnail, _Thumbnail]:
    return _Thumbnail(pair.a, _data_url(pair.a, root)), _Thumbnail(pair.b, _data_url(pair.b, root))


def _data_url(path: str, root: Path) -> str:
    try:
        radiograph = read_image(root, LabeledImage(path, "", "", "", "", ""))
    except UnreadableImageError:
        return ""
    return thumbnail_url(radiograph.pixels)


def _control_label(name: str) -> str:
    """Return the display name of a control, followed by its class if there are several."""
    control, separator, label = name.partition(", ")
    return f"{_CONTROL_LABELS[control]}{separator}{label}"


def _images_figure(images: Mapping[str, Mapping[str, int]], colors: Mapping[str, str]) -> Figure:
    """Return a bar chart of the images by split and label."""
    rows = [(f"{split} {label}", label, count) for split, labels in images.items() for label, count in labels.items()]
    figure = new_figure(380, 48 + 24 * len(rows))
    axes: Axes = figure.subplots()
    show_grid(axes, "x")
    for row, (_, label, count) in enumerate(rows):
        axes.barh(row, count, height=0.62, color=COLORS[colors[label]][0], linewidth=0)
        axes.annotate(f"{count:,}", (count, row), (5, 0), textcoords="offset points", va="center", fontsize=10)
    _label_rows(axes, [name for name, _, _ in rows])
    axes.set_xlim(0, 1.2 * max(count for _, _, count in rows))
    axes.set_title("Images")
    return figure


def _size_figures(sizes: Mapping[str, SizeSummary], colors: Mapping[str, str]) -> list[tuple[str, str, Figure]]:
    measures = (
        ("width", "Width, pixels", 1),
        ("height", "Height, pixels", 1),
        ("aspect", "Width / height", 1),
        ("bytes", "File size, kB", 1000),
    )
    return [(name, title, _size_figure(name, title, unit, sizes, colors)) for name, title, unit in measures]


def _size_figure(
    name: str, title: str, unit: int, sizes: Mapping[str, SizeSummary], colors: Mapping[str, str]
) -> Figure:
    """Return a box plot by label: 5th to 95th percentile as a line, quartiles as a box, and the median."""
    figure = new_figure(300, 48 + 34 * len(sizes))
    axes: Axes = figure.subplots()
    show_grid(axes, "x")
    for row, (label, size) in enumerate(sizes.items()):
        p5, p25, p50, p75, p95 = (value / unit for value in dataclasses.astuple(getattr(size, name)))
        color = COLORS[colors[label]][0]
        axes.plot([p5, p95], [row, row], color=color, linewidth=2)
        axes.barh(row, p75 - p25, left=p25, height=0.5, color=color, linewidth=0)
        axes.plot([p50, p50], [row - 0.34, row + 0.34], color=_INK, linewidth=2, solid_capstyle="butt")
    _label_rows(axes, list(sizes))
    axes.set_title(title)
    return figure


def _label_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, color=_INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
