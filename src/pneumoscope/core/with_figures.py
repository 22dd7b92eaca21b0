"""Attach figures and the output folder to records, without making them fields.

Figures are drawn on request from scored images, which the records do not contain.
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
    """Base class of records with figures.

    The data behind the figures and the folder of the record are not fields: they are not written to files, and are lost
    in copies and pickles.
    """

    __slots__ = ("_drawn", "_folder", "_source")

    if TYPE_CHECKING:  # msgspec treats class annotations as fields
        _drawn: Mapping[str, NamedFigure]
        _folder: Path
        _source: Any

    @property
    def figures(self) -> Mapping[str, NamedFigure]:
        """The figures of the report by name, such as "roc", each with a legend; notebooks display them.

        An evaluation is drawn at the operating point `balanced`, or at its first one if it lacks that; a comparison at
        its operating point. `NamedFigure.save` writes a figure to a file, and `NamedFigure.figure` is the matplotlib
        figure.

        Raises:
            UsageError: The record was read from a file, copied or changed, so its images are unknown.
            RunError: A file with the learning curves of the run is missing or damaged.
        """
        if not hasattr(self, "_source"):
            suffix = "_multiclass" if type(self).__name__.startswith("Multiclass") else ""
            raise UsageError(
                f"this {type(self).__name__} has no scored images to draw figures from",
                hint=f"Use the record that `evaluate{suffix}` or `compare{suffix}` returned, or the figures of"
                f" `report{suffix}(runs)`",
            )
        if not hasattr(self, "_drawn"):
            # The drawing layer is above this one, so the import is resolved on first use by the top-level package.
            from pneumoscope import draw_record

            drawn = MappingProxyType(dict(draw_record(self, self._source)))
            object.__setattr__(self, "_drawn", drawn)  # the record is frozen
        return self._drawn


def attach_source(record: _Record, source: Any) -> _Record:
    """Return the record after attaching the data its figures are drawn from; see `reporting.record_figures`."""
    object.__setattr__(record, "_source", source)
    return record


def attach_folder(record: _Record, folder: Path) -> _Record:
    """Return the record after attaching the folder it was written to."""
    object.__setattr__(record, "_folder", folder)
    return record


def written_folder(record: WithFigures) -> Path | None:
    """Return the folder that a record was written to; None if not written, or read from a file, copied or changed."""
    folder: Path | None = getattr(record, "_folder", None)
    return folder
