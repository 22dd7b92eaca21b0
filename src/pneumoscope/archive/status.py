"""Status of an archive from its listing and journals, during or after a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pneumoscope.archive.archive_folder import ArchiveFolder
from pneumoscope.archive.journal import count_runtimes
from pneumoscope.archive.listing import Listing

__all__ = ["ArchiveStatus", "SetStatus", "archive_status"]


class SetStatus(NamedTuple):
    """Status of one prediction set.

    Attributes:
        key, model, site, prevalence, operating_point: See `archive_folder.SetSettings`.
        done, failed: Scored images, and how many of them could not be read.
        decisions: Number of images by decision.
        shards: Number of finished shards.
        heatmaps: Number of finished shards with heatmaps.
        last: Time of the last finished shard in UTC, ISO 8601; "" if there is none.
        runtimes: Number of shards by the software that scored them.
        notice: Notice of the model.
    """

    key: str
    model: str
    site: str
    prevalence: float | None
    operating_point: str
    done: int
    failed: int
    decisions: Mapping[str, int]
    shards: int
    heatmaps: int
    last: str
    runtimes: Mapping[str, int]
    notice: str


class ArchiveStatus(NamedTuple):
    """Status of an archive.

    Attributes:
        source: Location of the images.
        rows, shards: Number of listed images and shards.
        sets: Status of each prediction set.
    """

    source: str
    rows: int
    shards: int
    sets: tuple[SetStatus, ...]


def archive_status(path: Path) -> ArchiveStatus:
    """Return the status of an archive without reading shard files; missing files and files of a different size do not count.

    Raises:
        UsageError: The folder is not an archive.
        ArchiveError: The listing or a journal is damaged.
    """
    folder = ArchiveFolder.open(path)
    listing = Listing(folder.listing)
    sets = []
    for each in folder.sets():
        entries = each.finished(listing.shards).values()
        decisions: Counter[str] = Counter()
        for entry in entries:
            decisions.update(entry.decisions)
        sets.append(
            SetStatus(
                key=each.key,
                model=each.settings.model,
                site=each.settings.site,
                prevalence=each.settings.prevalence,
                operating_point=each.settings.operating_point,
                done=sum(entry.rows for entry in entries),
                failed=sum(entry.failed for entry in entries),
                decisions=dict(sorted(decisions.items())),
                shards=len(entries),
                heatmaps=sum(entry.heatmaps is not None for entry in entries),
                last=max((entry.finished for entry in entries), default=""),
                runtimes=count_runtimes(entries),
                notice=each.settings.notice,
            )
        )
    return ArchiveStatus(folder.settings.source, listing.rows, listing.shards, tuple(sets))
