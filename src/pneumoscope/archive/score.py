"""Score an archive: list the source, score unfinished shards, and enter each of them in the journal.

A shard is written to a temporary file, flushed to disk, renamed, and then entered with its hash. A kill at any time therefore
only loses the shards in flight, and shards in the journal are complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pneumoscope.archive.archive_folder import ArchiveFolder, PredictionSet, SetSettings
from pneumoscope.archive.journal import Entry, Runtime, StoredFile, append_entry, count_runtimes
from pneumoscope.archive.listing import Growth, ListedShard, Listing, write_skipped
from pneumoscope.archive.local_engine import run_locally
from pneumoscope.archive.model_package import pack_model
from pneumoscope.archive.progress import Progress, ProgressCounter
from pneumoscope.archive.ray_engine import RayJob, run_on_ray
from pneumoscope.archive.scoring import ShardResult, current_runtime, score_shard
from pneumoscope.archive.sources import Source
from pneumoscope.core.errors import StorageError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.inference.discovery import DiscoveredImages
from pneumoscope.inference.model import load_model

__all__ = ["Engine", "Listed", "Scored", "score_archive"]

Engine = Literal["local", "ray"]


class Listed(NamedTuple):
    """The archive at the start of a run.

    Attributes:
        rows, shards: Images and shards in the archive.
        finished: Shards finished by earlier runs.
        growth: Changes in the source since the last run.
        skipped: Number of skipped files by reason with the first names; "" if there are none.
        others: Number of finished shards by the software that scored them, excluding the software of this process.
    """

    rows: int
    shards: int
    finished: int
    growth: Growth
    skipped: str
    others: Mapping[str, int]


class Scored(NamedTuple):
    """Prediction set after a run.

    Attributes:
        rows, done: Images in the archive, and how many are scored.
        failed: Scored images that could not be read.
        decisions: Number of images by decision.
        shards: Shards finished by this run.
        key: Name of the set.
        notice: Notice of the model.
        runtimes: Number of shards by the software that scored them.
    """

    rows: int
    done: int
    failed: int
    decisions: Mapping[str, int]
    shards: int
    key: str
    notice: str
    runtimes: Mapping[str, int]


def score_archive(
    source: Source,
    out: Path,
    *,
    model: Mapping[str, Any],
    identifiers: bool = True,
    heatmaps: bool = False,
    shard_size: int = 0,
    workers: int = 0,
    engine: Engine = "local",
    address: str = "",
    stopping: threading.Event | None = None,
    on_listed: Callable[[Listed], None] | None = None,
    watchers: Sequence[Callable[[Progress], None]] = (),
) -> Scored:
    """Score the images of a source that are not scored yet.

    Args:
        source: Source of the images; must match earlier runs if the folder exists.
        out: Folder of the results.
        model: Arguments of `inference.model.load_model`.
        identifiers: Whether the table contains identifiers; see `table.IDENTIFIERS`.
        heatmaps: Whether to write heatmaps, including for finished shards without them.
        shard_size: Images per shard; 0 for the archive's, or 256 for a new one.
        workers: Shards scored at the same time; 0 for one per core plus one, or with Ray for two per core or GPU.
        engine: "local" to score in this process, "ray" to score on Ray.
        address: Address of a Ray cluster; see `ray_engine.run_on_ray`.
        stopping: Event after which started shards are finished but no new ones are started.
        on_listed: Called when the source has been listed.
        watchers: Called after each batch, from any thread.

    Raises:
        UsageError: The source has no images, the folder belongs to another source or has a different shard size, or other
            software scored shards that need heatmaps.
        BundleError: The model has no heatmaps.
        StorageError: The folder cannot be written, another process is scoring into it, or the source is not available.
    """
    if shard_size < 0 or workers < 0:
        raise UsageError(
            f"the shard size is {shard_size} and the number of workers {workers}; the minimum is 0",
            hint="Leave them out for the defaults",
        )
    if address and engine != "ray":
        raise UsageError("--address is of a Ray cluster", hint="Add --engine ray")
    # With Ray, the network runs elsewhere, so this machine needs no GPU.
    elsewhere = {"provider": "cpu"} if engine == "ray" else {}
    loaded = load_model(**{**model, **elsewhere}, threads=1, isolated=engine == "local")
    try:
        if heatmaps:
            loaded.require_heatmaps()
        with ArchiveFolder.hold(out, source.location, source.kind, shard_size) as folder:
            listing, growth = _list(folder, source)
            chosen = folder.prediction_set(SetSettings.of_model(loaded, identifiers=identifiers))
            chosen.prepare(loaded.card.to_json())
            entries = chosen.finished(listing.shards)
            runtime = current_runtime(model.get("provider", "cpu"))
            finished = entries
            if heatmaps:
                finished = chosen.finished(listing.shards, heatmaps=True)
                _require_runtime(runtime, [entry for shard, entry in entries.items() if shard not in finished])
            if on_listed:
                skipped = DiscoveredImages((), tuple(source.skipped)).skipped_summary()
                others = count_runtimes(entries.values())
                others.pop(str(runtime), None)
                on_listed(Listed(listing.rows, listing.shards, len(finished), growth, skipped, others))
            run = _Run(folder, chosen, listing, finished, watchers)
            stopping = stopping or threading.Event()
            if engine == "ray":
                job = RayJob(pack_model(model), source.reader, chosen.key, identifiers=identifiers, heatmaps=heatmaps)
                run.enter(
                    run_on_ray(run.missing(), job, address=address, workers=workers, stopping=stopping, count=run.count)
                )
            else:
                options: dict[str, Any] = {"identifiers": identifiers, "heatmaps": heatmaps, "count": run.count}

                def score(shard: ListedShard, cancelled: threading.Event) -> ShardResult:
                    return score_shard(loaded, source.reader, shard, cancelled=cancelled, **options)

                run.enter(run_locally(run.missing(), score, workers=workers, stopping=stopping))
            return run.summary()
    finally:
        loaded.close()


def _require_runtime(runtime: Runtime, entries: Iterable[Entry]) -> None:
    """Raise UsageError if other software scored shards that need heatmaps, because rescoring would change their tables."""
    others = count_runtimes(entry for entry in entries if entry.runtime != runtime)
    if others:
        raise UsageError(
            f"other software scored {sum(others.values()):,} shards without heatmaps: {', '.join(others)}; this is {runtime}."
            " Heatmaps would change the digits of their tables",
            hint="Use that software, or delete the table files of these shards to score them again",
        )


def _list(folder: ArchiveFolder, source: Source) -> tuple[Listing, Growth]:
    listing = Listing(folder.listing)
    if listing.rows and not source.reader.is_available():
        raise StorageError(
            f"the source {source.location!r} is missing or empty",
            hint="Make it available, and run the same `pneumoscope archive score` again",
        )
    growth = listing.grow(source.images(), folder.settings.shard_size)
    write_skipped(folder.listing, source.skipped)
    if not listing.rows:
        raise UsageError("no images found", hint="Pass a folder that contains images, or a list of their paths")
    return listing, growth


class _Run:
    """One run over the unfinished shards of a set."""

    def __init__(
        self,
        folder: ArchiveFolder,
        chosen: PredictionSet,
        listing: Listing,
        finished: Mapping[int, Entry],
        watchers: Sequence[Callable[[Progress], None]],
    ) -> None:
        self._folder, self._set, self._listing = folder, chosen, listing
        self._finished = finished
        self._watchers = watchers
        self._n_shards = 0
        done = sum(entry.rows for entry in finished.values())
        self._counter = ProgressCounter(listing.rows, done, sum(entry.failed for entry in finished.values()))

    def enter(self, results: Generator[ShardResult]) -> None:
        """Write each result and enter it in the journal."""
        with contextlib.closing(results):
            for result in results:
                self._enter(result)

    def missing(self) -> Iterator[ListedShard]:
        """Yield the unfinished shards."""
        for number in range(self._listing.shards):
            if number not in self._finished:
                yield self._listing.shard(number)

    def count(self, images: int, failed: int) -> None:
        """Count scored images and call the watchers, from any thread."""
        self._counter.add(images, failed)
        progress = self._counter.progress()
        for watcher in self._watchers:
            watcher(progress)

    def _enter(self, result: ShardResult) -> None:
        # Write heatmaps first, because a table without its heatmaps would look complete.
        if result.heatmaps is not None:
            write_atomically(self._set.heatmaps_path(result.shard), result.heatmaps)
        write_atomically(self._set.shard_path(result.shard), result.table)
        entry = Entry(
            shard=result.shard,
            rows=result.rows,
            failed=result.failed,
            decisions=result.decisions,
            table=_stored(result.table),
            heatmaps=None if result.heatmaps is None else _stored(result.heatmaps),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(result.seconds, 3),
            runtime=result.runtime,
        )
        append_entry(self._set.journal, entry)
        self._n_shards += 1
        self._log(entry)

    def _log(self, entry: Entry) -> None:
        """Append one line with only numbers to the log, because file names may identify patients."""
        progress = self._counter.progress()
        left = "" if progress.seconds_left is None else f", {progress.seconds_left / 60:.0f} min left"
        line = (
            f"{entry.finished} {self._set.key} shard {entry.shard}: {entry.rows} images, {entry.failed} failed,"
            f" {entry.seconds:.1f} s; {progress.done:,} of {progress.total:,} images, {progress.failed:,} failed,"
            f" {progress.rate:.1f} images/s{left}\n"
        )
        with self._folder.log.open("a", encoding="utf-8") as file:
            file.write(line)

    def summary(self) -> Scored:
        """Return the result of the run."""
        entries = self._set.finished(self._listing.shards).values()
        decisions: Counter[str] = Counter()
        for entry in entries:
            decisions.update(entry.decisions)
        return Scored(
            rows=self._listing.rows,
            done=sum(entry.rows for entry in entries),
            failed=sum(entry.failed for entry in entries),
            decisions=decisions,
            shards=self._n_shards,
            key=self._set.key,
            notice=self._set.settings.notice,
            runtimes=count_runtimes(entries),
        )


def _stored(content: bytes) -> StoredFile:
    return StoredFile(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
