"""Figures and folders of records: they are not fields of the records.

Figures are drawn on request from scored images, which the records themselves do not contain.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from pneumoscope.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pneumoscope.reporting.named_figure import NamedFigure

__all__ = ["WithFigures", "attach_folder", "attach_source", "written_folder"]

_Record = TypeVar("_Record", bound="WithFigures")


class WithFigures:
    """A record with figures.

    Their source, and the folder of the record, are not fields of the record: they are not written to files, and are lost in
    copies and pickles.
    """

    __slots__ = ("_drawn", "_folder", "_source")

    if TYPE_CHECKING:  # msgspec reads annotations of classes as fields
        _drawn: Mapping[str, NamedFigure]
        _folder: Path
        _source: Any

    @property
    def figures(self) -> Mapping[str, NamedFigure]:
        """The figures of the report by name, such as "roc", each with a legend; a notebook displays a figure.

        An evaluation is drawn at the operating point `balanced`, or at its first one; a comparison at its own.
        `NamedFigure.save` writes a figure to a file, and `NamedFigure.figure` is that of matplotlib.

        Raises:
            UsageError: The record was read from a file, copied or changed, so that its images are unknown.
            RunError: A file of the run, which its learning curves are drawn from, is missing or damaged.
        """
        if not hasattr(self, "_source"):
            suffix = "_multiclass" if type(self).__name__.startswith("Multiclass") else ""
            raise UsageError(
                f"this {type(self).__name__} has no scored images to draw figures from",
                hint=f"Use the record that `evaluate{suffix}` or `compare{suffix}` returned, or the figures of"
                f" `report{suffix}(runs)`",
            )
        if not hasattr(self, "_drawn"):
            # Resolved on first use by the top of the package, because the layer that draws is above this one.
            from pneumoscope import draw_record

            drawn = MappingProxyType(dict(draw_record(self, self._source)))
            object.__setattr__(self, "_drawn", drawn)  # the record is frozen
        return self._drawn


def attach_source(record: _Record, source: Any) -> _Record:
    """Return the record, after stating what its figures are drawn from; see `reporting.record_figures`."""
    object.__setattr__(record, "_source", source)
    return record


def attach_folder(record: _Record, folder: Path) -> _Record:
    """Return the record, after stating the folder that it was written to."""
    object.__setattr__(record, "_folder", folder)
    return record


def written_folder(record: WithFigures) -> Path | None:
    """Return the folder that a record was written to; None if it was not written, or was read from a file, copied or changed."""
    folder: Path | None = getattr(record, "_folder", None)
    return folder
