"""The state of an archive, from its listing and its journals, while it is scored or afterwards."""

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
    """The state of one set of predictions.

    Attributes:
        key, model, site, prevalence, operating_point: See `archive_folder.SetSettings`.
        done, failed: Images that are scored, and those of them that could not be read.
        decisions: Number of images by decision.
        shards: Finished shards.
        heatmaps: Finished shards with heatmaps.
        last: Time of the last shard, UTC, ISO 8601; "" if there is none.
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
    """The state of an archive.

    Attributes:
        source: Location of the images.
        rows, shards: Listed images and shards.
        sets: One for each model with its settings.
    """

    source: str
    rows: int
    shards: int
    sets: tuple[SetStatus, ...]


def archive_status(path: Path) -> ArchiveStatus:
    """Return the state of an archive. Files of shards are not read; those that are missing or have another size do not count.

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
